"""What the outputs of a network look like: logits, or something else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

PROBABILITIES = (
    "all outputs of the network lie in [0, 1], as after a sigmoid or softmax; logits are wanted: "
    "the loss and predict take the sigmoid themselves. End the network of build_model with its "
    "last convolution"
)
"""What is said where they are."""


@dataclass
class OutputRange:
    """The least and the largest output of a network so far."""

    lowest: float = math.inf
    highest: float = -math.inf

    def add(self, outputs: torch.Tensor) -> None:
        """Look at outputs too, as long as they may be probabilities: it takes a pass over them."""
        if self.lowest < 0 or self.highest > 1:
            return
        lowest, highest = torch.aminmax(outputs.detach())
        self.lowest = min(self.lowest, float(lowest))
        self.highest = max(self.highest, float(highest))

    @property
    def are_probabilities(self) -> bool:
        """Whether all lie in [0, 1], and not all are one value.

        So they do after a sigmoid or softmax. Logits of real raw are negative somewhere: most
        voxels are not of most classes.
        """
        return 0 <= self.lowest < self.highest <= 1

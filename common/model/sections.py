"""Two-and-a-half dimensions: a 2-D network that is given neighbouring sections as channels.

It sees some sections on both sides of the one whose labels it gives. Patches are (sections, y, x)
of raw and (1, y, x) of target; in prediction every section is the centre of a window once.
"""

from __future__ import annotations

from torch import Tensor, nn

from common.errors import UserError


class Sections(nn.Module):
    """(B, 1, z, y, x) to logits (B, classes, z - sections + 1, y, x)."""

    def __init__(self, network: nn.Module, sections: int):
        """Wrap a network.

        Args:
            network: (B, sections, y, x) to logits (B, classes, y, x).
            sections: how many it sees, the centre one included; an odd number from 3 on.
        """
        super().__init__()
        if sections < 3 or sections % 2 == 0:
            raise UserError(
                f"sections = {sections}: as many on one side of the centre as on the other; write "
                "an odd number from 3 on"
            )
        self.network = network
        self.sections = sections

    def forward(self, raw: Tensor) -> Tensor:
        """Return the logits of the sections that have enough neighbours on both sides."""
        if raw.ndim == 5 and raw.shape[1] > 1:
            raise UserError(
                f"{raw.shape[1]} input channels: a network of sections has the sections of raw in "
                "their place; leave input_channels out, or take a 3-D network"
            )
        if raw.ndim != 5 or raw.shape[1] != 1 or raw.shape[2] < self.sections:
            shape = tuple(raw.shape[2:]) if raw.ndim == 5 else tuple(raw.shape[1:])
            raise UserError(
                f"input shape {shape}: the network takes {self.sections} sections of raw at a time "
                f"and gives the one in the centre; write input_array_info['shape'] = "
                f"({self.sections}, y, x) and target_array_info['shape'] = (1, y, x)"
            )
        stacks = raw.squeeze(1).unfold(1, self.sections, 1)  # (B, centres, y, x, sections)
        centres = stacks.shape[1]
        as_channels = stacks.movedim(-1, 2).flatten(0, 1)
        logits = self.network(as_channels)
        return logits.unflatten(0, (-1, centres)).movedim(1, 2)

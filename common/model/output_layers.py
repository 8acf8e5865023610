"""Which layers a network's outputs come from, read from the graph of the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from common.model.activation import WITHOUT_EFFECT
from common.model.shapes import OnMeta, Outputs

LAYERS = ("ConvolutionBackward0", "AddmmBackward0")
"""Autograd's names of convolutions and linear layers."""

THROUGH = (
    *WITHOUT_EFFECT,
    "AddBackward0",
    "UpsampleNearest2DBackward0",
    "UpsampleNearest3DBackward0",
    "UpsampleBilinear2DBackward0",
    "UpsampleTrilinear3DBackward0",
)
"""Operations after a layer that leave what is the same everywhere as it is, or add it up."""


def output_layers(
    model: nn.Module, outputs: Outputs, shape: Sequence[int], in_channels: int = 1
) -> list[set[str]]:
    """For each output of a network the names of the parameters of the layers that it is a sum of.

    Nothing is computed: the network runs on the meta device. An empty set for an output that comes
    from something else than convolutions; [] for a network that cannot be run there.

    shape: of raw, (z, y, x) voxels.
    """
    on_meta = OnMeta(model)
    names = {id(tensor): name for name, tensor in on_meta.empty.items()}
    try:
        given = outputs(on_meta, torch.empty(1, in_channels, *shape, device="meta"))
    except Exception:  # a network that needs values raises whatever it likes
        return []
    return [_parameters(output.grad_fn, names) for output in given]


def _parameters(last: Any, names: dict[int, str]) -> set[str]:
    """The parameters of the layers that an operation's result comes from; none if of another."""
    found: set[str] = set()
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if node is None:  # a constant, which a layer's result is added to
            continue
        before = [each for each, _ in node.next_functions]
        if node.name() in LAYERS:
            variables = [getattr(each, "variable", None) for each in before]
            found |= {names[id(tensor)] for tensor in variables if id(tensor) in names}
        elif node.name() in THROUGH:
            waiting += before
        else:
            return set()
    return found

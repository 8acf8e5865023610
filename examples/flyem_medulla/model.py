"""The network: a residual-encoder U-Net at 10 nm, 0.8 million parameters for two classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from common.model.resenc import build_resenc

from .data import input_array_info


def build_model(classes: Sequence[str]) -> nn.Module:
    """Untrained: (B, 1, z, y, x) to logits (B, len(classes), z, y, x)."""
    scale = input_array_info["scale"]
    # batch norm: a prediction does not depend on the size of its windows; it needs the batch of 8
    return build_resenc(classes, scale, input_array_info["shape"], width=8, norm="batch")

"""The network: a residual-encoder U-Net for sections, 0.6 million parameters for three classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from common.model.resenc import build_resenc

from .data import input_array_info


def build_model(classes: Sequence[str]) -> nn.Module:
    """Untrained: (B, 1, z, y, x) to logits (B, len(classes), z, y, x)."""
    scale = input_array_info["scale"]
    shape = input_array_info["shape"]
    return build_resenc(classes, scale, shape, width=8, stem_stride=2, norm="batch")

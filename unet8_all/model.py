"""The network: LeibNetz' 3D U-Net at 8 nm, 666,600 parameters for 48 classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from common.model.unet import build_unet

from .data import input_array_info


def build_model(classes: Sequence[str], in_channels: int = 1) -> nn.Module:
    """Untrained: (B, in_channels, z, y, x) to logits (B, len(classes), z - 40, y - 40, x - 40)."""
    return build_unet(classes, input_array_info["scale"], in_channels)

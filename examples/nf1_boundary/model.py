"""The network: a U-Net in the plane whose channels are neighbouring sections."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from common.model.sections import Sections

from .data import input_array_info

WIDTHS = (16, 16, 32, 64, 128, 16)
"""Channels of the levels, and of the last one."""


def build_model(classes: Sequence[str], widths: Sequence[int] = WIDTHS) -> nn.Module:
    """Untrained: (B, 1, sections, y, x) to logits (B, len(classes), 1, y, x) of the centre one."""
    from monai.networks.nets import BasicUNet  # takes seconds: only where a network is built

    sections = input_array_info["shape"][0]
    network = BasicUNet(2, sections, len(classes), features=tuple(widths), norm="batch")
    return Sections(network, sections)

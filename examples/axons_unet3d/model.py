"""The network: a plain 3-D U-Net with batch norm and dropout, small or as published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from common.model.unet3d import build_unet3d


def build_model(classes: Sequence[str], layout: str = "small", **options: Any) -> nn.Module:
    """Untrained: (B, 1, z, y, x) to logits (B, len(classes), z, y, x).

    Args:
        classes: names of all channels.
        layout: "small", 662 thousand parameters and statistics for three classes, or "published",
            133,952,755, for which patches are multiples of 32 voxels.
        options: of `common.model.unet3d.build_unet3d`, such as `kernel=4`.
    """
    return build_unet3d(classes, layout, **options)

"""The network: a 3-D U-Net whose encoder is ImageNet's VGG16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from common.model.vgg16 import build_vgg16


def build_model(classes: Sequence[str], stages: int = 3, **options: Any) -> nn.Module:
    """(B, 1, z, y, x) in [0, 1] to logits (B, len(classes), z, y, x).

    Args:
        classes: names of all channels.
        stages: of VGG16 in the encoder; all five make 71,233,107 parameters and statistics for
            three classes, and patches are multiples of 32 voxels then.
        options: of `common.model.vgg16.build_vgg16`, such as `weights="random"`.
    """
    return build_vgg16(classes, stages=stages, **options)

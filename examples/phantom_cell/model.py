"""The network: a residual-encoder U-Net at 8 nm, 804,163 parameters for 17 classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from common.model.resenc import build_resenc

from .data import input_array_info


def build_model(classes: Sequence[str], **options: Any) -> nn.Module:
    """Untrained: (B, 1, z, y, x) to logits (B, len(classes), z, y, x).

    options: of `common.model.resenc.build_resenc`, by the setting model_kwargs.
    """
    return build_resenc(classes, input_array_info["scale"], input_array_info["shape"], **options)

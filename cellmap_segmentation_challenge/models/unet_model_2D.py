"""The toolbox's U-Net in two dimensions."""

from __future__ import annotations

from cellmap_segmentation_challenge._public import names_of
from cellmap_segmentation_challenge.models._unet import UNet

__getattr__ = names_of(__name__, {})


class UNet_2D(UNet):  # the public name
    """A U-Net of 31 million weights over raw (B, n_channels, y, x).

    It has the toolbox's layers and names of tensors, so that its weights load; logits are equal.

    Args:
        n_channels: of raw, 1.
        n_classes: channels of the logits.
        trilinear: go up by interpolation instead of transposed convolutions.
    """

    def __init__(self, n_channels: int, n_classes: int, trilinear: bool = False):
        super().__init__(n_channels, n_classes, interpolated=trilinear, ndims=2)

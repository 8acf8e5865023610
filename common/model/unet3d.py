"""A plain 3-D U-Net with batch normalisation and dropout: a small one, and a published one.

A level is convolution, norm, ReLU, dropout, convolution, norm, ReLU. The encoder halves voxels by
max pooling; at the bottom are two convolutions of as many channels as the last level has. The
decoder doubles voxels by transposed convolutions of 2x2x2 that keep the number of channels, joins
what the encoder had there, and has in each level half the channels of the one below.

The published network is known by its number of parameters alone, 133,952,755 for three classes:
133,942,835 that are trained and 9,920 running statistics. Of some millions of layouts with one
kernel size that were counted - two to six levels, one to four convolutions in each, channels that
double, up to a limit or not, one or three input channels, every usual way up - this is the only
one with 4x4x4 kernels that has both numbers: 64, 128, 256, 512, 512 channels, and three input
channels. Where norm, ReLU and dropout stand among the convolutions no count can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.errors import UserError
from common.model.sizes import refuse_other_multiples


@dataclass(frozen=True)
class Layout:
    """What a 3-D U-Net is built by."""

    widths: tuple[int, ...]
    """Channels of each level of the encoder, at the voxels of raw first."""
    kernel: int
    """Voxels of a convolution along each axis."""
    in_channels: int = 1
    """Channels of the first convolution. Raw, which has one, is repeated in them."""
    dropout: tuple[float, float] = (0.1, 0.5)
    """Part of the values that is dropped, in the first level and in the last; evenly between."""


LAYOUTS = {
    "small": Layout(widths=(16, 32, 64), kernel=3),
    "published": Layout(widths=(64, 128, 256, 512, 512), kernel=4, in_channels=3),
}


def build_unet3d(classes: Sequence[str], layout: str = "small", **changes: Any) -> UNet3D:
    """Return an untrained network with one output channel for each class.

    Args:
        classes: names, in the order of the channels.
        layout: one of LAYOUTS; "published" has 133,952,755 parameters and statistics for three
            classes, and takes multiples of 32 voxels.
        changes: fields of the `Layout` that differ from it, such as `kernel=4`.

    Raises:
        UserError: for a layout that is none.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout = {layout!r}; write one of {', '.join(LAYOUTS)}")
    try:
        chosen = replace(LAYOUTS[layout], **changes)
    except TypeError:
        names = ", ".join(vars(LAYOUTS[layout]))
        raise UserError(f"build_unet3d({', '.join(changes)}): the options are {names}") from None
    return UNet3D(_checked(chosen), len(classes))


class UNet3D(nn.Module):
    """(B, 1, z, y, x) to logits (B, classes, z, y, x); voxels are multiples of `step`."""

    def __init__(self, layout: Layout, classes: int):
        super().__init__()
        self.in_channels = layout.in_channels
        self.step = 2 ** len(layout.widths)
        rates = np.linspace(*layout.dropout, len(layout.widths)).tolist()
        self.down = nn.ModuleList()
        width = layout.in_channels
        for wider, rate in zip(layout.widths, rates, strict=True):
            self.down.append(_level(width, wider, layout.kernel, rate))
            width = wider
        self.bottom = _level(width, width, layout.kernel, rates[-1])
        self.widen = nn.ModuleList()
        self.up = nn.ModuleList()
        for beside, rate in zip(reversed(layout.widths), reversed(rates), strict=True):
            self.widen.append(nn.ConvTranspose3d(width, width, 2, 2))
            self.up.append(_level(width + beside, width // 2, layout.kernel, rate))
            width //= 2
        self.output = nn.Conv3d(width, classes, 1)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Return logits; UserError for a size or a number of channels that it does not take."""
        refuse_other_multiples("the 3-D U-Net", raw.shape[2:], self.step)
        features = in_channels_of(raw, self.in_channels)
        beside = []
        for level in self.down:
            features = level(features)
            beside.append(features)
            features = F.max_pool3d(features, 2)
        features = self.bottom(features)
        for widen, level in zip(self.widen, self.up, strict=True):
            features = level(torch.cat([widen(features), beside.pop()], 1))
        return self.output(features)


def in_channels_of(raw: torch.Tensor, channels: int) -> torch.Tensor:
    """Return raw (B, 1, z, y, x) in each of so many channels; raw that has them is returned.

    Raises UserError for raw with another number of channels.
    """
    given = raw.shape[1]
    if given == channels:
        return raw
    if given == 1:
        return raw.expand(-1, channels, *raw.shape[2:])
    raise UserError(
        f"the first convolution takes {channels} channels, in each of which raw of one is repeated,"
        f" and it is given {given}; give raw of 1 or of {channels} channels"
    )


class SameConv3d(nn.Conv3d):
    """A convolution whose output has the voxels of its input, also with an even kernel.

    Of an even number of voxels there is one more after a voxel than before it, as in TensorFlow.
    """

    def __init__(self, given: int, made: int, kernel: int):
        super().__init__(given, made, kernel, padding=0 if kernel % 2 == 0 else kernel // 2)
        self.beyond = ((kernel - 1) // 2, kernel // 2) * 3 if kernel % 2 == 0 else ()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return what the convolution makes of the padded input."""
        return super().forward(F.pad(input, self.beyond) if self.beyond else input)


def _level(given: int, made: int, kernel: int, rate: float) -> nn.Sequential:
    return nn.Sequential(
        SameConv3d(given, made, kernel),
        nn.BatchNorm3d(made),
        nn.ReLU(inplace=True),
        nn.Dropout(rate),
        SameConv3d(made, made, kernel),
        nn.BatchNorm3d(made),
        nn.ReLU(inplace=True),
    )


def _checked(layout: Layout) -> Layout:
    widths = tuple(layout.widths)
    levels = len(widths)
    if not levels or any(width < 1 for width in widths) or widths[-1] % 2**levels:
        raise UserError(
            f"widths = {widths}: the decoder halves the channels of the last level {levels} times; "
            "write numbers such as (16, 32, 64)"
        )
    if layout.kernel < 1 or layout.in_channels < 1:
        raise UserError(
            f"kernel = {layout.kernel}, in_channels = {layout.in_channels}; write 1 or more"
        )
    if not all(0 <= rate < 1 for rate in layout.dropout) or len(layout.dropout) != 2:
        raise UserError(
            f"dropout = {layout.dropout}; write the parts dropped in the first and in the last "
            "level, such as (0.1, 0.5), or (0, 0)"
        )
    return replace(layout, widths=widths)

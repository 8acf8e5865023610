"""The U-Net of the public toolbox in two and three dimensions.

Its architecture is Ronneberger et al. 2015 with batch normalisation and padding: two convolutions
at each of five levels of 64 to 1024 channels. Tensors have the names of the toolbox's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (64, 128, 256, 512, 1024)
"""Channels of the levels, the finest first."""


class Layers(NamedTuple):
    """Layers for a number of spatial axes."""

    conv: type[nn.Module]
    norm: type[nn.Module]
    pool: type[nn.Module]
    transposed: type[nn.Module]
    interpolation: str


LAYERS = {
    2: Layers(nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.ConvTranspose2d, "bilinear"),
    3: Layers(nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, nn.ConvTranspose3d, "trilinear"),
}


class DoubleConv(nn.Module):
    """Two convolutions of 3 voxels, each with batch normalisation and ReLU."""

    def __init__(self, layers: Layers, taken: int, given: int, between: int):
        super().__init__()
        steps: list[nn.Module] = []
        for before, after in ((taken, between), (between, given)):
            steps.append(layers.conv(before, after, kernel_size=3, padding=1, bias=False))
            steps.append(layers.norm(after))
            steps.append(nn.ReLU(inplace=True))
        self.double_conv = nn.Sequential(*steps)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return (B, given, ...) of (B, taken, ...)."""
        return self.double_conv(values)


class Down(nn.Module):
    """To the next coarser level."""

    def __init__(self, layers: Layers, taken: int, given: int):
        super().__init__()
        conv = DoubleConv(layers, taken, given, given)
        self.maxpool_conv = nn.Sequential(layers.pool(2), conv)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return half as many voxels along each axis."""
        return self.maxpool_conv(values)


class Up(nn.Module):
    """To the next finer level, beside what the encoder had there."""

    def __init__(self, layers: Layers, taken: int, given: int, *, interpolated: bool):
        super().__init__()
        half = taken // 2
        if interpolated:
            self.up: nn.Module = nn.Upsample(
                scale_factor=2, mode=layers.interpolation, align_corners=True
            )
            self.conv = DoubleConv(layers, taken, given, half)
        else:
            self.up = layers.transposed(taken, half, kernel_size=2, stride=2)
            self.conv = DoubleConv(layers, taken, given, given)

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Return as many voxels as `fine` has, which pooling may have left out at the end."""
        larger = self.up(coarse)
        padding: list[int] = []
        for axis in range(fine.ndim - 1, 1, -1):  # the last axis first, as F.pad has it
            lacking = fine.shape[axis] - larger.shape[axis]
            padding += [lacking // 2, lacking - lacking // 2]
        return self.conv(torch.cat([fine, functional.pad(larger, padding)], dim=1))


class OutConv(nn.Module):
    """Logits."""

    def __init__(self, layers: Layers, taken: int, given: int):
        super().__init__()
        self.conv = layers.conv(taken, given, kernel_size=1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return (B, given, ...)."""
        return self.conv(values)


class UNet(nn.Module):
    """The U-Net for a number of spatial axes."""

    def __init__(self, n_channels: int, n_classes: int, *, interpolated: bool, ndims: int):
        super().__init__()
        layers = LAYERS[ndims]
        self.n_channels = n_channels
        self.n_classes = n_classes
        self.trilinear = interpolated
        first, second, third, fourth, fifth = WIDTHS
        # without weights for going up, the level below gives half as many channels
        less = 2 if interpolated else 1
        self.inc = DoubleConv(layers, n_channels, first, first)
        self.down1 = Down(layers, first, second)
        self.down2 = Down(layers, second, third)
        self.down3 = Down(layers, third, fourth)
        self.down4 = Down(layers, fourth, fifth // less)
        self.up1 = Up(layers, fifth, fourth // less, interpolated=interpolated)
        self.up2 = Up(layers, fourth, third // less, interpolated=interpolated)
        self.up3 = Up(layers, third, second // less, interpolated=interpolated)
        self.up4 = Up(layers, second, first, interpolated=interpolated)
        self.outc = OutConv(layers, first, n_classes)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Return logits (B, n_classes, ...) of raw (B, n_channels, ...), on the same voxels."""
        levels = [self.inc(raw)]
        for down in (self.down1, self.down2, self.down3, self.down4):
            levels.append(down(levels[-1]))
        values = levels.pop()
        for up in (self.up1, self.up2, self.up3, self.up4):
            values = up(values, levels.pop())
        return self.outc(values)

"""A U-Net whose encoder is ImageNet's VGG16, inflated to three dimensions.

Each 3x3 kernel of the two-dimensional network (Simonyan & Zisserman 2015) is laid three times one
behind the other and divided by three (Carreira & Zisserman 2017): raw that is constant along z
gives the features of the two-dimensional network. Above are two convolutions at the bottom and a
decoder of five levels with batch normalisation, as in segmentation-models-3D; with three classes
71,229,075 parameters are trained, and 4,032 are running statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.files import cache_folder
from common.model import published
from common.model.sizes import refuse_other_multiples
from common.model.unet3d import in_channels_of
from common.talk import say

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions of VGG16; after each stage voxels are halved."""

DECODER = (256, 128, 64, 32, 16)
"""Channels of the decoder's levels, the lowest first; with fewer stages the last ones."""

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue in [0, 1], by which the network was given its images."""

FILE = "vgg16-397923af.pth"
URL = f"https://download.pytorch.org/models/{FILE}"
"""The weights of torchvision. The name has the first digits of the file's SHA-256."""

IMAGENET = "imagenet"
RANDOM = "random"


def build_vgg16(
    classes: Sequence[str],
    weights: str = IMAGENET,
    *,
    stages: int = len(STAGES),
    freeze_encoder: bool = False,
    in_channels: int = 1,
) -> VGG16UNet:
    """Return a network with one output channel for each class, whose decoder is untrained.

    Args:
        classes: names, in the order of the channels.
        weights: of the encoder: "imagenet", which is downloaded once, or "random".
        stages: how many of VGG16's five the encoder has; with three it has 5 million weights of 44.
        freeze_encoder: train the decoder alone.
        in_channels: of the input: raw alone, or three, which are those of the encoder.

    Raises:
        FileError: if the weights are neither in the cache nor can be downloaded.
        UserError: for weights or stages that are none, and for another number of channels.
    """
    _refuse_arguments(weights, stages, in_channels)
    model = VGG16UNet(len(classes), stages)
    if weights == IMAGENET:
        if published.are_wanted():
            model.load_encoder(read_weights(weights_path()))
    else:
        frozen = ", and freeze_encoder keeps it so" if freeze_encoder else ""
        say(f"WARNING: weights = '{RANDOM}': the encoder of VGG16 is NOT pretrained{frozen}")
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(not freeze_encoder)
    return model


def _refuse_arguments(weights: str, stages: int, in_channels: int) -> None:
    """Raises UserError, as `build_vgg16` says."""
    if weights not in (IMAGENET, RANDOM):
        raise UserError(f"weights = {weights!r}; write {IMAGENET} or {RANDOM}")
    if not 1 <= stages <= len(STAGES):
        raise UserError(f"stages = {stages}; write 1 to {len(STAGES)}")
    if in_channels not in (1, len(MEAN)):
        raise UserError(
            f"an input of {in_channels} channels, raw and {in_channels - 1} of input_channels, for "
            f"VGG16, whose encoder has {len(MEAN)}: name two input_channels, or none, of which raw "
            "is repeated"
        )


class VGG16UNet(nn.Module):
    """(B, 1, z, y, x) in [0, 1] to logits (B, classes, z, y, x); voxels are multiples of `step`.

    Raw is repeated in the three channels of the encoder; raw of three channels is taken, too.
    """

    def __init__(self, classes: int, stages: int = len(STAGES)):
        super().__init__()
        self.step = 2**stages
        self.encoder = nn.ModuleList()
        width = len(MEAN)
        for widths in STAGES[:stages]:
            convolutions = nn.ModuleList()
            for wider in widths:
                convolutions.append(nn.Conv3d(width, wider, 3, padding=(0, 1, 1)))
                width = wider
            self.encoder.append(convolutions)
        self.bottom = _two_convolutions(width, width)
        self.up = nn.ModuleList()
        # the last level joins nothing, as in segmentation-models
        beside = [widths[-1] for widths in reversed(STAGES[1:stages])] + [0]
        for joined, narrower in zip(beside, DECODER[-stages:], strict=True):
            self.up.append(_two_convolutions(width + joined, narrower))
            width = narrower
        self.output = nn.Conv3d(width, classes, 3, padding=1)

    def features(self, raw: Tensor) -> list[Tensor]:
        """Return what each stage of the encoder gives, before its pooling."""
        rgb = in_channels_of(raw, len(MEAN))
        mean, deviation = (rgb.new_tensor(values).view(-1, 1, 1, 1) for values in (MEAN, DEVIATION))
        values = (rgb - mean) / deviation
        found = []
        for number, convolutions in enumerate(self.encoder):
            if number:
                values = F.max_pool3d(values, 2)
            for convolution in convolutions:  # type: ignore[attr-defined]  # a ModuleList
                # beyond the first and last section is the same again: with zeros there, sections
                # of a volume that is constant along z would differ
                beyond = F.pad(values, (0, 0, 0, 0, 1, 1), mode="replicate")
                values = convolution(beyond).relu()
            found.append(values)
        return found

    def forward(self, raw: Tensor) -> Tensor:
        """Return logits; UserError for a size or a number of channels that it does not take."""
        refuse_other_multiples("the U-Net over VGG16", raw.shape[2:], self.step)
        beside = self.features(raw)
        values = self.bottom(F.max_pool3d(beside[-1], 2))
        for level in self.up:
            values = F.interpolate(values, scale_factor=2, mode="nearest")
            joined = beside.pop()
            if beside:
                values = torch.cat([values, joined], 1)
            values = level(values)
        return self.output(values)

    @torch.no_grad()
    def load_encoder(self, weights: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take kernels (made, given, 3, 3) and biases of VGG16's convolutions, in order."""
        own: list[Any] = [one for one in self.encoder.modules() if isinstance(one, nn.Conv3d)]
        for convolution, (kernel, bias) in zip(own, weights, strict=False):
            convolution.weight.copy_(inflated(kernel))
            convolution.bias.copy_(bias)


def inflated(kernel: Tensor) -> Tensor:
    """Return (made, given, y, x) as (made, given, 3, y, x) with the same sum along z."""
    return kernel.unsqueeze(2).expand(-1, -1, 3, -1, -1) / 3


def weights_path() -> Path:
    """Return the file of VGG16's weights in the cache; see `published.cached`."""
    return published.cached(cache_folder() / "torchvision" / FILE, URL, check=_check)


def read_weights(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Return kernels and biases of the convolutions, in order. UserError for another file."""
    try:
        # most of the file are the layers of the classifier, which are not read
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        kernels = [saved[f"features.{number}.weight"] for number in _numbers()]
        biases = [saved[f"features.{number}.bias"] for number in _numbers()]
    except Exception as error:  # a damaged file raises anything from EOFError to KeyError
        raise UserError(
            f"{path}: not the weights of torchvision's vgg16 ({type(error).__name__}: {error}); "
            "delete it and fetch it again"
        ) from error
    given = len(MEAN)
    widths = chain.from_iterable(STAGES)
    for kernel, width in zip(kernels, widths, strict=True):
        if tuple(kernel.shape) != (width, given, 3, 3):
            raise UserError(
                f"{path}: a kernel of shape {tuple(kernel.shape)} in the place of "
                f"{(width, given, 3, 3)}; delete it and fetch it again"
            )
        given = width
    return list(zip(kernels, biases, strict=True))


def _numbers() -> Iterator[int]:
    """Yield the numbers of the convolutions among torchvision's layers: ReLUs follow, and pools."""
    number = 0
    for stage in STAGES:
        for _ in stage:
            yield number
            number += 2
        number += 1


def _check(path: Path, digest: str) -> None:
    """Raise UserError unless the file is torchvision's, by the digits in its name and its tensors.

    path: of the file or of what was downloaded of it.
    """
    wanted = FILE.removesuffix(".pth").partition("-")[2]
    if not digest.startswith(wanted):
        raise UserError(
            f"{path}: SHA-256 is {digest} and should begin with {wanted}; delete it and fetch it "
            "again"
        )
    read_weights(path)


def _two_convolutions(given: int, made: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (given, made):
        layers += [
            nn.Conv3d(width, made, 3, padding=1, bias=False),
            nn.BatchNorm3d(made),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)

"""The toolbox's ResNet: strided convolutions, residual blocks, transposed convolutions.

The architecture is that of Johnson et al. 2016 (perceptual losses). Tensors have the names of the
toolbox's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cellmap_segmentation_challenge._public import names_of
from common.errors import UserError

__getattr__ = names_of(__name__, {})

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
PADDERS: dict[str, dict[int, type[nn.Module]]] = {
    "reflect": {2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d},
    "replicate": {2: nn.ReplicationPad2d, 3: nn.ReplicationPad3d},
}
PADDINGS = ("reflect", "same", "replicate", "zeros", "valid")


@dataclass(frozen=True)
class Style:
    """Properties that all layers of a ResNet share."""

    ndims: int
    norm: Callable[[int], nn.Module]
    activation: Callable[[], nn.Module]
    padding: str
    """One of PADDINGS."""
    bias: bool
    """Whether convolutions before a normalisation have a bias."""

    def conv(self, taken: int, given: int, kernel: int, bias: bool) -> list[nn.Module]:
        """Return a convolution that keeps the number of voxels, or drops margins ("valid")."""
        margin = kernel // 2
        own = margin if self.padding == "zeros" else 0
        layer = CONV[self.ndims](taken, given, kernel_size=kernel, padding=own, bias=bias)
        kind = "reflect" if self.padding == "same" else self.padding
        if kind not in PADDERS:
            return [layer]
        return [PADDERS[kind][self.ndims](margin), layer]

    def then(self, width: int) -> list[nn.Module]:
        """Return the layers that follow a convolution."""
        return [self.norm(width), self.activation()]


class Block(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, style: Style, width: int, use_dropout: bool):
        super().__init__()
        layers = style.conv(width, width, 3, style.bias) + style.then(width)
        if use_dropout:
            layers.append(nn.Dropout(0.2))
        layers += [*style.conv(width, width, 3, style.bias), style.norm(width)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the same channels; without padding 4 voxels less along each axis."""
        change = self.conv_block(values)
        for axis in range(2, values.ndim):
            margin = (values.shape[axis] - change.shape[axis]) // 2
            values = values.narrow(axis, margin, change.shape[axis])
        return values + change


class ResNet(nn.Module):
    """A ResNet over raw (B, input_nc, ...) that gives (B, output_nc, ...).

    It has the toolbox's layers and names of tensors, so that its weights load; logits are equal.

    Args:
        ndims: spatial axes, 2 or 3.
        input_nc: channels of raw.
        output_nc: channels of the logits; `ngf` unless given.
        ngf: channels at the finest level.
        norm_layer: takes a number of channels; instance normalisation unless given.
        use_dropout: 0.2 in each block.
        n_blocks: residual blocks at the coarsest level.
        padding_type: "reflect" or "same", "replicate", "zeros", or "valid" for none.
        activation: makes an activation.
        n_downsampling: times that the voxels are halved.

    Raises:
        UserError: for another number of axes or kind of padding.
    """

    def __init__(  # noqa: PLR0913  # the public signature
        self,
        ndims: int,
        input_nc: int = 1,
        output_nc: int | None = None,
        ngf: int = 64,
        *,
        norm_layer: Any = None,
        use_dropout: bool = False,
        n_blocks: int = 6,
        padding_type: str = "reflect",
        activation: Callable[[], nn.Module] = nn.ReLU,
        n_downsampling: int = 2,
    ):
        super().__init__()
        padding = padding_type.lower()
        if ndims not in CONV or padding not in PADDINGS:
            raise UserError(
                f"ResNet: ndims = {ndims}, padding_type = '{padding_type}'; write 2 or 3, and one "
                f"of {', '.join(PADDINGS)}"
            )
        norm = norm_layer or INSTANCE_NORM[ndims]
        style = Style(
            ndims, norm, activation, padding=padding, bias=_wants_bias(norm, INSTANCE_NORM[ndims])
        )
        widest = ngf * 2**n_downsampling
        self.model = nn.Sequential(
            *style.conv(input_nc, ngf, 7, style.bias),
            *style.then(ngf),
            *_down(style, ngf, n_downsampling),
            *(Block(style, widest, use_dropout) for _ in range(n_blocks)),
            *_up(style, ngf, n_downsampling),
            *style.conv(ngf, output_nc or ngf, 7, bias=True),
        )

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Return (B, output_nc, ...); as many voxels as raw if these are multiples of the step."""
        return self.model(raw)


def _wants_bias(norm: Any, instance_norm: type[nn.Module]) -> bool:
    """Whether convolutions have a bias; batch normalisation has one of its own."""
    kind = norm.func if isinstance(norm, functools.partial) else norm
    return kind == instance_norm


def _down(style: Style, width: int, times: int) -> Iterable[nn.Module]:
    padding = 0 if style.padding == "valid" else 1
    for level in range(times):
        taken = width * 2**level
        conv = CONV[style.ndims]
        yield conv(taken, 2 * taken, kernel_size=3, stride=2, padding=padding, bias=style.bias)
        yield from style.then(2 * taken)


def _up(style: Style, width: int, times: int) -> Iterable[nn.Module]:
    padding = 0 if style.padding == "valid" else 1
    for level in range(times - 1, -1, -1):
        given = width * 2**level
        yield TRANSPOSED[style.ndims](
            2 * given,
            given,
            kernel_size=3,
            stride=2,
            padding=padding,
            output_padding=padding,
            bias=style.bias,
        )
        yield from style.then(given)

"""The residual-encoder U-Net of the resenc* experiments: how it is planned, and MONAI's layers.

The layers are MONAI's `SegResNetDS` (Myronenko 2018; He et al. 2023 in Auto3DSeg): residual blocks
in the encoder, skips that are added, a transposed convolution and one block a level in the decoder.
Patches of raw and target are equal, since the convolutions pad. Of the planning, the pooling along
the axes of short voxels first is MONAI's, too; the depth is chosen here, by the patch.

Why MONAI and not `dynamic-network-architectures`: docs/explanation/networks.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import nn

from common.errors import UserError
from common.model.sizes import refuse_other_multiples, three_sizes

WIDTH = 16
"""Channels at the voxels of raw; they double wherever voxels are halved."""

NORM_GROUPS = 8
"""Groups of a group norm, as in MONAI's SegResNet."""

FINE_FEATURES = 8
"""Channels at the voxels of raw of a network with a stem: one block of AVX2's float32."""

SMALLEST_FEATURE_MAP = 4
"""Voxels on an axis at the lowest level, as nnU-Net plans them (Isensee et al. 2021)."""

MOST_HALVINGS = 4
"""From raw to the lowest level, of an axis: 16 channels are 256 there, and windows grow by 16."""

STEM_STRIDES = (1, 2, 4)

BLOCKS = (1, 2, 2, 2, 2)
"""Residual blocks of each level of the encoder."""

NORMS = ("group", "instance", "batch")

Axes = tuple[int, int, int]
"""A whole number for z, y and x."""


@dataclass(frozen=True)
class Plan:
    """What a residual-encoder U-Net is built by."""

    stem: Axes
    """Voxels of raw, z, y, x, in one voxel of the first level."""
    resolution: tuple[float, float, float]
    """Size of that voxel in nm."""
    pools: tuple[Axes, ...]
    """From each level to the next the voxels that become one."""
    width: int
    """Channels of the first level; the others have twice as many as the one above."""

    @property
    def levels(self) -> int:
        """Return how many there are."""
        return len(self.pools) + 1

    @property
    def step(self) -> Axes:
        """Return of what number the voxels of raw have to be a multiple, z, y, x."""
        z, y, x = (math.prod(axis) for axis in zip(self.stem, *self.pools, strict=True))
        return z, y, x


def plan_resenc(
    scale: float | Sequence[float],
    patch: Sequence[int],
    *,
    stem_stride: int = 1,
    width: int = WIDTH,
) -> Plan:
    """Plan a network for raw patches of `patch` voxels of `scale` nm, z, y, x.

    Axes of short voxels are halved alone until the voxels are about as long on all axes: with 50 x
    4.6 x 4.6 nm three times in the plane. The patch is halved as often as leaves whole voxels and
    at least 4 on an axis, four times at most.

    Args:
        scale: one number or z, y, x.
        patch: voxels of raw, and of target.
        stem_stride: voxels of raw on an axis that are one voxel of the first level: with 2 nothing
            but the first and the last convolution runs at the voxels of raw. It holds for the axes
            that are halved first.
        width: channels at the voxels of raw; the first level has stem_stride times as many.

    Raises:
        UserError: for a patch that cannot be halved, or a stride or width that is none.
    """
    _check(stem_stride, width)
    nm = three_sizes(scale)
    pools = _pools(nm, _axes(patch))
    in_stem = STEM_STRIDES.index(stem_stride)
    if len(pools) <= in_stem:
        raise UserError(
            f"patch {_axes(patch)}: cannot be halved {in_stem + 1} times to whole voxels, at least "
            f"{SMALLEST_FEATURE_MAP} on an axis; write multiples of 16, such as (64, 64, 64)"
        )
    stem = (1, 1, 1)
    for pool in pools[:in_stem]:
        stem = _times(stem, pool)
    z, y, x = np.multiply(nm, stem).tolist()
    return Plan(stem, (z, y, x), pools[in_stem:], width * stem_stride)


def _check(stem_stride: int, width: int) -> None:
    if stem_stride not in STEM_STRIDES:
        raise UserError(f"stem_stride = {stem_stride}: write 1, 2 or 4")
    if width < 4 or width % 4:
        raise UserError(f"width = {width}: not a number of channels; write 8, 16 or 32")


def build_resenc(
    classes: Sequence[str],
    scale: float | Sequence[float],
    patch: Sequence[int],
    *,
    stem_stride: int = 1,
    width: int = WIDTH,
    norm: str = "group",
    deep_supervision: bool = False,
    in_channels: int = 1,
) -> ResEnc:
    """Return an untrained network with one output channel for each class; see `plan_resenc`.

    Args:
        classes: names, in the order of the channels.
        scale: voxel size in nm, one number or z, y, x.
        patch: voxels of raw, and of target, z, y, x.
        stem_stride: 2 is the quick variant, which computes little at the voxels of raw.
        width: channels at the voxels of raw.
        norm: "group" (8 groups), "instance" or "batch".
        deep_supervision: give a list of logits while training, the finest first, each on half as
            many voxels along an axis; in eval mode there is the finest alone.
        in_channels: of the input, raw and what is beside it.
    """
    if norm not in NORMS:
        raise UserError(f"norm = {norm!r}: no such layer; write one of {', '.join(NORMS)}")
    plan = plan_resenc(scale, patch, stem_stride=stem_stride, width=width)
    return ResEnc(
        plan,
        len(classes),
        norm=norm,
        deep_supervision=deep_supervision,
        in_channels=in_channels,
    )


class ResEnc(nn.Module):
    """A residual-encoder U-Net: (B, in_channels, z, y, x) to logits (B, classes, z, y, x).

    With deep supervision it gives a list of them in training mode. It takes voxels that are a
    multiple of `plan.step`.
    """

    def __init__(
        self, plan: Plan, classes: int, *, norm: str, deep_supervision: bool, in_channels: int = 1
    ):
        super().__init__()
        from monai.networks.nets import SegResNetDS  # takes seconds

        self.plan = plan
        has_stem = plan.stem != (1, 1, 1)
        layers = SegResNetDS(
            init_filters=plan.width,
            in_channels=plan.width // 2 if has_stem else in_channels,
            out_channels=classes,
            norm=_norm(norm, plan.width),
            blocks_down=BLOCKS[: plan.levels],
            dsdepth=len(plan.pools) if deep_supervision else 1,
            resolution=plan.resolution,
        )
        if has_stem:
            # the last level's own output would be on its large voxels
            cast(nn.ModuleDict, layers.up_layers[-1])["head"] = nn.Identity()
        self.ends = Ends(plan, classes, norm, in_channels) if has_stem else None
        self.layers: nn.Module = layers

    def forward(self, raw: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits of raw; UserError for a size that the network does not take."""
        refuse_other_multiples("the residual-encoder U-Net", raw.shape[2:], self.plan.step)
        if self.ends is None:
            return self.layers(raw)
        fine = self.ends.look(raw)
        outputs = self.layers(self.ends.down(fine))
        if isinstance(outputs, torch.Tensor):
            return self.ends.finest(outputs, fine)
        return [self.ends.finest(outputs[0], fine), *outputs[1:]]


class Ends(nn.Module):
    """What a network with a stem computes at the voxels of raw: few features, without blocks.

    They go down into the first level, and beside what comes back up into the output: a boundary of
    two voxels is seen at once by them, and late by what passed through voxels twice as large.
    """

    def __init__(self, plan: Plan, classes: int, norm: str, in_channels: int):
        super().__init__()
        from monai.networks.layers.utils import get_norm_layer

        # along an axis that is not halved yet voxels are long, and neighbours far
        kernel = _axes([3 if stride > 1 else 1 for stride in plan.stem])
        padding = _axes([size // 2 for size in kernel])
        self.look = nn.Sequential(
            nn.Conv3d(in_channels, FINE_FEATURES, kernel, padding=padding, bias=False),
            get_norm_layer(_norm(norm, FINE_FEATURES), 3, FINE_FEATURES),
            nn.ReLU(inplace=True),
        )
        self.down = nn.Conv3d(FINE_FEATURES, plan.width // 2, plan.stem, plan.stem)
        # with the kernel of its stride each voxel gives its parts, as a pixel shuffle does
        self.up = nn.Sequential(
            nn.ConvTranspose3d(plan.width, FINE_FEATURES, plan.stem, plan.stem, bias=False),
            get_norm_layer(_norm(norm, FINE_FEATURES), 3, FINE_FEATURES),
            nn.ReLU(inplace=True),
        )
        self.output = nn.Conv3d(2 * FINE_FEATURES, classes, 1)

    def finest(self, features: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Logits at the voxels of raw, from features of the first level and those of `look`."""
        return self.output(torch.cat([self.up(features), fine], dim=1))


def _norm(norm: str, width: int) -> str | tuple[str, dict[str, int]]:
    """The layer as MONAI takes it."""
    if norm == "group":
        return "group", {"num_groups": math.gcd(NORM_GROUPS, width)}
    return norm


def _pools(nm: tuple[float, ...], size: Axes) -> tuple[Axes, ...]:
    """How a patch of `size` voxels of `nm` is halved, time after time."""
    pools: list[Axes] = []
    while len(pools) < MOST_HALVINGS:
        pool = _pool(nm)
        smaller = _axes([n // factor for n, factor in zip(size, pool, strict=True)])
        halved = [n for n, factor in zip(smaller, pool, strict=True) if factor > 1]
        if _times(smaller, pool) != size or min(halved) < SMALLEST_FEATURE_MAP:
            break
        pools.append(pool)
        size = smaller
        nm = tuple(np.multiply(nm, pool).tolist())
    return tuple(pools)


def _pool(nm: tuple[float, ...]) -> Axes:
    """The axes that are halved next, 2 each: those at most half as long as the longest, or all."""
    pool = _axes([2 if 2 * length <= max(nm) else 1 for length in nm])
    return pool if max(pool) > 1 else (2, 2, 2)


def _times(size: Axes, factors: Axes) -> Axes:
    return _axes(np.multiply(size, factors).tolist())


def _axes(values: Sequence[int]) -> Axes:
    z, y, x = (int(value) for value in values)
    return z, y, x

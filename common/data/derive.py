"""Make the targets of derived channels from a patch of ids, on its device.

An id patch is (z, y, x) integers: UNKNOWN (-1), BACKGROUND (0), or the number of an object. It is
larger than the target patch by a margin on each side, in which lies what decides about voxels of
the target. A target is float32 of the target's shape: 1 or 0, or a number from -1 to 1, and NaN
where the truth is not known: at unknown voxels, and wherever an unknown voxel could decide
otherwise.

Distances are those between centres of voxels, exact and Euclidean, on voxels of any shape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.config.derived import (
    Affinities,
    Background,
    Border,
    Boundary,
    Derived,
    Distance,
    Inner,
)

UNKNOWN = -1
BACKGROUND = 0

FAR = 1e12
"""nm^2, farther than anything: finite, so that 0 times it is 0."""

ROUNDING_SQUARED = 1e-5
"""Part by which squared distances may differ in float32."""

ROUNDING = 1e-3
"""Part of a voxel that lengths may differ by: 3 x 5.24 nm are 15.72, whatever the last bit says."""


class IdPatch(NamedTuple):
    """Ids with a margin, on voxels of a size."""

    ids: Tensor
    """(z, y, x) integers."""
    margin: tuple[int, int, int]
    """Voxels by which they reach beyond the target, on each side."""
    voxel_nm: tuple[float, float, float]

    @property
    def core(self) -> Tensor:
        """The ids of the target patch."""
        return self.shifted((0, 0, 0))

    def shifted(self, offset: Sequence[int], of: Tensor | None = None) -> Tensor:
        """Return the ids, or another volume of their shape, at an offset from the target patch."""
        volume = self.ids if of is None else of
        for axis, (margin, step) in enumerate(zip(self.margin, offset, strict=True)):
            size = volume.shape[axis] - 2 * margin
            volume = volume.narrow(axis, margin + step, size)
        return volume

    def within(self, nm: float) -> float:
        """Return the square of a length, a little more than it, in nm^2."""
        return (nm + ROUNDING * min(self.voxel_nm)) ** 2


def margin_of(declared: Sequence[Derived], voxel_nm: Sequence[float]) -> tuple[int, int, int]:
    """Return how many voxels around a target patch decide about it, z, y, x."""
    reach = np.max([channel.reach_nm for channel in declared], axis=0)
    z, y, x = np.floor(reach / voxel_nm + OFFSET_ROUNDING).astype(int).tolist()
    return (z, y, x)


OFFSET_ROUNDING = 0.05
"""Part of a voxel that a reach may lack: an offset is the nearest whole number of voxels."""


def derive(channel: Derived, patch: IdPatch) -> Tensor:
    """Return the target of a declared channel, (channels, z, y, x) float32, NaN where unknown."""
    target = MAKERS[type(channel)](channel, patch)
    return target if target.ndim == 4 else target[None]


def unknown(channel: Derived, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return the target of a channel where nothing is known, (channels, *shape) float32."""
    channels = len(channel.names(""))
    return torch.full((channels, *shape), torch.nan, device=device)


# Each kind


def background_target(channel: Background, patch: IdPatch) -> Tensor:
    """1 where there is no object."""
    core = patch.core
    return _labels(core == BACKGROUND, core == UNKNOWN)


def boundary_target(channel: Boundary, patch: IdPatch) -> Tensor:
    """1 where a voxel of another label lies within `inside` of an object, `outside` of background.

    A voxel that is not known to have one is unknown if an unknown voxel is as near.
    """
    core = patch.core
    is_object = core > BACKGROUND
    inside = neighbourhood(patch, channel.inside)
    outside = inside
    if channel.outside != channel.inside:
        outside = neighbourhood(patch, channel.outside)
    is_near = torch.where(is_object, inside.differs, outside.differs)
    may_be_near = torch.where(is_object, inside.is_unknown, outside.is_unknown)
    return _labels(is_near, (core == UNKNOWN) | (may_be_near & ~is_near))


def inner_target(channel: Inner, patch: IdPatch) -> Tensor:
    """1 in objects, except where a voxel of another label lies within `from_edge`."""
    core = patch.core
    near = neighbourhood(patch, channel.from_edge)
    is_object = core > BACKGROUND
    may_be_near = is_object & near.is_unknown & ~near.differs
    return _labels(is_object & ~near.differs, (core == UNKNOWN) | may_be_near)


def affinity_targets(channel: Affinities, patch: IdPatch) -> Tensor:
    """(offsets, z, y, x): 1 where a voxel and the one at the offset are of one object.

    A pair with a background voxel is 0, whatever the other one is: no object holds both.
    """
    core = patch.core
    targets = []
    for offset in channel.voxels(patch.voxel_nm):
        other = patch.shifted(offset)
        has_background = (core == BACKGROUND) | (other == BACKGROUND)
        has_unknown = (core == UNKNOWN) | (other == UNKNOWN)
        targets.append(_labels((core == other) & ~has_background, has_unknown & ~has_background))
    return torch.stack(targets)


def distance_target(channel: Distance, patch: IdPatch) -> Tensor:
    """The distance to the nearest voxel of another label over `clip`, negative in the background.

    Unknown where an unknown voxel is nearer than that voxel, and nearer than `clip`.
    """
    core = patch.core
    to_edge = patch.shifted((0, 0, 0), squared_distances(patch, channel.clip))
    to_unknown = patch.shifted((0, 0, 0), squared_to(patch, patch.ids == UNKNOWN, channel.clip))
    clip = channel.clip**2
    # an unknown voxel as far away as the edge, or as `clip`, leaves the distance as it is
    is_unknown = (core == UNKNOWN) | (to_unknown < to_edge.clamp(max=clip) * (1 - ROUNDING_SQUARED))
    size = to_edge.sqrt().div_(channel.clip).clamp_(max=1)
    signed = torch.where(core > BACKGROUND, size, -size)
    return signed.masked_fill_(is_unknown, torch.nan)


def border_target(channel: Border, patch: IdPatch) -> Tensor:
    """1 where the distances to the two nearest objects sum up to at most `gap`.

    An unknown voxel may be of any object, or of two that touch there.
    """
    core = patch.core
    nearest = nearest_two_objects(patch, channel.gap)
    first, second = (patch.shifted((0, 0, 0), squared).sqrt() for squared in nearest)
    of_unknown = squared_to(patch, patch.ids == UNKNOWN, channel.gap)
    to_unknown = patch.shifted((0, 0, 0), of_unknown).sqrt()
    gap = math.sqrt(patch.within(channel.gap))
    is_border = first + second <= gap
    may_be_border = to_unknown + torch.minimum(first, to_unknown) <= gap
    return _labels(is_border, (core == UNKNOWN) | (may_be_border & ~is_border))


MAKERS: Mapping[type[Derived], Callable[..., Tensor]] = {
    Affinities: affinity_targets,
    Background: background_target,
    Border: border_target,
    Boundary: boundary_target,
    Distance: distance_target,
    Inner: inner_target,
}


def _labels(positive: Tensor, is_unknown: Tensor) -> Tensor:
    """1, 0, and NaN where unknown, float32."""
    return positive.float().masked_fill_(is_unknown, torch.nan)


# What lies within a length


class Neighbourhood(NamedTuple):
    """What is within some nm of each voxel of a target patch; (z, y, x) bool."""

    differs: Tensor
    """Whether a known voxel of another label is."""
    is_unknown: Tensor
    """Whether an unknown voxel is."""


def neighbourhood(patch: IdPatch, nm: float) -> Neighbourhood:
    """Return what lies within `nm` of each voxel of the target patch."""
    ids = patch.ids.float()  # exact: there are fewer than 2**24 objects in a crop
    is_unknown = patch.ids == UNKNOWN
    # the largest and the least label nearby: both are a voxel's own if there is no other
    largest = ids.masked_fill(is_unknown, -FAR)
    least = (-ids).masked_fill(is_unknown, -FAR)
    layers = torch.stack([largest, least, is_unknown.float()])
    highest = _maxima_within(patch, layers, nm)
    core = patch.core.float()
    # of an unknown voxel nothing is asked
    differs = (highest[0] > core) | (highest[1] > -core)
    return Neighbourhood(differs, highest[2] > 0)


def _maxima_within(patch: IdPatch, layers: Tensor, nm: float) -> Tensor:
    """Maxima of layers (n, z, y, x) over balls of a radius, on the target patch.

    A ball is a bundle of rows along x; maxima over rows of one length are taken once for all.
    """
    z, y, x = patch.margin
    sizes = [n - 2 * m for n, m in zip(layers.shape[1:], patch.margin, strict=True)]
    of_rows = dict(_row_maxima(layers, x, sizes[2]))
    highest = of_rows[0].narrow(1, z, sizes[0]).narrow(2, y, sizes[1]).clone()
    for dz, dy, half in _rows_of_ball(patch, nm):
        row = of_rows[half].narrow(1, z + dz, sizes[0]).narrow(2, y + dy, sizes[1])
        torch.maximum(highest, row, out=highest)
    return highest


def _row_maxima(layers: Tensor, margin: int, size: int) -> Iterator[tuple[int, Tensor]]:
    """Maxima over rows of 2 n + 1 voxels along x, by n from 0 to the margin."""
    highest = layers.narrow(3, margin, size)
    yield 0, highest
    for half in range(1, margin + 1):
        before = layers.narrow(3, margin - half, size)
        after = layers.narrow(3, margin + half, size)
        highest = torch.maximum(highest, torch.maximum(before, after))
        yield half, highest


def _rows_of_ball(patch: IdPatch, nm: float) -> Iterator[tuple[int, int, int]]:
    """The rows along x that a ball is made of: offsets along z and y, and half the length."""
    square = patch.within(nm)
    reaches = [int(math.sqrt(square) / size) for size in patch.voxel_nm]
    size_z, size_y, size_x = patch.voxel_nm
    ranges = [range(-reach, reach + 1) for reach in reaches[:2]]
    for dz, dy in itertools.product(*ranges):
        left = square - (dz * size_z) ** 2 - (dy * size_y) ** 2
        if left >= 0:
            yield dz, dy, int(math.sqrt(left) / size_x)


# Distances, axis by axis


def squared_to(patch: IdPatch, mask: Tensor, nm: float) -> Tensor:
    """Return the squared distance of each voxel to the mask, nm^2; exact up to `nm`, else FAR.

    One axis after the other, each a minimum over shifted volumes plus a parabola: Felzenszwalb and
    Huttenlocher 2012, for a short reach.
    """
    squared = torch.full(mask.shape, FAR, device=mask.device).masked_fill_(mask, 0)
    for steps in _steps(patch, nm):
        lowest = squared.clone()
        for here, there, cost in steps:
            _take_lower(here(lowest), there(squared) + cost)
        squared = lowest
    return squared.masked_fill_(squared > patch.within(nm), FAR)


def squared_distances(patch: IdPatch, nm: float) -> Tensor:
    """Return the squared distance of each voxel to the nearest of another label, as `squared_to`.

    Unknown voxels have no label. What lies behind one of them along an axis may be missed: it is
    farther than that one. On a line, a voxel of the same label has its own distance across the line
    to add, and one of another label has none; as in the multi-label transform of Silversmith's edt.
    """
    ids = patch.ids
    is_unknown = ids == UNKNOWN
    squared = torch.full(ids.shape, FAR, device=ids.device)
    for steps in _steps(patch, nm):
        lowest = squared.clone()
        for here, there, cost in steps:
            is_other = (here(ids) != there(ids)) & ~there(is_unknown)
            _take_lower(here(lowest), there(squared).masked_fill(is_other, 0) + cost)
        # a distance to another label than none says nothing about others on its line
        squared = lowest.masked_fill_(is_unknown, FAR)
    return squared.masked_fill_(squared > patch.within(nm), FAR)


def nearest_two_objects(patch: IdPatch, nm: float) -> tuple[Tensor, Tensor]:
    """Return the squared distances of each voxel to the two nearest objects, as `squared_to`.

    The two nearest labels are kept along each axis; what is third on every line is third at most.
    """
    ids = patch.ids
    first = _Nearest(
        torch.full(ids.shape, FAR, device=ids.device).masked_fill_(ids > BACKGROUND, 0),
        ids.clamp(min=BACKGROUND),
    )
    second = _Nearest(torch.full_like(first.squared, FAR), torch.zeros_like(first.label))
    for steps in _steps(patch, nm):
        before = (first, second)
        first, second = (_Nearest(*(part.clone() for part in each)) for each in before)
        for shift in steps:
            for candidate in before:
                _merge(first, second, candidate, shift)
    far = patch.within(nm)
    one, two = (each.squared.masked_fill(each.squared > far, FAR) for each in (first, second))
    return one, two


class _Nearest(NamedTuple):
    """Of each voxel a label nearby."""

    squared: Tensor
    """Distance to it, nm^2."""
    label: Tensor


Narrow = Callable[[Tensor], Tensor]


class _Shift(NamedTuple):
    """A shift along one axis."""

    here: Narrow
    """Gives the voxels of a volume that have one at the shift from them,"""
    there: Narrow
    """and these."""
    cost: float
    """Square of its length, nm^2."""


def _merge(first: _Nearest, second: _Nearest, candidate: _Nearest, shift: _Shift) -> None:
    """Put the labels at a shift among the two nearest, in place."""
    here = shift.here
    squared = shift.there(candidate.squared) + shift.cost
    label = shift.there(candidate.label)
    one, two = (_Nearest(here(each.squared), here(each.label)) for each in (first, second))
    is_first = label == one.label
    goes_first = (squared < one.squared) & ~is_first
    goes_second = (squared < two.squared) & ~is_first & ~goes_first
    lower_first = is_first & (squared < one.squared)
    # what was first becomes the second, also where the new first was the second
    new_second = torch.where(
        goes_first, one.squared, torch.where(goes_second, squared, two.squared)
    )
    new_label = torch.where(goes_first, one.label, torch.where(goes_second, label, two.label))
    two.squared.copy_(new_second)
    two.label.copy_(new_label)
    takes = goes_first | lower_first
    one.squared.copy_(torch.where(takes, squared, one.squared))
    one.label.copy_(torch.where(takes, label, one.label))


def _take_lower(values: Tensor, others: Tensor) -> None:
    torch.minimum(values, others, out=values)


def _steps(patch: IdPatch, nm: float) -> Iterator[list[_Shift]]:
    """For each axis the shifts along it, up to a length."""
    reach = math.sqrt(patch.within(nm))
    for axis, size in enumerate(patch.voxel_nm):
        shape = patch.ids.shape[axis]
        steps = []
        for step in range(1, min(int(reach / size), shape - 1) + 1):
            low = partial(_narrow, axis=axis, start=0, size=shape - step)
            high = partial(_narrow, axis=axis, start=step, size=shape - step)
            cost = (step * size) ** 2
            steps += [_Shift(low, high, cost), _Shift(high, low, cost)]
        yield steps


def _narrow(volume: Tensor, *, axis: int, start: int, size: int) -> Tensor:
    return volume.narrow(axis, start, size)

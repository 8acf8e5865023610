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

    def shifted(self, offset: Sequence[int]) -> Tensor:
        """Return the ids at an offset from the target patch."""
        ids = self.ids
        for axis, step in enumerate(offset):
            ids = self.along(ids, axis, step)
        return ids

    def along(self, volume: Tensor, axis: int, step: int = 0) -> Tensor:
        """Return a volume without its margin along one axis, at a step from the target patch."""
        margin = self.margin[axis]
        return volume.narrow(axis, margin + step, volume.shape[axis] - 2 * margin)

    def shifts(self, axis: int, nm: float) -> list[tuple[int, float]]:
        """Return the steps along an axis up to a length, and the squares of their lengths."""
        most = int(math.sqrt(self.within(nm)) / self.voxel_nm[axis])
        steps = [step for step in range(-most, most + 1) if step]
        return [(step, (step * self.voxel_nm[axis]) ** 2) for step in steps]

    def narrowed(self, margin: Sequence[int]) -> IdPatch:
        """Return the same target patch with a smaller margin."""
        ids = self.ids
        for axis, (own, wanted) in enumerate(zip(self.margin, margin, strict=True)):
            less = own - wanted
            ids = ids.narrow(axis, less, ids.shape[axis] - 2 * less)
        z, y, x = margin
        return IdPatch(ids, (z, y, x), self.voxel_nm)

    def within(self, nm: float) -> float:
        """Return the square of a length, a little more than it, in nm^2."""
        return (nm + ROUNDING * min(self.voxel_nm)) ** 2


def margin_of(declared: Sequence[Derived], voxel_nm: Sequence[float]) -> tuple[int, int, int]:
    """Return the margin of voxels, z, y, x, that decides about a target patch with its own."""
    reach = np.max([channel.reach_nm for channel in declared], axis=0)
    voxels = np.floor(reach / voxel_nm + OFFSET_ROUNDING)
    z, y, x = voxels.astype(int).tolist()
    return (z, y, x)


OFFSET_ROUNDING = 0.05
"""Part of a voxel that a reach may lack: an offset is the nearest whole number of voxels."""


def derive(channel: Derived, patch: IdPatch) -> Tensor:
    """Return the target of a declared channel, (channels, z, y, x) float32, NaN where unknown."""
    # no farther than this channel reaches: others may reach farther
    patch = patch.narrowed(margin_of([channel], patch.voxel_nm))
    target = MAKERS[type(channel)](channel, patch)
    return target if target.ndim == 4 else target[None]


def unknown(channel: Derived, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return the target of a channel where nothing is known, (channels, *shape) float32."""
    channels = len(channel.names(""))
    return torch.full((channels, *shape), torch.nan, device=device)


# Each kind


def background_target(channel: Background, patch: IdPatch) -> Tensor:
    """Return the target that is 1 where there is no object."""
    core = patch.core
    return _labels(core == BACKGROUND, core == UNKNOWN)


def boundary_target(channel: Boundary, patch: IdPatch) -> Tensor:
    """Return the target that is 1 near a voxel of another label.

    Near is within `inside` for a voxel of an object, and within `outside` for one of background. A
    voxel without a known one that near is unknown if an unknown voxel is as near.
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
    """Return the target that is 1 in objects, but not within `from_edge` of another label."""
    core = patch.core
    near = neighbourhood(patch, channel.from_edge)
    is_object = core > BACKGROUND
    may_be_near = is_object & near.is_unknown & ~near.differs
    return _labels(is_object & ~near.differs, (core == UNKNOWN) | may_be_near)


def affinity_targets(channel: Affinities, patch: IdPatch) -> Tensor:
    """Return (offsets, z, y, x): 1 where a voxel and the one at the offset are of one object.

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
    """Return the distance to the nearest voxel of another label, divided by `clip`.

    It is from -1 to 1, negative in the background, and unknown where an unknown voxel is nearer
    than that voxel and nearer than `clip`.
    """
    core = patch.core
    to_edge = squared_distances(patch, channel.clip)
    to_unknown = squared_to(patch, patch.ids == UNKNOWN, channel.clip)
    clip = channel.clip**2
    # an unknown voxel as far away as the edge, or as `clip`, leaves the distance as it is
    is_unknown = (core == UNKNOWN) | (to_unknown < to_edge.clamp(max=clip) * (1 - ROUNDING_SQUARED))
    size = to_edge.sqrt().div_(channel.clip).clamp_(max=1)
    signed = torch.where(core > BACKGROUND, size, -size)
    return signed.masked_fill_(is_unknown, torch.nan)


def border_target(channel: Border, patch: IdPatch) -> Tensor:
    """Return the target that is 1 where the distances to the two nearest objects sum to <= `gap`.

    An unknown voxel may be of any object, or of two that touch there.
    """
    core = patch.core
    first, second = (squared.sqrt() for squared in nearest_two_objects(patch, channel.gap))
    to_unknown = squared_to(patch, patch.ids == UNKNOWN, channel.gap).sqrt()
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
    """Return labels as float32: 1, 0, and NaN where unknown."""
    return positive.float().masked_fill_(is_unknown, torch.nan)


# What lies within a length


class Neighbourhood(NamedTuple):
    """What is within some nm of each voxel of a target patch; (z, y, x) bool."""

    differs: Tensor
    """Whether a known voxel of another label is."""
    is_unknown: Tensor
    """Whether an unknown voxel is."""


def neighbourhood(patch: IdPatch, nm: float) -> Neighbourhood:
    """Return whether another label, or an unknown one, lies within `nm` of each target voxel."""
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
    """Return the maxima of layers (n, z, y, x) over balls of radius `nm`, on the target patch.

    A ball is a bundle of rows along x; maxima over rows of one length are taken once for all.
    """
    z, y, x = patch.margin
    sizes = [n - 2 * m for n, m in zip(layers.shape[1:], patch.margin, strict=True)]
    of_rows = dict(_row_maxima(layers, x, sizes[2]))
    highest = _rows_at(of_rows[0], (z, y), sizes).clone()
    for dz, dy, half in _rows_of_ball(patch, nm):
        row = _rows_at(of_rows[half], (z + dz, y + dy), sizes)
        torch.maximum(highest, row, out=highest)
    return highest


def _rows_at(rows: Tensor, start: tuple[int, int], sizes: Sequence[int]) -> Tensor:
    """Return the rows (n, z, y, x) from a place z, y on, as many as a target patch has."""
    layers = rows.narrow(1, start[0], sizes[0])
    return layers.narrow(2, start[1], sizes[1])


def _row_maxima(layers: Tensor, margin: int, size: int) -> Iterator[tuple[int, Tensor]]:
    """Iterate over n and the maxima over rows of 2 n + 1 voxels along x, for n from 0 to margin."""
    highest = layers.narrow(3, margin, size)
    yield 0, highest
    for half in range(1, margin + 1):
        before = layers.narrow(3, margin - half, size)
        after = layers.narrow(3, margin + half, size)
        highest = torch.maximum(highest, torch.maximum(before, after))
        yield half, highest


def _rows_of_ball(patch: IdPatch, nm: float) -> Iterator[tuple[int, int, int]]:
    """Iterate over the rows along x that make up a ball: offsets along z and y, and half length."""
    square = patch.within(nm)
    reaches = [int(math.sqrt(square) / size) for size in patch.voxel_nm]
    size_z, size_y, size_x = patch.voxel_nm
    ranges = [range(-reach, reach + 1) for reach in reaches[:2]]
    for dz, dy in itertools.product(*ranges):
        left = square - (dz * size_z) ** 2 - (dy * size_y) ** 2
        if left >= 0:
            yield dz, dy, int(math.sqrt(left) / size_x)


# Distances, axis by axis; each axis leaves its margin behind


def squared_to(patch: IdPatch, mask: Tensor, nm: float) -> Tensor:
    """Return the squared distance of each voxel of the target patch to the mask, nm^2.

    Exact up to `nm`, else FAR. One axis after the other, each a minimum over shifted volumes plus a
    parabola: Felzenszwalb and Huttenlocher 2012, for a short reach.

    mask: bool, with the margin.
    """
    squared = torch.full(mask.shape, FAR, device=mask.device).masked_fill_(mask, 0)
    for axis in range(3):
        lowest = patch.along(squared, axis).clone()
        for step, cost in patch.shifts(axis, nm):
            torch.minimum(lowest, patch.along(squared, axis, step) + cost, out=lowest)
        squared = lowest
    return squared.masked_fill_(squared > patch.within(nm), FAR)


def squared_distances(patch: IdPatch, nm: float) -> Tensor:
    """Return the squared distance of each voxel to the nearest of another label, as `squared_to`.

    Unknown voxels have no label. A label behind an unknown voxel along an axis may be missed: it is
    farther away than that voxel. Along a line, a voxel of the same label contributes its own
    distance across the line, and one of another label contributes 0, as in the multi-label
    transform of Silversmith's edt.
    """
    ids = patch.ids
    squared = torch.full(ids.shape, FAR, device=ids.device)
    for axis in range(3):
        here = patch.along(ids, axis)
        lowest = patch.along(squared, axis).clone()
        for step, cost in patch.shifts(axis, nm):
            other = patch.along(ids, axis, step)
            is_other = (here != other) & (other != UNKNOWN)
            across = patch.along(squared, axis, step).masked_fill(is_other, 0)
            torch.minimum(lowest, across.add_(cost), out=lowest)
        ids = here
        # a distance to another label than none says nothing about others on its line
        squared = lowest.masked_fill_(ids == UNKNOWN, FAR)
    return squared.masked_fill_(squared > patch.within(nm), FAR)


def nearest_two_objects(patch: IdPatch, nm: float) -> tuple[Tensor, Tensor]:
    """Return the squared distances of each voxel to the two nearest objects, as `squared_to`.

    The two nearest labels are kept along each axis: one that is third on every line is no nearer
    than third in all.
    """
    ids = patch.ids
    squared = torch.full(ids.shape, FAR, device=ids.device).masked_fill_(ids > BACKGROUND, 0)
    first = _Nearest(squared, ids.clamp(min=BACKGROUND))
    second = _Nearest(torch.full_like(squared, FAR), torch.zeros_like(first.label))
    for axis in range(3):
        before = (first, second)
        first, second = (nearest.along(patch, axis).clone() for nearest in before)
        for step, cost in patch.shifts(axis, nm):
            for nearest in before:
                candidate = nearest.along(patch, axis, step)
                _merge(first, second, _Nearest(candidate.squared + cost, candidate.label))
    beyond = patch.within(nm)
    to_first = first.squared.masked_fill(first.squared > beyond, FAR)
    to_second = second.squared.masked_fill(second.squared > beyond, FAR)
    return to_first, to_second


class _Nearest(NamedTuple):
    """For each voxel, an object nearby and how far away it is."""

    squared: Tensor
    """Distance to it, nm^2."""
    label: Tensor

    def along(self, patch: IdPatch, axis: int, step: int = 0) -> _Nearest:
        """Return both volumes without their margin along an axis, see `IdPatch.along`."""
        squared = patch.along(self.squared, axis, step)
        return _Nearest(squared, patch.along(self.label, axis, step))

    def clone(self) -> _Nearest:
        """Return a copy."""
        return _Nearest(self.squared.clone(), self.label.clone())

    def take(self, where: Tensor, other: _Nearest) -> None:
        """Take over the label and distance of another one where a mask is true, in place."""
        self.squared.copy_(torch.where(where, other.squared, self.squared))
        self.label.copy_(torch.where(where, other.label, self.label))


def _merge(first: _Nearest, second: _Nearest, candidate: _Nearest) -> None:
    """Put the candidate of each voxel among its two nearest objects, in place."""
    is_first = candidate.label == first.label
    is_nearer = candidate.squared < first.squared
    goes_first = is_nearer & ~is_first
    goes_second = (candidate.squared < second.squared) & ~is_first & ~goes_first
    second.take(goes_second, candidate)
    # also where the new first was the second
    second.take(goes_first, first)
    first.take(is_nearer, candidate)

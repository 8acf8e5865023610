"""One object taken apart at its necks: a watershed whose shallow basins are merged.

The landscape (depth within the object, or probability) is flooded from its maxima with a priority
queue (Meyer 1991, by scikit-image). Noise makes too many maxima, so basins are merged over the
passes between them, from the highest pass down, unless a pass falls far enough below both summits:
their dynamics (Grimaud 1992), measured as a fraction of the lower summit instead of a height, so
that large and small objects are split alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import edt
import numpy as np
from scipy import ndimage
from skimage.morphology import local_maxima
from skimage.segmentation import watershed as flood

Pass = tuple[float, int, int]
"""Height of the landscape where two basins touch, and the two."""

SIDES = {
    -1: (slice(1, None), slice(None, -1)),
    0: (slice(None), slice(None)),
    1: (slice(None, -1), slice(1, None)),
}
"""Along an axis, the voxels that have a neighbour at a distance, and those neighbours."""


def split_object(
    inside: np.ndarray,
    probability: np.ndarray | None,
    voxel_size: Sequence[float],
    *,
    min_distance_nm: float,
    neck: float,
) -> np.ndarray:
    """Parts 1..k of an object in its box, 0 around it.

    Args:
        inside: (z, y, x) bool, the object.
        probability: of the same shape; None to take the distance to the background.
        voxel_size: nm.
        min_distance_nm: summits nearer to each other are one object.
        neck: a pass below this fraction of the lower summit divides.
    """
    if probability is None:
        landscape = edt.edt(inside, anisotropy=tuple(voxel_size))
        # a step of the surface by a voxel changes the distance by so much; 1.001 is above rounding
        grain = 1.001 * min(voxel_size)
    else:
        landscape = _smoothed(probability, inside)
        grain = 0.0
    is_maximum = local_maxima(landscape, connectivity=3) & inside
    maxima = cc3d.connected_components(is_maximum)
    if maxima.max() <= 1:
        return inside.astype(np.uint8)
    basins = flood(-landscape, maxima, connectivity=3, mask=inside)
    first = _first_voxels(maxima)
    summits = _Summits(
        height=landscape.flat[first],
        place=np.stack(np.unravel_index(first, maxima.shape), axis=1) * voxel_size,
        grain=grain,
        min_distance_nm=min_distance_nm,
        neck=neck,
    )
    return _merged(summits, _passes(basins, landscape))[basins]


@dataclass(frozen=True)
class _Summits:
    """The maximum of each basin 1..k, and when two of them are of one object."""

    height: np.ndarray
    place: np.ndarray
    """(k, 3) nm."""
    grain: float
    """A pass that falls by less than this says nothing."""
    min_distance_nm: float
    neck: float

    def are_one_object(self, height: float, a: int, b: int) -> bool:
        """Whether two basins belong together that meet at a pass of this height."""
        lower = min(self.height[a - 1], self.height[b - 1])
        if height >= min(self.neck * lower, lower - self.grain):
            return True
        distance = np.linalg.norm(self.place[a - 1] - self.place[b - 1])
        return bool(distance < self.min_distance_nm)

    def higher(self, a: int, b: int) -> tuple[int, int]:
        """The two basins, the higher one first; of equal ones that with the smaller number."""
        if self.height[a - 1] > self.height[b - 1]:
            return a, b
        if self.height[a - 1] < self.height[b - 1]:
            return b, a
        return min(a, b), max(a, b)


def _first_voxels(labels: np.ndarray) -> np.ndarray:
    """(k,) the first voxel of each label 1..k, counted through the array."""
    held = np.flatnonzero(labels)
    _, first = np.unique(labels.flat[held], return_index=True)
    return held[first]


def _smoothed(probability: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The probability under a Gaussian of one voxel, weighted within the object; -1 around it.

    Unsmoothed, the noise of single voxels would be summits.
    """
    # divided by the filtered mask, so that what lies around the object does not pull its rim down
    weight = ndimage.gaussian_filter(inside.astype(np.float32), 1, mode="constant")
    # unknown is none, as of a threshold
    within = np.nan_to_num(np.where(inside, probability, 0).astype(np.float32), nan=0)
    total = ndimage.gaussian_filter(within, 1, mode="constant")
    return np.where(inside, total / np.where(inside, weight, 1), np.float32(-1))


def _merged(summits: _Summits, passes: list[Pass]) -> np.ndarray:
    """(basins + 1,) part of each basin, 0..k; [0] is 0.

    Over the highest pass first: a summit then joins the neighbour that it is least divided from.
    """
    part = list(range(len(summits.height) + 1))
    for height, a, b in passes:
        root_a = _root(part, a)
        root_b = _root(part, b)
        if root_a != root_b and summits.are_one_object(height, root_a, root_b):
            high, low = summits.higher(root_a, root_b)
            part[low] = high
    roots = [_root(part, basin) for basin in part]
    _, number = np.unique(roots, return_inverse=True)
    return number


def _root(part: list[int], number: int) -> int:
    """The basin that stands for a part, by halving paths (Tarjan and van Leeuwen 1984)."""
    while part[number] != number:
        part[number] = part[part[number]]
        number = part[number]
    return number


def _passes(basins: np.ndarray, landscape: np.ndarray) -> list[Pass]:
    """The highest pass between any two basins that touch (26-connected), the highest first."""
    keys = []
    heights = []
    for offset in itertools.product((-1, 0, 1), repeat=3):
        if offset <= (0, 0, 0):
            continue  # of two opposite directions one
        here = tuple(SIDES[step][0] for step in offset)
        there = tuple(SIDES[step][1] for step in offset)
        touch = (basins[here] != basins[there]) & (basins[here] > 0) & (basins[there] > 0)
        pair = np.sort([basins[here][touch], basins[there][touch]], axis=0).astype(np.int64)
        keys.append(pair[0] << 32 | pair[1])
        heights.append(np.minimum(landscape[here][touch], landscape[there][touch]))
    # a pair of basins as one number, which np.unique sorts far faster than rows
    key, which = np.unique(np.concatenate(keys), return_inverse=True)
    highest = np.full(len(key), -np.inf)
    np.maximum.at(highest, which, np.concatenate(heights))
    # stable, so that equal passes are taken in the order of their basins
    order = np.argsort(-highest, kind="stable")
    key = key[order]
    first = key >> 32
    second = key & 0xFFFFFFFF
    return list(zip(highest[order].tolist(), first.tolist(), second.tolist(), strict=True))

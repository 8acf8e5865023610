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
    part = _part_of_basins(
        maxima,
        basins,
        landscape,
        voxel_size=voxel_size,
        grain=grain,
        min_distance_nm=min_distance_nm,
        neck=neck,
    )
    return part[basins]


def _part_of_basins(
    maxima: np.ndarray,
    basins: np.ndarray,
    landscape: np.ndarray,
    *,
    voxel_size: Sequence[float],
    grain: float,
    min_distance_nm: float,
    neck: float,
) -> np.ndarray:
    """(basins + 1,) part of each basin, 0..k; [0] is 0. maxima: 1..k, of each basin."""
    held = np.flatnonzero(maxima)
    _, place = np.unique(maxima.flat[held], return_index=True)
    first = held[place]  # the first voxel of each, counted through the array
    place_nm = np.stack(np.unravel_index(first, maxima.shape), axis=1) * voxel_size
    # a summit of basin 0, which is what lies around the object, stands before those of 1..k
    height = np.insert(landscape.flat[first], 0, 0)
    place_nm = np.insert(place_nm, 0, 0, axis=0)

    def are_one_object(pass_height: float, high: int, low: int) -> bool:
        # a pass that falls by less than the grain says nothing
        if pass_height >= min(neck * height[low], height[low] - grain):
            return True
        return bool(np.linalg.norm(place_nm[high] - place_nm[low]) < min_distance_nm)

    # over the highest pass first: a summit then joins the neighbour that it is least divided from
    part = list(range(len(height)))
    for pass_height, a, b in _passes(basins, landscape):
        # the higher summit first; of equal ones that with the smaller number
        high, low = sorted((_root(part, a), _root(part, b)), key=lambda n: (-height[n], n))
        if high != low and are_one_object(pass_height, high, low):
            part[low] = high
    roots = [_root(part, basin) for basin in part]
    _, number = np.unique(roots, return_inverse=True)
    return number


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

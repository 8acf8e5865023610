"""One object taken apart at its necks: a watershed whose shallow basins are merged.

The landscape (depth within the object, or probability) is flooded from its maxima with a priority
queue (Meyer 1991, by scikit-image). Basins are then merged by `common.infer.objects.merge`, unless
the pass between them falls below a fraction of the lower summit: a fraction instead of a height, so
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

from common.infer.objects.merge import merged

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
    """Return parts 1..k of an object in its box, (z, y, x), 0 around it.

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
    """Return (basins + 1,) part of each basin, 0..k; [0] is 0.

    Args:
        maxima: (z, y, x) 1..n at the maxima that basins were flooded from, of each basin.
        basins: (z, y, x) 1..n, 0 around the object.
        landscape: (z, y, x) float32.
        voxel_size: nm.
        grain: a pass that falls by less says nothing.
        min_distance_nm: as of `split_object`, and `neck`.
        neck: likewise.
    """
    held = np.flatnonzero(maxima)
    _, place = np.unique(maxima.flat[held], return_index=True)
    first = held[place]  # the first voxel of each, counted through the array
    summits_nm = np.stack(np.unravel_index(first, maxima.shape), axis=1) * voxel_size
    # a summit of basin 0, which is what lies around the object, stands before those of 1..n
    summits = np.insert(landscape.flat[first], 0, 0)
    summits_nm = np.insert(summits_nm, 0, 0, axis=0)
    passes, heights = _passes(basins, landscape)
    return merged(
        passes,
        heights,
        summits,
        least=np.minimum(neck * summits, summits - grain),
        summits_nm=summits_nm,
        min_distance_nm=min_distance_nm,
    )


def _smoothed(probability: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the probability under a Gaussian of one voxel, (z, y, x); -1 around the object.

    Without it the noise of single voxels would be summits.
    """
    # divided by the filtered mask, so that what lies around the object does not pull its rim down
    weight = ndimage.gaussian_filter(inside.astype(np.float32), 1, mode="constant")
    # unknown is none, as of a threshold
    within = np.nan_to_num(np.where(inside, probability, 0).astype(np.float32), nan=0)
    total = ndimage.gaussian_filter(within, 1, mode="constant")
    return np.where(inside, total / np.where(inside, weight, 1), np.float32(-1))


def _passes(basins: np.ndarray, landscape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest pass between any two basins that touch (26-connected), highest first.

    The first array is (k, 2) the two basins of each, the second (k,) its height.
    """
    keys = []
    heights = []
    for offset in itertools.product((-1, 0, 1), repeat=3):
        if offset <= (0, 0, 0):
            continue  # of two opposite directions one
        side = tuple(SIDES[step][0] for step in offset)
        other_side = tuple(SIDES[step][1] for step in offset)
        touch = (basins[side] != basins[other_side]) & (basins[side] > 0) & (basins[other_side] > 0)
        pair = np.sort([basins[side][touch], basins[other_side][touch]], axis=0).astype(np.int64)
        keys.append(pair[0] << 32 | pair[1])
        heights.append(np.minimum(landscape[side][touch], landscape[other_side][touch]))
    # a pair of basins as one number, which np.unique sorts far faster than rows
    key, which = np.unique(np.concatenate(keys), return_inverse=True)
    highest = np.full(len(key), -np.inf)
    np.maximum.at(highest, which, np.concatenate(heights))
    # stable, so that equal passes are taken in the order of their basins
    order = np.argsort(-highest, kind="stable")
    key = key[order]
    first = key >> 32
    second = key & 0xFFFFFFFF
    return np.stack([first, second], axis=1), highest[order]

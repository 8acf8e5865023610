"""Measure the objects in a block of ids: how many voxels each has, and where they are."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import fastremap
import numpy as np


@dataclass(frozen=True)
class Objects:
    """The objects of a block, in no order."""

    ids: np.ndarray
    """(n,) uint64."""
    voxels: np.ndarray
    """(n,) int64."""
    centres: np.ndarray
    """(n, 3) mean position in voxels of the block, z, y, x."""
    first: np.ndarray
    """(n, 3) the smallest position."""
    last: np.ndarray
    """(n, 3) the largest position."""


def objects_of(ids: np.ndarray) -> Objects:
    """Return the objects of a block of unsigned integers; 0 is background."""
    compact, numbers = fastremap.renumber(ids, preserve_zero=True)
    statistics = cc3d.statistics(compact, no_slice_conversion=True)
    limits = statistics["bounding_boxes"][1:].astype(np.int64)
    originals = np.zeros(len(limits) + 1, np.uint64)
    for original, number in numbers.items():
        originals[int(number)] = original
    return Objects(
        originals[1:],
        voxels=statistics["voxel_counts"][1:].astype(np.int64),
        centres=statistics["centroids"][1:],
        first=limits[:, ::2],
        last=limits[:, 1::2],
    )

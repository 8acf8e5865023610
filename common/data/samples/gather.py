"""Interpolate blocks on a CPU, compiled by numba; `common.data.samples.augment` calls it.

torch's `grid_sample` does the same in five times the time: it takes one voxel after the other, and
here the compiler makes vector instructions of the innermost loop. The operations are those of
`grid_sample`, in its order and in float32, so that the results are equal to the last bit.

Importing this module takes a third of a second; see `common.compiled`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from common.compiled import compiled, part_of_compiled

VOXELS_PER_THREAD = 2**17
"""Fewest voxels that a thread is started for: they take a millisecond, to start it a tenth."""


def linear(block: np.ndarray, columns: np.ndarray, patch: np.ndarray) -> None:
    """Fill `patch` from `block` by trilinear interpolation, its outermost values repeated.

    block: (z, y, x) float32. patch: (z, y, x) float32. columns: (4, 3) float32, where the voxels of
    the patch lie as `grid_sample` counts: x, y, z for a step along z, along y, along x, and for the
    first voxel.
    """
    _in_parts(patch, lambda first, part: _linear(block, columns, first, part))


def linear_at(block: np.ndarray, places: np.ndarray, patch: np.ndarray) -> None:
    """Fill `patch` like `linear` does, each voxel from a place of its own.

    places: (3, z, y, x) float32, z, y, x in voxels of the block.
    """
    _in_parts(patch, lambda first, part: _linear_at(block, places, first, part))


def nearest(block: np.ndarray, columns: np.ndarray, patch: np.ndarray) -> None:
    """Fill `patch` with the nearest voxels of `block`, 0 outside of it.

    block: (z, y, x), integers. patch: (z, y, x), integers. columns: as for `linear`.
    """
    _in_parts(patch, lambda first, part: _nearest(block, columns, first, part))


def _in_parts(patch: np.ndarray, fill: Callable[[int, np.ndarray], None]) -> None:
    """Call fill(first z, part) for the parts of a patch, in as many threads as torch has."""
    number = min(torch.get_num_threads(), len(patch), patch.size // VOXELS_PER_THREAD)
    if number <= 1:
        fill(0, patch)
        return
    ends = np.linspace(0, len(patch), number + 1).astype(int).tolist()
    with ThreadPoolExecutor(number) as threads:
        parts = [patch[first:last] for first, last in itertools.pairwise(ends)]
        list(threads.map(fill, ends[:-1], parts))


# Compiled

ZERO = np.float32(0)
HALF = np.float32(0.5)
ONE = np.float32(1)
"""float32, as all that is computed with: numba makes float64 of float32 and an integer."""


@compiled
def _linear(block, columns, first, patch):
    corners = _corners(block)
    for i in range(patch.shape[0]):
        for j in range(patch.shape[1]):
            row = patch[i, j]
            for k in range(row.size):
                place = _place(columns, block.shape, (first + i, j, k))
                row[np.uint64(k)] = _mean(corners, block.shape, place)


@compiled
def _linear_at(block, places, first, patch):
    corners = _corners(block)
    for i in range(patch.shape[0]):
        for j in range(patch.shape[1]):
            row = patch[i, j]
            for k in range(row.size):
                z = places[0, first + i, j, np.uint64(k)]
                y = places[1, first + i, j, np.uint64(k)]
                x = places[2, first + i, j, np.uint64(k)]
                row[np.uint64(k)] = _mean(corners, block.shape, (z, y, x))


@compiled
def _nearest(block, columns, first, patch):
    voxels = block.reshape(-1)
    for i in range(patch.shape[0]):
        for j in range(patch.shape[1]):
            row = patch[i, j]
            for k in range(row.size):
                z, y, x = _place(columns, block.shape, (first + i, j, k))
                z0, z_inside = _nearest_on_axis(z, block.shape[0])
                y0, y_inside = _nearest_on_axis(y, block.shape[1])
                x0, x_inside = _nearest_on_axis(x, block.shape[2])
                n = (z0 * block.shape[1] + y0) * block.shape[2] + x0
                inside = z_inside & y_inside & x_inside
                row[np.uint64(k)] = voxels[np.uint64(n)] if inside else 0


@part_of_compiled
def _place(columns, shape, voxel):
    """Return where a voxel of a patch lies, z, y, x in voxels of a block of `shape`."""
    x = _along(columns[:, 0], shape[2], voxel)
    y = _along(columns[:, 1], shape[1], voxel)
    z = _along(columns[:, 2], shape[0], voxel)
    return z, y, x


@part_of_compiled
def _along(column, size, voxel):
    i, j, k = voxel
    from_z = np.float32(i) * column[0] + column[3]
    from_row = np.float32(j) * column[1] + np.float32(k) * column[2]
    return (from_z + from_row + ONE) * HALF * np.float32(size - 1)


@part_of_compiled
def _corners(block):
    """Return the voxels of a block from eight first ones on: those of the corners of a cell.

    One index then finds all corners: of the cell's first voxel. An axis of one voxel has no next.
    """
    voxels = block.reshape(-1)
    x = min(block.shape[2] - 1, 1)
    y = min(block.shape[1] - 1, 1) * block.shape[2]
    z = min(block.shape[0] - 1, 1) * block.shape[2] * block.shape[1]
    return (
        voxels,
        voxels[x:],
        voxels[y:],
        voxels[y + x :],
        voxels[z:],
        voxels[z + x :],
        voxels[z + y :],
        voxels[z + y + x :],
    )


@part_of_compiled
def _mean(corners, shape, place):
    """Return the weighted mean of the eight voxels around a place, z, y, x."""
    z, y, x = place
    z0, z_before, z_after = _cell(z, shape[0])
    y0, y_before, y_after = _cell(y, shape[1])
    x0, x_before, x_after = _cell(x, shape[2])
    n = np.uint64((z0 * shape[1] + y0) * shape[2] + x0)
    total = corners[0][n] * (x_before * y_before * z_before)
    total += corners[1][n] * (x_after * y_before * z_before)
    total += corners[2][n] * (x_before * y_after * z_before)
    total += corners[3][n] * (x_after * y_after * z_before)
    total += corners[4][n] * (x_before * y_before * z_after)
    total += corners[5][n] * (x_after * y_before * z_after)
    total += corners[6][n] * (x_before * y_after * z_after)
    total += corners[7][n] * (x_after * y_after * z_after)
    return total


@part_of_compiled
def _cell(place, size):
    """Return the voxel before a place on an axis, and the weights of it and of the next.

    Places outside are moved to the first or the last voxel.
    """
    place = min(max(place, ZERO), np.float32(size - 1))
    # the last voxel is the end of a cell, too
    before = min(np.int64(place), max(size - 2, 0))
    after = place - np.float32(before)
    return before, ONE - after, after


@part_of_compiled
def _nearest_on_axis(place, size):
    """Return the voxel nearest to a place, and whether there is one."""
    voxel = np.int64(np.rint(place))
    return voxel, 0 <= voxel < size

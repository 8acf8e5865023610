"""Resample a volume to another grid; both are placed in the world (nm).

Ids are taken from the nearest source voxel. Masks and probabilities are resampled one axis after
the other with a matrix (`axis_weights`): the mean over the extent of a larger target voxel, linear
interpolation at the centre of a finer one. Outside of the source the result is 0. The source is
read in layers of its chunks, so that memory holds the result and one such layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from common.data.volumes.level import Grid, Level, box_text
from common.errors import UserError

TIE = 1e-5
"""A share of a voxel counts as more than half only above 0.5 + TIE.

So a voxel that is exactly half filled becomes 0, however float32 rounds the share.
"""

ALIGNED = 1e-3
"""Grids that differ by less than this, in voxels, count as one: files give sizes to six digits."""


@dataclass(frozen=True)
class Axis:
    """A grid along one axis, in nm or any other unit of length."""

    origin: float
    """Position of the centre of the first voxel."""
    scale: float
    """Voxel size."""
    size: int
    """Number of voxels."""


def axis_of(grid: Grid, number: int) -> Axis:
    """Return axis 0, 1 or 2 of a grid, in nm."""
    return Axis(grid.origin[number], grid.scale[number], grid.shape[number])


def ids(level: Level, grid: Grid) -> np.ndarray:
    """Resample ids to `grid` by nearest neighbour; return (z, y, x) integers.

    Each target voxel takes the id of the source voxel nearest to its centre, the lower of two; it
    is 0 outside of the source. The dtype is that of the source. Whole numbers stored as floats are
    converted to the smallest unsigned dtype that holds them.

    Raises:
        UserError: for other floats, and for ids too large for the float dtype to be exact.
    """
    source = level.array.dtype
    dtype = source.newbyteorder("=") if source.kind in "ui" else np.uint8
    result = np.zeros(grid.shape, dtype)
    for where, slab in nearest(level, grid):
        block = as_ids(slab, level.path)
        if block.itemsize > result.itemsize:  # larger ids in a later layer of a float volume
            result = result.astype(block.dtype)
        result[where] = block
    return result


def mask(level: Level, grid: Grid) -> np.ndarray:
    """Resample a mask to `grid`: (z, y, x) bool, True where it fills more than half of a voxel.

    False outside of the source. An integer source is positive where it is above 0; a float source
    holds probabilities. If the voxels of both grids coincide, nothing is resampled.

    Raises:
        UserError: for floats outside of [0, 1].
    """
    if _aligned(level, grid):
        return _mask_on_same_voxels(level, grid)
    result = np.zeros(grid.shape, bool)
    z, rows = _window_weights(level, grid, 0)
    y, weights_y = _window_weights(level, grid, 1)
    x, weights_x = _window_weights(level, grid, 2)
    touched = rows > 0
    first = touched.argmax(1)
    last = rows.shape[1] - touched[:, ::-1].argmax(1)
    across_y = csr_array(weights_y)
    across_x = csr_array(weights_x)
    layer = (z + first) // level.array.chunks[0]
    for run in _runs(layer, np.asarray(rows.any(1))):
        start = first[run].min()
        stop = last[run].max()
        lower = (z + start, y, x)
        upper = (z + stop, y + across_y.shape[1], x + across_x.shape[1])
        slab = _share(level.read(lower, upper), level.path)
        if not slab.any():
            continue
        # the share is thresholded once, after resampling: rounded before, halves would add up
        flat = slab.reshape(stop - start, -1).astype(np.float32)
        along_z = csr_array(rows[run, start:stop])
        planes = (along_z @ flat).reshape(-1, *slab.shape[1:])
        for target, plane in zip(result[run], planes, strict=True):
            target[:] = (across_x @ (across_y @ plane).T).T > 0.5 + TIE
    return result


def _mask_on_same_voxels(level: Level, grid: Grid) -> np.ndarray:
    result = np.zeros(grid.shape, bool)
    for where, slab in nearest(level, grid):
        share = _share(slab, level.path)
        result[where] = share if share.dtype == bool else share > 0.5
    return result


def axis_weights(target: Axis, source: Axis, *, repeat_edge: bool = False) -> np.ndarray:
    """Return the matrix (target.size, source.size) float32 that resamples along one axis.

    Row i has the weights of the source voxels in target voxel i. A target voxel that is larger than
    a source voxel weights them by overlap, which is exact for any ratio; a smaller one interpolates
    linearly between two centres. At equal sizes both are the same. Between the outermost centre and
    the edge of the source, the outermost voxel is repeated; beyond the edge weights are 0, so that
    a row sums to the fraction of its voxel that the source covers. With `repeat_edge` the outermost
    voxel is repeated without end, and all rows sum to 1.
    """
    ratio = target.scale / source.scale
    # in source voxels from here on
    offset = target.origin - source.origin
    centre = (offset + target.scale * np.arange(target.size)) / source.scale
    # a window of one voxel at p overlaps voxel j by 1 - |p - j|: that is linear interpolation
    width = max(ratio, 1)
    edges = np.arange(source.size + 1) - 0.5
    if repeat_edge:
        edges[0] = -np.inf
        edges[-1] = np.inf
    overlap = _overlap(centre[:, None], width, edges[:-1], edges[1:])
    weights = overlap / width
    weights[weights < 1e-6] = 0  # what rounding of nm leaves of a voxel that is only touched
    covered: np.ndarray | float = 1
    if not repeat_edge:
        covered = _overlap(centre, ratio, -0.5, source.size - 0.5) / ratio
    total = weights.sum(1)
    nothing = np.zeros(target.size)
    weights *= np.divide(covered, total, out=nothing, where=total > 0)[:, None]
    return weights.astype(np.float32)


def covers(level: Level, grid: Grid) -> bool:
    """Return whether the source covers the box of the grid.

    Half a source voxel may be missing at each side, since a nearest voxel serves that far.
    """
    lower, upper = level.box()
    wanted_lower, wanted_upper = grid.box()
    slack = (0.5 + ALIGNED) * level.scale
    from_start = lower <= wanted_lower + slack
    to_end = upper >= wanted_upper - slack
    return bool(from_start.all() and to_end.all())


def shortfall(level: Level, grid: Grid) -> str:
    """Return what a source covers and what it should cover, for messages if `covers` is False."""
    return f"covers {box_text(level.grid)} nm of {box_text(grid)} nm"


def nearest(level: Level, grid: Grid) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Iterate over the target voxels inside of the source, with the nearest source voxel of each.

    Yields (index in the target, values), one layer of the source's chunks at a time.
    """
    axes = [_nearest_along(level, grid, axis) for axis in range(3)]
    inside = [along for along, _ in axes]
    index = [voxels for _, voxels in axes]
    if not all(len(voxels) for voxels in index):
        return
    layer = index[0] // level.array.chunks[0]
    for run in _runs(layer, np.ones(len(layer), bool)):
        wanted = [index[0][run], *index[1:]]
        start = [voxels[0] for voxels in wanted]
        stop = [voxels[-1] + 1 for voxels in wanted]
        slab = level.read(start, stop)
        for axis, voxels in enumerate(wanted):
            is_skipped_or_repeated = np.diff(voxels) != 1
            if len(voxels) < slab.shape[axis] or is_skipped_or_repeated.any():
                slab = slab.take(voxels - voxels[0], axis)  # only then a copy
        first = inside[0].start
        layers = slice(first + run.start, first + run.stop)
        yield (layers, *inside[1:]), slab


def _nearest_along(level: Level, grid: Grid, axis: int) -> tuple[slice, np.ndarray]:
    """Return which target voxels along an axis have their centre in the source.

    Also returns the nearest source voxel of each of them.
    """
    target = axis_of(grid, axis)
    source = axis_of(level.grid, axis)
    offset = (target.origin - source.origin) / source.scale
    position = offset + target.scale / source.scale * np.arange(target.size)
    from_first = position >= -0.5 - ALIGNED
    to_last = position <= source.size - 0.5 + ALIGNED
    inside = np.flatnonzero(from_first & to_last)
    # of two equally near the lower, however nm are rounded
    nearest = np.ceil(position[inside] - 0.5 - ALIGNED).astype(int)
    along = slice(0)
    if len(inside):
        along = slice(inside[0], inside[-1] + 1)
    return along, nearest.clip(0, source.size - 1)


def _window_weights(level: Level, grid: Grid, axis: int) -> tuple[int, np.ndarray]:
    """Return the first source voxel that the grid needs, and `axis_weights` from there on."""
    source = axis_of(level.grid, axis)
    lower, upper = level.grid.in_voxels(np.array(grid.box()))
    # one voxel more at each end: a finer target interpolates with the neighbour
    before = np.floor(lower[axis]) - 1
    after = np.ceil(upper[axis]) + 1
    start, stop = np.clip([before, after], 0, source.size).astype(int)
    # at least one voxel, also if the grid lies outside
    start = min(start, source.size - 1)
    stop = max(stop, start + 1, 1)
    window = Axis(source.origin + start * source.scale, source.scale, stop - start)
    return start, axis_weights(axis_of(grid, axis), window)


def _runs(layer: np.ndarray, wanted: np.ndarray) -> Iterator[slice]:
    """Iterate over the runs of wanted rows that begin in the same layer."""
    rows = np.flatnonzero(wanted)
    first_of_a_layer = np.flatnonzero(np.diff(layer[rows])) + 1
    for run in np.split(rows, first_of_a_layer):
        if len(run):
            yield slice(run[0], run[-1] + 1)


def _overlap(
    centre: np.ndarray, width: float, low: np.ndarray | float, high: np.ndarray | float
) -> np.ndarray:
    """Return the length that windows of `width` around `centre` share with low..high."""
    upper = np.minimum(centre + width / 2, high)
    lower = np.maximum(centre - width / 2, low)
    return (upper - lower).clip(0)


def offset(level: Level, grid: Grid) -> np.ndarray:
    """Return the offset (3,) nm of the source's nearest voxels, where they are farthest away.

    It is for voxels of one size, or nearly so: what a small difference of size adds up to along an
    axis is part of it.
    """
    first = (grid.origin - level.translation) / level.scale
    steps = np.array(grid.shape) - 1
    last = first + steps * grid.scale / level.scale
    ends = np.stack([first, last])
    between = ends - np.rint(ends)
    farther = np.abs(between).argmax(0)
    return -np.choose(farther, between) * level.scale


def _aligned(level: Level, grid: Grid) -> bool:
    """Return whether the voxels of the grid lie on the source's lattice of voxels."""
    first = (grid.origin - level.translation) / level.scale
    between = np.abs(first - np.rint(first))
    # scales that differ a little part by a whole voxel at the end of a long axis
    drift = np.abs((grid.scale / level.scale - 1) * grid.shape)
    return bool((between < ALIGNED).all() and (drift < ALIGNED).all())


def _share(slab: np.ndarray, path: Path) -> np.ndarray:
    """Return how much of each voxel is positive: bool, or float in [0, 1]."""
    if slab.dtype.kind in "bui":
        return slab > 0
    if not (slab.min() >= 0 and slab.max() <= 1):  # so that NaN is refused too
        raise UserError(
            f"{path}: values from {slab.min():g} to {slab.max():g}; "
            "write a mask of integers, or probabilities in [0, 1]"
        )
    return slab


def as_ids(slab: np.ndarray, path: Path) -> np.ndarray:
    """Return the same numbers in an integer dtype.

    Raises UserError, which names `path`, for floats that are not ids.
    """
    if slab.dtype.kind == "b":
        return slab.view(np.uint8)
    if slab.dtype.kind in "ui":
        return slab
    # from here on not every whole number has a float of its own: two objects would be one
    limit = 2 ** (np.finfo(slab.dtype).nmant + 1)
    whole = slab == np.rint(slab)
    if not whole.all() or slab.min() < 0:
        wrong = slab[~whole | (slab < 0)].flat[0]
        raise UserError(f"{path}: {wrong:g} is no id of an object; write the ids as integers")
    if slab.max() > limit:
        raise UserError(
            f"{path}: id {slab.max():.0f} in {slab.dtype}, which skips numbers beyond {limit}; "
            "write integers"
        )
    return slab.astype(np.min_scalar_type(int(slab.max())))

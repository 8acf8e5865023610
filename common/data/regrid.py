"""A volume on another grid: ids by the nearest voxel, a class by its share of each voxel, both placed in the world (nm).

Masks and probabilities are resampled one axis after another with a matrix an axis (`axis_weights`): the mean over the
extent of a larger voxel, linear interpolation at the centre of a finer one. What the source does not cover is 0.
Work goes by layers of the source's chunks, so that memory holds the result and one such layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from common.data.ngff import Grid, Level
from common.errors import UserError

TIE = 1e-5
"""A share within this of a half is not more than a half: half of a coarse voxel is 0, however float32 rounds it."""

ALIGNED = 1e-3
"""Voxels; grids that differ by less are one grid."""


def ids(level: Level, grid: Grid) -> np.ndarray:
    """(z, y, x) ids of the source voxel nearest to the centre of each target voxel (the lower of two), 0 outside of the source.

    In the source's integer dtype. A float volume of whole numbers is taken as the ids it holds, in the smallest unsigned
    dtype for them. Raises ValueError for other floats, and for ids from where on the float dtype skips whole numbers.
    """
    source = level.array.dtype
    result = np.zeros(grid.shape, source.newbyteorder("=") if source.kind in "ui" else np.uint8)
    for where, slab in _nearest(level, grid):
        found = _as_ids(slab, level.path)
        if found.itemsize > result.itemsize:
            result = result.astype(found.dtype)
        result[where] = found
    return result


def mask(level: Level, grid: Grid) -> np.ndarray:
    """(z, y, x) bool, where the class makes up more than half of a target voxel; False outside of the source.

    An integer source is the class where it is above 0, a float source holds probabilities. The share is thresholded once,
    after resampling. Between grids whose voxels coincide nothing is resampled. Raises ValueError for floats beyond [0, 1].
    """
    result = np.zeros(grid.shape, bool)
    if _aligned(level, grid):
        for where, slab in _nearest(level, grid):
            share = _share(slab, level.path)
            result[where] = share if share.dtype == bool else share > 0.5
        return result
    (z, rows), (y, wy), (x, wx) = (_window_weights(level, grid, axis) for axis in range(3))
    first, last = (rows > 0).argmax(1), rows.shape[1] - (rows > 0)[:, ::-1].argmax(1)
    wy, wx = csr_array(wy), csr_array(wx)
    for t in _runs((z + first) // level.array.chunks[0], rows.any(1)):
        start, stop = first[t].min(), last[t].max()
        slab = _share(
            level.read((z + start, y, x), (z + stop, y + wy.shape[1], x + wx.shape[1])), level.path
        )
        if slab.any():
            planes = csr_array(rows[t, start:stop]) @ slab.reshape(stop - start, -1).astype(
                np.float32
            )
            for out, plane in zip(result[t], planes.reshape(-1, *slab.shape[1:]), strict=True):
                out[:] = (wx @ (wy @ plane).T).T > 0.5 + TIE
    return result


def axis_weights(
    out_origin: float,
    out_scale: float,
    n_out: int,
    in_origin: float,
    in_scale: float,
    n_in: int,
    repeat_edge: bool = False,
) -> np.ndarray:
    """(n_out, n_in) float32: how much of each source voxel goes into each target voxel along one axis.

    Origins are centres of the first voxels; origins and scales in one unit. A larger target voxel takes the source voxels
    by their overlap, exact for any ratio; a finer one interpolates linearly between two centres; at equal sizes the two
    are the same. Beyond the outermost centres the outermost voxel goes on to the source's edge. With repeat_edge it goes on
    without end, and all rows sum to 1; else there is 0, and a row sums to the part of its voxel that the source covers.
    """
    ratio = out_scale / in_scale
    centre = (out_origin - in_origin + out_scale * np.arange(n_out)) / in_scale  # in source voxels
    width = max(
        ratio, 1
    )  # a window of one voxel at p overlaps voxel j by 1 - |p - j|: linear interpolation
    edges = np.arange(n_in + 1) - 0.5
    if repeat_edge:
        edges[0], edges[-1] = -np.inf, np.inf
    weights = _overlap(centre[:, None], width, edges[:-1], edges[1:]) / width
    weights[weights < 1e-6] = 0  # what rounding of nm leaves of a voxel that is only touched
    covered = 1 if repeat_edge else _overlap(centre, ratio, -0.5, n_in - 0.5) / ratio
    total = weights.sum(1)
    weights *= np.divide(covered, total, out=np.zeros(n_out), where=total > 0)[:, None]
    return weights.astype(np.float32)


def covers(level: Level, grid: Grid) -> bool:
    """Whether the source reaches over the grid's box, voxel extents included, to within half a source voxel."""
    (low, high), (wanted_low, wanted_high) = level.box(), grid.box()
    slack = (0.5 + ALIGNED) * level.scale
    return bool((low <= wanted_low + slack).all() and (high >= wanted_high - slack).all())


def shortfall(level: Level, grid: Grid) -> str:
    """What a source covers and what was asked of it, for the message when `covers` is False."""
    boxes = (
        ", ".join(f"{a:g} to {b:g}" for a, b in zip(*box, strict=True))
        for box in (level.box(), grid.box())
    )
    return "covers z, y, x {} nm of {} nm".format(*boxes)


def _nearest(level: Level, grid: Grid) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """The target voxels inside of the source by layers of its chunks, each with the nearest source voxel of every one."""
    inside, index = zip(*(_nearest_along(level, grid, axis) for axis in range(3)), strict=True)
    if not all(len(voxels) for voxels in index):
        return
    for run in _runs(index[0] // level.array.chunks[0], np.ones(len(index[0]), bool)):
        wanted = (index[0][run], *index[1:])
        slab = level.read([voxels[0] for voxels in wanted], [voxels[-1] + 1 for voxels in wanted])
        for axis, voxels in enumerate(wanted):
            if len(voxels) < slab.shape[axis] or (np.diff(voxels) != 1).any():
                slab = slab.take(voxels - voxels[0], axis)
        first = inside[0].start
        yield (slice(first + run.start, first + run.stop), *inside[1:]), slab


def _nearest_along(level: Level, grid: Grid, axis: int) -> tuple[slice, np.ndarray]:
    """Which target voxels of an axis have their centre within the source, and the nearest source voxel of each."""
    n = level.array.shape[axis]
    offset = (grid.origin[axis] - level.translation[axis]) / level.scale[axis]
    position = offset + grid.scale[axis] / level.scale[axis] * np.arange(grid.shape[axis])
    inside = np.flatnonzero((position >= -0.5 - ALIGNED) & (position <= n - 0.5 + ALIGNED))
    nearest = np.ceil(position[inside] - 0.5 - ALIGNED).astype(int).clip(0, n - 1)
    return (slice(inside[0], inside[-1] + 1) if len(inside) else slice(0)), nearest


def _window_weights(level: Level, grid: Grid, axis: int) -> tuple[int, np.ndarray]:
    """`axis_weights` of the part of the source that the grid needs, and its first voxel."""
    scale, n = level.scale[axis], level.array.shape[axis]
    low, high = ((corner[axis] - level.box()[0][axis]) / scale for corner in grid.box())
    start, stop = np.clip([np.floor(low) - 1, np.ceil(high) + 1], 0, n).astype(int)
    start, stop = min(start, n - 1), max(stop, start + 1, 1)
    origin = level.translation[axis] + start * scale
    return start, axis_weights(
        grid.origin[axis], grid.scale[axis], grid.shape[axis], origin, scale, stop - start
    )


def _runs(layer: np.ndarray, wanted: np.ndarray) -> Iterator[slice]:
    """The stretches of wanted rows that begin in one layer."""
    rows = np.flatnonzero(wanted)
    for run in np.split(rows, np.flatnonzero(np.diff(layer[rows])) + 1):
        if len(run):
            yield slice(run[0], run[-1] + 1)


def _overlap(
    centre: np.ndarray, width: float, low: np.ndarray | float, high: np.ndarray | float
) -> np.ndarray:
    """Length that windows of `width` around `centre` share with low..high."""
    return (np.minimum(centre + width / 2, high) - np.maximum(centre - width / 2, low)).clip(0)


def _aligned(level: Level, grid: Grid) -> bool:
    """Whether the voxels of the grid are voxels of the source, or would be if that went on."""
    offset = (grid.origin - level.translation) / level.scale
    drift = (grid.scale / level.scale - 1) * grid.shape
    return bool(
        (np.abs(offset - np.rint(offset)) < ALIGNED).all() and (np.abs(drift) < ALIGNED).all()
    )


def _share(slab: np.ndarray, path: Path) -> np.ndarray:
    """How much of each voxel is the class: bool or float in [0, 1]."""
    if slab.dtype.kind in "bui":
        return slab > 0
    if not (slab.min() >= 0 and slab.max() <= 1):  # so that NaN is refused too
        raise UserError(
            f"{path}: values from {slab.min():g} to {slab.max():g}; write a mask of integers, or probabilities in [0, 1]"
        )
    return slab


def _as_ids(slab: np.ndarray, path: Path) -> np.ndarray:
    if slab.dtype.kind == "b":
        return slab.view(np.uint8)
    if slab.dtype.kind in "ui":
        return slab
    limit = 2 ** (np.finfo(slab.dtype).nmant + 1)
    whole = slab == np.rint(slab)
    if not whole.all() or slab.min() < 0:
        wrong = slab[~whole | (slab < 0)].flat[0]
        raise UserError(f"{path}: {wrong:g} is no id of an object; write the ids as integers")
    if slab.max() > limit:
        raise UserError(
            f"{path}: id {slab.max():.0f} in {slab.dtype}, which skips numbers beyond {limit}; write integers"
        )
    return slab.astype(np.min_scalar_type(int(slab.max())))

"""Read the raw of an EM volume near a wanted voxel size: choose a level and average it down.

uint8 stays uint8; every other type becomes float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data import ngff
from common.data.ngff import Grid, Level, Vector
from common.errors import UserError

AT_ONCE = 2**27
"""Most voxels of a level that are read at a time for averaging.

This bounds the memory where the level is much finer than the wanted voxel size.
"""


@dataclass(frozen=True)
class Raw:
    """A level of a volume, averaged over whole numbers of voxels towards a wanted voxel size.

    "Voxels" are averaged voxels unless stated otherwise.
    """

    level: Level
    factor: np.ndarray
    """(3,) number of voxels of the level that are averaged to one, along each axis."""
    raw_range: tuple[float, ...]
    """Values that become 0 and 1; the range of the unsigned integer type if empty."""
    dtype: np.dtype
    """Type of what is read: uint8 (unchanged), or float32 in [0, 1]."""

    @property
    def grid(self) -> Grid:
        """Where the voxels are."""
        return averaged_grid(self.level, self.factor)

    def read(self, start: Vector, stop: Vector) -> np.ndarray:
        """Return voxels start..stop-1 (z, y, x), which must lie within the volume.

        Raises:
            UserError: if a chunk cannot be decoded.
        """
        first = np.array(start)
        last = np.array(stop)
        if (self.factor == 1).all():
            return self._values(first, last)
        block = np.empty(last - first, self.dtype)
        layers = self._layers_at_once(last - first)
        for z in range(0, len(block), layers):
            top = first.copy()
            top[0] += z
            bottom = last.copy()
            bottom[0] = min(top[0] + layers, last[0])
            fine = self._values(top * self.factor, bottom * self.factor)
            block[z : z + layers] = ngff.block_mean(fine, self.factor)
        return block

    def _layers_at_once(self, shape: np.ndarray) -> int:
        """Return how many layers along z to average at a time; at least one."""
        of_one_layer = shape * self.factor
        of_one_layer[0] = self.factor[0]
        return max(1, int(AT_ONCE // np.prod(of_one_layer)))

    def _values(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Return voxels of the level, not averaged, as `dtype`."""
        block = self.level.read(start, stop)
        if self.dtype == np.uint8:
            return block
        low, high = self.raw_range or (0.0, float(np.iinfo(block.dtype).max))
        # a NaN in raw is a hole: black; NaN means unknown in targets only
        finite = np.nan_to_num(block.astype(np.float32))
        return np.clip((finite - low) / (high - low), 0, 1)

    def read_mirrored(self, start: Vector, stop: Vector) -> np.ndarray:
        """Return voxels start..stop-1; outside of the volume raw is mirrored, as in training."""
        axes = []
        for first, last, size in zip(start, stop, self.grid.shape, strict=True):
            axes.append(mirror(np.arange(first, last), size))
        lower = np.array([axis.min() for axis in axes])
        upper = np.array([axis.max() + 1 for axis in axes])
        block = self.read(lower, upper)
        if (lower == start).all() and (upper == stop).all():
            return block
        index = [axis - low for axis, low in zip(axes, lower, strict=True)]
        return block[np.ix_(*index)]


def open_raw(path: Path, scale: Vector, raw_range: Sequence[float] = ()) -> Raw:
    """Open the level of a multiscale group whose voxel size is nearest to `scale` (nm).

    A finer level is averaged over as many whole voxels as keep it no coarser than `scale`.
    `raw_range` is the pair of values of black and white.

    Raises:
        FileNotFoundError: as `common.data.ngff.open_levels`.
        UserError: as `common.data.ngff.open_levels`, and if the raw is not of an unsigned integer
            type and no `raw_range` is given.
    """
    level = ngff.pick_level(ngff.open_levels(path), scale)
    if level.array.dtype.kind != "u" and not raw_range:
        raise UserError(
            f"{level.path}: raw of type {level.array.dtype} has no natural range; "
            "set raw_range = (value of black, value of white)"
        )
    dtype = np.dtype(np.uint8 if level.array.dtype == np.uint8 else np.float32)
    return Raw(level, reduction(scale, level.scale, level.shape), tuple(raw_range), dtype)


def averaged_grid(level: Level, factor: np.ndarray) -> Grid:
    """Return the grid of a level averaged by `factor`; an incomplete last voxel is left out."""
    origin = level.translation + (factor - 1) / 2 * level.scale
    shape = level.shape // factor
    return Grid(origin, level.scale * factor, tuple(shape.tolist()))


def reduction(wanted: Vector, scale: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Return (3,) int: how many voxels of size `scale` fit into one of `wanted`, at least 1."""
    # 1e-3: sizes are rounded, and 16 nm is three voxels of 5.3335 nm though a little less
    ratio = np.array(wanted) / scale + 1e-3
    return np.clip(np.floor(ratio).astype(int), 1, shape)


def mirror(index: np.ndarray, n: int) -> np.ndarray:
    """Fold voxel indices of any size into 0..n-1, mirrored at the first and the last voxel.

    These two are not repeated, as in NumPy's pad mode "reflect".
    """
    if n == 1:
        return np.zeros_like(index)
    folded = np.abs(index) % (2 * n - 2)
    return np.minimum(folded, 2 * n - 2 - folded)

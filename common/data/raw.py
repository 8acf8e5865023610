"""Raw of an EM volume on a wanted grid: which level is read, how far it is averaged down.

uint8 stays as it is; every other type becomes float32 in [0, 1].
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
"""Voxels of a level that are read at a time to be averaged.

Bounds the memory where the level is much finer than what is wanted.
"""


@dataclass(frozen=True)
class Raw:
    """A level of a volume, averaged over whole voxels towards a wanted voxel size."""

    level: Level
    factor: np.ndarray
    """(3,) voxels of the level that become one."""
    raw_range: tuple[float, ...]
    """Values that become 0 and 1; the range of the integer type if empty."""
    dtype: np.dtype
    """uint8 as it is; float32 is in [0, 1]."""

    @property
    def grid(self) -> Grid:
        """Where the averaged voxels are."""
        return averaged_grid(self.level, self.factor)

    def read(self, start: Vector, stop: Vector) -> np.ndarray:
        """Averaged voxels start..stop, which lie within the volume.

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
        """Averaged layers along z that come from AT_ONCE voxels of the level; at least one."""
        of_one_layer = shape * self.factor
        of_one_layer[0] = self.factor[0]
        return max(1, int(AT_ONCE // np.prod(of_one_layer)))

    def _values(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Voxels of the level as `dtype`."""
        block = self.level.read(start, stop)
        if self.dtype == np.uint8:
            return block
        low, high = self.raw_range or (0.0, float(np.iinfo(block.dtype).max))
        # a NaN in raw is a hole: black; NaN means unknown in targets only
        finite = np.nan_to_num(block.astype(np.float32))
        return np.clip((finite - low) / (high - low), 0, 1)

    def read_mirrored(self, start: Vector, stop: Vector) -> np.ndarray:
        """Averaged voxels start..stop; those outside of the volume are mirrored, as in training."""
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
    """The level of a multiscale group that is nearest to `scale` (nm), averaged down.

    Averaged as long as it stays no coarser than that. raw_range: the values of black and white.

    Raises:
        FileNotFoundError: as `common.data.ngff.open_levels` does.
        UserError: as that does, and if the type has no natural range and none is given.
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
    """Where a level's voxels are once `factor` became one; an incomplete last one is left out."""
    origin = level.translation + (factor - 1) / 2 * level.scale
    shape = level.shape // factor
    return Grid(origin, level.scale * factor, tuple(shape.tolist()))


def reduction(wanted: Vector, scale: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """(3,) whole numbers of voxels that become one, which is no larger than the wanted voxel."""
    # 1e-3: sizes are rounded, and 16 nm is three voxels of 5.3335 nm though a little less
    ratio = np.array(wanted) / scale + 1e-3
    return np.clip(np.floor(ratio).astype(int), 1, shape)


def mirror(index: np.ndarray, n: int) -> np.ndarray:
    """Voxel numbers of any size folded into 0..n-1 at the first and last voxel.

    Those two are not repeated, as NumPy's "reflect".
    """
    if n == 1:
        return np.zeros_like(index)
    folded = np.abs(index) % (2 * n - 2)
    return np.minimum(folded, 2 * n - 2 - folded)

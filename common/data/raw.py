"""Raw of an EM volume on a wanted grid: which level is read, how far it is averaged down, what becomes 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data import ngff
from common.data.ngff import Grid, Level
from common.errors import UserError

AT_ONCE = 2**27
"""Voxels of a level that are read at a time to be averaged; bounds the memory where the level is much finer than what is wanted."""


@dataclass(frozen=True)
class Raw:
    """A level of a volume, averaged over whole voxels towards a wanted voxel size. Opened with `open_raw`."""

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
        origin = self.level.translation + (self.factor - 1) / 2 * self.level.scale
        return Grid(
            origin,
            self.level.scale * self.factor,
            tuple((self.level.shape // self.factor).tolist()),
        )

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """Averaged voxels start..stop, which lie within the volume. Raises ValueError if a chunk cannot be decoded."""
        start, stop = np.array(start), np.array(stop)
        if (self.factor == 1).all():
            return self._values(start, stop)
        result = np.empty(stop - start, self.dtype)
        layers = max(
            1, int(AT_ONCE // np.prod([self.factor[0], *(stop - start)[1:] * self.factor[1:]]))
        )
        for z in range(0, len(result), layers):
            low, high = (
                start + [z, 0, 0],
                np.array([min(start[0] + z + layers, stop[0]), *stop[1:]]),
            )
            result[z : z + layers] = ngff.block_mean(
                self._values(low * self.factor, high * self.factor), self.factor
            )
        return result

    def _values(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Voxels of the level as `dtype`."""
        block = self.level.read(start, stop)
        if self.dtype == np.uint8:
            return block
        low, high = self.raw_range or (0.0, float(np.iinfo(block.dtype).max))
        return np.clip((np.nan_to_num(block.astype(np.float32)) - low) / (high - low), 0, 1)

    def read_mirrored(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """Averaged voxels start..stop; those outside of the volume are mirrored, as in training."""
        start, stop = np.array(start), np.array(stop)
        shape = np.array(self.grid.shape)
        axes = [mirror(np.arange(a, b), n) for a, b, n in zip(start, stop, shape, strict=True)]
        first, last = np.array([a.min() for a in axes]), np.array([a.max() + 1 for a in axes])
        block = self.read(first, last)
        if (first == start).all() and (last == stop).all():
            return block
        return block[np.ix_(*(axis - a for axis, a in zip(axes, first, strict=True)))]


def open_raw(path: Path, scale: Sequence[float], raw_range: Sequence[float] = ()) -> Raw:
    """The level of a multiscale group that is nearest to `scale` (nm), averaged down while it stays finer than that.

    Raises what `common.data.ngff.open_levels` does, and ValueError if the raw's type has no natural range and none is given.
    """
    level = ngff.pick_level(ngff.open_levels(path), scale)
    if level.array.dtype.kind != "u" and not raw_range:
        raise UserError(
            f"{level.path}: raw of type {level.array.dtype} has no natural range; set raw_range = (value of black, value of white)"
        )
    dtype = np.dtype(np.uint8 if level.array.dtype == np.uint8 else np.float32)
    return Raw(level, reduction(scale, level.scale, level.shape), tuple(raw_range), dtype)


def reduction(wanted: Sequence[float], scale: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Whole number of voxels along each axis that become one, so that it is not larger than the wanted voxel."""
    return np.clip(np.floor(np.array(wanted) / scale + 1e-3).astype(int), 1, shape)


def mirror(index: np.ndarray, n: int) -> np.ndarray:
    """Voxel numbers of any size folded into 0..n-1 at the first and last voxel, which are not repeated."""
    if n == 1:
        return np.zeros_like(index)
    folded = np.abs(index) % (2 * n - 2)
    return np.minimum(folded, 2 * n - 2 - folded)

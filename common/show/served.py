"""Serve a multiscale volume to a viewer: read where, and as coarsely as, it is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.data.volumes import ngff
from common.data.volumes.level import Level
from common.errors import UserError

MESHED = 512**3
"""Most voxels of a volume whose objects are shown in 3D: all of it is read for that."""


class Served:
    """A multiscale volume as neuroglancer.LocalVolume takes an array."""

    def __init__(self, levels: Sequence[Level], labels: bool):
        """Take the levels of a volume; labels: whether voxels are ids, which are not averaged."""
        finest = levels[0]
        self.shape: tuple[int, ...] = tuple(finest.shape.tolist())
        self.dtype = _served_dtype(finest.array.dtype, labels)
        self.labels = labels
        self.levels: list[tuple[Level, np.ndarray]] = []
        """(level, ratio) of levels whose voxels are blocks of `ratio` voxels of the finest."""
        finest_lower, _ = finest.box()
        for level in levels:
            ratio = np.rint(level.scale / finest.scale).astype(int)
            is_multiple = np.allclose(level.scale, ratio * finest.scale)
            lower, _ = level.box()
            distance = np.abs(lower - finest_lower)
            if is_multiple and (distance < finest.scale / 100).all():
                self.levels.append((level, ratio))

    def reduced(self, start: np.ndarray, stop: np.ndarray, factor: np.ndarray) -> np.ndarray:
        """Return voxels start..stop of the volume, `factor` finest voxels being merged into one.

        They are read from the coarsest level that they can be made of.
        """
        fitting = [pair for pair in self.levels if not (factor % pair[1]).any()]
        level, ratio = fitting[-1]  # the finest, whose ratio is 1, always fits
        rest = factor // ratio
        first = start * rest
        last = np.minimum(stop * rest, level.shape)
        result = np.zeros(stop - start, self.dtype)
        if (first < last).all():
            block = level.read(first, last)
            # the volume may end within a block: its mean is that of the voxels that there are
            padding = [(0, -length % r) for length, r in zip(block.shape, rest, strict=True)]
            block = np.pad(block, padding, "edge")
            reduce = ngff.pick if self.labels else ngff.block_mean
            block = reduce(block, rest)
            result[tuple(map(slice, block.shape))] = block
        return result

    def transpose(self) -> np.ndarray:
        """Return all of it, x, y, z, for meshes. Raises UserError for more than MESHED voxels."""
        finest, _ = self.levels[0]
        refuse_large(finest.path, self.shape)
        volume = finest.read((0, 0, 0), finest.shape)
        return volume.astype(self.dtype).transpose()


def refuse_large(path: Path, shape: Sequence[int], volumes: int = 1) -> None:
    """Raise UserError if volumes of a shape have more than MESHED voxels together."""
    if np.prod(shape, dtype=float) * volumes > MESHED:
        raise UserError(f"{path}: too large for meshes")


def _served_dtype(stored: np.dtype, labels: bool) -> np.dtype:
    """Return a type that the viewer can show: unsigned ids, or intensities of up to 32 bits."""
    native = stored.newbyteorder("=")
    if labels:
        if stored.kind == "u":
            return native
        return np.dtype(np.uint8 if stored.kind == "b" else np.uint64)
    if stored.kind in "ui" and stored.itemsize <= 4:
        return native
    return np.dtype(np.float32)

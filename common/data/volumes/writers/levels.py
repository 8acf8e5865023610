"""Write volumes in chunks, in several levels, each made of the next finer one, by tensorstore.

Voxels of a level are counted so that voxel i lies over voxels i * factor and on of the finer one;
the first need not be 0. A chunk is written whole or not at all, and one whose file is there is not
written again: a call that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes import ngff
from common.data.volumes.box import Vector, boxes, slices
from common.data.volumes.ngff import Reduction
from common.data.volumes.sources.remote import sentence_of
from common.data.volumes.writers.outgoing import Outgoing, Tell
from common.errors import FileError

Read = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Voxels start..stop-1 of a level, in its own numbers."""


@dataclass(frozen=True)
class Extent:
    """Which voxels a level has."""

    start: np.ndarray
    """(3,) number of the first one."""
    stop: np.ndarray
    """(3,) number of the last one + 1."""
    scale: np.ndarray
    """(3,) nm."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels, z, y, x."""
        z, y, x = (self.stop - self.start).tolist()
        return z, y, x

    def coarser(self, factor: Vector) -> Extent:
        """Return the level whose voxels are `factor` of these, and hold all of them."""
        factors = np.array(factor)
        return Extent(self.start // factors, -(-self.stop // factors), self.scale * factors)


@dataclass(frozen=True)
class Stored:
    """A level on disk."""

    extent: Extent
    array: Any
    """Of tensorstore; its axes are z, y, x and its first voxel is 0."""
    chunk: tuple[int, ...]
    """Voxels that are one file."""
    file_of: Callable[[np.ndarray, np.ndarray], Path]
    """The file of the voxels start..stop-1, counted from 0."""

    def fill(self, read: Read, tell: Tell) -> None:
        """Write the chunks that are not there. Raises FileError where the disk takes no more."""
        writing: Any = None
        for start, stop in boxes(self.extent.shape, self.chunk):
            if not self.file_of(start, stop).is_file():
                block = read(self.extent.start + start, self.extent.start + stop)
                _finish(writing)
                # on its way while the next one is read
                writing = self._begin_writing(start, stop, block)
            tell(int(np.prod(stop - start)))
        _finish(writing)

    def _begin_writing(self, start: np.ndarray, stop: np.ndarray, block: np.ndarray) -> Any:
        """Return the future of a chunk that is being written, whole also if nobody waits for it."""
        import tensorstore

        # a write outside of a transaction is cut short where its future is dropped, as by Ctrl-C:
        # it leaves a file with some of the inner chunks of a shard
        transaction = tensorstore.Transaction()
        box = self.array.with_transaction(transaction)[slices(start, stop)]
        box.write(block).result()
        return transaction.commit_async()

    def reduced(self, factor: Vector, reduce: Reduction) -> Read:
        """Return a function that reads voxels of the next coarser level out of this one."""
        factors = np.array(factor)

        def read(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
            first = start * factors
            last = stop * factors
            inner = np.maximum(first, self.extent.start)
            outer = np.minimum(last, self.extent.stop)
            origin = self.extent.start
            block = self.array[slices(inner - origin, outer - origin)].read().result()
            # at its ends a coarse voxel is made of the fine ones that there are
            beyond = list(zip(inner - first, last - outer, strict=True))
            return reduce(np.pad(block, beyond, "edge"), factors)

        return read


def write(
    volume: Outgoing, first: np.ndarray, level_of: Callable[[int, Extent], Stored], tell: Tell
) -> list[Extent]:
    """Write a volume and its coarser levels; returns which voxels they have.

    first: number of its first voxel. level_of: begins level 0, 1, ... with the voxels of an extent.
    """
    reduce = ngff.pick if volume.is_labels else ngff.block_mean
    level = level_of(0, Extent(first, first + volume.shape, volume.grid.scale))
    level.fill(lambda start, stop: volume.read(start - first, stop - first), tell)
    extents = [level.extent]
    for number, factor in enumerate(ngff.pyramid(volume.grid), 1):
        coarse = level_of(number, level.extent.coarser(factor))
        coarse.fill(level.reduced(factor, reduce), lambda _: None)
        extents.append(coarse.extent)
        level = coarse
    return extents


def _finish(writing: Any) -> None:
    """Wait for a chunk. Raises FileError if it could not be written."""
    if writing is None:
        return
    try:
        writing.result()
    except ValueError as error:
        raise FileError(
            f"a chunk could not be written ({sentence_of(error)}); free some space, and the same "
            "command goes on"
        ) from error


def create(spec: dict[str, Any]) -> Any:
    """Return an array of tensorstore, as it is there or new."""
    import tensorstore

    return tensorstore.open(spec, open=True, create=True, read=True, write=True).result()

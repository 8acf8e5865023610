"""Predicted classes on disk while they are written, block by block."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.data.volumes import ngff, records
from common.data.volumes.box import Vector
from common.data.volumes.level import Grid
from common.data.volumes.metadata import LEVELS_BY_BLOCK
from common.data.volumes.ngff import PARTIAL, ChunkedArray, chunked_array
from common.data.volumes.records import PredictionRecord
from common.errors import FileError
from common.infer.journal import Journal
from common.infer.predicting.encode import loops
from common.infer.predicting.plan import BlockPlan
from common.stopping import ShouldStop, never
from common.talk import note


@dataclass(frozen=True)
class ClassVolume:
    """One class of a prediction while it is written: blocks in any order, by several threads."""

    path: Path
    """Of its multiscale group."""
    grid: Grid
    """Of the finest level."""
    factors: list[tuple[int, ...]]
    """Voxels that become one on each coarser level."""
    levels: list[ChunkedArray]
    """Levels that are written block by block: the finest, and the next, see `_chunks_by_block`."""
    journal: Journal
    done: set[int]
    """Numbers of the blocks that were on disk when it was opened."""

    def write(self, number: int, start: np.ndarray, values: np.ndarray) -> None:
        """Write a block (z, y, x) from voxel `start` on, and note it in the journal."""
        self.put(start, values)
        # last: a block counts when it is on disk on all of its levels
        self.journal.add(number)

    def put(self, start: np.ndarray, values: np.ndarray) -> None:
        """Write a block (z, y, x) from voxel `start` on; the caller notes it in the journal."""
        self.levels[0].put(start, values)
        for level, factor in zip(self.levels[1:], self.factors, strict=False):
            start = start // factor
            values = _reduced(values, factor)
            level.put(start, values)

    def finish(self, stopped: ShouldStop = never) -> None:
        """Make an image of the class, when all blocks are written.

        If it is interrupted, it can be called again.

        stopped: asked before each chunk whether to end, with a KeyboardInterrupt.
        """

        def mean(block: np.ndarray, factors: Vector) -> np.ndarray:
            if stopped():
                raise KeyboardInterrupt
            return _reduced(block, factors)

        # of chunks that were being written when a call was killed
        for folder, _, names in os.walk(self.path):
            for name in names:
                if name.endswith(PARTIAL):
                    Path(folder, name).unlink()
        ngff.finish_multiscale(
            self.path, self.grid, self.factors, mean, written=len(self.levels) - 1
        )
        self.journal.remove()


def _reduced(values: np.ndarray, factors: Vector) -> np.ndarray:
    """Return a block on the next coarser level, as `ngff.block_mean` gives it."""
    if tuple(factors) != (2, 2, 2) or values.dtype != np.uint8:
        return ngff.block_mean(values, factors)
    coarse = np.empty(np.array(values.shape) // 2, np.uint8)
    loops().halve(values, coarse)
    return coarse


def open_class(
    path: Path, plan: BlockPlan, name: str, record: PredictionRecord, *, codec: str = ngff.CODEC
) -> ClassVolume:
    """Open a class for writing, as an earlier call left it if that began it alike, else anew.

    Args:
        path: of its multiscale group.
        plan: of the box.
        name: of the class.
        record: what the prediction says of itself.
        codec: what chunks are compressed with; a class that was begun keeps its own.
    """
    journal = Journal(path)
    if not _was_begun(path, plan, record, journal):
        chunks = _chunks_by_block(plan, ngff.pyramid(plan.grid))
        attributes = records.group_attributes(name, record) | {LEVELS_BY_BLOCK: len(chunks)}
        ngff.begin_multiscale(
            path,
            plan.grid,
            np.dtype(record.dtype),
            plan.chunk_shape,
            attributes=attributes,
            codec=codec,
        )
        for number, (factor, chunk) in enumerate(chunks, 1):
            ngff.add_level(path, number, factor, chunk)
        journal.begin()
    return replace(reopen_class(path, plan), done=journal.read())


def reopen_class(path: Path, plan: BlockPlan) -> ClassVolume:
    """Open a class that was begun, without reading which of its blocks are on disk."""
    factors = ngff.pyramid(plan.grid)
    coarser = len(_chunks_by_block(plan, factors))
    levels = []
    for number in range(1 + records.read_attributes(path).get(LEVELS_BY_BLOCK, min(coarser, 1))):
        levels.append(chunked_array(path / f"s{number}"))
    return ClassVolume(path, plan.grid, factors, levels=levels, journal=Journal(path), done=set())


def _chunks_by_block(
    plan: BlockPlan, factors: list[tuple[int, ...]]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return factor and chunk of each coarser level that is written block by block, finest first.

    On such a level no chunk has voxels of two blocks: threads that write two blocks would overwrite
    each other's part of it. A chunk of the first coarser level lies over one chunk of the finest,
    so blocks of any number of chunks are apart there; chunks of the next levels have as many voxels
    as those of the first.
    """
    shape = np.array(plan.grid.shape)
    chunk = np.array(plan.chunk_shape)
    if not factors or not ((chunk % factors[0] == 0) | (chunk >= shape)).all():
        return []
    block = np.array(plan.block_shape)
    is_alone = block >= shape
    chunk = -(-chunk // factors[0])
    levels: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    together = np.ones(3, int)
    for factor in factors:
        together = together * factor
        # as it is stored
        chunk = np.minimum(chunk, shape // together)
        if levels and not ((block % (chunk * together) == 0) | is_alone).all():
            break
        levels.append((factor, tuple(chunk.tolist())))
    return levels


def _was_begun(path: Path, plan: BlockPlan, record: PredictionRecord, journal: Journal) -> bool:
    """Return whether an earlier call began the class with the same voxels in the same blocks."""
    if not journal.exists() or records.is_damaged(path):
        return False
    stored = records.read_prediction(path)
    if stored is None:
        return False
    is_same = stored.is_like(record) and stored.largest_block == record.largest_block
    return is_same and not _has_damaged_arrays(path, plan)


def _has_damaged_arrays(path: Path, plan: BlockPlan) -> bool:
    """Return whether the arrays of a class that was begun cannot be opened, with a note if so."""
    try:
        levels = reopen_class(path, plan).levels
    except Exception as error:  # a different type for each kind of damage
        reason = " ".join(str(error).split())[:200]
        note(f"{path}: cannot be gone on with ({type(error).__name__}: {reason}); begun anew")
        return True
    if levels[0].shape == tuple(plan.grid.shape):
        return False
    note(f"{path}: cannot be gone on with (of shape {levels[0].shape}); begun anew")
    return True


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn errors of the file system while volumes are written under a folder into FileError."""
    try:
        yield
    except FileError:
        raise  # a sentence already
    except (OSError, KeyError) as error:
        # zarr turns a folder that cannot be made into a KeyError
        reason = error.__cause__ if isinstance(error, KeyError) else error
        if not isinstance(reason, OSError):
            raise
        raise FileError(
            f"{folder}: could not be written ({reason.strerror or reason}); mend that, and the "
            "same command goes on"
        ) from error

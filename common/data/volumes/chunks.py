"""Read and write the chunks of a zarr v2 array on this disk, each whole, as one file.

What is on disk is what `array[...] = values` of zarr would leave, byte for byte. zarr holds the
interpreter's lock several times as long for each chunk (docs/benchmarks.md, "Writing a
prediction"), and while one thread holds it, those that would compress on other cores wait.
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from common.data.volumes.box import boxes, slices

SEPARATOR = "/"
"""Between the numbers of a chunk: a folder for each axis, so that none has too many files."""

PARTIAL = ".partial"
"""End of the name of a chunk that is being written, as zarr has it."""


@dataclass(frozen=True)
class ChunkFiles:
    """Where the chunks of an array are. They have SEPARATOR in their names, and the fill value 0.

    Threads and processes may write at once, as long as no two write one chunk.
    """

    folder: Path
    shape: tuple[int, ...]
    """Of the array, voxels."""
    chunks: tuple[int, ...]
    """Voxels of a chunk."""
    dtype: np.dtype
    codec: Any
    """Its compressor, of numcodecs."""

    def put(self, start: np.ndarray, values: np.ndarray) -> None:
        """Write values (z, y, x) from voxel `start` on: whole chunks, or up to the array's end.

        Chunks that are 0 throughout are removed, or not written.
        """
        for begin, end in boxes(values.shape, self.chunks):
            self._put_chunk((start + begin) // self.chunks, values[slices(begin, end)])

    def get(self, box: tuple[slice, ...]) -> np.ndarray:
        """Return the voxels of a box within the array."""
        start = np.array([along.start for along in box])
        stop = np.array([along.stop for along in box])
        values = np.zeros(stop - start, self.dtype)
        first = start // self.chunks
        counts = -(-stop // self.chunks) - first
        for corner in np.ndindex(*counts.tolist()):
            chunk = self._chunk(first + corner)
            if chunk is None:
                continue
            begin = (first + corner) * self.chunks
            lower = np.maximum(start, begin)
            upper = np.minimum(stop, begin + self.chunks)
            shared = chunk[slices(lower - begin, upper - begin)]
            values[slices(lower - start, upper - start)] = shared
        return values

    def _chunk(self, number: np.ndarray) -> np.ndarray | None:
        """Return the voxels of a chunk; None if it is not stored."""
        try:
            content = self._path(number).read_bytes()
        except FileNotFoundError:
            return None
        return np.frombuffer(self.codec.decode(content), self.dtype).reshape(self.chunks)

    def _path(self, number: np.ndarray) -> Path:
        return self.folder / SEPARATOR.join(map(str, number.tolist()))

    def _put_chunk(self, number: np.ndarray, values: np.ndarray) -> None:
        path = self._path(number)
        # most are told by their first layer: looking at all of a chunk is a twentieth of packing it
        if not values[:1].any() and not values.any():
            path.unlink(missing_ok=True)
            return
        if values.shape != self.chunks:
            # the last along an axis: a chunk is stored whole
            whole = np.zeros(self.chunks, self.dtype)
            whole[tuple(map(slice, values.shape))] = values
            values = whole
        _replace(path, self.codec.encode(np.ascontiguousarray(values, self.dtype)))


def chunk_files(array: zarr.Array) -> ChunkFiles:
    """Return the chunks of an array that `common.data.volumes.ngff` made on this disk."""
    folder = Path(array.store.path) / array.path
    return ChunkFiles(folder, array.shape, array.chunks, dtype=array.dtype, codec=array.compressor)


def _replace(path: Path, content: bytes) -> None:
    """Write a file at once: whoever reads it finds the old content or the new."""
    begun = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        try:
            begun.write_bytes(content)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            begun.write_bytes(content)
        begun.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            begun.unlink()
        raise

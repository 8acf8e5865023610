"""Arrays of zarr v2 on this disk, read and written box by box, by tensorstore.

What is on disk is what `array[...] = values` of zarr would leave, compressed alike: to the same
bytes, but for a few of some chunks, perhaps as its zstd is of another version. zarr holds the
interpreter's lock a few times for each chunk, and threads that would compress on other cores wait
for it; tensorstore compresses and writes in threads of its own (docs/benchmarks.md, "On a GPU").
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes.box import slices

SEPARATOR = "/"
"""Between the numbers of a chunk: a folder for each axis, so that none has too many files."""

PARTIAL = (".partial", ".__lock")
"""Ends of the names of chunks that are being written, as zarr and tensorstore have them."""


@dataclass(frozen=True)
class ChunkedArray:
    """An array whose chunks that are 0 throughout are not stored.

    Threads and processes may write at once, as long as no two write one chunk.
    """

    folder: Path
    array: Any
    """Of tensorstore."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels."""
        return self.array.shape

    @property
    def chunks(self) -> tuple[int, ...]:
        """Voxels of a chunk."""
        return self.array.chunk_layout.write_chunk.shape

    def put(self, start: np.ndarray, values: np.ndarray) -> None:
        """Write values (z, y, x) from voxel `start` on. Raise OSError where that fails.

        Chunks that become 0 throughout are removed, or not written.
        """
        box = self.array[slices(start, start + values.shape)]
        with _errors_of_system():
            # nobody changes them before they are written, so they need not be copied
            box.write(values, can_reference_source_data_indefinitely=True).result()

    def get(self, box: tuple[slice, ...]) -> np.ndarray:
        """Return the voxels of a box within the array. Raise OSError where that fails."""
        with _errors_of_system():
            return self.array[box].read().result()


def chunked_array(folder: Path) -> ChunkedArray:
    """Return an array that `common.data.volumes.ngff` made on this disk.

    Raise ValueError where there is none, or one of which the metadata are damaged.
    """
    import tensorstore  # a tenth of a second, for which only who writes should wait

    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder.absolute())}}
    with _errors_of_system():
        return ChunkedArray(folder, tensorstore.open(spec, context=_context()).result())


@functools.cache
def _context() -> Any:
    """Return how all arrays are written: as by zarr, which locks no file and waits for no disk."""
    import tensorstore

    return tensorstore.Context({"file_io_sync": False, "file_io_locking": {"mode": "none"}})


@contextlib.contextmanager
def _errors_of_system() -> Iterator[None]:
    """Turn errors of the system, which tensorstore tells as a ValueError, into an OSError."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"(?:os_error_code='|OS error )(\d+)", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number)) from error

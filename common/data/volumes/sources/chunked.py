"""Read arrays in chunks by tensorstore: zarr v3, N5, precomputed; on disk or on a server."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes.box import Vector
from common.data.volumes.level import Attributes, Voxels, chunk_ranges
from common.data.volumes.sources import remote
from common.data.volumes.sources.image import check
from common.data.volumes.sources.remote import Address

FileOf = Callable[[Sequence[int]], str]
"""The name of the file of a chunk in the folder of its array, by its number along z, y, x."""


class Chunked(Voxels):
    """An array of tensorstore, seen as z, y, x."""

    def __init__(
        self, path: Path, array: Any, file_of: FileOf | None = None, attributes: Any = None
    ):
        """Make an array.

        Args:
            path: folder of the array.
            array: of tensorstore, its axes z, y, x.
            file_of: names of files; None where chunks are packed in others.
            attributes: what it says of itself.
        """
        self.path = path
        self.array = array
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(array.dtype.numpy_dtype)
        check(path, self.shape, self.dtype)
        self.chunks = tuple(array.chunk_layout.read_chunk.shape)
        self._file_chunks = tuple(array.chunk_layout.write_chunk.shape)
        self._file_of = file_of
        fill = array.fill_value
        self.fill_value = 0 if fill is None else fill.item()
        self.attrs = Attributes(attributes or {})

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return voxels of a box."""
        try:
            return np.ascontiguousarray(self.array[index].read().result())
        except ValueError as error:
            if isinstance(self.path, Address):
                raise remote.failure(self.path, error) from error
            raise ValueError(remote.sentence_of(error)) from error

    def files(self, start: Vector, stop: Vector) -> list[Path]:
        """Return the files on this disk that hold voxels start..stop-1."""
        if self._file_of is None or isinstance(self.path, Address):
            return []
        z, y, x = chunk_ranges(start, stop, self._file_chunks)
        return [self.path / self._file_of(chunk) for chunk in itertools.product(z, y, x)]


def open_array(path: Path, driver: str, **about: Any) -> Any:
    """Open an array of tensorstore for reading.

    Raises:
        FileNotFoundError: if it is not there.
        UserError: if it cannot be read.
    """
    import tensorstore

    spec = {"driver": driver, "kvstore": remote.store(path), "recheck_cached_data": "open", **about}
    try:
        return tensorstore.open(spec, open=True, read=True, context=remote.context()).result()
    except ValueError as error:
        if "NOT_FOUND" in str(error):
            raise FileNotFoundError(f"{path}: there is no such array; copy it again") from error
        raise remote.failure(path, error) from error


def stamp(*content: Any) -> str:
    """Return the metadata of an array as a text; whether its voxels changed only its files tell."""
    return json.dumps(content, sort_keys=True)

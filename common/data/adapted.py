"""Open zarr arrays of other programs as arrays with three axes and a fill value."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path

import zarr
from zarr.storage import KVStore

from common.data.metadata import ArrayMetadata


def open_array(folder: Path, about: ArrayMetadata, dropped: Sequence[int]) -> zarr.Array:
    """Open the array in a folder for reading.

    Args:
        folder: folder of the array.
        about: content of its .zarray.
        dropped: axes to drop. They have length 1 and chunks of length 1, so the bytes of a chunk
            are the same without them.
    """
    content = dict(about.content)
    for name in ("shape", "chunks"):
        kept = [n for axis, n in enumerate(content[name]) if axis not in dropped]
        content[name] = kept
    if content.get("fill_value") is None:
        # zarr would give whatever is in memory for a chunk that is not there
        content["fill_value"] = 0
    separator = content.get("dimension_separator", ".")
    store = _Chunks(folder, json.dumps(content).encode(), dropped, separator)
    return zarr.Array(KVStore(store), read_only=True)


def chunk_name(index: Sequence[int | str], dropped: Sequence[int], separator: str) -> str:
    """Return the file name of a chunk in the folder of its array, by its number along z, y, x."""
    numbers = [str(number) for number in index]
    for axis in dropped:
        numbers.insert(axis, "0")
    return separator.join(numbers)


class _Chunks(MutableMapping[str, bytes]):
    """A store of zarr: one array's metadata as they were adapted, and its chunks on disk."""

    def __init__(self, folder: Path, metadata: bytes, dropped: Sequence[int], separator: str):
        self.folder = folder
        self.metadata = metadata
        self.dropped = dropped
        self.separator = separator

    def __getitem__(self, key: str) -> bytes:
        if key == ".zarray":
            return self.metadata
        if key.startswith("."):
            raise KeyError(key)
        name = chunk_name(key.split(self.separator), self.dropped, self.separator)
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise KeyError(key) from None

    def __iter__(self) -> Iterator[str]:
        return iter([".zarray"])

    def __len__(self) -> int:
        return 1

    def __setitem__(self, key: str, value: bytes) -> None:
        raise PermissionError(f"{self.folder}: is only read")

    def __delitem__(self, key: str) -> None:
        raise PermissionError(f"{self.folder}: is only read")

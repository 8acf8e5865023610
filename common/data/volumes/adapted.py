"""Open zarr arrays of other programs as arrays with three axes and a fill value."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import KVStore

from common.data.volumes import codecs
from common.data.volumes.sources import remote
from common.data.volumes.sources.remote import Address
from common.data.volumes.zarray import ArrayMetadata


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
    chunks = _Chunks(folder, json.dumps(content).encode(), dropped, separator)
    return zarr.Array(_Store(chunks), read_only=True)


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
        if key == ".zattrs" and isinstance(self.folder, Address):
            return (self.folder / key).read_bytes()
        if key.startswith("."):
            raise KeyError(key)
        try:
            return self.file(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise KeyError(key) from None

    def check_length(self, key: str, content: bytes) -> None:
        """Refuse a Blosc chunk that is shorter than its header says: Blosc would read on."""
        compressor = json.loads(self.metadata).get("compressor") or {}
        if compressor.get("id") != "blosc":
            return
        packed = codecs.blosc_lengths(content[:16]).packed
        if len(content) < packed:
            raise ValueError(f"{key} has {len(content)} of {packed} bytes")

    def file(self, key: str) -> Path:
        """Return the file of a chunk."""
        name = chunk_name(key.split(self.separator), self.dropped, self.separator)
        return self.folder / name

    def __iter__(self) -> Iterator[str]:
        return iter([".zarray"])

    def __len__(self) -> int:
        return 1

    def __setitem__(self, key: str, value: bytes) -> None:
        raise PermissionError(f"{self.folder}: is only read")

    def __delitem__(self, key: str) -> None:
        raise PermissionError(f"{self.folder}: is only read")


class _Store(KVStore):
    """The same as a store of zarr, which asks a server for all chunks of a block at once."""

    def getitems(self, keys: Sequence[str], *, contexts: Any = None) -> dict[str, bytes]:
        """Return the chunks that are there, by their keys."""
        chunks: _Chunks = self._mutable_mapping
        if not isinstance(chunks.folder, Address):
            return super().getitems(keys, contexts=contexts)
        read = remote.read_all([chunks.file(key) for key in keys])
        contents = {}
        for key, content in zip(keys, read, strict=True):
            if content is not None:
                chunks.check_length(key, content)
                contents[key] = content
        return contents

"""Arrays of zarr v2 that any program may have written: checked, and opened with three axes.

What a .zarray says is checked before it is used; each problem is a UserError of one sentence that
begins with the path of the array. A zarr array names its own codecs, and some that numcodecs
registers (`pickle`) run code from the file, even on opening, since a fill value is decoded too. So
`.zarray` is read as text, and its codecs are compared with a list, before zarr opens the array.

Source: https://zarr-specs.readthedocs.io, version 2.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from common.data.volumes.metadata import read_object, short
from common.data.volumes.sources import remote
from common.data.volumes.sources.remote import Address
from common.errors import UserError
from common.talk import some

LARGEST_CHUNK = 2**34
"""Largest chunk in bytes; a chunk is decoded as a whole, in memory."""

LARGEST_ARRAY = 2**60
"""Largest number of voxels of an array; 64 bits could not count the bytes of more."""

NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""Fill values that zarr writes as text, since JSON has no such numbers."""

COMPRESSORS = ("blosc", "bz2", "gzip", "lz4", "lzma", "pcodec", "zfpy", "zlib", "zstd")
"""Allowed codecs of numcodecs that compress bytes."""

FILTERS = (
    *("adler32", "astype", "base64", "bitround", "crc32", "crc32c", "delta"),
    *("fixedscaleoffset", "fletcher32", "jenkins_lookup3", "packbits", "quantize", "shuffle"),
)
"""Those that change numbers or guard them. Left out: what makes objects of Python, not numbers."""


@dataclass(frozen=True)
class ArrayMetadata:
    """The content of a .zarray."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    content: dict[str, Any]
    """The whole JSON object."""


def read_array(path: Path) -> ArrayMetadata:
    """Read and check the .zarray of an array.

    Raises:
        FileNotFoundError: if there is none.
        UserError: if it describes no array of numbers that a computer could hold.
    """
    if not (path / ".zarray").is_file():
        if (path / "zarr.json").is_file():
            raise UserError(f"{path}: zarr v3 in a group of zarr v2; write both alike")
        raise FileNotFoundError(f"{path}: array named in .zattrs is missing; copy it again")
    file = path / ".zarray"
    array = as_array(file, read_object(file))
    _check_names(path, array.content.get("dimension_separator", "."))
    return array


def as_array(file: Path, content: dict[str, Any]) -> ArrayMetadata:
    """Check the content of a .zarray.

    Raises UserError if it describes no array of numbers that a computer could hold.
    """
    if content.get("zarr_format") != 2:
        raise UserError(f"{file}: zarr_format {content.get('zarr_format')!r}; only 2 can be read")
    array = ArrayMetadata(
        shape=_whole_numbers(file, content, "shape"),
        chunks=_whole_numbers(file, content, "chunks"),
        content=content,
    )
    _check_size(file, array, _itemsize(file, content.get("dtype")))
    separator = content.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise UserError(f"{file}: dimension_separator {short(separator)}; write '.' or '/'")
    if content.get("order", "C") not in ("C", "F"):
        raise UserError(f"{file}: order {short(content['order'])}; write 'C' or 'F'")
    fill = content.get("fill_value")
    if not (fill is None or isinstance(fill, int | float) or fill in NOT_FINITE):
        raise UserError(f"{file}: fill_value {short(fill)}; write a number, such as 0")
    return array


def _check_size(file: Path, array: ArrayMetadata, itemsize: int) -> None:
    """UserError for an array that no computer could hold."""
    shape = list(array.shape)
    chunks = list(array.chunks)
    if len(shape) != len(chunks):
        raise UserError(
            f"{file}: shape {shape} and chunks {chunks} are of different length; "
            "write the array again"
        )
    chunk_bytes = math.prod(chunks) * itemsize
    if chunk_bytes > LARGEST_CHUNK:
        gigabytes = min(chunk_bytes, 10**30) / 1e9  # JSON has numbers that no float holds
        raise UserError(
            f"{file}: a chunk of {chunks} voxels has {gigabytes:.4g} GB, which no memory "
            "takes; write the array with chunks of about 128 x 128 x 128"
        )
    if math.prod(shape) > LARGEST_ARRAY:
        raise UserError(f"{file}: shape {shape} is larger than any volume; write its true shape")


def _check_names(folder: Path, separator: str) -> None:
    """UserError if chunks are named with another separator: none of them would be found."""
    if not folder.is_dir():
        return  # on a server, where names cannot be listed
    with os.scandir(folder) as entries:
        chunk = next((entry for entry in entries if entry.name[0].isdecimal()), None)
    if chunk is None or (chunk.is_file() and "." not in chunk.name):
        return  # of an array with one axis, or no chunk
    written = "/" if chunk.is_dir() else "."
    if written != separator:
        raise UserError(
            f"{folder}: chunks such as {chunk.name}, and dimension_separator {separator!r} in "
            f".zarray; write {written!r} there"
        )


def _whole_numbers(file: Path, content: dict[str, Any], name: str) -> tuple[int, ...]:
    written = content.get(name)
    numbers = written if isinstance(written, list) else []
    if not numbers or not all(_is_length(number) for number in numbers):
        raise UserError(
            f"{file}: {name} {short(written)}; write whole numbers above zero, one an axis"
        )
    return tuple(numbers)


def _is_length(value: Any) -> bool:
    """Return whether a value of JSON is a whole number above zero."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _itemsize(file: Path, dtype: Any) -> int:
    """Return bytes of a voxel; those of types that are no numbers are refused elsewhere or here."""
    try:
        kind = np.dtype(dtype) if isinstance(dtype, str) else None
    except (TypeError, ValueError):
        kind = None
    if kind is None or kind.kind not in "biuf" or kind.itemsize > 8:
        raise UserError(
            f"{file}: dtype {short(dtype)}; write an array of whole numbers or floats, as '|u1'"
        )
    return kind.itemsize


# Codecs


def check_codecs(text: bytes, path: str | Path) -> None:
    """Refuse an array that is not decoded by known codecs into numbers, without opening it.

    text: of its .zarray; one that is no JSON object is left to who reads it, who says so. path: of
    the array, for the message.

    Raises UserError with the codec and what to write instead.
    """
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        return
    if not isinstance(metadata, dict):
        return
    if _has_objects(metadata.get("dtype")):
        raise UserError(f"{path}: holds objects of Python; write an array of numbers")
    problem = _codec_problem(metadata.get("filters") or [], metadata.get("compressor"))
    if problem:
        raise UserError(f"{path}: {problem}")


def _codec_problem(filters: Any, compressor: Any) -> str:
    """Return what is wrong with the codecs that an array names; empty if nothing is."""
    if not isinstance(filters, list):
        return f"filters {filters!r} are no list of codecs; write the array again"
    configured = [codec for codec in [*filters, compressor] if codec is not None]
    names = [codec.get("id") if isinstance(codec, dict) else None for codec in configured]
    for codec_id, codec in zip(names, configured, strict=True):
        if not isinstance(codec_id, str):
            return f"{codec!r} is no codec, which has an 'id'; write the array again"
        if codec_id not in COMPRESSORS + FILTERS:
            return (
                f"codec '{codec_id}' is not decoded, as a file could bring code with it; "
                f"write the array with one of {some(COMPRESSORS, 9)}"
            )
    packing = [codec_id for codec_id in names if codec_id in COMPRESSORS]
    if len(packing) > 1:
        # packed in packed: a few bytes can become more than any disk holds
        return f"compressed {len(packing)} times ({', '.join(packing)}); write it with one codec"
    return ""


def _has_objects(dtype: Any) -> bool:
    """Return whether a dtype of .zarray, a text or a list of fields, holds Python's objects."""
    if isinstance(dtype, list):
        fields = [field for field in dtype if isinstance(field, list) and len(field) > 1]
        return any(_has_objects(field[1]) for field in fields)
    # 'O' stands in no other code of a dtype, also not in a list of them such as 'u1,O'
    return isinstance(dtype, str) and ("O" in dtype or "object" in dtype)


class BloscLengths(NamedTuple):
    """Lengths of a Blosc chunk in bytes, from its header."""

    packed: int
    """Compressed length, header included."""
    unpacked: int
    """Length of the decompressed values."""


def blosc_lengths(header: bytes) -> BloscLengths:
    """Return what the first 16 bytes of a Blosc chunk say of its lengths."""
    # Source: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
    packed = int.from_bytes(header[12:], "little")
    return BloscLengths(max(packed, 16), unpacked=int.from_bytes(header[4:8], "little"))


def blosc_problem(array: Any, name: str, header: bytes, size: int) -> str:
    """Return how the length of a Blosc chunk contradicts its header; "" if it does not.

    numcodecs hands such a chunk to Blosc, which reads on beyond its end.

    Args:
        array: a `zarr.Array`.
        name: of the chunk.
        header: its first 16 bytes.
        size: number of its bytes.
    """
    packed, unpacked = blosc_lengths(header)
    if size < packed:
        return f"{name} has {size} of {packed} bytes"
    whole = math.prod(array.chunks) * array.dtype.itemsize
    # filters may change the length
    if not array.filters and unpacked != whole:
        return f"{name} unpacks to {unpacked} bytes, and not {whole}"
    return ""


# Opened


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
    return zarr.Array(chunks, read_only=True)


def chunk_name(index: Sequence[int | str], dropped: Sequence[int], separator: str) -> str:
    """Return the file name of a chunk in the folder of its array, by its number along z, y, x."""
    numbers = [str(number) for number in index]
    for axis in dropped:
        numbers.insert(axis, "0")
    return separator.join(numbers)


@dataclass(eq=False)
class _Chunks(zarr.storage.BaseStore):
    """A store of zarr: one array's metadata as they were adapted, and its chunks as they are."""

    folder: Path
    metadata: bytes
    dropped: Sequence[int]
    separator: str

    def __getitem__(self, key: str) -> bytes:
        if key == ".zarray":
            return self.metadata
        if key == ".zattrs" and isinstance(self.folder, Address):
            return (self.folder / key).read_bytes()
        if key.startswith("."):
            raise KeyError(key)
        try:
            return self._file(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise KeyError(key) from None

    def getitems(self, keys: Sequence[str], *, contexts: Any = None) -> dict[str, bytes]:
        """Return the chunks that are there, by their keys; a server is asked for all at once."""
        if not isinstance(self.folder, Address):
            return {key: self[key] for key in keys if self._file(key).is_file()}
        read = remote.read_all([self._file(key) for key in keys])
        contents = {}
        for key, content in zip(keys, read, strict=True):
            if content is not None:
                self._check_length(key, content)
                contents[key] = content
        return contents

    def _check_length(self, key: str, content: bytes) -> None:
        """Refuse a Blosc chunk that is shorter than its header says: Blosc would read on."""
        compressor = json.loads(self.metadata).get("compressor") or {}
        if compressor.get("id") != "blosc":
            return
        packed = blosc_lengths(content[:16]).packed
        if len(content) < packed:
            raise ValueError(f"{key} has {len(content)} of {packed} bytes")

    def _file(self, key: str) -> Path:
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

"""Arrays of others in a zarr store, zipped or not: opened and read without trust in what they say.

For images in folders `common.data.volumes.ngff` does the same.
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zarr
from numcodecs import Blosc

from common.data.volumes import codecs, metadata, zarray
from common.data.volumes.codecs import blosc_lengths
from common.errors import UserError

MAX_BYTES = 50 * 10**9
"""Of an array, or of a whole submission unpacked: the organisers refuse more."""

MAX_CHUNK_BYTES = 2**31
"""Decoded; a chunk of a small array may be larger than it, but Blosc itself takes no more."""

MAX_CHUNKS = 2**22
"""Each is looked for on reading; of 128^3 voxels so many make a volume of 20,000^3."""

CODEC_ERRORS = (zlib.error, lzma.LZMAError)


def open_array(group: zarr.Group, name: str, path: str | Path) -> zarr.Array:
    """An array {crop}/{class} of a submission or of truths that is safe to read.

    path: for the message. Raises UserError if the array runs code that it brings, if what it says
    of its size would fill the memory, or if its metadata cannot be read.
    """
    key = f"{group.path}/{name}".lstrip("/")
    codecs.check(group.store, key, path)
    try:
        _check_metadata(group.store, key, Path(path))
        array = group[name]
    except (zarr.errors.MetadataError, ValueError, TypeError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path}: metadata cannot be read ({reason}); pack it again") from error
    reason = _size_problem(array) if isinstance(array, zarr.Array) else ""
    if reason:
        raise UserError(f"{path}: {reason}")
    return array


def read_array(array: zarr.Array, path: str | Path) -> np.ndarray:
    """All voxels of an array of `open_array`.

    path: for the message. Raises UserError where a chunk is missing or cannot be decoded.
    """
    keys = [array._chunk_key(index) for index in np.ndindex(*array.cdata_shape)]
    held = [key for key in keys if key in array.chunk_store]
    if array.fill_value is None and len(held) < len(keys):
        raise UserError(
            f"{path}: has {len(held)} of {len(keys)} chunks and no fill value for the others; "
            "pack it again with fill_value 0"
        )
    reason = _cut_short(array, held)
    if reason:
        raise UserError(f"{path}: cannot be decoded ({reason}); pack it again")
    try:
        return array[...]
    # every codec has errors of its own
    except (RuntimeError, ValueError, TypeError, OSError, EOFError, *CODEC_ERRORS) as error:
        raise UserError(f"{path}: cannot be decoded ({error}); pack it again") from error


def is_place(value: object) -> bool:
    """Whether an attribute is three numbers that can be nm."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    # no NaN either, which is in no range
    return all(isinstance(n, int | float) and abs(n) <= metadata.LARGEST_NM for n in value)


def _check_metadata(store: zarr.storage.Store, key: str, path: Path) -> None:
    """UserError for metadata of an array that are not what they should be; those that are there."""
    if f"{key}/.zarray" in store:
        zarray.as_array(path, metadata.as_object(path, store[f"{key}/.zarray"]))
    if f"{key}/.zattrs" in store:
        metadata.as_object(path, store[f"{key}/.zattrs"])


def _cut_short(array: zarr.Array, keys: Sequence[str]) -> str:
    """Of Blosc chunks the first whose length contradicts its header, in words, or nothing."""
    # numcodecs hands such a chunk to Blosc, which reads on beyond its end
    if not isinstance(array.compressor, Blosc):
        return ""
    whole = math.prod(array.chunks) * array.dtype.itemsize
    for key in keys:
        content = array.chunk_store[key]
        packed, unpacked = blosc_lengths(content[:16])
        if len(content) < packed:
            return f"{key} has {len(content)} of {packed} bytes"
        # filters may change the length
        if not array.filters and unpacked != whole:
            return f"{key} unpacks to {unpacked} bytes, and not {whole}"
    return ""


def _size_problem(array: zarr.Array) -> str:
    """Why an array would fill the memory on being read, by its own account; empty if it would not.

    Chunks that are missing take no space in a file, so that the account is all there is.
    """
    size = math.prod(array.shape) * array.dtype.itemsize
    chunk = math.prod(array.chunks) * array.dtype.itemsize
    if size > MAX_BYTES:
        return f"shape {array.shape} has {size:,} bytes; at most {MAX_BYTES:,} are taken"
    if array.nchunks > MAX_CHUNKS:
        return f"shape {array.shape} in {array.nchunks:,} chunks; write larger ones"
    if chunk > max(size, MAX_CHUNK_BYTES):
        return f"a chunk {array.chunks} has {chunk:,} bytes; write chunks no larger than the array"
    return ""

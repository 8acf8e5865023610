"""Open and read arrays of a zarr store, zipped or not, that somebody else wrote.

Nothing that their metadata say is trusted.

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

from common.data.volumes import metadata, zarray
from common.errors import UserError

MAX_BYTES = 50 * 10**9
"""Largest array, or unpacked submission, that is read; the organisers refuse more."""

MAX_CHUNK_BYTES = 2**31
"""Largest decoded chunk: one of a small array may be larger than the array; Blosc takes no more."""

MAX_CHUNKS = 2**22
"""Most chunks of an array: each is looked for on reading. So many of 128^3 make 20,000^3 voxels."""

CODEC_ERRORS = (zlib.error, lzma.LZMAError)


def open_array(group: zarr.Group, name: str, path: str | Path) -> zarr.Array:
    """Return the array of a class in a group, once it is known to be safe to read.

    Args:
        group: of a submission, or of the truths.
        name: of the array below the group, such as crop557/mito.
        path: of the array, for messages.

    Raises UserError if a codec of the array would run code, if reading the array would fill the
    memory, or if its metadata are malformed.
    """
    key = f"{group.path}/{name}".lstrip("/")
    zarray.check_codecs(group.store.get(f"{key}/.zarray", b""), path)
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
    """Return all voxels of an array that `open_array` returned.

    path: of the array, for messages. Raises UserError if a chunk is missing or cannot be decoded.
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
    """Whether an attribute is a list of three numbers within `metadata.LARGEST_NM`."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    # no NaN either, which is in no range
    return all(isinstance(n, int | float) and abs(n) <= metadata.LARGEST_NM for n in value)


def _check_metadata(store: zarr.storage.Store, key: str, path: Path) -> None:
    """Raise UserError if .zarray or .zattrs of an array exist and are malformed."""
    if f"{key}/.zarray" in store:
        zarray.as_array(path, metadata.as_object(path, store[f"{key}/.zarray"]))
    if f"{key}/.zattrs" in store:
        metadata.as_object(path, store[f"{key}/.zattrs"])


def _cut_short(array: zarr.Array, keys: Sequence[str]) -> str:
    """Describe the first Blosc chunk whose length contradicts its header; "" if none does."""
    if not isinstance(array.compressor, Blosc):
        return ""
    for key in keys:
        content = array.chunk_store[key]
        problem = zarray.blosc_problem(array, key, content[:16], len(content))
        if problem:
            return problem
    return ""


def _size_problem(array: zarr.Array) -> str:
    """Describe why reading an array would fill the memory; "" if it would not.

    Shape and chunks are taken from its metadata: missing chunks take no space in a file, so that
    the size of the file says nothing.
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

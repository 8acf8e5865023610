"""Open and read arrays of a zarr store, zipped or not, that somebody else wrote.

Nothing that their metadata say is trusted.

For images in folders `common.data.volumes.ngff` does the same.
"""

from __future__ import annotations

import contextlib
import itertools
import lzma
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import zarr
from numcodecs import Blosc

from common.data.volumes import metadata, zarray
from common.data.volumes.box import Box, slices
from common.data.volumes.level import Level, chunk_ranges
from common.errors import UserError

MAX_BYTES = 50 * 10**9
"""Largest array, or unpacked submission, that is read; the organisers refuse more."""

MAX_CHUNK_BYTES = 2**31
"""Largest decoded chunk: one of a small array may be larger than the array; Blosc takes no more."""

MAX_CHUNKS = 2**22
"""Most chunks of an array: each is looked for on reading. So many of 128^3 make 20,000^3 voxels."""

CODEC_ERRORS = (zlib.error, lzma.LZMAError)
DECODING_ERRORS = (RuntimeError, ValueError, TypeError, OSError, EOFError, *CODEC_ERRORS)
"""Of codecs, every one of which has errors of its own."""

SAMPLE = 64
"""Voxels along an edge of the blocks by which masks are told from probabilities."""

FEWEST_VALUES = 16
FEWEST_PAIRS = 500
MOST_UNLIKE = 0.5
"""Different values, neighbours, and part of these that differ, from which it is probabilities."""

SOFT = (
    "values that differ from voxel to voxel, as probabilities in 255ths do, and all above 0 is the "
    "class; write 0 and 1"
)


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
    except DECODING_ERRORS as error:
        raise UserError(f"{path}: cannot be decoded ({error}); pack it again") from error


def is_soft(blocks: Iterable[np.ndarray]) -> bool:
    """Return whether whole numbers are probabilities, and no mask, whatever it has for numbers.

    Within an object neighbours are equal. blocks: of a semantic class, (z, y, x) each.
    """
    values: set[int] = set()
    pairs = 0
    unlike = 0
    for block in blocks:
        if block.dtype.kind not in "ui" or not block.any():
            continue
        before = block[..., :-1]
        after = block[..., 1:]
        highest = block.max()
        # what is sure is of one value, also in probabilities
        within = (before > 0) & (after > 0) & ((before < highest) | (after < highest))
        pairs += int(np.count_nonzero(within))
        unlike += int(np.count_nonzero(within & (before != after)))
        values.update(np.unique(before[within]).tolist())
    return pairs >= FEWEST_PAIRS and unlike > MOST_UNLIKE * pairs and len(values) >= FEWEST_VALUES


def samples_of(level: Level) -> Iterator[np.ndarray]:
    """Iterate over the voxels at eight places of a volume, for `is_soft`."""
    for box in _sample_boxes(level.array.shape):
        yield level.read(*box)


def samples_of_array(array: zarr.Array) -> Iterator[np.ndarray]:
    """Iterate over the same of an array that `open_array` returned; not what cannot be decoded."""
    for box in _sample_boxes(array.shape):
        indices = itertools.product(*chunk_ranges(*box, array.chunks))
        keys = [array._chunk_key(index) for index in indices]
        held = [key for key in keys if key in array.chunk_store]
        if not held or _cut_short(array, held):
            continue
        with contextlib.suppress(*DECODING_ERRORS):
            yield array[slices(*box)]


def _sample_boxes(shape: Sequence[int]) -> Iterator[Box]:
    whole = np.array(shape)
    for parts in itertools.product((0.25, 0.75), repeat=3):
        start = np.maximum(np.rint(parts * whole).astype(int) - SAMPLE // 2, 0)
        yield Box(start, np.minimum(start + SAMPLE, whole))


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

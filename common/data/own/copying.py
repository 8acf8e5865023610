"""Copy a volume of any size into an array, in the memory of a few chunks.

Voxels are read in bars: one chunk thick and high, and as wide as fits, since files of pages hold
rows. Pages that can be decoded only as a whole are first written to a file without a name, as many
as a chunk is thick: one by one they would be decoded again for each row of chunks. 128 PNG files of
1500 x 1500 pixels take 5 s of a CPU so, and 41 s without (one run, November 2026).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zarr

from common.data.volumes.box import Box, boxes, slices
from common.data.volumes.level import Level, Voxels, chunk_ranges
from common.files import not_written
from common.talk import progress

BAR_BYTES = 2**26
"""Largest bar that is read at once, if it is wider than a chunk."""

Read = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Voxels start..stop-1."""


def copy(
    level: Level,
    chunks: Sequence[int],
    write: Callable[[Box, np.ndarray], None],
    *,
    is_done: Callable[[Box], bool],
    scratch: Path,
    what: str,
) -> None:
    """Call `write` with all voxels of a volume, a bar after the other.

    Args:
        level: the volume.
        chunks: voxels of a chunk of the array to write, z, y, x; bars consist of whole ones.
        write: takes a bar and its voxels.
        is_done: whether a bar need not be read.
        scratch: a folder with room for pages, see above.
        what: beside the bar of progress.
    """
    slabs = list(boxes(level.shape, (chunks[0], *level.array.shape[1:])))
    in_slab = len(_bars(level, chunks, slabs[0]))
    with progress(len(slabs) * in_slab, what, unit="block") as shown:
        for slab in slabs:
            left = [bar for bar in _bars(level, chunks, slab) if not is_done(bar)]
            shown.update(in_slab - len(left))
            if not left:
                continue
            with _reader(level, slab, chunks, scratch) as read:
                for bar in left:
                    write(bar, read(bar.start, bar.stop))
                    shown.update()


def _bars(level: Level, chunks: Sequence[int], slab: Box) -> list[Box]:
    """Return the bars of a slab, along y first, then x."""
    chunk_bytes = math.prod(chunks) * level.array.dtype.itemsize
    width = max(1, BAR_BYTES // chunk_bytes) * chunks[2]
    bars = boxes(slab.shape, (chunks[0], chunks[1], width))
    return [Box(slab.start + start, slab.start + stop) for start, stop in bars]


@contextlib.contextmanager
def _reader(level: Level, slab: Box, chunks: Sequence[int], scratch: Path) -> Iterator[Read]:
    """What reads bars of a slab."""
    if not _in_whole_pages(level, chunks):
        yield level.read
        return
    with tempfile.TemporaryFile(dir=scratch) as file:
        for z in range(slab.start[0], slab.stop[0]):
            page = level.read((z, 0, 0), (z + 1, *level.array.shape[1:]))
            try:
                file.write(np.ascontiguousarray(page, level.array.dtype).data)
            except OSError as error:
                raise not_written(scratch, error) from error
        yield lambda start, stop: _rows(file, level, slab.start[0], Box(start, stop))


def _in_whole_pages(level: Level, chunks: Sequence[int]) -> bool:
    """Return whether a page is decoded as a whole, and is higher than a bar."""
    array = level.array
    in_rows = isinstance(array, Voxels) and array.in_rows
    return array.chunks[0] == 1 and array.chunks[1] > chunks[1] and not in_rows


def _rows(file: BinaryIO, level: Level, first_page: int, bar: Box) -> np.ndarray:
    """Return the voxels of a bar from a file of decoded pages."""
    dtype = level.array.dtype
    _, height, width = level.array.shape
    z, y, x = (range(*pair) for pair in zip(bar.start, bar.stop, strict=True))
    block = np.empty((len(z), len(y), len(x)), dtype)
    for number in z:
        row = (number - first_page) * height + y.start
        file.seek(row * width * dtype.itemsize)
        content = file.read(len(y) * width * dtype.itemsize)
        rows = np.frombuffer(content, dtype).reshape(len(y), width)
        block[number - z.start] = rows[:, x.start : x.stop]
    return block


def is_written(array: zarr.Array, folder: Path, bar: Box) -> bool:
    """Return whether an earlier call wrote all chunks of a bar; chunks of zeros are not stored.

    array: whose chunks are files in `folder`, with / between their numbers.
    """
    # zarr writes a chunk whole or not at all
    for index in itertools.product(*chunk_ranges(*bar, array.chunks)):
        if not folder.joinpath(*map(str, index)).is_file():
            return False
    return True


def put(array: zarr.Array, bar: Box, block: np.ndarray) -> None:
    """Write the voxels of a bar."""
    array[slices(*bar)] = block

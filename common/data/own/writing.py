"""Write one volume to its place in a dataset, or leave a link to it.

Raw is written in place and gone on with; labels are written aside, and come to their crop when they
are whole. Volumes may be of any size: they are copied in the memory of a few chunks.

Voxels are read in bars: one chunk thick and high, and as wide as fits, since files of pages hold
rows. Pages that can be decoded only as a whole are first written to a file without a name, as many
as a chunk is thick: one by one they would be decoded again for each row of chunks. 128 PNG files of
1500 x 1500 pixels take 5 s of a CPU so, and 41 s without (one run, November 2026).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zarr

from common.data.own.jobs import Counts, Import, count_in_metadata
from common.data.own.standing import IMPORTED
from common.data.volumes import ngff
from common.data.volumes.box import Box, boxes, slices
from common.data.volumes.level import Level, Voxels, chunk_ranges
from common.data.volumes.metadata import UNFINISHED, read_attributes
from common.data.volumes.sources import excerpt as excerpts
from common.data.volumes.sources.excerpt import is_link, read_link
from common.files import not_written
from common.talk import Say, nm, progress, voxels

BEGUN = ".import"
"""Folder of a store with the labels that are being written."""

BAR_BYTES = 2**26
"""Largest bar that is read at once, if it is wider than a chunk."""

Read = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Voxels start..stop-1."""


def link(job: Import, *, overwrite: bool, say: Say) -> None:
    """Leave a link; labels are looked through before."""
    if is_link(job.group) and not overwrite and read_link(job.group) == job.excerpt:
        say(f"{job.group}: there already")
        return
    counts = Counts(job)
    if not job.is_raw:
        counts = _copy(job, None)
    if job.group.exists():
        shutil.rmtree(job.group)
    excerpts.write_link(job.group, job.excerpt)
    say(f"{job.group}: {_sizes(job)}, linked to {job.excerpt.source}{counts.text()}")


def write(job: Import, *, overwrite: bool, say: Say) -> None:
    """Write a volume, or what is left of it."""
    attributes = read_attributes(job.group) if job.group.exists() and not overwrite else {}
    record = attributes.get(IMPORTED)
    is_ours = job.is_from(record)
    if is_ours and "multiscales" in attributes:
        say(f"{job.group}: there already")
        return
    if job.is_raw:
        is_begun = is_ours and UNFINISHED in attributes
        _write_raw(job, goes_on=is_begun and not job.is_edited_since(record))
        counts = Counts(job)
    else:
        counts = _write_labels(job)
    say(f"{job.group}: {_sizes(job)}{counts.text()}")


def _write_raw(job: Import, *, goes_on: bool) -> None:
    if goes_on:
        array = zarr.open_group(str(job.group), mode="r+")["s0"]
    else:
        array = _started(job, job.group)
    _copy(job, array)
    grid = job.level.grid
    ngff.finish_multiscale(job.group, grid, ngff.pyramid(grid), ngff.block_mean)


def _write_labels(job: Import) -> Counts:
    """Write labels aside, so that a crop has whole ones only; return what they hold."""
    begun = _store(job) / BEGUN
    try:
        counts = _copy(job, _started(job, begun))
        if job.excerpt.encoding.get("unknown") != 0:
            count_in_metadata(begun, counts)
        ngff.finish_multiscale(begun, job.level.grid, [], ngff.pick)
        shutil.rmtree(job.group, ignore_errors=True)
        job.group.parent.mkdir(parents=True, exist_ok=True)
        begun.rename(job.group)
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    return counts


def _started(job: Import, group: Path) -> zarr.Array:
    """Return an empty array for a volume."""
    about = {IMPORTED: job.record, **job.excerpt.annotation}
    dtype = job.level.array.dtype
    return ngff.start_multiscale(group, job.level.grid, dtype, job.chunks, attributes=about)


def _store(job: Import) -> Path:
    """Return the store that a volume belongs to."""
    return next(folder for folder in job.group.parents if folder.suffix == ".zarr")


def _sizes(job: Import) -> str:
    return f"{voxels(job.excerpt.shape)} voxels of {nm(job.excerpt.voxel_size)} nm"


def _copy(job: Import, array: zarr.Array | None) -> Counts:
    """Write the finest level, of raw what an earlier call left; look through labels.

    array: None only looks.
    """
    counts = Counts(job)

    def is_done(bar: Box) -> bool:
        # what labels hold is counted from their first voxel on
        return job.is_raw and _is_written(array, job.group / "s0", bar)

    def take(bar: Box, block: np.ndarray) -> None:
        taken = job.excerpt.taken(block)
        if not job.is_raw:
            counts.look(block, taken)
        if array is not None:
            put(array, bar, taken)

    name = job.group.name
    copy_bars(job.stored, job.chunks, take, is_done=is_done, scratch=_store(job), what=name)
    if not job.is_raw:
        counts.check_source()
        counts.note()
    return counts


# Bar by bar


def copy_bars(
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
    array = level.array
    in_rows = isinstance(array, Voxels) and array.in_rows
    in_whole_pages = array.chunks[0] == 1 and not in_rows
    if not in_whole_pages or array.chunks[1] <= chunks[1]:
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


def _rows(file: BinaryIO, level: Level, first_page: int, bar: Box) -> np.ndarray:
    """Return the voxels of a bar from a file of decoded pages."""
    shape = (-1, *level.array.shape[1:])
    pages = np.memmap(file, level.array.dtype, "r").reshape(shape)
    first = np.array([first_page, 0, 0])
    return np.array(pages[slices(bar.start - first, bar.stop - first)])


def _is_written(array: zarr.Array, folder: Path, bar: Box) -> bool:
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

"""Write one volume to its place in a dataset, or leave a link to it.

Raw is written in place and gone on with; labels are written aside, and come to their crop when they
are whole.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import zarr

from common.data.own import copying
from common.data.own.jobs import Counts, Import, count_in_metadata
from common.data.own.standing import IMPORTED
from common.data.volumes import ngff
from common.data.volumes.box import Box
from common.data.volumes.metadata import UNFINISHED
from common.data.volumes.records import read_attributes
from common.data.volumes.sources import excerpt as excerpts
from common.data.volumes.sources.excerpt import is_link, read_link
from common.talk import Say, nm, voxels

BEGUN = ".import"
"""Folder of a store with the labels that are being written."""


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
        return job.is_raw and copying.is_written(array, job.group / "s0", bar)

    def put(bar: Box, block: np.ndarray) -> None:
        taken = job.excerpt.taken(block)
        if not job.is_raw:
            counts.look(block, taken)
        if array is not None:
            copying.put(array, bar, taken)

    name = job.group.name
    copying.copy(job.stored, job.chunks, put, is_done=is_done, scratch=_store(job), what=name)
    if not job.is_raw:
        counts.check_source()
        counts.note()
    return counts

"""Write volumes for other programs: TIFF, HDF5, MRC, NIfTI, NRRD, precomputed, OME-NGFF.

Each file or folder has the key of what it was written from (see `Outgoing.key`): the same command
leaves alone what is there, and goes on with the rest. It is written beside its place, under a name
that begins with a dot, and takes its place when it is whole.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.config.arguments import as_names
from common.data.crops.cache import raw_stamp
from common.data.splits import regions
from common.data.volumes import results
from common.data.volumes.box import Box, block_of_chunks, boxes
from common.data.volumes.level import Level
from common.data.volumes.placement import is_same_size
from common.data.volumes.results import Result
from common.data.volumes.sources import place
from common.data.volumes.writers import hdf5, meshes, mrc, ngff05, nifti, nrrd, precomputed, tiff
from common.data.volumes.writers.outgoing import Outgoing, Tell, Writer
from common.errors import UserError
from common.files import alone, not_written, replacing, write_text
from common.talk import Say, nm, note, progress, voxels

WRITERS = (
    tiff.WRITER,
    hdf5.WRITER,
    mrc.WRITER,
    nifti.WRITER,
    nrrd.WRITER,
    precomputed.WRITER,
    ngff05.WRITER,
    *meshes.writers(),
)

FORMATS = tuple(writer.name for writer in WRITERS)

KEY = ".key"
"""File of a folder that is being written: the key of what it will hold."""

BLOCK = 128
"""Edge in voxels of what is looked through at once."""

LARGEST_EXACT = 2**24
"""Up to it float32 has every whole number."""


@dataclass(frozen=True)
class Choice:
    """What of each volume is written, and as what; options of the command."""

    format: str = ""
    """One of FORMATS; what the end of the name says unless given."""
    roi: str = ""
    """A box in nm, as of `common.data.splits.regions.of_volume`; all of it unless given."""
    scale: tuple[float, ...] | None = None
    """Voxel size (nm) of the level to write; the finest unless given."""
    values: str = ""
    """"image", "mask" or "objects", what they are; what the metadata say unless given."""
    with_meshes: bool = False
    """Surfaces of objects beside a precomputed volume."""


@dataclass(frozen=True)
class Job:
    """One volume, and the file or folder that it becomes."""

    volume: Outgoing
    writer: Writer
    path: Path


def export(
    source: str,
    out: str | Path,
    *,
    classes: Sequence[str] = (),
    overwrite: bool = False,
    say: Say = print,
    **choice: Any,
) -> list[Path]:
    """Write a volume, or all classes under a folder of results, in another format.

    Memory for some planes or blocks, however large the volumes are. Returns what is there then.

    Args:
        source: see `common.data.volumes.results.find`.
        out: file or folder of one volume; of several the folder of all.
        classes: only these of a folder.
        overwrite: replace what is there.
        say: takes a line about each volume.
        choice: fields of `Choice`.

    Raises:
        FileNotFoundError: for a volume that is not there.
        UserError: for what is wrong with one, or with an option; for what stands in the way.
    """
    asked = Choice(**choice)
    volumes = results.find(source, as_names(classes))
    writer = _writer(str(out), asked.format)
    if asked.with_meshes and writer is not precomputed.WRITER:
        raise UserError("--meshes: for --format precomputed; write --format ply for files of them")
    is_single = [result.path for result in volumes] == [place.path_of(source)]
    jobs = []
    for result in volumes:
        path = _path_of(Path(out), result, writer, is_single)
        jobs.append(_job(result, path, writer, asked))
    if not overwrite:
        _refuse_others(jobs)
    for job in jobs:
        _write(job, overwrite=overwrite, say=say)
    return [job.path for job in jobs]


# What is written


def _writer(out: str, format: str) -> Writer:
    """Return the writer that is asked for, or that the end of a name stands for."""
    by_name = {writer.name: writer for writer in WRITERS}
    if format and format not in by_name:
        raise UserError(f"--format {format}; write one of {', '.join(by_name)}")
    if format:
        return by_name[format]
    inside = place.in_hdf5(Path(out))
    name = str(inside[0] if inside else out).lower()
    for writer in WRITERS:
        if name.endswith(writer.endings):
            return writer
    endings = ", ".join(writer.endings[0] for writer in WRITERS if writer.endings)
    raise UserError(
        f"{out}: which format? write a name that ends in one of {endings}, or for a folder of "
        f"several volumes --format {'|'.join(FORMATS)}"
    )


def _path_of(out: Path, result: Result, writer: Writer, is_single: bool) -> Path:
    """Return where a volume is written."""
    if not is_single:
        *folders, name = result.names
        if place.in_hdf5(out) or out.name.lower().endswith(writer.endings):
            raise UserError(
                f"{out}: one file for several volumes; write the name of a folder and --format "
                f"{writer.name}"
            )
        return out.joinpath(*folders, "".join([name, *writer.endings[:1]]))
    if not writer.endings:
        return out
    bare = hdf5.split(out)[0] if writer is hdf5.WRITER else out
    if bare.name.lower().endswith(writer.endings):
        return out
    raise UserError(f"{out}: write a name that ends in {writer.endings[0]}")


def _job(result: Result, path: Path, writer: Writer, choice: Choice) -> Job:
    sort = choice.values or result.sort
    level = _level_of(result, choice.scale)
    box = _box_of(result, level, choice.roi)
    array = hdf5.ARRAY
    if writer is hdf5.WRITER:
        path, array = hdf5.split(path)
    # labels are edited chunk by chunk, which their metadata and the time of their folder do not say
    voxels_of = raw_stamp(level, box.start, box.stop)
    volume = Outgoing(
        result.name,
        level,
        box,
        sort=sort,
        dtype=_type_of(level, box, sort, writer),
        made=result.made | {"level": level.path.name, "voxels": voxels_of},
        array=array,
        meshes=choice.with_meshes and sort != "image",
    )
    return Job(volume, writer, path)


def _level_of(result: Result, scale: tuple[float, ...] | None) -> Level:
    """Return the level of voxels of this size. Raises UserError with those that there are."""
    for level in result.levels:
        if scale is None or is_same_size(level.scale, scale):
            return level
    assert scale is not None
    sizes = ", ".join(nm(level.scale) for level in result.levels)
    raise UserError(f"{result.path}: no level of {nm(scale)} nm; write --scale {sizes}")


def _box_of(result: Result, level: Level, roi: str) -> Box:
    """Return the voxels whose centres are in a box, the lower bound included; one at least."""
    if not roi:
        return Box(np.zeros(3, int), level.shape)
    region = regions.of_volume(result.path, roi)
    corner = level.box()[0]
    first = _number_of_first(region.lower - corner, level.scale)
    last = _number_of_first(region.upper - corner, level.scale)
    start = np.clip(first, 0, level.shape - 1)
    return Box(start, np.clip(last, start + 1, level.shape))


def _number_of_first(distance: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the first voxel whose centre is at least so far (nm) from the corner of the volume."""
    # rounded before: 0.1 + 0.2 is above 0.3
    return np.ceil(np.round(distance / scale - 0.5, 6)).astype(int)


# Of which type


def _type_of(level: Level, box: Box, sort: str, writer: Writer) -> np.dtype:
    """Return the first type of a format that holds a volume. Raises UserError for none."""
    types = writer.image_types if sort == "image" else writer.label_types
    stored = np.dtype(level.array.dtype).newbyteorder("=")
    if stored.kind == "b":
        stored = np.dtype("u1")
    if stored.name in types:
        return stored
    if not types:
        raise UserError(
            f"{level.path}: an image, and {writer.name} holds surfaces of masks and objects; run "
            "process, or write --values mask or objects if it is one"
        )
    dtypes = [np.dtype(name) for name in types]
    safe = [dtype for dtype in dtypes if np.can_cast(stored, dtype)]
    unsafe = [dtype for dtype in dtypes if dtype not in safe]
    if stored.kind == "f" and not safe:
        if sort != "image":
            raise UserError(f"{level.path}: {stored} as labels; write --values image")
        note(f"{level.path}: {stored} is rounded to float32")
        return np.dtype(np.float32)
    # of labels a smaller type may do, which their values tell
    may_be_smaller = any(dtype.itemsize <= stored.itemsize for dtype in unsafe)
    if safe and (stored.kind == "f" or sort == "image" or not may_be_smaller):
        return safe[0]
    least, most = _range_of(level, box)
    for dtype in dtypes:
        if _holds(dtype, least, most):
            return dtype
    raise UserError(
        f"{level.path}: values from {least} to {most}, and {writer.name} holds "
        f"{', '.join(types)}; write another --format"
    )


def _holds(dtype: np.dtype, least: int, most: int) -> bool:
    """Return whether a type has all whole numbers from least to most."""
    if dtype.kind == "f":
        return max(-least, most) <= LARGEST_EXACT
    limits = np.iinfo(dtype)
    return bool(limits.min <= least and most <= limits.max)


def _range_of(level: Level, box: Box) -> tuple[int, int]:
    """Return the smallest and the largest value; all of it is read for that."""
    least = most = 0
    for start, stop in boxes(box.shape, block_of_chunks(level.array.chunks, BLOCK)):
        block = level.read(box.start + start, box.start + stop)
        least = min(least, int(block.min()))
        most = max(most, int(block.max()))
    return least, most


# Writing it


def _refuse_others(jobs: Sequence[Job]) -> None:
    """Raises UserError where something else stands."""
    for job in jobs:
        if job.path.exists() and not _is_there(job):
            raise UserError(
                f"{job.path}: there already, and not what this command writes; take another name, "
                "or write --overwrite to replace it"
            )


def _is_there(job: Job) -> bool:
    return job.path.exists() and job.writer.key_in(job.path) == job.volume.key


def _write(job: Job, *, overwrite: bool, say: Say) -> None:
    """Write a volume, unless it is there."""
    path = job.path
    lock = path.with_name(f".{path.name}.lock")
    with _room(path), alone(lock, otherwise=f"{path}: {{holder}} writes it; wait for it to end"):
        if _is_there(job) and not overwrite:
            say(f"{path}: there already")
            return
        with progress(job.volume.size, path.name, unit="voxel", unit_scale=True) as bar:
            if job.writer.is_folder:
                _write_folder(job, bar.update, overwrite)
            else:
                with replacing(path, sole_writer=True) as temporary:
                    job.writer.write(temporary, job.volume, bar.update)
    say(f"{path}: {_described(job)}")


def _described(job: Job) -> str:
    """Return what was written, and what its format cannot say."""
    volume = job.volume
    grid = volume.grid
    text = f"{voxels(grid.shape)} voxels of {nm(grid.scale)} nm, {volume.dtype}"
    if job.writer.holds_place or not grid.origin.any():
        return text
    place_of_first = ",".join(f"{length:g}" for length in grid.origin)
    return f"{text}; it does not say where: {job.path.name}#translation={place_of_first}"


@contextlib.contextmanager
def _room(path: Path) -> Iterator[None]:
    """What keeps a volume from being written, as a sentence. Raises FileError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except UserError:
        raise
    except OSError as error:
        raise not_written(path, error) from error


def _write_folder(job: Job, tell: Tell, anew: bool) -> None:
    """Write a folder, or unless `anew` what is left of one that an earlier call began."""
    path = job.path
    part = path.with_name(f".{path.name}.part")
    key = part / KEY
    if anew or not key.is_file() or key.read_text() != job.volume.key:
        shutil.rmtree(part, ignore_errors=True)
        write_text(key, job.volume.key)
    job.writer.write(part, job.volume, tell)
    _replace(part, path)
    (path / KEY).unlink()


def _replace(part: Path, path: Path) -> None:
    """Put a folder into its place, and remove what was there."""
    old = path.with_name(f".{path.name}.old")
    _remove(old)
    if path.exists():
        path.rename(old)
    part.rename(path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""Write volumes of any kind into the challenge's layout under a data root: raw, and labels.

What is written of a volume stands in its attributes (IMPORTED): the same command goes on with one
that was begun, leaves alone one that is whole, and refuses what is another's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from common.config.load import data_root
from common.data import layout, ngff
from common.data.annotation import INSTANCE_TYPE
from common.data.box import slices
from common.data.level import Grid, Level
from common.data.ngff import UNFINISHED
from common.data.records import read_attributes
from common.data.sources.place import bare, with_voxel_size
from common.errors import UserError
from common.files import alone
from common.talk import command_line, count, nm, note, progress

IMPORTED = "imported"
"""Attribute of a group: from what it was written."""

CHUNK = 128
"""Voxels of a chunk of raw along each axis; labels, which pack better, have 64."""

LABEL_CHUNK = 64

MOST_IDS = 1000
"""Different values of a class that is not said to have objects; more look like raw, or like ids."""

UNKNOWN_OF_MASK = 255
"""Of unknown in a class that is cut out of a volume of several."""

LOCK = ".import.lock"


@dataclass(frozen=True)
class Box:
    """Voxels of a volume that are imported."""

    start: np.ndarray
    stop: np.ndarray


@dataclass(frozen=True)
class Import:
    """One volume to be written."""

    source: Level
    box: Box
    grid: Grid
    """Where it is written."""
    group: Path
    kind: str
    """"raw", "semantic" or "instance"."""
    value: int | None = None
    """The value of the class in a volume of several; None where all but 0 and unknown is it."""
    unknown: int | None = None
    """The value of voxels of which nobody knows what they are."""

    @property
    def record(self) -> dict[str, Any]:
        """What it is written from."""
        return {
            "from": str(self.source.path),
            "first": self.box.start.tolist(),
            "shape": list(self.grid.shape),
            "voxel_size_nm": self.grid.scale.tolist(),
            "translation_nm": self.grid.origin.tolist(),
            "kind": self.kind,
            "value": self.value,
            "unknown": self.unknown,
        }

    @property
    def dtype(self) -> np.dtype:
        """The type that is written."""
        stored = np.dtype(self.source.array.dtype).newbyteorder("=")
        is_mask = self.value is not None or stored.kind == "b"
        return np.dtype(np.uint8) if is_mask else stored

    def written(self, block: np.ndarray) -> np.ndarray:
        """What is written of voxels of the source."""
        if self.value is None:
            return block
        mask = (block == self.value).astype(np.uint8)
        if self.unknown is not None:
            mask[block == self.unknown] = UNKNOWN_OF_MASK
        return mask


def import_data(  # noqa: PLR0913  # the options of the command
    raw: str,
    dataset: str,
    *,
    labels: Mapping[str, str] | None = None,
    instances: Sequence[str] = (),
    crops: Sequence[str] = (),
    unknown: int | None = None,
    voxel_size: tuple[float, ...] | None = None,
    data: str | Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Write raw and labels as a dataset under the data root; returns its store.

    Memory for a few blocks, however large the volumes are.

    Args:
        raw: a volume of any kind, see `common.data.sources.place`.
        dataset: its name from now on.
        labels: the volume of each class, on the voxels of the raw or at their own translation; of
            one that holds several classes with the value of this one, as in all.tif#value=2.
        instances: those of the classes whose values are ids of objects.
        crops: boxes of the labels, in their voxels: "z0:z1,y0:y1,x0:x1"; all of them unless given.
            They become crop1, crop2, ...
        unknown: the value of voxels in all labels of which nobody knows what they are.
        voxel_size: nm, of all volumes that do not say theirs.
        data: data root.
        overwrite: replace what is there.
        say: takes a line about what is written.

    Raises:
        FileNotFoundError: for a volume that is not there.
        UserError: with what is wrong with a volume, and for a dataset that is there already.
    """
    root = data_root(data)
    store = root / _store_of(dataset)
    if unknown is not None and not labels:
        raise UserError("--unknown: a value of the labels; write --labels CLASS=FILE, too")
    jobs = _plan(raw, store, labels or {}, instances=instances, crops=crops, voxel_size=voxel_size)
    jobs = [replace(job, unknown=unknown) if job.kind != "raw" else job for job in jobs]
    if not overwrite:
        for job in jobs:
            _refuse_others(job)
    store.mkdir(parents=True, exist_ok=True)
    with alone(store / LOCK):
        for job in jobs:
            _write(job, overwrite=overwrite, say=say)
    if labels:
        _say_next(dataset, root, jobs, classes=list(labels), say=say)
    return store


def _say_next(
    dataset: str,
    root: Path,
    jobs: Sequence[Import],
    *,
    classes: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """The command that lists the crops that were written."""
    crops = {job.group.parent for job in jobs if job.kind != "raw"}
    scale = ",".join(f"{length:g}" for length in jobs[1].grid.scale)
    options = {"data": root, "classes": ",".join(classes), "scale": scale}
    command = command_line("make-datasplit", "EXPERIMENT/datasplit.csv", **options)
    say(f"{dataset}: {count(len(crops), 'crop')}; list them with\n  {command}")


def _store_of(dataset: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", dataset):
        raise UserError(f"--dataset {dataset}; write a name of letters, digits, _ and -")
    return layout.store(dataset)


# What is written


def _plan(
    raw: str,
    store: Path,
    labels: Mapping[str, str],
    *,
    instances: Sequence[str],
    crops: Sequence[str],
    voxel_size: tuple[float, ...] | None,
) -> list[Import]:
    """What will be written, the raw first. Raises UserError before anything is."""
    unknown = [name for name in instances if name not in labels]
    if unknown:
        raise UserError(f"--instances {','.join(unknown)}: no such class in --labels")
    if crops and not labels:
        raise UserError("--crop: a box of the labels; write --labels CLASS=FILE, too")
    level = _opened(raw, voxel_size)
    whole = Box(np.zeros(3, int), level.shape)
    jobs = [Import(level, whole, level.grid, store / layout.RAW, "raw")]
    first: Level | None = None
    for name, written in labels.items():
        text, value = _value_in(written)
        if value is not None and name in instances:
            raise UserError(f"{written}: one value is no objects; write --instances without {name}")
        label = _placed(_opened(text, voxel_size), level)
        _check_labels(label, name)
        first = first or label
        if not _same_grid(label.grid, first.grid):
            raise UserError(
                f"{label.path}: {_grid_text(label.grid)}, and {first.path} "
                f"{_grid_text(first.grid)}; the classes of a crop share one grid"
            )
        boxes = [_box_of(text, label) for text in crops] or [Box(np.zeros(3, int), label.shape)]
        for number, box in enumerate(boxes, 1):
            kind = "instance" if name in instances else "semantic"
            group = store / layout.LABELS / f"crop{number}" / name
            jobs.append(Import(label, box, _grid_of(label, box), group, kind, value))
    return jobs


def _value_in(text: str) -> tuple[str, int | None]:
    """The name of a volume without the value that it says, and the value: all.tif#value=2."""
    match = re.search(r"([#&])value=([^&]*)&?", text)
    if match is None:
        return text, None
    if not match[2].isdecimal():
        raise UserError(f"{text}: value '{match[2]}'; write the number of the class, such as 2")
    return (text[: match.start()] + match[1] + text[match.end() :]).rstrip("#&"), int(match[2])


def _opened(text: str, voxel_size: tuple[float, ...] | None) -> Level:
    """The finest level of a volume; the voxel size is for one that does not say its own."""
    try:
        return ngff.open_levels(text)[0]
    except UserError:
        if voxel_size is None or "voxel_size=" in text:
            raise
        return ngff.open_levels(with_voxel_size(text, voxel_size))[0]


def _placed(label: Level, raw: Level) -> Level:
    """Labels where they are. Raises UserError for those of which nobody says it."""
    if label.has_translation:
        return label
    if (label.shape == raw.shape).all() and np.allclose(label.scale, raw.scale, rtol=1e-3):
        return replace(label, translation=raw.translation)
    z, y, x = raw.translation
    raise UserError(
        f"{label.path}: {_grid_text(label.grid)}, and the raw {_grid_text(raw.grid)}; write where "
        f"its first voxel lies, in nm, behind its name: {bare(label.path).name}"
        f"#translation={z:g},{y:g},{x:g}"
    )


def _check_labels(label: Level, name: str) -> None:
    dtype = label.array.dtype
    if dtype.kind not in "bui":
        raise UserError(f"{label.path}: {dtype} for class {name}; write labels as whole numbers")


def _same_grid(one: Grid, other: Grid) -> bool:
    close = np.allclose(one.scale, other.scale, rtol=1e-3)
    return close and one.shape == other.shape and np.allclose(one.origin, other.origin, atol=0.1)


def _grid_text(grid: Grid) -> str:
    return f"has {_sides(grid.shape)} voxels of {nm(grid.scale)} nm"


def _sides(shape: Sequence[int] | np.ndarray) -> str:
    return " x ".join(str(int(n)) for n in shape)


def _grid_of(level: Level, box: Box) -> Grid:
    origin = level.translation + box.start * level.scale
    return Grid(origin, level.scale, tuple((box.stop - box.start).tolist()))


def _box_of(text: str, label: Level) -> Box:
    """The voxels that --crop names. Raises UserError for none."""
    bounds = []
    for axis, part in enumerate(text.split(",")):
        match = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", part)
        if match and axis < 3:
            start = int(match[1] or 0)
            stop = min(int(match[2] or label.shape[axis]), int(label.shape[axis]))
            bounds.append((start, stop))
    if len(bounds) != 3 or any(start >= stop for start, stop in bounds):
        raise UserError(
            f"--crop {text}: no box within {_sides(label.shape)} voxels; write z0:z1,y0:y1,x0:x1 "
            "in voxels of the labels, such as 0:100,0:200,:"
        )
    start, stop = np.array(bounds).T
    return Box(start, stop)


# Writing it


def _refuse_others(job: Import) -> None:
    """Raises UserError where something else is in the place of a volume."""
    if not job.group.exists():
        return
    attributes = read_attributes(job.group)
    record = attributes.get(IMPORTED)
    # what another call began and did not end is nothing yet
    is_begun = record is not None and UNFINISHED in attributes
    if record != job.record and not is_begun:
        what = f"written from {record['from']}" if isinstance(record, dict) else "not imported"
        raise UserError(
            f"{job.group}: there already, {what}, in another way or place; take another --dataset, "
            "or write --overwrite to replace it"
        )


def _write(job: Import, *, overwrite: bool, say: Callable[[str], None]) -> None:
    """Write a volume, or what is left of it."""
    attributes = read_attributes(job.group) if job.group.exists() and not overwrite else {}
    is_ours = attributes.get(IMPORTED) == job.record
    if is_ours and "multiscales" in attributes:
        say(f"{job.group}: there already")
        return
    if is_ours and attributes.get(UNFINISHED):
        array = zarr.open_group(str(job.group), mode="r+")["s0"]
    else:
        chunk = CHUNK if job.kind == "raw" else LABEL_CHUNK
        about = {IMPORTED: job.record, **_annotation(job)}
        array = ngff.start_multiscale(
            job.group, job.grid, job.dtype, (chunk,) * 3, attributes=about
        )
    _copy(job, array)
    reduce = ngff.block_mean if job.kind == "raw" else ngff.pick
    factors = ngff.pyramid(job.grid) if job.kind == "raw" else []
    ngff.finish_multiscale(job.group, job.grid, factors, reduce)
    say(f"{job.group}: {_sides(job.grid.shape)} voxels of {nm(job.grid.scale)} nm")


def _copy(job: Import, array: zarr.Array) -> None:
    """Write the chunks of the finest level, those of raw that an earlier call left."""
    values: set[int | None] = set()
    blocks = list(_blocks(job, array))
    with progress(len(blocks), job.group.name, unit="block") as bar:
        for start, stop in blocks:
            bar.update()
            if job.kind == "raw" and _is_written(job, array, start):
                continue
            block = job.source.read(start + job.box.start, stop + job.box.start)
            if job.kind == "semantic" and job.value is None:
                values.update(np.unique(block).tolist())
                _refuse_raw(job, values)
            array[slices(start, stop)] = job.written(block)
    _note_values(job, values - {0, job.unknown})


def _note_values(job: Import, values: Collection[int | None]) -> None:
    """Say that a class has several values, which may be ids or classes."""
    if len(values) < 2:
        return
    name = job.group.name
    note(
        f"{job.source.path}: {len(values)} values besides 0, all of them taken for {name}; if "
        f"they are ids of objects, write --instances {name}, and if they are classes "
        f"{name}={job.source.path.name}#value=1 and so on"
    )


def _annotation(job: Import) -> dict[str, Any]:
    """What the metadata of a class say of its values, as the challenge's do."""
    if job.kind == "raw":
        return {}
    kind = INSTANCE_TYPE if job.kind == "instance" else "semantic_segmentation"
    about: dict[str, Any] = {"type": kind}
    if job.unknown is not None:
        code = job.unknown if job.value is None else UNKNOWN_OF_MASK
        about["encoding"] = {"absent": 0, "unknown": code}
        if job.value is not None:
            about["encoding"]["present"] = 1
    return {"cellmap": {"annotation": {"annotation_type": about}}}


def _blocks(job: Import, array: zarr.Array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The chunks of an array: first voxel, and last + 1."""
    for number in np.ndindex(*array.cdata_shape):
        start = np.array(number) * array.chunks
        yield start, np.minimum(start + array.chunks, job.grid.shape)


def _is_written(job: Import, array: zarr.Array, start: np.ndarray) -> bool:
    """Whether an earlier call wrote the chunk that begins here; one of zeros is not stored."""
    index = start // array.chunks
    # zarr writes a chunk whole or not at all
    return job.group.joinpath("s0", *map(str, index.tolist())).is_file()


def _refuse_raw(job: Import, values: Collection[int | None]) -> None:
    if len(values) > MOST_IDS:
        name = job.group.name
        raise UserError(
            f"{job.source.path}: more than {MOST_IDS} different values for class {name}, which "
            f"look like raw or like ids of objects; write --instances {name} if they are ids"
        )

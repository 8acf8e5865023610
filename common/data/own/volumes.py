"""Bring volumes of any kind into the challenge's layout under a data root: raw, and labels.

They are written, or linked to. What a volume was made from stands in its attributes (IMPORTED), or
in its link: the same command goes on with one that was begun, leaves alone one that is whole, and
refuses what is another's.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from common.classes import ATOM_IDS, GROUP_ATOMS
from common.config.load import data_root
from common.data import layout, ngff
from common.data.annotation import refuse_raw
from common.data.level import Grid, Level, box_text
from common.data.metadata import UNFINISHED
from common.data.own import boxes as own_boxes
from common.data.own import copying, standing
from common.data.own.boxes import Box
from common.data.own.copying import Bar
from common.data.own.labels import Named, named
from common.data.own.standing import IMPORTED, Labels
from common.data.placement import check_crop
from common.data.records import read_attributes
from common.data.sources import excerpt as excerpts
from common.data.sources.excerpt import (
    INSTANCE,
    OF_FLOATS,
    RAW,
    SEMANTIC,
    Excerpt,
    is_link,
    read_link,
)
from common.data.sources.place import bare, is_address, on_disk, split, with_voxel_size
from common.errors import UserError
from common.files import alone
from common.talk import command_line, count, nm, note, note_once, some, voxels

CHUNK = 128
"""Voxels of a chunk of raw along each axis; labels, which pack better, have 64."""

LABEL_CHUNK = 64

MOST_IDS = 1000
"""Different values of a class that is not said to have objects; more look like raw, or like ids."""

LOCK = ".import.lock"

BEGUN = ".import"
"""Folder of a store with the labels that are being written: they come to their crop when whole."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Import:
    """One volume to be written, or linked to."""

    source: Level
    """The finest level of what it is taken from."""
    excerpt: Excerpt
    group: Path
    """Where it belongs."""
    others: tuple[int, ...] = ()
    """Values of other classes in the same volume."""

    @property
    def level(self) -> Level:
        """What is written."""
        return self.excerpt.of(self.source, self.group)

    @property
    def stored(self) -> Level:
        """The same voxels with the values of the source."""
        return replace(self.excerpt, values=(), unknown=()).of(self.source, self.group)

    @property
    def is_raw(self) -> bool:
        """Whether it is no labels."""
        return self.excerpt.kind == RAW

    @property
    def chunks(self) -> tuple[int, int, int]:
        """Voxels of a chunk."""
        edge = CHUNK if self.is_raw else LABEL_CHUNK
        depth, height, width = (min(edge, length) for length in self.excerpt.shape)
        return depth, height, width


def import_data(  # noqa: PLR0913  # the options of the command
    raw: str,
    dataset: str,
    *,
    labels: Mapping[str, str | Named] | None = None,
    instances: Sequence[str] = (),
    crops: Sequence[str] = (),
    blocks: str = "",
    gap: int | None = None,
    unknown: int | None = None,
    voxel_size: tuple[float, ...] | None = None,
    link: bool = False,
    data: str | Path | None = None,
    overwrite: bool = False,
    say: Say = print,
) -> Path:
    """Bring raw and labels into a dataset under the data root; returns its store.

    Memory for a few blocks, however large the volumes are.

    Args:
        raw: a volume of any kind, see `common.data.sources.place`.
        dataset: its name from now on.
        labels: the volume of each class, on the voxels of the raw or at their own translation; with
            the values of the class in one that holds several, see `common.data.own.labels`.
        instances: those of the classes whose values are ids of objects.
        crops: boxes of the labels, in their voxels: "z0:z1,y0:y1,x0:x1"; all of them unless given.
            They become crop1, crop2, ...; those on the voxels of a crop that is there, further
            classes of it.
        blocks: into how many blocks each of these is cut, which become crops instead.
        gap: voxels between blocks; see `common.data.own.boxes`.
        unknown: the value of voxels in all labels of which nobody knows what they are.
        voxel_size: nm, of all volumes that do not say theirs.
        link: refer to the volumes where they are, instead of copying them.
        data: data root.
        overwrite: replace what is there.
        say: takes a line about what is written.

    Raises:
        FileNotFoundError: for a volume that is not there.
        UserError: with what is wrong with a volume, and for a dataset that is there already.
    """
    root = data_root(data)
    store = root / _store_of(dataset)
    of_class = _named_labels(labels or {}, instances, unknown)
    if not of_class and (crops or blocks or unknown is not None or instances):
        raise UserError(
            "--crop, --blocks, --unknown and --instances are of labels; write --labels CLASS=FILE, "
            "too"
        )
    level = _opened(raw, voxel_size)
    of_raw = _raw_imports(raw, level, store, is_alone=not of_class)
    _refuse(of_raw, store, link=link, overwrite=overwrite)
    of_labels = _label_imports(
        of_class, level, store, boxes=(crops, blocks, gap), instances=instances, size=voxel_size
    )
    of_labels, replaced = _in_crops(of_labels, store, overwrite)
    _refuse(of_labels, store, link=link, overwrite=overwrite)
    store.mkdir(parents=True, exist_ok=True)
    busy = f"{store}: another import is writing it ({{holder}}); wait for its end"
    with alone(store / LOCK, otherwise=busy):
        # labels first: what is wrong with them is said before a large raw is copied
        for job in [*of_labels, *of_raw]:
            make = _link if link else _write
            make(job, overwrite=overwrite, say=say)
        standing.drop(replaced, [job.group for job in of_labels])
    if of_class:
        _say_next(dataset, root, store, say=say)
    return store


def _say_next(dataset: str, root: Path, store: Path, *, say: Say) -> None:
    """The commands that make something of the crops of a dataset."""
    labels = standing.labels_of(store)
    crops = {one.crop for one in labels}
    classes = ",".join(dict.fromkeys(one.name for one in labels))
    scale = ",".join(f"{length:g}" for length in labels[0].grid.scale)
    say(f"{dataset}: {count(len(crops), 'crop')}; an experiment for it:")
    say(f"  {command_line('new', 'EXPERIMENT', own=dataset, data=root)}")
    # crops of one dataset are all on one side otherwise
    options = {"data": root, "classes": classes, "scale": scale, "by": "crop"}
    command = command_line("make-datasplit", "EXPERIMENT/datasplit.csv", **options)
    say(f"for one that exists, list its crops:\n  {command}")


def _store_of(dataset: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", dataset):
        raise UserError(f"--dataset {dataset}; write a name of letters, digits, _ and -")
    return layout.store(dataset)


# What is imported


def _named_labels(
    labels: Mapping[str, str | Named], instances: Sequence[str], unknown: int | None
) -> dict[str, Named]:
    """The labels of each class. Raises UserError where options are at odds."""
    absent = [name for name in instances if name not in labels]
    if labels and absent:
        raise UserError(f"--instances {','.join(absent)}: no such class in --labels")
    of_class = {}
    for name, text in labels.items():
        _check_name(name)
        label = text if isinstance(text, Named) else named(text)
        if unknown is not None:
            label = replace(label, unknown=tuple(dict.fromkeys([unknown, *label.unknown])))
        if label.values and name in instances:
            raise UserError(
                f"{label.text}: one value is no objects; write --instances without {name}"
            )
        both = set(label.values) & set(label.unknown)
        if both:
            raise UserError(f"{label.text}: {sorted(both)[0]} is {name} and unknown; write it once")
        of_class[name] = label
    return of_class


def _check_name(name: str) -> None:
    """The name of a class is a folder's, and stands between commas in a datasplit."""
    table = {known.lower(): known for known in (*ATOM_IDS, *GROUP_ATOMS)}
    known = table.get(name.lower(), name)
    if known != name:
        note_once(f"class {name}: one of your own; that of the challenge's table is {known}")
    if not re.fullmatch(r"\w[\w.-]*", name) or name == "all":
        raise UserError(
            f"class '{name}'; write a name of letters, digits, _ and - (and not 'all', which is "
            "of every class in one volume)"
        )


def _label_imports(
    labels: Mapping[str, Named],
    raw: Level,
    store: Path,
    *,
    boxes: tuple[Sequence[str], str, int | None],
    instances: Sequence[str],
    size: tuple[float, ...] | None,
) -> list[Import]:
    """The labels of each crop and class. Raises UserError before anything is written.

    boxes: crops, blocks and gap, see `common.data.own.boxes`.
    """
    jobs = []
    first: Level | None = None
    for name, label in labels.items():
        level = _placed(_opened_beside(label.text, size, raw), raw)
        _check_labels(level, name, label)
        first = first or level
        if not standing.same(level.grid, first.grid):
            raise UserError(
                f"{level.path}: {_grid_text(level.grid)}, and {first.path} "
                f"{_grid_text(first.grid)}; the classes of a crop share one grid"
            )
        kind = INSTANCE if name in instances else SEMANTIC
        for number, box in enumerate(own_boxes.boxes(level, *boxes), 1):
            # another one where it belongs to a crop that is there, see `_in_crops`
            crop = store / layout.LABELS / f"crop{number}"
            job = _import_of(level, label, box, kind=kind, group=crop / name)
            check_crop(level.path, job.level, raw, raw.scale)
            jobs.append(job)
    return jobs


def _in_crops(
    jobs: Sequence[Import], store: Path, overwrite: bool
) -> tuple[list[Import], list[Labels]]:
    """The imports of labels in the crops that they belong to, and the labels that they replace.

    Raises UserError for a class of which a part is there already, unless it is to be replaced.
    """
    there = standing.labels_of(store)
    replaced = []
    for job in jobs:
        name = job.group.name
        over = standing.overlapped(there, name, job.level.grid)
        if over and not overwrite:
            raise UserError(
                f"{job.source.path}: {name} at nm {box_text(job.level.grid)}, and {over[0].group}, "
                "which is there already, has a part of that; write another box, or --overwrite to "
                "replace it"
            )
        replaced += over
    crops = standing.Crops(store, replaced)
    placed = []
    for job in jobs:
        crop = crops.at(job.level.grid)
        placed.append(replace(job, group=crop / job.group.name))
    gone = {labels.group for labels in replaced}
    _say_shared(placed, [labels for labels in there if labels.group not in gone])
    return placed, replaced


def _say_shared(jobs: Sequence[Import], there: Sequence[Labels]) -> None:
    """Say which crops lie in part on the voxels of others."""
    for job in jobs:
        crop = job.group.parent
        for labels in there:
            if labels.crop != crop and standing.overlap(labels.grid, job.level.grid):
                note_once(
                    f"{crop.name} has voxels of {labels.crop.name}, where {labels.name} is "
                    f"annotated; a network of both classes learns more where {job.group.name} is "
                    "imported on the box of that crop"
                )


def _refuse(jobs: Sequence[Import], store: Path, *, link: bool, overwrite: bool) -> None:
    """Raises UserError for what would be written over itself, or over something else."""
    for job in jobs:
        _refuse_itself(job, store)
        if not overwrite:
            _refuse_others(job, link)


def _raw_imports(raw: str, level: Level, store: Path, *, is_alone: bool) -> list[Import]:
    """The import of raw; none for that of the dataset itself, to which labels are added."""
    group = store / layout.RAW
    job = _import_of(level, Named(raw), own_boxes.whole(level), kind=RAW, group=group)
    if Path(job.excerpt.source) == group.absolute() and not is_alone:
        return []
    return [job]


def _import_of(level: Level, label: Named, box: Box, *, kind: str, group: Path) -> Import:
    """A box of a volume as it will be imported."""
    location, _ = split(label.text)
    excerpt = Excerpt(
        source=location if is_address(location) else str(Path(location).absolute()),
        first=tuple(box.start.tolist()),
        shape=tuple(box.shape.tolist()),
        voxel_size=tuple(level.scale.tolist()),
        translation=tuple((level.translation + box.start * level.scale).tolist()),
        kind=kind,
        values=label.values,
        unknown=label.unknown,
    )
    return Import(level, excerpt, group, label.others)


def _opened(text: str, voxel_size: tuple[float, ...] | None) -> Level:
    """The finest level of a volume; the voxel size is for one that does not say its own."""
    try:
        level = ngff.open_levels(text)[0]
    except UserError:
        if voxel_size is None or "voxel_size=" in text:
            raise
        return ngff.open_levels(with_voxel_size(text, voxel_size))[0]
    if voxel_size is not None and "voxel_size=" not in text:
        _say_contradiction(level, voxel_size)
    return level


def _say_contradiction(level: Level, voxel_size: tuple[float, ...]) -> None:
    """Say that a volume has another voxel size than the command."""
    if not np.allclose(level.scale, voxel_size, rtol=1e-3):
        size = ",".join(f"{length:g}" for length in voxel_size)
        note_once(
            f"{level.path}: says voxels of {nm(level.scale)} nm itself, and --voxel-size is for "
            "volumes that say none; where it is wrong, write "
            f"{bare(level.path).name}#voxel_size={size}"
        )


def _opened_beside(text: str, voxel_size: tuple[float, ...] | None, raw: Level) -> Level:
    """Labels; those that do not say their voxel size have that of a raw of as many voxels."""
    try:
        return _opened(text, voxel_size)
    except UserError:
        level = _opened(text, tuple(raw.scale.tolist()))
        if (level.shape != raw.shape).any():
            raise
    return level


def _placed(label: Level, raw: Level) -> Level:
    """Labels where they are. Raises UserError for those of which nobody says it."""
    corner = raw.translation + (label.scale - raw.scale) / 2
    beyond = np.abs(label.shape * label.scale - raw.shape * raw.scale)
    as_long = bool((beyond < label.scale).all())
    where = ",".join(f"{length:g}" for length in corner)
    if label.has_translation:
        away = np.abs(label.translation - corner) / label.scale
        if as_long and 0.01 < away.max() < 1:
            note_once(
                f"{label.path}: as long as the raw, and {away.max():.2g} of its voxels away from "
                f"it; a place is the centre of the first voxel: #translation={where} covers the raw"
            )
        return label
    if as_long:
        if (label.shape == raw.shape).all():
            return replace(label, translation=raw.translation)
        note_once(
            f"{label.path}: {_grid_text(label.grid)}, as long as the raw, and so taken to cover it"
        )
        return replace(label, translation=corner)
    raise UserError(
        f"{label.path}: {_grid_text(label.grid)}, and the raw {_grid_text(raw.grid)}; write where "
        f"its first voxel lies, in nm, behind its name: {bare(label.path).name}"
        f"#translation={where}"
    )


def _check_labels(level: Level, name: str, label: Named) -> None:
    """Raises UserError for values that labels cannot be."""
    dtype = np.dtype(level.array.dtype)
    if dtype.kind == "f":
        dtype = np.dtype(OF_FLOATS)
    limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    for value in (*label.values, *label.unknown):
        if not limits[0] <= value <= limits[1]:
            raise UserError(
                f"{level.path}: value {value} for class {name}, and it holds {dtype}, "
                f"{limits[0]} to {limits[1]}; write a value that occurs in it"
            )


def _grid_text(grid: Grid) -> str:
    return f"has {voxels(grid.shape)} voxels of {nm(grid.scale)} nm"


# What is there already


def _refuse_itself(job: Import, store: Path) -> None:
    """Raises UserError where a volume would be written over, or linked to, itself."""
    source = on_disk(Path(job.excerpt.source))
    if not is_address(source) and source.is_relative_to(store.absolute()):
        raise UserError(
            f"{job.excerpt.source}: lies in {store}, which is to be written; take another --dataset"
        )


def _refuse_others(job: Import, link: bool) -> None:
    """Raises UserError where something else is in the place of a volume."""
    if not job.group.exists():
        return
    if is_link(job.group):
        stands = read_link(job.group)
        if stands == job.excerpt and link:
            return
        what = f"a link to {stands.source}"
    else:
        attributes = read_attributes(job.group)
        record = attributes.get(IMPORTED)
        # what another call began and did not end is nothing yet
        is_begun = record is not None and UNFINISHED in attributes
        if is_begun or (record == job.excerpt.record and not link):
            return
        what = f"written from {record['from']}" if isinstance(record, dict) else "not imported"
    raise UserError(
        f"{job.group}: there already, {what}, in another way or place; take another --dataset, "
        "or write --overwrite to replace it"
    )


# Writing it


def _link(job: Import, *, overwrite: bool, say: Say) -> None:
    """Leave a link; labels are looked through before."""
    if is_link(job.group) and not overwrite and read_link(job.group) == job.excerpt:
        say(f"{job.group}: there already")
        return
    found = Found()
    if not job.is_raw:
        found = _copy(job, None)
    if job.group.exists():
        shutil.rmtree(job.group)
    excerpts.write_link(job.group, job.excerpt)
    say(f"{job.group}: {_sizes(job)}, linked to {job.excerpt.source}{found.text(job)}")


def _write(job: Import, *, overwrite: bool, say: Say) -> None:
    """Write a volume, or what is left of it."""
    attributes = read_attributes(job.group) if job.group.exists() and not overwrite else {}
    is_ours = attributes.get(IMPORTED) == job.excerpt.record
    if is_ours and "multiscales" in attributes:
        say(f"{job.group}: there already")
        return
    if job.is_raw:
        _write_raw(job, goes_on=is_ours and UNFINISHED in attributes)
        found = Found()
    else:
        found = _write_labels(job)
    say(f"{job.group}: {_sizes(job)}{found.text(job)}")


def _write_raw(job: Import, *, goes_on: bool) -> None:
    if goes_on:
        array = zarr.open_group(str(job.group), mode="r+")["s0"]
    else:
        array = _started(job, job.group)
    _copy(job, array)
    grid = job.level.grid
    ngff.finish_multiscale(job.group, grid, ngff.pyramid(grid), ngff.block_mean)


def _write_labels(job: Import) -> Found:
    """Write labels aside, so that a crop has whole ones only; what they hold."""
    begun = _store(job) / BEGUN
    try:
        found = _copy(job, _started(job, begun))
        if _code_of_unknown(job.excerpt) != 0:
            _count_in_metadata(begun, found)
        ngff.finish_multiscale(begun, job.level.grid, [], ngff.pick)
        shutil.rmtree(job.group, ignore_errors=True)
        job.group.parent.mkdir(parents=True, exist_ok=True)
        begun.rename(job.group)
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    return found


def _started(job: Import, group: Path) -> zarr.Array:
    """An empty array for a volume."""
    about = {IMPORTED: job.excerpt.record, **job.excerpt.annotation}
    dtype = job.level.array.dtype
    return ngff.start_multiscale(group, job.level.grid, dtype, job.chunks, attributes=about)


def _store(job: Import) -> Path:
    return next(folder for folder in job.group.parents if folder.suffix == ".zarr")


def _sizes(job: Import) -> str:
    return f"{voxels(job.excerpt.shape)} voxels of {nm(job.excerpt.voxel_size)} nm"


def _copy(job: Import, array: zarr.Array | None) -> Found:
    """Write the finest level, of raw what an earlier call left; look through labels.

    array: None only looks.
    """
    found = Found()

    def is_done(bar: Bar) -> bool:
        # what labels hold is counted from their first voxel on
        return job.is_raw and copying.is_written(array, job.group / "s0", bar)

    def write(bar: Bar, block: np.ndarray) -> None:
        taken = job.excerpt.taken(block)
        if not job.is_raw:
            found.look(job, block, taken)
        if array is not None:
            copying.put(array, bar, taken)

    name = job.group.name
    copying.copy(job.stored, job.chunks, write, is_done=is_done, scratch=_store(job), what=name)
    if not job.is_raw:
        found.note(job)
    return found


# What labels hold


@dataclass
class Found:
    """What was met in labels; in raw nothing is looked at."""

    values: set[int] = field(default_factory=set)
    """Of the source; those of a class of objects are not collected."""
    voxels: int = 0
    absent: int = 0
    unknown: int = 0

    def look(self, job: Import, block: np.ndarray, taken: np.ndarray) -> None:
        """Count a block. Raises UserError for labels that look like raw.

        Args:
            job: whose it is.
            block: as it is in the source.
            taken: what is made of it.
        """
        name = job.group.name
        refuse_raw(block, name, job.source.path)
        if job.excerpt.kind == SEMANTIC:
            self.values.update(np.unique(block).tolist())
            _refuse_ids(job, len(self.values))
        code = _code_of_unknown(job.excerpt)
        self.voxels += taken.size
        if code is not None:
            self.unknown += int(np.count_nonzero(taken == code))
        if code != 0:
            self.absent += int(np.count_nonzero(taken == 0))

    @property
    def positive(self) -> int:
        """Voxels of the class."""
        return self.voxels - self.absent - self.unknown

    def text(self, job: Import) -> str:
        """How much of the volume is the class, behind a comma."""
        if not self.voxels:
            return ""
        name = job.group.name
        unknown = f", {self.unknown / self.voxels:.2%} unknown" if self.unknown else ""
        return f", {self.positive / self.voxels:.2%} {name}{unknown}"

    def note(self, job: Import) -> None:
        """Say what stands out."""
        name = job.group.name
        path = job.source.path
        where = f"{job.group.parent.name}/{name}"
        if self.positive <= 0:
            note(f"{where}: no voxel of {name} in it; all of it is known to be something else")
        if job.excerpt.kind == INSTANCE:
            return
        is_named = {0, *job.excerpt.values, *job.excerpt.unknown, *job.others}
        others = sorted(self.values - is_named)
        if job.excerpt.values:
            if job.others and others:
                note(
                    f"{path}: values {some(list(map(str, others)))} are not in --values, and were "
                    "taken for background"
                )
        elif len(others) > 1:
            note(
                f"{path}: {len(others)} values besides 0, all of them taken for {name}; if they "
                f"are ids of objects, write --instances {name}, if they are classes "
                f"{name}={path.name}#value=1 and so on, and if one of them means that nobody knows "
                f"--unknown {others[-1]}"
            )


def _refuse_ids(job: Import, different: int) -> None:
    """Raises UserError for more values than classes have."""
    if different > MOST_IDS:
        name = job.group.name
        raise UserError(
            f"{job.source.path}: more than {MOST_IDS} different values for class {name}, which "
            f"look like raw or like ids of objects; write --instances {name} if they are ids"
        )


def _code_of_unknown(excerpt: Excerpt) -> int | None:
    """The value of unknown in what is written."""
    encoding: dict[str, Any] = excerpt.annotation["cellmap"]["annotation"]["annotation_type"]
    return encoding.get("encoding", {}).get("unknown")


def _count_in_metadata(group: Path, found: Found) -> None:
    """Write the counts of voxels, by which chunks that are lost later are noticed."""
    opened = zarr.open_group(str(group), mode="r+")
    about = opened.attrs["cellmap"]
    about["annotation"]["complement_counts"] = {"absent": found.absent, "unknown": found.unknown}
    opened.attrs["cellmap"] = about

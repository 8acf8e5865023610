"""Bring volumes of any kind into the challenge's layout under a data root: raw, and labels.

They are written, or linked to. What a volume was made from stands in its attributes (IMPORTED), or
in its link: the same command goes on with one that was begun, leaves alone one that is whole, and
refuses what is another's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from common.classes import ATOM_IDS, GROUP_ATOMS
from common.config.load import data_root
from common.data.own import boxes as own_boxes
from common.data.own import cut, orientation, standing, writing
from common.data.own.jobs import Import
from common.data.own.labels import Named, named
from common.data.own.standing import IMPORTED, StandingLabels
from common.data.volumes import layout, ngff
from common.data.volumes.annotation import encoding_of
from common.data.volumes.box import Box, overlap
from common.data.volumes.level import Grid, Level, box_text
from common.data.volumes.metadata import UNFINISHED, read_attributes
from common.data.volumes.placement import are_same_voxels, check_crop, is_same_size
from common.data.volumes.sources.excerpt import (
    INSTANCE,
    OF_FLOATS,
    RAW,
    SEMANTIC,
    Excerpt,
    is_link,
    read_link,
)
from common.data.volumes.sources.place import bare, is_address, on_disk, split, with_voxel_size
from common.errors import UserError
from common.files import alone, free_name
from common.talk import Say, command_line, count, lengths, nearest, nm, note_once, voxels

LOCK = ".import.lock"


@dataclass(frozen=True)
class Labelling:
    """The labels that are imported, as a command names them."""

    volumes: Mapping[str, str | Named] = field(default_factory=dict)
    """The volume of each class, on the voxels of the raw or at its own translation; with the values
    of the class in one that holds several, see `common.data.own.labels`."""
    instances: Sequence[str] = ()
    """The classes whose values are ids of objects."""
    unknown: int | None = None
    """The value of voxels in all of them of which nobody knows what they are."""
    crops: Sequence[str] = ()
    """Boxes of the labels, in their voxels: "z0:z1,y0:y1,x0:x1"; all of them unless given. They
    become crop1, crop2, ...; those on the voxels of a crop that is there, classes of it."""
    blocks: str = ""
    """Into how many blocks each of these is cut, which become crops instead."""
    gap: int | None = None
    """Voxels between blocks; see `common.data.own.boxes`."""

    def check(self) -> None:
        """Raises UserError for options without labels."""
        numbers = {self.unknown, self.gap} - {None}
        if not self.volumes and (numbers or any((*self.crops, *self.instances, self.blocks))):
            raise UserError(
                "--crop, --blocks, --gap, --unknown and --instances are of labels; write --labels "
                "CLASS=FILE, too"
            )


@dataclass(frozen=True)
class Manner:
    """How volumes are brought into a dataset."""

    voxel_size: tuple[float, ...] | None = None
    """nm, of all volumes that do not say theirs."""
    link: bool = False
    """Refer to the volumes where they are, instead of copying them."""
    overwrite: bool = False
    """Replace what is there."""


def import_data(
    raw: str,
    dataset: str,
    labelling: Labelling = Labelling(),
    manner: Manner = Manner(),
    *,
    data: str | Path | None = None,
    say: Say = print,
) -> Path:
    """Bring raw and labels into a dataset; returns its store. In the memory of a few blocks.

    Args:
        raw: see `common.data.volumes.sources.place`.
        dataset: its name.
        labelling: the labels.
        manner: how they are brought there.
        data: data root.
        say: takes a line about what is written.

    Raises:
        FileNotFoundError: for a volume that is not there.
        UserError: for what is wrong with a volume, and what contradicts a dataset that is there.
    """
    root = data_root(data)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", dataset):
        raise UserError(f"--dataset {dataset}; write a name of letters, digits, _ and -")
    store = root / layout.store(dataset)
    plan = _planned(raw, labelling, manner, store)
    _in_place(plan, store, manner)  # what is wrong is said before anything is made
    store.mkdir(parents=True, exist_ok=True)
    busy = f"{store}: another import is writing it ({{holder}}); wait for its end"
    with alone(store / LOCK, otherwise=busy):
        _bring(plan, store, manner, say)
    return store


def _bring(plan: Sequence[Import], store: Path, manner: Manner, say: Say) -> None:
    """Write all volumes, or links to them, and remove the labels that they replace."""
    # anew, since another import may have written since
    jobs, replaced = _in_place(plan, store, manner)
    make = writing.link if manner.link else writing.write
    for job in jobs:
        make(job, overwrite=manner.overwrite, say=say)
        if not job.is_raw:
            # experiments train on these
            cut.copy_again(job.group, say)
    standing.drop(replaced, [job.group for job in jobs])


def say_next(dataset: str, store: Path, data: str | Path | None, *, say: Say) -> None:
    """Say the commands that make something of the crops of a dataset.

    store: of the dataset. data: data root that its import was given.
    """
    root = data_root(data)
    labels = standing.labels_of(store)
    crops = {label.crop for label in labels}
    classes = ",".join(dict.fromkeys(label.name for label in labels))
    scale = lengths(labels[0].grid.scale)
    where = None if root == data_root() else root
    say(f"{dataset}: {count(len(crops), 'crop')}")
    say(f"next: {command_line('new', free_name('my_experiment'), own=dataset, data=where)}")
    # crops of one dataset are all on one side otherwise
    options = {"data": where, "classes": classes, "scale": scale, "by": "crop"}
    command = command_line("make-datasplit", "EXPERIMENT/datasplit.csv", **options)
    say(f"or, for an EXPERIMENT that is there, the crops of all datasets:\n  {command}")


# What is imported


def _planned(raw: str, labelling: Labelling, manner: Manner, store: Path) -> list[Import]:
    """Return all imports, those of labels first: their faults are said before raw is copied."""
    labelling.check()
    labels = _named_labels(labelling)
    level = _opened(raw, manner.voxel_size)
    of_raw = _raw_imports(raw, level, store, manner=manner, is_alone=not labels)
    # before anything about labels is: another raw has others
    _refuse(of_raw, store, manner)
    size = manner.voxel_size
    of_labels = _label_imports(labels, level, store, labelling=labelling, size=size)
    return [*of_labels, *of_raw]


def _in_place(
    plan: Sequence[Import], store: Path, manner: Manner
) -> tuple[list[Import], list[StandingLabels]]:
    """Return the imports where they belong, and the labels that they replace. Raises UserError."""
    of_labels = [job for job in plan if not job.is_raw]
    of_raw = [job for job in plan if job.is_raw]
    placed, replaced = _in_crops(of_labels, store, manner.overwrite)
    _refuse([*placed, *of_raw], store, manner)
    return [*placed, *of_raw], replaced


def _named_labels(labelling: Labelling) -> dict[str, Named]:
    """Return the labels of each class. Raises UserError where options are at odds."""
    instances = labelling.instances
    unknown = labelling.unknown
    absent = [name for name in instances if name not in labelling.volumes]
    if labelling.volumes and absent:
        raise UserError(f"--instances {','.join(absent)}: no such class in --labels")
    labels = {}
    for name, text in labelling.volumes.items():
        _check_name(name)
        label = text if isinstance(text, Named) else named(text)
        if unknown is not None:
            label = replace(label, unknown=tuple(dict.fromkeys([unknown, *label.unknown])))
        if label.values and name in instances:
            raise UserError(
                f"{label.text}: one value is no objects; write --instances without {name}"
            )
        twice = set(label.values) & set(label.unknown)
        if twice:
            raise UserError(f"{label.text}: {min(twice)} is {name} and unknown; write it once")
        labels[name] = label
    return labels


def _check_name(name: str) -> None:
    """The name of a class is a folder's, and stands between commas in a datasplit."""
    table = {known.lower(): known for known in (*ATOM_IDS, *GROUP_ATOMS)}
    known = table.get(nearest(name.lower(), table, 0.8), name)
    if known != name and name not in table.values():
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
    labelling: Labelling,
    size: tuple[float, ...] | None,
) -> list[Import]:
    """Return the labels of each box and class. Raises UserError before anything is written."""
    boxes = (labelling.crops, labelling.blocks, labelling.gap)
    jobs = []
    first: Level | None = None
    for name, given in labels.items():
        level = _placed(_opened_beside(given.text, size, raw), raw)
        _check_labels(level, name, given)
        label = _with_unknown(level, name, given)
        first = first or level
        if not are_same_voxels(level.grid, first.grid):
            raise UserError(
                f"{level.path}: {_grid_text(level.grid)}, and {first.path} "
                f"{_grid_text(first.grid)}; the classes of a crop share one grid"
            )
        kind = INSTANCE if name in labelling.instances else SEMANTIC
        whole = _import_of(level, label, own_boxes.whole(level), kind=kind, group=store / name)
        orientation.note_turned(level, whole.excerpt, raw)
        for number, box in enumerate(own_boxes.boxes(level, *boxes), 1):
            # another one where it belongs to a crop that is there, see `_in_crops`
            crop = store / layout.LABELS / f"crop{number}"
            job = _import_of(level, label, box, kind=kind, group=crop / name)
            check_crop(level.path, job.level, raw, raw.scale)
            jobs.append(job)
    return jobs


def _in_crops(
    jobs: Sequence[Import], store: Path, overwrite: bool
) -> tuple[list[Import], list[StandingLabels]]:
    """Return the imports of labels in the crops they belong to, and the labels they replace.

    Raises UserError for a class of which a part is there already, unless it is to be replaced.
    """
    present = standing.labels_of(store)
    replaced = []
    for job in jobs:
        name = job.group.name
        over = standing.overlapped(present, name, job.level.grid)
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
    _say_shared(placed, [labels for labels in present if labels.group not in gone])
    return placed, replaced


def _say_shared(jobs: Sequence[Import], present: Sequence[StandingLabels]) -> None:
    """Note the crops that lie in part on the voxels of others."""
    for job in jobs:
        crop = job.group.parent
        for labels in present:
            if labels.crop != crop and overlap(labels.grid.box(), job.level.grid.box()):
                note_once(
                    f"{crop.name} has voxels of {labels.crop.name}, where {labels.name} is "
                    f"annotated; a network of both classes learns more where {job.group.name} is "
                    "imported on the box of that crop"
                )


def _refuse(jobs: Sequence[Import], store: Path, manner: Manner) -> None:
    """Raises UserError for what would be written over itself, or over something else."""
    for job in jobs:
        source = on_disk(Path(job.excerpt.source))
        if not is_address(source) and source.is_relative_to(store.absolute()):
            raise UserError(
                f"{job.excerpt.source}: lies in {store}, which is to be written; take another "
                "--dataset"
            )
        if not manner.overwrite:
            _refuse_others(job, manner.link)


def _raw_imports(
    raw: str, level: Level, store: Path, *, manner: Manner, is_alone: bool
) -> list[Import]:
    """Return the import of raw; none where labels are added to one that stands, also as a link."""
    group = store / layout.RAW
    job = _import_of(level, Named(raw), own_boxes.whole(level), kind=RAW, group=group)
    is_itself = Path(job.excerpt.source) == group.absolute()
    in_other_form = not manner.overwrite and is_link(group) != manner.link and _is_there(job)
    return [] if not is_alone and (is_itself or in_other_form) else [job]


def _is_there(job: Import) -> bool:
    """Return whether a volume was written, or is linked to, as it would be now."""
    if not job.group.exists():
        return False
    if is_link(job.group):
        return read_link(job.group) == job.excerpt
    attributes = read_attributes(job.group)
    return job.is_from(attributes.get(IMPORTED)) and UNFINISHED not in attributes


def _import_of(level: Level, label: Named, box: Box, *, kind: str, group: Path) -> Import:
    """Return a box of a volume as it will be imported."""
    location, _ = split(label.text)
    excerpt = Excerpt(
        source=location if is_address(location) else str(Path(location).absolute()),
        first=tuple(box.start.tolist()),
        shape=tuple(box.shape.tolist()),
        voxel_size=tuple(level.scale.tolist()),
        translation=tuple(level.grid.part(box).origin.tolist()),
        kind=kind,
        values=label.values,
        unknown=label.unknown,
    )
    return Import(level, excerpt, group, label.others)


def _opened(text: str, voxel_size: tuple[float, ...] | None) -> Level:
    """Return the finest level of a volume; the voxel size is for one that does not say its own."""
    try:
        level = ngff.open_levels(text)[0]
    except UserError:
        if voxel_size is None or "voxel_size=" in text:
            raise
        return ngff.open_levels(with_voxel_size(text, voxel_size))[0]
    if voxel_size is None or "voxel_size=" in text:
        return level
    if not is_same_size(level.scale, voxel_size):
        note_once(
            f"{level.path}: says voxels of {nm(level.scale)} nm itself, and --voxel-size is for "
            "volumes that say none; where it is wrong, write "
            f"{bare(level.path).name}#voxel_size={lengths(voxel_size)}"
        )
    return level


def _opened_beside(text: str, voxel_size: tuple[float, ...] | None, raw: Level) -> Level:
    """Return the finest level of labels.

    Labels that do not say their voxel size have that of the raw, if they have as many voxels.
    """
    try:
        return _opened(text, voxel_size)
    except UserError:
        level = _opened(text, tuple(raw.scale.tolist()))
        if (level.shape != raw.shape).any():
            raise
    return level


def _placed(label: Level, raw: Level) -> Level:
    """Return labels where they are. Raises UserError for those of which nobody says it."""
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
    name = bare(label.path).name
    raise UserError(
        f"{label.path}: {_grid_text(label.grid)}, and the raw {_grid_text(raw.grid)}; "
        f"{_if_they_cover(label, raw, name)}write where "
        f"its first voxel lies, in nm, behind its name: {name}#translation={where}"
    )


def _if_they_cover(label: Level, raw: Level, name: str) -> str:
    """Return what to write if labels cover the raw in larger voxels, or lie with their axes turned.

    "" where they cannot.
    """
    if (label.shape != raw.shape).any() and (label.shape == raw.shape[::-1]).all():
        return "if its axes are stored in the order x, y, z, write it again as z, y, x; else "
    factor = np.rint(raw.shape / label.shape)
    beyond = np.abs(label.shape * factor - raw.shape)
    if (factor < 1).any() or (beyond >= factor).any():
        return ""
    size = lengths(factor * raw.scale)
    return f"if they cover the raw, write the size of their voxels: {name}#voxel_size={size}; else "


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


def _with_unknown(level: Level, name: str, label: Named) -> Named:
    """Labels with the value that their own metadata call unknown, which is said.

    Raises UserError where the background is not 0 by them.
    """
    encoding = encoding_of(level, name)
    if encoding.absent and not label.values:
        raise UserError(
            f"{level.path}: its metadata say that {encoding.absent} is background, and what is "
            f"imported has 0 there; write the values of the class, {name}={label.text}#value=1, or "
            "labels with 0"
        )
    value = encoding.unknown
    if value is None or value in (*label.values, *label.unknown, *label.others):
        return label
    note_once(f"{level.path}: {value} is unknown by its metadata")
    return replace(label, unknown=(*label.unknown, value))


def _grid_text(grid: Grid) -> str:
    return f"has {voxels(grid.shape)} voxels of {nm(grid.scale)} nm"


# What is there already


def _refuse_others(job: Import, link: bool) -> None:
    """Raises UserError where something else is in the place of a volume."""
    if not job.group.exists():
        return
    if is_link(job.group):
        stands = read_link(job.group)
        if stands == job.excerpt and link:
            return
        what = f"a link to {stands.source}, in another way or place"
    else:
        attributes = read_attributes(job.group)
        record = attributes.get(IMPORTED)
        # what another call began and did not end is nothing yet
        is_begun = record is not None and UNFINISHED in attributes
        is_same = job.is_from(record) and not link
        is_edited = is_same and not is_begun and job.is_edited_since(record)
        if is_edited and job.is_raw:
            # which is told: to add labels, or an array to the file of raw, is far more usual
            note_once(
                f"{job.group}: stays, though {job.excerpt.source} was written anew since; if that "
                "is other raw by now, write --overwrite"
            )
            return
        if is_begun or (is_same and not is_edited):
            return
        what = "not written by import-data"
        if is_edited:
            what = f"written from {job.excerpt.source} before that was edited"
        elif isinstance(record, dict):
            what = f"written from {record['from']}, in another way or place"
    instead = f", or, to add labels, write {job.group} for RAW" if job.is_raw else ""
    raise UserError(
        f"{job.group}: there already, {what}; take another --dataset, "
        f"or write --overwrite to replace it{instead}"
    )

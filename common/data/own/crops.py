"""Look at the annotated crops of a user's own datasets, and choose which of them validate."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.classes import ATOM_IDS, GROUP_ATOMS
from common.data.own.cut import Cut, choose_cut, cut_crop, standing_cut
from common.data.own.facts import LabelFacts, look
from common.data.splits import catalogue
from common.data.splits.balanced import Sides
from common.data.splits.catalogue import CropInfo
from common.data.splits.choose_sides import SplitRules, choose_sides, group_numbers
from common.data.volumes import layout
from common.data.volumes.box import around
from common.data.volumes.ngff import open_levels
from common.errors import UserError, refuse
from common.talk import count, progress, some, voxels

FEW = 4
"""Groups of crops below which none is given away: each crop is cut in two instead."""
# of three crops a third would not train; of two one half

SPARSE = 0.25
"""Part of a crop in which all labels lie, below which the rest may not be annotated at all."""

FEW_PLANES = 3
MOSTLY = 0.75
"""Planes with labels and none beside them, and their part of those with labels, from which only
some planes may have been annotated."""


@dataclass(frozen=True)
class OwnCrop:
    """An annotated crop, looked at."""

    info: CropInfo
    folder: Path
    labels: tuple[LabelFacts, ...]


@dataclass(frozen=True)
class Division:
    """Which crops train and which validate."""

    sides: Sides
    why: str
    """A sentence."""


def read_crops(root: Path, datasets: Sequence[str], classes: Collection[str] = ()) -> list[OwnCrop]:
    """Return the crops of datasets under a data root, every label read once.

    Classes without a voxel in any crop are left out.

    Args:
        root: the data root.
        datasets: names or patterns.
        classes: those that are wanted; all that are annotated unless given.

    Raises:
        FileNotFoundError: without a data root, or a crop in it.
        UserError: for a dataset or class that is not there, and for labels that cannot be read.
    """
    infos, broken = catalogue.scan(root, datasets)
    folders = layout.crop_folders(root)
    refuse(broken)
    annotated = set().union(*(info.classes for info in infos))
    missing = [name for name in classes if name not in annotated]
    if missing:
        raise UserError(
            f"--classes {','.join(missing)}: not annotated in {','.join(datasets)}; write some of "
            f"{', '.join(in_order(annotated))}"
        )
    crops = []
    with progress(len(infos), "looking at labels", unit="crop") as bar:
        for info in infos:
            names = in_order(info.classes & set(classes or annotated))
            levels = {name: open_levels(folders[info.key] / name)[0] for name in names}
            labels = tuple(look(level, name) for name, level in levels.items())
            crops.append(OwnCrop(info, folders[info.key], labels))
            bar.update()
    return _without_empty(crops, datasets)


def in_order(names: Collection[str]) -> list[str]:
    """Return classes in the order of the challenge's table, those of one's own after them."""
    table = [*ATOM_IDS, *GROUP_ATOMS]
    of_the_table = [name for name in table if name in names]
    return of_the_table + sorted(set(names).difference(table))


def labels_by_class(crops: Sequence[OwnCrop]) -> dict[str, list[LabelFacts]]:
    """Return the facts of all crops by class, with the classes as `in_order` sorts them."""
    labels: dict[str, list[LabelFacts]] = {}
    for crop in crops:
        for facts in crop.labels:
            labels.setdefault(facts.name, []).append(facts)
    return {name: labels[name] for name in in_order(labels)}


def positives(labels: Sequence[LabelFacts]) -> int:
    """Return the number of positive voxels of all of them."""
    return sum(facts.positives for facts in labels)


def _without_empty(crops: Sequence[OwnCrop], datasets: Sequence[str]) -> list[OwnCrop]:
    """Return the crops with those of their classes that occur anywhere."""
    by_class = labels_by_class(crops)
    present = [name for name, labels in by_class.items() if positives(labels)]
    if not present:
        annotated = ", ".join(by_class) or "no class"
        raise UserError(
            f"{','.join(datasets)}: nothing is labelled in {count(len(crops), 'crop')} "
            f"({annotated}): all voxels are 0 or unknown; look at the label files"
        )
    kept = []
    for crop in crops:
        labels = tuple(facts for facts in crop.labels if facts.name in present)
        info = replace(crop.info, classes=frozenset(facts.name for facts in labels))
        if labels:
            kept.append(replace(crop, info=info, labels=labels))
    return kept


def unlabelled_rest(crop: OwnCrop) -> str:
    """Return a sentence where all labels lie in a small part of a crop; "" elsewhere.

    0 is background that is known: of a volume that was annotated in a box alone everything around
    it would teach that nothing is there.
    """
    boxes = [facts.box() for facts in crop.labels if facts.positives]
    unknown = any(facts.knowns < math.prod(facts.level.shape) for facts in crop.labels)
    shapes = {tuple(facts.level.shape.tolist()) for facts in crop.labels}
    if not boxes or unknown or len(shapes) > 1:
        return ""
    low, high = around(boxes)
    [shape] = shapes
    extent = (high - low).tolist()
    if math.prod(extent) > SPARSE * math.prod(shape):
        return ""
    sides = ",".join(f"{a}:{b}" for a, b in zip(low, high, strict=True))
    return (
        f"{crop.info.path}: all labels lie in {voxels(extent)} of its {voxels(shape)} voxels; "
        "where the rest was not annotated, which a 0 does not say, import the volume again with "
        f"--crop {sides} --overwrite"
    )


def single_planes(crop: OwnCrop) -> str:
    """Return a sentence where labels lie in planes by themselves, as every tenth; "" elsewhere.

    Objects are thicker than a section: there only these planes were annotated, and the 0 between
    them would teach that objects end at each.
    """
    shapes = {tuple(facts.level.shape.tolist()) for facts in crop.labels}
    unknown = any(facts.knowns < math.prod(facts.level.shape) for facts in crop.labels)
    if unknown or len(shapes) > 1:
        return ""
    for axis in range(3):
        planes = np.any([facts.positive[axis] > 0 for facts in crop.labels], axis=0)
        beside = np.append(planes[1:], False) | np.append(False, planes[:-1])
        alone = np.flatnonzero(planes & ~beside)
        if len(alone) >= max(FEW_PLANES, MOSTLY * np.count_nonzero(planes)):
            boxes = [_plane(axis, plane) for plane in alone[:2].tolist()]
            return (
                f"{crop.info.path}: labels lie in single planes along {'zyx'[axis]} "
                f"({some(list(map(str, alone.tolist())))}), and between them all is 0, which is "
                "background that is known; where only these planes were annotated, import them as "
                f"crops: --crop {' --crop '.join(boxes)} and so on, with --overwrite"
            )
    return ""


def _plane(axis: int, plane: int) -> str:
    """Return a plane as --crop names it."""
    sides = [":"] * 3
    sides[axis] = f"{plane}:{plane + 1}"
    return ",".join(sides)


# Sides


def divide(crops: Sequence[OwnCrop], scale: Sequence[float]) -> Division:
    """Return which crops train and which validate; writes the parts of crops that are cut.

    Specimens are kept apart where there are several, crops where there are several of one; few
    crops are cut. scale: voxel size of the run in nm.

    Raises UserError where no crop can be used.
    """
    infos = [crop.info for crop in crops]
    classes = tuple(labels_by_class(crops))
    specimens = {info.specimen for info in infos}
    by = "specimen" if len(specimens) >= FEW else "crop"
    if by == "specimen" or len(crops) >= FEW:
        sides = _sides_where_classes_occur(crops, SplitRules(classes, tuple(scale), by=by))
        kept = [info.path for usage, info in sides if usage == "validate"]
        verb = "validates" if len(kept) == 1 else "validate"
        return Division(sides, f"{some(kept, most=5)} {verb}; the others train")
    return _cut_each(crops)


def _sides_where_classes_occur(crops: Sequence[OwnCrop], rules: SplitRules) -> Sides:
    """Choose the sides of crops as if each annotated only the classes that occur in it.

    A crop without a voxel of any class is known background. It goes to the side of its group, since
    a group may not stand on both sides, and trains if it is alone in its group.
    """
    occurring = []
    for crop in crops:
        present = frozenset(facts.name for facts in crop.labels if facts.positives)
        occurring.append(replace(crop.info, classes=present))
    usages = {info.key: usage for usage, info in choose_sides(occurring, rules)}
    groups = group_numbers(occurring, rules.by).tolist()
    usage_of_group = {}
    for group, info in zip(groups, occurring, strict=True):
        if info.key in usages:
            usage_of_group[group] = usages[info.key]
    sides = []
    for group, info, crop in zip(groups, occurring, crops, strict=True):
        if not info.classes:
            sides.append((usage_of_group.get(group, "train"), crop.info))
        elif info.key in usages:
            sides.append((usages[info.key], crop.info))
    return sorted(sides, key=lambda side: side[0] == "validate")


def _cut_each(crops: Sequence[OwnCrop]) -> Division:
    sides: Sides = []
    said = []
    for crop in crops:
        others = [other.info for other in crops if other is not crop]
        sharing = [info for info in others if info.overlaps(crop.info)]
        if sharing:
            sides.append(("train", crop.info))
            said.append(
                f"{crop.info.path} shares voxels with {sharing[0].path} and trains, since parts of "
                "both could lie on either side; import their classes on the same boxes"
            )
            continue
        cut = standing_cut(crop.folder, crop.labels) or choose_cut(crop.labels)
        if cut is None:
            sides.append(("train", crop.info))
            said.append(f"{crop.info.path} is too small to be cut and trains")
            continue
        folders = cut_crop(crop.folder, cut, crop.labels)
        for usage, folder in folders.items():
            sides.append((usage, _part(crop, cut, usage, folder)))
        said.append(f"{crop.info.path} is cut: {cut}")
    sides.sort(key=lambda side: side[0] == "validate")
    if sides[-1][0] == "train":
        said.append("nothing validates, so the last weights are taken for the best")
    return Division(sides, "; ".join(said))


def _part(crop: OwnCrop, cut: Cut, usage: str, folder: Path) -> CropInfo:
    info = crop.info
    start, stop = cut.box(usage, np.array(info.shape))
    origin = np.array(info.translation) + start * info.voxel_size
    return replace(
        info,
        name=folder.name,
        translation=tuple(origin.tolist()),
        shape=tuple((stop - start).tolist()),
    )

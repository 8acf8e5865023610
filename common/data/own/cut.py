"""Cut one annotated crop in two, a gap apart: one part trains and the other validates.

Of two blocks side by side the voxels at the seam are nearly the same, so that a network would be
validated on what it has seen. The cut is made across one axis, near one of its ends, where both
parts hold the classes in the most similar amounts. The parts are crops of their own beside the one
that they are copies of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.crops.parts import box_of, is_outdated
from common.data.own.facts import LabelFacts
from common.data.own.standing import IMPORTED, is_imported
from common.data.splits.catalogue import CUT, PARTS
from common.data.volumes import ngff
from common.data.volumes.annotation import POSSIBILITIES, encoding_of
from common.data.volumes.box import Box, boxes, slices
from common.data.volumes.level import Level
from common.data.volumes.metadata import UNFINISHED, read_attributes
from common.data.volumes.sources import excerpt
from common.talk import Say

VALIDATED = 0.2
"""Part of an axis that validates."""

LEAST_VALIDATED = 16
"""Voxels of the axis that validate, at least: half a patch."""

GAP = 16
"""Voxels between the parts, or a tenth of a short axis."""
# half a patch of 32: no voxel that validates lies in a patch whose centre trains

LEAST_CUT = 48
"""Voxels of an axis that is cut, at least."""

LONGER = 0.2
"""What an axis half as long as the longest costs in the choice."""
# a part across the longest axis is the most compact, and has the least of its voxels at the seam

MISSING = {"validate": 10.0, "train": 1000.0}
"""What a class costs that a part does not have: one that only validates is never learnt."""

CHUNK = 64


@dataclass(frozen=True)
class Cut:
    """Which planes of an axis go to which part."""

    axis: int
    """0, 1, 2 for z, y, x."""
    planes: int
    """Of the whole crop along it."""
    train: slice
    validate: slice

    @property
    def gap(self) -> int:
        """Planes between the parts, which neither has."""
        of_both = [part.stop - part.start for part in (self.train, self.validate)]
        return self.planes - sum(of_both)

    def box(self, usage: str, shape: np.ndarray) -> Box:
        """Return the voxels of a part in a class volume, which may have other voxels."""
        part = self.train if usage == "train" else self.validate
        start = np.zeros(3, int)
        stop = np.array(shape)
        start[self.axis] = round(part.start / self.planes * shape[self.axis])
        stop[self.axis] = round(part.stop / self.planes * shape[self.axis])
        return Box(start, stop)

    def __str__(self) -> str:
        axis = "zyx"[self.axis]
        validated = self.validate.stop - self.validate.start
        return f"{validated} of {self.planes} planes along {axis} validate, {self.gap} are left out"


def choose_cut(labels: Sequence[LabelFacts]) -> Cut | None:
    """Return the cut of a crop with these classes; None where it is too small to be cut."""
    shape = min((facts.level.shape for facts in labels), key=math.prod)
    longest = shape.max()
    candidates = []
    for axis in range(3):
        if shape[axis] >= LEAST_CUT:
            candidates += _cuts(axis, int(shape[axis]))
    if not candidates:
        return None

    def cost(cut: Cut) -> float:
        shorter = math.log2(longest / cut.planes)
        # rounded, so that it orders alike on every machine
        return round(sum(_unlike(cut, facts) for facts in labels) + LONGER * shorter, 9)

    return min(candidates, key=cost)


def standing_cut(crop: Path, labels: Sequence[LabelFacts]) -> Cut | None:
    """Return the cut of the parts that a crop has already; None if its labels changed since.

    The cut stays when classes are added: with another one, an experiment that was trained on these
    parts would be validated on voxels that it was trained on.
    """
    for facts in labels:
        boxes_of_parts = {}
        for usage, name in PARTS.items():
            group = crop.with_name(name.format(crop=crop.name)) / facts.name
            part = box_of(group)
            if part is not None and read_attributes(group)[CUT] == _record(facts.level, part):
                boxes_of_parts[usage] = part
        if len(boxes_of_parts) == len(PARTS):
            shape = facts.level.shape
            axis = int(np.argmax(boxes_of_parts["train"].shape != shape))
            planes = {}
            for usage, part in boxes_of_parts.items():
                planes[usage] = slice(int(part.start[axis]), int(part.stop[axis]))
            return Cut(axis, int(shape[axis]), **planes)
    return None


def cut_crop(crop: Path, cut: Cut, labels: Sequence[LabelFacts]) -> dict[str, Path]:
    """Write the parts of a crop beside it; returns their folders by their usage.

    A part that is there already, of the same labels, is left alone.
    """
    folders = {}
    for usage, name in PARTS.items():
        folder = crop.with_name(name.format(crop=crop.name))
        for facts in labels:
            part = cut.box(usage, facts.level.shape)
            _copy(facts.level, facts.name, part, folder / facts.name)
        folders[usage] = folder
    return folders


def copy_again(group: Path, say: Say) -> None:
    """Write the parts of a class anew that are copies of voxels which it has no longer.

    Parts of a class that is not cut, and those that are up to date, stay.

    Args:
        group: the class in the whole crop, as it was written now.
        say: takes a line about each part that is written.
    """
    level = ngff.open_levels(group)[0]
    for name in PARTS.values():
        target = group.parent.with_name(name.format(crop=group.parent.name)) / group.name
        part = box_of(target)
        if part is None:
            continue
        if (part.stop <= level.shape).all() and _copy(level, group.name, part, target):
            say(f"{target}: written anew, a part of {group.parent.name}")


def _cuts(axis: int, planes: int) -> list[Cut]:
    """Return the cuts at both ends of an axis."""
    validated = max(round(VALIDATED * planes), LEAST_VALIDATED)
    gap = min(GAP, planes // 10)
    trained = planes - validated - gap
    at_the_end = Cut(axis, planes, slice(0, trained), slice(trained + gap, planes))
    at_the_start = Cut(axis, planes, slice(validated + gap, planes), slice(0, validated))
    return [at_the_end, at_the_start]


def _unlike(cut: Cut, facts: LabelFacts) -> float:
    """Return how different the parts of a class are: |log of the ratio of its fractions|."""
    if not facts.positives:
        return 0.0
    fractions = []
    for usage in PARTS:
        start, stop = cut.box(usage, facts.level.shape)
        planes = slice(start[cut.axis], stop[cut.axis])
        positive = facts.positive[cut.axis][planes].sum()
        known = facts.known[cut.axis][planes].sum()
        if not positive:
            return MISSING[usage]
        fractions.append(positive / known)
    trained, validated = fractions
    return abs(math.log(trained / validated))


def _copy(level: Level, name: str, part: Box, target: Path) -> bool:
    """Copy a part of a class; return False where it is there as it would be now."""
    record = _record(level, part)
    attributes = read_attributes(target) if target.exists() else {}
    is_there = attributes.get(CUT) == record and UNFINISHED not in attributes
    if is_there and not is_outdated(target, level):
        return False
    grid = level.grid.part(part)
    dtype = np.dtype(level.array.dtype).newbyteorder("=")
    if dtype.kind == "b":
        dtype = np.dtype(np.uint8)
    about = {CUT: record, **_annotation(level, name)}
    if is_imported(level.group):
        about[IMPORTED] = record
    array = ngff.start_multiscale(target, grid, dtype, (CHUNK,) * 3, attributes=about)
    for first, last in boxes(grid.shape, array.chunks):
        array[slices(first, last)] = level.read(part.start + first, part.start + last)
    ngff.finish_multiscale(target, grid, [], ngff.pick)
    return True


def _record(level: Level, part: Box) -> dict[str, Any]:
    """Return a record of what a part is a copy of, which differs once labels are written anew."""
    written = [path.stat().st_mtime_ns for path in (level.group, level.path) if path.exists()]
    return {
        "of": f"{level.group.parent.name}/{level.group.name}",
        "first": part.start.tolist(),
        "stop": part.stop.tolist(),
        "written": written,
    }


def _annotation(level: Level, name: str) -> dict[str, Any]:
    """Return what the metadata of a class say of its values; counts, of the whole, are left out."""
    encoding = encoding_of(level, name)
    values = {}
    for possibility in POSSIBILITIES:
        value = getattr(encoding, possibility)
        if value is not None:
            values[possibility] = value
    return excerpt.annotation(values, is_instance=encoding.is_instance)

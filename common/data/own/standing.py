"""Look up what a dataset holds: the crops that new labels belong to, and what they contradict.

A crop is where its voxels are. Labels on the voxels of a crop that is there are further classes of
it, all others become crops of their own, with the lowest numbers that are free.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.volumes import layout
from common.data.volumes.box import overlap
from common.data.volumes.level import Grid
from common.data.volumes.metadata import UNFINISHED, read_attributes
from common.data.volumes.ngff import open_levels
from common.data.volumes.placement import are_same_voxels
from common.data.volumes.sources.excerpt import is_link, read_link
from common.errors import UserError

PART = re.compile(r"(crop\d+)-.*")
"""Crops that `new --own` makes of one."""


IMPORTED = "imported"
"""Attribute of a group that was imported: from what it was written."""


def is_imported(group: Path) -> bool:
    """Return whether a volume of a data root was imported or linked to, and not fetched."""
    return is_link(group) or IMPORTED in read_attributes(group)


@dataclass(frozen=True)
class StandingLabels:
    """The volume of a class of a crop."""

    group: Path
    grid: Grid

    @property
    def name(self) -> str:
        """Of its class."""
        return self.group.name

    @property
    def crop(self) -> Path:
        """Its folder."""
        return self.group.parent


def labels_of(store: Path) -> list[StandingLabels]:
    """Return the labels of all crops of a store, without parts of crops and half-written labels."""
    labels = []
    for group in sorted((store / layout.LABELS).glob("*/*")):
        if not group.is_dir() or PART.fullmatch(group.parent.name):
            continue
        grid = _grid_of(group)
        if grid is not None:
            labels.append(StandingLabels(group, grid))
    return labels


def _grid_of(group: Path) -> Grid | None:
    """Return where a volume is; None for one that is not whole."""
    try:
        if is_link(group):
            link = read_link(group)
            shape = (link.shape[0], link.shape[1], link.shape[2])
            return Grid(np.array(link.translation), np.array(link.voxel_size), shape)
        return open_levels(group)[0].grid
    except (UserError, FileNotFoundError):
        return None  # who reads it says why


class Crops:
    """The crops of a store, and those that are added to it."""

    def __init__(self, store: Path, replaced: Collection[StandingLabels] = ()):
        """Look at a store. replaced: labels that are taken for gone."""
        gone = {labels.group for labels in replaced}
        kept = [labels for labels in labels_of(store) if labels.group not in gone]
        self._folder = store / layout.LABELS
        self._grids = {labels.crop: labels.grid for labels in kept}
        empty = {labels.crop.name for labels in replaced} - {crop.name for crop in self._grids}
        self._taken = set(_names(self._folder)) - empty

    def at(self, grid: Grid) -> Path:
        """Return the folder of the crop of these voxels, which need not exist."""
        for folder, of_crop in self._grids.items():
            if are_same_voxels(of_crop, grid):
                return folder
        number = 1
        while f"crop{number}" in self._taken:
            number += 1
        folder = self._folder / f"crop{number}"
        self._grids[folder] = grid
        self._taken.add(folder.name)
        return folder


def _names(folder: Path) -> Iterator[str]:
    """Iterate over the names of crops in a folder, of parts that of their crop; none only begun."""
    for crop in folder.glob("*"):
        part = PART.fullmatch(crop.name)
        if not _is_begun(crop):
            yield part[1] if part else crop.name


def _is_begun(crop: Path) -> bool:
    """Return whether an import that was killed left nothing but half-written labels in a crop."""
    groups = [group for group in crop.glob("*") if group.is_dir()]
    begun = [group for group in groups if UNFINISHED in read_attributes(group)]
    return bool(groups) and len(begun) == len(groups)


def overlapped(standing: Sequence[StandingLabels], name: str, grid: Grid) -> list[StandingLabels]:
    """Return the standing labels of a class that a new grid overlaps without having its voxels."""
    overlapped = []
    for labels in standing:
        is_beside = labels.name == name and not are_same_voxels(labels.grid, grid)
        if is_beside and overlap(labels.grid.box(), grid.box()):
            overlapped.append(labels)
    return overlapped


def drop(replaced: Collection[StandingLabels], written: Collection[Path]) -> None:
    """Remove labels, and crops that had no others. written: groups that have new ones already."""
    for labels in replaced:
        if labels.group not in written:
            shutil.rmtree(labels.group, ignore_errors=True)
        if labels.crop.is_dir() and not any(labels.crop.iterdir()):
            labels.crop.rmdir()

"""Choose the boxes of volumes that a command works on.

These are crops of the datasplit, of the data root or of the manifest of test crops, or a box of any
volume.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from common.config.settings import TrainConfig
from common.data.splits import catalogue, manifest
from common.data.splits.manifest import Entry
from common.data.splits.split import HELD_OUT, TEST, USAGES, Row, check_files, read_datasplit
from common.data.volumes import layout, ngff
from common.data.volumes.box import Corners, bounds_of, overlap
from common.data.volumes.level import Grid
from common.data.volumes.sources import place
from common.errors import UserError
from common.talk import Say, count, note, some, voxels

FEW_VOXELS = 16
"""Voxels along every axis below which a box may have been meant in voxels, and not in nm."""


ON_CENTRE = 1e-3
"""Of a voxel: a bound that is less beside the centre of one is on it."""


@dataclass(frozen=True)
class Region:
    """A box of a raw volume that is predicted, processed and scored as one."""

    dataset: str
    """Name of the dataset, or of the volume's store."""
    name: str
    """Name of the crop; 'whole' or 'roi_...' for a volume."""
    raw: Path
    """Multiscale group of the raw."""
    lower: np.ndarray
    """(3,) lower corner of the box in nm."""
    upper: np.ndarray
    """(3,) upper corner of the box in nm."""
    truth: Path | None
    """Folder with a multiscale group for each annotated class; None without annotation."""
    classes: tuple[str, ...]
    """The annotated classes; for a test crop the classes to submit; empty for a volume."""
    asked_scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of a test crop, the voxel size in nm that each class is asked for at."""
    label_options: str = ""
    """What is said of all annotated volumes, such as '#voxel_size=8'."""

    def __str__(self) -> str:
        return f"{self.dataset}/{self.name}"

    def truth_of(self, name: str) -> Path:
        """Return the annotated volume of a class."""
        assert self.truth is not None
        return place.class_volume(self.truth, name, self.label_options)

    def folder(self, root: Path) -> Path:
        """Return the folder of this box under `root`, which has one multiscale group per class."""
        return root / f"{self.dataset}.zarr" / self.name


def choose(
    config: TrainConfig,
    crops: str = "validate",
    volume: str | Path = "",
    roi: str = "",
    *,
    manifest_path: str | Path = "",
    with_test: bool = True,
    say: Say = print,
) -> list[Region]:
    """Return the boxes that the options --crops, --volume, --roi and --manifest select.

    Args:
        config: settings of the experiment.
        crops: see `find`; ignored with a volume.
        volume: path of a multiscale group.
        roi: box of the volume, see `of_volume`.
        manifest_path: table of test crops. If it is needed and not given, it is downloaded once,
            into the cache.
        with_test: whether test crops of the data split may be chosen.
        say: called with a line about the download.
    """
    if volume:
        return [of_volume(volume, roi)]
    if roi:
        raise UserError(f"--roi {roi}: a box of what? write --volume too")
    entries: list[Entry] = []
    if manifest_path or "test" in catalogue.words_of(crops):
        entries = manifest.read(manifest_path or manifest.fetch(config.path("cache_path"), say=say))
    return find(config, crops, entries, with_test=with_test)


def find(
    config: TrainConfig,
    crops: str = "validate",
    tests: Sequence[Entry] = (),
    *,
    with_test: bool = True,
) -> list[Region]:
    """Return the crops that a comma-separated list names, each once, in its order.

    "train" and "validate" are the crops of the data split, "*" is both; "held-out" are its test
    crops; "test" are those of the manifest `tests`; anything else is a crop (28, crop28 or
    jrc_hela-2/crop28, with * and ?) of the data split, the manifest or the data root, the first
    that has it. A pattern does not reach test crops of the data split: they are asked for by their
    side or by their name.

    Raises:
        FileNotFoundError: without a data split or a data root.
        UserError: with everything that is not found, and for a test crop of the data split unless
            they may be chosen, `with_test`.
    """
    path = config.path("datasplit_path")
    root = config.path("data_path")
    rows = read_datasplit(path, root, with_test=True)
    held_out = {row.name for row in rows if row.usage == TEST}
    if "test" in catalogue.words_of(crops):
        _note_other_tests(held_out, path)
    chosen: dict[str, Region] = {}
    for word in catalogue.words_of(crops):
        for region in _regions(word, rows, tests, root):
            before = chosen.setdefault(str(region), region)
            _refuse_namesakes(before, region)
    if not with_test:
        _refuse_held_out(crops, held_out & set(chosen), path)
    _note_overlaps([chosen[name] for name in chosen if name in held_out], rows, path)
    if not chosen:
        raise UserError(
            f"{path}: no crop for --crops {crops}; write validate, train, {HELD_OUT}, test, * or "
            "names of crops"
        )
    return list(chosen.values())


def _refuse_namesakes(before: Region, region: Region) -> None:
    """Raise UserError for two crops of one name, whose results would have one folder."""
    places = [os.path.normpath(each.truth or each.raw) for each in (before, region)]
    if places[0] != places[1]:
        raise UserError(
            f"two crops are called {region}, {places[0]} and {places[1]}, and one would take the "
            "place of the other; give the store of one another name, or write it into a datasplit "
            "of its own"
        )


def _note_overlaps(tests: Sequence[Region], rows: Sequence[Row], path: Path) -> None:
    """Note the test crops of a data split that share voxels with crops that train or validate."""
    of_volume: dict[str, list[Region]] = {}
    for region in tests:
        of_volume.setdefault(place.identity(region.raw), []).append(region)
    pairs = []
    for row in rows:
        beside = of_volume.get(place.identity(row.raw), [])
        if row.usage == TEST or not beside:
            continue
        try:
            other = of_row(row)
        except (UserError, FileNotFoundError):
            continue  # not on this machine, and nothing is asked of it here
        for region in beside:
            if overlap((region.lower, region.upper), (other.lower, other.upper)):
                pairs.append(f"{region} and {other.name} ({row.usage})")
    if pairs:
        note(f"{path}: test crops overlap others, which the network may know: {some(pairs)}")


def _note_other_tests(held_out: Collection[str], path: Path) -> None:
    if held_out:
        others = f"the {count(len(held_out), 'test crop')} of {path}: --crops {HELD_OUT}"
        note(f"--crops test are the challenge's; {others}")


def _refuse_held_out(crops: str, held_out: Collection[str], path: Path) -> None:
    """Raise UserError if test crops of a data split are among those that were named."""
    if held_out:
        raise UserError(
            f"--crops {crops}: {some(sorted(held_out))} is held out for test in {path}, and "
            "nothing is chosen by test crops; write others"
        )


def on_disk(root: Path, crops: str = "*") -> list[Region]:
    """Return the annotated crops of a data root that a comma-separated list names, each once.

    Names as of `find`, "*" is all. Raises FileNotFoundError without a data root, UserError for
    names that nothing has, and for those of a data split or manifest.
    """
    chosen: dict[str, Region] = {}
    for word in catalogue.words_of(crops):
        if word in (*USAGES, HELD_OUT, "test"):
            raise UserError(
                f"--crops {word}: of which experiment? write its path, or names of crops"
            )
        present, _ = catalogue.scan(root, *catalogue.patterns_of(word))
        for crop in present:
            region = _of_crop_on_disk(crop, root)
            chosen[str(region)] = region
    return list(chosen.values())


def of_volume(path: str | Path, roi: str = "") -> Region:
    """Return a volume of one's own, whole or a box of it.

    path: of any kind, also an address, see `common.data.volumes.sources.place`. roi:
    "z0:z1,y0:y1,x0:x1" in nm; a bound left out is the volume's.

    Raises:
        FileNotFoundError: without a volume at `path`.
        UserError: for a box that is none or lies outside.
    """
    path = place.absolute_path(path)
    finest = ngff.open_levels(path)[0]
    lower, upper = finest.box()
    dataset = place.store_name(path)
    name = "whole"
    if roi:
        lower, upper = _box_within(path, roi, finest.grid)
        name = "roi_" + box_text(lower, upper).replace(":", "-").replace(",", "_")
        lower, upper = _of_whole_voxels(lower, upper, finest.grid)
        shape = np.ceil((upper - lower) / finest.scale - ON_CENTRE)
        if (shape < np.minimum(finest.shape, FEW_VOXELS)).all():
            note(f"--roi {roi}: a box of {voxels(shape)} voxels, since its bounds are in nm")
    return Region(dataset, name, raw=path, lower=lower, upper=upper, truth=None, classes=())


Work = TypeVar("Work")


def where_scored(
    boxes: Sequence[Region], work: Iterable[Work], classes: Sequence[str], *, task: str
) -> list[tuple[Region, Work]]:
    """Return each box with what is to be done there; boxes with nothing are noted and left out.

    Args:
        boxes: those of a call.
        work: for each box what is to be done there: nothing where no class is scored.
        classes: those asked for.
        task: what is to be done, such as "predict".

    Raises UserError where no box is left.
    """
    names = ", ".join(classes)
    chosen = []
    for region, of_region in zip(boxes, work, strict=True):
        if of_region:
            chosen.append((region, of_region))
        else:
            note(f"{region} is left out, none of {names} is scored there")
    if not chosen:
        raise UserError(
            f"nothing to {task}: none of {names} is scored in these crops; name other classes or "
            "crops"
        )
    return chosen


def box_text(lower: np.ndarray, upper: np.ndarray) -> str:
    """Return a box (nm) as text that --roi accepts."""
    # twelve digits, no exponent: boxes that differ have folders that differ, and 1e7 is no bound
    return ",".join(f"{a:.12g}:{b:.12g}" for a, b in zip(lower, upper, strict=True))


def _box_within(path: Path, roi: str, grid: Grid) -> Corners:
    """Return the part of a volume that --roi names; raises UserError if there is none.

    grid: of the volume's finest voxels.
    """
    lower, upper = grid.box()
    bounds = bounds_of(roi, (lower, upper), float)
    if not bounds:
        raise UserError(f"--roi {roi}; write z0:z1,y0:y1,x0:x1 in nm, such as 0:4000,1000:5000,:")
    low, high = bounds
    if (low >= high).any() or (low >= upper).any() or (high <= lower).any():
        raise UserError(f"--roi {roi}: no box within {path}, which is {box_text(lower, upper)} nm")
    within = np.maximum(low, lower), np.minimum(high, upper)
    cut_off = np.abs(np.array(within) - bounds)
    # less is what rounding of bounds leaves, and counting from the centre of the first voxel
    if (cut_off > np.maximum(1, grid.scale / 2)).any():
        note(f"--roi {roi}: reaches beyond {path}, and is cut to {box_text(*within)}")
    return within


def _of_whole_voxels(lower: np.ndarray, upper: np.ndarray, grid: Grid) -> Corners:
    """Return a box with bounds on centres of voxels moved down to the edges of these voxels.

    A volume at 0 nm has the centre of its first voxel there: 0:640 are its first 80 voxels of 8 nm,
    and no part of the next one. A box within one voxel stays.
    """
    edges = []
    for corner in (lower, upper):
        place_in_voxel = np.mod(grid.in_voxels(corner), 1)
        is_centre = np.abs(place_in_voxel - 0.5) < ON_CENTRE
        edges.append(np.where(is_centre, corner - grid.scale / 2, corner))
    first, last = edges
    return first, np.where(last > first, last, upper)


def _regions(
    word: str, rows: Sequence[Row], tests: Sequence[Entry], root: Path
) -> Iterable[Region]:
    """Return the crops that one word of the list names; raises UserError if there are none."""
    usages = {**{usage: (usage,) for usage in USAGES}, HELD_OUT: (TEST,), "*": USAGES}
    if word in usages:
        return _of_rows([row for row in rows if row.usage in usages[word]])
    if word == "test":
        if not tests:
            raise UserError(
                "no manifest of test crops; write --manifest FILE, or have it downloaded"
            )
        return _of_tests(manifest.by_crop(tests), root)
    patterns = catalogue.patterns_of(word)
    # the split first: its rows may name other places than the layout's
    keys = catalogue.matching({row.key: row.key for row in rows}, *patterns)
    of_split = [row for row in rows if row.key in keys]
    if of_split:
        is_pattern = any(sign in word for sign in "*?")
        return _of_rows(row for row in of_split if row.usage != TEST or not is_pattern)
    of_manifest = catalogue.matching(manifest.by_crop(tests), *patterns)
    if of_manifest:
        return _of_tests(of_manifest, root)
    on_disk, _ = catalogue.scan(root, *patterns)
    return [_of_crop_on_disk(crop, root) for crop in on_disk]


def _of_rows(rows: Iterable[Row]) -> list[Region]:
    rows = list(rows)
    # all that are not there in one message, with what mends it
    check_files([row for row in rows if not row.crop.is_dir()])
    return [of_row(row) for row in rows]


def of_row(row: Row) -> Region:
    """Return the crop of a row of a datasplit."""
    # the classes of a crop share one grid, so that one of them is opened
    levels = ngff.open_levels(row.class_volume(row.annotated[0]))
    lower, upper = levels[0].box()
    dataset, name = row.key
    return Region(
        dataset,
        name,
        row.raw,
        lower=lower,
        upper=upper,
        truth=row.crop,
        classes=row.annotated,
        label_options=row.label_options,
    )


def _of_crop_on_disk(crop: catalogue.CropInfo, root: Path) -> Region:
    return of_row(
        Row(
            usage="",
            raw=root / layout.raw(crop.dataset),
            crop=root / layout.labels(crop.dataset, crop.name),
            annotated=tuple(sorted(crop.classes)),
        )
    )


def _of_tests(crops: Mapping[tuple[str, str], Sequence[Entry]], root: Path) -> list[Region]:
    """Return the regions of test crops, each the box around all of its labels."""
    regions = []
    for (dataset, name), entries in crops.items():
        lower, upper = manifest.box_around(entries)
        regions.append(
            Region(
                dataset,
                name,
                raw=root / layout.raw(dataset),
                lower=lower,
                upper=upper,
                truth=None,
                classes=tuple(entry.name for entry in entries),
                asked_scales={entry.name: entry.voxel_size for entry in entries},
            )
        )
    return regions

"""Find out what fetch-data should fetch: crops, classes, voxel sizes, and how much raw around them.

For an experiment, its datasplit lists the crops and classes; its patches determine the voxel sizes
and how much raw around a crop training and validation read. Without an experiment, crops are those
of the table of training crops, and voxel sizes those of the baselines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common import files
from common.classes import IN_NO_CROP, unknown_names
from common.config import load
from common.config.settings import TrainConfig
from common.data.samples import sampling
from common.data.samples.rows import that_count
from common.data.splits import catalogue, manifest, split
from common.data.splits.catalogue import Key
from common.data.volumes import layout
from common.data.volumes.box import Corners
from common.errors import UserError, refuse
from common.talk import Say

SCALES = (8.0, 32.0, 128.0)
"""nm, what is fetched if nothing is said: the voxel sizes of the baselines."""

REACH = 59
"""Voxels of raw around a crop if nothing is said.

A patch of 68 voxels, as the baselines take, reaches so far when it is rotated.
"""


@dataclass(frozen=True)
class Choice:
    """What a user asks for."""

    crops: str = "*"
    """Comma-separated: "*", "test", or names such as 28, crop28, jrc_hela-2/crop28, with * and ?.

    With an experiment also "train", "validate" and "held-out", its test crops.
    """
    classes: Sequence[str] | None = None
    """All that are annotated unless given."""
    for_experiment: str | Path = ""
    """Its data split says which crops and classes, its settings how far raw reaches and the scale.

    What is given besides goes before.
    """
    scale: Sequence[float | Sequence[float]] = ()
    """Voxel sizes in nm, each a number or z, y, x."""
    padding_nm: float | Sequence[float] | None = None
    """Raw around the crops, a number or z, y, x."""
    padding_voxels: int | None = None
    """The same in voxels of each scale."""
    all_resolutions: bool = False
    """Every level of raw and labels."""
    data: str | Path | None = None
    """Data root; the experiment's, or CELLMAP_DATA, unless given."""
    manifest_path: str | Path = ""
    """Table of test crops; downloaded if it is needed and not given."""
    table: str | Path = catalogue.CHALLENGE
    """Table of training crops."""

    @property
    def source(self) -> str:
        """Where the crops come from, to begin a message with."""
        return str(self.for_experiment or Path(self.table).name)

    def given(self) -> dict[str, Any]:
        """Return the fields of WantedCrop that go before those of an experiment or the default."""
        if self.scale and self.all_resolutions:
            raise UserError("both scale and all_resolutions; write one of them")
        if self.padding_nm is not None and self.padding_voxels is not None:
            raise UserError("padding both in nm and in voxels; write one of them")
        fields: dict[str, Any] = {}
        if self.scale or self.all_resolutions:
            fields["scales"] = tuple(_three("scale", size, least=1e-9) for size in self.scale)
        if self.padding_nm is not None:
            fields["padding_nm"] = np.array(_three("padding", self.padding_nm, least=0))
        if self.padding_voxels is not None:
            fields |= {"padding_nm": None, "padding_voxels": self.padding_voxels}
        return fields


@dataclass(frozen=True, eq=False)
class WantedCrop:
    """One crop, and what of it is to be fetched."""

    dataset: str
    name: str
    usage: str = ""
    """'train' or 'validate' in an experiment's data split, 'test', or nothing."""
    classes: tuple[str, ...] = ()
    """None of a test crop."""
    scales: tuple[tuple[float, ...], ...] = ()
    """nm; for each, the level of the raw that training would pick.

    Empty: every level of raw and labels.
    """
    padding_nm: np.ndarray | None = None
    """(3,), raw around the crop; `padding_voxels` of each scale unless set."""
    padding_voxels: int = REACH
    box: Corners | None = None
    """Of a test crop; others lie where their labels do."""

    @property
    def store(self) -> str:
        """Its dataset's zarr store, under the data root."""
        return layout.store(self.dataset)

    @property
    def labels(self) -> str:
        """The folder of its classes, under the data root."""
        return layout.labels(self.dataset, self.name)

    @property
    def class_folders(self) -> list[str]:
        """The folder of each class, under the data root."""
        return [f"{self.labels}/{name}" for name in self.classes]

    @property
    def raw(self) -> str:
        """Its dataset's raw, under the data root."""
        return layout.raw(self.dataset)


def choose(choice: Choice, say: Say) -> tuple[Path, list[WantedCrop]]:
    """Return the data root, and the crops that are asked for.

    `say` takes lines about the manifest of test crops and about crops that are left out.

    Raises:
        UserError, FileNotFoundError: for what was asked wrongly.
        FileError: if the manifest of test crops cannot be fetched.
    """
    given = choice.given()
    if choice.for_experiment:
        root, known, test_crop = _of_experiment(choice.for_experiment, choice.data)
    else:
        root = load.data_root(choice.data)
        scales = tuple((size,) * 3 for size in SCALES)
        known = _of_table(choice.table, replace(WantedCrop("", "", scales=scales), **given))
        test_crop = WantedCrop("", "", "test", scales=scales)

    def tests() -> dict[Key, WantedCrop]:
        return _test_crops(choice.manifest_path, test_crop, say)

    chosen = _named(choice.crops, known, tests, choice.source)
    problems = unknown_names(choice.classes or (), _annotated(known.values()), IN_NO_CROP)
    refuse(problems)
    # those of the table, without a usage, have what is given already, less the scales too fine
    chosen = [replace(crop, **given) if crop.usage else crop for crop in chosen]
    return root, _with_something(chosen, choice, say)


def _three(what: str, value: float | Sequence[float], *, least: float) -> tuple[float, ...]:
    """Return a length in nm, or three, as three."""
    numbers = np.ravel(value).tolist()
    if np.ndim(value) == 0:
        numbers = numbers * 3
    if len(numbers) != 3 or not all(least <= number < np.inf for number in numbers):
        raise UserError(f"{what} {value}; write nm, one number or three for z, y, x, such as 8")
    return tuple(float(number) for number in numbers)


# which crops there are to choose from


def _of_experiment(
    path: str | Path, data: str | Path | None
) -> tuple[Path, dict[Key, WantedCrop], WantedCrop]:
    """Return the data root, the crops of the data split, and what is wanted of a test crop."""
    given = data or os.environ.get("CELLMAP_DATA")
    # the data root need not be there yet, which the check of the settings asks for
    elsewhere = {"data_path": str(files.REPOSITORY)} if given else {}
    settings = load.load_config(path, **elsewhere)
    root = load.data_root(data) if given else settings.path("data_path")
    raw = sampling.Patch(**settings.input_array_info)
    target = sampling.Patch(**settings.target_array_info)
    # the margins that training and validation keep, so that what is fetched follows them
    margins = sampling.margins_nm(raw, target, settings.spatial_transforms, settings.augmentations)
    # every section is a mean over its neighbours
    beyond = np.array([settings.raw_sections * raw.scale[0], 0, 0])
    margins = {usage: margin + beyond for usage, margin in margins.items()}
    rows = split.read_datasplit(settings.path("datasplit_path"), root, with_test=True)
    crops = {}
    problems = []
    for row in _that_are_read(rows, settings):
        crop = _of_row(row, raw.scale, margins)
        crops[row.key] = crop
        if (row.raw, row.crop) != (root / crop.raw, root / crop.labels):
            problems.append(
                f"{row.file}: line {row.line}: {row.name} is not where the bucket has it; "
                "write its paths as make-datasplit does"
            )
    refuse(problems)
    # as those of the data split that are held out
    test_crop = WantedCrop("", "", "test", scales=(raw.scale,), padding_nm=margins["validate"])
    return root, crops, test_crop


def _that_are_read(rows: Sequence[split.Row], settings: TrainConfig) -> list[split.Row]:
    """Return the rows that a run is made of, and the test crops that annotate its classes."""
    of_run = that_count([row for row in rows if row.usage != split.TEST], settings)
    wanted = []
    for row in rows:
        if row.usage == split.TEST:
            is_wanted = bool(set(row.annotated) & set(settings.classes))
        else:
            is_wanted = row in of_run
        if is_wanted:
            wanted.append(row)
    return wanted


def _of_row(
    row: split.Row, scale: tuple[float, ...], margins: Mapping[str, np.ndarray]
) -> WantedCrop:
    """Return what is wanted of a crop of a data split. margins: (3,) nm around it, by usage."""
    dataset, name = row.key
    # a test crop is predicted in blocks that are not turned, as in validation
    is_test = row.usage == split.TEST
    return WantedCrop(
        dataset,
        name,
        usage=split.HELD_OUT if is_test else row.usage,
        classes=row.annotated,
        scales=(scale,),
        padding_nm=margins["validate" if is_test else row.usage],
    )


def _of_table(table: str | Path, like: WantedCrop) -> dict[Key, WantedCrop]:
    """Return the crops of a table, each with those scales of `like` that its labels allow.

    Of a crop whose labels are too coarse for all of them no class is wanted.
    """
    crops = {}
    for crop in catalogue.read_crop_table(table):
        scales = tuple(scale for scale in like.scales if catalogue.fits(crop, scale, 1))
        too_coarse = like.scales and not scales
        crops[crop.key] = replace(
            like,
            dataset=crop.dataset,
            name=crop.name,
            scales=scales,
            classes=() if too_coarse else tuple(sorted(crop.classes)),
        )
    return crops


def _test_crops(path: str | Path, like: WantedCrop, say: Say) -> dict[Key, WantedCrop]:
    """Return the test crops, each the box that holds all of its labels."""
    entries = manifest.read(path or manifest.fetch(files.cache_folder(), say=say))
    crops = {}
    for (dataset, name), of_crop in manifest.by_crop(entries).items():
        box = manifest.box_around(of_crop)
        crops[dataset, name] = replace(like, dataset=dataset, name=name, box=box)
    return crops


# which of them


def _named(
    words: str,
    known: Mapping[Key, WantedCrop],
    tests: Callable[[], Mapping[Key, WantedCrop]],
    source: str,
) -> list[WantedCrop]:
    """Return the crops that a comma-separated list names, each once.

    A name that is not known is looked for among the test crops, whose table may have to be
    downloaded.
    """
    chosen: dict[Key, WantedCrop] = {}
    problems = []
    for word in catalogue.words_of(words):
        of_usage = {key: crop for key, crop in known.items() if crop.usage == word}
        if word == "test" or of_usage:
            chosen |= of_usage or tests()
            continue
        patterns = catalogue.patterns_of(word)
        matching = catalogue.matching(known, *patterns)
        if not matching:
            try:
                matching = catalogue.select(
                    {**known, **tests()}, *patterns, f"{source} and test crops"
                )
            except UserError as error:
                problems.append(str(error))
        chosen |= matching
    if not chosen and not problems:
        problems.append(f"crops '{words}'; write *, test, or names such as 28,jrc_hela-2/crop155")
    refuse(problems)
    return list(chosen.values())


def _with_something(crops: Sequence[WantedCrop], choice: Choice, say: Say) -> list[WantedCrop]:
    """Return the crops with something to fetch, each with the classes that are asked for.

    Raises UserError if a class, or everything, is left out.
    """
    left = []
    for crop in crops:
        classes = crop.classes
        if choice.classes is not None:
            classes = tuple(name for name in classes if name in choice.classes)
        if classes or crop.usage == "test":
            left.append(replace(crop, classes=classes))
    missing = []
    if not all(crop.usage == "test" for crop in crops):  # whose labels are not public
        annotated = _annotated(left)
        missing = [name for name in choice.classes or () if name not in annotated]
    if missing or not left:
        what = "has labels as fine as that"
        if missing:
            what = f"annotates {', '.join(missing)} at that scale"
        raise UserError(
            f"{choice.source}: none of the {len(crops)} crops {what}; "
            "ask for other crops, classes or a coarser scale"
        )
    if len(left) < len(crops):
        say(
            f"{len(crops) - len(left)} of {len(crops)} crops left out: "
            "too coarse, too small or without these classes"
        )
    return left


def _annotated(crops: Iterable[WantedCrop]) -> set[str]:
    """Every class that one of the crops has."""
    return set().union(*(crop.classes for crop in crops))

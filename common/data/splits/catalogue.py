"""List annotated crops, from a table or from the data root, and select them by name."""

from __future__ import annotations

import functools
import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import numpy as np

from common.classes import TESTED
from common.data.volumes import layout
from common.data.volumes.box import overlap
from common.data.volumes.level import Level
from common.data.volumes.metadata import read_attributes
from common.data.volumes.ngff import open_levels
from common.errors import UserError, refuse
from common.files import is_file

CHALLENGE = Path(__file__).with_name("challenge_crops.csv")
"""Table of the 289 public training crops: their place, voxels and annotated classes."""

COLUMNS = ("crop", "dataset", "voxel_size", "translation", "shape", "classes")

CUT = "cut"
"""Attribute of a class of a part of a crop: of which crop and voxels it is a copy."""

PARTS = {"train": "{crop}-train", "validate": "{crop}-validate"}
"""Names of the parts of a crop that `new --own` cuts in two, by their usage."""

Key = tuple[str, str]
"""Dataset and name of a crop."""

T = TypeVar("T")


@dataclass(frozen=True)
class CropInfo:
    """What a datasplit needs to know about an annotated crop, without its voxels."""

    dataset: str
    name: str
    voxel_size: tuple[float, ...]
    """Voxel size of the labels in nm, z, y, x."""
    translation: tuple[float, ...]
    """Position of the centre of the first voxel in nm, z, y, x."""
    shape: tuple[int, ...]
    """Voxels, z, y, x."""
    classes: frozenset[str]
    """The annotated classes."""

    @property
    def key(self) -> Key:
        """Dataset and name."""
        return self.dataset, self.name

    @property
    def path(self) -> str:
        """The crop as 'dataset/name', as in messages."""
        return f"{self.dataset}/{self.name}"

    @property
    def specimen(self) -> str:
        """The dataset without a final letter after a number.

        For example, jrc_cos7-1a and jrc_cos7-1b are cells of one specimen and look alike.
        """
        return re.sub(r"(?<=\d)[a-z]$", "", self.dataset)

    @property
    def kind(self) -> str:
        """The dataset without its numbers: jrc_hela-2 and jrc_hela-3 are of the same kind."""
        return re.sub(r"(-\d+[a-z]?)+$", "", self.dataset)

    @property
    def extent(self) -> np.ndarray:
        """(3,) size in nm."""
        return np.array(self.voxel_size) * self.shape

    def overlaps(self, other: CropInfo) -> bool:
        """Return whether two crops of a dataset share a volume; touching is not overlapping."""
        if self.dataset != other.dataset:
            return False
        return overlap(self._box, other._box)

    @functools.cached_property
    def _box(self) -> tuple[np.ndarray, np.ndarray]:
        lower = np.array(self.translation) - np.array(self.voxel_size) / 2
        return lower, lower + self.extent


def fits(crop: CropInfo, scale: Sequence[float] | None, min_extent: float) -> bool:
    """Return whether a crop can be used at a voxel size of `scale` nm; None accepts every crop.

    Its labels must be no coarser than `scale`, and every axis at least `min_extent` voxels of
    `scale` long.
    """
    if scale is None:
        return True
    wanted = np.array(scale)
    # 1 %: voxel sizes are rounded in tables and settings, 5.24 nm is asked for as 5.2
    fine_enough = (np.array(crop.voxel_size) <= 1.01 * wanted).all()
    large_enough = (crop.extent >= min_extent * wanted * (1 - 1e-9)).all()
    return bool(fine_enough and large_enough)


def natural_key(*names: str) -> list[list[tuple[str, int]]]:
    """Return a sort key that puts crop2 before crop10."""
    return [_words_and_numbers(name) for name in names]


def _words_and_numbers(name: str) -> list[tuple[str, int]]:
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D*)(\d*)", name)]


# in a table


def read_crop_table(path: str | Path = CHALLENGE) -> list[CropInfo]:
    """Return the crops of a table with the columns of `challenge_crops.csv`.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: with all problems of the table, one per line.
    """
    path = Path(path)
    if not is_file(path):
        raise FileNotFoundError(
            f"{path}: no such manifest; write the path of a table, or 'challenge'"
        )
    lines = _lines_with_content(path.read_text("utf-8-sig", errors="replace"))
    crops = []
    problems = []
    for number, header in itertools.islice(lines, 1):
        if tuple(header.strip().split(",")) != COLUMNS:
            problems.append(f"line {number}: '{header}'; begin with {','.join(COLUMNS)}")
    for number, line in lines:
        try:
            crops.append(_parse_row(line))
        except ValueError:
            problems.append(
                f"line {number}: '{line[:80]}'; write e.g. 28,jrc_x,4;4;4,0;0;0,400;400;400,mito er"
            )
    problems += _repeated(crops)
    refuse(problems, path)
    return crops


def _lines_with_content(text: str) -> Iterator[tuple[int, str]]:
    """Lines and their numbers, without those that are empty or begin with '#'."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            yield number, line


def _parse_row(line: str) -> CropInfo:
    """Return the crop of a line. Raises ValueError, without advice, if anything is wrong."""
    name, dataset, *sizes, classes = line.strip().split(",")
    voxel_size, translation, shape = (size.split(";") for size in sizes)
    crop = CropInfo(
        dataset=dataset,
        name=layout.crop_name(name),
        voxel_size=tuple(map(float, voxel_size)),
        translation=tuple(map(float, translation)),
        shape=tuple(map(int, shape)),
        classes=frozenset(TESTED if classes == "all" else classes.split()),
    )
    # names become folders: nothing that climbs out of the data root
    if not all(re.fullmatch(r"\w[\w.-]*", text) for text in (crop.dataset, crop.name)):
        raise ValueError("no names of folders")
    if not len(crop.voxel_size) == len(crop.translation) == len(crop.shape) == 3:
        raise ValueError("not three axes")
    if min(*crop.voxel_size, *crop.shape) <= 0:
        raise ValueError("not above zero")
    return crop


def _repeated(crops: Sequence[CropInfo]) -> list[str]:
    counts = Counter(crop.path for crop in crops)
    return [
        f"{path} stands there more than once; write one row a crop"
        for path, count in counts.items()
        if count > 1
    ]


# on disk


def scan(
    data_root: str | Path, datasets: Sequence[str] = ("*",), crops: Sequence[str] = ("*",)
) -> tuple[list[CropInfo], list[str]]:
    """Return the crops on disk, and a sentence for each problem found there.

    `datasets` and `crops` are names or patterns, see `matching`; the layout is that of
    `common.data.volumes.layout`. The geometry of a crop is that of its coarsest class. Classes that
    cannot be opened, and crops without raw, are left out; parts of crops, too, unless they are
    named, since their voxels are those of the whole.

    Raises:
        FileNotFoundError: if there is no data root.
        UserError: if a pattern matches nothing.
    """
    root = Path(data_root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: no such data root; write the folder that holds the datasets"
        )
    present = layout.crop_folders(root)
    if not present:
        raise FileNotFoundError(f"{root}: no annotated crop in it; {_where_else(root)}")
    folders = select(present, datasets, crops, root)
    whole = []
    problems = []
    for dataset, name in sorted(folders, key=lambda key: natural_key(*key)):
        folder = folders[dataset, name]
        if name not in crops and is_part(folder):
            continue
        levels, broken = _finest_levels(folder)
        problems += broken
        if not (root / layout.raw(dataset)).is_dir():
            problems.append(f"{folder}: no raw group {layout.RAW} in its store; copy it")
        elif levels:
            whole.append(_crop_of_levels(dataset, name, levels))
    return whole, problems


def is_part(crop: Path) -> bool:
    """Return whether a crop on disk is a part of another one."""
    endings = tuple(name.format(crop="") for name in PARTS.values())
    if not crop.name.endswith(endings):
        return False
    return any(CUT in read_attributes(group) for group in crop.iterdir() if group.is_dir())


def _where_else(root: Path) -> str:
    """Return what to do about a data root without crops."""
    near = layout.data_root_near(root)
    if near:
        return f"they are in {near}: write {shlex.join(['--data', str(near)])}"
    expected = layout.labels("DATASET", "CROP")
    return f"write the folder that holds {expected}, or fill it with fetch-data"


def _finest_levels(crop_folder: Path) -> tuple[dict[str, Level], list[str]]:
    """Return the finest level of each class of a crop, and a sentence per class without one."""
    levels = {}
    problems = []
    for folder in sorted(crop_folder.iterdir()):
        # 'all' holds the ids of every class in one volume
        if folder.name == "all" or not folder.is_dir():
            continue
        try:
            levels[folder.name] = open_levels(folder)[0]
        except (UserError, FileNotFoundError) as error:
            problems.append(str(error))
    return levels, problems


def _crop_of_levels(dataset: str, name: str, levels: Mapping[str, Level]) -> CropInfo:
    coarsest = max(levels.values(), key=lambda level: level.scale.prod())
    return CropInfo(
        dataset=dataset,
        name=name,
        voxel_size=tuple(coarsest.scale.tolist()),
        translation=tuple(coarsest.translation.tolist()),
        shape=tuple(coarsest.shape.tolist()),
        classes=frozenset(levels),
    )


# how many


def counts(crops: Iterable[CropInfo], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return how many crops annotate each of `classes`, by dataset and class; 0 where none does."""
    of_dataset: dict[str, dict[str, int]] = {}
    for crop in crops:
        row = of_dataset.setdefault(crop.dataset, dict.fromkeys(classes, 0))
        for name in crop.classes.intersection(classes):
            row[name] += 1
    return of_dataset


def table_of_counts(crops: Sequence[CropInfo], classes: Sequence[str]) -> list[str]:
    """Return `counts` as lines: one for each class, with a column for each dataset that has any."""
    by_dataset = counts(crops, classes)
    shown = {name: row for name, row in by_dataset.items() if any(row.values())}
    lines = ["".join([f"{'class':16}", *(f"  {dataset}" for dataset in shown), f"{'all':>7}"])]
    for name in classes:
        cells = [f"  {row[name]:{len(dataset)}}" for dataset, row in shown.items()]
        total = sum(row[name] for row in shown.values())
        lines.append("".join([f"{name:16}", *cells, f"{total:7}"]))
    return lines


# by name


def words_of(listed: str) -> list[str]:
    """Return the items of a comma-separated list, without spaces and empty ones."""
    return [word.strip() for word in listed.split(",") if word.strip()]


def patterns_of(word: str) -> tuple[list[str], list[str]]:
    """Return the patterns of datasets and of crops that 'crop28' or 'jrc_hela-2/crop28' stands for.

    They are the arguments of `matching`, `select` and `scan`.
    """
    dataset, _, name = word.rpartition("/")
    return [dataset or "*"], [name]


def matching(crops: Mapping[Key, T], datasets: Sequence[str], names: Sequence[str]) -> dict[Key, T]:
    """Return the `crops` whose dataset and name both match a pattern, a whole name or a glob.

    A number n in `names` stands for the crop 'cropn'.
    """
    names = _with_prefix(names)
    chosen = {}
    for (dataset, name), crop in crops.items():
        if _matches(dataset, datasets) and _matches(name, names):
            chosen[dataset, name] = crop
    return chosen


def select(
    crops: Mapping[Key, T], datasets: Sequence[str], names: Sequence[str], source: str | Path
) -> dict[Key, T]:
    """Do the same as `matching`, but every pattern must match something.

    Raises:
        UserError: for patterns that match nothing; the message begins with `source`.
    """
    names = _with_prefix(names)
    problems = _unmatched("dataset", datasets, {dataset for dataset, _ in crops})
    problems += _unmatched("crop", names, {name for _, name in crops})
    refuse(problems, source)
    chosen = matching(crops, datasets, names)
    if not chosen:
        raise UserError(
            f"{source}: no crop {', '.join(names)} in {', '.join(datasets)}; "
            "name crops of these datasets"
        )
    return chosen


def _with_prefix(names: Sequence[str]) -> list[str]:
    return [layout.crop_name(name) for name in names]


def _unmatched(what: str, patterns: Sequence[str], present: set[str]) -> list[str]:
    """Return a sentence for each pattern that no name matches."""
    known = ", ".join(sorted(present, key=natural_key)[:10]) or "none"
    problems = []
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in present):
            problems.append(f"no {what} '{pattern}'; there are {len(present)}: {known}")
    return problems


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)

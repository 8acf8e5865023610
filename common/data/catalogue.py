"""Which annotated crops there are: in a table, or on disk."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from common.classes import TESTED
from common.data.layout import LABELS, RAW
from common.data.ngff import open_levels
from common.errors import UserError

CHALLENGE = Path(__file__).with_name("challenge_crops.csv")
"""Where the 289 public training crops are and what they annotate; the manifest named 'challenge'."""


COLUMNS = ("crop", "dataset", "voxel_size", "translation", "shape", "classes")


@dataclass(frozen=True)
class Crop:
    """An annotated block, as far as a split needs to know it."""

    dataset: str
    name: str
    voxel_size: tuple[float, ...]
    """z, y, x, nm, of the labels."""
    translation: tuple[float, ...]
    """z, y, x, nm, of the centre of the first voxel."""
    shape: tuple[int, ...]
    classes: frozenset[str]

    @property
    def specimen(self) -> str:
        """The dataset without a last letter after a number: jrc_cos7-1a and jrc_cos7-1b are cells of one sample."""
        return re.sub(r"(?<=\d)[a-z]$", "", self.dataset)

    @property
    def kind(self) -> str:
        """The dataset without its numbers: jrc_hela-2 and jrc_hela-3 are of one kind."""
        return re.sub(r"(-\d+[a-z]?)+$", "", self.dataset)

    @property
    def extent(self) -> np.ndarray:
        """(3,) nm."""
        return np.array(self.voxel_size) * self.shape

    def overlaps(self, other: Crop) -> bool:
        """Whether the two share a volume; touching is not overlapping."""
        if self.dataset != other.dataset:
            return False
        (low, high), (other_low, other_high) = self._box, other._box
        return bool(
            (np.minimum(high, other_high) - np.maximum(low, other_low) > 1e-6 * self.extent).all()
        )

    @functools.cached_property
    def _box(self) -> tuple[np.ndarray, np.ndarray]:
        low = np.array(self.translation) - np.array(self.voxel_size) / 2
        return low, low + self.extent


def read_manifest(path: str | Path = CHALLENGE) -> list[Crop]:
    """The crops of a table with the columns of `challenge_crops.csv`.

    Raises FileNotFoundError, or ValueError with everything that is wrong, one line each.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such manifest; write the path of a table, or 'challenge'"
        )
    header, crops, problems = None, [], []
    for number, line in enumerate(path.read_text("utf-8-sig", errors="replace").split("\n"), 1):
        fields = line.strip().split(",")
        if not line.strip() or line.startswith("#"):
            continue
        if header is None:
            header = number
            if tuple(fields) != COLUMNS:
                problems.append(f"line {number}: '{line}'; begin with {','.join(COLUMNS)}")
            continue
        try:
            crops.append(_crop_of(fields))
        except ValueError:
            problems.append(
                f"line {number}: '{line[:80]}'; write e.g. 28,jrc_x,4;4;4,0;0;0,400;400;400,mito er"
            )
    repeated = [
        key
        for key, count in Counter((crop.dataset, crop.name) for crop in crops).items()
        if count > 1
    ]
    problems += [
        f"{dataset}/{name} stands there more than once; write one row a crop"
        for dataset, name in repeated
    ]
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return crops


def _crop_of(fields: Sequence[str]) -> Crop:
    name, dataset, *sizes, classes = fields
    voxel_size, translation = (tuple(map(float, size.split(";"))) for size in sizes[:2])
    (shape,) = (tuple(map(int, size.split(";"))) for size in sizes[2:])
    if not len(voxel_size) == len(translation) == len(shape) == 3 or min(*voxel_size, *shape) <= 0:
        raise UserError(sizes)
    annotated = TESTED if classes == "all" else classes.split()
    name = f"crop{name}" if name.isdecimal() else name
    return Crop(dataset, name, voxel_size, translation, shape, frozenset(annotated))


def scan(
    data_root: str | Path, datasets: Sequence[str] = ("*",), crops: Sequence[str] = ("*",)
) -> tuple[list[Crop], list[str]]:
    """The crops on disk, and what is broken there, one sentence each.

    Layout: {data_root}/{dataset}/{dataset}.zarr/recon-1/labels/groundtruth/{crop}/{class}. A crop has the geometry of
    its coarsest class. Broken classes, and crops without raw, are left out. Raises FileNotFoundError without a data
    root, ValueError if a pattern matches nothing.
    """
    root = Path(data_root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: no such data root; write the folder that holds the datasets"
        )
    folders = {
        (folder.parents[4].name, folder.name): folder
        for folder in root.glob(f"*/*.zarr/{LABELS}/*")
        if folder.is_dir()
        and folder.parents[3].stem == folder.parents[4].name
        and not folder.name.startswith(".")
    }
    found, skipped = [], []
    chosen = select(folders, datasets, crops, root)
    for (dataset, name), folder in sorted(chosen.items(), key=lambda item: _natural(*item[0])):
        levels = {}
        for label in sorted(
            path for path in folder.iterdir() if path.is_dir() and path.name != "all"
        ):
            try:
                levels[label.name] = open_levels(label)[0]
            except (ValueError, FileNotFoundError) as error:
                skipped.append(str(error))
        if not (folder.parents[3] / RAW).is_dir():
            skipped.append(f"{folder}: no raw group {RAW} in its store; copy it")
        elif levels:
            level = max(levels.values(), key=lambda level: level.scale.prod())
            geometry = (
                tuple(array.tolist()) for array in (level.scale, level.translation, level.shape)
            )
            found.append(Crop(dataset, name, *geometry, frozenset(levels)))
    return found, skipped


def select(
    crops: Mapping[tuple[str, str], Any],
    datasets: Sequence[str],
    names: Sequence[str],
    source: str | Path,
) -> dict[tuple[str, str], Any]:
    """Those whose (dataset, crop) match a pattern each: a whole name or a glob; a number n stands for the crop 'cropn'.

    Raises ValueError for patterns that match nothing.
    """
    names = [f"crop{name}" if name.isdecimal() else name for name in names]
    problems = []
    for what, patterns, present in (
        ("dataset", datasets, {key[0] for key in crops}),
        ("crop", names, {key[1] for key in crops}),
    ):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in present):
                known = ", ".join(sorted(present, key=_natural)[:10]) or "none"
                problems.append(
                    f"{source}: no {what} '{pattern}'; there are {len(present)}: {known}"
                )
    if problems:
        raise UserError("\n".join(problems))
    chosen = {
        key: crop
        for key, crop in crops.items()
        if _matches(key[0], datasets) and _matches(key[1], names)
    }
    if not chosen:
        raise UserError(
            f"{source}: no crop {', '.join(names)} in {', '.join(datasets)}; name crops of these datasets"
        )
    return chosen


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _natural(*names: str) -> list[list[tuple[str, int]]]:
    """Sorts crop2 before crop10."""
    return [
        [(word, int(number or 0)) for word, number in re.findall(r"(\D*)(\d*)", name)]
        for name in names
    ]


def fits(crop: Crop, scale: Sequence[float] | None, min_extent: float) -> bool:
    """Whether a crop makes sense at voxels of `scale` nm: labels no coarser (+1 %), min_extent voxels on every axis."""
    if scale is None:
        return True
    return bool(
        (np.array(crop.voxel_size) <= 1.01 * np.array(scale)).all()
        and (crop.extent >= min_extent * np.array(scale) * (1 - 1e-9)).all()
    )

"""Which boxes of which volumes a command works on: crops of the data split, of the data root or of the manifest, or any volume."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.config.settings import TrainConfig
from common.data import catalogue, layout, manifest, ngff
from common.data import split as split_module
from common.data.manifest import Entry
from common.data.split import Row
from common.errors import UserError


@dataclass(frozen=True)
class Region:
    """A box of a raw volume that is predicted, processed and scored as one."""

    dataset: str
    name: str
    raw: Path
    """Multiscale group of the raw."""
    lower: np.ndarray
    """(3,) nm, the box with the extents of its voxels; `upper` likewise."""
    upper: np.ndarray
    truth: Path | None
    """Folder with a multiscale group for each annotated class."""
    classes: tuple[str, ...]
    """Those annotated, or, for a test crop, those asked for; none for a volume of one's own."""

    def __str__(self) -> str:
        return f"{self.dataset}/{self.name}"

    def folder(self, root: Path) -> Path:
        """Where predictions or processed volumes of this box are: one multiscale group a class."""
        return root / f"{self.dataset}.zarr" / self.name


def choose(
    config: TrainConfig,
    crops: str = "validate",
    volume: str | Path = "",
    roi: str = "",
    manifest_path: str = "",
    say: Callable[[str], None] = print,
) -> list[Region]:
    """What the options --crops, --volume, --roi and --manifest of a command name; see `find` and `of_volume`.

    The manifest of test crops is downloaded once, to the cache, where it is asked for and no file is given.
    """
    if volume:
        return [of_volume(volume, roi)]
    if roi:
        raise UserError(f"--roi {roi}: a box of what? write --volume too")
    entries: list[Entry] = []
    if manifest_path or "test" in [word.strip() for word in crops.split(",")]:
        entries = manifest.read(manifest_path or manifest.fetch(config.path("cache_path"), say=say))
    return find(config, crops, entries)


def find(config: TrainConfig, crops: str = "validate", tests: Sequence[Entry] = ()) -> list[Region]:
    """The crops that a comma-separated list names, each once, in its order; tests: the manifest of test crops.

    "train" and "validate" are the crops of the data split, "*" is both; "test" are those of the manifest; anything else is a
    crop (28, crop28 or jrc_hela-2/crop28, with * and ?) of the data split, the manifest or the data root, the first that has it.
    Raises FileNotFoundError, or ValueError with everything that is not found.
    """
    path, root = config.path("datasplit_path"), config.path("data_path")
    rows = split_module.read_datasplit(path, root)
    found: dict[str, Region] = {}
    for word in filter(None, (word.strip() for word in crops.split(","))):
        if word in (*split_module.USAGES, "*"):
            chosen = [_of_row(row) for row in rows if word in (row.usage, "*")]
        elif word == "test":
            chosen = _of_manifest(tests, root)
        else:
            chosen = _named(word, rows, tests, root)
        found |= {str(region): region for region in chosen}
    if not found:
        raise UserError(
            f"{path}: no crop for --crops {crops}; write validate, train, test, * or names of crops"
        )
    return list(found.values())


def of_volume(path: str | Path, roi: str = "") -> Region:
    """A volume of one's own, whole or the box `roi` of it: "z0:z1,y0:y1,x0:x1" in nm, where a bound left out is the volume's.

    Raises FileNotFoundError without a multiscale group at `path`, ValueError for a box that is none or lies outside.
    """
    path = Path(path).absolute()
    lower, upper = ngff.open_levels(path)[0].box()
    store = next((part for part in (path, *path.parents) if part.suffix == ".zarr"), path)
    if not roi:
        return Region(store.stem, "whole", path, lower, upper, None, ())
    number = r"\s*(-?\d+(?:\.\d*)?)?\s*"
    match = re.fullmatch(",".join([f"{number}:{number}"] * 3), roi)
    if not match:
        raise UserError(f"--roi {roi}; write z0:z1,y0:y1,x0:x1 in nm, such as 0:4000,1000:5000,:")
    low, high = (
        np.array(
            [float(text) if text else bound for text, bound in zip(texts, bounds, strict=True)]
        )
        for texts, bounds in ((match.groups()[::2], lower), (match.groups()[1::2], upper))
    )
    if (low >= high).any() or (low >= upper).any() or (high <= lower).any():
        raise UserError(f"--roi {roi}: no box within {path}, which is {box_text(lower, upper)} nm")
    low, high = np.maximum(low, lower), np.minimum(high, upper)
    return Region(
        store.stem,
        "roi_" + box_text(low, high).replace(":", "-").replace(",", "_"),
        path,
        low,
        high,
        None,
        (),
    )


def _named(word: str, rows: Sequence[Row], tests: Sequence[Entry], root: Path) -> list[Region]:
    """Crops of one name or pattern."""
    dataset, _, name = word.rpartition("/")
    split = {tuple(row.name.split("/")): row for row in rows}
    asked = {(entry.dataset, entry.crop): entry for entry in tests}
    for known in (split, asked):
        try:
            chosen = catalogue.select(known, [dataset or "*"], [name], "")
        except ValueError:
            continue
        if known is split:
            return [_of_row(row) for row in chosen.values()]
        return [
            region
            for region in _of_manifest(tests, root)
            if (region.dataset, region.name) in chosen
        ]
    crops, _ = catalogue.scan(root, [dataset or "*"], [name])
    labels = [
        root / crop.dataset / f"{crop.dataset}.zarr" / layout.LABELS / crop.name for crop in crops
    ]
    return [
        _of_row(Row("", label.parents[3] / layout.RAW, label, tuple(sorted(crop.classes))))
        for label, crop in zip(labels, crops, strict=True)
    ]


def _of_row(row: Row) -> Region:
    lower, upper = ngff.open_levels(row.crop / row.annotated[0])[0].box()
    dataset, name = row.name.split("/")
    return Region(dataset, name, row.raw, lower, upper, row.crop, row.annotated)


def _of_manifest(tests: Sequence[Entry], root: Path) -> list[Region]:
    """The test crops: each the box that holds all of its labels."""
    if not tests:
        raise UserError("no manifest of test crops; write --manifest FILE, or have it downloaded")
    crops: dict[tuple[str, str], list[Entry]] = {}
    for entry in tests:
        crops.setdefault((entry.dataset, entry.crop), []).append(entry)
    regions = []
    for (dataset, name), entries in crops.items():
        boxes = [entry.grid().box() for entry in entries]
        lower, upper = (
            np.min([low for low, _ in boxes], axis=0),
            np.max([high for _, high in boxes], axis=0),
        )
        raw = root / dataset / f"{dataset}.zarr" / layout.RAW
        regions.append(
            Region(dataset, name, raw, lower, upper, None, tuple(entry.name for entry in entries))
        )
    return regions


def box_text(lower: np.ndarray, upper: np.ndarray) -> str:
    """A box (nm) as --roi takes it."""
    return ",".join(f"{a:.12g}:{b:.12g}" for a, b in zip(lower, upper, strict=True))

"""Measure the crops of an experiment: their classes, voxel sizes and intensities.

Class counts come from the palettes of the decoded crops, so only raw is read here, and sparsely: at
most 1000 cells of 4^3 voxels per crop, spread evenly over the annotated block. A cell whose voxels
all have the same value was not imaged, since EM has noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.config.settings import TrainConfig
from common.data.crops.opened import Crop, open_crops
from common.data.crops.palette import UNKNOWN
from common.data.samples import loaders
from common.data.samples.rows import that_count
from common.data.splits import split
from common.data.splits.split import Row
from common.data.volumes import box, ngff
from common.errors import FileError, UserError
from common.talk import nm

CELL = 4
"""Edge of a cell, in voxels."""

CELLS = 10
"""Most cells that are read along each axis of a crop."""

PERCENTILES = (1, 25, 50, 75, 99)

UNREADABLE_SHOWN = 10


@dataclass(frozen=True)
class MeasuredCrop:
    """A decoded crop of the datasplit, and what was measured in it."""

    row: Row
    crop: Crop
    values: np.ndarray
    """(n,) raw of the sampled voxels, in [0, 1]."""
    constant: float
    """Fraction of the cells whose voxels are all equal, 0 to 1."""
    black: float
    """Fraction of the cells whose voxels are all 0, 0 to 1."""
    raw_scale: np.ndarray
    """(3,) voxel size of the finest level of the raw in nm."""
    raw_extent: np.ndarray
    """(3,) size of the whole raw volume in nm."""
    label_scale: np.ndarray
    """(3,) voxel size of the labels as annotated, in nm."""

    @property
    def dataset(self) -> str:
        """Name of the volume that it was cut from."""
        return self.row.name.split("/")[0]

    @property
    def label_extent(self) -> np.ndarray:
        """(3,) nm, of the annotated block."""
        return self.crop.label_grid.scale * self.crop.label_grid.shape

    def positive_um3(self) -> np.ndarray:
        """Return (classes,) cubic micrometres that are positive."""
        return self._volume_um3(self.crop.palette == 1)

    def known_um3(self) -> np.ndarray:
        """Return (classes,) cubic micrometres that are positive or negative."""
        return self._volume_um3(self.crop.palette != UNKNOWN)

    def _volume_um3(self, rows: np.ndarray) -> np.ndarray:
        """Return (classes,) cubic micrometres of the palette rows that are chosen for a class.

        rows: (rows, classes) bool.
        """
        voxel_nm3 = float(self.crop.label_grid.scale.prod())
        return self.crop.counts @ rows * voxel_nm3 / 1e9

    def annotated(self, classes: Sequence[str]) -> list[str]:
        """Return the classes among `classes` that the crop annotates."""
        return [name for name in classes if name in self.row.annotated]


@dataclass(frozen=True)
class ClassFacts:
    """A class in the crops of one side of the split."""

    annotated: int
    """Number of crops that annotate the class."""
    present: int
    """Number of crops with a positive voxel."""
    known_um3: float
    positive_um3: float
    fraction: float | None
    """Positive volume over known volume, 0 to 1; None if nothing is known."""


@dataclass(frozen=True)
class Intensities:
    """Raw in [0, 1] in the annotated blocks of a dataset, every crop with as many voxels."""

    crops: int
    mean: float
    std: float
    p1: float
    p25: float
    p50: float
    p75: float
    p99: float


def measure_crops(config: TrainConfig) -> tuple[list[MeasuredCrop], list[str]]:
    """Measure the crops that annotate a class of this run.

    They are decoded as training does, with the raw around them that training keeps, into the same
    cache.

    Returns:
        The crops, and a sentence for each that cannot be read.

    Raises:
        UserError: if none can be read.
        FileError: if the cache cannot be written.
        FileNotFoundError: without a datasplit.
    """
    path = config.path("datasplit_path")
    rows = _rows_to_measure(config, path)
    measured: list[MeasuredCrop] = []
    unreadable: list[str] = []
    for usage in split.USAGES:
        side = [row for row in rows if row.usage == usage]
        if not side:
            continue
        try:
            measured += _measure_all(config, side, measured)
        except FileError:
            raise  # of the cache: no crop is unreadable
        except (UserError, FileNotFoundError):
            # one by one, to tell those that can be read from those that cannot
            for row in side:
                try:
                    measured += _measure_all(config, [row], measured)
                except (UserError, FileNotFoundError) as error:
                    unreadable.append(str(error).splitlines()[0])
    if not measured:
        raise _none_measured(path, rows, unreadable)
    return measured, unreadable


def _rows_to_measure(config: TrainConfig, path: Path) -> list[Row]:
    """Return the crops that this run is made of. Raises UserError if there are none."""
    rows = that_count(split.read_datasplit(path, config.path("data_path")), config)
    if not rows:
        classes = ", ".join(config.classes)
        raise UserError(f"{path}: no crop annotates any of {classes}; change classes or the split")
    return rows


def _none_measured(path: Path, rows: Sequence[Row], unreadable: Sequence[str]) -> UserError:
    """Return the error for a split of which no crop can be read."""
    shown = "\n".join(unreadable[:UNREADABLE_SHOWN])
    try:
        split.check_files(rows)
    except FileNotFoundError as error:
        shown = str(error)  # each file that is not there once, with what mends it
    none = "its only crop cannot" if len(rows) == 1 else f"none of its {len(rows)} crops can"
    return UserError(f"{shown}\n{path}: {none} be read; mend them, or name other crops")


def _measure_all(
    config: TrainConfig, rows: Sequence[Row], measured: Sequence[MeasuredCrop]
) -> list[MeasuredCrop]:
    """Decode and measure crops of one usage; those of `measured` stay in the cache."""
    split.check_files(rows)
    # of any size: what to do about raw that is smaller than a patch is found here. Of raw alone:
    # further channels are predicted later, around patches of the size that is suggested
    request = replace(loaders.crop_request(config), patch_nm=np.zeros(3), input_channels=())
    crops = open_crops(
        rows,
        request,
        loaders.crop_cache(config),
        beside=[crop.crop for crop in measured],
    )
    return [_measure(row, crop) for row, crop in zip(rows, crops, strict=True)]


def _measure(row: Row, crop: Crop) -> MeasuredCrop:
    sampled = cells(_annotated_raw(crop))
    largest = 255 if sampled.dtype == np.uint8 else 1
    sampled = sampled.astype(np.float32) / largest
    raw = ngff.open_levels(row.raw)[0]
    labels = ngff.open_levels(row.class_volume(row.annotated[0]))[0]
    return MeasuredCrop(
        row=row,
        crop=crop,
        values=sampled.ravel(),
        constant=float((np.ptp(sampled, axis=1) == 0).mean()),
        black=float((sampled.max(axis=1) == 0).mean()),
        raw_scale=raw.scale,
        raw_extent=raw.scale * raw.shape,
        label_scale=labels.scale,
    )


def _annotated_raw(crop: Crop) -> np.ndarray:
    """Return the raw of the annotated block, without what is kept around it."""
    return crop.raw()[box.slices(*crop.raw_grid.voxels_in(crop.label_grid.box()))]


def cells(volume: np.ndarray) -> np.ndarray:
    """Return cells that lie evenly spread over a volume (z, y, x), as (cells, voxels of a cell).

    At most CELLS of them along each axis, CELL voxels wide or as wide as the volume.
    """
    edge = np.minimum(CELL, volume.shape)
    voxels = []
    for length, width in zip(volume.shape, edge, strict=True):
        # on multiples of the width, so that no two of them share a voxel
        spread = np.linspace(0, length - width, CELLS).astype(int)
        corners = np.unique(spread // width) * width
        of_cells = corners[:, None] + np.arange(width)
        voxels.append(of_cells.ravel())
    return box.cells(volume[np.ix_(*voxels)], edge)


# What is known of them


def class_facts(
    classes: Sequence[str], by_usage: Mapping[str, Sequence[MeasuredCrop]]
) -> dict[str, dict[str, ClassFacts]]:
    """Return what the crops of each usage have of each class, by class, then by usage."""
    facts: dict[str, dict[str, ClassFacts]] = {name: {} for name in classes}
    for usage, side in by_usage.items():
        positive = [crop.positive_um3() for crop in side]
        known = [crop.known_um3() for crop in side]
        for channel, name in enumerate(classes):
            positive_um3 = float(sum(volumes[channel] for volumes in positive))
            known_um3 = float(sum(volumes[channel] for volumes in known))
            facts[name][usage] = ClassFacts(
                annotated=sum(name in crop.row.annotated for crop in side),
                present=sum(bool(volumes[channel] > 0) for volumes in positive),
                known_um3=round(known_um3, 6),
                positive_um3=round(positive_um3, 6),
                fraction=positive_um3 / known_um3 if known_um3 else None,
            )
    return facts


def resolutions(crops: Sequence[MeasuredCrop]) -> dict[str, dict[str, int]]:
    """Count crops by voxel size: of the finest raw, of the labels, and of raw as it is read."""
    scales = {
        "raw": [crop.raw_scale for crop in crops],
        "labels": [crop.label_scale for crop in crops],
        "raw as read": [crop.crop.raw_grid.scale for crop in crops],
    }
    resolutions = {}
    for what, sizes in scales.items():
        counts = Counter(short_nm(size) for size in sizes)
        resolutions[what] = dict(counts.most_common())
    return resolutions


def intensities(crops: Sequence[MeasuredCrop]) -> dict[str, Intensities]:
    """Return the raw of each dataset, by its name."""
    by_dataset: dict[str, list[np.ndarray]] = {}
    for crop in crops:
        by_dataset.setdefault(crop.dataset, []).append(crop.values)
    return {dataset: _of_values(by_dataset[dataset]) for dataset in sorted(by_dataset)}


def _of_values(parts: Sequence[np.ndarray]) -> Intensities:
    values = np.concatenate(parts)
    numbers = [values.mean(dtype=np.float64), values.std(dtype=np.float64)]
    numbers += np.percentile(values, PERCENTILES).tolist()
    return Intensities(len(parts), *[round(float(number), 4) for number in numbers])


def short_nm(sizes: Sequence[float] | np.ndarray) -> str:
    """Return '8' for equal lengths, otherwise '5.24x4x4': a key of the JSON."""
    return nm(list(sizes)).replace(" x ", "x")

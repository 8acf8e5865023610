"""Describe the data of an experiment, and report what is unusual in them.

Class counts come from the palettes of the decoded crops, so only raw is read here, and sparsely: at
most 1000 cells of 4^3 voxels per crop, spread evenly over the annotated block. A cell whose voxels
all have the same value was not imaged, since EM has noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.config.settings import TrainConfig
from common.data import box, catalogue, loaders, make_split, ngff, normalize, split
from common.data.crops import Crop, is_smaller, open_crops
from common.data.normalize import Scaling
from common.data.palette import UNKNOWN
from common.data.split import Row
from common.errors import UserError
from common.talk import count, nm, some

CELL = 4
"""Edge of a cell, in voxels."""

CELLS = 10
"""Most cells that are read along each axis of a crop."""

FAR = 3.5
"""Modified z-score above which a value is reported as far from the others."""
# Iglewicz and Hoaglin, How to detect and handle outliers, 1993

FEWEST = 5
"""Least number of values for which a value can be reported as far from the others."""
# of four values the median deviation is a guess: two of them lie beside the median

LEAST_BRIGHTNESS_DEVIATION = 0.01
"""Median deviation of brightness in [0, 1] below which datasets count as alike."""

LEAST_DECADES_DEVIATION = 0.1
"""The same of the fraction of a class, in powers of ten."""

OTHER_BRIGHTNESS = 0.2
"""Distance between the medians of two datasets, in [0, 1], from which they count as unlike."""
# the gamma_range of the baselines, 0.9 to 1.1, moves a middle grey by 0.03

OTHER_CONTRAST = 1.5
"""Times the contrast of another dataset from which two count as unlike."""

EMPTY = 0.01
"""Fraction of constant cells above which a crop counts as empty in parts."""

COARSE = 1.5
"""Times the voxel size of the network's raw above which a finest raw counts as too coarse."""

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
        """(classes,) cubic micrometres that are positive."""
        return self._volume_um3(self.crop.palette == 1)

    def known_um3(self) -> np.ndarray:
        """(classes,) cubic micrometres that are positive or negative."""
        return self._volume_um3(self.crop.palette != UNKNOWN)

    def _volume_um3(self, rows: np.ndarray) -> np.ndarray:
        """(classes,) cubic micrometres of the voxels whose palette row is chosen for a class."""
        voxel_nm3 = float(self.crop.label_grid.scale.prod())
        return self.crop.counts @ rows * voxel_nm3 / 1e9

    def annotated(self, classes: Sequence[str]) -> list[str]:
        """Those of `classes` that it annotates."""
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


@dataclass
class Facts:
    """What the data of an experiment hold; its fields, in their order, are those of the JSON."""

    experiment: str
    crops: dict[str, int]
    """By usage, "train" or "validate"."""
    classes: dict[str, dict[str, ClassFacts]]
    """By class, then by usage."""
    resolutions: dict[str, dict[str, int]]
    """Crops by voxel size (nm): of the finest raw, of the labels, and of the raw as it is read."""
    intensities: dict[str, Intensities]
    """By dataset."""
    scalings: dict[str, dict[str, Any]]
    """How training normalises each raw volume; {} with raw_normalization = "range"."""
    findings: list[str]
    """Sentences about what stands out."""

    def as_json(self) -> dict[str, Any]:
        """The same in plain numbers and texts."""
        return asdict(self)


def describe(
    config: TrainConfig, crops: Sequence[MeasuredCrop], unreadable: Sequence[str] = ()
) -> Facts:
    """Facts and findings about crops that were measured, and those that could not be read."""
    by_usage: dict[str, list[MeasuredCrop]] = {usage: [] for usage in split.USAGES}
    for crop in crops:
        by_usage[crop.row.usage].append(crop)
    facts = Facts(
        experiment=config.model_name,
        crops={usage: len(side) for usage, side in by_usage.items()},
        classes=_classes(config.classes, by_usage),
        resolutions=_resolutions(crops),
        intensities=_intensities(crops),
        scalings={},
        findings=list(unreadable),
    )
    _add_scalings(facts, config, crops)
    facts.findings += _smaller_than_the_patch(config, crops)
    facts.findings += _not_imaged(crops)
    facts.findings += _without_a_voxel(config.classes, crops)
    facts.findings += _missing_classes(facts)
    facts.findings += _too_coarse(config, crops)
    facts.findings += _odd_datasets(facts.intensities)
    if config.raw_normalization not in normalize.MEASURED:
        facts.findings += unlike_datasets(facts.intensities)
    facts.findings += _odd_fractions(config.classes, crops)
    facts.findings += _leaks(crops)
    return facts


def measure_crops(config: TrainConfig) -> tuple[list[MeasuredCrop], list[str]]:
    """The crops that annotate a class of this run, and a sentence for each that cannot be read.

    They are decoded as training does, with the raw around them that training keeps, into the same
    cache. Raises UserError if none can be read, FileNotFoundError without a datasplit.
    """
    path = config.path("datasplit_path")
    rows = []
    for row in split.read_datasplit(path, config.path("data_path")):
        if set(row.annotated) & set(config.classes):
            rows.append(row)
    if not rows:
        classes = ", ".join(config.classes)
        raise UserError(f"{path}: no crop annotates any of {classes}; change classes or the split")
    measured: list[MeasuredCrop] = []
    unreadable: list[str] = []
    for usage in split.USAGES:
        side = [row for row in rows if row.usage == usage]
        if not side:
            continue
        try:
            measured += _measure_all(config, side, measured)
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


def _none_measured(path: Path, rows: Sequence[Row], unreadable: Sequence[str]) -> UserError:
    """The error for a split of which no crop can be read."""
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
    """The raw of the annotated block, without what is kept around it."""
    origin = crop.raw_grid.box()[0]
    lower, upper = crop.label_grid.box()
    shape = np.array(crop.raw_grid.shape)
    first = np.round((lower - origin) / crop.raw_grid.scale).astype(int)
    last = np.round((upper - origin) / crop.raw_grid.scale).astype(int)
    first = np.clip(first, 0, shape - 1)
    last = np.clip(last, first + 1, shape)
    return crop.raw()[tuple(map(slice, first, last))]


def cells(volume: np.ndarray) -> np.ndarray:
    """(cells, voxels of a cell): blocks of a (z, y, x) volume that lie evenly spread over it.

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


def _add_scalings(facts: Facts, config: TrainConfig, crops: Sequence[MeasuredCrop]) -> None:
    """Add how raw is normalised, or as a finding why it cannot be."""
    volumes = [crop.row.raw for crop in crops]
    try:
        scalings = normalize.of_volumes(config, volumes, {})
    except UserError as error:
        facts.findings.append(str(error))
        return
    facts.scalings = {name: scaling.record() for name, scaling in scalings.items()}


def _classes(
    classes: Sequence[str], by_usage: Mapping[str, Sequence[MeasuredCrop]]
) -> dict[str, dict[str, ClassFacts]]:
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


def _resolutions(crops: Sequence[MeasuredCrop]) -> dict[str, dict[str, int]]:
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


def _intensities(crops: Sequence[MeasuredCrop]) -> dict[str, Intensities]:
    by_dataset: dict[str, list[np.ndarray]] = {}
    for crop in crops:
        by_dataset.setdefault(crop.dataset, []).append(crop.values)
    return {dataset: _of_values(by_dataset[dataset]) for dataset in sorted(by_dataset)}


def _of_values(parts: Sequence[np.ndarray]) -> Intensities:
    values = np.concatenate(parts)
    numbers = [values.mean(dtype=np.float64), values.std(dtype=np.float64)]
    numbers += np.percentile(values, PERCENTILES).tolist()
    return Intensities(len(parts), *[round(float(number), 4) for number in numbers])


def _smaller_than_the_patch(config: TrainConfig, crops: Sequence[MeasuredCrop]) -> list[str]:
    """Crops whose raw does not hold a patch, which training refuses."""
    patch_nm = loaders.crop_request(config).patch_nm
    names = [crop.row.name for crop in crops if is_smaller(crop.raw_extent, patch_nm)]
    if not names:
        return []
    return [
        f"raw smaller than the input patch of {short_nm(patch_nm)} nm, which stops training, in "
        f"{count(len(names), 'crop')}: {some(names, 5)}; use a smaller input shape"
    ]


def _not_imaged(crops: Sequence[MeasuredCrop]) -> list[str]:
    """Crops that are black or constant in parts."""
    return [
        f"{crop.row.name}: {crop.constant:.0%} of its annotated block is constant, "
        f"{crop.black:.0%} is 0; fetch its EM chunks, or remove the crop from the datasplit"
        for crop in crops
        if crop.constant > EMPTY
    ]


def _without_a_voxel(classes: Sequence[str], crops: Sequence[MeasuredCrop]) -> list[str]:
    """Crops without a voxel of any class that they annotate."""
    findings = []
    for crop in crops:
        annotated = crop.annotated(classes)
        channels = [classes.index(name) for name in annotated]
        if not crop.positive_um3()[channels].any():
            findings.append(
                f"{crop.row.name}: no voxel of any class that it annotates "
                f"({', '.join(annotated[:5])}); is it meant as empty?"
            )
    return findings


def _missing_classes(facts: Facts) -> list[str]:
    """Classes that a side of the split does not annotate, or annotates without a voxel."""
    findings = []
    for usage in split.USAGES:
        if not facts.crops[usage]:
            continue
        unknown = []
        absent = []
        for name, sides in facts.classes.items():
            if not sides[usage].annotated:
                unknown.append(name)
            elif not sides[usage].present:
                absent.append(name)
        if unknown:
            findings.append(f"annotated in no {usage} crop: {', '.join(unknown)}")
        if absent:
            names = ", ".join(absent)
            findings.append(f"annotated, but without a voxel in any {usage} crop: {names}")
    return findings


def _too_coarse(config: TrainConfig, crops: Sequence[MeasuredCrop]) -> list[str]:
    """Crops whose finest raw is much coarser than what the network is given."""
    scale = np.array(config.input_array_info["scale"])
    names = [crop.row.name for crop in crops if (crop.raw_scale > COARSE * scale).any()]
    if not names:
        return []
    have = count(len(names), "crop has", "crops have")
    are = "is" if len(names) == 1 else "are"
    return [f"{have} no raw near {short_nm(scale)} nm and {are} interpolated: {some(names, 5)}"]


def _odd_datasets(intensities: Mapping[str, Intensities]) -> list[str]:
    """Datasets whose brightness or contrast is far from that of the others."""
    findings = []
    for what in ("mean", "std"):
        values = np.array([getattr(numbers, what) for numbers in intensities.values()])
        scores = far(values, LEAST_BRIGHTNESS_DEVIATION)
        for dataset, value, score in zip(intensities, values, scores, strict=True):
            if score > FAR:
                findings.append(
                    f"{dataset}: the {what} of its raw is {value:.2f}, of the median dataset "
                    f"{np.median(values):.2f} ({score:.1f} times the usual distance); look at it, "
                    "or set raw_normalization and gamma_range"
                )
    return findings


def unlike_datasets(intensities: Mapping[str, Intensities]) -> list[str]:
    """Datasets that differ in brightness or contrast so that a network should not be left to it."""
    if len(intensities) < 2:
        return []
    darkest = min(intensities, key=lambda dataset: intensities[dataset].p50)
    brightest = max(intensities, key=lambda dataset: intensities[dataset].p50)
    contrasts = {}
    for dataset, numbers in intensities.items():
        contrasts[dataset] = max(numbers.p99 - numbers.p1, 1e-3)
    flattest = min(contrasts, key=lambda dataset: contrasts[dataset])
    richest = max(contrasts, key=lambda dataset: contrasts[dataset])
    unlike = []
    if intensities[brightest].p50 - intensities[darkest].p50 > OTHER_BRIGHTNESS:
        unlike.append(
            f"the median of {darkest} is {intensities[darkest].p50:.2f}, of {brightest} "
            f"{intensities[brightest].p50:.2f}"
        )
    if contrasts[richest] > OTHER_CONTRAST * contrasts[flattest]:
        unlike.append(
            f"from p1 to p99 are {contrasts[flattest]:.2f} in {flattest} and "
            f"{contrasts[richest]:.2f} in {richest}"
        )
    if not unlike:
        return []
    return [
        f"raw differs between datasets ({'; '.join(unlike)}): raw_normalization = 'percentile' or "
        "'zscore' makes them alike"
    ]


def _odd_fractions(classes: Sequence[str], crops: Sequence[MeasuredCrop]) -> list[str]:
    """Crops whose fraction of a class is far from that of the others that have the class."""
    findings = []
    for channel, name in enumerate(classes):
        names = []
        volumes = []
        for crop in crops:
            positive = crop.positive_um3()[channel]
            if name in crop.row.annotated and positive > 0:
                names.append(crop.row.name)
                volumes.append((positive, crop.known_um3()[channel]))
        fractions = np.array([positive / known for positive, known in volumes])
        # by their order of magnitude: between 1% and 2% of a rare class nothing is odd
        scores = far(np.log10(fractions), LEAST_DECADES_DEVIATION)
        for crop_name, fraction, score in zip(names, fractions, scores, strict=True):
            if score > FAR:
                median = percent(float(np.median(fractions)))
                findings.append(
                    f"{crop_name}: {percent(fraction)} of it is {name}, of the median crop that "
                    f"has it {median}; see that the label is right"
                )
    return findings


def far(values: np.ndarray, least: float) -> np.ndarray:
    """Return the modified z-scores (n,) of (n,) values: 0.6745 |x - median| / MAD.

    MAD is the median absolute deviation, but at least `least`. All scores are 0 for fewer than
    FEWEST values.
    """
    if len(values) < FEWEST:
        return np.zeros(len(values))
    distance = np.abs(values - np.median(values))
    return 0.6745 * distance / max(float(np.median(distance)), least)


def _leaks(crops: Sequence[MeasuredCrop]) -> list[str]:
    """What validation crops share with training crops."""
    sides = []
    for crop in crops:
        grid = crop.crop.label_grid
        dataset, name = crop.row.name.split("/")
        listed = catalogue.CropInfo(
            dataset,
            name,
            tuple(grid.scale.tolist()),
            tuple(grid.origin.tolist()),
            grid.shape,
            frozenset(crop.row.annotated),
        )
        sides.append((crop.row.usage, listed))
    return make_split.leaks(sides)


def report(facts: Facts) -> list[str]:
    """Lines of a report: crops, classes, voxel sizes, intensities and findings."""
    train = facts.crops["train"]
    validate = facts.crops["validate"]
    lines = [
        f"{facts.experiment}: {count(train, 'training crop')}, "
        f"{count(validate, 'validation crop')}",
        "",
        f"{'':16}{'training crops':^32}{'validation crops':^32}".rstrip(),
        f"{'class':16}" + f"{'annotated':>10}{'present':>9}{'of known':>10}   " * 2,
    ]
    for name, sides in facts.classes.items():
        lines.append(f"{name:16}{''.join(map(_class_cells, sides.values()))}".rstrip())
    lines += ["", "voxel sizes (nm; crops)"]
    for what, sizes in facts.resolutions.items():
        counts = [f"{size}: {count}" for size, count in sizes.items()]
        lines.append(f"{what:16}{', '.join(counts)}")
    names = ("mean", "std", *(f"p{percentile}" for percentile in PERCENTILES))
    lines += ["", f"{'raw, 0 to 1':24}{'crops':>6}" + "".join(f"{name:>8}" for name in names)]
    for dataset, numbers in facts.intensities.items():
        values = [f"{getattr(numbers, name):8.3f}" for name in names]
        lines.append(f"{dataset:24}{numbers.crops:>6}{''.join(values)}")
    lines += [f"{name}: {Scaling.of(scaling)}" for name, scaling in facts.scalings.items()]
    lines.append("")
    lines += [f"- {finding}" for finding in facts.findings] or ["nothing stands out"]
    return lines


def _class_cells(side: ClassFacts) -> str:
    return f"{side.annotated:>10}{side.present:>9}{percent(side.fraction):>10}   "


def percent(fraction: float | None) -> str:
    """'12.3%', '0.123%' where it is below a tenth, '-' where it is not known."""
    if fraction is None:
        return "-"
    return f"{fraction:.3%}" if fraction < 0.1 else f"{fraction:.1%}"


def short_nm(sizes: Sequence[float] | np.ndarray) -> str:
    """'8' for equal lengths, otherwise '5.24x4x4': a key of the JSON."""
    return nm(list(sizes)).replace(" x ", "x")

"""Find what is unusual in the data of an experiment, and tell it in a sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from common.config.settings import TrainConfig
from common.data.crops import normalize
from common.data.crops.plan import is_smaller
from common.data.samples import loaders
from common.data.splits import catalogue, make_split, split
from common.data.summary.measured import ClassFacts, Intensities, MeasuredCrop, short_nm
from common.talk import count, some

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


def stand_out(
    config: TrainConfig,
    crops: Sequence[MeasuredCrop],
    classes: Mapping[str, Mapping[str, ClassFacts]],
    intensities: Mapping[str, Intensities],
) -> list[str]:
    """Return sentences about what stands out in crops, and about what training refuses.

    classes: by class, then by usage. intensities: by dataset.
    """
    findings = [
        *_smaller_than_the_patch(config, crops),
        *_not_imaged(crops),
        *_without_a_voxel(config.classes, crops),
        *_missing_classes(classes, crops),
        *_too_coarse(config, crops),
        *_odd_datasets(intensities),
    ]
    if config.raw_normalization not in normalize.MEASURED:
        findings += unlike_datasets(intensities)
    findings += _odd_fractions(config.classes, crops)
    findings += _leaks(crops)
    return findings


def _smaller_than_the_patch(config: TrainConfig, crops: Sequence[MeasuredCrop]) -> list[str]:
    """Return crops whose raw does not hold a patch, which training refuses."""
    patch_nm = loaders.crop_request(config).patch_nm
    names = [crop.row.name for crop in crops if is_smaller(crop.raw_extent, patch_nm)]
    if not names:
        return []
    return [
        f"raw smaller than the input patch of {short_nm(patch_nm)} nm, which stops training, in "
        f"{count(len(names), 'crop')}: {some(names, 5)}; use a smaller input shape"
    ]


def _not_imaged(crops: Sequence[MeasuredCrop]) -> list[str]:
    """Return crops that are black or constant in parts."""
    findings = []
    for crop in crops:
        if crop.constant > EMPTY:
            findings.append(
                f"{crop.row.name}: {crop.constant:.0%} of its annotated block is constant, "
                f"{crop.black:.0%} is 0; fetch its EM chunks, or remove the crop from the datasplit"
            )
    return findings


def _without_a_voxel(classes: Sequence[str], crops: Sequence[MeasuredCrop]) -> list[str]:
    """Return crops without a voxel of any class that they annotate."""
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


def _missing_classes(
    classes: Mapping[str, Mapping[str, ClassFacts]], crops: Sequence[MeasuredCrop]
) -> list[str]:
    """Return classes that a side of the split does not annotate, or annotates without a voxel."""
    findings = []
    used = {crop.row.usage for crop in crops}
    for usage in split.USAGES:
        if usage not in used:
            continue
        unknown = []
        absent = []
        for name, sides in classes.items():
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
    """Return crops whose finest raw is much coarser than what the network is given."""
    scale = np.array(config.input_array_info["scale"])
    names = [crop.row.name for crop in crops if (crop.raw_scale > COARSE * scale).any()]
    if not names:
        return []
    have = count(len(names), "crop has", "crops have")
    are = "is" if len(names) == 1 else "are"
    return [f"{have} no raw near {short_nm(scale)} nm and {are} interpolated: {some(names, 5)}"]


def _odd_datasets(intensities: Mapping[str, Intensities]) -> list[str]:
    """Return datasets whose brightness or contrast is far from that of the others."""
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
    """Return a sentence about datasets of unlike brightness or contrast; [] if all are alike."""
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
    """Return crops whose fraction of a class is far from that of the others that have the class."""
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
    """Return sentences about what validation crops share with training crops."""
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


def percent(fraction: float | None) -> str:
    """Return '12.3%', '0.123%' where it is below a tenth, '-' where it is not known."""
    if fraction is None:
        return "-"
    return f"{fraction:.3%}" if fraction < 0.1 else f"{fraction:.1%}"

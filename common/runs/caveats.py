"""Reasons why the figures of runs may not be compared."""

from __future__ import annotations

from collections.abc import Sequence

from common import talk
from common.config.as_text import from_text
from common.runs.measure import Measure
from common.runs.reading import Reading
from common.runs.sides import Side, differing

KNOWN = ("use_mutual_exclusion", "infer_groups")
"""Settings that change which voxels of a validation are known."""

LIMITS = ("validation_batch_limit", "validation_time_limit")
"""Settings that let a validation look at a part of its blocks."""

BLOCKS = ("target_array_info", "batch_size", *LIMITS, "random_seed")
"""Settings that may change which blocks a validation looks at."""

ONLY_WITH_LIMIT = ("batch_size", "random_seed")
"""Those of BLOCKS that change nothing if a validation looks at all blocks.

The seed ordered the blocks in runs that do not have on record which ones they looked at.
"""


def incomparable(sides: Sequence[Side], measure: Measure) -> list[str]:
    """Return a sentence for each reason why the figures of these sides may not be compared."""
    sentences = _other_data(sides, measure)
    if measure.of_validation:
        sentences += _other_validation(sides)
    for reading in _readings(sides):
        if reading.record.result.finished is False:
            planned = reading.record.settings.get("epochs", "unknown")
            sentences.append(
                f"{reading.name} is not finished (epoch {reading.record.result.epoch} of {planned})"
            )
    return sentences


def _readings(sides: Sequence[Side]) -> list[Reading]:
    readings: list[Reading] = []
    for side in sides:
        readings += side.members
    return readings


def _other_data(sides: Sequence[Side], measure: Measure) -> list[str]:
    """Return sentences about runs with other datasplits, classes or target voxel sizes."""
    sentences = []
    if differing(sides, ["split_hash"], "provenance"):
        sentences.append(
            "the runs have other datasplits: they validate on other crops, "
            "and one may have trained on what another validates on"
        )
    if differing(sides, ["classes"]):
        sentences.append(
            f"the runs learn other classes: compared over the {len(measure.classes)} that all have"
        )
    targets = differing(sides, ["target_array_info"]).get("target_array_info", [])
    # the shape alone may differ: it changes which blocks are seen, not what a voxel is
    sizes = list(dict.fromkeys(_voxel_size(text) for text in targets))
    if len([size for size in sizes if size]) > 1:
        sentences.append(
            f"the runs have other target voxel sizes ({', '.join(filter(None, sizes))}): "
            "a metric on coarse voxels is not one on fine ones"
        )
    return sentences


def _voxel_size(text: str) -> str:
    """Return the voxel size in the text of an array's settings; "" if it cannot be read."""
    try:
        return f"{talk.nm(from_text(text)['scale'])} nm"
    except (ValueError, KeyError, TypeError):  # of another trainer
        return ""


def _other_validation(sides: Sequence[Side]) -> list[str]:
    """Return sentences about validations that did not look at the same known voxels."""
    sentences = []
    recorded = {reading.record.result.validation_blocks for reading in _readings(sides)}
    if None in recorded:
        sentences += _perhaps_other_blocks(sides)
    elif len(recorded) > 1:
        sentences.append(_other_blocks(sides))
    known = _differing_between_runs(sides, KNOWN)
    if known:
        sentences.append(
            f"the runs validated with other labels known: they differ in {', '.join(known)}"
        )
    return sentences


def _other_blocks(sides: Sequence[Side]) -> str:
    """Return a sentence about runs that have other validation blocks on record."""
    numbers = []
    for reading in _readings(sides):
        number, _, _ = str(reading.record.result.validation_blocks).partition(",")
        numbers.append(f"{reading.name} {number}")
    return (
        f"the runs validated on other blocks ({talk.some(numbers, 4)}): a difference between them "
        "is one of the blocks too"
    )


def _perhaps_other_blocks(sides: Sequence[Side]) -> list[str]:
    """Return sentences about settings that may change which blocks were looked at.

    They are needed where a run does not have its validation blocks on record.
    """
    sentences = []
    is_limited = any(_is_set(sides, limit) for limit in LIMITS)
    names = [name for name in BLOCKS if is_limited or name not in ONLY_WITH_LIMIT]
    blocks = _differing_between_runs(sides, names)
    if blocks:
        sentences.append(
            f"the runs may have validated on other blocks: they differ in {', '.join(blocks)}"
        )
    if _is_set(sides, "validation_time_limit"):
        sentences.append(
            "validation_time_limit is set: how many blocks a run validated on depended on its "
            "machine"
        )
    return sentences


def _differing_between_runs(sides: Sequence[Side], names: Sequence[str]) -> list[str]:
    """Return the settings in which any two runs differ, two seeds of one side included."""
    runs = [Side(reading.name, (reading,)) for reading in _readings(sides)]
    return list(differing(runs, names))


def _is_set(sides: Sequence[Side], name: str) -> bool:
    """Whether a run has a number other than 0 for this setting."""
    return any(_number(reading.record.settings.get(name, "0")) for reading in _readings(sides))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0

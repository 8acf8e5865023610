"""Why figures of runs may not be compared."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from common import talk
from common.runs.measure import Measure
from common.runs.reading import Reading
from common.runs.sides import Side, differing

BLOCKS = (
    "target_array_info",
    "batch_size",
    "validation_batch_limit",
    "validation_time_limit",
    "use_mutual_exclusion",
    "infer_groups",
)
"""Settings that change which voxels a validation looks at, or which of them are known."""


def incomparable(sides: Sequence[Side], measure: Measure) -> list[str]:
    """A sentence for each reason why the figures of these sides may not be compared."""
    sentences = _other_data(sides, measure)
    if measure.of_validation:
        sentences += _other_validation(sides)
    for reading in _readings(sides):
        if reading.result.finished is False:
            planned = reading.settings.get("epochs", "unknown")
            sentences.append(
                f"{reading.name} is not finished (epoch {reading.result.epoch} of {planned})"
            )
    return sentences


def _readings(sides: Sequence[Side]) -> list[Reading]:
    readings: list[Reading] = []
    for side in sides:
        readings += side.members
    return readings


def _other_data(sides: Sequence[Side], measure: Measure) -> list[str]:
    """About runs that learn from, or are measured on, other things."""
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
    """The voxel size in the text of an array's settings; "" where it cannot be read."""
    try:
        return f"{talk.nm(ast.literal_eval(text)['scale'])} nm"
    except (ValueError, SyntaxError, KeyError, TypeError):  # of another trainer
        return ""


def _other_validation(sides: Sequence[Side]) -> list[str]:
    """About metrics of validations that did not look at the same voxels."""
    sentences = []
    names = list(BLOCKS)
    # the size of a batch matters only to a validation that counts batches
    if not _is_set(sides, "validation_batch_limit") and not _is_set(sides, "validation_time_limit"):
        names.remove("batch_size")
    blocks = differing(sides, names)
    if blocks:
        sentences.append(
            "the runs may have validated on other blocks, or with other labels known: "
            f"they differ in {', '.join(blocks)}"
        )
    if _is_set(sides, "validation_time_limit"):
        sentences.append(
            "validation_time_limit is set: how many blocks a run validated on depended on its "
            "machine"
        )
    return sentences


def _is_set(sides: Sequence[Side], name: str) -> bool:
    """Whether a run has a number other than 0 in this setting."""
    return any(_number(reading.settings.get(name, "0")) for reading in _readings(sides))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0

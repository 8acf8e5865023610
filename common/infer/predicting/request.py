"""Which classes of which boxes a call of predict asks for.

What cannot be done is refused here, before a network is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.config.derived import channel_classes, with_derived
from common.config.settings import TrainConfig
from common.data.crops import normalize
from common.data.crops.input_channels import open_channels
from common.data.splits import regions
from common.data.splits.regions import Region
from common.data.volumes.level import Level
from common.data.volumes.raw import Raw
from common.errors import UserError, refuse
from common.talk import note

MOST_CHUNKS = 2**16
"""Chunks of raw in a box that are looked for at most.

In larger boxes blocks that are black throughout are said.
"""


def choose_classes(
    config: TrainConfig, boxes: Sequence[Region], classes: Sequence[str]
) -> list[tuple[Region, list[str]]]:
    """Return each box with the classes to predict there.

    These are the classes that are asked for; of a test crop, those of them that are scored. A box
    without any of them is left out. Raise UserError with everything that is wrong with the raw of
    the boxes.
    """
    asked = with_derived(classes or config.channels, config.derived)
    unknown = [name for name in asked if name not in config.channels]
    if unknown:
        raise UserError(
            f"{config.folder}: the network has no class {', '.join(unknown)}; it has "
            f"{', '.join(config.channels)}"
        )
    problems = [_problem_of_raw(region, config) for region in boxes]
    # each once: crops of one volume share what is wrong with it
    refuse([problem for problem in dict.fromkeys(problems) if problem])
    names = [_classes_of(region, asked, config) for region in boxes]
    return regions.where_scored(boxes, names, asked, task="predict")


def _classes_of(region: Region, asked: Sequence[str], config: TrainConfig) -> list[str]:
    """Return the classes to predict in a box, in the network's order."""
    names = [name for name in config.channels if name in asked]
    is_test_crop = region.truth is None and bool(region.classes)
    if not is_test_crop:
        return names
    class_of_channel = channel_classes(config.classes, config.derived)
    return [name for name in names if class_of_channel[name] in region.classes]


def _problem_of_raw(region: Region, config: TrainConfig) -> str:
    """Return why the raw of a box cannot be predicted from; "" where it can."""
    try:
        raw = normalize.open_for(config, region.raw, config.input_array_info["scale"])
        open_channels(config, (region.dataset, region.name), config.input_array_info["scale"])
    except (UserError, FileNotFoundError) as error:
        return str(error)
    lower, upper = raw.level.box()
    if (region.lower >= upper).any() or (region.upper <= lower).any():
        return (
            f"{region}: {regions.box_text(region.lower, region.upper)} nm, outside of its raw "
            f"{region.raw}, which is {regions.box_text(lower, upper)} nm; check translation and "
            "scale in their .zattrs"
        )
    _note_beyond(region, raw)
    _note_missing(region, raw.level)
    try:
        if config.raw_normalization not in normalize.MEASURED:
            raw.note_contrast(region.lower, region.upper)
    except UserError as error:
        return str(error)  # its middle cannot be read
    return ""


def _note_beyond(region: Region, raw: Raw) -> None:
    """Note a box that its raw does not cover: a translation may be wrong."""
    lower, upper = raw.level.box()
    beyond = np.maximum(lower - region.lower, region.upper - upper)
    # labels may have other voxels than the raw, and their boxes differ by less than one
    if (beyond > raw.level.scale).any():
        note(
            f"{region}: reaches up to {beyond.max():.4g} nm beyond its raw {region.raw}, and is "
            "predicted from mirrored raw there; check translation and scale in their .zattrs"
        )


def _note_missing(region: Region, level: Level) -> None:
    """Note chunks of raw that are missing: the network sees one value in their place."""
    voxels_in_box = np.prod((region.upper - region.lower) / level.scale)
    if voxels_in_box > MOST_CHUNKS * np.prod(level.array.chunks):
        return
    chunks = level.missing_in(region.lower, region.upper)
    if chunks.missing:
        note(
            f"{region}: {chunks.missing} of {chunks.of} chunks of raw are not there, and are of "
            "one value; if EM does not end there, fetch them again, and predict with --overwrite"
        )

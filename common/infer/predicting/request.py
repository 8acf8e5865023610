"""What a call of predict asks for: which classes of which boxes, stored how.

What cannot be done is refused here, before a network is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from common.config.derived import Affinities, channel_classes, with_derived
from common.config.settings import TrainConfig
from common.data.crops import normalize
from common.data.crops.input_channels import open_channels
from common.data.splits import regions
from common.data.splits.regions import Region
from common.data.volumes.level import Level
from common.data.volumes.raw import Raw
from common.errors import UserError, refuse
from common.infer.networks.planes import CHOICES, OWN
from common.infer.predicting.work import Output
from common.talk import nm, note

FARTHEST_SCALE = 64
"""Between the voxels of a network and those that are written: a written one is made of up to the
cube of it, all of which are in memory."""

FARTHEST = 1e9
"""Nm around a box, a metre: no number of voxels is too large to be counted."""

MOST_CHUNKS = 2**16
"""Of raw in a box that are looked for; of larger ones blocks that are black throughout are said."""

# Which classes of which boxes


def choose_classes(
    config: TrainConfig, boxes: Sequence[Region], classes: Sequence[str]
) -> list[tuple[Region, list[str]]]:
    """Each box with the classes to predict there.

    These are the classes asked for, and of a test crop those of them that are scored. Boxes where
    none is left are left out. Raises UserError with everything that is wrong with the raw of the
    boxes.
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
    """The classes to predict in a box, in the network's order."""
    names = [name for name in config.channels if name in asked]
    is_test_crop = region.truth is None and bool(region.classes)
    if not is_test_crop:
        return names
    made_of = channel_classes(config.classes, config.derived)
    return [name for name in names if made_of[name] in region.classes]


# Whether their raw can be read


def _problem_of_raw(region: Region, config: TrainConfig) -> str:
    """Why a box cannot be predicted; "" where it can."""
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
    """Note chunks of raw that are not there: the network sees one value in their place."""
    voxels_in_box = np.prod((region.upper - region.lower) / level.scale)
    if voxels_in_box > MOST_CHUNKS * np.prod(level.array.chunks):
        return
    chunks = level.missing_in(region.lower, region.upper)
    if chunks.missing:
        note(
            f"{region}: {chunks.missing} of {chunks.of} chunks of raw are not there, and are of "
            "one value; if EM does not end there, fetch them again, and predict with --overwrite"
        )


# How it is stored


def at_asked_scale(output: Output, region: Region, config: TrainConfig) -> Output:
    """How a box is stored: a test crop in no finer voxels than any of its classes is scored at.

    Crops of 16 and 32 nm would take most of the disk at a network's 8 nm. It is one size for all
    classes that the network has, whichever are asked for, so that later ones stand beside them.
    """
    scales = [region.asked_scales[name] for name in config.classes if name in region.asked_scales]
    if output.scale or not scales:
        return output
    network_scale = np.array(config.target_array_info["scale"], float)
    asked = np.min(scales, axis=0)
    if (asked <= network_scale).all():
        return output
    return replace(output, scale=tuple(np.maximum(asked, network_scale).tolist()))


def check_output(output: Output, config: TrainConfig) -> Output:
    """The same. Raises UserError with everything that is wrong with it."""
    problems = []
    if output.content not in ("probability", "logits"):
        problems.append(f"content '{output.content}'; write probability or logits")
    if output.dtype not in ("uint8", "float16", "float32"):
        problems.append(f"dtype '{output.dtype}'; write uint8, float16 or float32")
    if output.content == "logits" and output.dtype == "uint8":
        problems.append("logits do not fit into uint8; write --dtype float16 or float32")
    if output.planes not in CHOICES:
        problems.append(f"planes '{output.planes}'; write {', '.join(CHOICES)}")
    if output.orientations not in (1, 8, 16):
        problems.append(
            f"{output.orientations} orientations; write 1, 8 (mirrored) or 16 (with y and x "
            "exchanged)"
        )
    scales = (config.input_array_info["scale"], config.target_array_info["scale"])
    if output.orientations == 16 and any(y != x for _, y, x in scales):
        problems.append("16 orientations exchange y and x, whose voxel sizes differ here; write 8")
    has_pairs = any(isinstance(channel, Affinities) for channel in config.derived.values())
    if has_pairs and output.planes != OWN:
        problems.append(
            "affinities are of pairs along a direction, which other planes have along another one; "
            "leave --planes out"
        )
    problems += _problems_of_lengths(output, config.target_array_info["scale"])
    refuse(problems)
    return output


def _problems_of_lengths(output: Output, own_scale: Sequence[float]) -> list[str]:
    """What is wrong with lengths. own_scale: nm, z, y, x, of what the network gives."""
    problems = []
    are_sizes = all(0 < size < math.inf for size in output.scale)
    if output.scale and not (len(output.scale) == 3 and are_sizes):
        problems.append(f"scale {output.scale}; write three voxel sizes in nm, z, y, x")
    elif any(
        not 1 / FARTHEST_SCALE <= size / own <= FARTHEST_SCALE
        for size, own in zip(output.scale, own_scale, strict=False)
    ):
        problems.append(
            f"scale {nm(output.scale)}: the network gives {nm(own_scale)} nm; write sizes up to "
            f"{FARTHEST_SCALE} times larger or smaller"
        )
    if not 0 <= output.margin <= FARTHEST:
        problems.append(f"margin {output.margin:g}; write a length in nm, such as 500")
    if output.block < 0:
        problems.append(f"block {output.block}; write a number of voxels, such as 128")
    return problems

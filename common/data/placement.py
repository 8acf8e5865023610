"""Whether a raw volume, the labels of a crop and a network fit together in space.

What cannot be meant is refused; what is unusual and may be meant is a note.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.data.box import Vector
from common.data.level import Grid, Level, box_text
from common.errors import UserError
from common.talk import nm, note_once

ENLARGED = 1.5
"""Voxels that are larger than wanted by more than this, along any axis, are a note.

16 nm for a network of 8 nm is; sizes such as 5.24 nm for 4 nm are not.
"""

TOO_LARGE = 8.0
"""The same over all axes, as a geometric mean, that is refused.

A mean: sections of 40 nm in volumes of 4 nm are ordinary, and are wanted at 8 x 8 x 8 nm.
"""

LEAST_INSIDE = 0.5
"""Part of a crop's extent along each axis that lies in its raw, at least."""


def check_detail(level: Level, wanted: Vector, purpose: str) -> None:
    """Compare the voxels of a level with those that are wanted of it, in nm.

    Args:
        level: the one nearest to what is wanted.
        wanted: (3,) nm.
        purpose: whose voxels those are, for the messages.

    Raises:
        UserError: if its voxels are so much larger that there is nothing to be seen.
    """
    ratio = level.scale / np.array(wanted, float)
    mean = _mean_ratio(level.scale, wanted)
    sizes = f"voxels of {nm(level.scale)} nm, and {purpose} has {nm(wanted)} nm"
    if mean > TOO_LARGE:
        raise UserError(
            f"{level.path}: {sizes}, {mean:.3g} times finer; take a finer volume, correct scale "
            "or unit in its .zattrs, or set a voxel size near to its own"
        )
    if (ratio > ENLARGED).any():
        note_once(f"{level.path}: {sizes}; it is enlarged, which adds no detail")


def check_crop(crop: Path, label: Level, raw: Level, finest_nm: np.ndarray) -> None:
    """See that the labels of a crop lie in their raw.

    Args:
        crop: its folder.
        label: finest level of a class.
        raw: the level that is read.
        finest_nm: (3,) voxel size of the finest level of the raw.

    Raises:
        UserError: if less than half of the crop lies in the raw.
    """
    lower, upper = label.box()
    raw_lower, raw_upper = raw.box()
    shared = np.minimum(upper, raw_upper) - np.maximum(lower, raw_lower)
    boxes = f"labels at {box_text(label.grid)} nm, raw {raw.group} at {box_text(raw.grid)} nm"
    advice = "check translation, scale and units in both .zattrs"
    if (shared <= 0).any():
        raise UserError(f"{crop}: {boxes} do not overlap; {advice}")
    if (shared < LEAST_INSIDE * (upper - lower)).any():
        raise UserError(f"{crop}: {boxes}: less than half of the crop lies in the raw; {advice}")
    finer = _mean_ratio(finest_nm, label.scale)
    if finer > TOO_LARGE:
        note_once(
            f"{crop}: voxels of {nm(label.scale)} nm, {finer:.3g} times finer than those of the "
            f"raw {raw.group}; if that is not so, {advice}"
        )
    # half a voxel more or less is rounding, or another idea of where a voxel is
    slack = 1.01 * np.maximum(label.scale, raw.scale)
    if (lower < raw_lower - slack).any() or (upper > raw_upper + slack).any():
        note_once(f"{crop}: {boxes}: what is beyond the raw is trained on mirrored raw")
    if not label.has_translation and not _same_box(label.grid, raw.grid, slack):
        note_once(
            f"{crop}: no translation in its .zattrs, so it begins at 0: {boxes}; write the place "
            "of its first voxel, also where that is 0"
        )


def _mean_ratio(large: Vector, small: Vector) -> float:
    """How many times larger voxels are than others, over all axes."""
    ratios = np.array(large) / small
    return float(np.exp(np.log(ratios).mean()))


def _same_box(first: Grid, second: Grid, slack: np.ndarray) -> bool:
    pairs = zip(first.box(), second.box(), strict=True)
    return all((np.abs(one - other) <= slack).all() for one, other in pairs)

"""Judge whether volumes fit together in space: raw, the labels of a crop, the voxels of a network.

What cannot be meant is refused, and what is unusual and may be meant is a note. The module also
knows when two voxel sizes, or two grids, are the same but for rounding in their metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np

from common.data.volumes.box import Vector
from common.data.volumes.level import Grid, Level, box_text
from common.errors import UserError
from common.talk import nm, note_once

Item = TypeVar("Item")

SAME_SIZE = 1e-3
"""Part of a voxel size by which another one may differ and still be the same.

Metadata round sizes: 5.24 nm stand for 5.2399998, and 16 nm for three voxels of 5.3335 nm.
"""

SAME_ORIGIN = 0.1
"""Part of a voxel, along each axis, by which another place may differ and still be the same.

Metadata round positions too. A shift that is meant is larger: half a voxel where a corner is taken
for a centre, a quarter where the position of a level is taken for that of a level twice as fine.
"""

ENLARGED = 1.5
"""Voxels that are larger than wanted by more than this, along any axis, are a note.

16 nm for a network of 8 nm is; sizes such as 5.24 nm for 4 nm are not.
"""

TOO_LARGE = 8.0
"""The same over all axes, as a geometric mean, that is refused.

A mean: sections of 40 nm in volumes of 4 nm are ordinary, and are wanted at 8 x 8 x 8 nm.
"""

OTHER_UNIT = 300.0
"""The same, the other way round, that is refused: um in place of nm is a thousand.

Of voxels beside those that are wanted, and of labels beside the finest raw.
"""

REVERSED = 2.0
"""Times that z and x differ less, each, in the other order, from which that may be meant."""

LEVELS_APART = 0.1
"""Part of a volume's extent by which its levels may end at different places.

A level may leave out an incomplete voxel, or have one more, at each halving.
"""

ADVICE = "check translation, scale and units in both .zattrs"

LEAST_INSIDE = 0.5
"""Part of a crop's extent along each axis that lies in its raw, at least."""


def is_same_size(size: Vector, other: Vector) -> bool:
    """Return whether two voxel sizes (3,) are the same, but for rounding in their metadata."""
    return bool(np.allclose(size, other, rtol=SAME_SIZE, atol=0))


def are_same_voxels(grid: Grid, other: Grid) -> bool:
    """Return whether two grids have the same voxels, but for rounding in their metadata."""
    if grid.shape != other.shape or not is_same_size(grid.scale, other.scale):
        return False
    return not _begins_apart(grid.origin - other.origin, other.scale).any()


def group_by_voxels(items: Iterable[Item], grid_of: Callable[[Item], Grid]) -> list[list[Item]]:
    """Return the items in groups whose grids have the same voxels, in the order of the items."""
    groups: list[list[Item]] = []
    for item in items:
        for group in groups:
            if are_same_voxels(grid_of(item), grid_of(group[0])):
                group.append(item)
                break
        else:
            groups.append([item])
    return groups


def _begins_apart(distance: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    """Return (3,) bool: whether a distance (nm) is more than rounding of a place in metadata."""
    return np.abs(distance) > SAME_ORIGIN * voxel


def check_detail(level: Level, wanted: Vector, purpose: str) -> None:
    """Compare the voxels of a level with those that are wanted of it, in nm.

    Args:
        level: the one nearest to what is wanted.
        wanted: (3,) nm.
        purpose: whose voxels those are, for the messages.

    Raises:
        UserError: if its voxels are so much larger that there is nothing to be seen, or so much
            smaller that the whole of it would be a few.
    """
    ratio = level.scale / np.array(wanted, float)
    mean = _mean_ratio(level.scale, wanted)
    sizes = f"voxels of {nm(level.scale)} nm, and {purpose} has {nm(wanted)} nm"
    if mean > TOO_LARGE:
        raise UserError(
            f"{level.path}: {sizes}, {mean:.3g} times finer; take a finer volume, correct scale "
            "or unit in its .zattrs, or set a voxel size near to its own"
        )
    if mean < 1 / OTHER_UNIT:
        raise UserError(
            f"{level.path}: {sizes}, {1 / mean:.3g} times coarser, as of another unit; correct "
            "scale or unit in its .zattrs, or write the size of its voxels in nm behind its name: "
            "#voxel_size=8"
        )
    if is_reversed(level.scale, wanted):
        note_once(f"{level.path}: {sizes}, as in the order x, y, z; sizes are written z, y, x")
    if (ratio > ENLARGED).any():
        note_once(f"{level.path}: {sizes}; it is enlarged, which adds no detail")


def is_reversed(size: Vector, other: Vector) -> bool:
    """Return whether two voxel sizes (3,) fit by far better with the axes of one turned round."""
    apart = np.abs(np.log(np.array(size) / other)).sum()
    apart_reversed = np.abs(np.log(np.array(size) / np.array(other)[::-1])).sum()
    return bool(apart - apart_reversed > 2 * np.log(REVERSED))


def check_pyramid(finest: Level, level: Level) -> None:
    """Compare the place of a level with that of the finest, which labels were painted on.

    Raises:
        UserError: if it begins more than a voxel away, or is of another size: its metadata are
            wrong, and what is read of it is not what lies there.
    """
    lower, upper = level.box()
    finest_lower, finest_upper = finest.box()
    begins_apart = np.abs(lower - finest_lower) > 1.01 * level.scale
    slack = 2 * level.scale + LEVELS_APART * (finest_upper - finest_lower)
    if begins_apart.any() or (np.abs(upper - finest_upper) > slack).any():
        lacks = "" if level.has_translation else ", without a translation"
        raise UserError(
            f"{level.path}: at {box_text(level.grid)} nm{lacks}, and the finest level, "
            f"{finest.path.name}, at {box_text(finest.grid)} nm; levels of a volume cover one box: "
            "correct their scale and translation in its metadata"
        )
    beside = lower - finest_lower
    if _begins_apart(beside, level.scale).any():
        centre = ", ".join(f"{place:g}" for place in finest_lower + level.scale / 2)
        note_once(
            f"{level.path}: begins {nm(np.abs(beside))} nm beside the finest level by its "
            "translation, and is read there; where its voxels are means of finer ones, their first "
            f"centre is {centre}: correct its metadata"
        )


def check_crop(crop: Path, label: Level, raw: Level, finest_nm: np.ndarray) -> None:
    """See that the labels of a crop lie in their raw.

    Args:
        crop: its folder.
        label: finest level of a class.
        raw: the level that is read.
        finest_nm: (3,) voxel size of the finest level of the raw.

    Raises:
        UserError: if less than half of the crop lies in the raw, or lies mirrored in it.
    """
    check_directions(label, raw)
    if is_reversed(label.scale, finest_nm):
        note_once(
            f"{crop}: voxels of {nm(label.scale)} nm, and its raw has {nm(finest_nm)} nm, as in "
            "the order x, y, z; sizes are written z, y, x"
        )
    lower, upper = label.box()
    raw_lower, raw_upper = raw.box()
    shared = np.minimum(upper, raw_upper) - np.maximum(lower, raw_lower)
    boxes = f"labels at {box_text(label.grid)} nm, raw {raw.group} at {box_text(raw.grid)} nm"
    if (shared <= 0).any():
        raise UserError(f"{crop}: {boxes} do not overlap; {ADVICE}")
    if (shared < LEAST_INSIDE * (upper - lower)).any():
        raise UserError(f"{crop}: {boxes}: less than half of the crop lies in the raw; {ADVICE}")
    _check_unit(crop, label, raw, finest_nm)
    slack = slack_nm(label, raw)
    if (lower < raw_lower - slack).any() or (upper > raw_upper + slack).any():
        note_once(f"{crop}: {boxes}: what is beyond the raw is left out")
    _note_half_a_voxel(crop, label, raw)
    if not label.has_translation:
        _note_place_not_said(crop, label, raw, boxes)


def _note_place_not_said(crop: Path, label: Level, raw: Level, boxes: str) -> None:
    """Note labels without a translation that do not cover their raw. boxes: of both, as text."""
    lower, upper = label.box()
    raw_lower, raw_upper = raw.box()
    begins_apart = _begins_apart(lower - raw_lower, label.scale)
    ends_apart = np.abs(upper - raw_upper) > slack_nm(label, raw)
    if not begins_apart.any() and not ends_apart.any():
        return
    corner = ", ".join(f"{place:g}" for place in raw_lower + label.scale / 2)
    at = ", ".join(f"{place:g}" for place in label.translation)
    note_once(
        f"{crop}: no translation in its .zattrs, so the centre of its first voxel is at {at}: "
        f"{boxes}; write the place of that centre, also where it is 0; where it begins with "
        f"the raw that is {corner}"
    )


def _note_half_a_voxel(crop: Path, label: Level, raw: Level) -> None:
    """Note labels between the voxels of a raw of the same size, along every axis by half of one."""
    if not is_same_size(label.scale, raw.scale):
        return
    beside = (label.grid.origin - raw.grid.origin) / raw.scale % 1
    if (np.abs(beside - 0.5) < SAME_ORIGIN).all():
        note_once(
            f"{crop}: labels lie half a voxel of {nm(label.scale)} nm beside the voxels of the raw "
            f"{raw.group} along every axis, as where a corner is taken for a centre; correct "
            "translation in one of their .zattrs unless that is meant"
        )


def _check_unit(crop: Path, label: Level, raw: Level, finest_nm: np.ndarray) -> None:
    """Compare the voxels of labels with those of raw. Raises UserError as of another unit."""
    finer = _mean_ratio(finest_nm, label.scale)
    sizes = (
        f"{crop}: voxels of {nm(label.scale)} nm, {finer:.3g} times finer than those of the raw "
        f"{raw.group}"
    )
    if finer > OTHER_UNIT:
        raise UserError(f"{sizes}, as of another unit; {ADVICE}")
    if finer > TOO_LARGE:
        note_once(f"{sizes}; if that is not so, {ADVICE}")


def check_directions(label: Level, raw: Level) -> None:
    """Raise UserError for labels whose axes point other ways than those of raw.

    Voxels are read in the order in which they are stored, so that they would lie mirrored.
    """
    if not (label.directions and raw.directions and label.directions.differ(raw.directions)):
        return
    raise UserError(
        f"{label.path}: its axes z, y, x point along {label.directions} (z, y, x of the world) by "
        f"its header, and those of the raw {raw.path} along {raw.directions}: write one of them "
        "again with the axes of the other, or, where their voxels are in one order all the same, "
        "the place of the first voxel behind its name, #translation=0,0,0 (nm)"
    )


def slack_nm(volume: Grid | Level, raw: Grid | Level) -> np.ndarray:
    """Return (3,) nm by which a volume and its raw may end at different places: a voxel.

    Half a voxel more or less is rounding, or another idea of where a voxel is.
    """
    return 1.01 * np.maximum(volume.scale, raw.scale)


def _mean_ratio(large: Vector, small: Vector) -> float:
    """Return how many times larger voxels are than others, over all axes."""
    ratios = np.array(large) / small
    return float(np.exp(np.log(ratios).mean()))

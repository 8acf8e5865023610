"""Tell whether a part of a crop, which `new --own` copies, has the labels that the crop has now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.data.splits.catalogue import CUT, is_part
from common.data.splits.split import Row
from common.data.volumes import ngff
from common.data.volumes.box import Box, boxes
from common.data.volumes.level import Level
from common.data.volumes.metadata import read_attributes
from common.data.volumes.placement import are_same_voxels
from common.errors import UserError
from common.talk import note, some

BLOCK = (128, 128, 128)
"""Voxels that are compared at once."""


def box_of(part: Path) -> Box | None:
    """Return which voxels of its class a part has; None for what is no part, or not there."""
    record = read_attributes(part).get(CUT) if part.exists() else None
    if not isinstance(record, dict):
        return None
    return Box(np.array(record["first"]), np.array(record["stop"]))


def is_outdated(part: Path, whole: Level) -> bool:
    """Return whether labels of the whole crop were edited since a part was copied of them.

    Voxels are compared only where files of the whole are newer: a copy of both may have any times.
    """
    box = box_of(part)
    if box is None or (box.stop > whole.shape).any():
        return False
    own = ngff.open_levels(part)[0]
    if _newest(whole, box) <= _newest(own, Box(np.zeros(3, int), own.shape)):
        return False
    for start, stop in boxes(box.shape, BLOCK):
        now = whole.read(box.start + start, box.start + stop)
        if not np.array_equal(now, own.read(start, stop)):
            return True
    return False


def _is_left_over(part: Path, whole: Level) -> bool:
    """Return whether a part is of a crop that was replaced since by one of another place."""
    box = box_of(part)
    if box is None:
        return False
    own = ngff.open_levels(part)[0]
    is_beyond = (box.stop > whole.shape).any()
    return bool(is_beyond) or not are_same_voxels(own.grid, whole.grid.part(box))


def note_outdated(rows: Sequence[Row]) -> None:
    """Note the parts that have other labels than their crops have by now."""
    outdated = []
    left_over = []
    for row in rows:
        if not row.crop.is_dir() or not is_part(row.crop):
            continue
        crop = row.crop.with_name(row.crop.name.rpartition("-")[0])
        for name in row.annotated:
            try:
                whole = ngff.open_levels(crop / name)[0]
            except (FileNotFoundError, UserError):
                continue  # removed since: the part is what there is
            if _is_left_over(row.crop / name, whole):
                left_over.append(f"{row.name}/{name}")
            elif is_outdated(row.crop / name, whole):
                outdated.append(f"{row.name}/{name}")
    if left_over:
        note(
            f"{some(left_over)}: parts of crops that other labels, of another place, have replaced "
            "since, so that what was taken for wrong may still be learnt; begin another experiment "
            "by new NAME --own DATASET, or write the crops of now into its datasplit"
        )
    if outdated:
        note(
            f"{some(outdated)}: copies of labels that were edited since in the crops that they are "
            "parts of; the import-data command of before, typed again, writes them anew"
        )


def _newest(level: Level, box: Box) -> int:
    """Return when the newest file of a box was written, ns; 0 without files."""
    times = [0]
    for file in level.files(box.start, box.stop):
        if file.exists():
            times.append(file.stat().st_mtime_ns)
    return max(times)

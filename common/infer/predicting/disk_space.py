"""What predictions take on disk: said before anything is written, refused where it cannot fit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.volumes import ngff
from common.data.volumes.level import Grid
from common.errors import FileError
from common.files import free_bytes
from common.talk import count, note, say, size

# measured: 3 to 5, since most voxels of most classes are 0 or nearly so
TYPICAL = 4
"""Bytes of a prediction in uint8 over those of its compressed chunks."""

MOST = 10
"""How many times smaller than its voxels a prediction may be hoped to be."""


@dataclass(frozen=True)
class Need:
    """What is still to be written of a box."""

    values: int
    """Voxels times classes."""
    bytes: int
    """Of all levels, uncompressed."""
    new_bytes: int
    """The part of `bytes` that is of classes of which nothing is on disk yet."""


def bytes_of(grid: Grid, dtype: str) -> int:
    """Return the bytes of a class, uncompressed, with the coarser levels."""
    shape = np.array(grid.shape)
    values = math.prod(shape.tolist())
    for factor in ngff.pyramid(grid):
        shape = shape // factor
        values += math.prod(shape.tolist())
    return values * np.dtype(dtype).itemsize


def announce(folder: Path, needs: Iterable[Need]) -> None:
    """Say how much all boxes take together, and note where it may not fit.

    Raise FileError where even a tenth would not fit.

    folder: where they are written.
    """
    incomplete = [need for need in needs if need.values]
    if not incomplete:
        return
    values = sum(need.values for need in incomplete)
    uncompressed = sum(need.bytes for need in incomplete)
    new = sum(need.new_bytes for need in incomplete)
    free = free_bytes(folder)
    say(
        f"{count(len(incomplete), 'box', 'boxes')}: {amount(values)} voxels x classes, at most "
        f"{size(uncompressed)} uncompressed, as a rule {size(uncompressed / TYPICAL)} on disk; "
        f"{size(free)} free in {folder}"
    )
    # what was begun has part of its room already
    if new / MOST > free:
        raise FileError(
            f"{folder}: {size(new)} to write, of which not even a tenth fits into the {size(free)} "
            "that are free; write fewer --crops or --classes, a coarser --scale, or set "
            "predictions_path to a folder of a larger disk"
        )
    if new > free:
        note(f"{size(free)} free are enough only if predictions compress well, as most do")


def amount(values: float) -> str:
    """Return a number of values in words: '1,443 G', '88.0 G', '5.3 M', '800'."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if values >= factor:
            number = values / factor
            return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
    return str(values)

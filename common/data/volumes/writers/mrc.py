"""Write MRC files, of tomography.

Source: https://www.ccpem.ac.uk/mrc_format/mrc2014.php. Lengths in the header are Angstrom. The
position is written as its origin, which ChimeraX reads, and IMOD with the other sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.data.volumes.box import boxes
from common.data.volumes.sources import files
from common.data.volumes.writers.outgoing import PROGRAM, Outgoing, Tell, Writer, key_in_start
from common.errors import FileError
from common.files import free_bytes
from common.talk import size

HEADER_BYTES = 1024

ANGSTROM = 10
"""In a nm."""

BLOCK = 128
"""Sections and rows that are read at once; voxels of whole rows are one piece of the file."""


@dataclass
class Statistics:
    """Smallest, largest and mean of what was seen, and its deviation from the mean."""

    smallest: float = math.inf
    largest: float = -math.inf
    total: float = 0.0
    squares: float = 0.0

    def see(self, section: np.ndarray) -> None:
        """Count voxels."""
        self.smallest = min(self.smallest, float(section.min()))
        self.largest = max(self.largest, float(section.max()))
        self.total += float(section.sum(dtype=np.float64))
        self.squares += float(np.square(section, dtype=np.float64).sum())


def write(path: Path, volume: Outgoing, tell: Tell) -> None:
    """Write a file, block by block in place: nothing of it is compressed."""
    needed_bytes = volume.size * volume.dtype.itemsize
    if needed_bytes > free_bytes(path.parent):
        raise FileError(
            f"{path.parent}: {size(free_bytes(path.parent))} free, and an MRC file of "
            f"{volume.name} takes {size(needed_bytes)}; free some, or write --format hdf5, which "
            "compresses"
        )
    header = _header(path, volume)
    statistics = Statistics()
    with path.open("r+b") as file:
        file.truncate(HEADER_BYTES + needed_bytes)
        for start, stop in boxes(volume.shape, (BLOCK, BLOCK, volume.shape[2])):
            block = volume.read(start, stop)
            for section in block:  # one by one: squares take eight bytes a voxel
                statistics.see(section)
            _put(file, volume, start, block)
            tell(block.size)
        mean = statistics.total / volume.size
        header.dmin = statistics.smallest
        header.dmax = statistics.largest
        header.dmean = mean
        header.rms = math.sqrt(max(0.0, statistics.squares / volume.size - mean**2))
        file.seek(0)
        file.write(header.tobytes())


def _put(file: BinaryIO, volume: Outgoing, start: np.ndarray, block: np.ndarray) -> None:
    """Write whole rows in their place."""
    _, height, width = volume.shape
    for number, rows in enumerate(block, int(start[0])):
        first = (number * height + int(start[1])) * width
        file.seek(HEADER_BYTES + first * volume.dtype.itemsize)
        file.write(rows.tobytes())


def _header(path: Path, volume: Outgoing) -> Any:
    """Return the header of a volume; its library makes that of one voxel."""
    mrcfile = files.library("mrcfile", "MRC files")
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.zeros((1, 1, 1), volume.dtype))
        file.set_volume()
        file.add_label(f"{PROGRAM} {volume.key}")
        header = file.header.copy()
    grid = volume.grid
    for axis, length, voxel, first in zip(
        "zyx", grid.shape, grid.scale * ANGSTROM, grid.origin * ANGSTROM, strict=True
    ):
        header[f"n{axis}"] = length
        header[f"m{axis}"] = length
        header.cella[axis] = length * voxel
        header.origin[axis] = first
    return header


WRITER = Writer(
    "mrc",
    (".mrc", ".rec", ".map"),
    write,
    key_in_start,
    # float32 has each whole number up to 2^24
    image_types=("int8", "int16", "uint16", "float32"),
    label_types=("int8", "int16", "uint16", "float32"),
    holds_place=False,
)

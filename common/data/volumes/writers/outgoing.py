"""A volume on its way to a file: its voxels, their type there, and what is said of it."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes.box import Box, Vector
from common.data.volumes.level import Grid, Level
from common.data.volumes.metadata import read_object
from common.data.volumes.sources.files import opened
from common.errors import UserError
from common.files import key_of

SLAB_BYTES = 2**28
"""Most bytes that are read at once of whole planes."""

PROGRAM = "csc export"
"""What stands before the key in a header of text."""

HEADER_BYTES = 1024
"""In which headers of one key in text have it."""

INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
ORDINARY = (*INTEGERS, "float32", "float64")
NUMBERS = (*INTEGERS, "float16", "float32", "float64")

Tell = Callable[[int], None]
"""Called with the number of voxels that are written."""


@dataclass(frozen=True)
class Outgoing:
    """A box of a volume that is written."""

    name: str
    """Of the class."""
    level: Level
    box: Box
    """Voxels of the level."""
    sort: str
    """"image", "mask" or "objects"."""
    dtype: np.dtype
    """That is written."""
    made: dict[str, Any]
    """By what its voxels were made, as JSON."""
    array: str = "volume"
    """Its name in a file that may hold several."""
    meshes: bool = False
    """Whether surfaces of its objects are written beside it."""

    @property
    def grid(self) -> Grid:
        """Where its voxels are."""
        return self.level.grid.part(self.box)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels, z, y, x."""
        z, y, x = self.box.shape.tolist()
        return z, y, x

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def is_labels(self) -> bool:
        """Whether its values are ids, or 0 and 1."""
        return self.sort != "image"

    @property
    def about(self) -> dict[str, Any]:
        """What a file says of itself besides its voxels."""
        grid = self.grid
        return {
            "class": self.name,
            "sort": self.sort,
            "voxel_size_nm": grid.scale.tolist(),
            "translation_nm": grid.origin.tolist(),
            "shape": list(grid.shape),
            "dtype": str(self.dtype),
            "array": self.array,
            "meshes": self.meshes,
            "made": self.made,
        }

    @property
    def key(self) -> str:
        """Equal for what is written alike."""
        return key_of(self.about)

    @property
    def record(self) -> dict[str, Any]:
        """What is said of the volume, and its key."""
        return {**self.about, "key": self.key}

    def read(self, start: Vector, stop: Vector) -> np.ndarray:
        """Return voxels start..stop-1, counted from its first one."""
        block = self.level.read(self.box.start + start, self.box.start + stop)
        return np.ascontiguousarray(block, self.dtype)

    def slabs(self) -> Iterator[np.ndarray]:
        """Whole planes, some at a time: as many as a chunk has, where they fit."""
        plane = math.prod(self.shape[1:]) * self.level.array.dtype.itemsize
        depth = max(1, min(self.level.array.chunks[0], SLAB_BYTES // plane))
        for first in range(0, self.shape[0], depth):
            last = min(first + depth, self.shape[0])
            yield self.read((first, 0, 0), (last, *self.shape[1:]))


@dataclass(frozen=True)
class Writer:
    """How one kind of file is written."""

    name: str
    endings: tuple[str, ...]
    """Of names; the first is given to new ones, none to plain folders."""
    write: Callable[[Path, Outgoing, Tell], None]
    """Write a file, or a folder that may have been begun."""
    key_in: Callable[[Path], str]
    """The key of what a file or folder holds; "" if it is not of this program."""
    image_types: tuple[str, ...]
    label_types: tuple[str, ...]
    """Types that it holds, the one to prefer first; none where it holds surfaces."""
    holds_place: bool = True
    is_folder: bool = False


def key_in_json(file: Path, *names: str) -> str:
    """Return the key of the record that stands below these names; "" where there is none."""
    try:
        record = read_object(file)
        for name in names:
            record = record[name]
        return str(record["key"])
    except (OSError, KeyError, TypeError, UserError):
        return ""


def key_in_text(text: str) -> str:
    """Return the key behind PROGRAM in a header; "" where there is none."""
    _, _, behind = text.partition(f"{PROGRAM} ")
    return behind[:24]


def key_in_start(path: Path) -> str:
    """Return the key in the header of a file, which may be packed; "" where there is none."""
    with opened(path) as file:
        is_packed = path.name.lower().endswith(".gz")
        try:
            header = (gzip.GzipFile(fileobj=file) if is_packed else file).read(HEADER_BYTES)
        except (OSError, EOFError, zlib.error):  # which is no such file
            return ""
    return key_in_text(header.decode("ascii", "replace"))

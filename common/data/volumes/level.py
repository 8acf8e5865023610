"""One resolution of a volume: its voxels, wherever they come from, and where they are.

Positions are in nm in the world frame of an image, z, y, x. `translation` is the position of the
*centre* of voxel (0, 0, 0), as in the NGFF specification, so that an image covers the box from
`translation - scale / 2` to `translation + (shape - 1/2) * scale`.
"""

from __future__ import annotations

import itertools
import lzma
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numcodecs import Blosc

from common.data.volumes import zarray
from common.data.volumes.box import Box, Corners, Vector, slices
from common.data.volumes.sources.remote import Address
from common.errors import UserError


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume are in the world."""

    origin: np.ndarray
    """(3,) position in nm of the centre of voxel (0, 0, 0)."""
    scale: np.ndarray
    """(3,) voxel size in nm."""
    shape: tuple[int, int, int]
    """Voxels, z, y, x."""

    def box(self) -> Corners:
        """Return the lower and the upper corner of the volume of all voxels."""
        lower = self.origin - self.scale / 2
        upper = self.origin + (np.array(self.shape) - 0.5) * self.scale
        return lower, upper

    def part(self, box: Box) -> Grid:
        """Return the grid of a box of the voxels."""
        z, y, x = box.shape.tolist()
        return Grid(self.origin + box.start * self.scale, self.scale, (z, y, x))

    def voxels_in(self, corners: Corners) -> Box:
        """Return the voxels in a box in the world, in whole ones; at least one along each axis."""
        first, last = (np.rint(self.in_voxels(corner)).astype(int) for corner in corners)
        start = np.clip(first, 0, np.array(self.shape) - 1)
        return Box(start, np.clip(last, start + 1, self.shape))

    def in_voxels(self, position: np.ndarray) -> np.ndarray:
        """Return how many voxels positions (..., 3) in nm are from the lower corner, as floats."""
        return (position - self.box()[0]) / self.scale


def box_text(grid: Grid) -> str:
    """Return the box of a grid: 'z, y, x 0 to 160, 0 to 160, 40 to 200', in nm."""
    lower, upper = grid.box()
    sides = [f"{low:g} to {high:g}" for low, high in zip(lower, upper, strict=True)]
    return f"z, y, x {', '.join(sides)}"


class MissingChunks(NamedTuple):
    """How many chunks of some voxels are not there."""

    missing: int
    of: int


class Voxels(ABC):
    """An array of three axes, z, y, x, that is no zarr v2 array."""

    path: Path
    """Of the file, or the folder of the array."""
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...]
    """Voxels that are decoded together; all of them where the array is one piece."""
    in_rows: bool = False
    """Whether voxels stand in the file as they are, so that a few rows are read by themselves."""
    fill_value: Any = 0
    """What a chunk that is not stored reads as."""
    beside: Sequence[Path] = ()
    """Further files that hold its voxels, where its own is a header for them."""
    attrs: Attributes

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @abstractmethod
    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return voxels of a box."""

    def files(self, start: Vector, stop: Vector) -> list[Path]:
        """Return the files on this disk that hold voxels start..stop-1; they need not exist."""
        return [self.path, *self.beside]


class Attributes(dict):
    """What an array says of itself besides its size, as zarr gives it."""

    def asdict(self) -> dict[str, Any]:
        """Return the attributes themselves."""
        return self


class Directions(NamedTuple):
    """Which way the axes of a volume point, in the world that a medical header tells of."""

    frame: str
    """What x, y, z of that world mean, such as "RAS"; "" where it is not said."""
    ways: tuple[float, ...]
    """(9,) the unit vectors along its axes z, y, x, z first, in z, y, x of that world."""

    def differ(self, other: Directions) -> bool:
        """Return whether the axes of another volume of the same world point other ways."""
        return self.frame == other.frame and not np.allclose(self.ways, other.ways, atol=0.01)

    def __str__(self) -> str:
        axes = []
        for first in (0, 3, 6):
            ways = [f"{way:.2g}" for way in self.ways[first : first + 3]]
            axes.append(" ".join(ways))
        return "; ".join(axes)


@dataclass(frozen=True)
class Level:
    """One resolution of a multiscale image."""

    path: Path
    """Of the array; of a file that holds one array, the file."""
    array: Any
    """A `zarr.Array`, or `Voxels`."""
    scale: np.ndarray
    """(3,) float64, voxel size in nm."""
    translation: np.ndarray
    """(3,) float64, position in nm of the centre of voxel (0, 0, 0)."""
    has_translation: bool = True
    """Whether the metadata have a translation; without one it is taken as 0."""
    dropped: tuple[int, ...] = ()
    """Axes of the array on disk that are dropped: those other than z, y, x, of length 1."""
    image: Path | None = None
    """The image that it is a level of; the folder of its array unless given."""
    directions: Directions | None = None
    """Which way its axes point; None where nothing says it."""
    stamp: str = ""
    """What its metadata are, or when they were written; "" for zarr v2 on this disk."""

    @property
    def group(self) -> Path:
        """The image that it is a level of."""
        return self.image or self.path.parent

    @property
    def shape(self) -> np.ndarray:
        """(3,) int, voxels along z, y, x."""
        return np.array(self.array.shape)

    @property
    def grid(self) -> Grid:
        """Where its voxels are."""
        return Grid(self.translation, self.scale, tuple(self.shape.tolist()))

    def box(self) -> Corners:
        """Return the lower and the upper corner, see `Grid.box`."""
        return self.grid.box()

    def read(self, start: Vector, stop: Vector) -> np.ndarray:
        """Return voxels start..stop-1 (z, y, x), which must lie within the array.

        Raises:
            UserError: with the path of the array, if a chunk cannot be decoded.
        """
        damage = self._damaged_chunk(start, stop)
        if damage:
            raise self._undecodable(start, stop, damage)
        try:
            return self.array[slices(start, stop)]
        except UserError:
            raise  # of a server
        # every codec has errors of its own
        except (RuntimeError, ValueError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise self._undecodable(start, stop, str(error)) from error
        except MemoryError as error:
            raise UserError(
                f"{self.path}: voxels {_whole(start)} to {_whole(stop)} do not fit into memory "
                f"({error}); write the array with smaller chunks, or take a smaller box of it"
            ) from error

    @property
    def has_chunk_files(self) -> bool:
        """Whether each chunk is a file of its own on this disk, as in zarr v2."""
        return not self.stamp

    def chunk_file(self, index: Sequence[int]) -> Path:
        """Return the file of a chunk, by its number along z, y, x; it need not exist."""
        separator = self.array._dimension_separator
        return self.path / zarray.chunk_name(index, self.dropped, separator)

    def chunk_files(self, start: Vector, stop: Vector) -> Iterator[Path]:
        """Iterate over the files of the chunks of voxels start..stop-1; they need not exist."""
        for index in itertools.product(*chunk_ranges(start, stop, self.array.chunks)):
            yield self.chunk_file(index)

    def files(self, start: Vector, stop: Vector) -> Iterable[Path]:
        """Return the files on this disk that hold voxels start..stop-1; they need not exist."""
        if self.has_chunk_files:
            return self.chunk_files(start, stop)
        return self.array.files(start, stop) if isinstance(self.array, Voxels) else []

    def missing_chunks(self, start: Vector, stop: Vector) -> MissingChunks:
        """Count the chunks that hold voxels start..stop-1, and those that have no file.

        These read as the fill value. Many writers leave out chunks that hold nothing else. Of
        chunks that share files, the files are counted; on a server none is missing.
        """
        files = [file for file in self.files(start, stop) if not isinstance(file, Address)]
        if not files:
            ranges = chunk_ranges(start, stop, self.array.chunks)
            return MissingChunks(0, math.prod(map(len, ranges)))
        missing = [file for file in files if not file.is_file()]
        return MissingChunks(len(missing), len(files))

    def missing_in(self, lower: np.ndarray, upper: np.ndarray) -> MissingChunks:
        """Count the same in a box, (3,) nm each."""
        return self.missing_chunks(*self.grid.voxels_in((lower, upper)))

    def _undecodable(self, start: Vector, stop: Vector, reason: str) -> UserError:
        return UserError(
            f"{self.path}: a chunk in voxels {_whole(start)} to {_whole(stop)} cannot be decoded "
            f"({reason}); copy this array again"
        )

    def _damaged_chunk(self, start: Vector, stop: Vector) -> str:
        """Return what is wrong with the first Blosc chunk whose length contradicts its header."""
        if not self.has_chunk_files or not isinstance(self.array.compressor, Blosc):
            return ""
        for file in self.chunk_files(start, stop):
            if file.is_dir():
                return f"{file.name} is a folder"
            if not file.is_file():
                continue
            with file.open("rb") as opened:
                header = opened.read(16)
            problem = zarray.blosc_problem(self.array, file.name, header, file.stat().st_size)
            if problem:
                return problem
        return ""


def chunk_ranges(start: Vector, stop: Vector, chunks: Vector) -> list[range]:
    """Return, for each axis, the numbers of the chunks that hold voxels start..stop-1."""
    ranges = []
    for first, end, size in zip(start, stop, map(int, chunks), strict=True):
        last = -(-int(end) // size)  # rounded up
        ranges.append(range(int(first) // size, last))
    return ranges


def _whole(position: Vector) -> list[int]:
    return [int(n) for n in position]

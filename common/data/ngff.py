"""Read and write OME-NGFF 0.4 multiscale images (zarr v2).

Positions are in nm in the world frame of an image, z, y, x. `translation` is the position of the
*centre* of voxel (0, 0, 0), as in the NGFF specification, so that an image covers the box from
`translation - scale / 2` to `translation + (shape - 1/2) * scale`.
"""

from __future__ import annotations

import itertools
import lzma
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zarr
from numcodecs import Blosc

from common.data import adapted, codecs, metadata
from common.data.box import Vector, slices
from common.data.metadata import STORED_CHUNKS, UNFINISHED, LevelMetadata
from common.errors import UserError
from common.files import refuse_remote

Reduction = Callable[[np.ndarray, Vector], np.ndarray]
"""`reduce(block, factors)` returns the coarser block, such as `block_mean` or `pick`."""

LARGEST_COMPRESSED = 2**21
"""Bytes that are compressed as one: an ordinary chunk."""


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume are in the world."""

    origin: np.ndarray
    """(3,) position in nm of the centre of voxel (0, 0, 0)."""
    scale: np.ndarray
    """(3,) voxel size in nm."""
    shape: tuple[int, int, int]
    """Voxels, z, y, x."""

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and the upper corner in nm, (3,) each, of the volume of all voxels."""
        lower = self.origin - self.scale / 2
        upper = self.origin + (np.array(self.shape) - 0.5) * self.scale
        return lower, upper


def box_text(grid: Grid) -> str:
    """The box of a grid: 'z, y, x 0 to 160, 0 to 160, 40 to 200', in nm."""
    lower, upper = grid.box()
    sides = [f"{low:g} to {high:g}" for low, high in zip(lower, upper, strict=True)]
    return f"z, y, x {', '.join(sides)}"


class MissingChunks(NamedTuple):
    """How many chunks of some voxels are not there."""

    missing: int
    of: int


@dataclass(frozen=True)
class Level:
    """One resolution of a multiscale image."""

    path: Path
    array: zarr.Array
    scale: np.ndarray
    """(3,) float64, voxel size in nm."""
    translation: np.ndarray
    """(3,) float64, position in nm of the centre of voxel (0, 0, 0)."""
    has_translation: bool = True
    """Whether the metadata have a translation; without one it is taken as 0."""
    dropped: tuple[int, ...] = ()
    """Axes of the array on disk that are dropped: those other than z, y, x, of length 1."""

    @property
    def shape(self) -> np.ndarray:
        """(3,) int, voxels along z, y, x."""
        return np.array(self.array.shape)

    @property
    def grid(self) -> Grid:
        """Where its voxels are."""
        return Grid(self.translation, self.scale, tuple(self.shape.tolist()))

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and the upper corner in nm, see `Grid.box`."""
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
        # every codec has errors of its own
        except (RuntimeError, ValueError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise self._undecodable(start, stop, str(error)) from error
        except MemoryError as error:
            raise UserError(
                f"{self.path}: voxels {_whole(start)} to {_whole(stop)} do not fit into memory "
                f"({error}); write the array with smaller chunks, or take a smaller box of it"
            ) from error

    def chunk_file(self, index: Sequence[int]) -> Path:
        """Return the file of a chunk, by its number along z, y, x; it need not exist."""
        separator = self.array._dimension_separator
        return self.path / adapted.chunk_name(index, self.dropped, separator)

    def chunk_files(self, start: Vector, stop: Vector) -> Iterator[Path]:
        """The files of the chunks that hold voxels start..stop-1; they need not exist."""
        for index in itertools.product(*chunk_ranges(start, stop, self.array.chunks)):
            yield self.chunk_file(index)

    def missing_chunks(self, start: Vector, stop: Vector) -> MissingChunks:
        """Count the chunks that hold voxels start..stop-1, and those that have no file.

        These read as the fill value. Many writers leave out chunks that hold nothing else.
        """
        files = list(self.chunk_files(start, stop))
        missing = [file for file in files if not file.is_file()]
        return MissingChunks(len(missing), len(files))

    def _undecodable(self, start: Vector, stop: Vector, reason: str) -> UserError:
        return UserError(
            f"{self.path}: a chunk in voxels {_whole(start)} to {_whole(stop)} cannot be decoded "
            f"({reason}); copy this array again"
        )

    def _damaged_chunk(self, start: Vector, stop: Vector) -> str:
        """Return what is wrong with the first Blosc chunk whose length contradicts its header."""
        # numcodecs hands such a chunk to Blosc, which reads on beyond its end
        if not isinstance(self.array.compressor, Blosc):
            return ""
        for file in self.chunk_files(start, stop):
            if file.is_dir():
                return f"{file.name} is a folder"
            if not file.is_file():
                continue
            with file.open("rb") as opened:
                packed, unpacked = blosc_lengths(opened.read(16))
            size = file.stat().st_size
            if size < packed:
                return f"{file.name} has {size} of {packed} bytes"
            # filters may change the length
            if not self.array.filters and unpacked != self._chunk_bytes():
                return f"{file.name} unpacks to {unpacked} bytes, and not {self._chunk_bytes()}"
        return ""

    def _chunk_bytes(self) -> int:
        return math.prod(self.array.chunks) * self.array.dtype.itemsize


def chunk_ranges(start: Vector, stop: Vector, chunks: Vector) -> list[range]:
    """Return, for each axis, the numbers of the chunks that hold voxels start..stop-1."""
    ranges = []
    for first, end, size in zip(start, stop, map(int, chunks), strict=True):
        last = -(-int(end) // size)  # rounded up
        ranges.append(range(int(first) // size, last))
    return ranges


def open_levels(path: str | Path) -> list[Level]:
    """Open the levels of the multiscale image at `path`, the finest first; at least one.

    Axes other than z, y, x are dropped; they must have length 1. Missing chunks have the fill value
    of the array, or 0 if it has none.

    Raises:
        FileNotFoundError: if there is no zarr group, or if an array that it names is missing.
        UserError: if `path` is something else, or if its metadata do not place it in space.
    """
    refuse_remote(path)
    path = Path(path)
    image = metadata.read_image(path)
    try:
        group = zarr.open_group(str(path), mode="r")
    except (zarr.errors.GroupNotFoundError, zarr.errors.MetadataError, ValueError) as error:
        raise UserError(
            f"{path}: not a zarr v2 group ({error}); a multiscale OME-NGFF group is needed here"
        ) from error
    levels = [_open_level(group, path, image.axes, about) for about in image.levels]
    return sorted(levels, key=lambda level: float(np.prod(level.scale)))


def pick_level(levels: Sequence[Level], scale: Vector) -> Level:
    """Return the level whose voxel size is nearest to `scale` (nm); of two equally near, the finer.

    The distance is the sum over axes of |log(ratio)|, so that half the size is as far as twice the
    size.
    """

    def distance(level: Level) -> tuple[float, float]:
        logs = np.abs(np.log(level.scale / scale)).sum()
        # rounded, so that two levels that are equally near tie on every machine
        return round(float(logs), 6), level.scale.prod()

    return min(levels, key=distance)


def write_multiscale(
    path: str | Path,
    volume: np.ndarray,
    voxel_size: Vector,
    translation: Vector = (0.0, 0.0, 0.0),
    *,
    levels: int = 1,
    chunk: int = 64,
    attributes: dict | None = None,
) -> None:
    """Write `volume` as an OME-NGFF 0.4 group.

    Args:
        path: path of the group; an existing group is replaced.
        volume: (z, y, x).
        voxel_size: nm, z, y, x.
        translation: position of the centre of the first voxel in nm, z, y, x.
        levels: number of resolutions, each half of the one before. Coarser levels are block means,
            so write more than one for intensities only, not for labels.
        chunk: voxels of a chunk along each axis.
        attributes: further attributes of the group.
    """
    grid = Grid(np.array(translation, float), np.array(voxel_size, float), volume.shape)
    array = start_multiscale(path, grid, volume.dtype, (chunk,) * 3, attributes=attributes)
    array[...] = volume
    finish_multiscale(path, grid, [(2, 2, 2)] * (levels - 1), block_mean)


def start_multiscale(
    path: str | Path,
    grid: Grid,
    dtype: np.dtype | type,
    chunks: Vector,
    *,
    attributes: dict | None = None,
) -> zarr.Array:
    """Create a group with an empty finest level, and return that array to be written.

    The group becomes an image with `finish_multiscale`. Chunks that are all 0 are not stored.

    Args:
        path: path of the group; an existing group is replaced.
        grid: grid of the finest level.
        dtype: dtype of all levels.
        chunks: voxels of a chunk, z, y, x.
        attributes: attributes of the group.
    """
    group = zarr.open_group(str(path), mode="w")
    group.attrs.put({**(attributes or {}), UNFINISHED: True})
    return _new_level(group, 0, shape=grid.shape, dtype=dtype, chunks=chunks)


def add_level(
    path: str | Path, number: int, factor: Vector, chunks: Vector | None = None
) -> zarr.Array:
    """Create an empty coarser level, and return its array to be written.

    Give `finish_multiscale` the number of levels made this way as `written`.

    Args:
        path: path of a group that `start_multiscale` created.
        number: number of the level: 1, 2, ...
        factor: voxels of the next finer level that become one, z, y, x.
        chunks: voxels of a chunk; by default those of the next finer level.
    """
    group = zarr.open_group(str(path), mode="r+")
    fine = group[f"s{number - 1}"]
    return _new_level(
        group,
        number,
        shape=np.array(fine.shape) // factor,
        dtype=fine.dtype,
        chunks=fine.chunks if chunks is None else chunks,
    )


def finish_multiscale(
    path: str | Path,
    grid: Grid,
    factors: Sequence[Vector],
    reduce: Reduction,
    *,
    written: int = 0,
) -> None:
    """Write the coarser levels, then the metadata that make the group an image.

    This takes the memory of a few chunks, and can be called again after an interruption.

    Args:
        path: path of a group that `start_multiscale` created.
        grid: grid of its finest level.
        factors: for each coarser level, the voxels of the next finer one that become one.
        reduce: `block_mean` for intensities, `pick` for ids.
        written: number of coarser levels whose voxels are already written.
    """
    group = zarr.open_group(str(path), mode="r+")
    scale = grid.scale
    origin = grid.origin
    datasets = [_dataset(0, scale, origin)]
    for number, factor in enumerate(factors, 1):
        if number > written:
            coarse = add_level(path, number, factor)
            _reduce_level(group[f"s{number - 1}"], coarse, factor, reduce)
        # the first coarse voxel lies over the first `factor` fine ones: its centre is theirs
        origin = origin + (np.array(factor) - 1) / 2 * scale
        scale = scale * factor
        datasets.append(_dataset(number, scale, origin))
    attributes = group.attrs.asdict()
    attributes.pop(UNFINISHED, None)
    attributes[STORED_CHUNKS] = count_chunks(path)
    group.attrs.put({"multiscales": [_multiscale(Path(path).name, datasets)], **attributes})


def count_chunks(path: str | Path) -> int:
    """Number of chunks that are stored of the finest level of an image that was written here."""
    stored = 0
    for _, _, names in os.walk(Path(path) / "s0"):
        # metadata, and what is left of chunks that were being written
        stored += sum(not name.startswith(".") and not name.endswith(".partial") for name in names)
    return stored


def _dataset(number: int, scale: np.ndarray, origin: np.ndarray) -> dict:
    """The metadata of one level."""
    return {
        "path": f"s{number}",
        "coordinateTransformations": [
            {"type": "scale", "scale": scale.tolist()},
            {"type": "translation", "translation": origin.tolist()},
        ],
    }


def _multiscale(name: str, datasets: Sequence[dict]) -> dict:
    """The metadata of an image. Source: https://ngff.openmicroscopy.org/0.4, "multiscales"."""
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    return {"version": "0.4", "name": name, "axes": axes, "datasets": datasets}


def pyramid(grid: Grid, smallest: int = 64) -> list[tuple[int, ...]]:
    """Return the factors of coarser levels until no axis is longer than `smallest` voxels.

    Voxels become cubes first: an axis is not reduced while its voxels are at least 1.5 times as
    long as the shortest.
    """
    scale = np.array(grid.scale)
    shape = np.array(grid.shape)
    factors = []
    while shape.max() > smallest:
        divisible = shape > 1
        finer = scale < 1.5 * scale[divisible].min()
        factor = np.where(finer & divisible, 2, 1)
        scale = scale * factor
        shape = shape // factor
        factors.append(tuple(factor.tolist()))
    return factors


def _reduce_level(fine: zarr.Array, coarse: zarr.Array, factor: Vector, reduce: Reduction) -> None:
    """Fill a coarser level chunk by chunk."""
    for corner in np.ndindex(*coarse.cdata_shape):
        start = np.array(corner) * coarse.chunks
        stop = np.minimum(start + coarse.chunks, coarse.shape)
        block = fine[slices(start * factor, stop * factor)]
        if block.any():
            coarse[slices(start, stop)] = reduce(block, factor)


def _compressor(voxels: int, dtype: np.dtype) -> Blosc:
    """What chunks of so many voxels are compressed with.

    On raw level 9 saves nothing over 1 and takes 40 times as long (measured on the phantom). Of
    single bytes a chunk is one block of Blosc: probabilities are then as small as in the many that
    Blosc would choose, and take 0.6 of the time; LZ4 takes half of that, and up to 1.7 times the
    bytes. Larger types are shuffled first, which is fast where a block fits into a cache.
    """
    block = min(voxels, LARGEST_COMPRESSED) if dtype.itemsize == 1 else 0
    return Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE, blocksize=block)


def _new_level(
    group: zarr.Group, number: int, *, shape: Vector, dtype: np.dtype | type, chunks: Vector
) -> zarr.Array:
    stored = tuple(int(min(c, n)) for c, n in zip(chunks, shape, strict=True))
    array = group.create_dataset(
        f"s{number}",
        shape=tuple(int(n) for n in shape),
        dtype=dtype,
        fill_value=0,
        dimension_separator="/",
        chunks=stored,
        compressor=_compressor(math.prod(stored), np.dtype(dtype)),
        write_empty_chunks=False,
        overwrite=True,
    )
    array.attrs["_ARRAY_DIMENSIONS"] = ["z", "y", "x"]  # for xarray, as the challenge's arrays
    return array


def pick(volume: np.ndarray, factors: Vector) -> np.ndarray:
    """Reduce a label volume: take the middle voxel of each block, the lower of two."""
    index = []
    for size, factor in zip(volume.shape, map(int, factors), strict=True):
        index.append(slice((factor - 1) // 2, size // factor * factor, factor))
    return volume[tuple(index)]


def block_mean(volume: np.ndarray, factors: Vector) -> np.ndarray:
    """Return the mean over blocks of `factors` voxels, in the dtype of `volume`.

    Integers are rounded. An incomplete last block is dropped.
    """
    count = math.prod(map(int, factors))
    whole_numbers = volume.dtype.kind in "ui"
    total = volume
    # sums of slices axis by axis: many times faster than NumPy's mean of a reshaped volume
    for axis, factor in enumerate(map(int, factors)):
        total = sum_along(total, axis, factor, _wide_enough(volume.dtype, count))
    mean = total / np.float32(count)
    return np.rint(mean).astype(volume.dtype) if whole_numbers else mean.astype(volume.dtype)


def _wide_enough(dtype: np.dtype, count: int) -> type:
    """A dtype for the sum of `count` values."""
    if dtype == np.uint8 and count < 257:
        return np.uint16
    return np.int64 if dtype.kind in "ui" else np.float32


def sum_along(volume: np.ndarray, axis: int, factor: int, dtype: type) -> np.ndarray:
    """Return the sums of `factor` neighbours along an axis; an incomplete last group is dropped."""
    stop = volume.shape[axis] // factor * factor
    before = (slice(None),) * axis
    total: np.ndarray = volume[(*before, slice(0, stop, factor))].astype(dtype)
    for offset in range(1, factor):
        total += volume[(*before, slice(offset, stop, factor))]
    return total


def _open_level(group: zarr.Group, path: Path, axes: Sequence[str], about: LevelMetadata) -> Level:
    """Open one level of an image."""
    folder = path / about.name
    codecs.check(group.store, about.name, folder)
    described = metadata.read_array(folder)
    dropped = metadata.dropped_axes(folder, axes, described)
    try:
        if dropped or described.content.get("fill_value") is None:
            array = adapted.open_array(folder, described, dropped)
        else:
            array = group[about.name]
    # whatever is wrong with a file of others, zarr fails on it in one of these ways
    except (ValueError, TypeError, KeyError, OSError, zarr.errors.MetadataError) as error:
        raise UserError(f"{folder}: .zarray cannot be read ({error}); copy it again") from error
    return Level(
        path=folder,
        array=array,
        scale=about.scale,
        translation=about.translation,
        has_translation=about.has_translation,
        dropped=dropped,
    )


class BloscLengths(NamedTuple):
    """Lengths of a Blosc chunk in bytes, from its header."""

    packed: int
    """Compressed length, header included."""
    unpacked: int
    """Length of the decompressed values."""


def blosc_lengths(header: bytes) -> BloscLengths:
    """Return what the first 16 bytes of a Blosc chunk say of its lengths."""
    # Source: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
    packed = int.from_bytes(header[12:], "little")
    return BloscLengths(max(packed, 16), unpacked=int.from_bytes(header[4:8], "little"))


def _whole(position: Vector) -> list[int]:
    return [int(n) for n in position]

"""Open volumes of any kind, and write OME-NGFF 0.4 multiscale images (zarr v2).

`common.data.volumes.level` says what positions and translations mean.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.util import json_dumps

from common.data.volumes.box import Vector, boxes, slices
from common.data.volumes.level import Grid, Level
from common.data.volumes.metadata import LEVELS_BY_BLOCK, STORED_CHUNKS, UNFINISHED, read_object
from common.data.volumes.sources import opening
from common.errors import UserError
from common.talk import nm, voxels

Reduction = Callable[[np.ndarray, Vector], np.ndarray]
"""`reduce(block, factors)` returns the coarser block, such as `block_mean` or `pick`."""

CODEC = "zstd"
"""Of Blosc, unless another one is asked for."""

LARGEST_COMPRESSED = 2**21
"""Bytes that are compressed as one: an ordinary chunk."""

SEPARATOR = "/"
"""Between the numbers of a chunk: a folder for each axis, so that none has too many files."""

PARTIAL = (".partial", ".__lock")
"""Ends of the names of chunks that are being written, as zarr and tensorstore have them."""


def open_levels(path: str | Path) -> list[Level]:
    """Open the levels of a volume, the finest first; at least one.

    Axes other than z, y, x are dropped; they must have length 1. Missing chunks have the fill value
    of the array, or 0 if it has none.

    path: of any kind that `common.data.volumes.sources.opening` lists, with what it says behind #.

    Raises:
        FileNotFoundError: if nothing is there, or if an array that it names is missing.
        UserError: if it is nothing that can be read, or if its metadata do not place it in space.
    """
    levels = sorted(opening.open_image(path), key=lambda level: float(np.prod(level.scale)))
    for level in levels[1:]:
        if level.array.size > levels[0].array.size:
            raise UserError(
                f"{level.path}: {voxels(level.grid.shape)} voxels of {nm(level.scale)} nm, and "
                f"{levels[0].path.name} has {voxels(levels[0].grid.shape)} of "
                f"{nm(levels[0].scale)} nm; the finest level of a volume has most voxels: correct "
                "the scales in its metadata"
            )
    return levels


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
    """Create a group with an empty finest level, and return that array to be written by zarr.

    The arguments are those of `begin_multiscale`.
    """
    begin_multiscale(path, grid, dtype, chunks, attributes=attributes)
    return _opened(Path(path) / "s0")


def _opened(folder: Path) -> zarr.Array:
    """Return an array to be written by zarr."""
    return zarr.open_array(str(folder), mode="r+", write_empty_chunks=False)


def begin_multiscale(
    path: str | Path,
    grid: Grid,
    dtype: np.dtype | type,
    chunks: Vector,
    *,
    attributes: dict | None = None,
    codec: str = CODEC,
) -> None:
    """Create a group with an empty finest level, "s0", to be written by `chunked_array`.

    The group becomes an image with `finish_multiscale`. Chunks that are all 0 are not stored.

    Args:
        path: path of the group; an existing group is replaced.
        grid: grid of the finest level.
        dtype: dtype of all levels.
        chunks: voxels of a chunk, z, y, x.
        attributes: attributes of the group.
        codec: what Blosc compresses all levels with, "zstd" or "lz4".
    """
    group = Path(path)
    _make_anew(group)
    _write_object(group / ".zgroup", {"zarr_format": 2})
    _write_object(group / ".zattrs", {**(attributes or {}), UNFINISHED: True})
    _new_array(group / "s0", shape=grid.shape, dtype=np.dtype(dtype), chunks=chunks, codec=codec)


def add_level(path: str | Path, number: int, factor: Vector, chunks: Vector | None = None) -> None:
    """Create an empty coarser level, to be written by `chunked_array`.

    Give `finish_multiscale` the number of levels made this way as `written`.

    Args:
        path: path of a group that `begin_multiscale` created.
        number: number of the level: 1, 2, ...
        factor: voxels of the next finer level that become one, z, y, x.
        chunks: voxels of a chunk; by default those of the next finer level.
    """
    fine = read_object(Path(path) / f"s{number - 1}" / ".zarray")
    shape = np.array(fine["shape"]) // factor
    chunks = fine["chunks"] if chunks is None else chunks
    _array_like(Path(path) / f"s{number}", fine, shape=shape, chunks=chunks)


def add_array(path: str | Path, name: str) -> zarr.Array:
    """Create an array like that of the finest level, beside the levels; return it to be written.

    Who opens the image does not see it. path: of a group that `begin_multiscale` created.
    """
    finest = read_object(Path(path) / "s0" / ".zarray")
    folder = Path(path) / name
    _array_like(folder, finest, shape=finest["shape"], chunks=finest["chunks"])
    return _opened(folder)


def _array_like(folder: Path, like: dict[str, Any], *, shape: Vector, chunks: Vector) -> None:
    """Create an array of the type and with the codec of another one. like: its .zarray."""
    codec = like["compressor"]["cname"]
    _new_array(folder, shape=shape, dtype=np.dtype(like["dtype"]), chunks=chunks, codec=codec)


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
        path: path of a group that `begin_multiscale` created.
        grid: grid of its finest level.
        factors: for each coarser level, the voxels of the next finer one that become one.
        reduce: `block_mean` for intensities, `pick` for ids.
        written: number of coarser levels whose voxels are already written.
    """
    scale = grid.scale
    origin = grid.origin
    datasets = [dataset_of(0, scale, origin)]
    for number, factor in enumerate(factors, 1):
        if number > written:
            add_level(path, number, factor)
            levels = [chunked_array(Path(path) / f"s{n}") for n in (number - 1, number)]
            _reduce_level(*levels, factor=factor, reduce=reduce)
        # the first coarse voxel lies over the first `factor` fine ones: its centre is theirs
        origin = origin + (np.array(factor) - 1) / 2 * scale
        scale = scale * factor
        datasets.append(dataset_of(number, scale, origin))
    attributes = read_object(Path(path) / ".zattrs")
    attributes.pop(UNFINISHED, None)
    attributes.pop(LEVELS_BY_BLOCK, None)
    attributes[STORED_CHUNKS] = count_chunks(path)
    image = {"version": "0.4", **multiscale_of(Path(path).name, datasets)}
    _write_object(Path(path) / ".zattrs", {"multiscales": [image], **attributes})


def count_chunks(path: str | Path) -> int:
    """Return how many chunks are stored of the finest level of an image that was written here.

    Raises PermissionError for a folder that may not be read, whose chunks are not gone.
    """
    stored = 0
    for _, _, names in os.walk(Path(path) / "s0", onerror=_refuse_closed):
        # metadata, and what is left of chunks that were being written
        stored += sum(not name.startswith(".") and not name.endswith(PARTIAL) for name in names)
    return stored


def _refuse_closed(error: OSError) -> None:
    if isinstance(error, PermissionError):
        raise error


def dataset_of(number: int, scale: np.ndarray, origin: np.ndarray) -> dict:
    """Return the metadata of one level; its array is s0, s1, ..."""
    return {
        "path": f"s{number}",
        "coordinateTransformations": [
            {"type": "scale", "scale": scale.tolist()},
            {"type": "translation", "translation": origin.tolist()},
        ],
    }


def multiscale_of(name: str, datasets: Sequence[dict]) -> dict:
    """Return the metadata of an image: https://ngff.openmicroscopy.org/0.4, "multiscales"."""
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    return {"name": name, "axes": axes, "datasets": datasets}


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


def _reduce_level(
    fine: ChunkedArray, coarse: ChunkedArray, *, factor: Vector, reduce: Reduction
) -> None:
    """Fill a coarser level chunk by chunk."""
    for start, stop in boxes(coarse.shape, coarse.chunks):
        block = fine.get(slices(start * factor, stop * factor))
        if block.any():
            coarse.put(start, reduce(block, factor))


def _compressor(voxels: int, dtype: np.dtype, codec: str) -> Blosc:
    """Return what chunks of so many voxels are compressed with.

    On raw level 9 saves nothing over 1 and takes 40 times as long (measured on the phantom). Of
    single bytes a chunk is one block of Blosc: probabilities are then as small as in the many that
    Blosc would choose, and take 0.6 of the time; LZ4 takes half of that, and up to 1.7 times the
    bytes. Larger types are shuffled first, which is fast where a block fits into a cache.
    """
    block = min(voxels, LARGEST_COMPRESSED) if dtype.itemsize == 1 else 0
    return Blosc(cname=codec, clevel=1, shuffle=Blosc.SHUFFLE, blocksize=block)


def _new_array(folder: Path, *, shape: Vector, dtype: np.dtype, chunks: Vector, codec: str) -> None:
    """Create an empty array. The arguments are those of `begin_multiscale`."""
    stored = [int(min(c, n)) for c, n in zip(chunks, shape, strict=True)]
    about = {
        "zarr_format": 2,
        "shape": [int(n) for n in shape],
        "chunks": stored,
        "dtype": dtype.str,
        "compressor": _compressor(math.prod(stored), dtype, codec).get_config(),
        "fill_value": dtype.type(0).item(),
        "filters": None,
        "order": "C",
        "dimension_separator": SEPARATOR,
    }
    _make_anew(folder)
    _write_object(folder / ".zarray", about)
    # for xarray, as the challenge's arrays
    _write_object(folder / ".zattrs", {"_ARRAY_DIMENSIONS": ["z", "y", "x"]})


def _make_anew(folder: Path) -> None:
    """Make an empty folder, in place of what is there. Raise OSError where that fails.

    A call that is killed meanwhile leaves what says whose it is, and nothing that says which blocks
    are there.
    """
    if folder.is_dir():
        paths = list(folder.iterdir())
        # files before folders: a journal of blocks before their voxels
        for path in sorted(paths, key=lambda path: path.is_dir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (".zattrs", ".zgroup"):
                path.unlink()
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def holds_nothing(group: Path) -> bool:
    """Return whether a folder has no more than what a call leaves that is killed as it begins one.

    Or as it removes one.
    """
    left = {".zgroup", *(f"{name}{PARTIAL[0]}" for name in (".zgroup", ".zattrs"))}
    return all(path.name in left for path in group.iterdir())


def _write_object(file: Path, content: dict[str, Any]) -> None:
    """Write metadata of zarr, whole or not at all. Raise OSError where that fails."""
    partial = file.with_name(f"{file.name}{PARTIAL[0]}")
    try:
        partial.write_bytes(json_dumps(content))
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


# Arrays


@dataclass(frozen=True)
class ChunkedArray:
    """An array on this disk, whose chunks that are 0 throughout are not stored.

    It is read and written box by box, by tensorstore. What is on disk is what `array[...] = values`
    of zarr would leave, compressed alike: to the same bytes, but for a few of some chunks, perhaps
    as its zstd is of another version. zarr holds the interpreter's lock a few times for each chunk,
    and threads that would compress on other cores wait for it; tensorstore compresses and writes in
    threads of its own (docs/benchmarks.md, "On a GPU").

    Threads and processes may write at once, as long as no two write one chunk.
    """

    folder: Path
    array: Any
    """Of tensorstore."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels."""
        return self.array.shape

    @property
    def chunks(self) -> tuple[int, ...]:
        """Voxels of a chunk."""
        return self.array.chunk_layout.write_chunk.shape

    def put(self, start: np.ndarray, values: np.ndarray) -> None:
        """Write values (z, y, x) from voxel `start` on. Raise OSError where that fails.

        Chunks that become 0 throughout are removed, or not written.
        """
        box = self.array[slices(start, start + values.shape)]
        with _errors_of_system():
            # nobody changes them before they are written, so they need not be copied
            box.write(values, can_reference_source_data_indefinitely=True).result()

    def get(self, box: tuple[slice, ...]) -> np.ndarray:
        """Return the voxels of a box within the array. Raise OSError where that fails."""
        with _errors_of_system():
            return self.array[box].read().result()


def chunked_array(folder: Path) -> ChunkedArray:
    """Return an array of an image that was begun here.

    Raise ValueError where there is none, or one of which the metadata are damaged.
    """
    import tensorstore  # a tenth of a second, for which only who writes should wait

    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder.absolute())}}
    with _errors_of_system():
        return ChunkedArray(folder, tensorstore.open(spec, context=_context()).result())


@functools.cache
def _context() -> Any:
    """Return how all arrays are written: as by zarr, which locks no file and waits for no disk."""
    import tensorstore

    return tensorstore.Context({"file_io_sync": False, "file_io_locking": {"mode": "none"}})


@contextlib.contextmanager
def _errors_of_system() -> Iterator[None]:
    """Turn errors of the system, which tensorstore tells as a ValueError, into an OSError."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"(?:os_error_code='|OS error )(\d+)", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number)) from error


# Coarser levels


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
    is_whole = volume.dtype.kind in "ui"
    # wide enough for the sum of so many values
    wide: type = np.int64 if is_whole else np.float32
    if volume.dtype == np.uint8 and count < 257:
        wide = np.uint16
    total = volume
    # sums of slices axis by axis: many times faster than NumPy's mean of a reshaped volume
    for axis, factor in enumerate(map(int, factors)):
        total = sum_along(total, axis, factor, wide)
    mean = total / np.float32(count)
    return np.rint(mean).astype(volume.dtype) if is_whole else mean.astype(volume.dtype)


def sum_along(volume: np.ndarray, axis: int, factor: int, dtype: type) -> np.ndarray:
    """Return the sums of `factor` neighbours along an axis; an incomplete last group is dropped."""
    stop = volume.shape[axis] // factor * factor
    before = (slice(None),) * axis
    total: np.ndarray = volume[(*before, slice(0, stop, factor))].astype(dtype)
    for offset in range(1, factor):
        total += volume[(*before, slice(offset, stop, factor))]
    return total

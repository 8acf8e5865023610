"""OME-NGFF 0.4 (zarr v2) multiscale images: open, pick a level, place in the world (nm), write.

A voxel is a point with an extent: `translation` is the world position of the *centre* of voxel
(0, 0, 0), as in the NGFF specification, so an image covers `translation - scale / 2` to
`translation + (shape - 1/2) * scale`. Axes are z, y, x.
"""

from __future__ import annotations

import itertools
import lzma
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numcodecs import Blosc

from common.data import codecs
from common.data.box import Vector, slices
from common.errors import UserError

NM_PER_UNIT = {"nanometer": 1.0, "angstrom": 0.1, "micrometer": 1e3, "millimeter": 1e6}

Reduction = Callable[[np.ndarray, Vector], np.ndarray]
"""(block, factors) -> the coarser block: `block_mean` or `pick`."""

UNFINISHED = "unfinished"
"""Attribute of a group whose voxels are not all written yet.

It stands instead of 'multiscales', so that no reader takes the group for a whole image.
"""


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a block are."""

    origin: np.ndarray
    """(3,) nm, the world position of the centre of voxel (0, 0, 0)."""
    scale: np.ndarray
    """(3,) nm, the size of a voxel."""
    shape: tuple[int, int, int]

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner in nm, voxel extents included."""
        lower = self.origin - self.scale / 2
        upper = self.origin + (np.array(self.shape) - 0.5) * self.scale
        return lower, upper


@dataclass(frozen=True)
class Level:
    """One resolution of an image."""

    path: Path
    array: zarr.Array
    scale: np.ndarray
    """(3,) float64, size of a voxel in nm."""
    translation: np.ndarray
    """(3,) float64, world position in nm of the centre of voxel (0, 0, 0)."""

    @property
    def shape(self) -> np.ndarray:
        """(3,) int, voxels."""
        return np.array(self.array.shape)

    @property
    def grid(self) -> Grid:
        """Where its voxels are."""
        return Grid(self.translation, self.scale, tuple(self.shape.tolist()))

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner of the image in nm, voxel extents included."""
        return self.grid.box()

    def read(self, start: Vector, stop: Vector) -> np.ndarray:
        """Voxels start..stop, which lie within the array.

        Raises:
            UserError: with the path of the array, if a chunk cannot be decoded.
        """
        too_short = self._chunk_cut_short(start, stop)
        if too_short:
            raise self._undecodable(start, stop, too_short)
        try:
            return self.array[slices(start, stop)]
        # every codec has errors of its own
        except (RuntimeError, ValueError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise self._undecodable(start, stop, str(error)) from error

    def _undecodable(self, start: Vector, stop: Vector, reason: str) -> UserError:
        first = [int(n) for n in start]
        last = [int(n) for n in stop]
        return UserError(
            f"{self.path}: a chunk in voxels {first} to {last} cannot be decoded ({reason}); "
            "copy this array again"
        )

    def _chunk_cut_short(self, start: Vector, stop: Vector) -> str:
        """The first Blosc chunk with fewer bytes than its header says, or nothing."""
        # numcodecs hands such a chunk to Blosc, which reads on beyond its end
        if not isinstance(self.array.compressor, Blosc):
            return ""
        for index in itertools.product(*chunk_ranges(start, stop, self.array.chunks)):
            file = Path(self.array.store.path, self.array._chunk_key(index))
            if not file.is_file():
                continue
            needed = _blosc_length(file)
            size = file.stat().st_size
            if size < needed:
                return f"{file.name} has {size} of {needed} bytes"
        return ""


def chunk_ranges(start: Vector, stop: Vector, chunks: Vector) -> list[range]:
    """For each axis the numbers of the chunks that hold voxels start..stop."""
    ranges = []
    for first, end, size in zip(start, stop, map(int, chunks), strict=True):
        last = -(-int(end) // size)  # rounded up
        ranges.append(range(int(first) // size, last))
    return ranges


def open_levels(path: str | Path) -> list[Level]:
    """The levels of the multiscale image at `path`, finest first.

    Raises:
        FileNotFoundError: if there is no zarr group, or an array that it names is missing.
        UserError: if its metadata do not place it in space.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such zarr group; check the path in the datasplit and the data root"
        )
    group, image = _open_image(path)
    units = _unit_sizes(path, image.get("axes"))
    # the image's own transformation comes after that of the level
    outer = _affine(path, image.get("coordinateTransformations", ()))
    levels = []
    for dataset in image["datasets"]:
        scale, translation = _affine_of_level(path, dataset)
        levels.append(
            Level(
                path=path / dataset["path"],
                array=_open_array(group, path, dataset["path"]),
                scale=scale * outer[0] * units,
                translation=(translation * outer[0] + outer[1]) * units,
            )
        )
    return sorted(levels, key=lambda level: float(np.prod(level.scale)))


def pick_level(levels: Sequence[Level], scale: Vector) -> Level:
    """The level whose voxel size is nearest to `scale` (nm), the finer one of two.

    Distance is the sum over axes of |log ratio|: half as large is as far as twice as large.
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
        path: of the group; what was there is removed.
        volume: (z, y, x).
        voxel_size: nm.
        translation: nm, of the centre of the first voxel.
        levels: how many resolutions, each half of the one before. Coarser levels are block means,
            so several levels are for intensities only.
        chunk: voxels of a chunk along each axis.
        attributes: added to the group's.
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
    """A new group with an empty finest level, which is returned to be written.

    It becomes an image with `finish_multiscale`. Chunks that are 0 throughout take no space.

    Args:
        path: of the group; what was there is removed.
        grid: of the finest level.
        dtype: of all levels.
        chunks: voxels of a chunk.
        attributes: of the group.
    """
    group = zarr.open_group(str(path), mode="w")
    group.attrs.put({**(attributes or {}), UNFINISHED: True})
    return _new_level(group, 0, shape=grid.shape, dtype=dtype, chunks=chunks)


def add_level(
    path: str | Path, number: int, factor: Vector, chunks: Vector | None = None
) -> zarr.Array:
    """An empty coarser level to be written, which `finish_multiscale` need not make then.

    Args:
        path: of a group that `start_multiscale` began.
        number: of the level, 1, 2, ...
        factor: voxels of the level before that become one.
        chunks: voxels of a chunk; those of the level before unless given.
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
    """Add the coarser levels, then the metadata that make the group an image.

    Takes the memory of a few chunks. After an interruption it can be called again.

    Args:
        path: of a group that `start_multiscale` began.
        grid: of its finest level.
        factors: for each coarser level the voxels of the one before that become one.
        reduce: `block_mean` for intensities, `pick` for ids.
        written: how many of the coarser levels hold their voxels already.
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
    group.attrs.put({"multiscales": [_multiscale(Path(path).name, datasets)], **attributes})


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
    """Factors of the coarser levels of a large image, until its longest axis has `smallest` voxels.

    Voxels grow towards cubes first: an axis whose voxels are already twice as long as the shortest
    waits for the others.
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


def _new_level(
    group: zarr.Group, number: int, *, shape: Vector, dtype: np.dtype | type, chunks: Vector
) -> zarr.Array:
    array = group.create_dataset(
        f"s{number}",
        shape=tuple(int(n) for n in shape),
        dtype=dtype,
        fill_value=0,
        dimension_separator="/",
        chunks=tuple(int(min(c, n)) for c, n in zip(chunks, shape, strict=True)),
        # on raw level 9 saves nothing over 1 and takes 40 times as long (measured on the phantom)
        compressor=Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE),
        write_empty_chunks=False,
        overwrite=True,
    )
    array.attrs["_ARRAY_DIMENSIONS"] = ["z", "y", "x"]  # for xarray, as the challenge's arrays
    return array


def pick(volume: np.ndarray, factors: Vector) -> np.ndarray:
    """One voxel of each block of a label volume: the middle one, the lower of two."""
    index = []
    for size, factor in zip(volume.shape, map(int, factors), strict=True):
        index.append(slice((factor - 1) // 2, size // factor * factor, factor))
    return volume[tuple(index)]


def block_mean(volume: np.ndarray, factors: Vector) -> np.ndarray:
    """Mean over blocks of `factors` voxels, in the dtype of `volume` (integers rounded).

    A partial last block is dropped.
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
    """Sums of `factor` neighbours along an axis."""
    stop = volume.shape[axis] // factor * factor
    before = (slice(None),) * axis
    total: np.ndarray = volume[(*before, slice(0, stop, factor))].astype(dtype)
    for offset in range(1, factor):
        total += volume[(*before, slice(offset, stop, factor))]
    return total


def _open_image(path: Path) -> tuple[zarr.Group, dict]:
    """A group, and the first of its multiscale images."""
    try:
        group = zarr.open_group(str(path), mode="r")
        attributes = group.attrs.asdict()
    except (zarr.errors.GroupNotFoundError, zarr.errors.ContainsArrayError, ValueError) as error:
        raise UserError(
            f"{path}: not a zarr v2 group ({error}); a multiscale OME-NGFF group is needed here"
        ) from error
    multiscales = attributes.get("multiscales")
    if multiscales:
        return group, multiscales[0]
    if attributes.get(UNFINISHED):
        raise UserError(
            f"{path}: half-written; run the command that writes it again, "
            "it goes on where it stopped"
        )
    raise UserError(
        f"{path}: no 'multiscales' in .zattrs; "
        "write OME-NGFF 0.4 metadata with the voxel size in nm"
    )


def _open_array(group: zarr.Group, path: Path, name: str) -> zarr.Array:
    """The array of a level."""
    codecs.check(group.store, name, path / name)
    try:
        array = group[name]
    except KeyError:
        raise FileNotFoundError(
            f"{path / name}: array named in .zattrs is missing; copy it again"
        ) from None
    except (ValueError, zarr.errors.MetadataError) as error:
        raise UserError(
            f"{path / name}: .zarray cannot be read ({error}); copy it again"
        ) from error
    if array.ndim != 3:
        raise UserError(f"{path / name}: {array.ndim} axes; images here have three, z, y, x")
    return array


def _affine_of_level(path: Path, dataset: dict) -> tuple[np.ndarray, np.ndarray]:
    """Scale and translation of one level; a scale is required."""
    transforms = dataset.get("coordinateTransformations", ())
    if not any(transform.get("type") == "scale" for transform in transforms):
        raise UserError(
            f"{path}: level '{dataset['path']}' has no scale; write its voxel size in nm "
            "into .zattrs"
        )
    return _affine(path, transforms)


def _affine(path: Path, transforms: Sequence[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Scale and translation that NGFF transforms amount to, applied in the order listed."""
    scale = np.ones(3)
    translation = np.zeros(3)
    for transform in transforms:
        kind = transform.get("type")
        if kind == "identity":
            continue
        if kind == "scale":
            value = _three_numbers(path, transform, kind)
            scale = scale * value
            translation = translation * value
        elif kind == "translation":
            translation = translation + _three_numbers(path, transform, kind)
        else:
            raise UserError(
                f"{path}: coordinate transformation '{kind}'; "
                "only scale and translation can be read"
            )
    return scale, translation


def _three_numbers(path: Path, transform: dict, kind: str) -> np.ndarray:
    value = np.array(transform[kind], float)
    if value.shape != (3,) or (kind == "scale" and not (value > 0).all()):
        raise UserError(
            f"{path}: {kind} {transform[kind]}; three numbers (z, y, x) are needed, "
            "a scale above zero"
        )
    return value


def _unit_sizes(path: Path, axes: Sequence[dict] | None) -> np.ndarray:
    """Nm per unit along z, y, x; a missing unit is taken as nm."""
    if axes is None:
        return np.ones(3)
    names = [axis.get("name") for axis in axes]
    if names != ["z", "y", "x"]:
        raise UserError(f"{path}: axes {names}; they must be z, y, x")
    sizes = []
    for axis in axes:
        unit = axis.get("unit", "nanometer")
        if unit not in NM_PER_UNIT:
            raise UserError(f"{path}: unit '{unit}'; use one of {', '.join(NM_PER_UNIT)}")
        sizes.append(NM_PER_UNIT[unit])
    return np.array(sizes)


def _blosc_length(chunk: Path) -> int:
    """Bytes of a Blosc chunk, as its header of 16 bytes says in the last four; at least those."""
    with chunk.open("rb") as file:
        header = file.read(16)
    return max(int.from_bytes(header[12:], "little"), 16)

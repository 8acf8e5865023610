"""OME-NGFF 0.4 (zarr v2) multiscale images: open, pick a level, convert between world (nm) and voxel, write.

A voxel is a point with an extent: `translation` is the world position of the *centre* of voxel (0, 0, 0), as in the NGFF
specification, so an image covers `translation - scale / 2` to `translation + (shape - 1/2) * scale`. Axes are z, y, x.
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

from common.errors import UserError

NM_PER_UNIT = {"nanometer": 1.0, "angstrom": 0.1, "micrometer": 1e3, "millimeter": 1e6}


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a block are: `origin` is the world position (nm) of the centre of voxel (0, 0, 0), `scale` nm."""

    origin: np.ndarray
    scale: np.ndarray
    shape: tuple[int, int, int]

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner in nm, voxel extents included."""
        return self.origin - self.scale / 2, self.origin + (np.array(self.shape) - 0.5) * self.scale


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
        return np.array(self.array.shape)

    @property
    def grid(self) -> Grid:
        """Where its voxels are."""
        return Grid(self.translation, self.scale, tuple(self.shape.tolist()))

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """World coordinates (nm) of the lower and upper corner of the image, voxel extents included."""
        return self.grid.box()

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """Voxels start..stop (within the array). Raises ValueError naming the array if a chunk cannot be decoded."""
        try:
            self._check_lengths(start, stop)
            return self.array[
                tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
            ]
        except (RuntimeError, ValueError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise UserError(
                f"{self.path}: a chunk in voxels {list(map(int, start))} to {list(map(int, stop))} cannot be decoded "
                f"({error}); copy this array again"
            ) from error

    def _check_lengths(self, start: Sequence[int], stop: Sequence[int]) -> None:
        """Raises ValueError for a Blosc chunk with fewer bytes than its header says: numcodecs would read on beyond its end."""
        if not isinstance(self.array.compressor, Blosc):
            return
        chunks = [
            range(int(a) // n, -(-int(b) // n))
            for a, b, n in zip(start, stop, self.array.chunks, strict=True)
        ]
        for index in itertools.product(*chunks):
            file = Path(self.array.store.path, self.array._chunk_key(index))
            if file.is_file():
                with file.open("rb") as opened:
                    length = int.from_bytes(opened.read(16)[12:], "little")
                if file.stat().st_size < max(length, 16):
                    raise UserError(
                        f"{file.name} has {file.stat().st_size} of {max(length, 16)} bytes"
                    )


def open_levels(path: str | Path) -> list[Level]:
    """The levels of the multiscale image at `path`, finest first.

    Raises FileNotFoundError if there is no zarr group, ValueError if its metadata do not place it in space.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such zarr group; check the path in the datasplit and the data root"
        )
    try:
        group = zarr.open_group(str(path), mode="r")
        multiscales = group.attrs.asdict().get("multiscales")
    except (zarr.errors.GroupNotFoundError, zarr.errors.ContainsArrayError, ValueError) as error:
        raise UserError(
            f"{path}: not a zarr v2 group ({error}); a multiscale OME-NGFF group is needed here"
        ) from error
    if not multiscales and group.attrs.get(UNFINISHED):
        raise UserError(
            f"{path}: half-written; run the command that writes it again, it goes on where it stopped"
        )
    if not multiscales:
        raise UserError(
            f"{path}: no 'multiscales' in .zattrs; write OME-NGFF 0.4 metadata with the voxel size in nm"
        )
    image = multiscales[0]
    units = _unit_sizes(path, image.get("axes"))
    outer = _affine(path, image.get("coordinateTransformations", ()))
    levels = []
    for dataset in image["datasets"]:
        if not any(t.get("type") == "scale" for t in dataset.get("coordinateTransformations", ())):
            raise UserError(
                f"{path}: level '{dataset['path']}' has no scale; write its voxel size in nm into .zattrs"
            )
        scale, translation = _affine(path, dataset["coordinateTransformations"])
        try:
            array = group[dataset["path"]]
        except KeyError:
            raise FileNotFoundError(
                f"{path / dataset['path']}: array named in .zattrs is missing; copy it again"
            ) from None
        except (ValueError, zarr.errors.MetadataError) as error:
            raise UserError(
                f"{path / dataset['path']}: .zarray cannot be read ({error}); copy it again"
            ) from error
        if array.ndim != 3:
            raise UserError(
                f"{path / dataset['path']}: {array.ndim} axes; images here have three, z, y, x"
            )
        levels.append(
            Level(
                path / dataset["path"],
                array,
                scale * outer[0] * units,
                (translation * outer[0] + outer[1]) * units,
            )
        )
    return sorted(levels, key=lambda level: float(np.prod(level.scale)))


def pick_level(levels: Sequence[Level], scale: Sequence[float]) -> Level:
    """The level whose voxel size is nearest to `scale` (nm), by the sum over axes of |log ratio|; the finer one of two."""
    return min(
        levels,
        key=lambda level: (
            round(float(np.abs(np.log(level.scale / scale)).sum()), 6),
            level.scale.prod(),
        ),
    )


def write_multiscale(
    path: str | Path,
    volume: np.ndarray,
    voxel_size: Sequence[float],
    translation: Sequence[float] = (0.0, 0.0, 0.0),
    levels: int = 1,
    chunk: int = 64,
    attributes: dict | None = None,
) -> None:
    """Write `volume` (z, y, x) as an OME-NGFF 0.4 group with `levels` resolutions, each half of the one before.

    voxel_size and translation (of the centre of the first voxel) in nm. Coarser levels are block means, so several levels
    are for intensities only. `attributes` are added to the group's.
    """
    grid = Grid(np.array(translation, float), np.array(voxel_size, float), volume.shape)
    array = start_multiscale(path, grid, volume.dtype, (chunk,) * 3, attributes)
    array[...] = volume
    finish_multiscale(path, grid, [(2, 2, 2)] * (levels - 1), block_mean)


UNFINISHED = "unfinished"
"""Attribute of a group whose voxels are not all written yet; it has no 'multiscales', so that nobody takes it for whole."""


def start_multiscale(
    path: str | Path,
    grid: Grid,
    dtype: np.dtype | type,
    chunks: Sequence[int],
    attributes: dict | None = None,
) -> zarr.Array:
    """A new group with an empty finest level, which is returned for writing; what was at `path` is removed.

    It becomes an image with `finish_multiscale`. Chunks that are 0 throughout take no space.
    """
    group = zarr.open_group(str(path), mode="w")
    group.attrs.put({**(attributes or {}), UNFINISHED: True})
    return _new_level(group, 0, grid.shape, dtype, chunks)


def add_level(
    path: str | Path, number: int, factor: Sequence[int], chunks: Sequence[int] | None = None
) -> zarr.Array:
    """An empty level `number` (1, 2, ...), `factor` (z, y, x) voxels of the one before as one; for `finish_multiscale` not to make.

    chunks: those of the level before unless given.
    """
    group = zarr.open_group(str(path), mode="r+")
    fine = group[f"s{number - 1}"]
    return _new_level(
        group,
        number,
        np.array(fine.shape) // factor,
        fine.dtype,
        fine.chunks if chunks is None else chunks,
    )


def finish_multiscale(
    path: str | Path,
    grid: Grid,
    factors: Sequence[Sequence[int]],
    reduce: Callable[[np.ndarray, Sequence[int]], np.ndarray],
    written: int = 0,
) -> None:
    """Add a coarser level for each of `factors` (voxels that become one, z, y, x), then the metadata that make the group an image.

    reduce(block, factor) gives the coarser block: `block_mean` for intensities, `pick` for ids. Memory: a chunk's worth.
    written: how many of the coarser levels hold their voxels already. Interrupted, it can be called again.
    """
    group = zarr.open_group(str(path), mode="r+")
    scale, origin = grid.scale, grid.origin
    levels = [(scale, origin)]
    for number, factor in enumerate(factors, 1):
        if number > written:
            _reduce_level(group[f"s{number - 1}"], add_level(path, number, factor), factor, reduce)
        scale, origin = scale * factor, origin + (np.array(factor) - 1) / 2 * scale
        levels.append((scale, origin))
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    datasets = [
        {
            "path": f"s{number}",
            "coordinateTransformations": [
                {"type": "scale", "scale": scale.tolist()},
                {"type": "translation", "translation": origin.tolist()},
            ],
        }
        for number, (scale, origin) in enumerate(levels)
    ]
    attributes = {name: value for name, value in group.attrs.asdict().items() if name != UNFINISHED}
    group.attrs.put(
        {
            "multiscales": [
                {"version": "0.4", "name": Path(path).name, "axes": axes, "datasets": datasets}
            ],
            **attributes,
        }
    )


def pyramid(grid: Grid, smallest: int = 64) -> list[tuple[int, ...]]:
    """Factors of the coarser levels of a large image: the finer axes are halved until the longest has `smallest` voxels or less.

    Voxels grow towards cubes first: an axis whose voxels are already twice as long as the shortest waits for the others.
    """
    scale, shape, factors = np.array(grid.scale), np.array(grid.shape), []
    while shape.max() > smallest:
        factor = np.where((scale < 1.5 * scale[shape > 1].min()) & (shape > 1), 2, 1)
        scale, shape = scale * factor, shape // factor
        factors.append(tuple(factor.tolist()))
    return factors


def _reduce_level(
    fine: zarr.Array,
    coarse: zarr.Array,
    factor: Sequence[int],
    reduce: Callable[[np.ndarray, Sequence[int]], np.ndarray],
) -> None:
    for corner in np.ndindex(*coarse.cdata_shape):
        start = np.array(corner) * coarse.chunks
        stop = np.minimum(start + coarse.chunks, coarse.shape)
        block = fine[tuple(map(slice, start * factor, stop * factor))]
        if block.any():
            coarse[tuple(map(slice, start, stop))] = reduce(block, factor)


def _new_level(
    group: zarr.Group,
    number: int,
    shape: Sequence[int],
    dtype: np.dtype | type,
    chunks: Sequence[int],
) -> zarr.Array:
    array = group.create_dataset(
        f"s{number}",
        shape=tuple(int(n) for n in shape),
        dtype=dtype,
        fill_value=0,
        dimension_separator="/",
        chunks=tuple(int(min(c, n)) for c, n in zip(chunks, shape, strict=True)),
        compressor=Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE),
        write_empty_chunks=False,
        overwrite=True,
    )
    array.attrs["_ARRAY_DIMENSIONS"] = ["z", "y", "x"]
    return array


def pick(volume: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Every factors-th voxel of a label volume, the one in the middle of its block (the lower of two)."""
    return volume[
        tuple(
            slice((f - 1) // 2, n // f * f, f) for n, f in zip(volume.shape, factors, strict=True)
        )
    ]


def block_mean(volume: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Mean over blocks of `factors` voxels, in the dtype of `volume` (integers rounded); a partial last block is dropped.

    Sums of slices axis by axis: many times faster than NumPy's mean over the axes of a reshaped volume.
    """
    n, whole = math.prod(map(int, factors)), volume.dtype.kind in "ui"
    wide = np.int64 if whole else np.float32
    if volume.dtype == np.uint8 and n < 257:
        wide = np.uint16
    total = volume
    for axis, factor in enumerate(factors):
        stop = total.shape[axis] // factor * factor
        first, *others = (
            total[(slice(None),) * axis + (slice(k, stop, factor),)] for k in range(factor)
        )
        total = first.astype(wide)
        for other in others:
            total += other
    mean = total / np.float32(n)
    return np.rint(mean).astype(volume.dtype) if whole else mean.astype(volume.dtype)


def _affine(path: Path, transforms: Sequence[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Scale and translation that a list of NGFF transforms amounts to, applied in the order listed."""
    scale, translation = np.ones(3), np.zeros(3)
    for transform in transforms:
        kind = transform.get("type")
        if kind not in ("scale", "translation", "identity"):
            raise UserError(
                f"{path}: coordinate transformation '{kind}'; only scale and translation can be read"
            )
        if kind == "identity":
            continue
        value = np.array(transform[kind], float)
        if value.shape != (3,) or (kind == "scale" and not (value > 0).all()):
            raise UserError(
                f"{path}: {kind} {transform[kind]}; three numbers (z, y, x) are needed, a scale above zero"
            )
        if kind == "scale":
            scale, translation = scale * value, translation * value
        else:
            translation = translation + value
    return scale, translation


def _unit_sizes(path: Path, axes: Sequence[dict] | None) -> np.ndarray:
    """Nm per unit along z, y, x; a missing unit is taken as nm."""
    if axes is None:
        return np.ones(3)
    if [axis.get("name") for axis in axes] != ["z", "y", "x"]:
        raise UserError(f"{path}: axes {[axis.get('name') for axis in axes]}; they must be z, y, x")
    units = [axis.get("unit", "nanometer") for axis in axes]
    if unknown := [unit for unit in units if unit not in NM_PER_UNIT]:
        raise UserError(f"{path}: unit '{unknown[0]}'; use one of {', '.join(NM_PER_UNIT)}")
    return np.array([NM_PER_UNIT[unit] for unit in units])

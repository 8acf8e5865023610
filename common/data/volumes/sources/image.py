"""The `Image` that each module of this folder makes of a file, and how its place is found.

Headers and attributes say voxel size, position and axes in many ways; those that several kinds of
files share are read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes.box import Vector
from common.data.volumes.level import Directions, Level, Voxels
from common.data.volumes.metadata import LARGEST_EM_NM, NM_PER_UNIT, SMALLEST_EM_NM, SPACE
from common.errors import UserError
from common.talk import nm, note_once

SHEARED = 1e-3
"""Cosine of the angle between axes from which they are not at right angles."""


@dataclass(frozen=True)
class Image:
    """The levels of one volume."""

    levels: Sequence[Level]
    """At least one."""
    is_measured: bool = True
    """Whether lengths are nm; otherwise they are voxels of the finest level."""


def single(
    path: Path,
    array: Voxels,
    *,
    scale: Any = None,
    translation: Any = None,
    first: Any = None,
    otherwise: Any = None,
    stamp: str = "file",
) -> Image:
    """Return an image of one level.

    A voxel size that no EM has is said, and not used: headers have lengths that nobody chose.

    Args:
        path: of the file or array.
        array: its voxels.
        scale: (3,) nm; None where the file does not say.
        translation: (3,) nm of the centre of the first voxel; None where the file does not say.
        first: instead of it, the same in voxels.
        otherwise: (3,) nm, the translation where the file does not say it; 0 unless given.
        stamp: as of `Level`; of a file its size and time say more, see `Voxels.files`.
    """
    if scale is not None and not is_of_em(scale):
        note_once(f"{path}: says voxels of {nm(scale)} nm, which no EM has; that is not used")
        scale = None
        otherwise = None
    if first is not None:
        translation = np.multiply(first, 1 if scale is None else scale)
    place = next(given for given in (translation, otherwise, np.zeros(3)) if given is not None)
    level = Level(
        path=path,
        array=array,
        scale=np.ones(3) if scale is None else np.array(scale, float),
        translation=np.array(place, float),
        has_translation=translation is not None,
        image=path,
        stamp=stamp,
    )
    return Image([level], scale is not None)


def is_of_em(scale: Sequence[float] | np.ndarray) -> bool:
    """Whether volume EM has voxels of this size, (3,) nm."""
    return all(SMALLEST_EM_NM <= length <= LARGEST_EM_NM for length in scale)


@dataclass(frozen=True)
class Turned:
    """How the axes of a file lie in the world that its header tells of."""

    order: list[int]
    """Numbers of the axes of the file that lie along z, y, x, as far as they do."""
    first: np.ndarray | None
    """(3,) place of the first voxel along these axes, whichever way they point, in the unit of the
    header; None where the file tells of none."""
    directions: Directions | None
    """Which way these axes point; None where `first` is."""

    @property
    def order_stored(self) -> list[int]:
        """The same numbers as `order`, counted from the axis whose voxels lie furthest apart."""
        return [2 - axis for axis in self.order]

    @property
    def stamp(self) -> str:
        """As of `single`: a file was read as if x came first, and cached crops of it are others."""
        return "file" if self.order == [2, 1, 0] else f"file of axes {self.order}"


AS_STORED = Turned([2, 1, 0], None, None)
"""Of a file that says nothing: x first."""


def turned(directions: np.ndarray, origin: np.ndarray, frame: str) -> Turned:
    """Return how the axes of a file lie in the world.

    A place of 0 is what programs write that know of none; nor do axes that are not at right angles
    have one.

    Args:
        directions: (3, 3), a row an axis of the file: the way from a voxel to the next along x, y,
            z of the world, in the unit of `origin`.
        origin: (3,) the place of the first voxel, x, y, z.
        frame: what x, y, z mean, such as "RAS"; "" where it is not said.
    """
    lengths = np.linalg.norm(directions, axis=1)
    # rounded, so that an axis along one of the world is exactly that
    unit = (directions / lengths[:, None]).round(12)
    along = np.abs(unit).argmax(axis=1).tolist()
    order = [2, 1, 0]
    if len(set(along)) == 3:
        order = [along.index(axis) for axis in (2, 1, 0)]
    cosines = unit @ unit.T - np.eye(3)
    is_sheared = np.abs(cosines).max() > SHEARED
    if is_sheared or not np.isfinite(origin).all() or not np.any(origin):
        return Turned(order, None, None)
    ways = unit[order][:, ::-1]
    return Turned(order, (unit @ origin)[order], Directions(frame, tuple(ways.ravel().tolist())))


def in_world(path: Path, array: Voxels, way: Turned, *, size: np.ndarray, scale: Any) -> Image:
    """Return an image of one level, where and as large as its header says.

    size: (3,) of a voxel, in the unit of `way`. scale: (3,) nm; None where the unit is not said.
    """
    first = None if way.first is None else way.first / size
    image = single(path, array, scale=scale, first=first, stamp=way.stamp)
    levels = [replace(level, directions=way.directions) for level in image.levels]
    return replace(image, levels=levels)


def check(path: Path, shape: Sequence[int], dtype: np.dtype) -> None:
    """See that an array holds a volume of numbers.

    Raises UserError for complex numbers, text and the like, for other than three axes, and for an
    array without voxels.
    """
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise UserError(
            f"{path}: voxels of type {dtype}; write whole numbers or floats, one a voxel"
        )
    if len(shape) != 3:
        raise UserError(
            f"{path}: {len(shape)} axes, of shape {list(shape)}; write a volume of three axes, "
            "z, y, x, each channel and time as a file of its own"
        )
    if not all(shape):
        raise UserError(f"{path}: shape {list(shape)}, no voxel at all; write the volume again")


SPELLINGS = {
    **dict.fromkeys(("\\u00B5m", "\\u00b5m", "\u00b5m", "\u03bcm", "microns"), "um"),
    **{"nanometers": "nm", "angstroms": "angstrom", "\u00c5": "angstrom"},
    **{"mm": "millimeter", "pm": "picometer"},
}
"""Of units in headers of files, as `NM_PER_UNIT` has them: two of ImageJ are escaped."""


def in_nm(path: Path, value: float, unit: Any) -> float:
    """Return a length in nm; without a unit it is taken as nm, with a note.

    Raises UserError for a unit that is not known.
    """
    if not unit:
        note_once(f"{path}: no unit, so lengths are taken as nm; write it into its metadata")
        return value
    if unit not in NM_PER_UNIT:
        raise UserError(
            f"{path}: unit {unit!r}; write one of {', '.join(list(NM_PER_UNIT)[:5])}, or the size "
            "of a voxel in nm behind its name: #voxel_size=8"
        )
    return value * NM_PER_UNIT[unit]


def numbers(written: Any) -> list[float] | None:
    """Return three finite numbers of JSON or an attribute; None where it is something else."""
    if isinstance(written, np.ndarray):
        written = written.tolist()
    if not isinstance(written, Sequence) or isinstance(written, str) or len(written) != 3:
        return None
    for number in written:
        if isinstance(number, bool) or not isinstance(number, int | float):
            return None
    return [float(number) for number in written] if np.isfinite(written).all() else None


EXPORTED = "exported"
"""Attribute of the HDF5 files that `common.data.volumes.writers.hdf5` writes."""


@dataclass(frozen=True)
class Placing:
    """What attributes say of an array."""

    scale: Vector | None = None
    """(3,) nm; None where they do not say."""
    translation: Vector | None = None
    """(3,) nm of the centre of the first voxel; None where they do not say."""
    corner: Vector | None = None
    """Where they do not, the same for an array whose first voxel begins at 0."""

    @property
    def place(self) -> np.ndarray:
        """(3,) nm of the centre of the first voxel: what is said, or what is taken for it."""
        said = (self.translation, self.corner, np.zeros(3))
        return np.array(next(place for place in said if place is not None), float)


def by_attributes(path: Path, attributes: Mapping[str, Any]) -> Placing:
    """Voxel size and position in nm, z, y, x, as programs of this field name them.

    In nm, or in the units that they name. funlib.persistence, and daisy and gunpowder with it,
    write resolution or voxel_size with offset,
    the corner of the first voxel: its arrays cover offset to offset + shape * voxel_size. So do the
    files of CREMI; there as here an array without an offset begins at 0, since CREMI leaves out an
    offset of 0. What is packed for the challenge has voxel_size with translation, the centre.
    ilastik and the HDF5 plugin of Fiji write element_size_um, in micrometres, and no place.

    path: of the array. Raises UserError for units that are no lengths.
    """
    centre = numbers(attributes.get("translation"))
    offset = numbers(attributes.get("offset"))
    if centre is None and EXPORTED in attributes:
        # our own files, before they had a translation, had the centre there
        centre = offset
    for name in ("resolution", "voxel_size"):
        scale = numbers(attributes.get(name))
        if scale and min(scale) > 0:
            units = np.array(_units(path, attributes))
            corner = (units * (np.array(offset or np.zeros(3)) + np.array(scale) / 2)).tolist()
            if centre is not None:
                centre = (units * centre).tolist()
            elif offset is not None:
                centre = corner
            return Placing((units * scale).tolist(), centre, corner)
    micrometres = numbers(attributes.get("element_size_um"))
    # 1 um along each axis is what an image has that nobody measured
    if micrometres and min(micrometres) > 0 and micrometres != [1, 1, 1]:
        return Placing([1000 * length for length in micrometres], centre)
    if centre is None and offset is not None:
        # in voxels, where nothing says how large these are
        centre = (np.array(offset) + 0.5).tolist()
    return Placing(None, centre)


def single_by_attributes(
    path: Path, array: Voxels, attributes: Mapping[str, Any], stamp: str = "file"
) -> Image:
    """Return an image of one level, where and as large as attributes say.

    Raises UserError for axes in another order than z, y, x, and for units that are no lengths.
    """
    check_order(path, attributes)
    said = by_attributes(path, attributes)
    return single(
        path,
        array,
        scale=said.scale,
        translation=said.translation,
        otherwise=said.corner,
        stamp=stamp,
    )


def _units(path: Path, attributes: Mapping[str, Any]) -> list[float]:
    """Lengths in nm of the units along z, y, x that attributes name; 1 where they name none."""
    # one text would be the unit of the values, as xarray has it
    named = _texts(attributes.get("units"))
    # as `common.data.volumes.writers.hdf5` names that of all axes
    of_all = [unit for unit in _texts(attributes.get("unit")) if unit in NM_PER_UNIT]
    if len(named) != len(SPACE) or not any(named):
        named = of_all * len(SPACE)
    if len(named) != len(SPACE):
        return [1.0] * len(SPACE)
    return [in_nm(path, 1.0, unit) for unit in named]


ORDERS = (
    *("axistags", "axis_names", "axes", "dimension_names", "_ARRAY_DIMENSIONS"),
    "DIMENSION_LABELS",
)
"""Attributes in which axes have names: of vigra and ilastik, funlib, zarr v3, xarray, HDF5."""

OTHERS = ("c", "channel", "t", "time")
"""Names of axes along which there is more than one volume."""


def check_order(path: Path, attributes: Mapping[str, Any]) -> None:
    """Raises UserError for a volume whose three axes are not z, y, x by their names."""
    for attribute in ORDERS:
        names = _axis_names(attributes.get(attribute))
        is_in_another_order = sorted(names) == sorted(SPACE) and names != list(SPACE)
        if is_in_another_order or (len(names) == len(SPACE) and set(names) & set(OTHERS)):
            raise UserError(
                f"{path}: axes {', '.join(names)} by its attribute '{attribute}'; write a volume "
                "with the axes z, y, x, in this order, or correct the attribute if they are"
            )


def _axis_names(written: Any) -> list[str]:
    """Return the names of axes that an attribute has, in lower case."""
    if isinstance(written, str | bytes):
        # of vigra: JSON with the axes as objects with a key
        try:
            written = json.loads(written)
        except ValueError:
            written = list(written) if set(written) <= set("tczyx") else []
    if isinstance(written, Mapping):
        axes = written.get("axes")
        objects = axes if isinstance(axes, list) else []
        written = [axis.get("key") for axis in objects if isinstance(axis, Mapping)]
    return [name.lower() for name in _texts(written)]


def _texts(written: Any) -> list[str]:
    """Return texts of JSON or an attribute, one or several; none where it is something else."""
    if isinstance(written, np.ndarray | np.generic):
        written = written.tolist()
    listed = [written] if isinstance(written, str | bytes) else written
    if not isinstance(listed, list | tuple):
        return []
    texts = [text.decode(errors="replace") if isinstance(text, bytes) else text for text in listed]
    return texts if all(isinstance(text, str) for text in texts) else []

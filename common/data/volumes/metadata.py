"""Read and check the metadata of OME-NGFF groups, of version 0.4 and those near it.

The metadata may come from any program, so everything is checked before it is used. Each problem is
a UserError of one sentence that begins with the path of the group or array. Lengths are in nm, axes
are z, y, x.

Source: https://ngff.openmicroscopy.org/0.4
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes import foreign, layout
from common.errors import UserError
from common.talk import nm, note_once

NM_PER_UNIT = {
    "nanometer": 1.0,
    "angstrom": 0.1,
    "picometer": 1e-3,
    "micrometer": 1e3,
    "millimeter": 1e6,
    "centimeter": 1e7,
    "meter": 1e9,
    # not in the specification, and written all the same
    "nm": 1.0,
    "um": 1e3,
    "µm": 1e3,
    "micron": 1e3,
}

SPACE = ("z", "y", "x")

SYSTEMS = "coordinateSystems"
"""Of version 0.6: axes by the name of a system, in place of the axes of an image.

Source: https://ngff.openmicroscopy.org/0.6.
"""

SMALLEST_EM_NM = 0.3
LARGEST_EM_NM = 10_000
"""Range of voxel sizes in volume EM; sizes without a unit that are outside of it are not in nm."""

SMALLEST_NM = 1e-3
LARGEST_NM = 1e12
"""Range of credible voxel sizes and positions: a picometre to a kilometre."""

UNFINISHED = "unfinished"
"""Attribute of a group that is still being written.

Such a group has no 'multiscales', so that no reader takes it for a complete image.
"""

LEVELS_BY_BLOCK = "levels_by_block"
"""Attribute of such a group: the number of coarser levels that are written with each block.

An earlier version wrote one at most, and said nothing.
"""

STORED_CHUNKS = "stored_chunks"
"""Attribute of a group that was written here: how many chunks of its finest level are stored.

Chunks of zeros are not, so that nothing else tells one that was lost.
"""


@dataclass(frozen=True)
class LevelMetadata:
    """The metadata of one resolution of an image."""

    name: str
    """Path of the array in the group."""
    scale: np.ndarray
    """(3,) voxel size in nm."""
    translation: np.ndarray
    """(3,) position of the centre of the first voxel in nm."""
    has_translation: bool
    """Whether the metadata have a translation; without one it is taken as 0."""


@dataclass(frozen=True)
class ImageMetadata:
    """The metadata of a multiscale image."""

    axes: tuple[str, ...]
    """Names of all axes of its arrays: z, y, x, and others before them that have length 1."""
    levels: tuple[LevelMetadata, ...]
    """The levels in the order of the file; at least one."""


def read_image(path: Path, *, is_sized: bool = False) -> ImageMetadata:
    """Return the metadata of the first multiscale image of the zarr v2 group at `path`.

    is_sized: the user says how large a voxel is, so that lengths may be in any unit or none.

    Raises UserError if its metadata do not place an image in space.
    """
    zarr_format = read_object(path / ".zgroup").get("zarr_format")
    if zarr_format != 2:
        raise UserError(f"{path}: .zgroup has zarr_format {zarr_format!r}; only 2 can be read")
    return image_of(path, read_attributes(path), is_sized=is_sized)


def image_of(path: Path, attributes: dict[str, Any], *, is_sized: bool = False) -> ImageMetadata:
    """Return the metadata of the first multiscale image that attributes describe, as `read_image`.

    path: of the group.
    """
    image = _first_image(path, attributes)
    axes = _axes(path, image)
    names = _axis_names(path, axes)
    spatial = [names.index(axis) for axis in SPACE]
    # the image's own transformation comes after that of the level; where coordinate systems have
    # names it leads from that of the levels to others
    of_image = None if SYSTEMS in image else image.get("coordinateTransformations")
    outer = _affine(path, of_image, len(names))
    levels: list[LevelMetadata] = []
    for dataset in _datasets(path, image):
        name = _array_name(path, dataset["path"])
        inner = _affine(path, dataset.get("coordinateTransformations"), len(names))
        if not inner.has_scale and not (is_sized and not levels):
            raise UserError(
                f"{path}: level '{name}' has no scale; write its voxel size in nm into .zattrs"
            )
        place = inner.then(outer)
        levels.append(
            LevelMetadata(
                name=name,
                scale=place.scale[spatial],
                translation=place.translation[spatial],
                has_translation=place.has_translation,
            )
        )
    if not any(level.has_translation for level in levels):
        levels = _in_one_box(levels)
    in_nm = levels if is_sized else _in_nm(path, axes, levels)
    return ImageMetadata(names, tuple(in_nm))


def read_attributes(group: Path) -> dict[str, Any]:
    """Return the attributes of a zarr group; {} if there is no group."""
    path = group / ".zattrs"
    return read_object(path) if path.is_file() else {}


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises FileNotFoundError, and UserError for other text."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error}); copy it again") from error
    return as_object(file, text)


def as_object(file: Path, text: bytes) -> dict[str, Any]:
    """Return the JSON object in the text of a file. Raises UserError for anything else."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{file}: cannot be read ({error}); copy it again") from error
    except RecursionError:
        raise UserError(f"{file}: brackets without end; copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: {_kind(content)} where an object belongs; copy it again")
    return content


def dropped_axes(
    path: Path, names: Sequence[str], shape: Sequence[int], chunks: Sequence[int]
) -> tuple[int, ...]:
    """Return which axes of an array are not z, y, x. Raises UserError unless they have length 1."""
    if len(shape) != len(names):
        raise UserError(
            f"{path}: {len(shape)} axes, of which .zattrs lists {len(names)} "
            f"({', '.join(names)}); write the axes of the array there"
        )
    dropped = []
    for number, name in enumerate(names):
        if name in SPACE:
            continue
        if shape[number] != 1:
            raise UserError(
                f"{path}: {shape[number]} values along axis '{name}'; images here have "
                "three axes, z, y, x: write each of them as an image of its own"
            )
        if chunks[number] != 1:
            raise UserError(
                f"{path}: chunks of {chunks[number]} along axis '{name}'; write chunks of 1 "
                "there, or the image without that axis"
            )
        dropped.append(number)
    return tuple(dropped)


# The image


def _first_image(path: Path, attributes: dict[str, Any]) -> dict[str, Any]:
    multiscales = attributes.get("multiscales")
    if multiscales is None:
        raise UserError(f"{path}: {_why_no_image(path, attributes)}")
    if not isinstance(multiscales, list) or not all(isinstance(m, dict) for m in multiscales):
        raise UserError(
            f"{path}: 'multiscales' in .zattrs is {_kind(multiscales)}; write a list of objects, "
            "as OME-NGFF 0.4 has it"
        )
    if not multiscales:
        raise UserError(f"{path}: 'multiscales' in .zattrs is empty; write its levels there")
    if len(multiscales) > 1:
        note_once(f"{path}: {len(multiscales)} images in one group, the first one is read")
    return multiscales[0]


def _why_no_image(path: Path, attributes: dict[str, Any]) -> str:
    """Return a sentence about a group without 'multiscales': what it is, and what to write."""
    if attributes.get(UNFINISHED):
        return "half-written; run the command that writes it again, it goes on where it stopped"
    below = foreign.images_below(path)
    where = f"; write the path of an image in it, such as {below[0]}" if below else ""
    if "bioformats2raw.layout" in attributes:
        return f"the root of a bioformats2raw store, which holds images{where or ' elsewhere'}"
    if "plate" in attributes or "well" in attributes:
        return f"a plate or well of many images{where}"
    if isinstance(attributes.get("ome"), dict):
        return "metadata under 'ome', as of OME-NGFF 0.5; write them as version 0.4, in zarr v2"
    if where:
        return f"no 'multiscales' in .zattrs, it is a folder of images{where}"
    only = " (only 'omero', which says how to show it)" if "omero" in attributes else ""
    return (
        f"no 'multiscales' in .zattrs{only}; write OME-NGFF 0.4 metadata with the voxel size in nm"
    )


def _datasets(path: Path, image: dict[str, Any]) -> list[dict[str, Any]]:
    datasets = image.get("datasets")
    if not isinstance(datasets, list) or not datasets:
        raise UserError(
            f"{path}: 'datasets' in .zattrs is {_kind(datasets)}; write a list of levels, each "
            "with path and coordinateTransformations"
        )
    for dataset in datasets:
        if not isinstance(dataset, dict) or not isinstance(dataset.get("path"), str):
            raise UserError(
                f"{path}: a level {short(dataset)} in .zattrs; write an object whose 'path' is "
                "the name of an array, in quotes"
            )
    return datasets


def _array_name(path: Path, written: str) -> str:
    """Return the path of an array in its group, without './' and the like."""
    name = posixpath.normpath(written.replace("\\", "/"))
    if name in (".", "") or name.startswith(("/", "..")):
        raise UserError(f"{path}: level '{written}' in .zattrs is no array in this group")
    return name


def _in_one_box(levels: Sequence[LevelMetadata]) -> list[LevelMetadata]:
    """Place levels of which none says its place so that they cover one box, as those of N5 do.

    To the letter, the centre of each first voxel would be at 0, so that a level whose voxels are
    means of finer ones would lie up to half of its voxel before them. ome-zarr-py wrote no
    translation until 2026. Source: https://github.com/ome/ome-zarr-py/issues/403.
    """
    finest = min(levels, key=_voxel_volume)
    return [replace(level, translation=(level.scale - finest.scale) / 2) for level in levels]


def _voxel_volume(level: LevelMetadata) -> float:
    return float(np.prod(level.scale))


# Axes and units


def _axes(path: Path, image: dict[str, Any]) -> Any:
    """Return the axes of an image; from version 0.6 on, of the system that its levels lie in."""
    if SYSTEMS not in image:
        return image.get("axes")
    outputs = []
    for dataset in _datasets(path, image):
        for transform in _objects(path, dataset.get("coordinateTransformations")):
            output = transform.get("output")
            outputs.append(output.get("name") if isinstance(output, dict) else output)
    systems = _objects(path, image[SYSTEMS])
    of_levels = [system for system in systems if system.get("name") in outputs]
    if len(of_levels) != 1:
        raise UserError(
            f"{path}: its levels lie in {len(of_levels)} of {len(systems)} coordinate systems; "
            "write one that all of them lie in"
        )
    return of_levels[0].get("axes")


def _axis_names(path: Path, axes: Any) -> tuple[str, ...]:
    """Return the names of all axes, the last z, y, x. Raises UserError for another order."""
    if axes is None:
        return SPACE
    if not isinstance(axes, list):
        raise UserError(f"{path}: axes are {_kind(axes)}; write a list of three, z, y, x")
    names = []
    for axis in axes:
        # version 0.3 has names alone
        name = axis.get("name") if isinstance(axis, dict) else axis
        if not isinstance(name, str):
            raise UserError(f"{path}: an axis {short(axis)}; write its name, z, y or x")
        names.append(name)
    spatial = tuple(name for name in names if name in SPACE)
    if spatial != SPACE or len(set(names)) < len(names):
        raise UserError(f"{path}: axes {names}; they must be z, y, x, in this order")
    for axis, name in zip(axes, names, strict=True):
        is_space = isinstance(axis, dict) and axis.get("type") == "space"
        if is_space and name not in SPACE:
            raise UserError(f"{path}: axes {names}; they must be z, y, x, in this order")
    return tuple(names)


def _in_nm(path: Path, axes: Any, levels: Sequence[LevelMetadata]) -> list[LevelMetadata]:
    """Return the levels with their lengths in nm."""
    units = _units(path, axes)
    sizes = np.ones(3)
    for number, unit in enumerate(units):
        if unit is not None:
            sizes[number] = NM_PER_UNIT[unit]
    finest = min(levels, key=_voxel_volume).scale * sizes
    if None in units:
        _judge_missing_unit(path, units, finest)
    in_nm = []
    for level in levels:
        scale = level.scale * sizes
        translation = level.translation * sizes
        if (scale < SMALLEST_NM).any() or (scale > LARGEST_NM).any():
            raise UserError(f"{path}: voxels of {nm(scale)} nm; correct scale or unit in .zattrs")
        if (np.abs(translation) > LARGEST_NM).any():
            raise UserError(
                f"{path}: a translation of {translation.tolist()} nm; correct it in .zattrs"
            )
        in_nm.append(LevelMetadata(level.name, scale, translation, level.has_translation))
    return in_nm


def _units(path: Path, axes: Any) -> list[str | None]:
    """Return the units along z, y, x, None without. Raises UserError for one that is no length."""
    units: list[str | None] = []
    for axis in axes or SPACE:
        if not isinstance(axis, dict):
            units += [None] if axis in SPACE else []
        elif axis["name"] in SPACE:
            unit = axis.get("unit") or None
            if unit is not None and (not isinstance(unit, str) or unit not in NM_PER_UNIT):
                known = ", ".join(list(NM_PER_UNIT)[:5])
                raise UserError(f"{path}: unit {short(unit)}; use one of {known}")
            units.append(unit)
    return units


def _judge_missing_unit(path: Path, units: list[str | None], voxel: np.ndarray) -> None:
    """Note that lengths without a unit are taken as nm; raise UserError where they cannot be."""
    others = [unit for unit in units if unit is not None and NM_PER_UNIT[unit] != 1]
    if others:
        raise UserError(
            f"{path}: an axis without a unit beside one in {others[0]}; write the unit of each "
            "axis into .zattrs"
        )
    advice = 'write "unit": "nanometer", or what it is, at each axis in .zattrs'
    if (voxel < SMALLEST_EM_NM).any() or (voxel > LARGEST_EM_NM).any():
        raise UserError(
            f"{path}: axes without a unit, and a voxel of {nm(voxel)}, which would be no EM in nm; "
            f"{advice}"
        )
    place = layout.store_of(path) or path
    note_once(f"{place}: axes without a unit, so a voxel is taken as {nm(voxel)} nm; {advice}")


# Transformations


@dataclass(frozen=True)
class _Affine:
    """What a list of transformations amounts to, over all axes."""

    scale: np.ndarray
    translation: np.ndarray
    has_scale: bool
    has_translation: bool

    def then(self, outer: _Affine) -> _Affine:
        """This one, and another one after it."""
        return _Affine(
            scale=self.scale * outer.scale,
            translation=self.translation * outer.scale + outer.translation,
            has_scale=self.has_scale or outer.has_scale,
            has_translation=self.has_translation or outer.has_translation,
        )


def _affine(path: Path, transforms: Any, axes: int) -> _Affine:
    """Applied in the order listed."""
    scale = np.ones(axes)
    translation = np.zeros(axes)
    kinds = set()
    for transform in _one_by_one(path, transforms):
        kind = transform.get("type")
        if kind == "scale":
            value = _numbers(path, transform, kind, axes)
            scale = scale * value
            translation = translation * value
        elif kind == "translation":
            translation = translation + _numbers(path, transform, kind, axes)
        elif kind != "identity":
            raise UserError(
                f"{path}: coordinate transformation {short(kind)}; "
                "only scale and translation can be read"
            )
        kinds.add(kind)
    return _Affine(scale, translation, "scale" in kinds, "translation" in kinds)


def _one_by_one(path: Path, transforms: Any) -> list[dict[str, Any]]:
    """Return the transformations in a list, those of a sequence one by one."""
    steps: list[dict[str, Any]] = []
    for transform in [] if transforms is None else _objects(path, transforms):
        is_sequence = transform.get("type") == "sequence"
        steps += _objects(path, transform.get("transformations")) if is_sequence else [transform]
    return steps


def _objects(path: Path, transforms: Any) -> list[dict[str, Any]]:
    if isinstance(transforms, list) and all(isinstance(entry, dict) for entry in transforms):
        return transforms
    raise UserError(
        f"{path}: coordinateTransformations are {_kind(transforms)}; write a list of objects, "
        "as OME-NGFF 0.4 has it"
    )


def _numbers(path: Path, transform: dict[str, Any], kind: str, axes: int) -> np.ndarray:
    """Return the numbers of a transformation, one an axis."""
    written = transform.get(kind)
    numbers = written if isinstance(written, list) else []
    are_numbers = len(numbers) == axes and all(_is_number(number) for number in numbers)
    if not are_numbers or (kind == "scale" and min(numbers) <= 0):
        above = ", above zero" if kind == "scale" else ""
        count = "three numbers (z, y, x) are" if axes == 3 else f"{axes} numbers, one an axis, are"
        raise UserError(f"{path}: {kind} {short(written)}; {count} needed{above}")
    return np.array(numbers, float)


def _is_number(value: Any) -> bool:
    """Return whether a value of JSON is a finite number, and no bool and no text of digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300


# Words


def _kind(value: Any) -> str:
    """Return what a value of JSON is."""
    if value is None:
        return "missing or null"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    names = {dict: "an object", str: "a text", bool: "true or false"}
    return names.get(type(value), "a number")


def short(value: Any) -> str:
    """Return a value of JSON as a sentence has it, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

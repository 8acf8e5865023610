"""Read N5, with the metadata of CellMap, COSEM and the viewers for N5.

Everything in N5 is listed x, y, z, but for what names its axes. Sources:
https://github.com/saalfeldlab/n5 (arrays), https://github.com/saalfeldlab/n5-viewer
(pixelResolution, downsamplingFactors), cellmap-schemas (multiscales, transform),
https://github.com/google/neuroglancer, src/datasource/n5 (axes, units beside resolution).
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes import metadata
from common.data.volumes.level import Level
from common.data.volumes.placement import is_same_size
from common.data.volumes.sources import chunked
from common.data.volumes.sources.chunked import Chunked
from common.data.volumes.sources.image import Image, Placing, in_nm, is_of_em, numbers
from common.data.volumes.sources.place import Place
from common.errors import UserError
from common.talk import nm, note_once

MARKER = "attributes.json"

MOST_LEVELS = 16

PAINTERA = "painteraData"
"""Attribute of a group that Paintera wrote, or its conversion helper."""


def open_volume(place: Place) -> Image:
    """Open an array, or a group of levels s0, s1, ... or as its multiscales name them."""
    path = place.path
    attributes = _attributes(path)
    if "dimensions" in attributes:
        return _image(path, {}, {"": attributes})
    named = _named_levels(attributes)
    levels = {}
    for number in range(MOST_LEVELS):
        name = f"s{number}" if named is None else named[number] if number < len(named) else ""
        about = _attributes(path / name) if name else {}
        if "dimensions" not in about:
            break
        levels[name] = about
    if not levels:
        below = sorted(file.parent for file in path.glob(f"*/{MARKER}"))
        where = f", such as {below[0]}" if below else ""
        raise UserError(
            f"{path}: a group of N5 without levels s0, s1, ...; write the path of an array or of "
            f"a group of levels in it{where}"
        )
    return _image(path, attributes, levels)


def _attributes(path: Path) -> dict[str, Any]:
    try:
        return metadata.read_object(path / MARKER)
    except FileNotFoundError:
        return {}


def _named_levels(attributes: Mapping[str, Any]) -> list[str] | None:
    """Return the levels that multiscales list; None without."""
    multiscale = _multiscale(attributes)
    names = [dataset.get("path") for dataset in _datasets(multiscale)]
    paths = [posixpath.normpath(name) for name in names if isinstance(name, str)]
    return [name for name in paths if not name.startswith((".", "/"))] or None


def _multiscale(attributes: Mapping[str, Any]) -> dict[str, Any]:
    listed = attributes.get("multiscales")
    first = listed[0] if isinstance(listed, list) and listed else None
    return first if isinstance(first, dict) else {}


def _datasets(multiscale: Mapping[str, Any]) -> list[dict[str, Any]]:
    listed = multiscale.get("datasets")
    if not isinstance(listed, list):
        return []
    return [dataset for dataset in listed if isinstance(dataset, dict)]


def _image(path: Path, group: dict[str, Any], levels: dict[str, dict[str, Any]]) -> Image:
    transforms = {}
    for dataset in _datasets(_multiscale(group)):
        transforms[posixpath.normpath(str(dataset.get("path")))] = dataset.get("transform")
    base = {**group, **next(iter(levels.values()))}
    opened = []
    is_measured = True
    for number, (name, about) in enumerate(levels.items()):
        folder = path / name
        transform = about.get("transform") or transforms.get(name)
        factors = _factors(group, about, number)
        placing = _of_transform(folder, transform)
        if placing is None:
            _check_order(folder, {**group, **about})
            placing = _of_resolution(folder, {**group, **about}, base, factors)
        if placing is None:
            is_measured = False
            placing = Placing(factors, corner=(factors - 1) / 2)
        opened.append(
            Level(
                path=folder,
                array=_array(folder, about, group),
                scale=np.array(placing.scale),
                translation=placing.place,
                has_translation=placing.translation is not None,
                image=path,
                stamp=chunked.stamp(group, about),
            )
        )
    return Image(opened, is_measured)


def _array(folder: Path, about: dict[str, Any], group: dict[str, Any]) -> Chunked:
    array = chunked.open_array(folder, "n5")
    if len(array.shape) > 3:
        # channel and time come last here
        others = array.shape[3:]
        if any(length != 1 for length in others):
            raise UserError(
                f"{folder}: axes x, y, z and {list(others)} more; volumes here have three axes: "
                "write each channel and time as an array of its own"
            )
        array = array[(..., *(0 for _ in others))]

    def file_of(index: Any) -> str:
        ends = ["0"] * (len(about["dimensions"]) - 3)
        return "/".join([*(str(number) for number in reversed(index)), *ends])

    return Chunked(folder, array.T, file_of, {**group, **about})


def _factors(group: Mapping[str, Any], about: Mapping[str, Any], number: int) -> np.ndarray:
    """Return how many voxels of the finest level one of this level covers; (3,) z, y, x."""
    factors = numbers(about.get("downsamplingFactors"))
    scales = group.get("scales") or group.get("downsamplingFactors")
    if factors is None and isinstance(scales, list) and number < len(scales):
        factors = numbers(scales[number])
    if factors is None or min(factors) <= 0:
        return np.full(3, 2.0**number)
    return np.array(factors[::-1])


def _of_transform(folder: Path, transform: Any) -> Placing | None:
    """Return what COSEM's transform says, which names its axes; None without one."""
    if not isinstance(transform, dict):
        return None
    axes = transform.get("axes")
    scale = numbers(transform.get("scale"))
    translation = numbers(transform.get("translate"))
    if not isinstance(axes, list) or sorted(map(str, axes)) != ["x", "y", "z"] or scale is None:
        raise UserError(
            f"{folder}: transform {transform}; write axes z, y, x with a scale for each into "
            "attributes.json, or the size of a voxel behind the name: #voxel_size=8"
        )
    units = transform.get("units") or [None] * 3
    if not isinstance(units, list) or len(units) != 3 or min(scale) <= 0:
        raise UserError(f"{folder}: transform {transform}; correct its scale and units")
    order = [axes.index(axis) for axis in "zyx"]
    size = [in_nm(folder, scale[axis], units[axis]) for axis in order]
    if translation is None:
        return Placing(size)
    return Placing(size, [in_nm(folder, translation[axis], units[axis]) for axis in order])


def _of_resolution(
    folder: Path, about: Mapping[str, Any], base: Mapping[str, Any], factors: np.ndarray
) -> Placing | None:
    """Return what pixelResolution or resolution says, x, y, z; None without.

    The offset is the corner of the first voxel, in the unit of the resolution, as funlib and daisy
    write it; Paintera's is its centre.
    """
    said = _resolution(folder, about)
    said_of_finest = _resolution(folder, base)
    if said is None or said_of_finest is None:
        return None
    size, unit = said
    finest, _ = said_of_finest
    if not is_of_em(finest):
        note_once(f"{folder}: says voxels of {nm(finest)} nm, which no EM has; that is not used")
        return None
    offset = numbers(about.get("offset"))
    # some give the size of the finest level to all, some its own to each
    voxel = size * factors if is_same_size(size, finest) else size
    # a coarse voxel lies over several fine ones: its centre is theirs
    first = (voxel - finest) / 2
    if offset is None:
        return Placing(voxel, corner=first)
    first = first + unit * offset[::-1]
    return Placing(voxel, first if PAINTERA in about else first + finest / 2)


def _resolution(folder: Path, about: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Size of a voxel, and of the unit that lengths are in: (3,) nm each, z, y, x; None without."""
    written = about.get("pixelResolution", about.get("resolution"))
    units = about.get("units")
    if isinstance(written, dict):
        units = [written.get("unit")] * 3
        written = written.get("dimensions")
    size = numbers(written)
    if size is None or min(size) <= 0:
        return None
    if not isinstance(units, list) or len(units) != 3:
        units = [None] * 3
    unit = np.array([in_nm(folder, 1.0, name) for name in reversed(units)])
    return unit * size[::-1], unit


def _check_order(folder: Path, about: Mapping[str, Any]) -> None:
    """Raises UserError for a volume whose first three dimensions are not x, y, z by their names."""
    names = about.get("axes")
    if isinstance(names, list) and len(names) >= 3 and names[:3] != ["x", "y", "z"]:
        raise UserError(
            f"{folder}: axes {', '.join(map(str, names))} by its attribute 'axes', which has the "
            "order of 'dimensions'; write a volume whose dimensions are x, y, z, or correct the "
            "attribute if they are"
        )

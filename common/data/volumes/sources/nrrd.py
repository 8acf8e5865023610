"""Read NRRD files: .nrrd, and .nhdr, whose voxels are in another file.

Their voxels are stored with the first axis fastest, which is x unless the directions say that it is
y or z. Raw voxels are read in parts, those packed by gzip or bzip2 are unpacked first. Source:
https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.data.volumes.sources import files
from common.data.volumes.sources.image import (
    AS_STORED,
    SPELLINGS,
    Image,
    Turned,
    in_nm,
    in_world,
    single,
    turned,
)
from common.data.volumes.sources.place import Place
from common.data.volumes.sources.rows import Packed, Rows
from common.errors import UserError

PACKED = {"gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
"""Encodings that are streams."""

NAMES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
"""What headers call types of voxels."""

FRAMES = {
    "right-anterior-superior": "RAS",
    "left-anterior-superior": "LAS",
    "left-posterior-superior": "LPS",
}
"""What headers call worlds, in full."""

TO_RAS = {"RAS": (1, 1, 1), "LAS": (-1, 1, 1), "LPS": (-1, -1, 1)}
"""The way of their x, y, z in that of NIfTI."""

TYPES: dict[str, str] = {}
for of_numpy, spellings in NAMES.items():
    TYPES.update(dict.fromkeys(spellings.split(", "), of_numpy))


def open_file(place: Place) -> Image:
    """Open the volume of a file."""
    path = place.path
    nrrd = files.library("nrrd", "NRRD files", package="pynrrd")
    content = files.opened(path)
    header = _header(nrrd, path, content)
    start = content.tell()
    beside = []
    if name := header.get("data file", header.get("datafile")):
        beside = [_beside(path, name)]
        content = files.opened(beside[0])
        start = 0
    sizes = header["sizes"].tolist()
    axes = _kept(sizes)
    way = _way(header, axes)
    where: dict[str, Any] = {"start": start}
    where["stored"] = [sizes[axis] for axis in reversed(axes)]
    where["axes"] = way.order_stored
    array = _array(path, content, header, where)
    array.beside = beside
    return _placed(path, array, header, axes=[axes[axis] for axis in way.order], way=way)


def _header(nrrd: Any, path: Path, content: BinaryIO) -> dict[str, Any]:
    """Return the header of a file. Raises UserError for what is no such file."""
    try:
        header = nrrd.read_header(content)
    except (nrrd.NRRDError, ValueError, StopIteration, OSError) as error:
        raise files.broken(path, "an NRRD file", error) from error
    absent = [name for name in ("type", "encoding", "sizes") if name not in header]
    if absent:
        raise UserError(
            f"{path}: cannot be read as an NRRD file (no '{absent[0]}' in it); write or copy it "
            "again"
        )
    return header


def _beside(path: Path, name: str) -> Path:
    """Return the file of the voxels. Raises UserError for several."""
    if name.startswith("LIST") or "%" in name:
        raise UserError(f"{path}: voxels in several files; write them as one .nrrd")
    return path.parent / name


def _kept(sizes: list[int]) -> list[int]:
    """Return three axes, or those that are longer than 1."""
    axes = list(range(len(sizes)))
    for axis in reversed(range(len(sizes))):
        if len(axes) > 3 and sizes[axis] == 1:
            axes.remove(axis)
    return axes


def _array(path: Path, content: BinaryIO, header: Mapping[str, Any], where: dict[str, Any]) -> Rows:
    """Return the voxels. Raises UserError for another way of writing them."""
    encoding = header["encoding"].lower()
    skipped = [header.get(name, 0) for name in ("line skip", "lineskip", "byte skip", "byteskip")]
    if encoding not in ("raw", *PACKED) or any(skipped):
        what = "bytes before its voxels" if any(skipped) else f"encoding {encoding}"
        raise UserError(f"{path}: {what}; write it with encoding raw or gzip, and nothing skipped")
    dtype = _dtype(path, header)
    if encoding == "raw":
        return Rows(path, content, dtype=dtype, **where)
    stream = Packed(path, content, PACKED[encoding], where["start"])
    return Rows(path, stream, dtype=dtype, **where | {"start": 0})


def _dtype(path: Path, header: Mapping[str, Any]) -> np.dtype:
    """Return the type of a voxel. Raises UserError for no number, and for no byte order."""
    name = header["type"].lower()
    if name not in TYPES:
        raise UserError(f"{path}: voxels of type {name}; write whole numbers or floats")
    dtype = np.dtype(TYPES[name])
    order = header.get("endian", "").lower()
    if dtype.itemsize > 1 and order not in ("little", "big"):
        raise UserError(f"{path}: no 'endian' in its header; write endian: little, or big")
    return dtype.newbyteorder(">" if order == "big" else "<")


# How large a voxel is


def _way(header: Mapping[str, Any], axes: list[int]) -> Turned:
    """Return how the axes of a volume lie in the world. axes: of the file."""
    directions = header.get("space directions")
    if directions is None or len(axes) != 3 or np.shape(directions)[1:] != (3,):
        return AS_STORED
    kept = np.array(directions, float)[axes]
    if not np.isfinite(kept).all() or not kept.any(axis=1).all():
        return AS_STORED
    frame = FRAMES.get(header.get("space", "").lower(), header.get("space", ""))
    to_ras = np.array(TO_RAS.get(frame, (1, 1, 1)))
    origin = np.array(header.get("space origin", np.zeros(3)), float)
    return turned(kept * to_ras, origin * to_ras, "RAS" if frame in TO_RAS else frame)


def _placed(
    path: Path, array: Rows, header: Mapping[str, Any], *, axes: list[int], way: Turned
) -> Image:
    """Return the image of an array, placed as its header says. axes: of the file, z, y, x."""
    if "space directions" in header:
        size = np.linalg.norm(np.array(header["space directions"], float)[axes], axis=1)
        units = header.get("space units", [])
    else:
        spacings = np.array(header.get("spacings", []), float)
        size = spacings[axes] if len(spacings) > max(axes) else np.zeros(3)
        units = [header["units"][axis] for axis in axes] if "units" in header else []
    if not np.isfinite(size).all() or (size <= 0).any():
        return single(path, array)
    return in_world(path, array, way, size=size, scale=_in_nm(path, size, units))


def _in_nm(path: Path, size: np.ndarray, units: Sequence[str]) -> list[float] | None:
    """Return the size of a voxel, z, y, x; None for 1 without a unit, which nobody chose."""
    unit = units[0].strip('"') if len(units) else ""
    if not unit and (size == 1).all():
        return None
    same = dict.fromkeys(other.strip('"') for other in units)
    if len(same) > 1:
        raise UserError(f"{path}: units {', '.join(same)}; write one unit for all axes")
    unit = SPELLINGS.get(unit, unit)
    return [in_nm(path, float(length), unit) for length in size]

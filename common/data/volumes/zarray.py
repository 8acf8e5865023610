"""Read and check the .zarray of an array of zarr v2: its shape, and how its voxels are stored.

It may come from any program, so everything is checked before it is used. Each problem is a
UserError of one sentence that begins with the path of the array.

Source: https://zarr-specs.readthedocs.io, version 2.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes.metadata import read_object, short
from common.errors import UserError

LARGEST_CHUNK = 2**34
"""Largest chunk in bytes; a chunk is decoded as a whole, in memory."""

LARGEST_ARRAY = 2**60
"""Largest number of voxels of an array; 64 bits could not count the bytes of more."""

NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""Fill values that zarr writes as text, since JSON has no such numbers."""


@dataclass(frozen=True)
class ArrayMetadata:
    """The content of a .zarray."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    content: dict[str, Any]
    """The whole JSON object."""


def read_array(path: Path) -> ArrayMetadata:
    """Read and check the .zarray of an array.

    Raises:
        FileNotFoundError: if there is none.
        UserError: if it describes no array of numbers that a computer could hold.
    """
    if not (path / ".zarray").is_file():
        if (path / "zarr.json").is_file():
            raise UserError(f"{path}: zarr v3 in a group of zarr v2; write both alike")
        raise FileNotFoundError(f"{path}: array named in .zattrs is missing; copy it again")
    file = path / ".zarray"
    array = as_array(file, read_object(file))
    _check_names(path, array.content.get("dimension_separator", "."))
    return array


def as_array(file: Path, content: dict[str, Any]) -> ArrayMetadata:
    """Check the content of a .zarray.

    Raises UserError if it describes no array of numbers that a computer could hold.
    """
    if content.get("zarr_format") != 2:
        raise UserError(f"{file}: zarr_format {content.get('zarr_format')!r}; only 2 can be read")
    array = ArrayMetadata(
        shape=_whole_numbers(file, content, "shape"),
        chunks=_whole_numbers(file, content, "chunks"),
        content=content,
    )
    _check_size(file, array, _itemsize(file, content.get("dtype")))
    separator = content.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise UserError(f"{file}: dimension_separator {short(separator)}; write '.' or '/'")
    if content.get("order", "C") not in ("C", "F"):
        raise UserError(f"{file}: order {short(content['order'])}; write 'C' or 'F'")
    fill = content.get("fill_value")
    if not (fill is None or isinstance(fill, int | float) or fill in NOT_FINITE):
        raise UserError(f"{file}: fill_value {short(fill)}; write a number, such as 0")
    return array


def _check_size(file: Path, array: ArrayMetadata, itemsize: int) -> None:
    """UserError for an array that no computer could hold."""
    shape = list(array.shape)
    chunks = list(array.chunks)
    if len(shape) != len(chunks):
        raise UserError(
            f"{file}: shape {shape} and chunks {chunks} are of different length; "
            "write the array again"
        )
    chunk_bytes = math.prod(chunks) * itemsize
    if chunk_bytes > LARGEST_CHUNK:
        gigabytes = min(chunk_bytes, 10**30) / 1e9  # JSON has numbers that no float holds
        raise UserError(
            f"{file}: a chunk of {chunks} voxels has {gigabytes:.4g} GB, which no memory "
            "takes; write the array with chunks of about 128 x 128 x 128"
        )
    if math.prod(shape) > LARGEST_ARRAY:
        raise UserError(f"{file}: shape {shape} is larger than any volume; write its true shape")


def _check_names(folder: Path, separator: str) -> None:
    """UserError if chunks are named with another separator: none of them would be found."""
    if not folder.is_dir():
        return  # on a server, where names cannot be listed
    with os.scandir(folder) as entries:
        chunk = next((entry for entry in entries if entry.name[0].isdecimal()), None)
    if chunk is None or (chunk.is_file() and "." not in chunk.name):
        return  # of an array with one axis, or no chunk
    written = "/" if chunk.is_dir() else "."
    if written != separator:
        raise UserError(
            f"{folder}: chunks such as {chunk.name}, and dimension_separator {separator!r} in "
            f".zarray; write {written!r} there"
        )


def _whole_numbers(file: Path, content: dict[str, Any], name: str) -> tuple[int, ...]:
    written = content.get(name)
    numbers = written if isinstance(written, list) else []
    if not numbers or not all(_is_length(number) for number in numbers):
        raise UserError(
            f"{file}: {name} {short(written)}; write whole numbers above zero, one an axis"
        )
    return tuple(numbers)


def _is_length(value: Any) -> bool:
    """Return whether a value of JSON is a whole number above zero."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _itemsize(file: Path, dtype: Any) -> int:
    """Return bytes of a voxel; those of types that are no numbers are refused elsewhere or here."""
    try:
        kind = np.dtype(dtype) if isinstance(dtype, str) else None
    except (TypeError, ValueError):
        kind = None
    if kind is None or kind.kind not in "biuf" or kind.itemsize > 8:
        raise UserError(
            f"{file}: dtype {short(dtype)}; write an array of whole numbers or floats, as '|u1'"
        )
    return kind.itemsize

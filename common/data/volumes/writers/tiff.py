"""Write TIFF files: with ImageJ's metadata where ImageJ can hold a volume, else with OME's.

ImageJ knows three types of voxels and no file above 4 GB; Fiji opens the others by Bio-Formats.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes.sources import files
from common.data.volumes.writers.outgoing import PROGRAM, Outgoing, Tell, Writer, key_in_text

IMAGEJ_TYPES = ("uint8", "uint16", "float32")

LARGEST_CLASSIC = 2**32 - 2**26
"""Bytes of voxels of which a file of 32-bit addresses can be written."""


def write(path: Path, volume: Outgoing, tell: Tell) -> None:
    """Write a stack of pages, compressed."""
    tifffile = files.library("tifffile", "TIFF files")
    is_large = volume.size * volume.dtype.itemsize > LARGEST_CLASSIC
    is_imagej = volume.dtype.name in IMAGEJ_TYPES and not is_large
    kind = {"imagej": True} if is_imagej else {"ome": True, "bigtiff": is_large}
    about = _of_imagej(volume) if is_imagej else _of_ome(volume)
    with tifffile.TiffWriter(path, **kind) as file:
        file.write(
            _pages(volume, tell),
            shape=volume.shape,
            dtype=volume.dtype,
            photometric="minisblack",
            # of all compressions that ImageJ reads the smallest
            compression="zlib",
            software=f"{PROGRAM} {volume.key}",
            **about,
        )


def _pages(volume: Outgoing, tell: Tell) -> Iterator[np.ndarray]:
    for slab in volume.slabs():
        yield from slab
        tell(slab.size)


def _of_imagej(volume: Outgoing) -> dict[str, Any]:
    depth, height, width = volume.grid.scale.tolist()
    info = json.dumps(volume.about, indent=1)  # in Fiji: Image > Show Info
    metadata = {"axes": "ZYX", "spacing": depth, "unit": "nm", "Info": info}
    return {"resolution": (1 / width, 1 / height), "metadata": metadata}


def _of_ome(volume: Outgoing) -> dict[str, Any]:
    metadata = {"axes": "ZYX", "Name": volume.name, "Description": json.dumps(volume.about)}
    for axis, length in zip("ZYX", volume.grid.scale.tolist(), strict=True):
        metadata[f"PhysicalSize{axis}"] = length
        metadata[f"PhysicalSize{axis}Unit"] = "nm"
    return {"metadata": metadata}


def key_in(path: Path) -> str:
    """Return the key of what a file holds."""
    tifffile = files.library("tifffile", "TIFF files")
    try:
        with tifffile.TiffFile(path) as file:
            tag = file.pages[0].tags.get("Software")
    except (OSError, ValueError, IndexError):
        return ""
    return key_in_text(str(tag.value if tag else ""))


WRITER = Writer(
    "tiff",
    (".tif", ".tiff"),
    write,
    key_in,
    image_types=("uint8", "uint16", "float32", "int8", "int16", "uint32", "int32", "float64"),
    label_types=("uint8", "uint16", "uint32", "int8", "int16", "int32"),
    holds_place=False,
)

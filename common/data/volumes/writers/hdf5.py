"""Write HDF5 files: file.h5:/volume, with the attributes that ilastik, Fiji and funlib look for."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from common.data.volumes.box import boxes, slices
from common.data.volumes.sources import files
from common.data.volumes.sources.image import EXPORTED
from common.data.volumes.sources.place import in_hdf5
from common.data.volumes.writers.outgoing import NUMBERS, Outgoing, Tell, Writer
from common.files import free_bytes

ARRAY = "volume"
"""Its name in a file unless another one is asked for."""

CHUNK = 64
BLOCK = 256
"""Voxels along each axis of what is compressed, and of what is read, at once."""

RESERVE = 2**22
"""Bytes of a disk that are left for what HDF5 writes besides voxels."""


def write(path: Path, volume: Outgoing, tell: Tell) -> None:
    """Write a file of one array."""
    h5py = files.library("h5py", "HDF5 files")
    grid = volume.grid
    with h5py.File(path, "w") as file:
        array = file.create_dataset(
            volume.array,
            shape=volume.shape,
            dtype=volume.dtype,
            chunks=tuple(min(CHUNK, length) for length in volume.shape),
            # what every program reads; of higher levels than this one labels gain little
            compression="gzip",
            compression_opts=2,
            shuffle=True,
        )
        for start, stop in boxes(volume.shape, (BLOCK,) * 3):
            block = volume.read(start, stop)
            if free_bytes(path.parent) < block.nbytes + RESERVE:
                # HDF5 ends the process after this error of its own
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if block.any():
                array[slices(start, stop)] = block
            tell(block.size)
        array.attrs["resolution"] = grid.scale
        # for funlib the corner of the first voxel; the centre for those who read OME-NGFF
        array.attrs["offset"] = grid.box()[0]
        array.attrs["translation"] = grid.origin
        array.attrs["unit"] = "nm"
        array.attrs["element_size_um"] = grid.scale / 1000
        array.attrs[EXPORTED] = json.dumps(volume.record)


def key_in(path: Path) -> str:
    """Return the key of what a file holds; "" of an earlier one, which has its centre as offset."""
    h5py = files.library("h5py", "HDF5 files")
    try:
        with h5py.File(path, "r") as file:
            records: list[str] = []

            def see(_: str, node: Any) -> None:
                if EXPORTED in node.attrs and "translation" in node.attrs:
                    records.append(str(node.attrs[EXPORTED]))

            file.visititems(see)
        [record] = records
        return str(json.loads(record)["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def split(path: Path) -> tuple[Path, str]:
    """Return the file, and the array in it, of mito.h5 or mito.h5:/labels/mito."""
    inside = in_hdf5(path)
    if inside is None:
        return path, ARRAY
    file, array = inside
    return file, array or ARRAY


WRITER = Writer("hdf5", (".h5", ".hdf5", ".hdf"), write, key_in, NUMBERS, NUMBERS)

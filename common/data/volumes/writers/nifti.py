"""Write NIfTI files, which ITK-SNAP, 3D Slicer and napari read: .nii.gz, and .nii uncompressed.

Their voxels are stored x first, their lengths are um, the finest unit that they have, and the place
of the first voxel is the offset of their affine transform. Axes longer than 32767 voxels need the
header of version 2. Source: https://nifti.nimh.nih.gov/nifti-1, nifti-2.
"""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.data.volumes.sources import files
from common.data.volumes.writers.outgoing import (
    ORDINARY,
    PROGRAM,
    Outgoing,
    Tell,
    Writer,
    key_in_start,
)

NM_PER_UM = 1000

LONGEST_AXIS = 2**15 - 1
"""Voxels along an axis that version 1 counts."""

ALIGNED = 2
"""Code of an affine transform to where other volumes are, too."""


def write(path: Path, volume: Outgoing, tell: Tell) -> None:
    """Write a header, and the voxels slab by slab."""
    with path.open("wb") as file:
        # under the name .NAME.part until it is whole
        is_packed = path.name.removesuffix(".part").lower().endswith(".gz")
        with packed(file) if is_packed else contextlib.nullcontext(file) as stream:
            stream.write(_header(volume))
            for slab in volume.slabs():
                stream.write(slab.tobytes())
                tell(slab.size)


def packed(file: BinaryIO) -> gzip.GzipFile:
    """Return a stream that compresses what is written, with the same bytes at any time."""
    return gzip.GzipFile(filename="", mode="wb", compresslevel=2, fileobj=file, mtime=0)


def _header(volume: Outgoing) -> bytes:
    """Return the bytes before the voxels."""
    nibabel = files.library("nibabel", "NIfTI files")
    is_long = max(volume.shape) > LONGEST_AXIS
    header: Any = nibabel.Nifti2Header() if is_long else nibabel.Nifti1Header()
    grid = volume.grid
    affine = np.diag([*grid.scale[::-1], NM_PER_UM]) / NM_PER_UM
    affine[:3, 3] = grid.origin[::-1] / NM_PER_UM
    header.set_data_dtype(volume.dtype)
    header.set_data_shape(volume.shape[::-1])
    header.set_xyzt_units("micron")
    header.set_sform(affine, ALIGNED)
    header.set_qform(affine, ALIGNED)
    header.set_slope_inter(1, 0)
    header["descrip"] = f"{PROGRAM} {volume.key}".encode()
    # a header, and four bytes that say that no extension follows
    start = header.sizeof_hdr + 4
    header.set_data_offset(start)
    return header.binaryblock.ljust(start, b"\0")


WRITER = Writer("nifti", (".nii.gz", ".nii"), write, key_in_start, ORDINARY, ORDINARY)

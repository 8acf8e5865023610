"""Read NIfTI files, of medical imaging: .nii, and .nii.gz, which are unpacked first.

Their voxels are stored x first, their lengths are mm or um. Programs for medical images write mm
for any unit: 8 mm are not believed. The axes that lie along z, y, x of the world are z, y, x here,
whichever way they point. Source: https://nifti.nimh.nih.gov/nifti-1.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from common.data.volumes.level import Voxels
from common.data.volumes.placement import SAME_ORIGIN, is_same_size
from common.data.volumes.sources import files, rows
from common.data.volumes.sources.image import AS_STORED, Image, Turned, in_world, single, turned
from common.data.volumes.sources.place import Place
from common.data.volumes.sources.rows import Packed, Rows
from common.talk import lengths, note_once

HEADER_BYTES = {348: "Nifti1Header", 540: "Nifti2Header"}
"""The first number in a file, and who reads the header of that length."""

NM_PER_UNIT = {1: 1e9, 2: 1e6, 3: 1e3}
"""By the code in the header: metre, millimetre, micrometre; 0 is not said."""


def open_file(place: Place) -> Image:
    """Open the volume of a file."""
    path = place.path
    nibabel = files.library("nibabel", "NIfTI files")
    is_packed = path.name.lower().endswith(".gz")
    content = files.opened(path)
    try:
        header = _header(nibabel, rows.OPEN["gzip"](content) if is_packed else content)
        dtype = header.get_data_dtype()
        way = _way(header)
        _note_qform(path, header)
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, EOFError, OSError, zlib.error) as error:
        raise files.broken(path, "a NIfTI file", error) from error
    stored = Packed(path, content, "gzip") if is_packed else content
    array = _array(path, stored, header, dtype=dtype, way=way)
    return _placed(path, array, header, way)


def _header(nibabel: Any, content: IO[bytes]) -> Any:
    """Return the header of a file. Raises ValueError for what is no such file."""
    block = content.read(max(HEADER_BYTES))
    lengths = [int.from_bytes(block[:4], order) for order in ("little", "big")]
    kinds = [length for length in lengths if length in HEADER_BYTES]
    if not kinds or len(block) < kinds[0]:
        raise ValueError("it does not begin with the header of one")
    [length] = kinds
    # unchecked, since a check replaces what is missing: a voxel size of 0 by 1
    header = getattr(nibabel, HEADER_BYTES[length])(block[:length], check=False)
    if not header["magic"].item().startswith(b"n+"):
        raise ValueError("a header without voxels; write one file, .nii, and not .hdr and .img")
    return header


def _way(header: Any) -> Turned:
    """Return how the axes of a file lie in the world, by its header."""
    if header["sform_code"] > 0 or header["qform_code"] > 0:
        way = header.get_best_affine()
        if (np.linalg.norm(way[:3, :3], axis=0) > 0).all():
            return turned(way[:3, :3].T, way[:3, 3], "RAS")
    return AS_STORED


def _note_qform(path: Path, header: Any) -> None:
    """Note a qform that puts voxels elsewhere than the sform, which is taken, as nibabel takes it.

    Raises ValueError for a qform that is none.
    """
    if header["sform_code"] <= 0 or header["qform_code"] <= 0:
        return
    last = [*(header["dim"][1:4] - 1), 1]
    ends = np.array([[0, 0, 0, 1], last], float).T
    apart = np.abs((header.get_sform() - header.get_qform()) @ ends).max()
    if apart > SAME_ORIGIN * np.linalg.norm(header.get_sform()[:3, :3], axis=0).min():
        note_once(
            f"{path}: its qform puts it at another place, or turns it otherwise, than its sform, "
            "which is taken; programs that take the other one show it there: write both alike"
        )


def _array(path: Path, content: Any, header: Any, *, dtype: np.dtype, way: Turned) -> Voxels:
    count = int(header["dim"][0])
    shape = header["dim"][1 : 1 + count].tolist()
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    where: dict[str, Any] = {"start": int(header["vox_offset"]), "stored": shape[::-1]}
    where["axes"] = way.order_stored
    slope = float(header["scl_slope"])
    intercept = float(header["scl_inter"])
    # 0 says that values are what is stored
    if not np.isfinite([slope, intercept]).all() or slope == 0 or (slope, intercept) == (1, 0):
        return Rows(path, content, **where, dtype=dtype)
    return Scaled(path, content, slope, intercept, **where, dtype=dtype)


class Scaled(Rows):
    """Voxels whose values are a multiple of what is stored, and a constant."""

    def __init__(self, path: Path, content: Any, slope: float, intercept: float, **more: Any):
        super().__init__(path, content, **more)
        self.dtype = np.dtype(np.float32)
        self._slope = np.float32(slope)
        self._intercept = np.float32(intercept)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return values of a box."""
        return super().__getitem__(index).astype(np.float32) * self._slope + self._intercept


def _placed(path: Path, array: Voxels, header: Any, way: Turned) -> Image:
    """Return the image of an array, as large and where its header says."""
    # seven digits: headers of version 1 have float32
    in_file = np.array([float(f"{length:.7g}") for length in header["pixdim"][1:4]])
    size = in_file[way.order]
    per_unit = NM_PER_UNIT.get(int(header["xyzt_units"]) & 7)
    if not np.isfinite(size).all() or (size <= 0).any():
        return single(path, array)
    by_sform = np.linalg.norm(header.get_sform()[:3, :3], axis=0)[way.order]
    if header["sform_code"] > 0 and not is_same_size(by_sform, size):
        note_once(
            f"{path}: says voxels of {lengths(size)} by its pixdim and of {lengths(by_sform)} by "
            "its sform; neither is used"
        )
        return single(path, array)
    return in_world(path, array, way, size=size, scale=per_unit * size if per_unit else None)

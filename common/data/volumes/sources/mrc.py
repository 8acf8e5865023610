"""Read MRC files, of tomography: .mrc, .rec, .map, .ali, .st.

Lengths in the header are Angstrom. Its origin is not used, since programs differ in its sign; write
#translation=z,y,x where it matters. Source: https://www.ccpem.ac.uk/mrc_format/mrc2014.php.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.data.volumes.sources import files
from common.data.volumes.sources.image import Image, single
from common.data.volumes.sources.place import Place
from common.data.volumes.sources.rows import Rows

HEADER_BYTES = 1024

IMOD_STAMP = 1146047817
"""Of headers by IMOD, which say whether bytes are signed, where other programs mean that they are.

Source: https://bio3d.colorado.edu/imod/doc/mrc_format.txt.
"""

LARGEST_SIGNED = np.iinfo(np.int8).max
LARGEST_UNSIGNED = np.iinfo(np.uint8).max
"""Of bytes; a header says how bright the brightest voxel is."""

XYZ = {1: "x", 2: "y", 3: "z"}
"""How a header numbers axes."""


def open_file(place: Place) -> Image:
    """Open the volume of a file."""
    path = place.path
    interpreter = files.library("mrcfile.mrcinterpreter", "MRC files").MrcInterpreter
    utils = files.library("mrcfile.utils", "MRC files")
    content = files.opened(path)
    try:
        header = interpreter(iostream=content, permissive=False, header_only=True).header
        dtype = utils.dtype_from_mode(int(header.mode))
    except ValueError as error:
        raise files.broken(path, "an MRC file", error) from error
    order = ">" if header.dtype["nx"].byteorder == ">" else "<"
    if int(header.mode) == 0 and _is_unsigned(header, order):
        dtype = np.dtype(np.uint8)
    array = _array(path, content, header, dtype.newbyteorder(order))
    counts = np.array([header.mz, header.my, header.mx], float)
    lengths = np.array([header.cella.z, header.cella.y, header.cella.x], float)
    # a header that was never filled in says 0
    is_measured = bool((lengths > 0).all() and (counts > 0).all() and np.isfinite(lengths).all())
    # seven digits: a header has float32
    nm = [float(f"{length:.7g}") for length in 0.1 * lengths / np.maximum(counts, 1)]
    return single(path, array, scale=nm if is_measured else None)


def _is_unsigned(header: Any, order: str) -> bool:
    stamp, flags = np.frombuffer(header.extra2.tobytes()[40:48], f"{order}i4")
    if stamp == IMOD_STAMP:
        return not flags & 1
    # programs from before 2014 mean unsigned ones: no signed byte is as bright
    return bool(LARGEST_SIGNED < header.dmax <= LARGEST_UNSIGNED)


def _array(path: Path, content: BinaryIO, header: Any, dtype: np.dtype) -> Rows:
    """Return the voxels."""
    names = [XYZ.get(int(number)) for number in (header.maps, header.mapr, header.mapc)]
    # zeros in a header that was never filled in mean the usual order
    is_filled_in = set(names) == set("zyx")
    return Rows(
        path,
        content,
        start=HEADER_BYTES + int(header.nsymbt),
        stored=(int(header.nz), int(header.ny), int(header.nx)),
        dtype=dtype,
        axes=[names.index(axis) for axis in "zyx"] if is_filled_in else (0, 1, 2),
    )

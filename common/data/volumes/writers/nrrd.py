"""NRRD files, which 3D Slicer, ITK-SNAP and webKnossos read: .nrrd, compressed by gzip.

Their voxels are stored x first, their lengths are nm, and the place of the first voxel is the space
origin. Source: https://teem.sourceforge.net/nrrd/format.html, version 4.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from pathlib import Path

from common.data.volumes.sources.files import opened
from common.data.volumes.writers.nifti import packed
from common.data.volumes.writers.outgoing import Outgoing, Tell, Writer

RECORD = "# csc export "
"""Comment in the header, which the key follows."""

TYPES = (
    *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float32", "float64"),
)

NAMES = {"float32": "float", "float64": "double"}
"""Of types that NRRD calls otherwise."""


def write(path: Path, volume: Outgoing, tell: Tell) -> None:
    """Write a header, and the voxels slab by slab."""
    with path.open("wb") as file:
        file.write(_header(volume).encode())
        with packed(file) as stream:
            for slab in volume.slabs():
                stream.write(slab.tobytes())
                tell(slab.size)


def _header(volume: Outgoing) -> str:
    """The lines before the voxels, and the empty one that ends them."""
    z, y, x = volume.grid.scale.tolist()
    lines = [
        "NRRD0004",
        f"{RECORD}{volume.key}",
        f"type: {NAMES.get(volume.dtype.name, volume.dtype.name)}",
        "dimension: 3",
        "space dimension: 3",
        f"sizes: {' '.join(map(str, volume.shape[::-1]))}",
        f"space directions: ({x!r},0,0) (0,{y!r},0) (0,0,{z!r})",
        "kinds: domain domain domain",
        f"endian: {sys.byteorder}",
        "encoding: gzip",
        'space units: "nm" "nm" "nm"',
        f"space origin: ({','.join(map(repr, volume.grid.origin[::-1].tolist()))})",
    ]
    return "\n".join([*lines, "", ""])


def key_in(path: Path) -> str:
    """The key of what a file holds."""
    with contextlib.closing(opened(path)) as file:
        for line in itertools.islice(file, 2):
            text = line.decode("ascii", "replace")
            if text.startswith(RECORD):
                return text.removeprefix(RECORD).strip()
    return ""


WRITER = Writer("nrrd", (".nrrd",), write, key_in, image_types=TYPES, label_types=TYPES)

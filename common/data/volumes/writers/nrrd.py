"""Write NRRD files, which 3D Slicer, ITK-SNAP and webKnossos read: .nrrd, compressed by gzip.

Their voxels are stored x first, their lengths are nm, and the place of the first voxel is the space
origin. Source: https://teem.sourceforge.net/nrrd/format.html, version 4.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common.data.volumes.writers.nifti import packed
from common.data.volumes.writers.outgoing import (
    ORDINARY,
    PROGRAM,
    Outgoing,
    Tell,
    Writer,
    key_in_start,
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
    """Return the lines before the voxels, and the empty one that ends them."""
    z, y, x = volume.grid.scale.tolist()
    lines = [
        "NRRD0004",
        f"# {PROGRAM} {volume.key}",
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


WRITER = Writer("nrrd", (".nrrd",), write, key_in_start, ORDINARY, ORDINARY)

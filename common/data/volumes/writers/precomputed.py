"""Write Neuroglancer's precomputed volumes.

Source: https://github.com/google/neuroglancer, datasource/precomputed/volume.md. Lists are x, y, z.
The first voxel lies at a whole number of voxels; that of what lies between is rounded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes import metadata
from common.data.volumes.sources import remote
from common.data.volumes.sources.image import EXPORTED
from common.data.volumes.sources.precomputed import MARKER
from common.data.volumes.writers import levels, meshes
from common.data.volumes.writers.levels import Extent, Stored
from common.data.volumes.writers.outgoing import Outgoing, Tell, Writer, key_in_json
from common.files import write_json
from common.talk import note

CHUNK = 128
"""Voxels along each axis of a file."""

MESHES = "mesh"
"""Folder of the surfaces of objects."""

PROPERTIES = "segment_properties"
"""Folder of the names of ids."""

PACKED_IMAGES = ("uint8", "uint16")
"""Types that PNG holds; others are not compressed."""


def write(path: Path, volume: Outgoing, tell: Tell) -> None:
    """Write a folder of levels; what says that it is whole comes last."""
    grid = volume.grid
    first = _first_voxel(path, volume)
    levels.write(volume, first, lambda _, extent: _level(path, volume, extent), tell)
    if volume.meshes:
        # its voxels begin at their position, those of other formats have it in their centre
        shift = (first + 0.5) * grid.scale - grid.origin
        meshes.write_precomputed(path / MESHES, volume, shift)
    _describe(path, volume)


def _first_voxel(path: Path, volume: Outgoing) -> np.ndarray:
    """Return (3,) its number; says by how much it is rounded."""
    grid = volume.grid
    exact = grid.origin / grid.scale
    first = np.rint(exact).astype(int)
    off = (first - exact) * grid.scale
    if np.abs(off).max() > 0.01:
        z, y, x = off
        note(
            f"{path.name.removeprefix('.').removesuffix('.part')}: precomputed volumes begin at "
            f"whole voxels; this one is written {z:g}, {y:g}, {x:g} nm from its place"
        )
    return first


def _level(path: Path, volume: Outgoing, extent: Extent) -> Stored:
    """Return the level of these voxels, which is begun if it is not there."""
    import tensorstore

    key = "_".join(f"{length:g}" for length in extent.scale[::-1])
    chunk = [min(CHUNK, length) for length in extent.shape]
    encoding = "compressed_segmentation"
    if not volume.is_labels:
        encoding = "png" if volume.dtype.name in PACKED_IMAGES else "raw"
    scale: dict[str, Any] = {
        "key": key,
        "size": list(extent.shape[::-1]),
        "voxel_offset": extent.start[::-1].tolist(),
        "resolution": extent.scale[::-1].tolist(),
        "chunk_size": chunk[::-1],
        "encoding": encoding,
    }
    if volume.is_labels:
        scale["compressed_segmentation_block_size"] = [8, 8, 8]
    array = levels.create(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": remote.store(path),
            "multiscale_metadata": {
                "type": "segmentation" if volume.is_labels else "image",
                "data_type": volume.dtype.name,
                "num_channels": 1,
            },
            "scale_metadata": scale,
        }
    )
    counted_from_0 = array[..., 0].T[tensorstore.d[:].translate_to[0]]

    def file_of(start: np.ndarray, stop: np.ndarray) -> Path:
        spans = zip(start + extent.start, stop + extent.start, strict=True)
        return path / key / "_".join(f"{low}-{high}" for low, high in reversed(list(spans)))

    return Stored(extent, counted_from_0, tuple(chunk), file_of)


def _describe(path: Path, volume: Outgoing) -> None:
    """Add to the metadata what made the volume, and how a mask is called."""
    about = metadata.read_object(path / MARKER)
    about[EXPORTED] = volume.record
    if volume.meshes:
        about["mesh"] = MESHES
    if volume.sort == "mask":
        about["segment_properties"] = PROPERTIES
        names = {"id": "label", "type": "label", "values": [volume.name]}
        inline = {"ids": ["1"], "properties": [names]}
        properties = {"@type": "neuroglancer_segment_properties", "inline": inline}
        write_json(path / PROPERTIES / MARKER, properties)
    write_json(path / MARKER, about)


def key_in(path: Path) -> str:
    """Return the key of what a folder holds."""
    return key_in_json(path / MARKER, EXPORTED)


WRITER = Writer(
    "precomputed",
    (".precomputed",),
    write,
    key_in,
    image_types=("uint8", "uint16", "int8", "int16", "uint32", "int32", "uint64", "float32"),
    label_types=("uint32", "uint64"),
    is_folder=True,
)

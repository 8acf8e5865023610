"""Read Neuroglancer's precomputed volumes.

Source: https://github.com/google/neuroglancer, datasource/precomputed/volume.md. Lists are x, y, z.
A voxel is taken to lie at its number times its size, as where other formats have no position.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes import metadata
from common.data.volumes.level import Level
from common.data.volumes.sources import chunked
from common.data.volumes.sources.chunked import Chunked, FileOf
from common.data.volumes.sources.image import Image, numbers
from common.data.volumes.sources.place import Place
from common.errors import UserError

MARKER = "info"

PACKED = (".gz", ".br", ".zstd", ".xz")
"""Ends of the names of packed files."""


def open_volume(place: Place) -> Image:
    """Open all scales of a volume."""
    path = place.path
    about = metadata.read_object(path / MARKER)
    scales = about.get("scales")
    if not isinstance(scales, list) or not scales:
        raise UserError(
            f"{path}: an info without scales, which is no volume (meshes and skeletons have one, "
            "too); write the path of a precomputed volume"
        )
    if about.get("num_channels") != 1:
        raise UserError(
            f"{path}: {about.get('num_channels')} channels; volumes here have one: write each as "
            "a volume of its own"
        )
    sizes = [_size(path, scale) for scale in scales]
    # they may be listed in any order
    finest = min(sizes, key=np.prod)
    return Image([_level(path, about, number, finest) for number in range(len(scales))])


def _size(path: Path, scale: Any) -> np.ndarray:
    """(3,) nm, z, y, x: the voxels of a scale. Raises UserError for what is none."""
    size = numbers(scale.get("resolution")) if isinstance(scale, dict) else None
    if size is None or min(size) <= 0 or not isinstance(scale.get("key"), str):
        raise UserError(
            f"{path}: scale {scale} in its info; write key and resolution (nm, x, y, z)"
        )
    return np.array(size[::-1])


def _level(path: Path, about: dict[str, Any], number: int, finest: np.ndarray) -> Level:
    """A scale of a volume whose finest voxels are so large, (3,) nm."""
    scale = about["scales"][number]
    offset = numbers(scale.get("voxel_offset")) or [0.0, 0.0, 0.0]
    voxel = _size(path, scale)
    folder = path / scale["key"]
    _refuse_packed(folder)
    array = chunked.open_array(path, "neuroglancer_precomputed", scale_index=number)
    import tensorstore

    counted_from_0 = array[..., 0].T[tensorstore.d[:].translate_to[0]]
    # a coarse voxel lies over several fine ones: its centre is theirs
    centre = np.array(offset[::-1]) * voxel + (voxel - finest) / 2
    return Level(
        path=folder,
        array=Chunked(folder, counted_from_0, _file_of(scale, offset), about),
        scale=voxel,
        translation=centre,
        image=path,
        stamp=chunked.stamp(about),
    )


def _refuse_packed(folder: Path) -> None:
    """Raises UserError for chunks in packed files, none of which would be found: all would be 0."""
    if not folder.is_dir():
        return  # on a server, which unpacks what it sends
    with os.scandir(folder) as entries:
        name = next((entry.name for entry in entries if entry.name.endswith(PACKED)), "")
    if name:
        raise UserError(
            f"{folder}: chunks in packed files such as {name}, as CloudVolume writes them on a "
            "disk; unpack them, as gunzip does, or write them with compress=False"
        )


def _file_of(scale: dict[str, Any], offset: Sequence[float]) -> FileOf | None:
    """Return how chunks are named, by their first and last voxels; None if shards hold them."""
    sizes = scale.get("chunk_sizes")
    if scale.get("sharding") or not sizes:
        return None

    def name(index: Sequence[int]) -> str:
        spans = []
        for axis, number in enumerate(reversed(index)):
            first = int(offset[axis])
            start = number * sizes[0][axis]
            stop = min(start + sizes[0][axis], scale["size"][axis])
            spans.append(f"{first + start}-{first + stop}")
        return "_".join(spans)

    return name

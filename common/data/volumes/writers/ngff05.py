"""Write OME-NGFF 0.5: zarr v3, whose chunks are packed into shards.

Source: https://ngff.openmicroscopy.org/0.5, "multiscales" and "image-label".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes import ngff
from common.data.volumes.sources import remote
from common.data.volumes.sources.image import EXPORTED
from common.data.volumes.sources.zarr3 import MARKER
from common.data.volumes.writers import levels
from common.data.volumes.writers.levels import Extent, Stored
from common.data.volumes.writers.outgoing import NUMBERS, Outgoing, Tell, Writer, key_in_json
from common.files import write_json

VERSION = "0.5"

CHUNK = 64
SHARD = 256
"""Voxels along each axis of what is compressed at once, and of a file."""


def write(path: Path, volume: Outgoing, tell: Tell) -> None:
    """Write a group of levels; its metadata come last and make it an image."""
    grid = volume.grid

    def level_of(number: int, extent: Extent) -> Stored:
        return _level(path / f"s{number}", volume, extent)

    extents = levels.write(volume, np.zeros(3, int), level_of, tell)
    datasets = []
    for number, extent in enumerate(extents):
        origin = grid.origin + (extent.scale - grid.scale) / 2
        datasets.append(ngff.dataset_of(number, extent.scale, origin))
    write_json(path / MARKER, _group(volume, datasets))


def _level(folder: Path, volume: Outgoing, extent: Extent) -> Stored:
    """Return the level in a folder, which is begun if it is not there."""
    chunk = [min(CHUNK, length) for length in extent.shape]
    shard = []
    for length, edge in zip(extent.shape, chunk, strict=True):
        # whole chunks, no more than there are
        chunks = -(-min(SHARD, length) // edge)
        shard.append(chunks * edge)
    array = levels.create(
        {
            "driver": "zarr3",
            "kvstore": remote.store(folder),
            "metadata": {
                "shape": list(extent.shape),
                "data_type": volume.dtype.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
                "codecs": [_sharding(chunk)],
                "dimension_names": list("zyx"),
                "fill_value": 0,
            },
        }
    )

    def file_of(start: np.ndarray, stop: np.ndarray) -> Path:
        return folder.joinpath("c", *map(str, (start // shard).tolist()))

    return Stored(extent, array, tuple(shard), file_of)


def _sharding(chunk: list[int]) -> dict[str, Any]:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    packed = {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 3}}
    about = {
        "chunk_shape": chunk,
        "codecs": [little, packed],
        "index_codecs": [little, {"name": "crc32c"}],
    }
    return {"name": "sharding_indexed", "configuration": about}


def _group(volume: Outgoing, datasets: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the metadata of the group."""
    ome: dict[str, Any] = {
        "version": VERSION,
        "multiscales": [ngff.multiscale_of(volume.name, datasets)],
    }
    if volume.is_labels:
        # what says that values are ids
        ome["image-label"] = {"version": VERSION}
    if volume.sort == "mask":
        ome["image-label"]["properties"] = [{"label-value": 1, "class": volume.name}]
    attributes = {"ome": ome, EXPORTED: volume.record}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def key_in(path: Path) -> str:
    """Return the key of what a group holds."""
    return key_in_json(path / MARKER, "attributes", EXPORTED)


WRITER = Writer("ngff", (".zarr",), write, key_in, NUMBERS, NUMBERS, is_folder=True)

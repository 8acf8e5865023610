"""OME-NGFF 0.5: zarr v3, whose chunks are packed into shards.

Source: https://ngff.openmicroscopy.org/0.5, "multiscales" and "image-label".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes import metadata, ngff
from common.data.volumes.box import Vector
from common.data.volumes.sources import remote
from common.data.volumes.sources.zarr3 import MARKER
from common.data.volumes.writers import levels
from common.data.volumes.writers.levels import Extent, Stored
from common.data.volumes.writers.outgoing import Outgoing, Tell, Writer
from common.errors import UserError
from common.files import write_json

VERSION = "0.5"

CHUNK = 64
SHARD = 256
"""Voxels along each axis of what is compressed at once, and of a file."""

RECORD = "exported"

TYPES = (
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)


def write(path: Path, volume: Outgoing, tell: Tell) -> None:
    """Write a group of levels; its metadata come last and make it an image."""
    reduce = ngff.pick if volume.is_labels else ngff.block_mean
    grid = volume.grid
    level = _level(path, volume, 0, Extent(np.zeros(3, int), np.array(grid.shape), grid.scale))
    level.fill(volume.read, tell)
    datasets = [ngff.dataset_of(0, grid.scale, grid.origin)]
    for number, factor in enumerate(ngff.pyramid(grid), 1):
        coarse = _level(path, volume, number, level.extent.coarser(factor))
        coarse.fill(level.reduced(factor, reduce), lambda _: None)
        origin = grid.origin + (coarse.extent.scale - grid.scale) / 2
        datasets.append(ngff.dataset_of(number, coarse.extent.scale, origin))
        level = coarse
    write_json(path / MARKER, _group(volume, datasets))


def _level(path: Path, volume: Outgoing, number: int, extent: Extent) -> Stored:
    """Level `number`, which is begun if it is not there."""
    folder = path / f"s{number}"
    chunk = [min(CHUNK, length) for length in extent.shape]
    shard = _shard(extent.shape, chunk)
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


def _shard(shape: Vector, chunk: Vector) -> list[int]:
    """Voxels of a shard: whole chunks, no more than there are."""
    return [
        -(-min(SHARD, int(length)) // int(edge)) * int(edge)
        for length, edge in zip(shape, chunk, strict=True)
    ]


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
    """The metadata of the group."""
    ome: dict[str, Any] = {
        "version": VERSION,
        "multiscales": [ngff.multiscale_of(volume.name, datasets)],
    }
    if volume.is_labels:
        ome["image-label"] = _image_label(volume)
    record = {**volume.about, "key": volume.key}
    attributes = {"ome": ome, RECORD: record}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _image_label(volume: Outgoing) -> dict[str, Any]:
    """What says that values are ids; of a mask also of what."""
    about: dict[str, Any] = {"version": VERSION}
    if volume.sort == "mask":
        about["properties"] = [{"label-value": 1, "class": volume.name}]
    return about


def key_in(path: Path) -> str:
    """The key of what a group holds."""
    try:
        attributes = metadata.read_object(path / MARKER).get("attributes") or {}
        return str(attributes[RECORD]["key"])
    except (OSError, KeyError, TypeError, UserError):
        return ""


WRITER = Writer("ngff", (".zarr",), write, key_in, TYPES, TYPES, is_folder=True)

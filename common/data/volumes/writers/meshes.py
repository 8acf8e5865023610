"""Write surfaces of objects, a file each: PLY and OBJ, and Neuroglancer's precomputed meshes.

Each object is meshed by itself, in the box around it. Positions are nm: in PLY and OBJ those of the
volume, of which a voxel's centre has the position; for Neuroglancer, whose voxels begin at their
position, half a voxel more.

Source: https://github.com/google/neuroglancer, datasource/precomputed/meshes.md, "legacy".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes import ngff
from common.data.volumes.annotation import encoding_of
from common.data.volumes.box import Box, block_of_chunks, boxes
from common.data.volumes.objects import objects_of
from common.data.volumes.sources import files
from common.data.volumes.writers.outgoing import INTEGERS, Outgoing, Tell, Writer, key_in_json
from common.errors import UserError
from common.files import replacing, write_json
from common.talk import note

BLOCK = 128
"""Edge in voxels of what is searched for objects at once, in whole chunks."""

MOST_VOXELS = 256**3
"""Of the box around an object; in a larger one several voxels are taken for one."""

FEWER_FACES = 50
"""Of so many faces one is left where the surface stays where it is."""

ABOUT = "info.json"
"""File that says what a folder of surfaces was made of."""


def write(path: Path, volume: Outgoing, tell: Tell, ending: str) -> None:
    """Write a file ID.ply or ID.obj for each object; those that are there are left."""
    for number, box in sorted(_boxes(volume, tell).items()):
        file = path / f"{number}.{ending}"
        if not file.is_file():
            mesh = mesh_of(volume, number, box)
            content = mesh.to_ply() if ending == "ply" else mesh.to_obj()
            with replacing(file) as temporary:
                temporary.write_bytes(content)
    write_json(path / ABOUT, volume.record)


def write_precomputed(path: Path, volume: Outgoing, shift: np.ndarray) -> None:
    """Write a folder of meshes, which the info of a volume may name. shift: nm, z, y, x."""
    for number, box in sorted(_boxes(volume, lambda _: None).items()):
        fragment = f"{number}.fragment"
        if not (path / fragment).is_file():
            mesh = mesh_of(volume, number, box)
            mesh.vertices += shift[::-1].astype(np.float32)
            with replacing(path / fragment) as temporary:
                temporary.write_bytes(mesh.to_precomputed())
        # so it is called in Neuroglancer's format: id, and level of detail
        write_json(path / f"{number}:0", {"fragments": [fragment]})
    write_json(path / "info", {"@type": "neuroglancer_legacy_mesh"})


def _boxes(volume: Outgoing, tell: Tell) -> dict[int, Box]:
    """Return the box around each object, by its id."""
    around: dict[int, Box] = {}
    for start, stop in boxes(volume.shape, block_of_chunks(volume.level.array.chunks, BLOCK)):
        block = _ids(volume, start, stop)
        if block.any():
            objects = objects_of(block)
            limits = zip(objects.ids.tolist(), objects.first, objects.last, strict=True)
            for number, first, last in limits:
                part = Box(start + first, start + last + 1)
                before = around.get(number, part)
                lower = np.minimum(before.start, part.start)
                upper = np.maximum(before.stop, part.stop)
                around[number] = Box(lower, upper)
        tell(block.size)
    return around


def _ids(volume: Outgoing, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Return ids of a box, 0 where absent or unknown. Raises UserError for numbers below 0."""
    values = volume.read(start, stop)
    if values.dtype.kind == "i" and values.size and values.min() < 0:
        raise UserError(f"{volume.level.path}: ids below 0; write labels from 0 on")
    encoding = encoding_of(volume.level, volume.name)
    nothing = np.isin(values, [0, encoding.absent, encoding.unknown or 0])
    if volume.sort == "mask":
        return (~nothing).view(np.uint8)
    return np.where(nothing, 0, values).astype(np.uint64)


def mesh_of(volume: Outgoing, number: int, box: Box) -> Any:
    """Return the surface of an object as a zmesh.Mesh; vertices are x, y, z in nm."""
    zmesh = files.library("zmesh", "surfaces", "meshes")
    grid = volume.grid
    factor = 1
    while np.prod(-(-box.shape // factor)) > MOST_VOXELS:
        factor += 1
    if factor > 1:
        note(f"{volume.name} {number}: large, so that {factor}^3 of its voxels are taken for one")
    mask = _mask(volume, number, box, factor=factor)
    voxel = grid.scale * factor
    mesher = zmesh.Mesher(tuple(voxel[::-1]))
    # a layer of background around it closes it
    mesher.mesh(np.ascontiguousarray(np.pad(mask, 1).T))
    mesh = mesher.get(
        1, reduction_factor=FEWER_FACES, max_error=float(voxel.max()), voxel_centered=True
    )
    # of the first voxel of the box, the corner
    corner = grid.origin + box.start * grid.scale - grid.scale / 2
    mesh.vertices += (corner - voxel)[::-1].astype(np.float32)
    return mesh


def _mask(volume: Outgoing, number: int, box: Box, *, factor: int) -> np.ndarray:
    """Uint8, where an object is; read some planes at a time."""
    parts = []
    depth = factor * max(1, BLOCK // factor)
    for first in range(int(box.start[0]), int(box.stop[0]), depth):
        start = np.array([first, *box.start[1:]])
        stop = np.array([min(first + depth, box.stop[0]), *box.stop[1:]])
        part = _ids(volume, start, stop) == number
        beyond = [(0, -length % factor) for length in part.shape]
        parts.append(ngff.pick(np.pad(part, beyond), (factor,) * 3))
    return np.concatenate(parts).astype(np.uint8)


def key_in(path: Path) -> str:
    """Return the key of what a folder holds."""
    return key_in_json(path / ABOUT)


def writers() -> Iterator[Writer]:
    """Of PLY and of OBJ."""
    for ending in ("ply", "obj"):
        write_files = partial(write, ending=ending)
        yield Writer(ending, (), write_files, key_in, (), INTEGERS, is_folder=True)

"""Read zarr v2: OME-NGFF 0.4 groups and plain arrays, decoded by zarr after a check of codecs.

On a server too: tensorstore fetches the chunks, and zarr decodes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zarr

from common.data.volumes import metadata, zarray
from common.data.volumes.level import Level
from common.data.volumes.metadata import LevelMetadata
from common.data.volumes.sources import chunked
from common.data.volumes.sources.image import Image, by_attributes, check_order
from common.data.volumes.sources.place import Place
from common.data.volumes.sources.remote import Address
from common.errors import UserError
from common.talk import note_once

GROUP = ".zgroup"
ARRAY = ".zarray"


def open_group(place: Place) -> Image:
    """Open the levels of a multiscale group."""
    path = place.path
    image = metadata.read_image(path, is_sized=bool(place.voxel_size))
    store = None if place.is_remote else zarr.DirectoryStore(str(path))
    return Image([_level(path, store, image.axes, about) for about in image.levels])


def open_plain(place: Place) -> Image:
    """Open an array by itself."""
    path = place.path
    described = zarray.read_array(path)
    names = ("z", "y", "x")
    if len(described.shape) != len(names):
        raise UserError(
            f"{path}: {len(described.shape)} axes; put it into an OME-NGFF 0.4 group, which names "
            "them, or write an array of three, z, y, x"
        )
    attributes = metadata.read_attributes(path)
    check_order(path, attributes)
    said = by_attributes(path, attributes)
    in_image = "multiscales" in metadata.read_attributes(path.parent)
    if said.scale is None and in_image and not place.voxel_size:
        raise UserError(f"{path}: an array; write the group that it is in, {path.parent}")
    if in_image and said.translation is None and not place.translation:
        note_once(
            f"{path}: an array of the image {path.parent}, whose place is not read: the centre of "
            "its first voxel is taken to lie at 0; write the image, or the place behind #, such as "
            "#voxel_size=8&translation=0,0,0"
        )
    level = LevelMetadata(
        name="",
        scale=np.ones(3) if said.scale is None else np.array(said.scale),
        translation=said.place,
        has_translation=said.translation is not None,
    )
    return Image([_level(path, None, names, level)], is_measured=said.scale is not None)


def _level(
    path: Path, store: zarr.DirectoryStore | None, axes: Sequence[str], about: LevelMetadata
) -> Level:
    """Open one level of an image; without the store of the image by itself."""
    folder = path / about.name
    # as text, before zarr decodes a fill value; what is no file is said below
    with contextlib.suppress(OSError):
        zarray.check_codecs((folder / ARRAY).read_bytes(), folder)
    described = zarray.read_array(folder)
    dropped = metadata.dropped_axes(folder, axes, described.shape, described.chunks)
    try:
        # its files are known by their names, so that they tell whether it changed
        if store is None or dropped or described.content.get("fill_value") is None:
            array = zarray.open_array(folder, described, dropped)
        else:
            array = zarr.Array(store, path=about.name, read_only=True)
    # whatever is wrong with a file of others, zarr fails on it in one of these ways
    except (ValueError, TypeError, KeyError, OSError, zarr.errors.MetadataError) as error:
        raise UserError(f"{folder}: .zarray cannot be read ({error}); copy it again") from error
    return Level(
        path=folder,
        array=array,
        scale=about.scale,
        translation=about.translation,
        has_translation=about.has_translation,
        dropped=dropped,
        image=path,
        stamp=chunked.stamp(described.content) if isinstance(path, Address) else "",
    )

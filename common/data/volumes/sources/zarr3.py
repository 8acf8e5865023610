"""Read zarr v3: OME-NGFF 0.5 groups and plain arrays, with shards too.

Source: https://ngff.openmicroscopy.org/0.5 and https://zarr-specs.readthedocs.io, version 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.data.volumes import metadata
from common.data.volumes.level import Level
from common.data.volumes.sources import chunked
from common.data.volumes.sources.chunked import Chunked, FileOf
from common.data.volumes.sources.image import Image, single_by_attributes
from common.data.volumes.sources.place import Place
from common.data.volumes.zarray import chunk_name
from common.errors import UserError

MARKER = "zarr.json"


def open_volume(place: Place) -> Image:
    """Open a multiscale group, or an array by itself."""
    path = place.path
    about = metadata.read_object(path / MARKER)
    attributes = about.get("attributes") or {}
    if about.get("node_type") == "array":
        return _by_itself(path, about, attributes)
    try:
        image = metadata.image_of(
            path, attributes.get("ome") or attributes, is_sized=bool(place.voxel_size)
        )
    except UserError as error:
        # the same metadata, which stand in another file
        raise UserError(str(error).replace(".zattrs", MARKER).replace("0.4", "0.5")) from error
    levels = []
    for level in image.levels:
        folder = path / level.name
        described = metadata.read_object(folder / MARKER)
        _check_names(folder, described.get("dimension_names"), image.axes)
        levels.append(
            Level(
                path=folder,
                array=_array(folder, described, image.axes, attributes),
                scale=level.scale,
                translation=level.translation,
                has_translation=level.has_translation,
                image=path,
                stamp=chunked.stamp(about, described),
            )
        )
    return Image(levels)


def _check_names(folder: Path, names: Any, axes: Sequence[str]) -> None:
    """Raises UserError for an array that has the axes of its image in another order."""
    if isinstance(names, list) and names != [*axes] and sorted(map(str, names)) == sorted(axes):
        raise UserError(
            f"{folder}: axes {', '.join(names)} by its dimension_names, and {', '.join(axes)} by "
            f"the {MARKER} of its image; write the volume with the axes z, y, x, in this order, "
            "and the same names in both"
        )


def _by_itself(path: Path, about: dict[str, Any], attributes: dict[str, Any]) -> Image:
    """Return an array without a group; its place is what its attributes say."""
    named = {**attributes, "dimension_names": about.get("dimension_names")}
    return single_by_attributes(path, _array(path, about, ()), named, chunked.stamp(about))


def _array(
    folder: Path, about: dict[str, Any], axes: Sequence[str], group: dict[str, Any] | None = None
) -> Chunked:
    """Return an array without the axes other than z, y, x; all are, where none is named."""
    array = chunked.open_array(folder, "zarr3")
    dropped: tuple[int, ...] = ()
    if axes:
        ones = (1,) * array.rank  # whether its chunks are is tensorstore's affair
        dropped = metadata.dropped_axes(folder, axes, array.shape, ones)
    kept = array[tuple(0 if axis in dropped else slice(None) for axis in range(array.rank))]
    attributes = {**(group or {}), **(about.get("attributes") or {})}
    return Chunked(folder, kept, _file_of(about, dropped, array.rank), attributes)


def _file_of(about: dict[str, Any], dropped: Sequence[int], rank: int) -> FileOf:
    """Return how chunks, or shards, are named."""
    encoding = about.get("chunk_key_encoding") or {}
    given = (encoding.get("configuration") or {}).get("separator")
    is_default = encoding.get("name") != "v2"
    separator = given or ("/" if is_default else ".")

    def name(index: Sequence[int]) -> str:
        numbers = chunk_name(index, dropped, separator)
        return f"c{separator}{numbers}" if is_default else numbers

    return name

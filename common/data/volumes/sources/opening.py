"""Open a volume of any kind: the tables say which module opens what.

A new kind is a module with one function, which makes an `Image` of a `Place`, and a line here; of
files the ends of their names are in `place`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.data.volumes import foreign
from common.data.volumes.level import Level
from common.data.volumes.placement import is_same_size
from common.data.volumes.sources import (
    excerpt,
    hdf5,
    mrc,
    n5,
    nifti,
    nrrd,
    precomputed,
    slices,
    tiff,
    zarr2,
    zarr3,
)
from common.data.volumes.sources.image import Image, is_of_em
from common.data.volumes.sources.place import HDF5, MRC, NIFTI, NRRD, TIFF, Place, in_hdf5, place_of
from common.errors import UserError
from common.talk import nm, note_once

Open = Callable[[Place], Image]

LONGEST = 1.9
"""Times the other sides of a voxel from which its side along x may be that along z."""

LONGEST_OF_EM = 50
"""Times as long as wide are no voxels of EM: sections of 70 nm are imaged at 2 nm and more."""


def _open_link(place: Place) -> Image:
    """Open the volume that a folder stands for."""
    link = excerpt.read_link(place.path)
    try:
        levels = open_image(link.name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{place.path}: a link to what is not there now ({error}); put it back, or run "
            "import-data again"
        ) from error
    if link.kind == excerpt.RAW:
        return Image(levels)
    return Image([link.of(_finest(levels), place.path)])


FILES: dict[tuple[str, ...], Open] = {
    # and what stands behind one, as in a.h5:/volume
    HDF5: hdf5.open_file,
    TIFF: tiff.open_file,
    MRC: mrc.open_file,
    NIFTI: nifti.open_file,
    NRRD: nrrd.open_file,
}
"""By the ends of their names."""

FOLDERS: dict[str, Open] = {
    zarr2.GROUP: zarr2.open_group,
    zarr2.ARRAY: zarr2.open_plain,
    zarr3.MARKER: zarr3.open_volume,
    n5.MARKER: n5.open_volume,
    f"s0/{n5.MARKER}": n5.open_volume,  # a group of N5 without attributes
    precomputed.MARKER: precomputed.open_volume,
    excerpt.LINK: _open_link,
}
"""By a file in them."""


def open_image(path: str | Path) -> list[Level]:
    """Open all levels of a volume, in the order of its metadata; lengths are nm.

    path: a path or an address, with what is said of it behind #, see
    `common.data.volumes.sources.place`.

    Raises:
        FileNotFoundError: if nothing is there.
        UserError: if it cannot be read, or if nobody says how large its voxels are.
    """
    place = place_of(path)
    image = _opener(place)(place)
    if not image.levels:
        return []
    levels = _in_place(image, place)
    _note_size(place.path, _finest(levels).scale)
    return levels


def _finest(levels: Sequence[Level]) -> Level:
    return min(levels, key=lambda level: float(np.prod(level.scale)))


def _note_size(path: Path, size: np.ndarray) -> None:
    """Note voxels (nm, z, y, x) that may not be meant, whoever says it."""
    if size[2] > LONGEST * size[:2].max():
        # sections are cut, or imaged, along z
        note_once(
            f"{path}: voxels of {nm(size)} nm, longest along x; sizes are written z, y, x: where "
            f"its sections lie along z they are {nm(size[::-1])}"
        )
    elif size.max() > LONGEST_OF_EM * size.min():
        note_once(
            f"{path}: voxels of {nm(size)} nm, {size.max() / size.min():.3g} times as long as "
            "wide; where one of these is what a program writes that does not know it, write the "
            "size behind its name: #voxel_size=40,4,4"
        )


def _opener(place: Place) -> Open:
    """Return the function that opens a volume. Raises UserError or FileNotFoundError for none."""
    path = place.path
    if in_hdf5(path) is not None:
        return hdf5.open_file
    if place.is_remote or path.is_file():
        for endings, open_file in FILES.items():
            if path.name.lower().endswith(endings):
                return open_file
    if place.is_remote or path.is_dir():
        for marker, open_folder in FOLDERS.items():
            if (path / marker).is_file():
                return open_folder
    if slices.files_in(path):
        return slices.open_folder
    raise foreign.refusal(path)


def _in_place(image: Image, place: Place) -> list[Level]:
    """Return the levels where, and as large as, their place says."""
    finest = _finest(image.levels)
    if not image.is_measured and not place.voxel_size:
        raise UserError(
            f"{place.path}: nothing in it says how large a voxel is; write the size in nm, z, y, "
            f"x, behind its name, such as {place.path.name}#voxel_size=8 or "
            "#voxel_size=40,4,4; or once for all as --voxel-size, with import-data and --volume"
        )
    if not (place.voxel_size or place.translation):
        return list(image.levels)
    wanted = np.array(place.voxel_size or finest.scale, float)
    if place.voxel_size and not is_of_em(wanted):
        note_once(f"{place.path}: voxels of {nm(wanted)} nm, which no EM has; sizes are in nm")
    ratio = wanted / finest.scale
    if image.is_measured and not is_same_size(wanted, finest.scale):
        note_once(
            f"{place.path}: voxels of {nm(wanted)} nm, as you say, and {nm(finest.scale)} nm by "
            "its own metadata"
        )
    first = np.array(place.translation or finest.translation * ratio, float)
    levels = []
    for level in image.levels:
        levels.append(
            replace(
                level,
                scale=level.scale * ratio,
                translation=first + (level.translation - finest.translation) * ratio,
                has_translation=level.has_translation or bool(place.translation),
                # who says the place says it of the voxels as they are stored
                directions=None if place.translation else level.directions,
            )
        )
    return levels

"""Read folders of pictures, one a slice: TIFF, PNG or JPEG, in the order of their numbers."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from common.data.volumes.box import Vector, ranges
from common.data.volumes.level import Attributes, Voxels
from common.data.volumes.sources import files
from common.data.volumes.sources.image import Image, check, single
from common.data.volumes.sources.place import Place
from common.data.volumes.sources.tiff import note_shown_otherwise
from common.errors import UserError
from common.talk import note_once, some

ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


def files_in(folder: Path) -> list[Path]:
    """Return the slices in a folder, in their order. Raises UserError if they are of two kinds."""
    if not folder.is_dir():
        return []
    pictures = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in ENDINGS and not file.name.startswith(".")
    ]
    kinds = Counter(file.suffix.lower() for file in pictures)
    if not kinds:
        return []
    if len(kinds) > 1:
        endings = " and in ".join(sorted(kinds))
        raise UserError(f"{folder}: slices that end in {endings}; keep one kind in the folder")
    return sorted(pictures, key=_numbers)


def _numbers(file: Path) -> list[tuple[int, str]]:
    """Return the name, with its numbers as numbers: slice 10 follows slice 9."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def open_folder(place: Place) -> Image:
    """Open a folder of slices, which does not say how large a voxel is."""
    path = place.path
    slices = files_in(path)
    _note_gaps(path, slices)
    return single(path, Slices(path, slices))


def _note_gaps(folder: Path, slices: Sequence[Path]) -> None:
    """Say which numbers of a series are missing: sections that follow lie one further up."""
    steps = _steps(slices)
    usual = Counter(steps).most_common(1)[0][0] if steps else 0
    odd = []
    for (before, after), step in zip(itertools.pairwise(slices), steps, strict=True):
        if step != usual:
            odd.append(f"{before.name} to {after.name}")
    if odd and usual:
        note_once(
            f"{folder}: the numbers of the slices rise by {usual}, and not from {some(odd, 3)}; "
            "slices are taken one after the other, so put in a copy of a neighbour for each that "
            "is missing, or take out what is no slice"
        )
    elif usual > 1:
        note_once(
            f"{folder}: the numbers of the slices rise by {usual}, and they are taken for "
            "neighbours; where only some sections were annotated, put in empty ones for the "
            "others, and import those that were by --crop, such as 10:11,:,:"
        )


def _steps(slices: Sequence[Path]) -> list[int]:
    """Return by how much the number in the name rises from each slice to the next.

    It is 0 where the names differ in other parts, or in several numbers.
    """
    steps = []
    for before, after in itertools.pairwise(map(_numbers, slices)):
        differ = [pair for pair in zip(before, after, strict=False) if pair[0] != pair[1]]
        step = 0
        if len(before) == len(after) and len(differ) == 1:
            [((number, _), (next_number, _))] = differ
            step = next_number - number
        steps.append(step)
    return steps


class Slices(Voxels):
    """Pictures, which are decoded whole."""

    def __init__(self, path: Path, slices: list[Path]):
        self.path = path
        self.attrs = Attributes()
        self._slices = slices
        self._kept = files.Kept()
        first = _picture(slices[0])
        self.dtype = first.dtype
        self.shape = (len(slices), *first.shape)
        check(path, self.shape, self.dtype)
        self.chunks = (1, *first.shape)

    def files(self, start: Vector, stop: Vector) -> list[Path]:
        """Return the slices of a box."""
        return self._slices[int(start[0]) : int(stop[0])]

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return voxels of a box."""
        voxels = ranges(index, self.shape)
        block = np.empty(tuple(map(len, voxels)), self.dtype)
        for layer, number in zip(block, voxels[0], strict=True):
            layer[...] = self._kept.get(number, partial(self._slice, number))[index[1:]]
        return block

    def _slice(self, number: int) -> np.ndarray:
        file = self._slices[number]
        picture = _picture(file)
        if picture.shape != self.shape[1:] or picture.dtype != self.dtype:
            raise UserError(
                f"{file}: {list(picture.shape)} pixels of {picture.dtype}, and "
                f"{list(self.shape[1:])} of {self.dtype} in {self._slices[0].name}; all slices of "
                "a folder need one shape and type"
            )
        return picture


def _picture(file: Path) -> np.ndarray:
    """Return the pixels of a slice, (y, x)."""
    try:
        picture = _tiff(file) if file.suffix.lower().startswith(".tif") else _other(file)
    # every library has errors of its own
    except (ValueError, OSError, EOFError, KeyError, IndexError, SyntaxError) as error:
        raise files.broken(file, "a picture", error) from error
    if picture.ndim != 2:
        raise UserError(
            f"{file}: shape {list(picture.shape)}; write slices in grey, of one page each"
        )
    return picture


def _tiff(file: Path) -> np.ndarray:
    with files.library("tifffile", "TIFF files").TiffFile(file) as tiff:
        note_shown_otherwise(file.parent, tiff.pages[0])
        return np.asarray(tiff.asarray())


def _other(file: Path) -> np.ndarray:
    from PIL import Image as Pillow

    # slices of EM may be larger than what Pillow takes for an attack
    Pillow.MAX_IMAGE_PIXELS = None
    with Pillow.open(file) as picture:
        pixels = np.asarray(picture)
        if picture.mode != "P":
            return pixels
        colours = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    return _of_palette(file, pixels, colours)


def _of_palette(file: Path, pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return the pixels of a picture with a palette: greys if all are grey, else its numbers.

    Programs that make PNG small give grey pictures a palette, in any order.
    """
    used = colours[np.unique(pixels)]
    if (used == used[:, :1]).all():
        return colours[pixels, 0]
    note_once(
        f"{file.parent}: pictures with a palette of colours, of which the numbers are taken, as of "
        "labels; write raw in grey"
    )
    return pixels

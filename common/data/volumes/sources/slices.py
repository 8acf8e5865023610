"""A folder of pictures, one a slice: TIFF, PNG or JPEG, in the order of their numbers."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np

from common.data.volumes.box import Vector
from common.data.volumes.level import Attributes, Voxels
from common.data.volumes.sources import files, needed
from common.data.volumes.sources.image import Image, check, single
from common.data.volumes.sources.place import Place
from common.errors import UserError

ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


def files_in(folder: Path) -> list[Path]:
    """The slices in a folder, in their order. Raises UserError where they are of several kinds."""
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
    """The name, with its numbers as numbers: slice 10 follows slice 9."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def open_folder(place: Place) -> Image:
    """Open a folder of slices, which does not say how large a voxel is."""
    path = place.path
    slices = files_in(path)
    return single(path, Slices(path, slices))


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
        """The slices of a box."""
        return self._slices[int(start[0]) : int(stop[0])]

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Voxels of a box."""
        z, y, x = index
        layers = []
        for number in range(*z.indices(self.shape[0])):
            layers.append(self._kept.get(number, lambda: self._slice(number))[y, x])  # noqa: B023
        shape = (
            0,
            *(
                len(range(*along.indices(n)))
                for along, n in zip((y, x), self.shape[1:], strict=True)
            ),
        )
        return np.stack(layers) if layers else np.empty(shape, self.dtype)

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
    """The pixels of a slice, (y, x)."""
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
    return np.asarray(needed.module("tifffile", "TIFF files").imread(file))


def _other(file: Path) -> np.ndarray:
    from PIL import Image as Pillow

    # slices of EM may be larger than what Pillow takes for an attack
    Pillow.MAX_IMAGE_PIXELS = None
    with Pillow.open(file) as picture:
        return np.asarray(picture)

"""Read TIFF files: one page or many, BigTIFF, with the metadata of ImageJ and OME.

The resolution tags alone are not believed: programs write 72 dots per inch into them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import struct
import weakref
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes.box import ranges
from common.data.volumes.level import Attributes, Voxels
from common.data.volumes.metadata import NM_PER_UNIT
from common.data.volumes.sources import files
from common.data.volumes.sources.image import SPELLINGS, Image, check, single
from common.data.volumes.sources.place import Place
from common.errors import UserError
from common.talk import note_once

FAULTS = (ValueError, OSError, EOFError, KeyError, IndexError, TypeError, RuntimeError)

ALONG_Z = "ZIQ"
"""Axes that are taken for z: I and Q are what tifffile calls pages of which nobody says more."""

WHITE_IS_ZERO = 0
PALETTE = 3
"""Values of PhotometricInterpretation. Source: TIFF 6.0, page 37."""


def open_file(place: Place) -> Image:
    """Open the first series of pages of a file."""
    path = place.path
    tifffile = files.library("tifffile", "TIFF files")
    file = files.opened(path)
    try:
        with _complaints() as said:
            tiff = tifffile.TiffFile(file, name=path.name)
            array = Pages(path, tiff)
            scale = voxel_size(tiff)
            note_shown_otherwise(path, tiff.pages[0])
        if said:
            raise ValueError(said[0])
    except FileNotFoundError:
        raise
    except (*FAULTS, struct.error) as error:
        raise files.broken(path, "a TIFF file", error) from error
    # now: pages, which know their file, are only cleared away at some later time
    weakref.finalize(array, file.close)
    return single(path, array, scale=scale)


def note_shown_otherwise(path: Path, page: Any) -> None:
    """Say where programs show the pixels of a page otherwise than they are stored, as taken here.

    path: of the file, or of the folder of files of a kind.
    """
    if page.photometric == WHITE_IS_ZERO:
        what = "0 is white in it (photometric WhiteIsZero), so raw is inverted"
    elif page.photometric == PALETTE and not _is_grey(page.colormap):
        what = "it has a palette of colours, of which the numbers are taken, as of labels"
    else:
        return
    note_once(f"{path}: values are taken as they are stored: {what}; write raw in grey, 0 as black")


def _is_grey(palette: np.ndarray) -> bool:
    """Return whether a palette (3, numbers) is of greys, the brighter ones behind."""
    red = palette[0].astype(int)
    return bool((palette == palette[0]).all() and (np.diff(red) >= 0).all())


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """What tifffile logs about pages that are not there: it goes on with those that are."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if "corrupted" in message or "invalid page offset" in message:
                said.append(message)

    logger = logging.getLogger("tifffile")
    handler = Handler()
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def _stack(path: Path, tiff: Any) -> tuple[tuple[int, ...], np.dtype, Any]:
    """Shape (z, y, x), type and pages of the volume in a file."""
    series = list(tiff.series)
    first = series[0]
    if len(series) > 1:
        shapes = {(image.shape, image.dtype) for image in series}
        if len(shapes) == 1 and first.ndim == 2:
            # pages that were written one by one, each with metadata of its own
            return (len(tiff.pages), *first.shape), first.dtype, tiff.pages
        note_once(f"{path}: {len(series)} images, of which the first one is read")
    return _shape(path, first), first.dtype, first.pages


class Pages(Voxels):
    """The pages of a TIFF file, of which the strips or tiles of a box are decoded."""

    def __init__(self, path: Path, tiff: Any):
        self.path = path
        self.shape, dtype, self._pages = _stack(path, tiff)
        self.dtype = np.dtype(dtype)
        check(path, self.shape, self.dtype)
        self.attrs = Attributes()
        self._tiff = tiff
        tiff.filehandle.set_lock(True)
        self._kept = files.Kept()
        self._like_first: set[int] = set()
        first = self._pages[0]
        self.chunks = (
            1,
            *(min(pair) for pair in zip(first.chunks[-2:], self.shape[1:], strict=True)),
        )
        # one run of bytes, such as ImageJ writes: more than 4 GB have one page only
        self._start: Any = getattr(self._pages, "dataoffset", None)
        self.in_rows = bool(self._start)
        self._check_length()

    def _check_length(self) -> None:
        """Raise UserError for a file that ends before its voxels do."""
        if self._start:
            end = self._start + math.prod(self.shape) * self.dtype.itemsize
        else:
            last = self._page(self.shape[0] - 1)
            end = int(np.add(last.dataoffsets, last.databytecounts).max(initial=0))
        files.refuse_cut_off(self.path, self._tiff.filehandle.size, end)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return voxels of a box."""
        voxels = ranges(index, self.shape)
        block = np.empty(tuple(map(len, voxels)), self.dtype)
        z, y, x = voxels
        if not block.size:
            return block
        for number in z:
            layer = block[number - z.start]
            if self._start:
                self._read_rows(layer, number, y, x)
            else:
                self._read_segments(layer, number, y, x)
        return block

    def _read_rows(self, layer: np.ndarray, number: int, y: range, x: range) -> None:
        """Fill a layer from a file whose voxels stand one after the other."""
        width = self.shape[2]
        stored = self.dtype.newbyteorder(self._tiff.byteorder)
        first = (number * self.shape[1] + y.start) * width * stored.itemsize
        handle = self._tiff.filehandle
        with handle.lock:
            handle.seek(self._start + first)
            content = handle.read(len(y) * width * stored.itemsize)
        layer[...] = np.frombuffer(content, stored).reshape(len(y), width)[:, x.start : x.stop]

    def _read_segments(self, layer: np.ndarray, number: int, y: range, x: range) -> None:
        """Fill a layer from the strips or tiles of its page."""
        page = self._page(number)
        height, width = page.keyframe.chunks[:2]
        across = -(-self.shape[2] // width)
        for row in range(y.start // height, -(-y.stop // height)):
            for column in range(x.start // width, -(-x.stop // width)):
                segment = row * across + column
                decode = partial(self._decoded, page, segment)
                part = self._kept.get((number, segment), decode)
                corner = (row * height, column * width)
                _paste(layer, part, corner, (y, x))

    def _page(self, number: int) -> Any:
        page = self._pages[number]
        if page is None:
            raise UserError(f"{self.path}: page {number + 1} is missing; write the file again")
        if page.parent is not self._tiff:
            raise UserError(
                f"{self.path}: page {number + 1} is in another file of its OME series; write the "
                "series as one file"
            )
        if number not in self._like_first:
            self._check_like_first(page, number)
            self._like_first.add(number)
        return page

    def _check_like_first(self, page: Any, number: int) -> None:
        """UserError for a page that is stored otherwise than tifffile takes it for.

        Of pages in a row without a word about them it reads the first one's tags alone.
        """
        # without tags of its own a page is a part of a run of bytes
        if not page.is_frame or not page.offset:
            return
        with self._tiff.filehandle.lock:
            own = page.aspage()
        if _storage(own) != _storage(page.keyframe):
            raise UserError(
                f"{self.path}: page {number + 1} has another type, shape or compression than the "
                "first; write all pages alike"
            )

    def _decoded(self, page: Any, segment: int) -> np.ndarray:
        """Return the pixels of a strip or tile."""
        handle = self._tiff.filehandle
        with handle.lock:
            handle.seek(page.dataoffsets[segment])
            content = handle.read(page.databytecounts[segment])
        tables = {} if page.jpegtables is None else {"jpegtables": page.jpegtables}
        data, _, shape = page.keyframe.decode(content or None, segment, **tables)
        if data is None:  # a tile that is not stored
            return np.zeros(shape[1:3], self.dtype)
        return data[0, : shape[1], : shape[2], 0]


def _storage(page: Any) -> tuple:
    """What the bytes of a page are decoded by."""
    return (
        *page.shaped,
        min(page.rowsperstrip, page.imagelength),
        page.tilewidth,
        page.tilelength,
        page.sampleformat,
        page.bitspersample,
        page.fillorder,
        page.predictor,
        page.compression,
        page.photometric,
    )


def _paste(
    layer: np.ndarray, part: np.ndarray, corner: tuple[int, int], box: tuple[range, range]
) -> None:
    """Copy what a part has of a box (rows, columns) into a layer of the box."""
    target = []
    source = []
    for begin, length, along in zip(corner, part.shape, box, strict=True):
        first = max(begin, along.start)
        last = min(begin + length, along.stop)
        target.append(slice(first - along.start, last - along.start))
        source.append(slice(first - begin, last - begin))
    layer[tuple(target)] = part[tuple(source)]


def _shape(path: Path, series: Any) -> tuple[int, ...]:
    """Return the shape of a series as z, y, x. Raises UserError for other axes."""
    lengths = dict(zip(series.axes, series.shape, strict=True))
    if len(lengths) < len(series.axes):
        raise UserError(f"{path}: axes {series.axes}; write a stack of pages, z, y, x")
    height = lengths.pop("Y", 0)
    width = lengths.pop("X", 0)
    stacked = [axis for axis in lengths if axis in ALONG_Z]
    depth = lengths.pop(stacked[0]) if len(stacked) == 1 else 1
    order = [axis for axis in series.axes if axis in (*stacked, "Y", "X")]
    if order[-2:] != ["Y", "X"]:
        raise UserError(
            f"{path}: axes {series.axes} by its metadata, of shape {list(series.shape)}; write a "
            "stack of pages, z, y, x, or correct the metadata if it is one"
        )
    for axis, length in lengths.items():
        if length != 1:
            name = {"C": "channels", "S": "samples a pixel (colours)", "T": "times"}.get(axis, axis)
            raise UserError(
                f"{path}: {length} {name}, of shape {list(series.shape)} ({series.axes}); volumes "
                "here have three axes, z, y, x: write each of them as a file of its own, in grey"
            )
    return depth, height, width


# How large a voxel is


def voxel_size(tiff: Any) -> list[float] | None:
    """Return the voxel size in nm, z, y, x; None if neither OME's nor ImageJ's metadata say it."""
    if tiff.is_ome and tiff.ome_metadata:
        return _of_ome(tiff.ome_metadata)
    if tiff.is_imagej and tiff.imagej_metadata:
        return _of_imagej(tiff.imagej_metadata, tiff.pages[0].tags)
    return None


def _of_ome(text: str) -> list[float] | None:
    """PhysicalSizeZ, Y, X of the first image. Source: https://docs.openmicroscopy.org/ome-model."""
    pixels = ET.fromstring(text).find(".//{*}Pixels")
    if pixels is None:
        return None
    size = []
    for axis in "ZYX":
        length = pixels.get(f"PhysicalSize{axis}")
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")  # the default of the model
        factor = NM_PER_UNIT.get(SPELLINGS.get(unit, unit))
        if length is None or factor is None:
            return None
        size.append(float(length) * factor)
    return size


def _of_imagej(about: dict[str, Any], tags: Any) -> list[float] | None:
    """Return the spacing of slices, and pixels a unit. Axes may have units of their own."""
    unit = about.get("unit", "")
    factors = []
    for name in ("zunit", "yunit", "unit"):
        of_axis = str(about.get(name, unit))
        factor = NM_PER_UNIT.get(SPELLINGS.get(of_axis, of_axis))
        if factor is None:
            return None
        factors.append(factor)
    if not about.get("spacing"):
        return None
    size = [float(about["spacing"])]
    for name in ("YResolution", "XResolution"):
        pixels, units = tags[name].value if name in tags else (0, 1)
        if not pixels:
            return None
        size.append(units / pixels)
    return [length * factor for length, factor in zip(size, factors, strict=True)]

"""MRC files, of tomography: .mrc, .rec, .map, .ali, .st.

Lengths in the header are Angstrom. Its origin is not used, since programs differ in its sign; write
#translation=z,y,x where it matters. Source: https://www.ccpem.ac.uk/mrc_format/mrc2014.php.
"""

from __future__ import annotations

import contextlib
import io
import math
import weakref
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np

from common.data.box import Vector
from common.data.level import Attributes, Voxels
from common.data.sources import files, needed
from common.data.sources.image import Image, check, single
from common.data.sources.place import Place
from common.errors import UserError

HEADER_BYTES = 1024

IMOD_STAMP = 1146047817
"""Of headers by IMOD, which say whether bytes are signed, where other programs mean that they are.

Source: https://bio3d.colorado.edu/imod/doc/mrc_format.txt.
"""

XYZ = {1: "x", 2: "y", 3: "z"}
"""How a header numbers axes."""


def open_file(place: Place) -> Image:
    """Open the volume of a file."""
    path = place.path
    interpreter = needed.module("mrcfile.mrcinterpreter", "MRC files").MrcInterpreter
    utils = needed.module("mrcfile.utils", "MRC files")
    with contextlib.ExitStack() as on_error:
        content = on_error.enter_context(files.opened(path))
        try:
            header = interpreter(iostream=content, permissive=False, header_only=True).header
            dtype = utils.dtype_from_mode(int(header.mode))
        except ValueError as error:
            raise files.broken(path, "an MRC file", error) from error
        order = ">" if header.dtype["nx"].byteorder == ">" else "<"
        if int(header.mode) == 0 and _is_unsigned(header, order):
            dtype = np.dtype(np.uint8)
        array = Mrc(path, content, header, dtype.newbyteorder(order))
        # it is read from until nobody has the array any more
        weakref.finalize(array, on_error.pop_all().close)
    counts = np.array([header.mz, header.my, header.mx], float)
    lengths = np.array([header.cella.z, header.cella.y, header.cella.x], float)
    # a header that was never filled in says 0
    is_measured = bool((lengths > 0).all() and (counts > 0).all() and np.isfinite(lengths).all())
    # seven digits: a header has float32
    nm = [float(f"{length:.7g}") for length in 0.1 * lengths / np.maximum(counts, 1)]
    return single(path, array, scale=nm if is_measured else None)


def _is_unsigned(header: Any, order: str) -> bool:
    stamp, flags = np.frombuffer(header.extra2.tobytes()[40:48], f"{order}i4")
    return bool(stamp == IMOD_STAMP and not flags & 1)


class Mrc(Voxels):
    """The voxels of a file, which stand one after the other."""

    def __init__(self, path: Path, content: BinaryIO, header: Any, dtype: np.dtype):
        self.path = path
        self.dtype = dtype
        self.attrs = Attributes()
        stored = [int(header.nz), int(header.ny), int(header.nx)]
        names = [XYZ.get(int(number)) for number in (header.maps, header.mapr, header.mapc)]
        # zeros in a header that was never filled in mean the usual order
        self._axes = (
            [names.index(axis) for axis in "zyx"] if set(names) == set("zyx") else [0, 1, 2]
        )
        self._stored = stored
        self.shape = tuple(stored[axis] for axis in self._axes)
        check(path, self.shape, dtype)
        self.chunks = tuple([1, *stored[1:]][axis] for axis in self._axes)
        self.in_rows = True
        self._content = content
        self._lock = Lock()
        self._start = HEADER_BYTES + int(header.nsymbt)
        self._check_length()

    def _check_length(self) -> None:
        """UserError for a file that ends before its voxels do."""
        needed_bytes = self._start + math.prod(self._stored) * self.dtype.itemsize
        size = self._content.seek(0, io.SEEK_END)
        if size < needed_bytes:
            raise UserError(
                f"{self.path}: {size:,} bytes of {needed_bytes:,}, so it is cut off; copy it again"
            )

    def files(self, start: Vector, stop: Vector) -> list[Path]:
        """The file."""
        return [self.path]

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Voxels of a box."""
        ranges = [range(*along.indices(n)) for along, n in zip(index, self.shape, strict=True)]
        sections, rows, columns = (ranges[self._axes.index(axis)] for axis in range(3))
        block = np.empty((len(sections), len(rows), len(columns)), self.dtype)
        for number in sections:
            block[number - sections.start] = self._rows(number, rows)[
                :, columns.start : columns.stop
            ]
        return np.ascontiguousarray(block.transpose(self._axes))

    def _rows(self, section: int, rows: range) -> np.ndarray:
        _, height, width = self._stored
        first = (section * height + rows.start) * width * self.dtype.itemsize
        with self._lock:
            self._content.seek(self._start + first)
            content = self._content.read(len(rows) * width * self.dtype.itemsize)
        return np.frombuffer(content, self.dtype).reshape(len(rows), width)

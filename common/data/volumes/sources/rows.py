"""Read voxels that stand in a file one after the other: of MRC, NIfTI and NRRD.

Of a file that is packed as one stream no part can be read by itself. It is unpacked once in a
process, when voxels are first asked for, into a file without a name in the folder for temporary
files (TMPDIR): memory stays small, however large it is.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import math
import tempfile
import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any, BinaryIO

import numpy as np

from common.data.volumes.box import ranges
from common.data.volumes.level import Attributes, Voxels
from common.data.volumes.sources import files
from common.data.volumes.sources.image import check
from common.errors import FileError
from common.talk import note_once

PIECE = 2**20
"""Bytes that are unpacked at once."""

FAULTS = (OSError, EOFError, zlib.error)
"""Of streams that are damaged or end too soon."""

OPEN: dict[str, Callable[[BinaryIO], Any]] = {
    "gzip": lambda content: gzip.GzipFile(fileobj=content),
    "bzip2": bz2.BZ2File,
}
"""What unpacks a stream, by its kind."""


@dataclass(eq=False)
class Packed:
    """The bytes of a stream."""

    path: Path
    """Of the file, for what is said."""
    content: BinaryIO
    """The file, which nobody else reads from now on."""
    packing: str
    """One of OPEN."""
    start: int = 0
    """Number of the byte that the stream begins at."""

    def seek(self, position: int) -> int:
        """Go to a byte of what is unpacked."""
        return self._unpacked.seek(position)

    def read(self, size: int) -> bytes:
        """Return so many bytes from there on, fewer at the end."""
        return self._unpacked.read(size)

    @functools.cached_property
    def _unpacked(self) -> IO[bytes]:
        """A file without a name; UserError for a damaged stream, FileError without room."""
        folder = Path(tempfile.gettempdir())
        note_once(f"{self.path}: packed as one stream; it is unpacked into {folder} to be read")
        self.content.seek(self.start)
        stream = OPEN[self.packing](self.content)
        unpacked = tempfile.TemporaryFile()  # noqa: SIM115  # it is read from later on
        # until nobody has these bytes any more
        weakref.finalize(self, unpacked.close)
        while piece := self._next(stream):
            try:
                unpacked.write(piece)
            except OSError as error:
                raise FileError(
                    f"{self.path}: could not be unpacked into {folder} ({error.strerror}); free "
                    "space, set TMPDIR to another folder, or unpack it yourself"
                ) from error
        return unpacked

    def _next(self, stream: IO[bytes]) -> bytes:
        try:
            return stream.read(PIECE)
        except FileError:
            raise  # of a server
        except FAULTS as error:
            kind = f"a file packed by {self.packing}"
            raise files.broken(self.path, kind, error) from error


class Rows(Voxels):
    """The voxels of a file, of which the rows of a box are read."""

    in_rows = True

    def __init__(
        self,
        path: Path,
        content: BinaryIO | Packed,
        *,
        start: int,
        stored: Sequence[int],
        dtype: np.dtype,
        axes: Sequence[int] = (0, 1, 2),
    ):
        """Take an open file.

        Args:
            path: of the file.
            content: its bytes, which nobody else reads from now on.
            start: number of the first byte of a voxel.
            stored: how many sections, rows and columns there are, in the order of the file.
            dtype: with its byte order.
            axes: which of these three are z, y, x.

        Raises:
            UserError: for what is no volume, and for a file that ends before its voxels do.
        """
        self.path = path
        self.dtype = dtype
        self.attrs = Attributes()
        self._in_file = dtype
        self._axes = list(axes)
        self._stored = list(stored)
        if len(self._stored) != len(self._axes):
            check(path, self._stored, dtype)
        self.shape = tuple(self._stored[axis] for axis in axes)
        check(path, self.shape, dtype)
        self.chunks = tuple([1, *self._stored[1:]][axis] for axis in axes)
        self._content = content
        self._lock = Lock()
        self._start = start
        if not isinstance(content, Packed):
            self._check_length(content.seek(0, io.SEEK_END))

    def _check_length(self, size: int) -> None:
        """Compare the size of the file in bytes with what its header asks for.

        Raises UserError for a file that ends before its voxels do.
        """
        wanted = self._start + math.prod(self._stored) * self._in_file.itemsize
        files.refuse_cut_off(self.path, size, wanted)
        section = math.prod(self._stored[1:]) * self._in_file.itemsize
        if size - wanted >= section:
            note_once(
                f"{self.path}: {size:,} bytes, and {wanted:,} for the {self._stored[0]} sections "
                "of its header; what is behind them is not read: correct the header if it is more "
                "of the volume"
            )

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return voxels of a box."""
        voxels = ranges(index, self.shape)
        sections, rows, columns = (voxels[self._axes.index(axis)] for axis in range(3))
        block = np.empty((len(sections), len(rows), len(columns)), self._in_file)
        for number in sections:
            section = self._rows(number, rows)
            block[number - sections.start] = section[:, columns.start : columns.stop]
        return np.ascontiguousarray(block.transpose(self._axes))

    def _rows(self, section: int, rows: range) -> np.ndarray:
        _, height, width = self._stored
        row_bytes = width * self._in_file.itemsize
        first = (section * height + rows.start) * row_bytes
        with self._lock:
            end = self._content.seek(self._start + first)
            content = self._content.read(len(rows) * row_bytes)
        if len(content) < len(rows) * row_bytes:  # of a packed file, or one cut off since
            self._check_length(end + len(content))
        return np.frombuffer(content, self._in_file).reshape(len(rows), width)

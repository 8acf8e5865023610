"""Read files that are packed as one stream, of which no part can be read by itself.

They are unpacked once in a process, when voxels are first asked for, into a file without a name in
the folder for temporary files (TMPDIR): memory stays small, however large they are.
"""

from __future__ import annotations

import bz2
import gzip
import tempfile
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

from common.data.volumes.sources import files
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


class Packed:
    """The bytes of a stream."""

    def __init__(self, path: Path, content: BinaryIO, packing: str, start: int = 0):
        """Take an open file.

        Args:
            path: of the file, for what is said.
            content: it, which nobody else reads from now on.
            packing: one of OPEN.
            start: number of the byte that the stream begins at.
        """
        self._path = path
        self._content = content
        self._packing = packing
        self._start = start
        self._unpacked: IO[bytes] | None = None

    def seek(self, position: int) -> int:
        """Go to a byte of what is unpacked."""
        if self._unpacked is None:
            self._unpacked = self._unpack()
        return self._unpacked.seek(position)

    def read(self, size: int) -> bytes:
        """Return so many bytes from there on, fewer at the end."""
        assert self._unpacked is not None, "seek first"
        return self._unpacked.read(size)

    def _unpack(self) -> IO[bytes]:
        """Return a file without a name; UserError for a damaged stream, FileError without room."""
        folder = Path(tempfile.gettempdir())
        note_once(f"{self._path}: packed as one stream; it is unpacked into {folder} to be read")
        self._content.seek(self._start)
        stream = OPEN[self._packing](self._content)
        unpacked = tempfile.TemporaryFile()  # noqa: SIM115  # it is read from later on
        # until nobody has these bytes any more
        weakref.finalize(self, unpacked.close)
        while piece := self._next(stream):
            try:
                unpacked.write(piece)
            except OSError as error:
                raise FileError(
                    f"{self._path}: could not be unpacked into {folder} ({error.strerror}); free "
                    "space, set TMPDIR to another folder, or unpack it yourself"
                ) from error
        return unpacked

    def _next(self, stream: IO[bytes]) -> bytes:
        try:
            return stream.read(PIECE)
        except FileError:
            raise  # of a server
        except FAULTS as error:
            kind = f"a file packed by {self._packing}"
            raise files.broken(self._path, kind, error) from error

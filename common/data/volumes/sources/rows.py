"""Read voxels that stand in a file uncompressed, one after the other: of MRC, NIfTI and NRRD."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np

from common.data.volumes.box import Vector, ranges
from common.data.volumes.level import Attributes, Voxels
from common.data.volumes.sources import files
from common.data.volumes.sources.image import check
from common.data.volumes.sources.packed import Packed
from common.talk import note_once


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

    def files(self, start: Vector, stop: Vector) -> list[Path]:
        """Return the file."""
        return [self.path]

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

"""The cache of decoded crops on disk.

A decoded crop is one folder. Its name is a key made of everything that its content depends on, and
it appears only once it is complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.ngff import Level, chunk_ranges
from common.errors import FileError

ABANDONED_S = 86400
"""Seconds after which a half-decoded crop is taken for the remains of a killed process."""


@dataclass(frozen=True)
class CropCache:
    """A folder of decoded crops with a largest size; several processes may share it."""

    folder: Path
    gigabytes: float
    """Limit in GB (10^9 bytes). The least recently used crops are removed to stay below it."""

    def path(self, key: str) -> Path:
        """Return the folder of the crop with this key."""
        return self.folder / key

    def holds(self, key: str) -> bool:
        """Return whether the crop with this key is in the cache."""
        return self.path(key).is_dir()

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """Context manager: yield an empty folder, which enters the cache when the block ends.

        If the block raises, the folder is removed. Raises FileError if the disk cannot be written.
        """
        with self._said_in_a_sentence():
            self.folder.mkdir(parents=True, exist_ok=True)
            # a leading dot: `make_room` and other processes do not take it for a decoded crop
            scratch = Path(tempfile.mkdtemp(prefix=".", dir=self.folder))
        try:
            with self._said_in_a_sentence():
                yield scratch
                self._move_in(scratch, key)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _move_in(self, scratch: Path, key: str) -> None:
        try:
            scratch.rename(self.path(key))
        except OSError:
            if not self.holds(key):
                raise
            # another process decoded the same crop meanwhile: the two are equal, and its stays

    @contextlib.contextmanager
    def _said_in_a_sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and error.errno is None:
                raise  # our own sentence about data that are missing, not about this folder
            raise FileError(
                f"{self.folder}: decoded crops could not be written "
                f"({error.strerror or error}); free space or move cache_path"
            ) from error

    def make_room(self, needed: int, keep: set[str]) -> None:
        """Remove the least recently used crops until `needed` more bytes fit.

        Crops with a key in `keep` are not removed. Half-decoded crops older than ABANDONED_S are
        removed in any case.
        """
        if not self.folder.is_dir():
            return
        entries = []
        for folder in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                entries.append((folder.stat().st_mtime, folder, _size(folder)))
        total = needed
        decoded = []
        for used, folder, size in sorted(entries):
            if not folder.name.startswith("."):
                total += size
                decoded.append((folder, size))
            elif time.time() - used > ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)
        for folder, size in decoded:
            if total > self.gigabytes * 1e9 and folder.name not in keep:
                total -= size
                shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


# When the sources of a decoded crop were last written. Hashing the data would take as long as
# decoding them; the times of files and folders show a chunk that was rewritten, added or removed.


def raw_stamp(level: Level, start: np.ndarray, stop: np.ndarray) -> list[int]:
    """Return the modification times (ns) of a level's metadata and chunk folders in a box.

    The box is voxels start..stop-1 of the level.
    """
    inside = np.maximum(start, 0), np.minimum(stop, level.shape)
    chunks_z, chunks_y, _ = chunk_ranges(*inside, level.array.chunks)
    paths = [level.path.parent / ".zattrs", level.path / ".zarray", level.path]
    for z in chunks_z:
        paths += [level.path / str(z) / str(y) for y in chunks_y]
    return _times(paths)


def label_stamp(group: Path, level: str) -> list[int]:
    """Return the modification times (ns) of a class's metadata and of all its chunk folders."""
    array = group / level
    planes = _folders(array)  # chunks are s0/z/y/x or s0/z.y.x
    rows = []
    for plane in planes:
        rows += _folders(plane)
    return _times([group / ".zattrs", array / ".zarray", array, *planes, *rows])


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:  # knows what is a folder without asking for each entry
        return sorted(path / entry.name for entry in entries if entry.is_dir())


def _times(paths: Sequence[Path]) -> list[int]:
    times = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # a chunk not fetched
            times.append(path.stat().st_mtime_ns)
    return times

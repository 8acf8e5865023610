"""The cache of decoded crops on disk.

A decoded crop is one folder. Its name is a key made of everything that its content depends on, and
it appears only once it is complete. A file in it has the sizes and checksums of the others.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from common.data.volumes import metadata, ngff
from common.data.volumes.level import Level
from common.data.volumes.sources.excerpt import is_link
from common.data.volumes.sources.place import is_address, on_disk
from common.errors import FileError, UserError
from common.files import alone, is_held, write_text
from common.talk import note
from common.talk import size as size_in_words

KEYS = ".keys"
"""End of the name of a file with the keys of crops that a process uses, a line each."""

_marks: dict[Path, Path] = {}
"""The lock that this process holds, by the folder of the cache."""

_held = contextlib.ExitStack()
"""Lets go of it, at the latest when the process ends."""

CHECKSUMS = "checksums.json"
"""File in the folder of a crop: [bytes, CRC-32] of each other file. Older crops have none."""

READ_BYTES = 2**20
"""Bytes of a file that are read at a time to check it."""

ABANDONED_S = 86400
"""Seconds after which a half-decoded crop is taken for the remains of a killed process."""

GROUP_METADATA = (".zattrs", "zarr.json", "attributes.json")
"""Files beside the levels of a class that say what its values mean: of zarr v2, zarr v3 and N5."""

HEADERS = (".nhdr",)
"""Ends of the names of files whose voxels are in others, of which their own time tells nothing."""


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

    def drop_damaged(self, key: str) -> bool:
        """Remove the crop with this key if its files are not as they were written, with a note.

        Returns whether it was. Raises FileError where it cannot be removed.
        """
        folder = self.path(key)
        problem = damage(folder)
        if not problem or not self.holds(key):  # another process makes room too
            return False
        note(f"{folder}: {problem}; the crop is decoded again")
        with self._said_in_a_sentence():
            # by another name first: what is removed in part would be taken for whole
            aside = Path(tempfile.mkdtemp(prefix=".", dir=self.folder))
            with contextlib.suppress(FileNotFoundError):
                folder.replace(aside)
            shutil.rmtree(aside, ignore_errors=True)
        return True

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
                _seal(scratch)
                self._move_in(scratch, key)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _move_in(self, scratch: Path, key: str) -> None:
        """Rename the written folder to that of its key."""
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
            elsewhere = "name another folder: CELLMAP_CACHE=FOLDER, or cache_path"
            if not isinstance(error, PermissionError):
                elsewhere = f"free space, or {elsewhere}"
            raise FileError(
                f"{self.folder}: decoded crops could not be written "
                f"({error.strerror or error}); {elsewhere}"
            ) from error

    @property
    def _in_use(self) -> Path:
        """The folder with two files for each process that uses crops: a lock, and their keys."""
        return self.folder.with_name(f".{self.folder.name}-in-use")

    def hold(self, keys: set[str]) -> None:
        """Keep other processes from removing these crops as long as this one lives.

        Where one of them is removed, a machine that shares the disk loses what it has mapped, and
        any process what it opens again, as new workers do.
        """
        # of a cache that may only be read nothing is removed, either
        with contextlib.suppress(FileError):
            if self.folder not in _marks:
                _held.close()  # a process has one cache at a time
                _marks.clear()
                atexit.register(_held.close)
                mark = self._in_use / uuid.uuid4().hex
                _held.enter_context(alone(mark))
                _held.callback(_remove, mark.with_suffix(KEYS))
                _marks[self.folder] = mark
            path = _marks[self.folder].with_suffix(KEYS)
            before = set(path.read_text().split()) if path.is_file() else set()
            write_text(path, "\n".join(sorted(before | keys)))

    def _held_by_others(self) -> set[str]:
        """Return the keys that processes hold; marks of those that were killed are removed."""
        held: set[str] = set()
        for keys in self._in_use.glob(f"*{KEYS}"):
            mark = keys.with_suffix("")
            if mark == _marks.get(self.folder):
                continue
            with contextlib.suppress(OSError):  # it ends now
                if is_held(mark):
                    held.update(keys.read_text().split())
                else:
                    keys.unlink()
                    mark.unlink(missing_ok=True)
        return held

    def make_room(self, needed: int, keep: set[str]) -> None:
        """Remove the least recently used crops until `needed` more bytes fit.

        Crops with a key in `keep`, and those that other processes hold, are not removed. Half-
        decoded crops older than ABANDONED_S are removed in any case.
        """
        if not self.folder.is_dir():
            return
        held = self._held_by_others()
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
            if total > self.gigabytes * 1e9 and folder.name not in keep | held:
                total -= size
                shutil.rmtree(folder, ignore_errors=True)
        if held and total > self.gigabytes * 1e9:
            note(
                f"{self.folder}: {size_in_words(total)} of decoded crops, more than cache_gb = "
                f"{self.gigabytes:g}: other processes use them now, and none is removed under them"
            )


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink()


def _seal(folder: Path) -> None:
    """Write the checksums of the files of a crop, and have all of it on the disk.

    A machine that loses power leaves files of the right size and the wrong content.
    """
    sums = {}
    for file in sorted(folder.iterdir()):
        with file.open("rb") as content:
            sums[file.name] = [file.stat().st_size, _crc_of(content)]
            os.fsync(content.fileno())
    with (folder / CHECKSUMS).open("w") as written:
        json.dump(sums, written)
        written.flush()
        os.fsync(written.fileno())


def damage(folder: Path) -> str:
    """Return which file of a decoded crop is not as it was written; "" if none is known to be."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
        expected = {str(name): (int(size), int(crc)) for name, (size, crc) in sums.items()}
    except FileNotFoundError:
        return ""  # of a version before there were any, or it was removed meanwhile
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} cannot be read ({error})"
    for name, (size, crc) in expected.items():
        try:
            is_whole = _is_as_written(str(folder / name), (folder / name).stat(), size, crc)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if not is_whole:
            return f"{name} is not what was written (size or checksum)"
    return ""


def _is_as_written(path: str, status: os.stat_result, size: int, crc: int) -> bool:
    if status.st_size != size:
        return False
    return _crc_of_unchanged(path, _state("", status)) == crc


@functools.lru_cache(maxsize=8192)  # the trials of a search open the same crops
def _crc_of_unchanged(path: str, state: str) -> int:
    """Return the checksum of a file, which is read once as long as its state is the same."""
    with Path(path).open("rb") as file:
        return _crc_of(file)


def _crc_of(file: BinaryIO) -> int:
    crc = 0
    while part := file.read(READ_BYTES):
        crc = zlib.crc32(part, crc)
    return crc


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


# When the sources of a decoded crop were last written. Hashing the data would take as long as
# decoding them; sizes and times of the files of chunks notice one that was rewritten in place,
# copied over, added or removed. 48 classes of 400^3 voxels have 16,464 chunks of 64^3,
# whose states are read in 0.2 s.


def raw_stamp(level: Level, start: np.ndarray, stop: np.ndarray) -> str:
    """Return a hash of sizes and times of a level's metadata and of its chunks in start..stop-1."""
    inside = np.maximum(start, 0), np.minimum(stop, level.shape)
    folder = level.group
    states = [level.stamp] if level.stamp else []
    files = [] if level.stamp else [folder / ".zattrs", level.path / ".zarray"]
    files += level.files(*inside)
    for file in files:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # a chunk not fetched
            states.append(_state(os.path.relpath(file, folder), file.stat()))
    return _hash(states)


def label_stamp(volume: Path, level: str | None = None) -> str:
    """Return a hash of sizes and times of the metadata of a class and of all chunks of a level.

    level: name of the level; the finest of the class itself unless given, since classes of one crop
        may call it by different names.
    """
    group = on_disk(volume)
    if group.is_file():
        return _hash([_state(volume.name, group.stat())])
    level = _finest(group) if level is None else level
    states = []
    for name in GROUP_METADATA:
        with contextlib.suppress(FileNotFoundError):
            states.append(_state(level, (group / name).stat()))
    array = group / level
    folder = array if array.is_dir() else group
    return _hash([*states, *_states_in(str(folder))])


@dataclass(frozen=True)
class _Described:
    """What the metadata of a group say of its levels."""

    images: str
    """As JSON, without the names of images."""
    group: Path = field(compare=False)


def _finest(group: Path) -> str:
    """Return name of the finest level of a group; "" where nothing tells it without opening arrays.

    Opening the arrays of a class with three levels takes three times as long.
    """
    try:
        if (group / ".zgroup").is_file():
            attributes = metadata.read_object(group / ".zattrs")
        else:
            attributes = metadata.read_object(group / "zarr.json").get("attributes") or {}
            attributes = attributes.get("ome") or attributes
    except (UserError, FileNotFoundError, NotADirectoryError):
        return ""
    images = attributes.get("multiscales")
    if isinstance(images, list):
        # which is that of the class
        images = [image | {"name": ""} if isinstance(image, dict) else image for image in images]
    return _finest_of(_Described(json.dumps(images), group))


@functools.lru_cache(maxsize=512)
def _finest_of(described: _Described) -> str:
    """Return the name of the finest level by the metadata, which the classes of a crop share."""
    attributes = {"multiscales": json.loads(described.images)}
    try:
        levels = metadata.image_of(described.group, attributes).levels
    except UserError:
        return ""
    return min(levels, key=lambda level: float(np.prod(level.scale))).name


def stamp_of_labels(volume: Path) -> str:
    """Return a text that changes with a class volume; on a server it is that of its metadata."""
    if is_address(volume):
        return str(ngff.open_levels(volume)[0].stamp)
    if is_link(volume) or on_disk(volume).name.lower().endswith(HEADERS):
        level = ngff.open_levels(volume)[0]
        return raw_stamp(level, np.zeros(3, int), level.shape)
    return label_stamp(volume)


def _states_in(folder: str, name: str = "") -> Iterator[str]:
    """Yield the states of all files below a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            inside = f"{name}/{entry.name}"
            if entry.is_dir():
                yield from _states_in(entry.path, inside)
            else:
                yield _state(inside, entry.stat())


def _state(name: str, status: os.stat_result) -> str:
    # the time of change too: a copy may keep the time of the last write, and the size as well
    return f"{name} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _hash(states: Iterable[str]) -> str:
    """Return a hash that does not depend on the order in which a folder is listed."""
    return hashlib.sha256("\n".join(sorted(states)).encode()).hexdigest()

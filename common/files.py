"""How we write: whole files or none, one process at a time, content told by its hash."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import pickle
import re
import shutil
import socket
import threading
import time
import uuid
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from fasteners import InterProcessLock

from common.errors import Busy, FileError, UserError, in_a_line
from common.talk import note_once


def _home() -> Path:
    """The checkout that this package lies in; of an installed package the working folder."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


REPOSITORY = _home()
"""Where experiments, data/ and cache/ are looked for."""

CHECKSUM_BYTES = 4
"""Of the CRC-32 before a pickled value."""


def from_repository(folder: Path) -> str:
    """An absolute folder as texts name it: from REPOSITORY, or elsewhere its own name alone.

    The place where it lies on one machine helps nobody on another, and may name its owner.
    """
    if folder.is_relative_to(REPOSITORY):
        return str(folder.relative_to(REPOSITORY))
    return folder.name


_cache: Path | None = None


def use_cache(folder: str | Path | None) -> None:
    """Set what `cache_folder` gives in this process; None goes back to the environment's."""
    # pretrained weights are loaded in a user's build_model, which is not given the settings
    global _cache  # noqa: PLW0603
    _cache = None if folder is None else Path(folder).expanduser().absolute()


def cache_folder() -> Path:
    """Folder of decoded crops and pretrained weights, absolute; it need not exist.

    What `use_cache` set (the setting cache_path), else CELLMAP_CACHE, else the repository's cache/.
    """
    given = _cache or os.environ.get("CELLMAP_CACHE") or REPOSITORY / "cache"
    return Path(given).expanduser().absolute()


# Path makes s3:/bucket of s3://bucket; two letters at least, since C:/data is a folder
_ADDRESS = re.compile("(?:^|/)([A-Za-z][A-Za-z0-9+]+):/+([^/].*)")


def is_remote(place: str | Path) -> bool:
    """Whether this is an address such as s3://bucket/volume.zarr, also where Path cut it."""
    return bool(_ADDRESS.search(str(place))) and not Path(place).exists()


def refuse_remote(place: str | Path) -> None:
    """Raises UserError for an address where a path is needed."""
    address = _ADDRESS.search(str(place))
    if address and is_remote(place):
        scheme, rest = address.groups()
        raise UserError(
            f"{scheme}://{rest}: remote stores are not read; copy it to this disk first (data of "
            "the challenge with fetch-data), and write the path of the copy"
        )


def is_file(path: Path) -> bool:
    """Whether a file is there. Raises UserError for a folder in its place.

    Which would be missed where files are looked for, and in the way where one is written.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder, where a file is meant; move it, or write another path")
    return path.is_file()


def refuse_no_folder(path: str | Path) -> None:
    """Raise FileNotFoundError if there is no folder for a file.

    One that is made for it would be one that was misspelt.
    """
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist; create it first")


def free_name(name: str) -> str:
    """A name of which nothing is in the working folder: this one, or it with a number from 2 on."""
    path = Path(name)
    numbered = (f"{path.stem}{number}{path.suffix}" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if not os.path.lexists(free))


ABANDONED_S = 86400
"""Seconds after which a file that nobody ended is taken for the remains of a killed process."""


@contextlib.contextmanager
def replacing(path: str | Path, durable: bool = False, sole_writer: bool = False) -> Iterator[Path]:
    """A temporary file to write, which takes the place of `path` when the block ends.

    Whoever reads `path` sees the old file or the new one, never a part, also if the block fails.
    Folders above it are made. What a process that was killed left of it a day ago or earlier is
    removed.

    durable: the bytes are on disk before the old file goes. sole_writer: no other process writes
    this file, so what a killed one left of it is written over.

    Raises FileError if it cannot be written; then the old file stands, and nothing of the new one.
    """
    path = Path(path)
    # several may write the same file, and each replaces it whole. Not by the number of the process:
    # two machines that share a disk have the same numbers
    temporary = path.with_name(f".{path.name}.{'part' if sole_writer else uuid.uuid4().hex[:12]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not sole_writer:
            _sweep_old(path)
        yield temporary
        if durable:
            _flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, UserError) or not _concerns(error, path, temporary):
            raise
        raise not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # it took its place, or there was none for it
            temporary.unlink()


def refuse_unwritable(path: str | Path) -> None:
    """Raise FileError where a file could not be written: before the work whose result it takes.

    UserError for a folder in its place. Nothing is made.
    """
    path = Path(path)
    is_file(path)
    # lexists: a link that leads nowhere is in the way, too
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise not_written(path, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(above, os.W_OK | os.X_OK):
        raise not_written(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _concerns(error: OSError, path: Path, temporary: Path) -> bool:
    """Whether an error is about writing `path`, and not about another file that the block reads."""
    if not isinstance(error.filename, str | os.PathLike):
        return True  # a full disk names no file
    return Path(error.filename) in (temporary, path, *path.parents)


def sweep(folder: Path, names: Collection[str]) -> None:
    """Remove what killed processes left of files that `replacing` was to write.

    names: of these files. Nobody may be writing them, on any machine: they are of a run, say, that
        this process holds.
    """
    for path in folder.glob(".*"):
        name, _, end = path.name[1:].rpartition(".")
        if name in names and _TEMPORARY.fullmatch(end):
            with contextlib.suppress(OSError):
                path.unlink()


def _sweep_old(path: Path) -> None:
    """Remove what processes left of a file a day ago or earlier: another may be writing it now."""
    for name in _left_in(path.parent):
        if name.rpartition(".")[0] != f".{path.name}":
            continue
        left = path.with_name(name)
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                left.unlink()


@functools.lru_cache(maxsize=256)  # thousands of files may be written into a folder
def _left_in(folder: Path) -> list[str]:
    """Return the files that may be what processes left in a folder, when it was first looked at."""
    names = [path.name for path in folder.glob(".*.*")]
    return [name for name in names if _TEMPORARY.fullmatch(name.rpartition(".")[2])]


_TEMPORARY = re.compile("[0-9]+|[0-9a-f]{12}")
"""The end of the name of a temporary file; of earlier versions the number of a process."""


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all. Raises FileError as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON whole or not at all; NaN, which JSON does not have, is a bug. Raises FileError."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def not_written(path: Path, error: Exception) -> FileError:
    """The error for a file or folder that could not be written, with what stands and what to do."""
    reason = getattr(error, "strerror", None) or in_a_line(error)
    if isinstance(error, NotADirectoryError | FileExistsError):
        reason = in_the_way(path) or reason
    kept = "the one before it stands" if path.exists() else "nothing was kept"
    what = how_another_is_named(path) or "choose another folder"
    if not isinstance(error, PermissionError):
        what = f"free space, or {what}"
    return FileError(
        f"{path}: could not be written ({reason}); {kept}. "
        f"Mend that ({what}) and run the same command again"
    )


def how_another_is_named(path: Path) -> str:
    """How to name a folder other than the repository's own of data or cache; "" of other paths."""
    if path.is_relative_to(REPOSITORY / "data"):
        return "name another folder: --data FOLDER or CELLMAP_DATA=FOLDER"
    if path.is_relative_to(REPOSITORY / "cache"):
        return "name another folder: CELLMAP_CACHE=FOLDER"
    return ""


def in_the_way(path: Path) -> str:
    """What stands where a path needs a folder above it, in words; "" if nothing does."""
    # lexists: a link that leads nowhere is in the way, too
    above = next((part for part in path.absolute().parents if os.path.lexists(part)), path)
    return "" if above.is_dir() else f"{above} is no folder"


NO_LOCKS = frozenset([errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
"""What file systems without locks answer."""


@contextlib.contextmanager
def alone(lock_file: str | Path, wait: bool = False, otherwise: str = "") -> Iterator[None]:
    """Hold a lock file for this process, until the block ends or the process dies.

    The system frees the lock of a process that is killed; its file is left, and blocks nobody.

    wait: until another process lets go of it; without, Busy with the text `otherwise`, in which
    {holder} becomes that process.
    """
    lock_file = Path(lock_file)
    try:
        lock = _lock(lock_file, wait)
    except OSError as error:
        raise not_written(lock_file, error) from error
    if lock is None:
        raise Busy(otherwise.replace("{holder}", _holder(lock_file)))
    reader = _name_holder(lock_file, lock) if lock.acquired else None
    _readers[lock_file] = reader
    try:
        yield
    finally:
        _readers.pop(lock_file, None)
        if not (reader and _taken_by(lock_file, reader)):
            with contextlib.suppress(OSError):
                lock_file.unlink()  # while it is held: see _is_at
        if reader:
            reader.close()
        if lock.acquired:
            lock.release()


_readers: dict[Path, IO[bytes] | None] = {}
"""Of each lock file that this process holds a handle to read it by; None without locks.

Whoever opens the file again, and closes it, lets go of the lock.
"""

_one_reads = threading.Lock()
"""Threads that end the classes of a box ask at once, and a handle has one place in its file."""

_SELF = uuid.uuid4().hex[:12]
"""Tells this process from one of another machine that has its number and, in a container, host."""


def mark() -> str:
    """What this process writes into the locks that it holds; no other process has the same."""
    return f"{os.getpid()} {socket.gethostname()} {_SELF}\n"


def refuse_taken(lock_file: str | Path) -> None:
    """Raise UserError where another process has meanwhile taken a lock that this one holds.

    So it is on network disks whose locks are of each machine alone.
    """
    reader = _readers.get(Path(lock_file))
    other = reader and _taken_by(Path(lock_file), reader)
    if other:
        raise UserError(
            f"{lock_file}: {other} has it too, since the locks of this disk do not reach from one "
            "machine to another (NFS mounted with nolock, Lustre with localflock, sshfs, ...); "
            "this process leaves it to that one. See to it that only one works there at a time"
        )


def _taken_by(lock_file: Path, reader: IO[bytes]) -> str:
    """The process that has taken a lock of this one, in words; "" where none has."""
    with contextlib.suppress(OSError):
        if not os.path.samestat(os.fstat(reader.fileno()), lock_file.stat()):
            return _holder(lock_file)  # another file: nothing is lost by closing it
        with _one_reads:
            reader.seek(0)
            written = reader.read().decode(errors="replace")
        if written not in ("", mark()):
            return _in_words(written)
    return ""


def is_held(lock_file: str | Path) -> bool:
    """Whether another process holds a lock file; not for one that this process holds."""
    lock_file = Path(lock_file)
    if lock_file in _readers or not lock_file.is_file():
        return False
    try:
        lock = _lock(lock_file, wait=False)
    except OSError:  # that of another user, as where a colleague asks for the status of a box
        return _is_locked(lock_file)
    if lock is None:
        return True
    # neither named nor removed: where locks are of each machine alone, another process may have it
    if lock.acquired:
        lock.release()
    return False


def _is_locked(lock_file: Path) -> bool:
    """Whether a process holds a lock file that this one may only read; no where it may not."""
    if os.name == "nt":
        return False
    import fcntl

    try:
        with lock_file.open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def holder_of(lock_file: str | Path) -> str:
    """The process that holds a lock file, in words; "" where none does, or it is this one."""
    return _holder(Path(lock_file)) if is_held(lock_file) else ""


def _lock(lock_file: Path, wait: bool) -> InterProcessLock | None:
    """The lock of this process on a file; None where another process holds it."""
    while True:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        # of fcntl.lockf: unlike flock's, its locks are not inherited by workers, which may outlive
        # a killed process. They end when any handle of the file is closed: it is opened once
        lock = InterProcessLock(lock_file)
        try:
            held = lock.acquire(blocking=wait)
        except FileNotFoundError:
            continue  # another process removed its empty folder
        except threading.ThreadError as error:
            lock.lockfile.close()
            _note_no_locks(lock_file, error)
            return lock
        if not held:
            lock.lockfile.close()  # which acquire leaves open
            return None
        if _is_at(lock, lock_file):
            return lock
        lock.release()


def _name_holder(lock_file: Path, lock: InterProcessLock) -> IO[bytes] | None:
    """Write into a lock file who holds it, and return what reads it; None where that fails.

    A full disk keeps nobody from holding it.
    """
    with contextlib.suppress(OSError):
        os.ftruncate(lock.lockfile.fileno(), 0)
        # not through a buffer, which would try again when the file is closed
        os.write(lock.lockfile.fileno(), mark().encode())
        os.fsync(lock.lockfile.fileno())  # or a network disk shows it to others when it is closed
    with contextlib.suppress(OSError):
        return lock_file.open("rb", buffering=0)  # what is read is what is there now
    return None


def _is_at(lock: InterProcessLock, lock_file: Path) -> bool:
    """Whether the locked file is still there: who held it before may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(lock.lockfile.fileno()), lock_file.stat())
    except OSError:
        return False


def _note_no_locks(lock_file: Path, error: Exception) -> None:
    """Say that a file system has no locks. Raises OSError for any other error."""
    cause = error.__context__  # fasteners gives no other cause
    if not isinstance(cause, OSError):
        raise error
    if cause.errno not in NO_LOCKS:
        raise cause
    note_once(
        f"the file system of {lock_file.parent} has no locks ({cause.strerror}); see to it that "
        "no two processes write there at once"
    )


def _holder(lock_file: Path) -> str:
    """The process that holds a lock file, in words."""
    try:
        return _in_words(lock_file.read_text())
    except (OSError, ValueError):
        return "another process"


def _in_words(written: str) -> str:
    """A process by its `mark`, in words."""
    words = written.split()
    return f"process {words[0]} on {words[1]}" if len(words) > 1 else "another process"


def free_bytes(folder: str | Path) -> int:
    """Free space where a folder is or will be."""
    folder = Path(folder).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    return shutil.disk_usage(existing).free


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(content: Any) -> str:
    """24 hexadecimal digits that tell JSON-like content apart; the order of keys does not count."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def packed(value: Any) -> bytes:
    """Return a value pickled, behind a checksum of that: for files that we alone write and read."""
    content = pickle.dumps(value)
    return zlib.crc32(content).to_bytes(CHECKSUM_BYTES) + content


def unpacked(stored: bytes) -> Any:
    """Return the value that was packed. Raise ValueError where it is not what was written."""
    content = stored[CHECKSUM_BYTES:]
    if zlib.crc32(content).to_bytes(CHECKSUM_BYTES) != stored[:CHECKSUM_BYTES]:
        raise ValueError("its checksum is wrong")
    return pickle.loads(content)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())

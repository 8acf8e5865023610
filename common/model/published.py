"""Files of published weights: fetched once, kept in a cache, with their SHA-256 beside them."""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from common.errors import FileError, UserError
from common.files import alone, replacing, sha256_of_file, write_json
from common.talk import progress, say

TIMEOUT_S = 60
READ_BYTES = 1 << 20

Origin = dict[str, Any]
"""What is kept beside a file of weights: its source, bytes and sha256."""

CheckFile = Callable[[Path, str], None]
"""`check(path, sha256)` raises UserError, "path: what is wrong; what to do", for another file."""


_REPLACED = ContextVar("replaced", default=False)


@contextmanager
def replaced() -> Iterator[None]:
    """Context manager: what is built in it gets all of its weights from a checkpoint afterwards.

    So `are_wanted` is false, and a machine that predicts needs no published file.
    """
    token = _REPLACED.set(True)
    try:
        yield
    finally:
        _REPLACED.reset(token)


def are_wanted() -> bool:
    """Whether a network that begins with published weights is to read them."""
    return not _REPLACED.get()


def cached(path: Path, url: str, *, check: CheckFile) -> Path:
    """Return the path of a file of weights, which is downloaded if it is missing.

    A .json beside it records size and SHA-256. A file that was put there by hand is recorded, too,
    if it is right. Of several processes one downloads and the others wait.

    Args:
        path: in the cache.
        url: where it is published.
        check: is given a new file before it is kept.

    Raises:
        FileError: if the file can neither be found nor downloaded.
        UserError: for a file that is not this one, or that has changed since it was taken.
    """
    if _is_recorded(path):
        return path
    with _locked(path):
        # asked again: the process that held the lock until now may have downloaded it
        if not _is_recorded(path):
            first = _first_sha256(path)
            record = _examine(path, check) if path.is_file() else _download(url, path, check)
            if first not in ("", record["sha256"]):
                path.unlink()  # just downloaded: a file put there by hand is not replaced
                raise UserError(
                    f"{record['source']}: its SHA-256 is {record['sha256']} and that of the file "
                    f"taken first {first}; it was not kept. If the change is meant, delete "
                    f"{_record_path(path)}"
                )
            write_json(_record_path(path), record)
            say(f"{path}: {record['bytes']:,} bytes, SHA-256 {record['sha256']}")
    return path


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _is_recorded(path: Path) -> bool:
    """Whether the file is there with its record. UserError if it is not the file recorded."""
    record_path = _record_path(path)
    if not (path.is_file() and record_path.is_file()):
        return False
    recorded = json.loads(record_path.read_text())["bytes"]
    size = path.stat().st_size
    if size != recorded:
        raise UserError(
            f"{path}: has {size:,} bytes, but {record_path.name} says {recorded:,}; "
            "delete both to download it again"
        )
    digest = sha256_of_file(path)
    first = _first_sha256(path)
    if digest != first:
        raise UserError(
            f"{path}: its SHA-256 is {digest}, but {record_path.name} says {first}: the file was "
            "changed after it was taken; delete both to download it again"
        )
    return True


def _first_sha256(path: Path) -> str:
    """The SHA-256 that is on record of a file, whether it is still there or not; "" if none is."""
    record_path = _record_path(path)
    if not record_path.is_file():
        return ""
    return json.loads(record_path.read_text())["sha256"]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of one cached file between processes. FileError if it cannot be made."""
    with ExitStack() as held:
        try:
            held.enter_context(alone(path.with_name(path.name + ".lock"), wait=True))
        except FileError as error:
            raise FileError(
                f"{path.parent}: cannot be written ({error.__cause__}); "
                "set cache_path or CELLMAP_CACHE to a folder that can"
            ) from error
        yield


def _examine(path: Path, check: CheckFile) -> Origin:
    """The record of a file that somebody put into the cache. UserError if it is not this one."""
    sha256 = sha256_of_file(path)
    check(path, sha256)
    return {"source": "put here by hand", "bytes": path.stat().st_size, "sha256": sha256}


def _download(url: str, path: Path, check: CheckFile) -> Origin:
    """Fetch a file and put it at `path` when it is whole and right; return its record."""
    digest = hashlib.sha256()
    with replacing(path) as part:
        with part.open("wb") as file:
            for chunk in _received(url, path):
                digest.update(chunk)
                file.write(chunk)
        size = part.stat().st_size
        try:
            check(part, digest.hexdigest())
        except UserError as error:
            reason = str(error).removeprefix(f"{part}: ").partition("; ")[0]
            raise UserError(
                f"{url}: sent something else ({reason}); fetch it elsewhere and save it as {path}"
            ) from error
    return {"source": url, "bytes": size, "sha256": digest.hexdigest()}


def _received(url: str, path: Path) -> Iterator[bytes]:
    """What `url` sends for the file `path`. FileError if it is nothing or less than announced."""
    # urlopen's own context verifies nothing once cellmap-models has downloaded something
    verified = ssl.create_default_context()
    try:
        with urlopen(url, timeout=TIMEOUT_S, context=verified) as response:
            announced = response.headers.get("Content-Length")
            total = None if announced is None else int(announced)
            received = 0
            with progress(total, f"Downloading {url}", unit="B", unit_scale=True) as bar:
                while chunk := response.read(READ_BYTES):
                    yield chunk
                    received += len(chunk)
                    bar.update(len(chunk))
        if total not in (None, received):
            raise HTTPException(f"the transfer ended after {received:,} of {total:,} bytes")
    except (OSError, HTTPException) as error:
        raise FileError(
            f"{path}: missing, and could not be downloaded ({error}); "
            f"fetch {url} elsewhere and save it as this file"
        ) from error

"""Open files that hold one array each, and say what is wrong with one; import what reads them."""

from __future__ import annotations

import importlib
import io
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np

from common.data.volumes.sources.remote import Address
from common.errors import UserError, in_a_line

KEPT_BYTES = 2**28
"""Decoded parts of a file that are kept: blocks of a prediction share them."""


def library(name: str, what: str, extra: str = "formats", package: str = "") -> Any:
    """Import the library of a kind of file where one is read or written, or say how to install it.

    Args:
        name: as it is imported.
        what: "TIFF files", for the sentence where it is not there.
        extra: of pyproject.toml, which has it.
        package: as pip knows it, where that is another name.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        installed = package or error.name
        raise UserError(
            f"{what} need {installed}, which is not installed; write pip install {installed}, or "
            f"pip install 'csc-baselines[{extra}]' for all that is like it"
        ) from error


class _Raw(io.FileIO):
    """A file on this disk; as `_Opened`, since both may be cleared away in any order."""

    def __del__(self) -> None:
        self.close()


class _Opened(io.BufferedReader):
    """A file that is closed, without a warning, where nobody has it any more."""

    def __del__(self) -> None:
        self.close()


def opened(path: Path) -> BinaryIO:
    """Return a file to read from, on this disk or on a server.

    Raises FileNotFoundError without one, UserError if it cannot be read.
    """
    if isinstance(path, Address):
        from common.data.volumes.sources import remote_file

        return remote_file.opened(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return _Opened(_Raw(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy it again") from error


def broken(path: Path, kind: str, error: Exception) -> UserError:
    """Return the error for a file that cannot be read as its kind, such as "a TIFF file"."""
    if isinstance(error, UserError):
        return error  # of the server
    reason = in_a_line(error) or type(error).__name__
    return UserError(f"{path}: cannot be read as {kind} ({reason}); write or copy it again")


def refuse_cut_off(path: Path, size: int, wanted: int) -> None:
    """Raise UserError for a file of `size` bytes whose voxels end at byte `wanted`."""
    if size < wanted:
        raise UserError(f"{path}: {size:,} bytes of {wanted:,}, so it is cut off; copy it again")


class Kept:
    """Decoded parts of a file, the most recently used ones; threads may share it."""

    def __init__(self, most_bytes: int = KEPT_BYTES):
        self._most = most_bytes
        self._parts: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the part of this key, decoded now unless it is there."""
        with self._lock:
            if key in self._parts:
                self._parts.move_to_end(key)
                return self._parts[key]
        part = decode()  # outside of the lock: threads decode side by side
        with self._lock:
            if key not in self._parts:
                self._parts[key] = part
                self._bytes += part.nbytes
            while self._bytes > self._most and len(self._parts) > 1:
                _, oldest = self._parts.popitem(last=False)
                self._bytes -= oldest.nbytes
        return part

"""By which code and libraries volumes are made, as hashes by which two processes compare theirs."""

from __future__ import annotations

import functools
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import FileError
from common.files import key_of, sha256_of_file
from common.provenance import versions_of

# not files.REPOSITORY, which of an installed package is the working folder
IMPORT_ROOT = Path(__file__).resolve().parents[2]
"""Folder that `common` is imported from."""

MAKING_OBJECTS = ("data", "infer")
"""Rooms of this package whose code makes masks and objects of predictions."""

PREDICTING = ("data", "infer", "model")
"""Rooms whose code makes predictions of raw."""

SCORING = ("data", "infer", "score")
"""Rooms whose code processes, and compares with annotations."""

LIBRARIES = (
    *("numpy", "scipy", "numba", "torch", "zarr", "scikit-image", "connected-components-3d"),
    *("edt", "fastremap", "mwatershed"),
)
"""Libraries whose versions can change what comes of a block."""


@functools.cache
def engine_hash() -> str:
    """Return a hash of the code, Python and libraries that make masks and objects.

    It is of the files as they were when it was first asked for. What another version left half-made
    is not gone on with. Whole volumes stay whatever the version: their key is
    `ProcessedRecord.with_key`.
    """
    # functions of blocks travel to workers as bytecode, which is another in another Python
    python = list(sys.version_info[:2])
    return key_of([_digests(MAKING_OBJECTS), versions_of(LIBRARIES), python])


@functools.cache
def predicting_hash() -> str:
    """Return a hash of the code that predicts, as it was when it was first asked for.

    Libraries are not in it: torch has another version on a machine with another GPU.
    """
    return key_of(_digests(PREDICTING))


@functools.cache
def scoring_hash() -> str:
    """Return a hash of the code and libraries that scores are computed by, as at the first call."""
    return key_of([_digests(SCORING), versions_of(LIBRARIES)])


def refuse_other_engine(callers: str) -> None:
    """Raise FileError in a worker of another version than its caller: a volume is made by one.

    callers: `engine_hash` of the caller.
    """
    _refuse_other(callers, engine_hash())


def refuse_other_scoring(callers: str) -> None:
    """Raise FileError in a worker that scores by another version: a table is made by one.

    callers: `scoring_hash` of the caller.
    """
    _refuse_other(callers, scoring_hash())


def _refuse_other(callers: str, own: str) -> None:
    """Raise FileError where the hash of the caller is not this process's own."""
    if callers != own:
        raise FileError(
            f"{socket.gethostname()}: this worker has other code in {IMPORT_ROOT}, or other "
            f"versions of Python or libraries ({', '.join(LIBRARIES)}), than its caller; start "
            "both from one copy of this repository in one environment"
        )


def refuse_other_predicting(callers: str) -> None:
    """Raise FileError in a worker that predicts by other code. callers: `predicting_hash`."""
    if callers != predicting_hash():
        raise FileError(
            f"{socket.gethostname()}: this worker has other code in {IMPORT_ROOT} than its caller; "
            "start both from one copy of this repository"
        )


def _digests(rooms: Sequence[str]) -> list[str]:
    """Return the SHA-256 of each Python file of some rooms of `common`."""
    files: list[Path] = []
    for room in rooms:
        files += (IMPORT_ROOT / "common" / room).rglob("*.py")
    return [sha256_of_file(file) for file in sorted(files)]

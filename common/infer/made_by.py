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
"""Rooms of this package: what makes volumes of predictions lies in them."""

PREDICTING = ("data", "infer", "model")
"""Likewise of raw."""

SCORING = ("data", "infer", "score")
"""What processes, and compares with annotations."""

LIBRARIES = (
    *("numpy", "scipy", "numba", "torch", "zarr", "scikit-image", "connected-components-3d"),
    *("edt", "fastremap", "mwatershed"),
)
"""Whose versions can change what comes of a block."""


@functools.cache
def engine_hash() -> str:
    """Hash of our code, Python and libraries that make masks and objects, as they were at first.

    What an earlier version left half-made is not gone on with. Whole volumes stay whatever the
    version: their key is `ProcessedRecord.with_key`.
    """
    # functions of blocks travel to workers as bytecode, which is another in another Python
    python = list(sys.version_info[:2])
    return key_of([_digests(MAKING_OBJECTS), versions_of(LIBRARIES), python])


@functools.cache
def predicting_hash() -> str:
    """Hash of our code that predicts, as it was at first.

    Not of libraries: torch has another version on a machine with another GPU.
    """
    return key_of(_digests(PREDICTING))


@functools.cache
def scoring_hash() -> str:
    """Hash of our code and the libraries that scores are computed by, as they were at first."""
    return key_of([_digests(SCORING), versions_of(LIBRARIES)])


def refuse_other_engine(callers: str) -> None:
    """Raise FileError in a worker of another version than its caller: a volume is of one."""
    _refuse_other(callers, engine_hash())


def refuse_other_scoring(callers: str) -> None:
    """Likewise where it is scored: a table is of one version."""
    _refuse_other(callers, scoring_hash())


def _refuse_other(callers: str, own: str) -> None:
    if callers != own:
        raise FileError(
            f"{socket.gethostname()}: this worker has other code in {IMPORT_ROOT}, or other "
            f"versions of Python or libraries ({', '.join(LIBRARIES)}), than its caller; start "
            "both from one copy of this repository in one environment"
        )


def refuse_other_predicting(callers: str) -> None:
    """Likewise where raw is predicted."""
    if callers != predicting_hash():
        raise FileError(
            f"{socket.gethostname()}: this worker has other code in {IMPORT_ROOT} than its caller; "
            "start both from one copy of this repository"
        )


def _digests(rooms: Sequence[str]) -> list[str]:
    files: list[Path] = []
    for room in rooms:
        files += (IMPORT_ROOT / "common" / room).rglob("*.py")
    return [sha256_of_file(file) for file in sorted(files)]

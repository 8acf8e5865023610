"""Keep what is scored already, a file for each piece of work, until the call that asked is done.

A call that is stopped or killed leaves these files, and the same command goes on with them. A
piece whose volumes, settings or code are others than when it was scored is scored again.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from common.data.crops.cache import stamp_of_labels
from common.data.volumes.records import read_prediction
from common.data.volumes.sources.excerpt import LINK
from common.errors import FileError, UserError
from common.files import key_of, packed, replacing, sha256_of_file, unpacked
from common.infer.ledger import state_of
from common.infer.made_by import scoring_hash

Result = TypeVar("Result")

UNSTAMPED = (FileNotFoundError, NotADirectoryError)
"""Errors where a volume is not there: whoever scores it says so."""


def folder_of(result: Path, *asked: object) -> Path:
    """Return the folder for a call, beside its result, and by what was asked where that tells."""
    more = f".{key_of(list(map(str, asked)))[:12]}" if asked else ""
    return result.with_name(f".{result.name}{more}.kept")


def once(
    item: Any,
    function: Callable[[Any], Result],
    volumes: Iterable[Path],
    *,
    beside: Path | None = None,
) -> Result:
    """Return what a function gives for an item: what an earlier call kept of it, or now.

    Args:
        item: a dataclass; its field `kept` is the folder that results are kept in, None for none.
        function: scores it.
        volumes: groups or files that are scored.
        beside: folder of the predictions that instance_func may read besides.
    """
    if item.kept is None:
        return function(item)
    asked = {f.name: _words(getattr(item, f.name)) for f in fields(item) if f.name != "kept"}
    path = item.kept / f"{key_of([type(item).__name__, asked])}.pickle"
    made_of = key_of(
        [scoring_hash(), sys.version, [_stamp(volume) for volume in volumes], _states(beside)]
    )
    found = _read(path, made_of)
    if found is not None:
        return found[0]
    result = function(item)
    with contextlib.suppress(FileError):  # a full disk, say: then it is scored again
        _write(path, made_of, result)
    return result


def forget(folder: Path) -> None:
    """Remove what a call kept, when its result is written."""
    shutil.rmtree(folder, ignore_errors=True)


def _words(value: Any) -> Any:
    """Return a value as JSON that is the same in every process: sets have no order."""
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, dict):
        return {str(name): _words(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_words(part) for part in value]
    return repr(value)


def _stamp(volume: Path) -> list[str]:
    """Return what changes when a volume is written anew, or is said to be something else."""
    try:
        stamp = stamp_of_labels(volume)
    except UNSTAMPED:
        stamp = ""
    # of a link, how the values of its source are read
    link = volume / LINK
    return [str(volume), stamp, sha256_of_file(link) if link.is_file() else ""]


def _states(folder: Path | None) -> dict[str, Any]:
    """Return which predictions lie in a folder, by name."""
    states = {}
    for group in sorted(folder.iterdir()) if folder else ():
        with contextlib.suppress(UserError):  # a damaged one: whoever reads it says so
            record = read_prediction(group) if group.is_dir() else None
            if record:
                states[group.name] = state_of(record)
    return states


def _write(path: Path, made_of: str, result: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(made_of.encode() + packed(result))


def _read(path: Path, made_of: str) -> tuple[Any] | None:
    """Return the result that is kept, in a tuple; None where there is none of these volumes."""
    try:
        stored = path.read_bytes()
        if stored.startswith(made_of.encode()):
            return (unpacked(stored[len(made_of) :]),)
    except (OSError, ValueError):  # not there, or damaged
        pass
    return None

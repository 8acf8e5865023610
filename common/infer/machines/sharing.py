"""Several processes, on one machine or many, share a list of boxes: a box is one process's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from common import files
from common.errors import Busy, FileError, Incomplete, NotYet
from common.stopping import ShouldStop, never
from common.talk import count, say

Item = TypeVar("Item")
Result = TypeVar("Result")

LOCK = ".lock"
"""File in the folder of a box while a process works on it."""


def sole_worker(folder: Path, doing: str) -> AbstractContextManager[None]:
    """Hold the folder of a box for this process. Raise Busy if another one has it.

    doing: such as "predicting".
    """
    otherwise = f"{folder}: {{holder}} is {doing} it"
    return files.alone(folder / LOCK, otherwise=otherwise)


def for_each_box(work: Callable[[Item], Result], boxes: Sequence[Item]) -> list[Result]:
    """Return the results of work(box); boxes that other processes hold are tried again at the end.

    By then they are done, or held no longer since their process died. Raise, after all other boxes,
    NotYet where some are still worked on, and Incomplete where parts of some failed.
    """
    results: dict[int, Result] = {}
    busy: dict[int, str] = {}
    incomplete = []
    for is_first in (True, False):
        numbers: Iterable[int] = range(len(boxes)) if is_first else list(busy)
        busy = {}
        for number in numbers:
            try:
                results[number] = work(boxes[number])
            except Busy as error:
                busy[number] = str(error)
                if is_first and len(boxes) > 1:
                    say(f"{error}; it is left for later")
            except Incomplete as error:
                incomplete.append(str(error))
    if incomplete:
        raise Incomplete("\n".join([*incomplete, *busy.values()]))
    if busy:
        lines = "\n".join(busy.values())
        done = count(len(results), "other box is done; ", "other boxes are done; ")
        again = "run the same command again when that is done"
        raise NotYet(f"{lines}\n{done if results else ''}{again}")
    return [results[number] for number in range(len(boxes))]


def refuse_taken(folder: Path) -> None:
    """Raise UserError where another process has taken the folder of a box that this one holds."""
    files.refuse_taken(folder / LOCK)


def ends_if_taken(folder: Path, stopped: ShouldStop = never) -> ShouldStop:
    """Return `stopped`, which raises as `refuse_taken` of the folder of a box does."""

    def stopped_or_taken() -> bool:
        refuse_taken(folder)
        return stopped()

    return stopped_or_taken


def refuse_left(folder: Path, mark: str) -> None:
    """Raise FileError unless the process with this `common.files.mark` works on a box's folder.

    Only another process may ask: to read the file of one's own lock would let go of the lock.
    """
    until = time.monotonic() + (0 if mark in _left else SHOWN_WITHIN_S)
    while not _is_still(folder, mark):
        if time.monotonic() > until:
            _left.add(mark)
            raise FileError(
                f"{folder}: nothing was written, since the process that asked for it does not hold "
                f"{LOCK} there any more"
            )
        time.sleep(1)


# network disks keep for 60 s at most what they know of a folder, NFS by its acdirmax
SHOWN_WITHIN_S = 60
"""Seconds after which a worker on another machine sees at the latest who holds a box."""

_left: set[str] = set()
"""Marks of processes that were waited for in vain."""


def _is_still(folder: Path, mark: str) -> bool:
    """Return whether the process with this mark works on the folder of a box."""
    try:
        # empty where the file system has no locks
        return (folder / LOCK).read_text() in ("", mark)
    except OSError:
        return False

"""Several processes, on one machine or many, share a list of boxes: a box is one process's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from common.errors import Busy, Incomplete, NotYet
from common.files import alone
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
    return alone(folder / LOCK, otherwise=otherwise)


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


def is_still(folder: Path, mark: str) -> bool:
    """Return whether the process with this `common.files.mark` works on the folder of a box.

    Only another process may ask: to read the file of one's own lock would let go of the lock.
    """
    try:
        # empty where the file system has no locks
        return (folder / LOCK).read_text() in ("", mark)
    except OSError:
        return False

"""Apply a function to many items, in processes of this machine or on the workers of a crew."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from typing import TypeVar

from common.errors import FileError
from common.infer.machines.crew import Crew, Tally
from common.infer.made_by import refuse_other_scoring, scoring_hash
from common.stopping import SIGNALS, never
from common.talk import progress

Item = TypeVar("Item")
Result = TypeVar("Result")


Workers = int | Crew
"""Number of processes of this machine, or the workers of a Dask scheduler."""


def parallel(
    function: Callable[[Item], Result], items: Sequence[Item], workers: Workers = 1
) -> list[Result]:
    """Return the results in the order of the items.

    Raises FileError if a process was killed or runs other code than this one, or where an item
    failed on each try of a crew.
    """
    if isinstance(workers, Crew):
        return _by_crew(function, items, workers)
    workers = min(workers, len(items))
    results = []
    with progress(len(items)) as bar, closing(_results(function, items, workers)) as coming:
        for result in coming:
            results.append(result)
            bar.update()
    return results


def _results(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Generator[Result]:
    if workers <= 1:
        yield from map(function, items)
        return
    # spawn: torch and zarr have threads by now, which a forked process would be without
    context = get_context("spawn")
    others = set(active_children())
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_follow) as pool:
            try:
                yield from pool.map(partial(apply_to_one, function, scoring_hash()), items)
            except BaseException:
                # told to stop, say: else what they work on is waited for, minutes perhaps
                for process in set(active_children()) - others:
                    process.kill()
                raise
    except BrokenProcessPool as error:
        raise FileError(
            f"one of {workers} processes was killed, most likely for want of memory; "
            "write fewer --workers"
        ) from error


def _follow() -> None:
    """Let the process that started this one say when it ends, and end with it if that is killed."""
    for number in SIGNALS:  # a scheduler sends them to all
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_caller, daemon=True).start()


def _end_with_caller() -> None:
    caller = parent_process()
    assert caller is not None
    caller.join()
    os._exit(1)


def _by_crew(function: Callable[[Item], Result], items: Sequence[Item], crew: Crew) -> list[Result]:
    results: dict[int, Result] = {}
    with progress(len(items)) as bar:
        failures = crew.run(
            partial(apply, function, scoring_hash()),
            range(len(items)),
            payload=lambda numbers: [(number, items[number]) for number in numbers],
            done=results.__setitem__,
            tell=lambda tally: bar.update(tally.done - bar.n),
            tally=Tally(len(items), 0),
            stopped=never,
        )
    if failures:
        texts = [f"{failure.error} (on {failure.where})" for failure in failures]
        raise FileError("\n".join(dict.fromkeys(texts)))
    return [results[number] for number in range(len(items))]


def apply(
    function: Callable[[Item], Result], callers: str, items: Sequence[tuple[int, Item]]
) -> Iterator[tuple[int, Result]]:
    """Apply a function to numbered items, in a worker of a crew. Raises as `apply_to_one` does."""
    for number, item in items:
        yield number, apply_to_one(function, callers, item)


def apply_to_one(function: Callable[[Item], Result], callers: str, item: Item) -> Result:
    """Apply a function to an item, in another process than the caller's.

    callers: `common.infer.made_by.scoring_hash` of the caller. Raises FileError if the code or the
        libraries of this process are others.
    """
    refuse_other_scoring(callers)
    return function(item)

"""Apply a function to many items, in processes of this machine or on the workers of a crew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

from common.errors import FileError
from common.infer.machines.crew import Crew, Tally
from common.infer.made_by import refuse_other_scoring, scoring_hash
from common.stopping import never
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
    with progress(len(items)) as bar:
        for result in _results(function, items, workers):
            results.append(result)
            bar.update()
    return results


def _results(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    if workers <= 1:
        yield from map(function, items)
        return
    # spawn: torch and zarr have threads by now, which a forked process would be without
    context = get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            yield from pool.map(partial(apply_to_one, function, scoring_hash()), items)
    except BrokenProcessPool as error:
        raise FileError(
            f"one of {workers} processes was killed, most likely for want of memory; "
            "write fewer --workers"
        ) from error


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

"""The same function for many items, in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from common.errors import FileError
from common.talk import progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int = 1
) -> list[Result]:
    """Results in the order of the items. Raises FileError if a process was killed."""
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
            yield from pool.map(function, items)
    except BrokenProcessPool as error:
        raise FileError(
            f"one of {workers} processes was killed, most likely for want of memory; "
            "write fewer --workers"
        ) from error

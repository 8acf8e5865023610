"""How long a scheduler's schedule is: as many epochs as the run has, unless it is told otherwise.

A schedule that is shorter than its run raises in the middle of it, or trains at rate 0; one that is
longer never comes to its end. So its length need not be written, and where it was written as
`epochs` it follows when the command line changes them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

HORIZONS = (
    "T_max",
    "total_steps",
    "total_iters",
    "max_iters",
    "max_epochs",
    "max_steps",
    "num_epochs",
    "n_epochs",
    "num_training_steps",
    "epochs",
)
"""Parameters of schedulers that tell their length, in epochs: they are stepped once an epoch."""

DECAYS_TO_NOTHING = ("PolynomialLR",)
"""Schedulers whose default length, 5, would train the rest of the run at rate 0."""


def with_horizon(
    scheduler: Callable, kwargs: Mapping[str, Any], *, epochs: int, before: int | None
) -> dict[str, Any]:
    """scheduler_kwargs in which the schedule is as long as the run.

    Args:
        scheduler: a class or function, or a functools.partial of one.
        kwargs: as they are given; what they name stays, but for what follows `epochs`.
        epochs: of the run.
        before: epochs that the configuration was written for: a length equal to it follows
            `epochs`; None if nothing follows.
    """
    filled = dict(kwargs)
    given = filled
    if isinstance(scheduler, functools.partial):
        given = {**scheduler.keywords, **filled}
        scheduler = scheduler.func
    lengths = _lengths(scheduler)
    named = [parameter.name for parameter in lengths if parameter.name in given]
    if not named:
        return filled | dict.fromkeys(_left_out(scheduler, lengths), epochs)
    for name in named:
        if before is not None and given[name] == before:
            filled[name] = epochs
    if before is not None and _is_product(given, before):
        filled["total_steps"] = epochs  # it goes before epochs and steps_per_epoch
    return filled


def named_in(overrides: Sequence[str], settings: Mapping[str, Any]) -> Collection[str]:
    """The names within scheduler_kwargs that overrides give."""
    names = set(settings.get("scheduler_kwargs") or {})
    for override in overrides:
        path, _, written = override.partition("=")
        setting, _, key = path.strip().replace("-", "_").partition(".")
        if setting != "scheduler_kwargs":
            continue
        names |= {key} if key else {name for name in HORIZONS if name in written}
    return names


def _lengths(scheduler: Callable) -> list[inspect.Parameter]:
    """The parameters of a scheduler that tell its length, as HORIZONS orders them."""
    try:
        parameters = inspect.signature(scheduler).parameters
    except (TypeError, ValueError):  # what is no function, or one written in C
        return []
    return [parameters[name] for name in HORIZONS if name in parameters]


def _left_out(scheduler: Callable, lengths: Sequence[inspect.Parameter]) -> list[str]:
    """The lengths to fill in where none is given: all that must be, else one that may be."""
    required = [parameter.name for parameter in lengths if parameter.default is parameter.empty]
    if required:
        return required
    decays = getattr(scheduler, "__name__", "") in DECAYS_TO_NOTHING
    optional = [parameter.name for parameter in lengths if decays or parameter.default is None]
    return optional[:1]


def _is_product(given: Mapping[str, Any], epochs: int) -> bool:
    """Whether OneCycleLR's epochs and steps_per_epoch make up so many steps."""
    if given.get("total_steps") is not None:
        return False
    steps_per_epoch = given.get("steps_per_epoch")
    if not isinstance(steps_per_epoch, int) or not isinstance(given.get("epochs"), int):
        return False
    return given["epochs"] * steps_per_epoch == epochs

"""How long a scheduler's schedule is: as many steps as the run has, unless it is told otherwise.

A schedule that is shorter than its run raises in the middle of it, or trains at rate 0; one that is
longer never comes to its end. So its length need not be written, and where it was written as
`epochs` it follows when the command line changes them. A schedule has a step for each epoch, or
for each iteration with scheduler_step = "iteration".
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from common.config.overrides import taken_apart

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
"""Parameters of schedulers that tell their length, in steps of the scheduler."""

DECAYS_TO_NOTHING = ("PolynomialLR",)
"""Schedulers whose default length, 5, would train the rest of the run at rate 0."""


class Length(NamedTuple):
    """How long a run is, and how often its scheduler is stepped."""

    epochs: int
    iterations_per_epoch: int
    scheduler_step: str
    """"epoch" or "iteration"."""

    @property
    def iterations(self) -> int:
        """Optimiser steps of the run."""
        return self.epochs * self.iterations_per_epoch

    @property
    def steps(self) -> int:
        """Steps of the scheduler in the run."""
        return self.epochs if self.scheduler_step == "epoch" else self.iterations


def with_horizon(
    scheduler: Callable, kwargs: Mapping[str, Any], length: Length, written: Length
) -> dict[str, Any]:
    """scheduler_kwargs in which the schedule is as long as the run.

    Args:
        scheduler: a class or function, or a functools.partial of one.
        kwargs: as they are given; what they name stays, but for what follows the run.
        length: of the run.
        written: of the run that the configuration was written for. What is equal to its epochs or,
            where the scheduler is stepped by iterations, to its iterations, follows `length`.
    """
    follows = {written.epochs}
    if length.scheduler_step == "iteration":
        follows.add(written.iterations)
    filled = dict(kwargs)
    given = filled
    if isinstance(scheduler, functools.partial):
        given = {**scheduler.keywords, **filled}
        scheduler = scheduler.func
    lengths = _lengths(scheduler)
    named = [parameter.name for parameter in lengths if parameter.name in given]
    if not named:
        return filled | dict.fromkeys(_left_out(scheduler, lengths), length.steps)
    if _product(given) in follows:
        # it goes before epochs and steps_per_epoch
        return filled | {"total_steps": length.steps}
    for name in named:
        if given[name] in follows:
            filled[name] = length.steps
    return filled


def named_in(overrides: Sequence[str], settings: Mapping[str, Any]) -> Collection[str]:
    """The names within scheduler_kwargs that overrides give."""
    given = settings.get("scheduler_kwargs")
    names = set(given) if isinstance(given, Mapping) else set()  # the checks tell of another thing
    for override in map(taken_apart, overrides):
        if override.name != "scheduler_kwargs":
            continue
        written = override.written or ""
        names |= set(override.keys) or {name for name in HORIZONS if name in written}
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


def _product(given: Mapping[str, Any]) -> int | None:
    """The steps that OneCycleLR's epochs and steps_per_epoch make up; None if they do not."""
    if given.get("total_steps") is not None:
        return None
    steps_per_epoch = given.get("steps_per_epoch")
    if not isinstance(steps_per_epoch, int) or not isinstance(given.get("epochs"), int):
        return None
    return given["epochs"] * steps_per_epoch

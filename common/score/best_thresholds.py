"""Find the threshold, and the options of instance_func, that score best for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from common.score.trials import COARSE, DEFAULT, Trial, Tried, try_all
from common.score.workers import Workers


@dataclass(frozen=True)
class Tuned:
    """The best threshold of one class, and how good it is."""

    name: str
    threshold: float
    score: float
    """The challenge's score of the class at that threshold, pooled over all crops."""
    before: float
    """The score at the threshold DEFAULT."""
    crops: tuple[str, ...] = ()
    """The crops that the threshold was chosen on."""
    by_others: float | None = None
    """Score with thresholds chosen on other crops, see `Tried.by_others`; None without folds."""
    found: float = 0.0
    """Fraction of the voxels of its crops that is positive at the threshold."""
    annotated: float = 0.0
    """Fraction of the same voxels that is annotated as positive."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of instance_func that score better than its defaults."""


def search(
    trials: Sequence[Trial],
    workers: Workers = 1,
    folds: int = 0,
    *,
    options: Mapping[str, Sequence[Any]] | None = None,
) -> list[Tuned]:
    """Return the best threshold and options of each class that has a positive voxel.

    Each candidate is processed and scored as `process` and `evaluate` do it. What counts is the
    challenge's score of the class, pooled over the crops.

    Args:
        trials: each class in each of its crops, at the thresholds of COARSE.
        workers: processes, or a crew.
        folds: of a cross-validation over crops; 0 for none.
        options: values to try for each argument of instance_func. An argument is chosen at the best
            threshold, with the arguments before it as they were chosen; then the threshold is
            chosen again.
    """
    tried = _thresholds(trials, workers)
    before = {name: of_class.score(DEFAULT) for name, of_class in tried.items()}
    chosen = _options(trials, tried, options or {}, workers)
    again = []
    for trial in _with_options(trials, chosen):
        again.append(replace(trial, thresholds=tuple(tried[trial.name].counts)))
    # another threshold may be the best with them; the one from before is among these
    tried |= try_all(again, workers)
    tuned = []
    for name, of_class in tried.items():
        best = _tuned(name, of_class, folds, chosen.get(name, {}))
        tuned.append(replace(best, before=before[name]))
    return tuned


def _tuned(name: str, tried: Tried, folds: int, options: dict[str, Any]) -> Tuned:
    """Return the best threshold of a class among those that were tried with some options."""
    threshold = tried.best()
    return Tuned(
        name=name,
        threshold=threshold,
        score=tried.score(threshold),
        before=tried.score(DEFAULT),
        crops=tuple(tried.crops),
        by_others=tried.by_others(folds),
        found=tried.found[threshold] / tried.voxels,
        annotated=tried.annotated / tried.voxels,
        options=options,
    )


def _thresholds(trials: Sequence[Trial], workers: Workers) -> dict[str, Tried]:
    """Try COARSE for each class, then the middles around its best threshold."""
    # two rounds of 13 candidates in all: each costs a run of process and evaluate over all crops
    tried = try_all(trials, workers)
    finer = []
    for trial in trials:
        if trial.name in tried:
            thresholds = middles(tried[trial.name].best())
            finer.append(replace(trial, thresholds=thresholds))
    for name, more in try_all(finer, workers).items():
        tried[name].counts |= more.counts
        tried[name].found |= more.found
    return tried


Options = dict[str, dict[str, Any]]
"""For each class, arguments of instance_func by name."""


def _options(
    trials: Sequence[Trial],
    tried: Mapping[str, Tried],
    options: Mapping[str, Sequence[Any]],
    workers: Workers,
) -> Options:
    """Return for each class the options that score better than the defaults at its threshold."""
    best = {name: of_class.score(of_class.best()) for name, of_class in tried.items()}
    at_best = []
    for trial in trials:
        if trial.name in tried and trial.makes_objects:
            at_best.append(replace(trial, thresholds=(tried[trial.name].best(),)))
    chosen: Options = {}
    for option, values in options.items():
        better: Options = {}
        for value in values:
            candidate = _candidate(at_best, chosen, option, value)
            for name, of_class in try_all(_with_options(at_best, candidate), workers).items():
                score = of_class.score(of_class.best())
                if score > best[name]:
                    best[name] = score
                    better[name] = candidate[name]
        chosen |= better
    return chosen


def _candidate(trials: Sequence[Trial], chosen: Options, option: str, value: Any) -> Options:
    """Return the options of each class with one of them set to another value.

    Classes whose option has that value already, chosen or by default, are left out.
    """
    candidate = {}
    for trial in trials:
        before = trial.options | chosen.get(trial.name, {})
        if (trial.defaults | before).get(option) != value:
            candidate[trial.name] = before | {option: value}
    return candidate


def _with_options(trials: Sequence[Trial], options: Options) -> list[Trial]:
    """Return the trials of classes that have options, with these options."""
    with_options = []
    for trial in trials:
        if trial.name in options:
            with_options.append(replace(trial, options=options[trial.name]))
    return with_options


def middles(threshold: float) -> tuple[float, ...]:
    """Return the middles between a threshold of COARSE and its neighbours, 0 and 1 outermost."""
    tried = (0.0, *COARSE, 1.0)
    place = tried.index(threshold)
    neighbours = (tried[place - 1], tried[place + 1])
    return tuple(round((threshold + neighbour) / 2, 4) for neighbour in neighbours)

"""Measure each side of a comparison, and how sure the difference of two sides is.

What is compared is the challenge's score where `evaluate` scored the same crops for all runs, else
a metric of the validation at each run's best epoch. A difference is judged over

    seeds      where both sides are several seeds: Welch's t-test
    crops      where the same crops are scored for both: drawn with replacement, the same draws for
               both sides, see `common.score.interval`
    classes    where only the validation is there: the t-test of the differences of each class
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from common import talk
from common.errors import UserError
from common.runs.find import HISTORY
from common.runs.history import METRICS
from common.runs.reading import Reading
from common.runs.sides import Side
from common.score.challenge import SKIPPED, ChallengeScore, Counts
from common.score.interval import LEVEL, CountTable, Interval, redraws, student
from common.score.result import OVERALL, Scores
from common.score.tables import in_crops

SCORE = "score"
"""The challenge's, of the files of `evaluate`."""


@dataclass(frozen=True)
class CropDraws:
    """The figures of a measure on bootstrap draws of crops."""

    figures: np.ndarray
    """(draws, runs, 1 + classes)."""
    crops: tuple[int, ...]
    """(1 + classes,) number of crops behind each figure."""


@dataclass(frozen=True)
class Measure:
    """A figure over all classes, and of each class, for every run."""

    metric: str
    source: str
    """File that the metric is read from: history.csv, or one of `evaluate`."""
    classes: tuple[str, ...]
    values: np.ndarray
    """(runs, 1 + classes); column 0 is the figure over all classes."""
    groups: tuple[np.ndarray, ...]
    """For each side the row numbers of its runs."""
    draws: CropDraws | None = None
    """None for a metric of the validation."""

    @property
    def of_validation(self) -> bool:
        """Whether it is a metric of the validation in training."""
        return self.source == HISTORY

    def of(self, side: int) -> np.ndarray:
        """Return (1 + classes,): the mean over the seeds of a side."""
        return self.values[self.groups[side]].mean(0)

    def spread(self, side: int) -> float | None:
        """Return the standard deviation over the seeds of a side; None for one seed."""
        values = self.values[self.groups[side], 0]
        return float(values.std(ddof=1)) if len(values) > 1 else None

    def basis(self, a: int, b: int) -> str:
        """Return what the difference of two sides is judged over, in words."""
        seeds = [len(self.groups[side]) for side in (a, b)]
        if min(seeds) > 1:
            return f"Welch's t over {seeds[0]} and {seeds[1]} seeds"
        if self.draws:
            return f"paired bootstrap over {self.draws.crops[0]} crops"
        return f"paired t over {len(self.classes)} classes"

    def interval(self, a: int, b: int, column: int = 0, *, level: float = LEVEL) -> Interval | None:
        """Return the interval of side a minus side b in a column; None if one unit is all."""
        rows_a = self.groups[a]
        rows_b = self.groups[b]
        if min(len(rows_a), len(rows_b)) > 1:
            return welch(self.values[rows_a, column], self.values[rows_b, column], level)
        # one seed says nothing about another one: what is left are the crops, or the classes
        difference = self.of(a) - self.of(b)
        if self.draws:
            # a hard crop is hard for both sides: on the same draws that cancels out
            figures = self.draws.figures[:, :, column]
            drawn = figures[:, rows_a].mean(1) - figures[:, rows_b].mean(1)
            return student(difference[column], drawn, self.draws.crops[column], level)
        # one class of one validation is one number, of which nobody knows how it would vary
        return None if column else paired(difference[1:], level)

    def ordered(self, sides: Sequence[int]) -> Measure:
        """Return the measure with its sides in another order."""
        return replace(self, groups=tuple(self.groups[side] for side in sides))


def welch(first: np.ndarray, second: np.ndarray, level: float) -> Interval | None:
    """Return the interval of the difference of two means, each of at least two values.

    None if no value varies: equal seeds are no measure of chance.
    """
    if not np.ptp(first) and not np.ptp(second):
        return None
    with _nearly_equal_values():
        test = stats.ttest_ind(first, second, equal_var=False)
        return _limits(test, level)


def paired(differences: np.ndarray, level: float) -> Interval | None:
    """Return the interval of the mean of differences; None for fewer than two."""
    if len(differences) < 2:
        return None
    with _nearly_equal_values():
        return _limits(stats.ttest_1samp(differences, 0), level)


def _nearly_equal_values() -> warnings.catch_warnings:
    """Silence SciPy's warning about values that are equal but for rounding."""
    return warnings.catch_warnings(action="ignore", category=RuntimeWarning)


def _limits(test: Any, level: float) -> Interval:
    limits = test.confidence_interval(level)
    return float(limits.low), float(limits.high)


# What there is to compare


def measured(sides: Sequence[Side], metric: str = "") -> tuple[Measure, list[str]]:
    """Return the figures of all runs, and sentences about them.

    metric: without it the score is taken if all runs have it, else the best_metric that all of them
        have, else dice. Raises UserError for one that the runs do not have.
    """
    if metric not in (SCORE, "", *METRICS):
        raise UserError(f"metric '{metric}'; write one of {', '.join([SCORE, *METRICS])}")
    readings: list[Reading] = []
    groups = []
    for side in sides:
        groups.append(np.arange(len(side.members)) + len(readings))
        readings += side.members
    file, reason = scored_alike(readings)
    if metric == SCORE and not file:
        raise UserError(
            f"metric '{SCORE}': {reason or 'none of these runs is scored'}; "
            "evaluate all of them on the same crops"
        )
    if file and metric in ("", SCORE):
        return _of_scores(readings, file, tuple(groups)), stale_scores(readings, file)
    measure = _of_history(readings, metric or _usual_metric(readings), tuple(groups))
    sentences = [f"the challenge's score is not compared: {reason}"] if reason else []
    return measure, sentences + _known_to_some(readings, measure)


def _usual_metric(readings: Sequence[Reading]) -> str:
    metrics = {reading.best_metric for reading in readings} - {"loss"}
    return metrics.pop() if len(metrics) == 1 else "dice"


def _of_history(
    readings: Sequence[Reading], metric: str, groups: tuple[np.ndarray, ...]
) -> Measure:
    """Measure a metric of the validation, over the classes that all runs have."""
    by_run = [reading.per_class(metric) for reading in readings]
    common = set(by_run[0]).intersection(*by_run)
    classes = tuple(name for name in by_run[0] if name in common)
    if not classes:
        names = ", ".join(reading.name for reading in readings)
        raise UserError(
            f"{names[:200]}: no class has a validation {metric} in all of them; "
            "give runs that validate on the same classes"
        )
    table = []
    for by_class in by_run:
        table.append([by_class[name] for name in classes])
    values = np.array(table)
    return Measure(
        metric=metric,
        source=HISTORY,
        classes=classes,
        values=np.column_stack([values.mean(1), values]),
        groups=groups,
    )


def _known_to_some(readings: Sequence[Reading], measure: Measure) -> list[str]:
    """Return a sentence about classes that only some runs have, which the mean leaves out."""
    having: dict[str, list[str]] = {}
    for reading in readings:
        for name in reading.per_class(measure.metric):
            having.setdefault(name, []).append(reading.name)
    partial = [name for name in having if name not in measure.classes]
    if not partial:
        return []
    listed = [f"{name} of {talk.some(having[name], 3)}" for name in partial]
    return [
        f"{measure.metric} is the mean over the {len(measure.classes)} classes that all runs have "
        f"it of ({talk.some(measure.classes)}); not in it: {talk.some(listed, 4)}"
    ]


def scored_alike(readings: Sequence[Reading]) -> tuple[str, str]:
    """Return the name of a file of scores that all runs have for common crops, and "".

    Without such a file it returns "" and the reason, which is "" if no run is scored.
    """
    if not any(reading.scores for reading in readings):
        return "", ""
    for reading in readings:
        if not reading.scores:
            return "", f"{reading.name} is not scored"
    for file in readings[0].scores:  # that of the validation crops comes first
        if not all(file in reading.scores for reading in readings):
            continue
        cells = [set(counted(reading.scores[file])) for reading in readings]
        if set.intersection(*cells):
            return file, ""
        for reading, of_run in zip(readings, cells, strict=True):
            if not of_run:
                return "", _nothing_counted(reading, file)
    return "", "the runs are not scored on the same crops"


def counted(scores: Scores) -> dict[tuple[str, str], Counts]:
    """Return the counts by (crop, class), without those that the metric left out.

    A class that is left out of a crop, for too many predicted objects, has no counts, and would be
    as good as one in which nothing is wrong.
    """
    counts = scores.counts()
    return {cell: of_cell for cell, of_cell in counts.items() if of_cell.status != SKIPPED}


def _nothing_counted(reading: Reading, file: str) -> str:
    """Return why a file has no counts to compare."""
    if reading.scores[file].counts():
        return (
            f"of {reading.name} the metric left out every class of {file}, for too many predicted "
            "objects"
        )
    return f"{reading.name} has a {file} without counts, of an older evaluate"


def _of_scores(readings: Sequence[Reading], file: str, groups: tuple[np.ndarray, ...]) -> Measure:
    """Measure the challenge's score over the crops and classes that all runs have."""
    # runs may be scored on other crops: only what all have says which of them is better
    cells = [counted(reading.scores[file]) for reading in readings]
    common = sorted(set(cells[0]).intersection(*cells))
    tables = []
    for counts in cells:
        tables.append(CountTable.of((crop, name, counts[crop, name]) for crop, name in common))
    crops_of = [name for _, name in common]
    classes = tuple(name for name in readings[0].scores[file].classes if name in crops_of)
    # the figure over all classes, else that of the only kind of classes that there is
    score = tables[0].score()
    overall = next(key for key in OVERALL if not math.isnan(getattr(score, key)))
    # the same draws for all runs, so that their differences can be taken draw by draw
    draws = []
    for times in redraws(len(tables[0].crops)):
        draws.append([_figures(table.score(times), overall, classes) for table in tables])
    return Measure(
        metric=SCORE,
        source=file,
        classes=classes,
        values=np.array([_figures(table.score(), overall, classes) for table in tables]),
        groups=groups,
        draws=CropDraws(
            figures=np.array(draws),
            crops=(len(tables[0].crops), *(crops_of.count(name) for name in classes)),
        ),
    )


def _figures(score: ChallengeScore, overall: str, classes: Sequence[str]) -> list[float]:
    """Return a row of a measure; NaN for a class that none of the drawn crops has."""
    figures = [getattr(score, overall)]
    for name in classes:
        label = score.label_scores.get(name)
        figures.append(label.score if label else math.nan)
    return figures


def stale_scores(readings: Sequence[Reading], file: str) -> list[str]:
    """Return sentences about scores of other checkpoints, definitions or crops than they seem."""
    sentences = []
    for reading in readings:
        provenance = reading.scores[file].provenance
        checkpoints = (provenance and provenance.checkpoints) or ()
        for checkpoint in checkpoints:
            if checkpoint.networks:
                sentences.append(f"{reading.name} is scored by an ensemble, {checkpoint.metric}")
        epochs = [checkpoint.epoch for checkpoint in checkpoints if not checkpoint.networks]
        if epochs and reading.best_epoch and set(epochs) != {reading.best_epoch}:
            at = ", ".join(map(str, epochs))
            sentences.append(
                f"{reading.name} was scored at epoch {at} and is best at {reading.best_epoch}: "
                "predict and evaluate it again"
            )
        sentences += _left_out_sentences(reading, file)
    definitions = {reading.scores[file].metric: None for reading in readings}
    if len(definitions) > 1:
        sentences.append(
            f"the runs are scored by other definitions ({'; '.join(definitions)}): evaluate all of "
            "them again with one"
        )
    cells = {frozenset(reading.scores[file].counts()) for reading in readings}
    if len(cells) > 1:
        sentences.append(
            "the runs were not scored on all the same crops and classes: what all have is compared"
        )
    return sentences


def _left_out_sentences(reading: Reading, file: str) -> list[str]:
    """Return a sentence about classes that the metric left out, which makes a score look better."""
    listed = in_crops(reading.scores[file], "left_out")
    if not listed:
        return []
    return [
        f"{reading.name} predicts too many objects of {talk.some(listed)}: the metric leaves them "
        "out, and a class left out of every crop counts 1.0 in its own score; no run is compared "
        "there"
    ]

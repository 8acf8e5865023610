"""The interval of a score over crops: what it would be with other crops of the same kind.

Crops are drawn with replacement and their counts pooled anew (bootstrap). The interval is

    score +- t x standard deviation of the draws x sqrt(n / (n - 1))

with Student's t of n - 1 degrees of freedom for n crops. Percentiles of the draws, the usual
choice, are too narrow for a handful of crops (Hesterberg 2015, What teachers should know about the
bootstrap). Crops that all score the same give an interval without width, as with any bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from common.score.challenge import ChallengeScore, Counts, InstanceCounts, combine

LEVEL = 0.95
"""Confidence level of intervals."""

DRAWS = 1000
"""Bootstrap draws: a standard deviation to about 2 %."""

SEED = 0
"""Seed of the draws: the same data give the same interval."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class CountTable:
    """The counts of each class in each crop as an array: pooling drawn crops is one product."""

    crops: tuple[str, ...]
    classes: tuple[str, ...]
    is_instance: tuple[bool, ...]
    """Whether each class is an instance class."""
    counts: np.ndarray
    """(crops, classes, 6): evaluations, tp, fp, fn, hausdorff_norm_sum, n_hausdorff."""

    @classmethod
    def of(cls, evaluations: Iterable[tuple[str, str, Counts]]) -> CountTable:
        """Make the table of (crop, class, counts)."""
        evaluations = list(evaluations)
        crops = {crop: None for crop, _, _ in evaluations}
        kinds = {name: isinstance(counts, InstanceCounts) for _, name, counts in evaluations}
        row_of = {crop: row for row, crop in enumerate(crops)}
        column_of = {name: column for column, name in enumerate(kinds)}
        table = np.zeros((len(crops), len(kinds), 6))
        for crop, name, counts in evaluations:
            table[row_of[crop], column_of[name]] += _as_row(counts)
        return cls(tuple(crops), tuple(kinds), tuple(kinds.values()), table)

    def score(self, times: np.ndarray | None = None) -> ChallengeScore:
        """Return the challenge's score of the crops.

        times: (crops,) how often each crop counts; once unless given. Counts are pooled first,
            which gives the same as combining all evaluations.
        """
        if times is None:
            times = np.ones(len(self.crops))
        pooled = np.dot(times[None], self.counts.reshape(len(times), -1))
        rows = pooled.reshape(self.counts.shape[1:]).tolist()
        evaluations = []
        for name, is_instance, row in zip(self.classes, self.is_instance, rows, strict=True):
            if row[0]:
                evaluations.append((name, _from_row(row, is_instance)))
        return combine(evaluations)


def redraws(units: int) -> np.ndarray:
    """Return (DRAWS, units): how often each unit is drawn when `units` are drawn with replacement.

    The draws are always the same, so that several runs can be compared draw by draw.
    """
    generator = np.random.default_rng(SEED)
    return generator.multinomial(units, np.full(units, 1 / units), DRAWS).astype(float)


# How often the interval holds the true score, nominally 0.95, by `python -m bench.interval` on
# 2026-11-26 (4000 data sets each; a crop's IoU is skewed, Beta(4, 1.3)):
#
#                  crops of one size               log-normal sizes, sigma 0.7
#     crops        3      5      10     40         3      5      10     40
#     this one     0.923  0.925  0.939  0.948      0.920  0.910  0.914  0.929
#     percentiles  0.733  0.825  0.895  0.939      0.733  0.807  0.881  0.928
#
# On the logit scale it is 0.93 to 0.96, but scores of exactly 0 and 1, which are common, have no
# logit, and `compare` needs the interval of a difference, by the same rule.
def student(
    estimate: float, draws: np.ndarray, units: int, level: float = LEVEL
) -> Interval | None:
    """Return the interval of an estimate from its bootstrap draws, see the head of the module.

    Args:
        estimate: the figure of the data as they are.
        draws: (draws,) the figure of the drawn data; NaN, where nothing was to score, is left out.
        units: how many crops, or classes, a draw consists of.
        level: of confidence.

    Returns:
        None for fewer than two units, or where nothing can be estimated.
    """
    known = draws[~np.isnan(draws)]
    if units < 2 or not len(known) or math.isnan(estimate):
        return None
    # the draws vary as n values about their own mean do: n / (n - 1) as in a sample's variance
    deviation = float(np.std(known)) * math.sqrt(units / (units - 1))
    reach = float(stats.t.ppf((1 + level) / 2, units - 1)) * deviation
    return float(estimate) - reach, float(estimate) + reach


def over_crops(
    table: CountTable, figures: Callable[[ChallengeScore], Sequence[float]]
) -> list[Interval | None]:
    """Return the interval of each figure; None for all of them with fewer than two crops.

    figures: takes figures, each in [0, 1], from a score of the crops.
    """
    n_crops = len(table.crops)
    if n_crops < 2:
        return [None for _ in figures(table.score())]
    estimates = figures(table.score())
    draws = np.array([figures(table.score(times)) for times in redraws(n_crops)], float)
    intervals = []
    for estimate, drawn in zip(estimates, draws.T, strict=True):
        interval = student(estimate, drawn, n_crops)
        if interval:
            low, high = interval
            interval = (max(low, 0.0), min(high, 1.0))
        intervals.append(interval)
    return intervals


def _as_row(counts: Counts) -> list[float]:
    row: list[float] = [1, counts.tp, counts.fp, counts.fn]
    if isinstance(counts, InstanceCounts):
        return [*row, counts.hausdorff_norm_sum, counts.n_hausdorff]
    return [*row, 0, 0]


def _from_row(row: list, is_instance: bool) -> Counts:
    """Make counts of a row of the table; they stay floats, which are exact up to 2^53."""
    _, tp, fp, fn, hausdorff_norm_sum, n_hausdorff = row
    if not is_instance:
        return Counts(tp, fp, fn)
    return InstanceCounts(
        tp, fp, fn, hausdorff_norm_sum=hausdorff_norm_sum, n_hausdorff=n_hausdorff
    )

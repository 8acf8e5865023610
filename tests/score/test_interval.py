"""Intervals over crops: against the definition word for word, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from common.score import challenge, interval
from common.score.challenge import Counts, InstanceCounts
from common.score.interval import CountTable


def random_counts(seed: int, crops: int = 6) -> list[tuple[str, str, Counts]]:
    """Two classes of each kind, each in about two thirds of the crops."""
    rng = np.random.default_rng(seed)
    evaluations = []
    for crop in range(crops):
        for name in ("mito", "nuc", "er", "pm"):
            tp, fp, fn = rng.integers(0, 9, 3).tolist()
            distances = float(rng.uniform(0, tp + fp + fn))
            if rng.random() < 0.3:
                continue
            counts = Counts(tp, fp, fn)
            if name in ("mito", "nuc"):
                counts = InstanceCounts(
                    tp, fp, fn, hausdorff_norm_sum=distances, n_hausdorff=tp + fp + fn
                )
            evaluations.append((f"crop{crop}", name, counts))
    return evaluations


def student(scores: np.ndarray, truth: float) -> bool:
    """Whether the interval of a mean over crops holds the truth."""
    draws = interval.redraws(len(scores)) @ scores / len(scores)
    low, high = interval.student(scores.mean(), draws, len(scores))
    return low <= truth <= high


def percentiles(scores: np.ndarray, truth: float) -> bool:
    draws = interval.redraws(len(scores)) @ scores / len(scores)
    low, high = np.quantile(draws, [0.025, 0.975])
    return low <= truth <= high


@pytest.mark.parametrize(("crops", "least"), [(3, 0.90), (5, 0.90), (10, 0.91), (40, 0.92)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(crops, least):
    """Of 600 data sets with skewed scores; standard error 0.01, and skew costs up to 0.03."""
    rng = np.random.default_rng(0)
    inside = [student(rng.beta(4, 1.3, crops), 4 / 5.3) for _ in range(600)]
    assert least <= np.mean(inside) <= 0.98


def test_percentiles_of_three_crops_would_hold_it_three_times_of_four():
    rng = np.random.default_rng(0)
    inside = [percentiles(rng.beta(4, 1.3, 3), 4 / 5.3) for _ in range(600)]
    assert np.mean(inside) < 0.8


@pytest.mark.parametrize("crops", [3, 10, 40])
def test_the_interval_of_a_mean_is_about_that_of_students_t(crops):
    scores = np.random.default_rng(3).beta(4, 1.3, crops)
    draws = interval.redraws(crops) @ scores / crops
    found = interval.student(scores.mean(), draws, crops)
    reference = stats.t.interval(0.95, crops - 1, scores.mean(), stats.sem(scores))
    # 1000 draws give a standard error to 2 %, here to three of them
    assert np.diff(found) == pytest.approx(np.diff(reference), rel=0.07)
    assert np.mean(found) == pytest.approx(scores.mean())


def test_the_standard_error_is_that_of_scipys_bootstrap():
    scores = np.random.default_rng(3).gamma(2, 1, 30)
    low, high = interval.student(scores.mean(), interval.redraws(30) @ scores / 30, 30)
    reference = stats.bootstrap((scores,), np.mean, n_resamples=20000, rng=1).standard_error
    wanted = 2 * stats.t.ppf(0.975, 29) * reference * math.sqrt(30 / 29)
    assert high - low == pytest.approx(wanted, rel=0.07)


@pytest.mark.parametrize("seed", range(3))
def test_intervals_are_those_of_scores_of_crops_drawn_again(seed):
    """Against combining the evaluations of the drawn crops one by one."""
    evaluations = random_counts(seed)
    table = CountTable.of(evaluations)

    def scores_of(times: np.ndarray) -> float:
        pairs = []
        for crop, number in zip(table.crops, times.astype(int), strict=True):
            of_crop = [(name, counts) for place, name, counts in evaluations if place == crop]
            pairs += number * of_crop
        return challenge.combine(pairs).overall_score

    n_crops = len(table.crops)
    draws = np.array([scores_of(times) for times in interval.redraws(n_crops)])
    low, high = interval.student(scores_of(np.ones(n_crops)), draws, n_crops)
    (found,) = interval.over_crops(table, lambda score: [score.overall_score])
    assert found == pytest.approx((max(0, low), min(1, high)))


def test_a_table_has_the_score_of_its_evaluations():
    evaluations = random_counts(7)
    found = CountTable.of(evaluations).score()
    wanted = challenge.combine((name, counts) for _, name, counts in evaluations)
    assert found.overall_score == pytest.approx(wanted.overall_score, rel=1e-12)
    assert found.label_scores.keys() == wanted.label_scores.keys()


def test_counts_are_pooled_over_the_crops_drawn():
    """One large crop and nine small ones: without the large one IoU is 0.1, with it nearly 0.9."""
    evaluations = [("large", "er", Counts(90_000, 10_000, 0))]
    evaluations += [(f"small{k}", "er", Counts(1, 9, 0)) for k in range(9)]
    table = CountTable.of(evaluations)
    without = np.ones(10)
    without[0] = 0
    assert table.score(without).overall_semantic_score == 0.1
    assert table.score().overall_semantic_score == pytest.approx(0.9, abs=0.001)


def test_the_same_crops_have_the_same_interval():
    assert np.array_equal(interval.redraws(5), interval.redraws(5))
    assert (interval.redraws(5).sum(1) == 5).all()


def test_intervals_of_scores_lie_between_0_and_1():
    table = CountTable.of([("a", "er", Counts(1, 9, 0)), ("b", "er", Counts(9, 1, 0))])
    (found,) = interval.over_crops(table, lambda score: [score.overall_semantic_score])
    assert found == (0, 1)


def test_a_draw_with_nothing_to_score_is_left_out():
    draws = np.array([0.2, math.nan, 0.4, math.nan])
    assert interval.student(0.3, draws, 5) == interval.student(0.3, draws[[0, 2]], 5)


def test_there_is_no_interval_from_one_crop_or_of_an_unknown_score():
    assert interval.student(0.5, np.array([0.5, 0.5]), 1) is None
    assert interval.student(math.nan, np.array([0.5, 0.6]), 2) is None
    assert interval.student(0.5, np.array([math.nan, math.nan]), 2) is None
    table = CountTable.of([("a", "er", Counts(1, 9, 0))])
    assert interval.over_crops(table, lambda score: [score.overall_semantic_score]) == [None]

"""Figures of quality against scikit-learn, scikit-image, SciPy and cases counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage
from skimage import metrics as skimage_metrics
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from common.score import quality
from common.score.challenge import contingency
from common.score.quality import ObjectCounts
from common.train import metrics


def labels(seed: int, noise: float = 0.0) -> np.ndarray:
    """Objects 1 to 7 and background; with noise some voxels have another id."""
    rng = np.random.default_rng(seed)
    found = np.argmax(
        ndimage.gaussian_filter(rng.standard_normal((8, 14, 15, 16)), (0, 2, 2, 2)), 0
    )
    return np.where(
        np.random.default_rng(seed + 1).random(found.shape) < noise,
        rng.integers(0, 8, found.shape),
        found,
    )


def row(*ids: int) -> np.ndarray:
    """A volume of one row of voxels."""
    return np.array(ids).reshape(1, 1, -1)


def test_metrics_are_scikit_learns():
    truth, prediction = np.random.default_rng(0).integers(0, 2, (2, 500))
    counts = [
        np.array([pair.sum()])
        for pair in (truth & prediction, ~truth & prediction, truth & ~prediction)
    ]
    found = metrics.metrics(*counts)
    references = {
        "dice": f1_score,
        "iou": jaccard_score,
        "precision": precision_score,
        "recall": recall_score,
    }
    assert found.keys() == references.keys()
    for name, reference in references.items():
        assert found[name][0] == pytest.approx(reference(truth, prediction), abs=1e-12)


def test_metrics_of_a_class_without_a_positive_voxel_are_unknown():
    found = metrics.metrics(np.array([0, 0, 0]), np.array([0, 9, 0]), np.array([0, 0, 4]))
    for value in found.values():
        assert np.isnan(value[:2]).all() and value[2] == 0


def test_panoptic_quality_of_a_drawn_case():
    """Object 1 is found with IoU 3/4, 2 is cut in halves, 3 is missed, one prediction is nowhere.

    The halves have IoU 1/2 each, which is not enough.
    """
    table = contingency(row(1, 1, 1, 1, 2, 2, 2, 2, 3, 0, 0), row(1, 1, 1, 0, 2, 2, 3, 3, 0, 0, 4))
    counts = quality.count_objects(table)
    assert counts == (1, 3, 2, 0.75)
    found = quality.panoptic([counts])
    assert found["sq"] == 0.75
    assert found["rq"] == pytest.approx(1 / (1 + 3 / 2 + 2 / 2))
    assert found["pq"] == pytest.approx(0.75 / 3.5)


@pytest.mark.parametrize("seed", range(5))
def test_objects_counted_are_those_of_all_pairs(seed):
    truth, prediction = labels(seed), labels(seed, 0.35)
    pairs = [(truth == i, prediction == j) for i in range(1, 8) for j in range(1, 8)]
    iou = np.array([(a & b).sum() / max(1, (a | b).sum()) for a, b in pairs])
    tp, fp, fn, iou_sum = quality.count_objects(contingency(truth, prediction))
    assert 0 < tp < 7 and tp == (iou > 0.5).sum()
    assert iou_sum == pytest.approx(iou[iou > 0.5].sum(), abs=1e-12)
    assert (tp + fn, tp + fp) == (len(set(truth.flat) - {0}), len(set(prediction.flat) - {0}))


@pytest.mark.parametrize(
    ("counts", "pq", "sq"),
    [
        (ObjectCounts(0, 3, 0, 0.0), math.nan, math.nan),
        (ObjectCounts(0, 1, 5, 0.0), 0, math.nan),
        (ObjectCounts(2, 0, 0, 2.0), 1, 1),
    ],
)
def test_panoptic_quality_is_unknown_without_truth_and_zero_where_nothing_was_found(counts, pq, sq):
    found = quality.panoptic([counts])
    assert (found["pq"], found["sq"]) == pytest.approx((pq, sq), nan_ok=True)


def test_panoptic_quality_pools_the_counts_of_crops():
    crops = [ObjectCounts(1, 0, 1, 0.75), ObjectCounts(2, 1, 0, 1.5)]
    assert quality.panoptic(crops) == quality.panoptic([ObjectCounts(3, 1, 1, 2.25)])


@pytest.mark.parametrize("seed", range(5))
def test_information_and_rand_error_are_scikit_images_on_the_arrays(seed):
    truth, prediction = labels(seed), labels(seed, 0.3)
    table = contingency(truth, prediction)
    reference = skimage_metrics.variation_of_information(truth, prediction, ignore_labels=(0,))
    assert quality.variation_of_information(table) == pytest.approx(reference, abs=1e-9)
    assert quality.rand_error(table) == pytest.approx(
        skimage_metrics.adapted_rand_error(truth, prediction)[0], abs=1e-12
    )


def test_an_object_cut_in_halves_costs_a_bit_of_split_and_two_joined_a_bit_of_merge():
    whole, halves = row(1, 1, 1, 1), row(5, 5, 9, 9)
    assert quality.variation_of_information(contingency(whole, halves)) == pytest.approx((1, 0))
    assert quality.variation_of_information(contingency(halves, whole)) == pytest.approx((0, 1))


def test_information_is_the_sum_over_pairs_of_ids():
    truth, prediction = row(0, 1, 1, 1, 2, 2, 3, 0), row(7, 7, 7, 0, 7, 8, 8, 8)
    inside = truth > 0
    split = merge = 0.0
    for t, p in zip(truth[inside], prediction[inside], strict=True):
        both = (truth[inside] == t) & (prediction[inside] == p)
        split -= math.log2(both.sum() / (truth[inside] == t).sum()) / 6
        merge -= math.log2(both.sum() / (prediction[inside] == p).sum()) / 6
    assert quality.variation_of_information(contingency(truth, prediction)) == pytest.approx(
        (split, merge), abs=1e-12
    )


def test_rand_error_is_that_of_counted_pairs_of_voxels():
    truth, prediction = row(0, 1, 1, 1, 2, 2, 3, 0), row(7, 7, 7, 0, 7, 8, 8, 8)
    t, p = truth[truth > 0], prediction[truth > 0]
    other = ~np.eye(len(t), dtype=bool)
    same_t, same_p = (t[:, None] == t) & other, (p[:, None] == p) & other
    precision, recall = ((same_t & same_p).sum() / same.sum() for same in (same_p, same_t))
    f_score = 2 * precision * recall / (precision + recall)
    assert quality.rand_error(contingency(truth, prediction)) == pytest.approx(
        1 - f_score, abs=1e-12
    )


def test_a_perfect_prediction_has_no_error_whatever_its_ids():
    truth = labels(0)
    table = contingency(truth, np.array([0, 90, 8, 7, 6, 5, 4, 3])[truth])
    assert quality.variation_of_information(table) == pytest.approx((0, 0), abs=1e-12)
    assert quality.rand_error(table) == 0
    assert quality.panoptic([quality.count_objects(table)])["pq"] == 1


def test_prediction_on_true_background_costs_no_information():
    truth, prediction = row(1, 1, 2, 0, 0), row(1, 1, 2, 0, 0)
    elsewhere = row(1, 1, 2, 3, 4)
    for figure in (quality.variation_of_information, quality.rand_error):
        assert figure(contingency(truth, prediction)) == figure(contingency(truth, elsewhere))


def test_information_and_rand_error_without_truth_are_unknown():
    table = contingency(row(0, 0, 0), row(1, 2, 0))
    assert np.isnan(quality.variation_of_information(table)).all() and math.isnan(
        quality.rand_error(table)
    )
    assert quality.count_objects(table) == (0, 2, 0, 0.0)

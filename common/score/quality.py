"""Figures of segmentation quality that are in general use, beside the challenge's own score.

Instances are judged from a contingency table (`score.contingency`): voxels shared by each truth id (row) and each predicted id
(column), row and column 0 being background. Ids are taken as they are: an id in two places is one object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse


def count_objects(table: sparse.csr_array) -> tuple[int, int, int, float]:
    """tp, fp, fn and the sum of the IoU of the tp, objects with IoU > 0.5 being matched; sum them over crops for `panoptic`.

    An object can have only one such partner (Kirillov et al. 2019, Panoptic Segmentation), so nothing is to be optimised.
    """
    truth, prediction = table.sum(1), table.sum(0)
    overlap = table[1:, 1:].tocoo()
    iou = overlap.data / (truth[1 + overlap.row] + prediction[1 + overlap.col] - overlap.data)
    matched = iou[iou > 0.5]
    tp = len(matched)
    return (
        tp,
        np.count_nonzero(prediction[1:]) - tp,
        np.count_nonzero(truth[1:]) - tp,
        float(matched.sum()),
    )


def panoptic(
    tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, iou_sum: np.ndarray
) -> dict[str, np.ndarray]:
    """Pq = sq x rq: panoptic, segmentation and recognition quality of each class at IoU > 0.5 (Kirillov et al. 2019).

    All NaN where there is no truth object; sq is NaN, but pq 0, where none was found.
    """
    tp, fp, fn, iou_sum = (np.asarray(count, float) for count in (tp, fp, fn, iou_sum))
    with np.errstate(invalid="ignore", divide="ignore"):
        size = tp + fp / 2 + fn / 2
        found = {"pq": iou_sum / size, "sq": iou_sum / tp, "rq": tp / size}
    return {name: np.where(tp + fn > 0, value, np.nan) for name, value in found.items()}


def variation_of_information(table: sparse.csr_array) -> tuple[float, float]:
    """(split, merge) in bits, 0 best: H(prediction | truth) and H(truth | prediction); NaN where truth is empty.

    Over the voxels of truth objects; predicted background there is one more segment. Source: Meila 2007. The same as
    skimage.metrics.variation_of_information(truth, prediction, ignore_labels=(0,)), which cannot start from a table alone.
    """
    from scipy import stats  # as slow to import

    table = table[1:]
    if not table.sum():
        return math.nan, math.nan
    joint = stats.entropy(table.data, base=2)
    split, merge = (joint - stats.entropy(table.sum(axis), base=2) for axis in (1, 0))
    return max(0.0, float(split)), max(0.0, float(merge))  # not -1e-16


def rand_error(table: sparse.csr_array) -> float:
    """Adapted Rand error, 0 best, 1 worst, over the voxels of truth objects; predicted background there is one more segment.

    NaN where no two such voxels share a segment. Source: Arganda-Carreras et al. 2015, by scikit-image.
    """
    from skimage.metrics import (
        adapted_rand_error,  # takes half a second, and training needs none of it
    )

    with np.errstate(invalid="ignore", divide="ignore"):
        return float(adapted_rand_error(table=table[1:])[0])


def bootstrap(
    values: Sequence,
    statistic: Callable[[np.ndarray], float] = np.mean,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile confidence interval of a statistic over crops, drawn with replacement; the same for the same seed.

    values: (crops,) or (crops, n), one row for each crop; statistic gets the rows drawn, so that counts can be pooled before they are
    divided. A crop with a NaN says nothing and is left out, and so is a draw for which the statistic is NaN; with fewer than two crops
    or no draw left the interval is (NaN, NaN).
    """
    values = np.asarray(values)
    values = values[~np.isnan(values).reshape(len(values), -1).any(1)]
    if len(values) < 2:
        return math.nan, math.nan
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    found = np.array([statistic(values[draw]) for draw in draws], float)
    found = found[~np.isnan(found)]
    low, high = (
        np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
        if len(found)
        else (math.nan, math.nan)
    )
    return float(low), float(high)

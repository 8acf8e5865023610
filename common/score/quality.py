"""Figures of segmentation quality that are in general use, beside the challenge's own score.

Instances are judged from a contingency table (`common.score.challenge.contingency`): voxels shared
by each truth id (row) and each predicted id (column), row and column 0 being background. Ids are
taken as they are: an id in two places is one object.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import sparse

PQ_IOU = 0.5
"""IoU above which two objects match; above 0.5 an object has at most one partner."""


class VoxelCounts(NamedTuple):
    """True positive, false positive and false negative voxels of a class."""

    tp: int
    fp: int
    fn: int


class ObjectCounts(NamedTuple):
    """Matched (IoU > PQ_IOU), surplus and missed objects of a class."""

    tp: int
    fp: int
    fn: int
    iou_sum: float
    """Sum of the IoU of the matched pairs."""


def count_objects(table: sparse.csr_array) -> ObjectCounts:
    """Count the objects of a contingency table, for `panoptic`."""
    truth = table.sum(1)
    prediction = table.sum(0)
    overlap = table[1:, 1:].tocoo()
    union = truth[1 + overlap.row] + prediction[1 + overlap.col] - overlap.data
    iou = overlap.data / union
    # nothing is to be optimised: above 0.5 no object has two partners (Kirillov et al. 2019)
    matched = iou[iou > PQ_IOU]
    tp = len(matched)
    return ObjectCounts(
        tp=tp,
        fp=int(np.count_nonzero(prediction[1:])) - tp,
        fn=int(np.count_nonzero(truth[1:])) - tp,
        iou_sum=float(matched.sum()),
    )


def panoptic(counts: Iterable[ObjectCounts]) -> dict[str, float]:
    """Return panoptic (pq), segmentation (sq) and recognition quality (rq) of one class.

    pq = sq x rq, at IoU > 0.5 (Kirillov et al. 2019, Panoptic Segmentation). Without a truth object
    all are NaN. Without a match pq is 0 and sq, a mean over no pair, is NaN.

    counts: of the class in each crop; they are pooled.
    """
    tp, fp, fn, iou_sum = np.sum(list(counts), axis=0)
    if tp + fn == 0:
        return dict.fromkeys(("pq", "sq", "rq"), math.nan)
    size = tp + fp / 2 + fn / 2
    return {
        "pq": float(iou_sum / size),
        "sq": float(iou_sum / tp) if tp else math.nan,
        "rq": float(tp / size),
    }


def variation_of_information(table: sparse.csr_array) -> tuple[float, float]:
    """Return (split, merge) in bits, 0 best: H(prediction | truth) and H(truth | prediction).

    Over the voxels of truth objects, where predicted background is one more segment; NaN where
    truth is empty. Source: Meila 2007. The same as skimage.metrics.variation_of_information(truth,
    prediction, ignore_labels=(0,)), which cannot start from a table alone.
    """
    from scipy import stats  # takes half a second, which those who score masks alone do not pay

    table = table[1:]
    if not table.sum():
        return math.nan, math.nan
    joint = stats.entropy(table.data, base=2)
    split = joint - stats.entropy(table.sum(1), base=2)
    merge = joint - stats.entropy(table.sum(0), base=2)
    # rounding may leave -1e-16
    return max(0.0, float(split)), max(0.0, float(merge))


def rand_error(table: sparse.csr_array) -> float:
    """Return the adapted Rand error, 0 best, 1 worst; NaN if no two truth voxels share a segment.

    Over the voxels of truth objects, where predicted background is one more segment.
    Source: Arganda-Carreras et al. 2015, by scikit-image.
    """
    from skimage.metrics import adapted_rand_error  # takes half a second, as above

    with np.errstate(invalid="ignore", divide="ignore"):
        error, _, _ = adapted_rand_error(table=table[1:])
    return float(error)

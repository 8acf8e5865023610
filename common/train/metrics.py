"""Metrics computed from voxel counts: Dice, IoU, precision, recall, and the user's own.

Counts are float64 arrays (classes,): tp, fp, fn and tn are true positive, false positive, false
negative and true negative voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from common.errors import UserError

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""`metric(tp, fp, fn, tn)` returns (classes,) values, NaN for a class without a value."""


def metrics(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> dict[str, np.ndarray]:
    """Return dice, iou, precision and recall by name, (classes,) each.

    All four are NaN for a class without a positive voxel (tp + fn = 0). Precision is 0 for a class
    that occurs and was predicted nowhere.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {
            "dice": 2 * tp / (2 * tp + fp + fn),
            "iou": tp / (tp + fp + fn),
            # nothing predicted of a class that occurs is a miss, not unknown
            "precision": np.where(tp + fp > 0, tp / (tp + fp), 0.0),
            "recall": tp / (tp + fn),
        }
    return {name: np.where(tp + fn > 0, value, np.nan) for name, value in values.items()}


def of_counts(counts: np.ndarray, own: Mapping[str, Metric]) -> dict[str, np.ndarray]:
    """Return all metrics by name, (classes,) each: the built-in ones, then the user's own.

    Args:
        counts: (4, classes) voxel counts: tp, fp, fn, tn.
        own: the user's metrics by name; their values are kept as they are.

    Raises:
        UserError: if a metric does not return one number per class.
    """
    tp, fp, fn, tn = counts
    # what is never negative is right wherever it is found: 1.0 would say nothing of the network
    has_negatives = fp + tn > 0
    values = {}
    for name, value in metrics(tp, fp, fn).items():
        values[name] = np.where(has_negatives, value, np.nan)
    for name, metric in own.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            given = metric(tp, fp, fn, tn)
        numbers = _as_numbers(given)
        if numbers is None or numbers.shape != tp.shape:
            raise UserError(
                f"metrics['{name}'] gives {_described(given)} for {len(tp)} classes; return a "
                "NumPy array of a number for each class, NaN where there is none"
            )
        values[name] = numbers
    return values


def _as_numbers(given: object) -> np.ndarray | None:
    """Return what a metric gave as float64; None for what is no numbers."""
    try:
        numbers = np.asarray(given)
        # NumPy would drop the imaginary part
        return None if np.iscomplexobj(numbers) else numbers.astype(np.float64)
    except (TypeError, ValueError, RuntimeError):  # torch's, of tensors with a gradient
        return None


def _described(given: object) -> str:
    shape = getattr(given, "shape", None)
    if shape is None and isinstance(given, list | tuple):
        return f"a {type(given).__name__} of {len(given)}"
    kind = type(given).__name__
    return f"{given} ({kind})" if not shape else f"a {kind} of shape {tuple(shape)}"


def try_out(own: Mapping[str, Metric], classes: int) -> None:
    """Call the user's metrics once on counts of 1, so that mistakes show before hours of training.

    Raises UserError for a result of the wrong shape. An error raised in their code is passed on
    unchanged.
    """
    of_counts(np.ones((4, classes)), own)


def count(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Count the known voxels as (4, classes) float64: tp, fp, fn, tn.

    A voxel is predicted positive where its logit is above 0, that is, its probability above 0.5.
    Both arguments are (B, classes, z, y, x); `labels` are integers with -1 for unknown.
    """
    predicted = logits > 0
    positive = labels == 1
    negative = labels == 0
    axes = (0, 2, 3, 4)
    true_positive = (predicted & positive).sum(axes)
    false_positive = (predicted & negative).sum(axes)
    false_negative = positive.sum(axes) - true_positive
    true_negative = negative.sum(axes) - false_positive
    counts = [true_positive, false_positive, false_negative, true_negative]
    return torch.stack(counts).double()


def finite_mean(values: np.ndarray) -> float:
    """Return the mean of what is finite; NaN of nothing."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan

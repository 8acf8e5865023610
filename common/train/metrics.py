"""Metrics of counted voxels: Dice, IoU, precision, recall, and the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from common.errors import UserError

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""`metric(tp, fp, fn, tn)`: counts of voxels, (classes,) float64 each, to a value a class."""

BUILT_IN = ("dice", "iou", "precision", "recall")


def metrics(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> dict[str, np.ndarray]:
    """Dice, IoU, precision and recall of each class; all NaN where there is nothing to find."""
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
    """All metrics by name, (classes,) each, the user's own after the built-in ones.

    Args:
        counts: (4, classes): true and false positive, false and true negative voxels.
        own: the user's; of a class they do not apply to they give NaN.

    Raises:
        UserError: if one does not give a number for each class.
    """
    tp, fp, fn, tn = counts
    values = metrics(tp, fp, fn)
    for name, metric in own.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            value = np.asarray(metric(tp, fp, fn, tn), dtype=np.float64)
        if value.shape != tp.shape:
            raise UserError(
                f"metrics['{name}'] gives an array of shape {value.shape} for {len(tp)} classes; "
                "return a number for each class, NaN where there is none"
            )
        values[name] = value
    return values


def try_out(own: Mapping[str, Metric], classes: int) -> None:
    """Call the user's metrics once, before hours of training. UserError for what they may not give.

    An error of their own code comes through as it is.
    """
    of_counts(np.ones((4, classes)), own)

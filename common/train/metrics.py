"""Dice, IoU, precision and recall from counted voxels."""

from __future__ import annotations

import numpy as np


def metrics(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> dict[str, np.ndarray]:
    """Dice, IoU, precision and recall of each class; all NaN where there is no positive voxel to find."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "dice": 2 * tp / (2 * tp + fp + fn),
            "iou": tp / (tp + fp + fn),
            "precision": np.where(tp + fp > 0, tp / (tp + fp), 0.0),
            "recall": tp / (tp + fn),
        }
    return {name: np.where(tp + fn > 0, value, np.nan) for name, value in found.items()}

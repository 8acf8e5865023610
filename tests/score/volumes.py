"""Small volumes with objects, and the figures of what is all right; shared by tests of scores."""

from __future__ import annotations

import numpy as np

PERFECT = {
    "score": 1,
    "dice": 1,
    "iou": 1,
    "precision": 1,
    "recall": 1,
    "f1": 1,
    "hausdorff": 1,
    "pq": 1,
    "voi_split": 0,
    "voi_merge": 0,
    "rand_error": 0,
    "fp": 0,
    "fn": 0,
}


def cubes() -> np.ndarray:
    """Four objects: two apart, two that touch over a face."""
    ids = np.zeros((24, 24, 24), np.uint16)
    for number, (z, y, x) in enumerate([(2, 2, 2), (2, 2, 8), (14, 3, 3), (14, 14, 14)], 300):
        ids[z : z + 6, y : y + 6, x : x + 6] = number
    return ids


def fine(volume: np.ndarray, times: int = 2) -> np.ndarray:
    return np.kron(volume, np.ones((times,) * 3, volume.dtype))

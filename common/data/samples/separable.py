"""Linear maps along the axes of a volume, a matrix for each: blur, lower resolution, splines.

A product with a matrix is the fastest form of these on a CPU, where patches are of a hundred voxels
an edge, and is the same few lines on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CUT_OFF = 4.0
"""Standard deviations at which a Gaussian ends, as in scipy.ndimage."""


def along_axes(volumes: Tensor, matrices: Sequence[np.ndarray | None]) -> Tensor:
    """Apply a matrix (new, old) along each of the last three axes; None leaves an axis.

    volumes: (..., z, y, x) float32.
    """
    for axis, matrix in zip((-3, -2, -1), matrices, strict=True):
        if matrix is None:
            continue
        weights = torch.from_numpy(matrix).to(volumes.device, volumes.dtype)
        if axis == -1:
            volumes = volumes @ weights.T
        elif axis == -2:
            volumes = weights @ volumes
        else:
            *rest, z, y, x = volumes.shape
            layers = volumes.reshape(*rest, z, y * x)
            volumes = (weights @ layers).reshape(*rest, -1, y, x)
    return volumes


def gaussian(n: int, sigma: float) -> np.ndarray | None:
    """Return (n, n): a Gaussian of `sigma` voxels, the outermost voxels repeated beyond the edge.

    None if it is so narrow that it changes nothing.
    """
    radius = int(CUT_OFF * sigma + 0.5)
    if radius == 0:
        return None
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    matrix = np.zeros((n, n))
    rows = np.arange(n)[:, None]
    voxels = np.clip(rows + offsets, 0, n - 1)
    np.add.at(matrix, (rows, voxels), weights / weights.sum())
    return matrix


def coarser(n: int, factor: float) -> np.ndarray | None:
    """Return (n, n): mean over voxels `factor` times as large, then linear interpolation back.

    The larger voxels are n / factor, rounded, and cover the axis exactly. None if nothing is lost.
    """
    count = max(round(n / factor), 1)
    if count >= n:
        return None
    edges = np.linspace(0, n, count + 1)
    low = np.maximum(edges[:-1, None], np.arange(n))
    high = np.minimum(edges[1:, None], np.arange(1, n + 1))
    means = np.maximum(high - low, 0) * (count / n)
    # centres of the voxels in units of the larger ones; the outermost are repeated
    centres = (np.arange(n) + 0.5) * (count / n) - 0.5
    places = np.clip(centres, 0, count - 1)
    distances = np.abs(places[:, None] - np.arange(count))
    hats = np.maximum(1 - distances, 0)
    return hats @ means

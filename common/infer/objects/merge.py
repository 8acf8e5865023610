"""Basins that are put together over the passes between them: the rule, once for all watersheds.

Noise makes too many basins. They are merged over the passes between them, from the highest pass
down, unless a pass falls far enough below both summits: their dynamics (Grimaud 1992).
"""

from __future__ import annotations

import numpy as np


def merged(
    passes: np.ndarray,
    heights: np.ndarray,
    summits: np.ndarray,
    least: np.ndarray,
    *,
    summits_nm: np.ndarray | None = None,
    min_distance_nm: float = 0.0,
) -> np.ndarray:
    """Return (n,) part 0..m-1 of each basin, numbered by the basin that stands for each part.

    Over the highest pass first, so that a summit joins the neighbour that it is least divided from.
    Of two basins that are joined the one of the higher summit stands for both, of equal ones the
    earlier.

    Args:
        passes: (k, 2) basins that touch, from the highest pass to the lowest.
        heights: (k,) float32 of the passes.
        summits: (n,) float32 height of each basin.
        least: (n,) height of a pass from which on it does not divide the basin from a higher one.
        summits_nm: (n, 3) place of each summit; needed for `min_distance_nm`.
        min_distance_nm: summits nearer to each other are one object, whatever the pass.
    """
    from common.infer.objects import climb  # which imports numba

    part = np.arange(len(summits))
    if summits_nm is None:
        summits_nm = np.zeros((len(summits), 3))
    climb.join_over_passes(
        np.ascontiguousarray(passes, np.int64).reshape(-1, 2),
        np.asarray(heights, np.float64),
        np.asarray(summits, np.float64),
        np.asarray(least, np.float64),
        part,
        np.ascontiguousarray(summits_nm, np.float64),
        float(min_distance_nm),
    )
    return numbered(part)


def numbered(part: np.ndarray) -> np.ndarray:
    """Return parts as 0..m-1, in the order of the basin or fragment that stands for each."""
    return np.unique(part, return_inverse=True)[1]

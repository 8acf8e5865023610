"""Whether a class is brighter or darker than what is around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.data.own.facts import LabelFacts
from common.data.volumes import regrid
from common.data.volumes.annotation import LabelReader
from common.data.volumes.level import Grid, Level
from common.data.volumes.ngff import pick_level

SAMPLE = 64
"""Voxels on an axis that are looked at, in the middle of what is positive."""

CLEAR = 0.3
"""Deviations of raw between inside and outside from which a class is brighter, or darker."""


def contrast(facts: LabelFacts, raw: Sequence[Level]) -> float:
    """Mean raw inside less outside, in deviations of raw; 0 where it cannot be told.

    raw: the levels of the volume.
    """
    low, high = facts.box()
    start = np.maximum((low + high - SAMPLE) // 2, 0)
    stop = np.minimum(start + SAMPLE, facts.level.shape)
    positive, unknown = LabelReader(facts.level, facts.name).read(start, stop)
    values = _raw_at(facts.level, start, stop, pick_level(raw, facts.level.scale))
    known = np.isfinite(values) if unknown is None else np.isfinite(values) & ~unknown
    inside = values[positive & known]
    outside = values[~positive & known]
    deviation = float(values[known].std()) if known.any() else 0.0
    if not len(inside) or not len(outside) or not deviation:
        return 0.0
    return float(inside.mean() - outside.mean()) / deviation


def are_opposite(contrasts: Sequence[float]) -> bool:
    """Whether a class is clearly brighter in one volume and clearly darker in another."""
    return max(contrasts) > CLEAR and min(contrasts) < -CLEAR


def _raw_at(label: Level, start: np.ndarray, stop: np.ndarray, raw: Level) -> np.ndarray:
    """The nearest voxels of raw for voxels of labels, float64; NaN outside of raw."""
    origin = label.translation + start * label.scale
    grid = Grid(origin, label.scale, tuple((stop - start).tolist()))
    values = np.full(grid.shape, np.nan)
    for where, slab in regrid.nearest(raw, grid):
        values[where] = slab
    return values

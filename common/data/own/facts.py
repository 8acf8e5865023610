"""Measure the labels of a class: where they are, how thick, how crowded and how bright.

One pass over the labels, in the memory of one block and of a number for each plane and each object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from common.data.volumes import regrid
from common.data.volumes.box import Box, boxes
from common.data.volumes.label_reader import LabelReader
from common.data.volumes.level import Level
from common.data.volumes.ngff import pick_level

LEAST_BLOCK = 64
MOST_BLOCK = 256
"""Voxels on an axis of a block that is read at once; chunks between the two are taken whole."""

NEAR = 4
"""Voxels of a step out of an object that may lead into another one."""
# a predicted boundary is blurred over about as many: pieces with fewer between them hang together

CROWDED = 0.1
"""Part of the steps out of an object that lead into another one, from which objects are crowded."""

SAMPLE = 64
"""Voxels on an axis by which the brightness is judged, in the middle of what is positive."""

CLEAR = 0.3
"""Deviations of raw between inside and outside from which a class is brighter, or darker."""


@dataclass
class LabelFacts:
    """A class in a crop; planes and axes are z, y, x."""

    name: str
    level: Level
    is_instance: bool
    """Whether its values are ids of objects."""
    known: tuple[np.ndarray, ...]
    """For each axis (planes,) int: known voxels of each plane."""
    positive: tuple[np.ndarray, ...]
    """The same of positive voxels."""
    edges: np.ndarray
    """(3,) int: neighbours along each axis of which one is positive and one known and not."""
    leaving: int = 0
    """Pairs of voxels NEAR apart along an axis with an object at one that is not at the other."""
    meeting: int = 0
    """Pairs among those with another object at the other voxel."""
    objects: Counter[int] = field(default_factory=Counter)
    """Voxels of each object by its id."""

    @property
    def positives(self) -> int:
        """Positive voxels."""
        return int(self.positive[0].sum())

    @property
    def knowns(self) -> int:
        """Known voxels."""
        return int(self.known[0].sum())

    @property
    def is_crowded(self) -> bool:
        """Whether objects lie so near to each other that predictions of them hang together."""
        return self.meeting > CROWDED * max(self.leaving, 1)

    def thickness_nm(self) -> float:
        """Return the mean thickness of the class, or of its gaps, along its thinnest axis, in nm.

        It is the mean chord of stereology: twice the voxels for each edge, since a chord has two.
        Inf where there is no edge.
        """
        thinner = min(self.positives, self.knowns - self.positives)
        if not self.edges.any():
            return np.inf
        chords = 2 * thinner / np.maximum(self.edges, 1) * self.level.scale
        return float(chords[self.edges > 0].min())

    def box(self) -> Box:
        """Return the box around all that is positive."""
        bounds = [np.flatnonzero(planes)[[0, -1]] + (0, 1) for planes in self.positive]
        return Box(*np.array(bounds).T)


def look(level: Level, name: str) -> LabelFacts:
    """Read a whole label volume.

    Raises UserError for metadata that are wrong, for raw, and for chunks that were lost.
    """
    reader = LabelReader(level, name)
    facts = LabelFacts(
        name=name,
        level=level,
        is_instance=reader.encoding.is_instance,
        known=_planes(level),
        positive=_planes(level),
        edges=np.zeros(3, np.int64),
    )
    for start, stop in boxes(level.shape, np.clip(level.array.chunks, LEAST_BLOCK, MOST_BLOCK)):
        values = reader.values(start, stop)
        positive, unknown = reader.meaning(values)
        known = np.ones_like(positive) if unknown is None else ~unknown
        _count(facts, start, positive, known)
        if facts.is_instance and positive.any():
            _count_objects(facts, np.where(positive, values, 0), known)
    # parts that are cut out of it have no counts that would tell
    reader.check_whole()
    return facts


def _planes(level: Level) -> tuple[np.ndarray, ...]:
    return tuple(np.zeros(n, np.int64) for n in level.array.shape)


def _count(facts: LabelFacts, start: np.ndarray, positive: np.ndarray, known: np.ndarray) -> None:
    """Add a block; edges between two blocks are left out, a hundredth of all."""
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        planes = slice(start[axis], start[axis] + positive.shape[axis])
        facts.known[axis][planes] += np.count_nonzero(known, axis=others)
        facts.positive[axis][planes] += np.count_nonzero(positive, axis=others)
        voxel, neighbour = _steps(positive, axis, 1)
        both_known = np.logical_and(*_steps(known, axis, 1))
        facts.edges[axis] += np.count_nonzero((voxel != neighbour) & both_known)


def _count_objects(facts: LabelFacts, ids: np.ndarray, known: np.ndarray) -> None:
    values, counts = np.unique(ids[ids != 0], return_counts=True)
    facts.objects.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    for axis in range(3):
        object_id, other_id = _steps(ids, axis, NEAR)
        both_known = np.logical_and(*_steps(known, axis, NEAR))
        leaving = (object_id != other_id) & both_known
        meeting = leaving & (object_id != 0) & (other_id != 0)
        facts.leaving += int(np.count_nonzero(leaving))
        facts.meeting += int(np.count_nonzero(meeting))


def _steps(volume: np.ndarray, axis: int, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels of a volume, and those `distance` further along an axis."""
    moved = np.moveaxis(volume, axis, 0)
    return moved[:-distance], moved[distance:]


# Whether a class is brighter or darker than what is around it


def contrast(facts: LabelFacts, raw: Sequence[Level]) -> float:
    """Return mean raw inside less outside, in deviations of raw; 0 where it cannot be told.

    raw: the levels of the volume.
    """
    low, high = facts.box()
    start = np.maximum((low + high - SAMPLE) // 2, 0)
    stop = np.minimum(start + SAMPLE, facts.level.shape)
    positive, unknown = LabelReader(facts.level, facts.name).read(start, stop)
    grid = facts.level.grid.part(Box(start, stop))
    # the nearest voxels of raw; NaN outside of it
    values = np.full(grid.shape, np.nan)
    for where, slab in regrid.nearest(pick_level(raw, grid.scale), grid):
        values[where] = slab
    known = np.isfinite(values) if unknown is None else np.isfinite(values) & ~unknown
    inside = values[positive & known]
    outside = values[~positive & known]
    deviation = float(values[known].std()) if known.any() else 0.0
    if not len(inside) or not len(outside) or not deviation:
        return 0.0
    return float(inside.mean() - outside.mean()) / deviation


def are_opposite(contrasts: Sequence[float]) -> bool:
    """Return whether a class is clearly brighter in one volume and clearly darker in another."""
    return max(contrasts) > CLEAR and min(contrasts) < -CLEAR

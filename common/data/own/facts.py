"""What the labels of a class are like, from one pass over them: where, how thick, how crowded.

The memory is that of one block and of one number for each plane and each object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from common.data.volumes.annotation import LabelReader
from common.data.volumes.box import boxes
from common.data.volumes.level import Level

LEAST_BLOCK = 64
MOST_BLOCK = 256
"""Voxels on an axis of a block that is read at once; chunks between the two are taken whole."""

NEAR = 4
"""Voxels of a step out of an object that may lead into another one."""
# a predicted boundary is blurred over about as many: pieces with fewer between them hang together

CROWDED = 0.1
"""Part of these steps that do from which objects count as crowded."""


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
    """Pairs of voxels NEAR apart along an axis of which one is in an object, the other not."""
    meeting: int = 0
    """Those of them of which the other is in another object."""
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
        """The mean way through the class, or between two of its pieces, along its thinnest axis.

        Inf where there is no edge. The mean chord, as stereology has it: twice the voxels for each
        edge, since a way through has two.
        """
        thinner = min(self.positives, self.knowns - self.positives)
        if not self.edges.any():
            return np.inf
        chords = 2 * thinner / np.maximum(self.edges, 1) * self.level.scale
        return float(chords[self.edges > 0].min())

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """First voxel and last + 1, (3,) each, of the box around all that is positive."""
        bounds = [np.flatnonzero(planes)[[0, -1]] + (0, 1) for planes in self.positive]
        low, high = np.array(bounds).T
        return low, high


def look(level: Level, name: str) -> LabelFacts:
    """Read a whole label volume. Raises UserError for metadata that are wrong, and for raw."""
    reader = LabelReader(level, name)
    facts = LabelFacts(
        name=name,
        level=level,
        is_instance=reader.encoding.is_instance,
        known=_planes(level),
        positive=_planes(level),
        edges=np.zeros(3, np.int64),
    )
    for start, stop in _blocks(level):
        positive, unknown = reader.read(start, stop)
        known = np.ones_like(positive) if unknown is None else ~unknown
        _count(facts, start, positive, known)
        if facts.is_instance and positive.any():
            ids = np.where(positive, level.read(start, stop), 0)
            _count_objects(facts, ids, known)
    return facts


def _planes(level: Level) -> tuple[np.ndarray, ...]:
    return tuple(np.zeros(n, np.int64) for n in level.array.shape)


def _blocks(level: Level) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return boxes(level.shape, np.clip(level.array.chunks, LEAST_BLOCK, MOST_BLOCK))


def _count(facts: LabelFacts, start: np.ndarray, positive: np.ndarray, known: np.ndarray) -> None:
    """Add a block; edges between two blocks are left out, a hundredth of all."""
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        planes = slice(start[axis], start[axis] + positive.shape[axis])
        facts.known[axis][planes] += np.count_nonzero(known, axis=others)
        facts.positive[axis][planes] += np.count_nonzero(positive, axis=others)
        one, next_one = _steps(positive, axis, 1)
        both_known = np.logical_and(*_steps(known, axis, 1))
        facts.edges[axis] += np.count_nonzero((one != next_one) & both_known)


def _count_objects(facts: LabelFacts, ids: np.ndarray, known: np.ndarray) -> None:
    values, counts = np.unique(ids[ids != 0], return_counts=True)
    facts.objects.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    for axis in range(3):
        one, other = _steps(ids, axis, NEAR)
        both_known = np.logical_and(*_steps(known, axis, NEAR))
        differ = (one != other) & both_known
        facts.leaving += int(np.count_nonzero(differ))
        facts.meeting += int(np.count_nonzero(differ & (one != 0) & (other != 0)))


def _steps(volume: np.ndarray, axis: int, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """The voxels of a volume, and those `distance` further along an axis."""
    moved = np.moveaxis(volume, axis, 0)
    return moved[:-distance], moved[distance:]

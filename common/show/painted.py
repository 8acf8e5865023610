"""Several classes as one volume: objects as one set of ids, masks as numbers of classes.

With a layer for each of 48 classes of three kinds a viewer is a wall of tabs. So one layer of
objects and one of masks are shown first; they are computed block by block when they are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from common.classes import atoms_of
from common.data.volumes.label_reader import LabelReader
from common.data.volumes.level import Level
from common.data.volumes.placement import group_by_voxels
from common.show.layers import probability_of
from common.show.montage import SHOWN
from common.show.served import Served, refuse_large

Seen = Callable[[np.ndarray], np.ndarray]
"""Function from stored voxels to bool: True where the class is."""


@dataclass(frozen=True)
class Part:
    """One class of a painted volume."""

    name: str
    levels: list[Level]


def bottom_up(parts: Sequence[Part]) -> list[Part]:
    """Sort parts by painting order: a cell before its nucleus, a group before its atoms."""
    return sorted(parts, key=lambda part: len(atoms_of(part.name) or ()), reverse=True)


def on_same_voxels(parts: Sequence[Part]) -> list[list[Part]]:
    """Group parts by their voxels; the largest group is first."""
    groups = group_by_voxels(parts, lambda part: part.levels[0].grid)
    return sorted(groups, key=len, reverse=True)


class Painted:
    """Several classes on the same voxels as one volume to be served, see `Served`."""

    labels = True

    def __init__(self, parts: Sequence[Part], are_labels: bool):
        """Take the parts in the order to paint them.

        are_labels: whether they hold ids or masks, not predictions.
        """
        self.parts = [Served(part.levels, are_labels) for part in parts]
        for part in self.parts:
            # as it is stored: unknown may be a negative number
            finest, _ = part.levels[0]
            part.dtype = finest.array.dtype.newbyteorder("=")
        self.seen: list[Seen] = [_seen(part, are_labels) for part in parts]
        self.shape = self.parts[0].shape
        self.levels = self.parts[0].levels
        self.dtype: np.dtype = np.dtype(np.uint8)

    def reduced(self, start: np.ndarray, stop: np.ndarray, factor: np.ndarray) -> np.ndarray:
        """Return voxels start..stop of the volume, `factor` voxels being merged into one."""
        result = np.zeros(stop - start, self.dtype)
        for number, part in enumerate(self.parts):
            block = part.reduced(start, stop, factor)
            where = self.seen[number](block)
            result[where] = self.painted(number, block[where])
        return result

    def painted(self, number: int, values: np.ndarray) -> np.ndarray | int:
        """Return the value for voxels of a part: its number, from 1."""
        return number + 1

    def transpose(self) -> np.ndarray:
        """Return all of it, x, y, z, for meshes. Raises UserError for more than MESHED voxels."""
        finest, _ = self.levels[0]
        refuse_large(finest.path, self.shape, len(self.parts))
        start = np.zeros(3, int)
        ones = np.ones(3, int)
        return self.reduced(start, np.array(self.shape), ones).transpose()


class Objects(Painted):
    """Objects of several classes as one volume; each class adds a step to its ids."""

    def __init__(self, parts: Sequence[Part]):
        super().__init__(parts, are_labels=True)
        dtypes = [part.dtype for part in self.parts]
        largest = max(np.iinfo(t if t.kind in "iu" else np.uint32).max for t in dtypes)
        # a power of ten above all ids, as far as 64 bits go for 18 classes
        self.step = min(10 ** len(str(largest)), 10**18)
        self.dtype = np.dtype(np.uint64)

    def painted(self, number: int, values: np.ndarray) -> np.ndarray:
        """Return the ids of a part plus its step: 3000017 is object 17 of the fourth class."""
        return values.astype(np.uint64) + np.uint64(number * self.step)


def _seen(part: Part, are_labels: bool) -> Seen:
    if are_labels:
        # of processed volumes, which have no encoding, all that is not 0
        reader = LabelReader(part.levels[0], part.name)
        return lambda block: reader.meaning(block)[0]
    probability = probability_of(part.levels[0])
    return lambda block: probability(block) > SHOWN

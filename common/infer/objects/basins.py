"""The basins of a landscape over a volume larger than memory, and where they meet.

Each voxel belongs to the summit that steepest ascent leads to (a watershed by drainage: Cousty et
al. 2009). What a voxel climbs to depends on its 26 neighbours alone, so a block that is read with a
margin has nearly all ascents whole; where one leaves the margin, the block that it enters says how
it goes on. The basins are therefore the same, to the voxel, for any block shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import fastremap
import numpy as np

from common.infer.objects.components import find_components
from common.infer.objects.graph import Contacts, Graph, combined, joined
from common.infer.objects.volume import (
    Block,
    BlockWork,
    Box,
    Index,
    Volume,
    blocks,
    ends,
    fill,
    gather,
    probabilities,
    smallest_dtype,
    with_margin,
    within,
)

# paths are short: a longer margin costs more than the few that leave it
MARGIN = 16
"""Voxels around a block in which ascents are followed."""


@dataclass(frozen=True)
class Basins:
    """The basins 0..n-1 of a landscape."""

    labels: Volume
    """1 + a voxel that an ascent comes to, counted through the volume; 0 outside."""
    of_blocks: dict[Index, np.ndarray]
    """The labels of each block, ascending."""
    every: np.ndarray
    """(k,) all labels, ascending."""
    basin: np.ndarray
    """(k,) the basin of each."""
    summits: np.ndarray
    """(n,) float32 height of the summit of each basin."""

    def graph(self, contacts: Contacts) -> Graph:
        """Contacts of labels as those of basins."""
        a = self.basin[np.searchsorted(self.every, contacts.a)]
        b = self.basin[np.searchsorted(self.every, contacts.b)]
        return Graph(len(self.summits), combined(contacts._replace(a=a, b=b)))

    def voxels(self) -> np.ndarray:
        """(n,) int64 of each basin."""
        counts = np.zeros(len(self.summits), np.int64)

        def counted(block: Block) -> tuple[np.ndarray, np.ndarray]:
            return fastremap.unique(self.labels.read(block.core), return_counts=True)

        for labels, numbers in gather(self.labels, BlockWork(counted, (self.labels,))):
            inside = labels > 0
            basin = self.basin[np.searchsorted(self.every, labels[inside])]
            np.add.at(counts, basin, numbers[inside].astype(np.int64))
        return counts

    def ids(self, part: np.ndarray) -> Volume:
        """Ids 1..m of the parts that basins are put together to, numbered by their first voxel.

        part: (n,) from 0 for each basin.
        """
        table = (part + 1).astype(smallest_dtype(len(part)))
        # each part is in one piece, so that it only gets its number
        return renamed(self.labels, self.of_blocks, self.every, table[self.basin])


def find_basins(
    landscape: Volume, ids: Volume, evidence: Volume | None = None
) -> tuple[Basins, Graph]:
    """The basins of a landscape within a mask or within each id, and the graph of their contacts.

    landscape: float32, finite within the ids. evidence: what is summed up over the contacts.
    """
    labels = _climbed(landscape, ids)
    reads = [volume for volume in (labels, landscape, ids, evidence) if volume is not None]
    work = BlockWork(partial(_met, labels, landscape, ids, evidence), tuple(reads))
    of_blocks = {}
    contacts = []
    for block, (of_block, meeting) in zip(blocks(ids), gather(ids, work), strict=True):
        of_blocks[block.index] = of_block
        contacts.append(meeting)
    every = np.unique(np.concatenate(list(of_blocks.values())))
    basins = _followed(labels, landscape, of_blocks, every)
    return basins, basins.graph(joined(contacts))


def renamed(
    labels: Volume, of_blocks: Mapping[Index, np.ndarray], every: np.ndarray, names: np.ndarray
) -> Volume:
    """Ids 1..m of the pieces of what has one name, numbered by their first voxel.

    labels: of fragments; 0 outside. of_blocks: those of each, ascending. every: (k,) all of them,
    ascending. names: (k,) of each, above 0.
    """

    def about(block: Block) -> tuple[np.ndarray, np.ndarray]:
        of_block = of_blocks[block.index]
        return of_block, names[np.searchsorted(every, of_block)]

    def renamed_block(block: Block, about: tuple[np.ndarray, np.ndarray]) -> np.ndarray | None:
        of_block, table = about
        if len(of_block) == 0:
            return None
        values = labels.read(block.core)
        result = table[np.searchsorted(of_block, values).clip(max=len(of_block) - 1)]
        result[values == 0] = 0
        return result

    work = BlockWork(renamed_block, (labels,), about=about)
    return find_components(fill(labels, work, names.dtype), 26).numbered()


def _climbed(landscape: Volume, ids: Volume) -> Volume:
    """The label of each voxel."""
    dtype = smallest_dtype(math.prod(ids.shape))

    def climbed(block: Block) -> np.ndarray | None:
        box = with_margin(block.core, MARGIN, ids.shape)
        object_ids = ids.read(box)
        if not object_ids[within(block.core, box)].any():
            return None
        start, stop = ends(box)
        is_open = np.stack([start > 0, stop < ids.shape], axis=1)
        top = np.empty(object_ids.shape, np.int64)
        from common.infer.objects.climb import climb  # which imports numba

        climb(landscape.read(box), object_ids.astype(np.int64), is_open, top)
        top = top[within(block.core, box)]
        place = np.unravel_index(np.maximum(top, 0), object_ids.shape)
        through = [along + first for along, first in zip(place, start, strict=True)]
        label = np.ravel_multi_index(through, ids.shape) + 1
        return np.where(top < 0, 0, label).astype(dtype)

    return fill(ids, BlockWork(climbed, (landscape, ids)), dtype)


def _met(  # noqa: PLR0917  # a partial of it
    labels: Volume, landscape: Volume, ids: Volume, evidence: Volume | None, block: Block
) -> tuple[np.ndarray, Contacts]:
    """The labels of a block's core, ascending, and where they meet over faces."""
    values = labels.read(block.grown)
    core = np.unique(values[block.inner])
    core = core[core > 0]
    if len(core) == 0:
        return core, joined([])
    height = landscape.read(block.grown)
    object_ids = ids.read(block.grown)
    against = np.zeros_like(height)
    if evidence is not None:
        # unknown is an edge
        against = np.nan_to_num(probabilities(evidence, block.grown), nan=1)
    contacts = []
    for axis in range(3):
        here = _along(block, axis, slice(1, None))
        there = _along(block, axis, slice(None, -1))
        meets = (
            (values[here] != values[there])
            & (object_ids[here] == object_ids[there])
            & (object_ids[here] != 0)
        )
        contacts.append(
            Contacts.of_faces(
                values[here][meets],
                values[there][meets],
                height=np.minimum(height[here][meets], height[there][meets]),
                evidence=np.maximum(against[here][meets], against[there][meets]),
            )
        )
    return core, combined(joined(contacts))


def _along(block: Block, axis: int, part: slice) -> Box:
    """Voxels of a grown block that have a neighbour before them along an axis, or those neighbours.

    A face belongs to the block whose core has its later voxel: none is counted twice.
    """
    box = list(block.inner)
    box[axis] = part
    return tuple(box)


def _followed(
    labels: Volume, landscape: Volume, of_blocks: dict[Index, np.ndarray], every: np.ndarray
) -> Basins:
    """The basin of each label: of some, the voxel is only where a block lost sight of an ascent."""
    by_block = _by_block(labels, every)

    def asked(block: Block) -> np.ndarray:
        return by_block.get(block.index, every[:0])

    def looked_up(block: Block, of_block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(of_block) == 0:
            return of_block, np.zeros(0, np.float32)  # most blocks, which are not read
        place = np.stack(np.unravel_index(of_block.astype(np.int64) - 1, labels.shape))
        start, _ = ends(block.core)
        at = tuple(place - start[:, None])
        return labels.read(block.core)[at], landscape.read(block.core)[at]

    work = BlockWork(looked_up, (labels, landscape), about=asked)
    leads_to = np.arange(len(every))
    height = np.zeros(len(every), np.float32)
    for block, (ends_at, heights) in zip(blocks(labels), gather(labels, work), strict=True):
        place = np.searchsorted(every, asked(block))
        leads_to[place] = np.searchsorted(every, ends_at)
        height[place] = heights
    while (leads_to != leads_to[leads_to]).any():
        leads_to = leads_to[leads_to]
    tops, basin = np.unique(leads_to, return_inverse=True)
    return Basins(labels, of_blocks, every, basin, summits=height[tops])


def _by_block(labels: Volume, every: np.ndarray) -> dict[Index, np.ndarray]:
    """Labels by the block that their voxel is in."""
    if len(every) == 0:
        return {}
    place = np.stack(np.unravel_index(every.astype(np.int64) - 1, labels.shape))
    index = place // np.array(labels.block)[:, None]
    counts = -(-np.array(labels.shape) // labels.block)
    number = np.ravel_multi_index(tuple(index), counts)
    order = np.argsort(number, kind="stable")
    blocks_, first = np.unique(number[order], return_index=True)
    parts = np.split(every[order], first[1:])
    indices = np.stack(np.unravel_index(blocks_, counts), axis=1).tolist()
    return {tuple(at): part for at, part in zip(indices, parts, strict=True)}

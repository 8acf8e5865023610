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
    """For each voxel 1 + the voxel that its ascent comes to, counted through the volume.

    It is 0 outside of the ids.
    """
    labels_of_blocks: dict[Index, np.ndarray]
    """The labels of each block, ascending."""
    every: np.ndarray
    """(k,) all labels, ascending."""
    basin: np.ndarray
    """(k,) the basin of each."""
    summits: np.ndarray
    """(n,) float32 height of the summit of each basin."""

    def graph(self, contacts: Contacts) -> Graph:
        """Return the graph of the basins. contacts: of labels."""
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
        """Return ids 1..m of the parts that basins are put together to, numbered by first voxel.

        part: (n,) part of each basin, from 0.
        """
        table = (part + 1).astype(smallest_dtype(len(part)))
        # each part is in one piece, so that it only gets its number
        return renamed(self.labels, self.labels_of_blocks, self.every, table[self.basin])


def find_basins(
    landscape: Volume, ids: Volume, evidence: Volume | None = None
) -> tuple[Basins, Graph]:
    """Return the basins of a landscape within each id, and the graph of their contacts.

    Args:
        landscape: float32, finite within the ids.
        ids: a mask, or ids, 0 outside.
        evidence: what is summed up over the faces of contacts.
    """
    labels = _climbed(landscape, ids)
    reads = [volume for volume in (labels, landscape, ids, evidence) if volume is not None]
    work = BlockWork(partial(_met, labels, landscape, ids, evidence), tuple(reads))
    labels_of_blocks = {}
    contacts = []
    for block, (block_labels, meeting) in zip(blocks(ids), gather(ids, work), strict=True):
        labels_of_blocks[block.index] = block_labels
        contacts.append(meeting)
    every = np.unique(np.concatenate(list(labels_of_blocks.values())))
    basins = _followed(labels, landscape, labels_of_blocks, every)
    return basins, basins.graph(joined(contacts))


def renamed(
    labels: Volume,
    labels_of_blocks: Mapping[Index, np.ndarray],
    every: np.ndarray,
    names: np.ndarray,
) -> Volume:
    """Return ids 1..m of the pieces of what has one name, numbered by their first voxel.

    Args:
        labels: of fragments; 0 outside.
        labels_of_blocks: those of each block, ascending.
        every: (k,) all labels, ascending.
        names: (k,) name of each label, above 0.
    """

    def about(block: Block) -> tuple[np.ndarray, np.ndarray]:
        block_labels = labels_of_blocks[block.index]
        return block_labels, names[np.searchsorted(every, block_labels)]

    def renamed_block(block: Block, about: tuple[np.ndarray, np.ndarray]) -> np.ndarray | None:
        block_labels, table = about
        if len(block_labels) == 0:
            return None
        values = labels.read(block.core)
        result = table[np.searchsorted(block_labels, values).clip(max=len(block_labels) - 1)]
        result[values == 0] = 0
        return result

    work = BlockWork(renamed_block, (labels,), about=about)
    return find_components(fill(labels, work, names.dtype), 26).numbered()


def _climbed(landscape: Volume, ids: Volume) -> Volume:
    """Return `Basins.labels`."""
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
    """Return the labels of a block's core, ascending, and where they meet over faces.

    Args:
        labels: `Basins.labels`.
        landscape: as of `find_basins`.
        ids: likewise.
        evidence: likewise.
        block: whose core the later voxel of each face is in.
    """
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
        later = _along(block, axis, slice(1, None))
        earlier = _along(block, axis, slice(None, -1))
        meets = (
            (values[later] != values[earlier])
            & (object_ids[later] == object_ids[earlier])
            & (object_ids[later] != 0)
        )
        contacts.append(
            Contacts.of_faces(
                values[later][meets],
                values[earlier][meets],
                height=np.minimum(height[later][meets], height[earlier][meets]),
                evidence=np.maximum(against[later][meets], against[earlier][meets]),
            )
        )
    return core, combined(joined(contacts))


def _along(block: Block, axis: int, part: slice) -> Box:
    """Return the box of one side of the faces across an axis, within the grown block.

    A face belongs to the block whose core has its later voxel: none is counted twice.

    part: voxels along the axis: all but the first for the later side, all but the last for the
        other.
    """
    box = list(block.inner)
    box[axis] = part
    return tuple(box)


def _followed(
    labels: Volume, landscape: Volume, labels_of_blocks: dict[Index, np.ndarray], every: np.ndarray
) -> Basins:
    """Return the basins: ascents that left a block's margin are followed through other blocks.

    Args:
        labels: `Basins.labels`.
        landscape: as of `find_basins`.
        labels_of_blocks: those of each block, ascending.
        every: (k,) all labels, ascending.
    """
    by_block = _by_block(labels, every)

    def asked(block: Block) -> np.ndarray:
        return by_block.get(block.index, every[:0])

    def looked_up(block: Block, block_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(block_labels) == 0:
            return block_labels, np.zeros(0, np.float32)  # most blocks, which are not read
        place = np.stack(np.unravel_index(block_labels.astype(np.int64) - 1, labels.shape))
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
    return Basins(labels, labels_of_blocks, every, basin, summits=height[tops])


def _by_block(labels: Volume, every: np.ndarray) -> dict[Index, np.ndarray]:
    """Return the labels by the block that their voxel is in. every: (k,) all labels, ascending."""
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

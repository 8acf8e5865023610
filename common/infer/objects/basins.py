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
from typing import NamedTuple

import numpy as np

from common.infer.objects.boxes import Box, ends, with_margin, within
from common.infer.objects.components import Index, find_components
from common.infer.objects.graph import Contacts, Graph, combined, joined
from common.infer.objects.volume import (
    Block,
    BlockWork,
    Volume,
    blocks,
    fill,
    gather,
    probabilities,
    smallest_dtype,
)

# paths are short: a longer margin costs more than the few that leave it
MARGIN = 16
"""Voxels around a block in which ascents are followed."""


@dataclass(frozen=True)
class Basins:
    """The basins 0..n-1 of a landscape."""

    labels: Volume
    """1 + a voxel that an ascent comes to, counted through the volume; 0 outside."""
    found: dict[Index, np.ndarray]
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

    def ids(self, part: np.ndarray) -> Volume:
        """Ids 1..m of the parts that basins are put together to, numbered by their first voxel.

        part: (n,) from 0 for each basin.
        """
        table = (part + 1).astype(smallest_dtype(len(part)))
        # each part is in one piece, so that it only gets its number
        return renamed(self.labels, self.found, self.every, table[self.basin])


def find_basins(
    landscape: Volume, ids: Volume, evidence: Volume | None = None
) -> tuple[Basins, Graph]:
    """The basins of a landscape within a mask or within each id, and the graph of their contacts.

    landscape: float32, finite within the ids. evidence: what is summed up over the contacts.
    """
    dtype = smallest_dtype(math.prod(ids.shape))
    reads = (landscape, ids)
    labels = fill(ids, BlockWork(partial(_climbed, *reads), reads), dtype)
    given = reads if evidence is None else (*reads, evidence)
    work = BlockWork(partial(_met, labels, landscape, ids, evidence), (labels, *given))
    found = {}
    contacts = []
    for block, of_block in zip(blocks(ids), gather(ids, work), strict=True):
        found[block.index] = of_block.labels
        contacts.append(of_block.contacts)
    every = np.unique(np.concatenate(list(found.values())))
    basins = _followed(labels, landscape, found, every)
    return basins, basins.graph(joined(contacts))


def renamed(
    labels: Volume, found: Mapping[Index, np.ndarray], every: np.ndarray, names: np.ndarray
) -> Volume:
    """Ids 1..m of the pieces of what has one name, numbered by their first voxel.

    Args:
        labels: of fragments; 0 outside.
        found: the labels of each block, ascending.
        every: (k,) all labels, ascending.
        names: (k,) of each, above 0.
    """

    def about(block: Block) -> tuple[np.ndarray, np.ndarray]:
        of_block = found[block.index]
        return of_block, names[np.searchsorted(every, of_block)]

    work = BlockWork(partial(_renamed, labels), (labels,), about=about)
    return find_components(fill(labels, work, names.dtype), 26).numbered()


def _renamed(
    labels: Volume, block: Block, about: tuple[np.ndarray, np.ndarray]
) -> np.ndarray | None:
    """The core of a block with other labels. about: those it has, ascending, and those it gets."""
    found, table = about
    if len(found) == 0:
        return None
    values = labels.read(block.core)
    result = table[np.searchsorted(found, values).clip(max=len(found) - 1)]
    result[values == 0] = 0
    return result


def _climbed(landscape: Volume, ids: Volume, block: Block, _: None) -> np.ndarray | None:
    """The label of each voxel of a block."""
    box = with_margin(block.core, MARGIN, ids.shape)
    own = ids.read(box)
    if not own[within(block.core, box)].any():
        return None
    start, stop = ends(box)
    is_open = np.stack([start > 0, stop < ids.shape], axis=1)
    top = np.empty(own.shape, np.int64)
    from common.infer.objects.climb import climb  # which imports numba

    climb(landscape.read(box), own.astype(np.int64), is_open, top)
    top = top[within(block.core, box)]
    place = np.unravel_index(np.maximum(top, 0), own.shape)
    through = [along + first for along, first in zip(place, start, strict=True)]
    label = np.ravel_multi_index(through, ids.shape) + 1
    return np.where(top < 0, 0, label).astype(smallest_dtype(math.prod(ids.shape)))


class _Met(NamedTuple):
    """What is kept of a block."""

    labels: np.ndarray
    """Of its core, ascending."""
    contacts: Contacts


def _met(  # noqa: PLR0917  # a partial of it
    labels: Volume,
    landscape: Volume,
    ids: Volume,
    evidence: Volume | None,
    block: Block,
    _: None,
) -> _Met:
    """The labels of a block, and where they meet over faces."""
    values = labels.read(block.grown)
    core = np.unique(values[block.inner])
    core = core[core > 0]
    if len(core) == 0:
        return _Met(core, joined([]))
    height = landscape.read(block.grown)
    own = ids.read(block.grown)
    against = np.zeros_like(height)
    if evidence is not None:
        # unknown is an edge
        against = np.nan_to_num(probabilities(evidence, block.grown), nan=1)
    contacts = []
    for axis in range(3):
        here = _along(block, axis, slice(1, None))
        there = _along(block, axis, slice(None, -1))
        meets = (values[here] != values[there]) & (own[here] == own[there]) & (own[here] != 0)
        pass_height = np.minimum(height[here][meets], height[there][meets])
        of_axis = Contacts.of_faces(
            values[here][meets],
            values[there][meets],
            height=pass_height,
            evidence=np.maximum(against[here][meets], against[there][meets]),
        )
        contacts.append(of_axis)
    return _Met(core, combined(joined(contacts)))


def _along(block: Block, axis: int, part: slice) -> Box:
    """Voxels of a grown block that have a neighbour before them along an axis, or those neighbours.

    A face belongs to the block whose core has its later voxel: none is counted twice.
    """
    box = list(block.inner)
    box[axis] = part
    return tuple(box)


def _followed(
    labels: Volume, landscape: Volume, found: dict[Index, np.ndarray], every: np.ndarray
) -> Basins:
    """The basin of each label: of some, the voxel is only where a block lost sight of an ascent."""
    asked = _by_block(labels, every)
    work = BlockWork(
        partial(_looked_up, labels, landscape),
        (labels, landscape),
        about=lambda block: asked.get(block.index, every[:0]),
    )
    leads_to = np.arange(len(every))
    height = np.zeros(len(every), np.float32)
    for block, answer in zip(blocks(labels), gather(labels, work), strict=True):
        place = np.searchsorted(every, asked.get(block.index, every[:0]))
        leads_to[place] = np.searchsorted(every, answer.labels)
        height[place] = answer.heights
    while (leads_to != leads_to[leads_to]).any():
        leads_to = leads_to[leads_to]
    tops, basin = np.unique(leads_to, return_inverse=True)
    return Basins(labels, found, every, basin, summits=height[tops])


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


class _Answer(NamedTuple):
    """What a block says of voxels of its own."""

    labels: np.ndarray
    heights: np.ndarray


def _looked_up(labels: Volume, landscape: Volume, block: Block, asked: np.ndarray) -> _Answer:
    if len(asked) == 0:
        return _Answer(asked, np.zeros(0, np.float32))
    place = np.stack(np.unravel_index(asked.astype(np.int64) - 1, labels.shape))
    start, _ = ends(block.core)
    at = tuple(place - start[:, None])
    return _Answer(labels.read(block.core)[at], landscape.read(block.core)[at])

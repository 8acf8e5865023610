"""Connected components of a volume larger than memory.

Two passes as in Rosenfeld and Pfaltz (1966), with blocks in the place of rows. The first labels
each block alone (by cc3d) together with the last layer of the blocks before it, so that two blocks
both label that layer: pieces that hold the same voxel of it are one component, whatever lies across
the face, an edge or a corner. The second finds which pieces belong together (components of a graph,
by SciPy). Components are then numbered by their first voxel in z, y, x order, which no block has a
part in: ids are the same for any block shape. Labels are not stored but found again when a block is
read, which costs less than writing them to disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import cc3d
import numpy as np
from scipy.sparse import coo_array, csgraph

from common.errors import UserError
from common.infer.objects.volume import (
    Block,
    BlockWork,
    Box,
    Index,
    Volume,
    ends,
    fill,
    gather,
    smallest_dtype,
)

MAX_PIECES = 2**31 - 1
"""Components of all blocks together: the graph counts them in int32."""

FAR = np.iinfo(np.int64).max
"""Neutral in a minimum."""


class Extents(NamedTuple):
    """Size and place of n components, int64."""

    voxels: np.ndarray
    """(n,) number of voxels."""
    first: np.ndarray
    """(n,) first voxel in z, y, x order, counted through the volume."""
    low: np.ndarray
    """(3, n) lower corner of the box of each: first voxel."""
    high: np.ndarray
    """(3, n) upper corner: last voxel + 1."""


@dataclass(frozen=True)
class Components:
    """Connected components of a volume, 1..n; 0 is what lies between them."""

    volume: Volume
    connectivity: int
    of_background: bool
    """Whether they are the components of the zeros."""
    ids: dict[Index, np.ndarray]
    """For each block the id of each of its labels; [0] is 0."""
    n: int
    voxels: np.ndarray
    """(n + 1,) number of voxels of each id; [0] is 0."""
    low: np.ndarray
    """(n + 1, 3) first voxel of the box of each id."""
    high: np.ndarray
    """(n + 1, 3) its last voxel + 1."""

    def numbered(self) -> Volume:
        """Return a volume of the ids, in the smallest dtype that holds them."""
        return self.relabelled(np.arange(self.n + 1, dtype=smallest_dtype(self.n)))

    def relabelled(self, table: np.ndarray) -> Volume:
        """Return a volume of table[id]; table[0] is 0."""
        # not self, whose tables of all blocks would travel to workers
        volume = self.volume
        connectivity = self.connectivity
        of_background = self.of_background

        def relabelled_block(block: Block, of_labels: np.ndarray) -> np.ndarray | None:
            if not of_labels.any():
                return None
            labels, _ = label(volume, block, connectivity, of_background)
            return of_labels[labels[block.inner]]

        work = BlockWork(relabelled_block, (volume,), about=partial(self.of_labels, table))
        return fill(volume, work, table.dtype)

    def of_labels(self, table: np.ndarray, block: Block) -> np.ndarray:
        """Return table[id] for each label of a block."""
        return table[self.ids[block.index]]


def find_components(volume: Volume, connectivity: int, of_background: bool = False) -> Components:
    """Return the components of a mask, or of ids; voxels of different ids stay apart.

    Raise UserError for anything but integers, and for another connectivity than 6, 18 and 26.

    of_background: find the components of the zeros.
    """
    if volume.dtype.kind not in "bui":
        raise UserError(
            f"a volume of {volume.dtype} has no objects; threshold() it first, or hand over ids as "
            "integers"
        )
    if connectivity not in (6, 18, 26):
        raise UserError(f"connectivity {connectivity}; write 6, 18 or 26")

    def labelled(block: Block) -> _Labelled:
        labels, n = label(volume, block, connectivity, of_background)
        return _kept_of_block(volume, block, labels, n)

    pieces = _Pieces()
    for of_block in gather(volume, BlockWork(labelled, (volume,))):
        pieces.add(of_block)
    group, n = pieces.grouped()
    joined = (np.concatenate(column, axis=-1) for column in zip(*pieces.extents, strict=True))
    extents = _reduced(Extents(*joined), group, n)
    # in the order of their first voxels; the background has -1 and stays 0
    order = np.argsort(extents.first)
    number = np.empty(n, smallest_dtype(n - 1))
    number[order] = np.arange(n)
    ids = {}
    for index, span in pieces.spans.items():
        ids[index] = np.append(number[group[:1]], number[group[span]])
    voxels = extents.voxels[order]
    low = extents.low.T[order]
    high = extents.high.T[order]
    return Components(
        volume, connectivity, of_background, ids=ids, n=n - 1, voxels=voxels, low=low, high=high
    )


def label(
    volume: Volume, block: Block, connectivity: int, of_background: bool
) -> tuple[np.ndarray, int]:
    """Return the components 1..n of a grown block, (z, y, x), and n."""
    values = volume.read(block.grown)
    if of_background:
        values = values == 0
    if not values.any():
        return np.zeros(values.shape, np.uint16), 0
    return cc3d.connected_components(values, connectivity=connectivity, return_N=True)  # type: ignore[call-overload]  # 6, 18 or 26


BACKGROUND = Extents(
    voxels=np.zeros(1, np.int64),
    first=np.full(1, -1),
    low=np.full((3, 1), -1),
    high=np.zeros((3, 1), np.int64),
)
"""Extent of piece 0, which comes first of all and touches the border of the volume."""


@dataclass(frozen=True)
class _Labelled:
    """What is kept of a block that was labelled 1..n."""

    index: Index
    n: int
    extents: Extents
    before: dict[int, np.ndarray]
    """By axis the first layer of labels, which the block before it has too."""
    after: dict[int, np.ndarray]
    """By axis the last layer of labels, where a block follows."""


def _kept_of_block(volume: Volume, block: Block, labels: np.ndarray, n: int) -> _Labelled:
    """Return what is kept of a block. labels: 1..n of the grown block."""
    before = {}
    after = {}
    for axis in range(3):
        if block.index[axis] > 0:
            before[axis] = labels.take(0, axis)
        if block.core[axis].stop < volume.shape[axis]:
            after[axis] = labels.take(-1, axis)
    extents = _measured(labels[block.inner], n, block.core, volume.shape)
    return _Labelled(block.index, n, extents, before, after=after)


@dataclass
class _Pieces:
    """Components of single blocks, numbered through all blocks; 0 is the background."""

    count: int = 1
    spans: dict[Index, slice] = field(default_factory=dict)
    """Numbers of the pieces of each block."""
    pairs: list[np.ndarray] = field(default_factory=list)
    """Each (2, k): pairs of pieces that have a voxel in common."""
    extents: list[Extents] = field(default_factory=lambda: [BACKGROUND])
    layers: dict[tuple[int, Index], np.ndarray] = field(default_factory=dict)
    """Labels of the last layer of a block along an axis, until the block behind it comes."""

    def add(self, block: _Labelled) -> None:
        """Take in the next block in z, y, x order. Raise UserError for too many pieces."""
        self.spans[block.index] = slice(self.count, self.count + block.n)
        for axis, layer in block.before.items():
            self._pair_with_block_before(axis, block.index, layer)
        for axis, layer in block.after.items():
            self.layers[axis, block.index] = layer
        self.extents.append(block.extents)
        self.count += block.n
        if self.count > MAX_PIECES:
            raise UserError(
                f"more than {MAX_PIECES} components of blocks; a mask without noise has fewer"
            )

    def _pair_with_block_before(self, axis: int, index: Index, layer: np.ndarray) -> None:
        """Pair the pieces that share a voxel of a layer which two blocks have.

        It is the first layer of block `index`, and the last one of the block before it.
        """
        before = (*index[:axis], index[axis] - 1, *index[axis + 1 :])
        layer_before = self.layers.pop((axis, before))
        held = layer_before > 0
        # one number a pair, which np.unique sorts far faster than rows
        first_labels = layer_before[held].astype(np.int64) << 32
        pairs = np.unique(first_labels | layer[held].astype(np.int64))
        a = pairs >> 32
        b = pairs & 0xFFFFFFFF
        # labels of a block begin with 1
        first_before = self.spans[before].start
        first = self.spans[index].start
        self.pairs.append(np.stack([a - 1 + first_before, b - 1 + first]))

    def grouped(self) -> tuple[np.ndarray, int]:
        """Return the component of each piece, and the number of components with the background."""
        a, b = np.concatenate([np.zeros((2, 0), int), *self.pairs], axis=1)
        graph = coo_array((np.ones(len(a), bool), (a, b)), (self.count, self.count))
        n, group = csgraph.connected_components(graph, directed=False)
        return group, int(n)


def _reduced(extents: Extents, group: np.ndarray, n: int) -> Extents:
    """Return the extents of n groups of components. group: (k,) group of each component."""
    voxels = np.zeros(n, np.int64)
    np.add.at(voxels, group, extents.voxels)
    first = np.full(n, FAR)
    np.minimum.at(first, group, extents.first)
    low = np.full((3, n), FAR)
    high = np.zeros((3, n), np.int64)
    for axis in range(3):  # NumPy is many times slower at rows of three
        np.minimum.at(low[axis], group, extents.low[axis])
        np.maximum.at(high[axis], group, extents.high[axis])
    return Extents(voxels, first, low, high)


def _measured(labels: np.ndarray, n: int, core: Box, shape: tuple[int, int, int]) -> Extents:
    """Return the extents of the labels 1..n of a block, from runs along x: far fewer than voxels.

    Args:
        labels: (z, y, x) of the core.
        n: the largest label.
        core: box of the block in the volume.
        shape: of the volume.
    """
    flat = labels.ravel()
    begins = np.ones(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[:: labels.shape[2]] = True  # a run ends with its row
    start = np.flatnonzero(begins)
    length = np.diff(start, append=flat.size)
    held = flat[start] > 0
    start = start[held]
    length = length[held]
    place = np.stack(np.unravel_index(start, labels.shape))
    corner, _ = ends(core)
    place += corner[:, None]
    end = place + 1
    end[2] = place[2] + length
    first = np.ravel_multi_index(tuple(place), shape)
    label = flat[start].astype(np.int64)
    return _reduced(Extents(length, first, place, end), label - 1, n)

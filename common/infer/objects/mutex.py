"""Objects from affinities: the mutex watershed over a volume larger than memory.

An affinity says of two voxels at an offset whether they are of one object. The mutex watershed
(Wolf et al. 2018, by the package mwatershed) takes all pairs from the surest on, joins those that
are of one object and forbids the others to be joined. Here it runs twice: over the voxels of each
block with the surroundings that its offsets reach into, and over the fragments that blocks are left
with, whose affinity is the mean over all pairs of voxels between them. Fragments that two blocks
cut an object into hang together by thousands of pairs, so they are joined as surely as voxels are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import cc3d
import numpy as np

from common.data.volumes.sources import files
from common.errors import UserError
from common.infer.objects.basins import renamed
from common.infer.objects.graph import Contacts
from common.infer.objects.pairs import Pairs, find_pairs, linked
from common.infer.objects.volume import (
    Block,
    BlockWork,
    Volume,
    fill,
    probabilities,
    smallest_dtype,
    with_margin,
    within,
)


def mutex_watershed(  # noqa: PLR0917  # so it is called in process_config.py files
    mask: Volume,
    channels: Mapping[str, Volume],
    name: str,
    offsets: Sequence[Sequence[float]],
    threshold: float = 0.5,
    weights: Sequence[float] = (),
) -> Volume:
    """Return ids as of connected_components(), with objects divided by affinities.

    Across the faces of blocks objects are joined by mean affinities of fragments; within a block,
    by those of single voxels. A block takes 100 bytes for each voxel and offset.

    Args:
        mask: a mask, or ids, each of which is divided alone.
        channels: has the affinities as NAME_0, NAME_1, ..., of the types that threshold() takes.
        name: of the affinities.
        offsets: (z, y, x) nm from a voxel to the one that an affinity is about, for each of them.
        threshold: affinities above it speak for one object, those below it against (0..1).
        weights: factor of each offset, by which it is surer than others; all 1 unless given. The
            affinities of weight 0 are not looked at.
    """
    if not 0 < threshold < 1:
        raise UserError(f"threshold {threshold}; write a probability between 0 and 1")
    pairs = find_pairs(mask, channels, name, offsets, weights=weights)
    signs = _Signs(threshold, pairs.weights)
    library()  # which says before the work that it is not there
    work = BlockWork(partial(_fragments, mask, pairs, signs), (mask, *pairs.volumes))
    fragments = fill(mask, work, _dtype(mask))
    labels_of_blocks, links = linked(fragments, mask, pairs)
    all_fragments = np.concatenate(list(labels_of_blocks.values()))
    names = _clustered(all_fragments, links, signs)
    return renamed(fragments, labels_of_blocks, all_fragments, names)


@dataclass(frozen=True)
class _Signs:
    """How sure affinities are that two voxels are of one object, or of two."""

    threshold: float
    weights: tuple[float, ...]

    def of(self, affinity: np.ndarray, k: int) -> np.ndarray:
        """Return float64, above 0 for one object, below for two; the further from 0 the surer.

        NaN becomes 0, which says nothing.

        k: number of the offset.
        """
        above = affinity.astype(np.float64) - self.threshold
        return self.weights[k] * np.nan_to_num(above, nan=0)


def library() -> ModuleType:
    """Return the package mwatershed. Raise UserError where it is not installed."""
    return files.library("mwatershed", "objects from affinities", "objects")


def _fragments(mask: Volume, affinities: Pairs, signs: _Signs, block: Block) -> np.ndarray | None:
    """Return the fragments of a block, (z, y, x), in numbers that no other block has."""
    box = with_margin(block.core, affinities.margin, mask.shape)
    object_ids = mask.read(box)
    if not object_ids[within(block.core, box)].any():
        return None
    evidence = np.zeros((len(affinities.volumes), *object_ids.shape))
    for k, (volume, here, there) in enumerate(affinities.pairs(box, box)):
        at = within(here, box)
        ids = object_ids[at]
        are_one_id = (ids != 0) & (ids == object_ids[within(there, box)])
        # 0 says nothing
        evidence[k][at] = np.where(are_one_id, signs.of(probabilities(volume, here), k), 0)
    # where the volume is thinner than an offset there are no such pairs, and the library panics
    fits = (np.abs(affinities.offsets) < object_ids.shape).all(axis=1)
    labels = np.zeros(object_ids.shape, np.uint64)
    if fits.any():
        labels = library().agglom(evidence[fits], affinities.offsets[fits].tolist())
    labels = np.where(object_ids == 0, 0, labels)
    # the library gives 0 to a voxel that no affinity says anything about
    silent = np.where(labels == 0, object_ids, 0)
    if silent.any():
        alone = cc3d.connected_components(_compact(silent)).astype(labels.dtype)
        labels = np.where(silent == 0, labels, labels.max() + alone)
    labels = labels[within(block.core, box)]
    # what hung together around the block alone, or over a gap, is more than one fragment in it
    pieces = cc3d.connected_components(_compact(labels), connectivity=26)
    dtype = _dtype(mask)
    # a block has no more fragments than voxels
    first = np.ravel_multi_index(block.index, _counts(mask)) * math.prod(mask.block)
    return np.where(pieces == 0, dtype(0), pieces.astype(dtype) + dtype(first))


def _counts(mask: Volume) -> np.ndarray:
    """Return (3,) blocks along each axis."""
    return -(-np.array(mask.shape) // mask.block)


def _dtype(mask: Volume) -> type[np.unsignedinteger]:
    """Return the dtype of fragments, which are numbered through all blocks."""
    return smallest_dtype(math.prod(_counts(mask).tolist()) * math.prod(mask.block))


def _compact(labels: np.ndarray) -> np.ndarray:
    """Return labels as the small integers that cc3d takes; 0 stays."""
    names, number = np.unique(labels, return_inverse=True)
    return number.reshape(labels.shape).astype(np.uint32) + np.uint32(names[0] != 0)


def _clustered(all_fragments: np.ndarray, links: Sequence[Contacts], signs: _Signs) -> np.ndarray:
    """Return (n,) object 1.. of each fragment, by the mutex watershed of mean affinities.

    Args:
        all_fragments: (n,) ascending.
        links: pairs of fragments at each offset, with their affinities.
        signs: how affinities are weighed.
    """
    sure = np.concatenate([signs.of(link.mean, k) for k, link in enumerate(links)])
    a = np.searchsorted(all_fragments, np.concatenate([link.a for link in links]))
    b = np.searchsorted(all_fragments, np.concatenate([link.b for link in links]))
    # stable, so that of equal ones the earlier offset and the earlier fragments come first
    order = np.argsort(-np.abs(sure), kind="stable")
    edges = list(zip((sure > 0)[order].tolist(), a[order].tolist(), b[order].tolist(), strict=True))
    object_of = np.arange(len(all_fragments))
    if edges:
        fragment, cluster = np.array(library().cluster(edges)).T
        object_of[fragment] = len(all_fragments) + cluster
    _, number = np.unique(object_of, return_inverse=True)
    return (number + 1).astype(smallest_dtype(len(all_fragments)))

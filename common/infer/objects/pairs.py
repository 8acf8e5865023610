"""Affinities: what they say of pairs of voxels, and of the fragments that these are in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from common.data.volumes.box import slices
from common.errors import UserError
from common.infer.objects.graph import Contacts, combined, joined
from common.infer.objects.volume import (
    Block,
    BlockWork,
    Box,
    Index,
    Volume,
    blocks,
    ends,
    gather,
    probabilities,
    with_margin,
    within,
)

SAME_OFFSET = 0.1
"""Of a voxel: what rounding of nm leaves between two offsets that are one."""


@dataclass(frozen=True)
class Pairs:
    """Affinities and what they are about."""

    volumes: tuple[Volume, ...]
    offsets: np.ndarray
    """(k, 3) voxels from a voxel to the other of its pair."""
    weights: tuple[float, ...]
    """What each is weighed by, above 0."""

    @property
    def margin(self) -> np.ndarray:
        """(3,) voxels that they reach."""
        return np.abs(self.offsets).max(axis=0)

    def pairs(self, box: Box, outer: Box) -> Iterator[tuple[Volume, Box, Box]]:
        """Each volume, the voxels of a box whose other one is in `outer`, and those others."""
        start, stop = ends(box)
        first, last = ends(outer)
        for volume, offset in zip(self.volumes, self.offsets, strict=True):
            low = np.maximum(start, first - offset)
            high = np.maximum(np.minimum(stop, last - offset), low)
            yield volume, slices(low, high), slices(low + offset, high + offset)


def find_pairs(
    mask: Volume,
    channels: Mapping[str, Volume],
    name: str,
    offsets: Sequence[Sequence[float]],
    *,
    weights: Sequence[float] = (),
) -> Pairs:
    """The affinities NAME_0, NAME_1, ... of channels, for offsets in nm.

    weights: one for each offset, all 1 unless given; those of weight 0 are left out, unread.

    Raises UserError for what is not there, or is no whole number of voxels.
    """
    if mask.dtype.kind not in "bui":
        raise UserError(f"a mask of {mask.dtype}; threshold() it first, or hand over ids")
    if len(offsets) == 0:
        raise UserError("offsets is empty; write those that the affinities were made with, in nm")
    weights = _checked_weights(weights, len(offsets))
    volumes = []
    voxels = []
    for k in np.flatnonzero(weights).tolist():
        channel = f"{name}_{k}"
        volumes.append(_checked_volume(channels[channel], channel, offsets[k], mask))
        voxels.append(_in_voxels(offsets[k], mask))
    used = tuple(weight for weight in weights if weight)
    return Pairs(tuple(volumes), np.array(voxels), used)


def _checked_weights(weights: Sequence[float], n: int) -> tuple[float, ...]:
    """A weight for each of n offsets; all 1 where there are none. Raises UserError for others."""
    if len(weights) == 0:
        return (1.0,) * n
    are_weights = len(weights) == n and all(0 <= weight < np.inf for weight in weights)
    if not are_weights or not any(weights):
        raise UserError(
            f"weights {tuple(weights)}; write {n} numbers above 0, one for each offset, or 0 for "
            "an offset to leave out"
        )
    return tuple(weights)


def _checked_volume(volume: Volume, channel: str, offset: Sequence[float], mask: Volume) -> Volume:
    """The same. Raises UserError for affinities of other voxels, or learnt of another offset."""
    learnt: Any = getattr(volume.array, "offset_nm", None)
    apart = 0 if learnt is None else np.abs(np.subtract(learnt, offset)) / mask.voxel_size
    if np.max(apart) > SAME_OFFSET:
        raise UserError(
            f"{channel} was learnt of voxels {tuple(learnt)} nm apart, and its offset here is "
            f"{tuple(offset)}; write the offsets that it was trained with, in their order"
        )
    if volume.shape != mask.shape:
        raise UserError(
            f"{channel} of shape {volume.shape} for a mask of shape {mask.shape}; make them equal"
        )
    return volume


def _in_voxels(offset: Sequence[float], mask: Volume) -> np.ndarray:
    """(3,) an offset in voxels. Raises UserError where they are not whole, or all 0."""
    exact = np.array(offset, float) / mask.voxel_size
    whole = np.rint(exact).astype(int)
    if not whole.any() or np.abs(exact - whole).max() > SAME_OFFSET:
        raise UserError(
            f"offset {tuple(offset)} nm is {exact.round(2).tolist()} voxels of "
            f"{list(mask.voxel_size)} nm; write whole multiples of the voxel size"
        )
    return whole


def linked(
    fragments: Volume, mask: Volume, affinities: Pairs
) -> tuple[dict[Index, np.ndarray], list[Contacts]]:
    """The fragments of each block, and for each offset what is said of pairs of them."""
    function = partial(_links, fragments, mask, affinities)
    work = BlockWork(function, (fragments, mask, *affinities.volumes))
    of_blocks = {}
    links: list[list[Contacts]] = [[] for _ in affinities.volumes]
    for block, (ids, contacts) in zip(blocks(mask), gather(mask, work), strict=True):
        of_blocks[block.index] = ids
        for of_offset, contacts_of_block in zip(links, contacts, strict=True):
            of_offset.append(contacts_of_block)
    return of_blocks, [combined(joined(of_offset)) for of_offset in links]


def _links(
    fragments: Volume, mask: Volume, affinities: Pairs, block: Block
) -> tuple[np.ndarray, list[Contacts]]:
    """The fragments of a block, and for each offset what its affinities say of pairs of them."""
    box = with_margin(block.core, affinities.margin, mask.shape)
    labels = fragments.read(box)
    object_ids = mask.read(box)
    core = np.unique(labels[within(block.core, box)])
    core = core[core > 0]
    if len(core) == 0:
        return core, [joined([]) for _ in affinities.volumes]
    contacts = []
    for volume, here, there in affinities.pairs(block.core, box):
        first = within(here, box)
        second = within(there, box)
        apart = (
            (labels[first] != labels[second])
            & (object_ids[first] == object_ids[second])
            & (object_ids[first] != 0)
        )
        affinity = probabilities(volume, here)
        apart &= ~np.isnan(affinity)
        evidence = affinity[apart]
        pairs = Contacts.of_faces(
            labels[first][apart],
            labels[second][apart],
            height=np.zeros(len(evidence)),
            evidence=evidence,
        )
        contacts.append(combined(pairs))
    return core, contacts

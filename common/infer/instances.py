"""Objects from masks and probabilities: what `instance_func` in process_config.py is written with.

    def instance_func(mask, probability, name):
        return remove_small(connected_components(fill_holes(mask)), 1e6)  # nm^3

Functions take `Volume`s and give new ones. They work on one block at a time, so that a volume may
be far larger than memory, and what they give does not depend on the block. A mask is bool; ids are
integers, 0 is background. In memory are a few blocks, at most one plane of ids, and some 100 bytes
for each object of a block; the rest is in scratch files.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import fastremap
import numpy as np

from common.data.volumes.box import slices
from common.errors import UserError
from common.infer.objects.components import Components, find_components, label
from common.infer.objects.flooding import (
    watershed_of_affinities,
    watershed_of_boundary,
    watershed_of_distance,
)
from common.infer.objects.mutex import mutex_watershed
from common.infer.objects.split import SIDES, split_object
from common.infer.objects.volume import (
    Block,
    BlockWork,
    Box,
    Index,
    Volume,
    blocks,
    copy,
    ends,
    fill,
    gather,
    largest,
    map_voxels,
    smallest,
    smallest_dtype,
    zeros,
)
from common.talk import note, voxels

__all__ = [
    "Volume",
    "connected_components",
    "copy",
    "fill_holes",
    "largest",
    "mutex_watershed",
    "remove_small",
    "smallest",
    "smallest_dtype",
    "threshold",
    "watershed",
    "watershed_of_affinities",
    "watershed_of_boundary",
    "watershed_of_distance",
    "zeros",
]

# 16 M counts of 8 bytes: ids of other programs may be far apart, and a table by id must still fit
IDS_WITHOUT_NUMBERING = 2**24
"""Largest id that a table by id is made for, or the number of voxels where that is larger."""


def threshold(probability: Volume, value: float) -> Volume:
    """Mask of the voxels whose probability is above `value` (0..1).

    An unsigned integer volume holds probability * its largest value (uint8: 255), a float volume
    the probability itself (then `value` may be any number, as for logits; NaN is background).
    """
    value = float(value)
    kind = probability.dtype.kind
    if kind not in "uf":
        raise UserError(
            f"a probability of {probability.dtype}; hand over unsigned integers or floats"
        )
    if kind == "u":
        if not 0 <= value < 1:
            raise UserError(
                f"threshold {value}; write a probability from 0 to below 1, whatever integer it is "
                "stored in"
            )
        # 0.6 * 255 is 153 but for rounding, and 153 is not above it
        value = math.floor(round(value * np.iinfo(probability.dtype).max, 6))
    return map_voxels(probability, lambda values: values > value, np.bool_)


def connected_components(volume: Volume, connectivity: int = 26) -> Volume:
    """Ids 1..n of the connected components, numbered by their first voxel in z, y, x order.

    The dtype is the smallest that holds n. volume: a mask, or ids; voxels that touch with different
    ids stay apart. connectivity: 6 (faces), 18 (and edges), 26 (and corners). Raises UserError for
    more than 2^31 components of blocks.
    """
    return find_components(volume, connectivity).numbered()


def fill_holes(volume: Volume, max_nm3: float = np.inf) -> Volume:
    """Holes of up to `max_nm3` filled with the object around them; dtype as before.

    A hole is background that no path over faces joins to the border of the volume: what the border
    cuts is none. In ids, a hole takes the id of the one object that it shares faces with; between
    several objects it stays.
    """
    gaps = find_components(volume, 6, of_background=True)
    most = np.floor(_in_voxels(volume, max_nm3, "max_nm3"))
    enclosed = (gaps.low > 0).all(axis=1) & (gaps.high < volume.shape).all(axis=1)
    is_hole = enclosed & (gaps.voxels <= most)
    into = is_hole if volume.dtype == np.bool_ else _objects_around(volume, gaps, is_hole)
    if not into.any():
        return volume  # nothing is copied

    def filled(block: Block, into_of_gaps: np.ndarray) -> np.ndarray:
        values = volume.read(block.core)
        if into_of_gaps.any():
            gap, _ = label(volume, block, 6, of_background=True)
            values = np.where(values == 0, into_of_gaps[gap[block.inner]], values)
        return values

    work = BlockWork(filled, (volume,), about=partial(gaps.of_labels, into))
    return fill(volume, work, volume.dtype)


def remove_small(volume: Volume, min_nm3: float, connectivity: int = 26) -> Volume:
    """Without the objects below `min_nm3`.

    Of a mask a mask is left; of ids those left are numbered 1..m in their order. The objects of a
    mask are its components by `connectivity`; an id is one object, in one piece or more. Raises
    UserError for negative ids, and for ids so far apart that a table of them would not fit.
    """
    least = max(1, np.ceil(_in_voxels(volume, min_nm3, "min_nm3")))
    if volume.dtype == np.bool_:
        components = find_components(volume, connectivity)
        return components.relabelled(components.voxels >= least)
    keep = _voxels_of_ids(volume) >= least
    keep[0] = False
    n = int(np.count_nonzero(keep))
    number = np.where(keep, np.cumsum(keep), 0).astype(smallest_dtype(n))
    return map_voxels(volume, lambda ids: number[ids], number.dtype)


def watershed(  # noqa: PLR0917  # so it is called in process_config.py files
    mask: Volume,
    probability: Volume | None = None,
    min_distance_nm: float = 0.0,
    neck: float = 0.75,
    max_voxels: int = 2 * 256**3,
) -> Volume:
    """Ids as of connected_components(), with objects that touch split at their necks.

    Every component (26-connected) is flooded alone, from the maxima of a landscape. Two basins stay
    apart where the landscape between them falls below `neck` times the lower of their maxima: 0.75
    splits two balls whose contact is less than 3/4 as wide as the smaller. A component takes half
    a millisecond, however small, so of a mask full of specks remove_small() first.

    Args:
        mask: a mask, or ids.
        probability: the landscape, smoothed over one voxel; unless given, the distance to the
            background in nm, of which nothing is known beyond the border of the volume.
        min_distance_nm: maxima nearer to each other are of one object.
        neck: 0 (never split) to 1.
        max_voxels: a component whose box holds more (60 bytes a voxel) stays whole, with a note.
    """
    _check_watershed(mask, probability, min_distance_nm, neck)
    components = find_components(mask, 26)
    # as far apart as they have voxels, and so parts: ids are left for all of these
    first_ids = np.cumsum(components.voxels) - components.voxels + 1
    first_ids[0] = 0
    whole = components.relabelled(first_ids.astype(smallest_dtype(math.prod(mask.shape))))
    objects = _by_block(components, first_ids, max_voxels)

    def split_in_block(block: Block, of_block: Objects) -> list[_Split]:
        return _split_objects(
            whole, probability, of_block, min_distance_nm=min_distance_nm, neck=neck
        )

    reads = (whole,) if probability is None else (whole, probability)
    split = gather(mask, BlockWork(split_in_block, reads, about=lambda block: objects[block.index]))
    # each part is in one piece, so this only numbers them by their first voxel
    return connected_components(_with_parts(whole, split))


class _Split(NamedTuple):
    """An object that is more than one."""

    low: np.ndarray
    """(3,) first voxel of its box."""
    parts: np.ndarray
    """(z, y, x) 1..k in the box, 0 around it."""


Objects = list[tuple[int, Box]]
"""Ids of objects, and the box with the layer around each."""


def _by_block(components: Components, ids: np.ndarray, max_voxels: int) -> dict[Index, Objects]:
    """The components that each block takes apart: those whose box begins in it.

    Too large ones stay whole, with a note. ids: (n + 1,) of each component.
    """
    volume = components.volume
    objects: dict[Index, Objects] = {block.index: [] for block in blocks(volume)}
    for number in range(1, components.n + 1):
        low = np.maximum(components.low[number] - 1, 0)
        high = np.minimum(components.high[number] + 1, volume.shape)
        if math.prod((high - low).tolist()) > max_voxels:
            note(
                f"watershed: an object in a box of {voxels(high - low)} voxels stays whole; "
                f"max_voxels is {max_voxels}"
            )
            continue
        index = tuple((low // volume.block).tolist())
        objects[index].append((int(ids[number]), slices(low, high)))
    return objects


def _split_objects(
    whole: Volume,
    probability: Volume | None,
    objects: Objects,
    *,
    min_distance_nm: float,
    neck: float,
) -> list[_Split]:
    """Those of some objects that are more than one."""
    found = []
    for number, where in objects:
        height = None if probability is None else probability.read(where)
        # other objects may reach into the box
        inside = whole.read(where) == number
        parts = split_object(
            inside, height, whole.voxel_size, min_distance_nm=min_distance_nm, neck=neck
        )
        k = int(parts.max())
        if k > 1:
            low, _ = ends(where)
            found.append(_Split(low, parts.astype(smallest_dtype(k))))
    return found


def _with_parts(whole: Volume, split: Sequence[list[_Split]]) -> Volume:
    """Objects with ids of their own for the parts of those that are more than one.

    Part 1 keeps the id, and the others have the next ones. `split` may lie on disk: of each block,
    only where its boxes reach is kept here.
    """
    reach: dict[Index, list[int]] = {block.index: [] for block in blocks(whole)}
    for source, objects in enumerate(split):
        touched: set[Index] = set()
        for found in objects:
            touched |= _blocks_under(found, whole)
        for index in touched:
            reach[index].append(source)

    def about(block: Block) -> list[_Split]:
        return list(itertools.chain.from_iterable(split[source] for source in reach[block.index]))

    def with_parts(block: Block, objects: list[_Split]) -> np.ndarray:
        values = whole.read(block.core)
        start, _ = ends(block.core)
        for found in objects:
            shape = found.parts.shape
            low = found.low - start
            inside = slices(np.maximum(low, 0), np.clip(low + shape, 0, values.shape))
            part = slices(np.maximum(-low, 0), np.clip(values.shape - low, 0, shape))
            values[inside] += np.maximum(found.parts[part], 1) - found.parts.dtype.type(1)
        return values

    return fill(whole, BlockWork(with_parts, (whole,), about=about), whole.dtype)


def _blocks_under(found: _Split, volume: Volume) -> set[Index]:
    """The blocks that the box of an object reaches into."""
    first = found.low // volume.block
    last = (found.low + found.parts.shape - 1) // volume.block
    ranges = [range(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
    return set(itertools.product(*ranges))


def _check_watershed(
    mask: Volume, probability: Volume | None, min_distance_nm: float, neck: float
) -> None:
    if probability is not None and probability.shape != mask.shape:
        raise UserError(
            f"a probability of shape {probability.shape} for a mask of shape {mask.shape}; "
            "make them equal"
        )
    if not 0 <= neck <= 1:
        raise UserError(f"neck {neck}; write a fraction from 0 (never split) to 1")
    if not min_distance_nm >= 0:
        raise UserError(f"min_distance_nm {min_distance_nm}; write a length of at least 0 in nm")


def _in_voxels(volume: Volume, nm3: float, name: str) -> float:
    """A size in voxels; 3 voxels' nm^3 are 3, whatever the rounding of the product."""
    if not nm3 >= 0:
        raise UserError(f"{name} {nm3}; write a volume of at least 0 in nm^3")
    # 5 * 50 * 4.6 * 4.6 is more than 5 times the product of the sizes, by rounding
    return float(np.round(nm3 / math.prod(volume.voxel_size), 6))


def _objects_around(volume: Volume, gaps: Components, is_hole: np.ndarray) -> np.ndarray:
    """(n + 1,) for each hole the one id that it shares faces with; 0 between several ids.

    Several are told from one by the least and the largest id around: a set of ids for each hole
    would not fit.
    """
    limits = np.iinfo(volume.dtype)
    least = np.full(len(is_hole), limits.max, volume.dtype)
    most = np.full(len(is_hole), limits.min, volume.dtype)
    work = BlockWork(partial(_ids_around, volume), (volume,), partial(gaps.of_labels, is_hole))
    for block, around in zip(blocks(volume), gather(volume, work), strict=True):
        if around is not None:
            number = gaps.ids[block.index]
            np.minimum.at(least, number, around[0])
            np.maximum.at(most, number, around[1])
    has_one_id = is_hole & (least == most)
    return np.where(has_one_id, most, 0).astype(volume.dtype)


def _ids_around(
    volume: Volume, block: Block, is_hole: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The least and the largest id that each label of a gap shares a face with, if it is a hole."""
    if not is_hole.any():
        return None
    gap, _ = label(volume, block, 6, of_background=True)
    ids = volume.read(block.grown)
    limits = np.iinfo(volume.dtype)
    least = np.full(len(is_hole), limits.max, volume.dtype)
    most = np.full(len(is_hole), limits.min, volume.dtype)
    for axis, (here, there) in itertools.product(range(3), (SIDES[1], SIDES[-1])):
        gap_side = (slice(None),) * axis + (here,)
        id_side = (slice(None),) * axis + (there,)
        touch = is_hole[gap[gap_side]] & (ids[id_side] != 0)
        np.minimum.at(least, gap[gap_side][touch], ids[id_side][touch])
        np.maximum.at(most, gap[gap_side][touch], ids[id_side][touch])
    return least, most


def _voxels_of_ids(volume: Volume) -> np.ndarray:
    """(largest id + 1,) voxels of each id."""
    if volume.dtype.kind not in "ui":
        raise UserError(
            f"a volume of {volume.dtype} has no ids; threshold() it first, or hand over integers"
        )
    most = max(math.prod(volume.shape), IDS_WITHOUT_NUMBERING)

    def counted(block: Block) -> tuple[np.ndarray, np.ndarray]:
        return fastremap.unique(volume.read(block.core), return_counts=True)

    counts = np.zeros(1, np.int64)
    for ids, numbers in gather(volume, BlockWork(counted, (volume,))):
        lowest = int(ids[0])
        highest = int(ids[-1])
        if lowest < 0 or highest > most:
            raise UserError(
                f"ids from {lowest} to {highest}; number them by connected_components() first"
            )
        counts = np.pad(counts, (0, max(0, highest + 1 - len(counts))))
        counts[ids] += numbers.astype(np.int64)
    return counts

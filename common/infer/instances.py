"""Objects from masks and probabilities: what `instance_func` in a process_config.py is written with.

    def instance_func(mask, probability, name):
        return remove_small(connected_components(fill_holes(mask)), 1e6)  # nm^3

Functions take `Volume`s and give new ones. They work on one block at a time, so that a volume may be far larger than memory,
and what they give does not depend on the block. A mask is bool; ids are integers, 0 is background. In memory are a few blocks,
at most one plane of ids, and some 100 bytes for each object of a block; the rest is in scratch files.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cc3d
import edt
import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array, csgraph
from skimage.morphology import local_maxima
from skimage.segmentation import watershed as flood

from common.errors import FileError, UserError

IN_MEMORY = 64 * 2**20
"""Bytes up to which a new volume is in ordinary memory."""

MAX_PIECES = 2**31 - 1
"""Components of all blocks together: the union counts them in int32."""

Slices = tuple[slice, slice, slice]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Volume:
    """One class of one image; z, y, x."""

    array: Any
    """Whatever has .shape, .dtype and slicing: a numpy array, a memmap, a zarr.Array."""
    voxel_size: Sequence[float]
    """nm."""
    block: Sequence[int] = (256, 256, 256)
    """Voxels worked on at a time; a multiple of a zarr.Array's chunks is quickest."""
    scratch: Path | None = None
    """Folder of intermediate volumes; None: the system's temporary folder. They have no name and are gone with the process."""

    def __post_init__(self) -> None:
        if len(self.array.shape) != 3:
            raise UserError(
                f"a volume of shape {self.array.shape}; write an array of three axes, z, y, x"
            )
        if len(self.voxel_size) != 3 or not all(0 < size < np.inf for size in self.voxel_size):
            raise UserError(
                f"voxel_size {self.voxel_size}; write three lengths above zero in nm, z, y, x"
            )
        if len(self.block) != 3 or not all(length >= 1 for length in self.block):
            raise UserError(
                f"block {self.block}; write three numbers of voxels of at least 1, z, y, x"
            )
        if self.scratch is not None and not Path(self.scratch).is_dir():
            raise FileNotFoundError(
                f"{self.scratch}: no such folder for scratch; make it or name another"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(map(int, self.array.shape))

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.array.dtype).newbyteorder("=")

    def read(self, box: Slices) -> np.ndarray:
        return np.ascontiguousarray(self.array[box], self.dtype)


def smallest_dtype(n: int) -> type[np.unsignedinteger]:
    """The smallest unsigned integer that holds 0..n."""
    return next(
        dtype for dtype in (np.uint8, np.uint16, np.uint32, np.uint64) if n <= np.iinfo(dtype).max
    )


def zeros(like: Volume, dtype: np.dtype | type) -> Volume:
    """A new volume of zeros beside another; beyond IN_MEMORY it is mapped from a file without a name.

    Raises OSError where the disk has not that much room: a mapped file that finds it out later ends the process (SIGBUS).
    """
    size = math.prod(like.shape) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY:
        return replace(like, array=np.zeros(like.shape, dtype))
    with tempfile.TemporaryFile(dir=like.scratch) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            folder = like.scratch or tempfile.gettempdir()
            raise FileError(
                f"{folder}: no room for {size / 1e9:.1f} GB of scratch; set scratch to a folder with more"
            ) from error
        return replace(like, array=np.memmap(file, dtype, "r+", shape=like.shape))


def largest(volume: Volume) -> int:
    """The largest value of a volume, 0 of one without voxels."""
    return max((int(volume.read(block.core).max()) for block in _blocks(volume)), default=0)


def copy(volume: Volume, destination: Any) -> None:
    """Write a volume into an array of its shape, block by block.

    Raises ValueError for another shape and for a value that the destination's dtype cannot hold (uint8 would wrap id 256 to 0).
    """
    if tuple(destination.shape) != volume.shape:
        raise UserError(
            f"a volume of shape {volume.shape} for an array of shape {destination.shape}; make them equal"
        )
    dtype = np.dtype(destination.dtype)
    fits = np.can_cast(volume.dtype, dtype)
    if not fits and not (volume.dtype.kind in "ui" and dtype.kind in "ui"):
        raise UserError(
            f"a volume of {volume.dtype} for an array of {dtype}; make the array {volume.dtype}"
        )
    for block in _blocks(volume):
        values = volume.read(block.core)
        if not fits and (values.max() > np.iinfo(dtype).max or values.min() < np.iinfo(dtype).min):
            raise UserError(
                f"values from {values.min()} to {values.max()} for an array of {dtype}; make it {volume.dtype}"
            )
        destination[block.core] = values


def threshold(probability: Volume, value: float) -> Volume:
    """Mask of the voxels whose probability is above `value` (0..1).

    An unsigned integer volume holds probability * its largest value (uint8: 255), a float volume the probability itself (then
    `value` may be any number, as for logits; NaN is background).
    """
    kind, value = probability.dtype.kind, float(value)
    if kind not in "uf":
        raise UserError(
            f"a probability of {probability.dtype}; hand over unsigned integers or floats"
        )
    if kind == "u" and not 0 <= value < 1:
        raise UserError(
            f"threshold {value}; write a probability from 0 to below 1, whatever integer it is stored in"
        )
    if kind == "u":
        value = math.floor(round(value * np.iinfo(probability.dtype).max, 6))
    return _map(probability, lambda values: values > value, np.bool_)


def connected_components(volume: Volume, connectivity: int = 26) -> Volume:
    """Ids 1..n of the connected components, numbered by their first voxel in z, y, x order; smallest dtype that holds n.

    volume: a mask, or ids; voxels that touch with different ids stay apart. connectivity: 6 (faces), 18 (and edges), 26 (and
    corners). More than 2^31 components of blocks are refused with a ValueError.
    """
    components = _components(volume, connectivity)
    return components.relabelled(np.arange(components.n + 1, dtype=smallest_dtype(components.n)))


def fill_holes(volume: Volume, max_nm3: float = np.inf) -> Volume:
    """Holes of up to `max_nm3` filled with the object around them; dtype as before.

    A hole is background that no path over faces joins to the border of the volume: what the border cuts is none. In ids, a
    hole takes the id of the one object that it shares faces with; between several objects it stays.
    """
    gaps = _components(volume, 6, of_background=True)
    enclosed = (gaps.low > 0).all(1) & (gaps.high < volume.shape).all(1)
    hole = enclosed & (gaps.voxels <= _voxels(volume, max_nm3, "max_nm3", np.floor))
    fill = hole if volume.dtype == np.bool_ else _objects_around(volume, gaps, hole)
    if not fill.any():
        return volume
    filled = zeros(volume, volume.dtype)
    for block in _blocks(volume):
        values = volume.read(block.core)
        if fill[gaps.ids[block.index]].any():
            values = np.where(values == 0, fill[gaps.read(block)[block.inner]], values)
        filled.array[block.core] = values
    return filled


def remove_small(volume: Volume, min_nm3: float, connectivity: int = 26) -> Volume:
    """Without the objects below `min_nm3`: of ids, those left are numbered 1..m in their order; of a mask, a mask.

    The objects of a mask are its components by `connectivity`; an id is one object, in one piece or more. Raises ValueError
    for negative ids, and for ids so far apart that a table of them would not fit: number them by connected_components() first.
    """
    least = max(1, _voxels(volume, min_nm3, "min_nm3", np.ceil))
    if volume.dtype == np.bool_:
        components = _components(volume, connectivity)
        return components.relabelled(components.voxels >= least)
    keep = _voxels_of_ids(volume) >= least
    keep[0] = False
    number = np.where(keep, np.cumsum(keep), 0).astype(smallest_dtype(np.count_nonzero(keep)))
    return _map(volume, lambda ids: number[ids], number.dtype)


def watershed(
    mask: Volume,
    probability: Volume | None = None,
    min_distance_nm: float = 0.0,
    neck: float = 0.75,
    max_voxels: int = 2 * 256**3,
) -> Volume:
    """Ids as of connected_components(), with objects that touch split at their necks.

    Every component (26-connected) is flooded alone, from the maxima of a landscape: the distance to the background in nm or,
    where a volume of it is given, the probability, smoothed over one voxel. Two basins stay apart where the landscape between
    them falls below `neck` times the lower of their maxima, so 0.75 splits two balls whose contact is less than 3/4 as wide as
    the smaller ball. They are one object where the maxima are nearer than `min_distance_nm`, and where the distance falls by
    less than a voxel's shortest edge, which is the grain of its surface. Beyond the border of the volume nothing is known: no
    distance is measured to it.

    A component whose box holds more than `max_voxels` is left whole, and the log says so: a box takes about 60 bytes a voxel in
    memory. Of a mask full of specks, remove_small() first: a component takes half a millisecond, however small.
    """
    if probability is not None and probability.shape != mask.shape:
        raise UserError(
            f"a probability of shape {probability.shape} for a mask of shape {mask.shape}; make them equal"
        )
    if not 0 <= neck <= 1:
        raise UserError(f"neck {neck}; write a fraction from 0 (never split) to 1")
    if not min_distance_nm >= 0:
        raise UserError(f"min_distance_nm {min_distance_nm}; write a length of at least 0 in nm")
    components = _components(mask, 26)
    # There are never more parts than voxels.
    parts = components.relabelled(
        np.arange(components.n + 1, dtype=smallest_dtype(math.prod(mask.shape)))
    )
    last = components.n
    for number in range(1, components.n + 1):
        low, high = (
            np.maximum(components.low[number] - 1, 0),
            np.minimum(components.high[number] + 1, mask.shape),
        )
        if math.prod((high - low).tolist()) > max_voxels:
            size = " x ".join(map(str, high - low))
            logger.warning(
                "watershed: an object in a box of %s voxels stays whole; max_voxels is %d",
                size,
                max_voxels,
            )
            continue
        box = tuple(map(slice, low.tolist(), high.tolist()))
        ids = parts.read(box)
        values = None if probability is None else probability.read(box)
        found = _split(ids == number, values, mask.voxel_size, min_distance_nm, neck)
        if found.max() > 1:  # part 1 keeps the number
            parts.array[box] = np.where(found > 1, last - 1 + found.astype(ids.dtype), ids)
            last += int(found.max()) - 1
    return connected_components(parts)


# One block after another


@dataclass(frozen=True)
class _Block:
    index: tuple[int, ...]
    core: Slices
    """Its own voxels."""
    grown: Slices
    """And the layer before them on every axis that has one: any two neighbouring voxels are in one grown block."""
    inner: Slices
    """`core` within `grown`."""


def _blocks(volume: Volume) -> Iterator[_Block]:
    """In z, y, x order."""
    length = np.array(volume.block)
    for index in np.ndindex(*(-(-np.array(volume.shape) // length))):
        start = np.array(index) * length
        stop = np.minimum(start + length, volume.shape)
        before = np.maximum(start - 1, 0)
        yield _Block(
            index,
            tuple(map(slice, start.tolist(), stop.tolist())),
            tuple(map(slice, before.tolist(), stop.tolist())),
            tuple(slice(int(layer), None) for layer in start - before),
        )


def _map(
    volume: Volume, function: Callable[[np.ndarray], np.ndarray], dtype: np.dtype | type
) -> Volume:
    """A function of single voxels, block by block."""
    result = zeros(volume, dtype)
    for block in _blocks(volume):
        values = function(volume.read(block.core))
        if values.any():
            result.array[block.core] = values
    return result


def _voxels(volume: Volume, nm3: float, name: str, rounded: Callable) -> float:
    """A size in voxels; 3 voxels' nm^3 are 3, whatever the rounding of the product."""
    if not nm3 >= 0:
        raise UserError(f"{name} {nm3}; write a volume of at least 0 in nm^3")
    return float(rounded(np.round(nm3 / math.prod(volume.voxel_size), 6)))


# Components

# A table of components: rows are voxels, first voxel in z, y, x order, low corner, high corner; columns are components.
FAR = np.iinfo(np.int64).max
REDUCE = (np.add, *[np.minimum] * 4, *[np.maximum] * 3)
START = np.array([[0], *[[FAR]] * 4, *[[0]] * 3])
BACKGROUND = np.array([[0], *[[-1]] * 4, *[[0]] * 3])
"""Comes first and touches the border of the volume."""


@dataclass(frozen=True)
class _Components:
    """Connected components of a volume: tables by id, and the ids of a block, which are found anew instead of stored."""

    volume: Volume
    connectivity: int
    of_background: bool
    ids: dict[tuple[int, ...], np.ndarray]
    """For each block, by its index, the id of each component of the grown block; [0] is 0."""
    n: int
    """The largest id."""
    voxels: np.ndarray
    """(n + 1,), of each id; 0 for the background."""
    low: np.ndarray
    high: np.ndarray
    """(n + 1, 3), box of each id."""

    def read(self, block: _Block) -> np.ndarray:
        """Ids of the grown block."""
        labels, _ = _label(self.volume, block, self.connectivity, self.of_background)
        return self.ids[block.index][labels]

    def relabelled(self, table: np.ndarray) -> Volume:
        """A volume of table[id]; table[0] is 0."""
        result = zeros(self.volume, table.dtype)
        for block in _blocks(self.volume):
            if table[self.ids[block.index]].any():
                result.array[block.core] = table[self.read(block)[block.inner]]
        return result


def _label(
    volume: Volume, block: _Block, connectivity: int, of_background: bool
) -> tuple[np.ndarray, int]:
    """Components 1..n of a grown block, and n."""
    values = volume.read(block.grown)
    values = values == 0 if of_background else values
    if not values.any():
        return np.zeros(values.shape, np.uint16), 0
    return cc3d.connected_components(values, connectivity=connectivity, return_N=True)


def _components(volume: Volume, connectivity: int, of_background: bool = False) -> _Components:
    """Label grown blocks and join the pieces that hold the same voxel.

    Two neighbouring blocks both label the layer between them, so nothing has to be known there of values and diagonals.
    Pieces are numbered through all blocks; piece 0 is the background.
    """
    if volume.dtype.kind not in "bui":
        raise UserError(
            f"a volume of {volume.dtype} has no objects; threshold() it first, or hand over ids as integers"
        )
    if connectivity not in (6, 18, 26):
        raise UserError(f"connectivity {connectivity}; write 6, 18 or 26")
    spans, layers, pairs, tables, pieces = {}, {}, [], [BACKGROUND], 1
    for block in _blocks(volume):
        labels, n = _label(volume, block, connectivity, of_background)
        spans[block.index] = slice(pieces, pieces + n)
        for axis, at in enumerate(block.index):
            before = (*block.index[:axis], at - 1, *block.index[axis + 1 :])
            if at > 0:
                pairs.append(
                    _same(
                        layers.pop((axis, before)),
                        spans[before].start,
                        labels.take(0, axis),
                        pieces,
                    )
                )
            if block.core[axis].stop < volume.shape[axis]:
                layers[axis, block.index] = labels.take(-1, axis)
        tables.append(_measured(labels[block.inner], n, block.core, volume.shape))
        pieces += n
        if pieces > MAX_PIECES:
            raise UserError(
                f"more than {MAX_PIECES} components of blocks; a mask without noise has fewer"
            )
    a, b = np.concatenate([np.zeros((2, 0), int), *pairs], 1)
    n, group = csgraph.connected_components(
        coo_array((np.ones(len(a), bool), (a, b)), (pieces, pieces)), directed=False
    )
    table = _reduced(np.concatenate(tables, 1), group, n)
    order = np.argsort(table[1])
    number = np.empty(n, smallest_dtype(n - 1))
    number[order] = np.arange(n)
    ids = {
        index: np.append(number[group[:1]], number[group[span]]) for index, span in spans.items()
    }
    voxels, _, *box = table[:, order]
    return _Components(
        volume,
        connectivity,
        of_background,
        ids,
        n - 1,
        voxels,
        np.stack(box[:3], 1),
        np.stack(box[3:], 1),
    )


def _same(before: np.ndarray, first_before: int, after: np.ndarray, first_after: int) -> np.ndarray:
    """(2, k) distinct pairs of pieces that hold the same voxel of a layer; components of a block are labelled from 1."""
    held = before > 0
    pairs = np.unique(before[held].astype(np.int64) << 32 | after[held].astype(np.int64))
    return np.stack([(pairs >> 32) - 1 + first_before, (pairs & 0xFFFFFFFF) - 1 + first_after])


def _reduced(table: np.ndarray, group: np.ndarray, n: int) -> np.ndarray:
    """The table of n groups of columns."""
    result = np.repeat(START, n, 1)
    for reduce, row, values in zip(REDUCE, result, table, strict=True):
        reduce.at(row, group, values)
    return result


def _measured(labels: np.ndarray, n: int, core: Slices, shape: tuple[int, int, int]) -> np.ndarray:
    """(8, n) table of the labels 1..n of a block. It is made of runs along x, which are far fewer than voxels."""
    if n == 0:
        return np.zeros((8, 0), np.int64)
    flat = labels.ravel()
    begins = np.empty(flat.size, bool)
    begins[0] = True
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[:: labels.shape[2]] = True
    run = np.flatnonzero(begins)
    length = np.diff(run, append=flat.size)
    held = flat[run] > 0
    run, length = run[held], length[held]
    z, y, x = (
        at + part.start for at, part in zip(np.unravel_index(run, labels.shape), core, strict=True)
    )
    first = np.ravel_multi_index((z, y, x), shape)
    return _reduced(
        np.stack([length, first, z, y, x, z + 1, y + 1, x + length]),
        flat[run].astype(np.int64) - 1,
        n,
    )


# What the functions ask of blocks


def _objects_around(volume: Volume, gaps: _Components, hole: np.ndarray) -> np.ndarray:
    """For each gap that is a hole, the one id it shares faces with; 0 where it is none or they are several."""
    limits = np.iinfo(volume.dtype)
    least, most = (np.full(len(hole), limit, volume.dtype) for limit in (limits.max, limits.min))
    for block in _blocks(volume):
        if not hole[gaps.ids[block.index]].any():
            continue
        ids, values = gaps.read(block), volume.read(block.grown)
        gap, held = hole[ids], values != 0
        for axis, backwards in itertools.product(range(3), (False, True)):
            a, b = (
                tuple(part if i == axis else slice(None) for i in range(3))
                for part in (slice(1, None), slice(-1))
            )
            a, b = (b, a) if backwards else (a, b)
            touch = gap[a] & held[b]
            np.minimum.at(least, ids[a][touch], values[b][touch])
            np.maximum.at(most, ids[a][touch], values[b][touch])
    return np.where(hole & (least == most), most, 0).astype(volume.dtype)


def _voxels_of_ids(volume: Volume) -> np.ndarray:
    """Voxels of each id from 0 to the largest."""
    if volume.dtype.kind not in "ui":
        raise UserError(
            f"a volume of {volume.dtype} has no ids; threshold() it first, or hand over integers"
        )
    most = max(math.prod(volume.shape), 2**24)
    counts = np.zeros(1, np.int64)
    for block in _blocks(volume):
        ids = volume.read(block.core)
        if ids.min() < 0 or ids.max() > most:
            raise UserError(
                f"ids from {ids.min()} to {ids.max()}; number them by connected_components() first"
            )
        found = np.bincount(ids.ravel())
        counts = np.pad(counts, (0, max(0, len(found) - len(counts))))
        counts[: len(found)] += found
    return counts


# Splitting one object


def _split(
    inside: np.ndarray,
    probability: np.ndarray | None,
    voxel_size: Sequence[float],
    min_distance_nm: float,
    neck: float,
) -> np.ndarray:
    """Parts 1..k of the object `inside` in its box, 0 around it."""
    if probability is None:
        landscape = edt.edt(inside, anisotropy=tuple(voxel_size))
        grain = 1.001 * min(voxel_size)  # above rounding
    else:
        landscape, grain = _smoothed(probability, inside), 0.0
    maxima = cc3d.connected_components(local_maxima(landscape, connectivity=3) & inside)
    if maxima.max() <= 1:
        return inside.astype(np.uint8)
    basins = flood(-landscape, maxima, connectivity=3, mask=inside)
    at = np.flatnonzero(maxima)
    at = at[
        np.unique(maxima.flat[at], return_index=True)[1]
    ]  # the first voxel of each, in the order of the basins
    peak, top = landscape.flat[at], np.stack(np.unravel_index(at, maxima.shape), 1) * voxel_size

    def one_object(height: float, a: int, b: int) -> bool:
        lower = min(peak[a - 1], peak[b - 1])
        shallow = height >= min(neck * lower, lower - grain)
        return shallow or np.linalg.norm(top[a - 1] - top[b - 1]) < min_distance_nm

    return _merged(peak, _passes(basins, landscape), one_object)[basins]


def _smoothed(probability: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The probability under a Gaussian of one voxel, weighted within the object; -1 around it."""
    weight = ndimage.gaussian_filter(inside.astype(np.float32), 1, mode="constant")
    total = ndimage.gaussian_filter(
        np.where(inside, probability, 0).astype(np.float32), 1, mode="constant"
    )
    return np.where(inside, total / np.where(inside, weight, 1), np.float32(-1))


def _merged(
    peak: np.ndarray,
    passes: list[tuple[float, int, int]],
    one_object: Callable[[float, int, int], bool],
) -> np.ndarray:
    """Part of each basin, 0..k: over the highest pass first, basins that are one object take the number of the highest peak."""
    part = list(range(len(peak) + 1))
    for height, a, b in passes:
        a, b = _root(part, a), _root(part, b)
        if a != b and one_object(height, a, b):
            high, low = (a, b) if (peak[a - 1], b) >= (peak[b - 1], a) else (b, a)
            part[low] = high
    return np.unique([_root(part, basin) for basin in part], return_inverse=True)[1]


def _root(part: list[int], number: int) -> int:
    while part[number] != number:
        part[number] = part[part[number]]
        number = part[number]
    return number


def _passes(basins: np.ndarray, landscape: np.ndarray) -> list[tuple[float, int, int]]:
    """The highest pass (height, basin, basin) between any two basins that touch, the highest first."""
    keys, heights = [], []
    for offset in itertools.product((-1, 0, 1), repeat=3):
        if offset > (0, 0, 0):
            a = tuple(slice(max(0, -step), min(0, -step) or None) for step in offset)
            b = tuple(slice(max(0, step), min(0, step) or None) for step in offset)
            touch = (basins[a] != basins[b]) & (basins[a] > 0) & (basins[b] > 0)
            low, high = np.sort([basins[a][touch], basins[b][touch]], 0).astype(np.int64)
            keys.append(low << 32 | high)
            heights.append(np.minimum(landscape[a][touch], landscape[b][touch]))
    pair, which = np.unique(np.concatenate(keys), return_inverse=True)
    highest = np.full(len(pair), -np.inf)
    np.maximum.at(highest, which, np.concatenate(heights))
    pair, highest = (values[np.argsort(-highest, kind="stable")] for values in (pair, highest))
    return list(
        zip(highest.tolist(), (pair >> 32).tolist(), (pair & 0xFFFFFFFF).tolist(), strict=True)
    )

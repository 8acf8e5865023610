"""Volumes larger than memory: one class of one image, read and written one block at a time."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from common.data.volumes.box import boxes, slices
from common.errors import FileError, UserError

# a file for each small volume would cost more than the memory
IN_MEMORY = 64 * 2**20
"""Bytes up to which a new volume is in memory, and in no file."""

EVERYWHERE = 0.95
"""Fraction of a volume: a class that is positive in more of it is positive everywhere."""

Box: TypeAlias = tuple[slice, ...]
"""Part of an array, along z, y, x; made by `common.data.volumes.box.slices`."""

Index = tuple[int, ...]
"""Which block, along each axis."""


class Stages(Protocol):
    """Keeps what is made block by block, so that a call that is killed goes on with it.

    See `common.infer.processing.stages`; `fill` and `gather` are the functions below.
    """

    def fill(self, like: Volume, work: BlockWork, dtype: np.dtype | type) -> Volume:
        """Return what `fill` returns."""

    def gather(self, like: Volume, work: BlockWork) -> Sequence[Any]:
        """Return what `gather` returns."""


@dataclass(frozen=True)
class Volume:
    """One class of one image; z, y, x."""

    array: Any
    """Anything with .shape, .dtype and slicing: a numpy array, a memmap, a zarr.Array."""
    voxel_size: Sequence[float]
    """nm."""
    block: Sequence[int] = (256, 256, 256)
    """Voxels worked on at a time; a multiple of a zarr.Array's chunks is quickest."""
    scratch: Path | None = None
    """Folder of intermediate volumes, which have no name and are gone with the process.

    None: the system's temporary folder.
    """
    stages: Stages | None = field(default=None, compare=False, repr=False)
    """What keeps volumes that are made of this one; None leaves them to this process."""

    def __post_init__(self) -> None:
        if not isinstance(getattr(self.array, "dtype", None), np.dtype):
            raise UserError(
                f"a volume of a {type(self.array).__name__}; write a NumPy or zarr array of three "
                "axes, z, y, x"
            )
        if len(self.array.shape) != 3:
            raise UserError(
                f"a volume of shape {self.array.shape}; write an array of three axes, z, y, x"
            )
        if len(self.voxel_size) != 3 or not all(0 < length < np.inf for length in self.voxel_size):
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
        """The number of voxels along z, y, x."""
        z, y, x = self.array.shape
        return int(z), int(y), int(x)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the voxels, in this machine's byte order."""
        return np.dtype(self.array.dtype).newbyteorder("=")

    def read(self, where: Box) -> np.ndarray:
        """Return the voxels of a box, contiguous, as `dtype`."""
        return np.ascontiguousarray(self.array[where], self.dtype)


@dataclass(frozen=True)
class Block:
    """A part of a volume that is worked on at once."""

    index: Index
    core: Box
    """The voxels of the block itself."""
    grown: Box
    """`core` with the layer before it along each axis: neighbours are in one grown block."""
    inner: Box
    """`core` within `grown`."""


def blocks(volume: Volume) -> Iterator[Block]:
    """Yield the blocks of a volume in z, y, x order."""
    for start, stop in boxes(volume.shape, volume.block):
        index = start // volume.block
        before = np.maximum(start - 1, 0)
        yield Block(
            tuple(index.tolist()),
            core=slices(start, stop),
            grown=slices(before, stop),
            inner=slices(start - before, stop - before),
        )


def ends(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Return the first voxel of a box, (3,), and its last + 1."""
    start = np.array([along.start for along in box])
    stop = np.array([along.stop for along in box])
    return start, stop


def with_margin(box: Box, margin: int | np.ndarray, shape: Sequence[int]) -> Box:
    """Return a box with `margin` voxels around it, as far as a volume of `shape` goes."""
    start, stop = ends(box)
    return slices(np.maximum(start - margin, 0), np.minimum(stop + margin, shape))


def within(box: Box, outer: Box) -> Box:
    """Return a box of a volume as a box within a larger one."""
    first, _ = ends(outer)
    start, stop = ends(box)
    return slices(start - first, stop - first)


class Item(NamedTuple):
    """A block as it travels to a worker."""

    number: int
    arguments: tuple[Any, ...]
    """Arguments of `BlockWork.function`: the block, and what `about` says of it."""

    @property
    def block(self) -> Block:
        """The block itself."""
        return self.arguments[0]


@dataclass(frozen=True)
class BlockWork:
    """What is computed of each block of a volume, by this process or by workers."""

    function: Callable[..., Any]
    """Called with a block, and with what `about` says of it if that is given.

    It travels to workers with every variable that it refers to: none may be a table of all blocks.
    """
    reads: tuple[Volume, ...]
    """Volumes that the function reads."""
    about: Callable[[Block], Any] | None = None
    """Called in this process; its result travels with the block."""
    together: int = 0
    """If above 0, the function takes a list of so many blocks, and returns a list."""
    told: Callable[[Block], None] | None = None
    """Called in this process when a block is done."""

    def item(self, number: int, block: Block) -> Item:
        """Return a block as it travels, with what `about` says of it."""
        return Item(number, (block, self.about(block)) if self.about else (block,))

    def results(self, items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
        """Yield each block with what the function returns for it."""
        for batch in _batches(items, self.together or 1):
            if self.together:
                results = self.function([item.block for item in batch])
            else:
                results = [self.function(*item.arguments) for item in batch]
            yield from zip(batch, results, strict=True)


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items; the last may have fewer."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def each_result(like: Volume, work: BlockWork) -> Iterator[tuple[Block, Any]]:
    """Yield the blocks of `like` in z, y, x order, with what the function returns for each."""
    items = (work.item(number, block) for number, block in enumerate(blocks(like)))
    for item, result in work.results(items):
        yield item.block, result
        if work.told:
            work.told(item.block)


def fill(like: Volume, work: BlockWork, dtype: np.dtype | type) -> Volume:
    """Return a new volume of the shape of `like`: what the function returns for each block's core.

    None stands for 0 throughout.
    """
    if like.stages is not None:
        return like.stages.fill(like, work, dtype)
    result = zeros(like, dtype)
    for block, values in each_result(like, work):
        # zeros stay untouched: pages that are not written take no memory
        if values is not None and values.any():
            result.array[block.core] = values
    return result


def gather(like: Volume, work: BlockWork) -> Sequence[Any]:
    """Return what the function returns for each block of `like`, in z, y, x order."""
    if like.stages is not None:
        return like.stages.gather(like, work)
    return [result for _, result in each_result(like, work)]


def smallest_dtype(n: int) -> type[np.unsignedinteger]:
    """Return the smallest unsigned integer type that holds 0..n."""
    for dtype in (np.uint8, np.uint16, np.uint32):
        if n <= np.iinfo(dtype).max:
            return dtype
    return np.uint64


def zeros(like: Volume, dtype: np.dtype | type) -> Volume:
    """Return a volume of zeros of the shape of `like`; beyond IN_MEMORY bytes from a scratch file.

    Raise FileError where the disk has not that much room.
    """
    size = math.prod(like.shape) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY:
        return replace(like, array=np.zeros(like.shape, dtype))
    with tempfile.TemporaryFile(dir=like.scratch) as file:
        try:
            # a mapped file that finds out later that the disk is full ends the process (SIGBUS)
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            folder = like.scratch or tempfile.gettempdir()
            other = "write to another disk" if like.scratch else "set TMPDIR to a folder with more"
            raise FileError(
                f"{folder}: no room for {size / 1e9:.1f} GB of intermediate volumes; free space "
                f"there, or {other}"
            ) from error
        return replace(like, array=np.memmap(file, dtype, "r+", shape=like.shape))


def probabilities(volume: Volume, where: Box) -> np.ndarray:
    """Return float32 probabilities of a box; unsigned integers hold them times their maximum."""
    values = volume.read(where)
    if values.dtype.kind != "u":
        return values.astype(np.float32)
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)


def largest(volume: Volume) -> int:
    """Return the largest value of a volume, 0 of one without voxels."""

    def most(block: Block) -> int:
        return int(volume.read(block.core).max())

    return max(gather(volume, BlockWork(most, (volume,))), default=0)


def smallest(volume: Volume) -> int:
    """Return the smallest value of a volume, 0 of one without voxels."""

    def least(block: Block) -> int:
        return int(volume.read(block.core).min())

    return min(gather(volume, BlockWork(least, (volume,))), default=0)


def copy(volume: Volume, destination: Any) -> None:
    """Write a volume into an array of its shape, block by block.

    Raise UserError for another shape, and for a value that the destination's dtype cannot hold.
    """
    if tuple(destination.shape) != volume.shape:
        raise UserError(
            f"a volume of shape {volume.shape} for an array of shape {destination.shape}; make "
            "them equal"
        )
    dtype = np.dtype(destination.dtype)
    fits = np.can_cast(volume.dtype, dtype)
    if not fits and not (volume.dtype.kind in "ui" and dtype.kind in "ui"):
        raise UserError(
            f"a volume of {volume.dtype} for an array of {dtype}; make the array {volume.dtype}"
        )

    def copy_block(block: Block) -> None:
        values = volume.read(block.core)
        if not fits:
            _refuse_wrapping(values, dtype)
        destination[block.core] = values

    gather(volume, BlockWork(copy_block, (volume,)))


def _refuse_wrapping(values: np.ndarray, dtype: np.dtype) -> None:
    """Raise UserError for integers beyond a dtype: NumPy would write id 256 as 0 into uint8."""
    limits = np.iinfo(dtype)
    if values.max() > limits.max or values.min() < limits.min:
        raise UserError(
            f"values from {values.min()} to {values.max()} for an array of {dtype}; make it "
            f"{values.dtype}"
        )


def map_voxels(
    volume: Volume, function: Callable[[np.ndarray], np.ndarray], dtype: np.dtype | type
) -> Volume:
    """Return a new volume of a function of single voxels, computed block by block."""

    def mapped(block: Block) -> np.ndarray:
        return function(volume.read(block.core))

    return fill(volume, BlockWork(mapped, (volume,)), dtype)

"""Which voxels of a volume are computed, in which blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from common.data.crops.input_channels import ChannelVolume
from common.data.crops.normalize import Scaling
from common.data.samples import sampling
from common.data.samples.sampling import Patch
from common.data.volumes.level import Grid
from common.data.volumes.raw import Raw
from common.infer.networks.window import SAME_SCALE, Window

# 2 MB of uint8: readers want a part of a volume, and a file system does not want millions of files
LARGEST_CHUNK = 128
"""Edge in voxels that written chunks have at most, unless a single window gives more."""

ROUNDING = 1e-6
"""Of a voxel: what rounding of nm leaves of a whole number."""

ON_VOXEL = 1e-3
"""Of a voxel: a corner that lies less beside one lies on it."""


@dataclass(frozen=True)
class BlockPlan:
    """Which voxels are computed, in which blocks, with which window.

    A box of voxels is two arrays (3,): its first voxel, and its last one + 1. Voxels are counted
    from the lower corner of `grid` unless said otherwise.
    """

    raw: Raw
    window: Window
    grid: Grid
    """Of the written voxels. The network's voxels are counted from its lower corner too."""
    block_shape: tuple[int, ...]
    """Written voxels of a block along each axis; whole chunks."""
    chunk_shape: tuple[int, ...]
    """Written voxels of a chunk on disk."""
    largest: int
    """Edge in voxels that blocks have at most, or nearly. With the box it determines the plan."""
    scaling: Scaling | None = None
    """How raw is normalised; None leaves it as raw_range gives it."""
    channels: tuple[ChannelVolume, ...] = ()
    """The network's inputs beside raw."""

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of blocks along each axis."""
        pairs = zip(self.grid.shape, self.block_shape, strict=True)
        return tuple(math.ceil(n / length) for n, length in pairs)

    @property
    def blocks(self) -> range:
        """The numbers of all blocks."""
        return range(math.prod(self.counts))

    @property
    def resampled(self) -> bool:
        """Whether the written voxels have another size than the network's."""
        return not np.allclose(self.grid.scale, self.window.output.scale, rtol=SAME_SCALE)

    def output_box(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the box of a block in written voxels."""
        start = np.array(np.unravel_index(number, self.counts)) * self.block_shape
        return start, np.minimum(start + self.block_shape, self.grid.shape)

    @property
    def from_corner(self) -> np.ndarray:
        """(3,) voxels of the network from the raw's corner to the lower corner of `grid`.

        Windows are counted from the raw's corner: a network that pools gives other values where its
        poolings fall otherwise, and a box is to have the values of the whole volume. Along an axis
        where the corner of `grid` lies between two voxels of the network it is 0: there is nothing
        to agree with.
        """
        return _voxels_between(self.raw.grid, self.grid, self.window)

    def network_box(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the box of a block in the network's voxels, those that the block is made of.

        It begins at a whole unit of the window, unless windows overlap anyway.
        """
        start, stop = self.output_box(number)
        if self.resampled:
            ratio = self.grid.scale / self.window.output.scale
            # one more on each side: linear interpolation takes the next voxel too
            start = np.floor(start * ratio - 1 + ROUNDING).astype(int)
            stop = np.ceil(stop * ratio + 1 - ROUNDING).astype(int)
        elif not self.window.agree:
            return start, stop
        return self._at_multiple(start, self.window.unit), stop

    def _at_multiple(self, first: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Return the last voxel up to `first` that is whole steps from the raw's corner."""
        beyond = self.from_corner
        return (first + beyond) // step * step - beyond

    def window_starts(self, number: int) -> list[range]:
        """Return for each axis where the windows of a block start, in voxels of the network."""
        size = np.array(self.window.output.shape)
        stride = self.window.stride
        first, last = self.network_box(number)
        if not self.window.agree:
            # on one lattice over the whole volume, so that a voxel is the mean over the same
            # windows in any block of any box: all windows that reach into this one
            first = self._at_multiple(first - size, stride) + stride
        axes = zip(first.tolist(), last.tolist(), stride.tolist(), strict=True)
        return [range(start, stop, step) for start, stop, step in axes]

    def raw_ends(
        self, start: np.ndarray, grid: Grid | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return where the first and last input voxel of a window lie, in voxels of a grid.

        They are (3,) fractional voxels, counted from the centre of the grid's first one. Where the
        network's input has the raw's voxel size, the window is on whole voxels of the raw, chosen
        as in training.

        Args:
            start: (3,) first voxel that the window gives, in voxels of the network.
            grid: of an input channel; of the raw unless given.
        """
        input_patch = self.window.input
        output_patch = self.window.output
        corner = self.grid.box()[0]
        base = sampling.on_voxels(
            corner + output_patch.extent / 2, np.eye(3), input_patch, self.raw.grid
        )
        centre = base + start * output_patch.scale
        half = (np.array(input_patch.shape) - 1) / 2 * input_patch.scale
        grid = grid or self.raw.grid
        first = (centre - half - grid.origin) / grid.scale
        last = (centre + half - grid.origin) / grid.scale
        return first, last

    def input_box(self, number: int, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Return the box that a block needs of raw or of an input channel, in voxels of its grid.

        The box may reach beyond the grid.
        """
        starts = self.window_starts(number)
        low, _ = self.raw_ends(np.array([along[0] for along in starts]), grid)
        _, high = self.raw_ends(np.array([along[-1] for along in starts]), grid)
        # 0.01 voxels: where rounding puts a window just off a voxel, that one is read too
        start = np.floor(low - 0.01).astype(int)
        stop = np.ceil(high + 0.01).astype(int) + 1
        return start, stop

    def check_channels(self, where: str) -> None:
        """Raise UserError for an input channel that does not cover what is read of it.

        where: the box, as the message names it.
        """
        if not self.channels:
            return
        raw = self.raw.grid
        start, _ = self.input_box(0, raw)
        _, stop = self.input_box(self.blocks[-1], raw)
        # by a voxel less on each side, which rounding adds
        around = raw.origin + (start + 0.5) * raw.scale, raw.origin + (stop - 1.5) * raw.scale
        lower, upper = self.grid.box()
        margin = float(np.maximum(lower - around[0], around[1] - upper).max())
        for channel in self.channels:
            channel.check_covers(around, raw, where=where, margin=margin)


def plan_blocks(
    raw: Raw,
    window: Window,
    lower: np.ndarray,
    upper: np.ndarray,
    *,
    scale: Sequence[float] = (),
    largest: int = 128,
) -> BlockPlan:
    """Return a plan that covers a box of the raw by written voxels, in blocks.

    Where the raw has the network's voxel size, the box is moved down by less than a voxel onto the
    voxels of the raw.

    Args:
        raw: what is read.
        window: of the network; it grows to a whole block where it can.
        lower: (3,) nm, lower corner of the box.
        upper: (3,) nm, upper corner.
        scale: nm, z, y, x, of the written voxels; the network's unless given.
        largest: voxels along an edge of a block, about.
    """
    written_scale = np.array(scale or window.output.scale, float)
    corner = _on_raw(lower, raw.grid, window.input)
    shape = np.maximum(1, np.ceil((upper - corner) / written_scale - ON_VOXEL)).astype(int)
    grid = Grid(corner + written_scale / 2, written_scale, tuple(shape.tolist()))
    ratio = written_scale / window.output.scale
    resampled = not np.allclose(ratio, 1, rtol=SAME_SCALE)
    units = np.ones(3, int) if resampled else _block_units(window)
    limits = (largest / np.maximum(ratio, 1)).astype(int)
    axes = zip(shape.tolist(), limits.tolist(), units.tolist(), strict=True)
    lengths = [_lengths(n, limit, unit) for n, limit, unit in axes]
    block = tuple(along.block for along in lengths)
    if window.agree:
        beyond = _voxels_between(raw.grid, grid, window)
        window = _window_of_block(window, block, ratio, resampled, beyond=beyond)
    chunk = tuple(along.chunk for along in lengths)
    return BlockPlan(raw, window, grid, block_shape=block, chunk_shape=chunk, largest=largest)


def in_same_blocks(plan: BlockPlan, raw: Raw, window: Window) -> BlockPlan:
    """Return a plan of the same written voxels in the same blocks, for another network.

    Args:
        plan: of the first network.
        raw: as the other network gets it; its voxels lie where those of the plan's raw do.
        window: of the other network.
    """
    if window.agree:
        ratio = plan.grid.scale / window.output.scale
        beyond = _voxels_between(raw.grid, plan.grid, window)
        window = _window_of_block(window, plan.block_shape, ratio, plan.resampled, beyond=beyond)
    return replace(plan, raw=raw, window=window)


def _voxels_between(volume: Grid, grid: Grid, window: Window) -> np.ndarray:
    """Return `BlockPlan.from_corner` of a grid. volume: grid of the raw."""
    distance = (grid.box()[0] - volume.box()[0]) / window.output.scale
    whole = np.rint(distance)
    return np.where(np.abs(distance - whole) < ON_VOXEL, whole, 0).astype(int)


def _window_of_block(
    window: Window,
    block: Sequence[int],
    ratio: np.ndarray,
    resampled: bool,
    *,
    beyond: np.ndarray,
) -> Window:
    """Return the window, grown to give a whole block.

    Args:
        window: of the network.
        block: written voxels.
        ratio: network's voxels that a written one takes.
        resampled: whether that is another number than 1.
        beyond: `BlockPlan.from_corner`.
    """
    needed = np.array(block)
    if resampled:
        # the voxel before and behind that interpolation takes, one for rounding, and up to a unit
        # before, since windows start on whole units
        needed = np.ceil(needed * ratio).astype(int) + 3 + window.unit
    elif (needed % window.unit).any():
        # blocks of another network's units: windows start up to a unit before them
        needed = needed + window.unit - 1
    else:
        # windows start before each block by as many voxels as the box does behind a whole unit
        needed = needed + beyond % window.unit
    return window.holding(-(-needed // window.unit) * window.unit)


def _block_units(window: Window) -> np.ndarray:
    """Return (3,) voxels that the edges of blocks are multiples of.

    A window that grows becomes one block; others are tiled.
    """
    if not window.agree:
        return window.stride
    grows = np.array([step_out > 0 for _, step_out in window.steps])
    return np.where(grows, window.unit, window.stride)


class AxisLengths(NamedTuple):
    """Voxels of a block and of a chunk along an axis."""

    block: int
    chunk: int


def _lengths(n: int, largest: int, unit: int) -> AxisLengths:
    """Return the voxels of blocks and of chunks along an axis of n voxels.

    Blocks are of about one size; they have whole chunks, and chunks have whole units.

    largest: voxels that a block has at most, if a unit is not larger.
    """
    if n > min(largest, LARGEST_CHUNK):
        unit = math.lcm(unit, 2)  # two voxels become one of the next coarser level, chunk by chunk
    largest = max(largest // unit, 1) * unit
    blocks = math.ceil(n / largest)
    # of one size: a last block of a few voxels would cost a whole window
    length = math.ceil(n / blocks)
    chunks = math.ceil(length / LARGEST_CHUNK)
    chunk = math.ceil(length / chunks / unit) * unit
    return AxisLengths(chunks * chunk, chunk)


def _on_raw(lower: np.ndarray, grid: Grid, input_patch: Patch) -> np.ndarray:
    """Return the corner, moved down by less than a voxel onto a corner of a raw voxel.

    It is moved along axes where the network's input has voxels of the raw's size: else the network
    would get interpolated raw, which it has not seen in training.

    Args:
        lower: (3,) nm.
        grid: of the raw.
        input_patch: of the network.
    """
    first = (lower - grid.box()[0]) / grid.scale
    beyond = (first - np.floor(first + ON_VOXEL)) * grid.scale
    same = np.isclose(input_patch.scale, grid.scale, rtol=SAME_SCALE)
    return lower - np.where(same, beyond, 0)

"""Which voxels of a volume are computed, in which blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.data import sampling
from common.data.ngff import Grid
from common.data.raw import Raw
from common.data.sampling import Patch
from common.infer.window import Window

CHUNK = 128
"""Edge in voxels that chunks of the written arrays have at most, unless a single window gives more."""


@dataclass(frozen=True)
class BlockPlan:
    """Which voxels are computed, in which blocks, with which window."""

    raw: Raw
    window: Window
    grid: Grid
    """What is written. The network's own voxels begin at its lower corner too."""
    block: tuple[int, ...]
    """Written voxels that are computed at a time, whole chunks."""
    chunks: tuple[int, ...]
    largest: int
    """Edge in voxels that blocks have at most, or nearly so: plans for the same box with the same number are the same."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks along each axis."""
        return tuple(math.ceil(n / b) for n, b in zip(self.grid.shape, self.block, strict=True))

    @property
    def resampled(self) -> bool:
        return not np.allclose(self.grid.scale, self.window.output.scale, rtol=1e-6)

    def place(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """First and last + 1 written voxel of a block."""
        start = np.array(np.unravel_index(number, self.blocks)) * self.block
        return start, np.minimum(start + self.block, self.grid.shape)

    def needs(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """First and last + 1 of the network's voxels that a block is made of; the first one is on a whole unit of the window."""
        start, stop = self.place(number)
        if self.resampled:  # linear interpolation takes the next voxel too
            ratio = self.grid.scale / self.window.output.scale
            start, stop = (
                np.floor(start * ratio - 1 + 1e-6).astype(int),
                np.ceil(stop * ratio + 1 - 1e-6).astype(int),
            )
        return start // self.window.unit * self.window.unit, stop

    def windows(self, number: int) -> list[range]:
        """Along each axis, where the windows of a block start, in voxels of the network."""
        size, stride = np.array(self.window.output.shape), self.window.stride
        first, last = self.needs(number)
        if not self.window.agree:  # of the lattice over the volume, all that reach into the block
            first = ((first - size) // stride + 1) * stride
        return [
            range(*along)
            for along in zip(first.tolist(), last.tolist(), stride.tolist(), strict=True)
        ]

    def raw_place(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last input voxel of the window that starts at a voxel of the network, in voxels of the raw, fractional.

        Where both have one size, they are whole voxels of the raw, chosen as in training.
        """
        taken, given = self.window.input, self.window.output
        corner = self.grid.box()[0]
        base = sampling.on_voxels(corner + given.extent / 2, np.eye(3), taken, self.raw.grid)
        centre = base + start * given.scale
        half = (np.array(taken.shape) - 1) / 2 * taken.scale
        return tuple(
            (centre + side * half - self.raw.grid.origin) / self.raw.grid.scale for side in (-1, 1)
        )  # type: ignore[return-value]


def plan_blocks(
    raw: Raw,
    window: Window,
    lower: np.ndarray,
    upper: np.ndarray,
    scale: Sequence[float] | None = None,
    largest: int = 128,
) -> BlockPlan:
    """Cover the box lower..upper (nm) by voxels of `scale` (nm; the network's unless given), in blocks of about `largest` voxels.

    Where the raw has the network's voxel size, the voxels are moved down by less than one, onto those of the raw.
    """
    scale = np.array(scale or window.output.scale, float)
    corner = _on_raw(lower, raw.grid, window.input)
    shape = np.maximum(1, np.ceil((upper - corner) / scale - 1e-6)).astype(int)
    grid = Grid(corner + scale / 2, scale, tuple(shape.tolist()))
    ratio, grows = scale / window.output.scale, np.array([step > 0 for _, step in window.steps])
    same = np.allclose(ratio, 1, rtol=1e-6)
    unit = (
        (np.where(grows, window.unit, window.stride) if window.agree else window.stride)
        if same
        else np.ones(3, int)
    )
    limit = largest / np.maximum(ratio, 1)
    block, chunks = zip(
        *map(_block, shape.tolist(), limit.astype(int).tolist(), unit.tolist()), strict=True
    )
    if window.agree:
        needed = (
            np.array(block)
            if same
            else np.ceil(np.array(block) * ratio).astype(int) + 3 + window.unit
        )
        window = window.holding(-(-needed // window.unit) * window.unit)
    return BlockPlan(raw, window, grid, block, chunks, largest)


def _block(n: int, largest: int, unit: int) -> tuple[int, int]:
    """Voxels along an axis of n that blocks and chunks have: blocks of about one size, of whole chunks of whole units."""
    if n > min(largest, CHUNK):
        unit = math.lcm(unit, 2)  # two voxels become one of the next coarser level, chunk by chunk
    largest = max(largest // unit, 1) * unit
    size = math.ceil(n / math.ceil(n / largest))
    chunks = math.ceil(size / CHUNK)
    chunk = math.ceil(size / chunks / unit) * unit
    return chunks * chunk, chunk


def _on_raw(lower: np.ndarray, grid: Grid, taken: Patch) -> np.ndarray:
    """The corner moved down by less than a voxel onto a corner of a raw voxel, along axes where the network's voxels are as large."""
    first = (lower - grid.box()[0]) / grid.scale
    return lower - np.where(
        np.isclose(taken.scale, grid.scale, rtol=1e-6),
        (first - np.floor(first + 1e-3)) * grid.scale,
        0,
    )

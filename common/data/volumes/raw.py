"""Read the raw of an EM volume near a wanted voxel size: choose a level and average it down.

uint8 stays uint8; every other type becomes float32 in [0, 1].
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.volumes import ngff
from common.data.volumes.box import Vector
from common.data.volumes.level import Grid, Level
from common.data.volumes.placement import SAME_SIZE, check_detail, check_pyramid
from common.errors import UserError
from common.talk import note_once

AT_ONCE = 2**27
"""Most voxels of a level that are read at a time for averaging.

This bounds the memory where the level is much finer than the wanted voxel size.
"""

NARROW = 0.25
"""Part of an integer type's range: raw that uses less of it has little contrast for a network."""

FLAT = 1 / 16
"""The same part of 8 bits, or of a raw_range that was chosen: masks, or values of another scale."""

MOST_CUT_OFF = 0.5
"""Part of raw that lies at the ends of raw_range or beyond them, above which that is said."""

SAMPLE = 64
"""Voxels along an edge of the block whose contrast is looked at before a volume is predicted."""

SAMPLE_EDGE = 8
"""Voxels along an edge of the blocks by which `Raw.sample_key` knows raw."""


@dataclass(frozen=True)
class Raw:
    """A level of a volume, averaged over whole numbers of voxels towards a wanted voxel size.

    "Voxels" are averaged voxels unless stated otherwise.
    """

    level: Level
    factor: np.ndarray
    """(3,) number of voxels of the level that are averaged to one, along each axis."""
    raw_range: tuple[float, ...]
    """Values that become 0 and 1; the range of the unsigned integer type if empty."""
    dtype: np.dtype
    """Type of what is read: uint8 (unchanged), or float32 in [0, 1]."""
    finest_nm: np.ndarray
    """(3,) voxel size of the finest level of the volume, nm."""
    sections: int = 0
    """Sections on each side, along z, with which every section is averaged."""
    is_stretched: bool = False
    """Whether its contrast is measured and stretched, so that no range of it is too wide."""

    @property
    def grid(self) -> Grid:
        """Where the voxels are."""
        return averaged_grid(self.level, self.factor)

    def reads_like(self, other: Raw) -> bool:
        """Return whether another one reads the same values at the same voxels."""
        if self.level.path != other.level.path or (self.factor != other.factor).any():
            return False
        if self.sections != other.sections:
            return False
        # uint8 is taken as it is
        return self.dtype == np.uint8 or self.raw_range == other.raw_range

    def read(self, start: Vector, stop: Vector) -> np.ndarray:
        """Return voxels start..stop-1 (z, y, x), which must lie within the volume.

        Raises:
            UserError: if a chunk cannot be decoded.
        """
        first = np.array(start)
        last = np.array(stop)
        if not self.sections:
            return self._read_averaged(first, last)
        beyond = np.arange(first[0] - self.sections, last[0] + self.sections)
        inside = mirror(beyond, self.grid.shape[0])
        top = inside.min()
        upper = np.array([top, *first[1:]])
        lower = np.array([inside.max() + 1, *last[1:]])
        block = self._read_averaged(upper, lower)
        return section_means(block[inside - top], self.sections)

    def _read_averaged(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return voxels first..last-1, each section by itself."""
        if (self.factor == 1).all():
            return self._values(first, last)
        block = np.empty(last - first, self.dtype)
        voxels_of_layer = (self.factor * block.shape)[1:].prod() * self.factor[0]
        layers = max(1, int(AT_ONCE // voxels_of_layer))
        for z in range(0, len(block), layers):
            top = first.copy()
            top[0] += z
            bottom = last.copy()
            bottom[0] = min(top[0] + layers, last[0])
            fine = self._values(top * self.factor, bottom * self.factor)
            block[z : z + layers] = ngff.block_mean(fine, self.factor)
        return block

    def _values(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Return voxels of the level, not averaged, as `dtype`."""
        block = self.level.read(start, stop)
        if self.dtype == np.uint8:
            return block
        low, high = self.value_range
        if block.dtype.kind == "f" and np.isnan(block).any():
            note_once(f"{self.level.path}: has NaN, which a network gets as black, as {low:g}")
        # a NaN in raw is a hole: black; NaN means unknown in targets only
        finite = np.nan_to_num(block.astype(np.float32), nan=low)
        return np.clip((finite - low) / (high - low), 0, 1)

    def cut_off(self, block: np.ndarray) -> int:
        """Return how many voxels of a block that `read` gave raw_range makes black or white."""
        if not self.raw_range:
            return 0
        low, high = self.raw_range if self.dtype == np.uint8 else (0, 1)
        return int(np.count_nonzero((block <= low) | (block >= high)))

    def sample_key(self, lower: np.ndarray, upper: np.ndarray) -> str:
        """Return a hash of a few voxels of a box (nm), which tells if raw was replaced.

        They are of the level as it is stored, at eight places: a replaced volume differs nearly
        everywhere, and to look at all of it would take as long as to predict it.
        """
        level = self.level
        digest = hashlib.sha256(str((level.array.dtype, level.shape.tolist())).encode())
        for parts in itertools.product((0.25, 0.75), repeat=3):
            place = lower + np.array(parts) * (upper - lower)
            middle = np.floor(level.grid.in_voxels(place)).astype(int)
            start = np.clip(middle - SAMPLE_EDGE // 2, 0, level.shape - 1)
            block = level.read(start, np.minimum(start + SAMPLE_EDGE, level.shape))
            digest.update(np.ascontiguousarray(block).tobytes())
        return digest.hexdigest()[:24]

    def check_values(
        self, darkest: float, brightest: float, where: str, *, cut_off: float = 0.0
    ) -> None:
        """Judge what was read somewhere: a note where a network can see little in it.

        Args:
            darkest: smallest value, as `read` gives it.
            brightest: largest value.
            where: "around crop1".
            cut_off: part of its voxels that `cut_off` counts.

        Raises:
            UserError: if all of it is black.
        """
        path = self.level.path
        if self._of_range(brightest) == 0:
            # a chunk that is not there reads as 0; real EM is never 0 all around a crop
            advice = "fetch its EM chunks, or remove the crop from the datasplit"
            if self.raw_range:
                low, high = self.raw_range
                advice = (
                    f"raw_range = ({low:g}, {high:g}) makes black of what is {low:g} or less: set "
                    "the range of this raw, or fetch its EM chunks"
                )
            raise UserError(f"{path}: 0 everywhere {where}; {advice}")
        is_flat = self._of_range(darkest) == self._of_range(brightest)
        # what raw_range makes white need not be of one value
        if is_flat and cut_off <= MOST_CUT_OFF:
            note_once(
                f"{path}: {self._stored(darkest)} everywhere {where}, so that nothing can be seen "
                "there; look at the volume and at raw_range"
            )
        else:
            self._note_range(darkest, brightest, where, cut_off=cut_off)

    def note_contrast(self, lower: np.ndarray, upper: np.ndarray) -> None:
        """Look at the middle of a box (nm), and note it where a network sees little contrast."""
        if not self.raw_range and self.level.array.dtype.itemsize == 1:
            return
        shape = np.array(self.grid.shape)
        middle = ((lower + upper) / 2 - self.grid.origin) / self.grid.scale
        around_middle = np.rint(middle).astype(int) - SAMPLE // 2
        last_start = np.maximum(shape - SAMPLE, 0)
        start = np.clip(around_middle, 0, last_start)
        block = self.read(start, np.minimum(start + SAMPLE, shape))
        where = "in the middle of the box"
        lowest = float(block.min())
        highest = float(block.max())
        # a constant block is no raw, and of a range that fits elsewhere it says nothing
        if not self.raw_range or lowest < highest:
            cut_off = self.cut_off(block) / block.size
            self._note_range(lowest, highest, where, cut_off=cut_off)

    def _note_range(self, darkest: float, brightest: float, where: str, *, cut_off: float) -> None:
        """Say where raw uses little of its range, or lies beyond it."""
        stored = self.level.array.dtype
        if cut_off > MOST_CUT_OFF:
            chosen = ", ".join(f"{value:g}" for value in self.raw_range)
            note_once(
                f"{self.level.path}: raw_range = ({chosen}) makes {cut_off:.0%} of what "
                f"is {where} black or white; set the range of this raw"
            )
            return
        black = self._of_range(darkest)
        white = self._of_range(brightest)
        is_chosen = bool(self.raw_range) or stored.itemsize == 1
        if self.is_stretched or white - black >= (FLAT if is_chosen else NARROW):
            return
        low = self._stored(darkest)
        high = self._stored(brightest)
        note_once(
            f"{self.level.path}: {stored} from {low} to {high} {where}, which a network gets as "
            f"{black:.2g} to {white:.2g} of 0 to 1; "
            f"where that is all of its contrast set raw_range = ({low}, {high}), or "
            "raw_normalization = 'percentile'"
        )

    def _of_range(self, value: float) -> float:
        """Return what `read` gives, as the network gets it: in [0, 1]."""
        if self.dtype != np.uint8:
            return value
        low, high = self.value_range
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def _stored(self, value: float) -> str:
        """Return the value of the level that `read` gives as this one."""
        if self.dtype == np.uint8:
            return f"{value:g}"
        low, high = self.value_range
        return f"{low + value * (high - low):.6g}"

    @property
    def value_range(self) -> tuple[float, ...]:
        """Values of the level that become 0 and 1."""
        return self.raw_range or (0.0, float(np.iinfo(self.level.array.dtype).max))

    def read_mirrored(self, start: Vector, stop: Vector) -> np.ndarray:
        """Return voxels start..stop-1; outside of the volume raw is mirrored, as in training."""
        axes = []
        for first, last, size in zip(start, stop, self.grid.shape, strict=True):
            axes.append(mirror(np.arange(first, last), size))
        lower = np.array([axis.min() for axis in axes])
        upper = np.array([axis.max() + 1 for axis in axes])
        block = self.read(lower, upper)
        for number, (axis, low) in enumerate(zip(axes, lower, strict=True)):
            # an axis at a time: in one go it takes twice as long, and no other thread runs
            if axis[0] != low or len(axis) != block.shape[number]:
                block = block.take(axis - low, axis=number)
        return block


def section_means(block: np.ndarray, sections: int) -> np.ndarray:
    """Return the means over 2 x sections + 1 neighbours along z, of those that have all of them.

    block: (z, y, x); its type is kept, and uint8 rounded. A mean does not depend on what else is
    in the block: whole numbers are added, or float32 numbers in the order of z.
    """
    count = 2 * sections + 1
    kept = len(block) - 2 * sections
    is_whole = block.dtype.kind in "ui"
    total = block[:kept].astype(np.uint32 if is_whole else np.float32)
    for shift in range(1, count):
        total += block[shift : shift + kept]
    if is_whole:
        return ((total + sections) // count).astype(block.dtype)
    return total / np.float32(count)


def open_raw(
    path: Path,
    scale: Vector,
    raw_range: Sequence[float] = (),
    sections: int = 0,
    *,
    is_stretched: bool = False,
) -> Raw:
    """Open the level of a multiscale group whose voxel size is nearest to `scale` (nm).

    A finer level is averaged over as many whole voxels as keep it no coarser than `scale`.

    Args:
        path: the multiscale group.
        scale: wanted, nm.
        raw_range: the values of black and white.
        sections: on each side, along z, with which every section is averaged.
        is_stretched: whether `raw_normalization` measures its contrast.

    Raises:
        FileNotFoundError, UserError: as `ngff.open_levels`; and for signed raw without a range.
    """
    levels = ngff.open_levels(path)
    level = ngff.pick_level(levels, scale)
    check_detail(level, scale, "the network's input")
    if not raw_range:
        _refuse_without_range(level)
    check_pyramid(levels[0], level)
    if not is_stretched:
        _note_beyond_type(level, raw_range)
    dtype = np.dtype(np.uint8 if level.array.dtype == np.uint8 else np.float32)
    return Raw(
        level=level,
        factor=reduction(scale, level.scale, level.shape),
        raw_range=tuple(raw_range),
        dtype=dtype,
        finest_nm=levels[0].scale,
        sections=sections,
        is_stretched=is_stretched,
    )


def _refuse_without_range(level: Level) -> None:
    """Raises UserError for a type whose values say nothing of black and white."""
    if level.array.dtype.kind != "u":
        raise UserError(
            f"{level.path}: raw of type {level.array.dtype} has no natural range; "
            "set raw_range = (value of black, value of white)"
        )


def _note_beyond_type(level: Level, raw_range: Sequence[float]) -> None:
    """Say where one range for all volumes cannot be meant for the type of this one."""
    stored = level.array.dtype
    if not raw_range or stored.kind not in "ui":
        return
    limits = np.iinfo(stored)
    low, high = raw_range
    if low < limits.min or high > limits.max:
        between = max(min(high, limits.max) - max(low, limits.min), 0.0)
        note_once(
            f"{level.path}: {stored}, which is {limits.min} to {limits.max}, and raw_range = "
            f"({low:g}, {high:g}): its contrast is {between / (high - low):.2g} of 0 to 1; "
            "set the range of this raw, or raw_normalization = 'percentile', which looks at each "
            "volume"
        )


def averaged_grid(level: Level, factor: np.ndarray) -> Grid:
    """Return the grid of a level averaged by `factor`; an incomplete last voxel is left out."""
    origin = level.translation + (factor - 1) / 2 * level.scale
    shape = level.shape // factor
    return Grid(origin, level.scale * factor, tuple(shape.tolist()))


def reduction(wanted: Vector, scale: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Return (3,) int: how many voxels of size `scale` fit into one of `wanted`, at least 1."""
    # 16 nm is three voxels of 5.3335 nm though a little less
    ratio = np.array(wanted) / scale + SAME_SIZE
    return np.clip(np.floor(ratio).astype(int), 1, shape)


def mirror(index: np.ndarray, n: int) -> np.ndarray:
    """Fold voxel indices of any size into 0..n-1, mirrored at the first and the last voxel.

    These two are not repeated, as in NumPy's pad mode "reflect".
    """
    if n == 1:
        return np.zeros_like(index)
    folded = np.abs(index) % (2 * n - 2)
    return np.minimum(folded, 2 * n - 2 - folded)

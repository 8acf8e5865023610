"""Boxes: of voxels in an array, by their indices, and in the world, by their corners in nm.

This module does not import zarr, which takes a second: configurations import functions over
volumes, and those need boxes only.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

Vector = Sequence[float] | np.ndarray
"""Three numbers along z, y, x."""

Corners = tuple[np.ndarray, np.ndarray]
"""Lower and upper corner of a box in the world, (3,) nm each."""


class Box(NamedTuple):
    """Voxels of a volume."""

    start: np.ndarray
    """(3,) the first one."""
    stop: np.ndarray
    """(3,) the last one + 1."""

    @property
    def shape(self) -> np.ndarray:
        """(3,) voxels."""
        return self.stop - self.start


NUMBERS = {int: r"\d+", float: r"-?\d+(?:\.\d*)?"}
"""How a bound of a box is written: in voxels, and in nm."""


def bounds_of(text: str, whole: Corners, number: type[int | float]) -> Corners | None:
    """Return the bounds in "z0:z1,y0:y1,x0:x1", lower and upper; None where it says no box.

    whole: the bounds of the volume, which are taken where one is left out. Others may lie beyond.
    """
    bound = rf"\s*({NUMBERS[number]})?\s*"
    along = f"{bound}:{bound}"
    match = re.fullmatch(f"{along},{along},{along}", text)
    if not match:
        return None
    corners = []
    for first, otherwise in enumerate(whole):
        pairs = zip(match.groups()[first::2], otherwise, strict=True)
        corners.append(np.array([number(given) if given else end for given, end in pairs]))
    return corners[0], corners[1]


def slices(start: Vector, stop: Vector) -> tuple[slice, ...]:
    """Return the index of voxels start..stop-1 of an array: one slice per axis."""
    return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))


def overlap(first: Corners, second: Corners) -> bool:
    """Return whether two boxes in the world share a volume; touching is not overlapping."""
    lower, upper = first
    shared = np.minimum(upper, second[1]) - np.maximum(lower, second[0])
    # corners are sums of decimal fractions of nm: what touches may seem to overlap by rounding
    return bool((shared > 1e-6 * (upper - lower)).all())


def around(boxes: Sequence[Corners]) -> Corners:
    """Return the box around others, at least one: in the world, or of voxels."""
    lower = np.min([box[0] for box in boxes], axis=0)
    upper = np.max([box[1] for box in boxes], axis=0)
    return lower, upper


def ranges(index: Sequence[slice], shape: Sequence[int]) -> list[range]:
    """Return the voxels along each axis that an index of slices stands for."""
    return [range(*along.indices(n)) for along, n in zip(index, shape, strict=True)]


def cells(volume: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Return (cells, voxels of a cell): the cells of `edge` voxels that a volume is made of.

    No cell may be incomplete.
    """
    z, y, x = np.array(volume.shape) // edge
    depth, height, width = edge.tolist()
    parted = volume.reshape(z, depth, y, height, x, width)
    together = parted.transpose(0, 2, 4, 1, 3, 5)
    return together.reshape(z * y * x, -1)


LARGEST_EDGE = 256
"""Voxels along an axis of a block: chunks may be whole planes."""


def block_of_chunks(chunks: Sequence[int], edge: int) -> list[int]:
    """Return voxels of blocks of whole chunks, each about `edge` long; of larger chunks parts."""
    whole = [int(chunk) * max(1, edge // int(chunk)) for chunk in chunks]
    return [min(length, LARGEST_EDGE) for length in whole]


def boxes(shape: Vector, block: Vector) -> Iterator[Box]:
    """Iterate over the blocks of a volume, in z, y, x order."""
    lengths = [int(length) for length in block]
    along = [range(0, int(n), length) for n, length in zip(shape, lengths, strict=True)]
    for corner in itertools.product(*along):
        start = np.array(corner)
        yield Box(start, np.minimum(start + lengths, shape))

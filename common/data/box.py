"""Index boxes of voxels in an array.

This module does not import zarr, which takes a second: configurations import functions over
volumes, and those need boxes only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

Vector = Sequence[float] | np.ndarray
"""Three numbers along z, y, x."""


def slices(start: Vector, stop: Vector) -> tuple[slice, ...]:
    """Return the index of voxels start..stop-1 of an array: one slice per axis."""
    return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))


LARGEST_EDGE = 256
"""Voxels along an axis of a block: chunks may be whole planes."""


def block_of_chunks(chunks: Sequence[int], edge: int) -> list[int]:
    """Voxels of blocks of whole chunks, each about `edge` long; of larger chunks parts."""
    whole = [int(chunk) * max(1, edge // int(chunk)) for chunk in chunks]
    return [min(length, LARGEST_EDGE) for length in whole]


def boxes(shape: Vector, block: Vector) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """First voxel, and last + 1, of the blocks of a volume, in z, y, x order."""
    lengths = [int(length) for length in block]
    along = [range(0, int(n), length) for n, length in zip(shape, lengths, strict=True)]
    for corner in itertools.product(*along):
        start = np.array(corner)
        yield start, np.minimum(start + lengths, shape)

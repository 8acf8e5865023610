"""Boxes of voxels, and the blocks that a volume is cut into."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from common.data.box import Vector

Box: TypeAlias = tuple[slice, ...]
"""Part of an array, along z, y, x; made by `common.data.box.slices`."""


def corners(shape: Vector, block_shape: Vector) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """The blocks of a volume in z, y, x order: which along each axis, and the first voxel."""
    length = np.array(block_shape)
    counts = -(-np.array(shape) // length)
    for index in np.ndindex(*counts):
        yield index, np.array(index) * length

"""Boxes of voxels, and the blocks that a volume is cut into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from common.data.volumes.box import Vector, slices

Box: TypeAlias = tuple[slice, ...]
"""Part of an array, along z, y, x; made by `common.data.volumes.box.slices`."""


def ends(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """The first voxel of a box, and its last + 1."""
    start = np.array([along.start for along in box])
    stop = np.array([along.stop for along in box])
    return start, stop


def with_margin(box: Box, margin: int | np.ndarray, shape: Sequence[int]) -> Box:
    """A box and so many voxels around it, as far as a volume goes."""
    start, stop = ends(box)
    return slices(np.maximum(start - margin, 0), np.minimum(stop + margin, shape))


def within(box: Box, outer: Box) -> Box:
    """A box as a part of a larger one."""
    first, _ = ends(outer)
    start, stop = ends(box)
    return slices(start - first, stop - first)


def corners(shape: Vector, block_shape: Vector) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """The blocks of a volume in z, y, x order: which along each axis, and the first voxel."""
    length = np.array(block_shape)
    counts = -(-np.array(shape) // length)
    for index in np.ndindex(*counts):
        yield index, np.array(index) * length

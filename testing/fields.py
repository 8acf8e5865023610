"""Smooth noise, distances and boxes, in voxels: what the phantom's anatomy is drawn with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

Vector = Sequence[float] | np.ndarray
"""Three numbers along z, y, x."""

Box = tuple[slice, ...]
"""A part of a volume, a slice an axis."""

Offsets = list[np.ndarray]
"""z, y and x offsets from a point, float32, each along its own axis: they broadcast to a volume."""

NEIGHBOURS = ndimage.generate_binary_structure(3, 2)
"""A membrane is what lies within one step of these 18 neighbours: 1 to 1.4 voxels thick, and closed
for 6-adjacency."""

EVERYWHERE: Box = (slice(None),) * 3


def noise(rng: np.random.Generator, shape: Sequence[int], spacing: float) -> np.ndarray:
    """Return smooth (z, y, x) float32 noise of unit variance.

    Cubic B-splines, `spacing` voxels apart, of random heights.
    """
    values = rng.standard_normal([int(n / spacing) + 4 for n in shape], dtype=np.float32)
    for axis, n in enumerate(shape):
        knots = np.arange(values.shape[axis])
        away = np.abs(np.arange(n)[:, None] / spacing + 1 - knots)
        inner = 2 / 3 - away**2 + away**3 / 2
        outer = np.clip(2 - away, 0, None) ** 3 / 6
        weights = np.where(away < 1, inner, outer)
        # between knots the sum of squares is smaller: without this the variance has ripples
        weights /= np.sqrt((weights**2).sum(1, keepdims=True))
        along = np.tensordot(weights.astype(np.float32), values, (1, axis))
        values = np.moveaxis(along, 0, axis)
    return np.ascontiguousarray(values)


def grow(mask: np.ndarray, steps: int = 1) -> np.ndarray:
    """Return the mask and all within `steps` steps of NEIGHBOURS; outside of the array is none."""
    return ndimage.binary_dilation(mask, NEIGHBOURS, steps)


def offsets_from(centre: Vector, shape: Vector, start: Vector = (0, 0, 0)) -> Offsets:
    """Return the offsets from `centre` of the voxels of a box of `shape` that begins at `start`."""
    axes = []
    for first, n, middle in zip(start, shape, centre, strict=True):
        axes.append(np.arange(first, first + n, dtype=np.float32) - np.float32(middle))
    return list(np.ix_(*axes))


def around(centre: Vector, reach: float | np.ndarray, shape: Sequence[int]) -> tuple[Box, Offsets]:
    """Return the box within `reach` voxels of `centre`, cut by the volume, and its offsets."""
    low = np.maximum(np.floor(np.array(centre) - reach), 0).astype(int)
    high = np.minimum(np.ceil(np.array(centre) + reach) + 1, shape).astype(int)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return box, offsets_from(centre, high - low, low)


def nested(outer: Box, inner: Box) -> Box:
    """Return `inner`, a box within `outer`, in the coordinates of the volume."""
    pairs = zip(outer, inner, strict=True)
    return tuple(slice(a.start + b.start, a.start + b.stop) for a, b in pairs)


def along(direction: Vector, offsets: Offsets) -> np.ndarray:
    """Return the scalar product of each voxel's offset with a direction."""
    z, y, x = (a * offset for a, offset in zip(direction, offsets, strict=True))
    return z + y + x


def square_distance(offsets: Offsets, point: Vector = (0, 0, 0)) -> np.ndarray:
    """Return the squared distance of each voxel to a point, which is given by its offset."""
    z, y, x = ((offset - p) ** 2 for offset, p in zip(offsets, point, strict=True))
    return z + y + x


def ellipsoid(offsets: Offsets, radii: Vector) -> np.ndarray:
    """Return roughly the signed distance to an ellipsoid about the origin, negative inside."""
    pairs = zip(offsets, radii, strict=True)
    scaled = sum((offset / np.float32(radius)) ** 2 for offset, radius in pairs)
    return (np.sqrt(scaled) - 1) * np.float32(min(radii))


def level_distance(values: np.ndarray) -> np.ndarray:
    """Return the distance to the zero level of a smooth field, to first order."""
    square = sum(np.gradient(values, axis=axis) ** 2 for axis in range(3))
    return np.abs(values) / np.sqrt(square + 1e-6)


def stamp(points: np.ndarray, radius: float, shape: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Return the index of all voxels of a volume within `radius` of a point ((n, 3) int)."""
    reach = range(-int(radius), int(radius) + 1)
    cube = np.array(list(itertools.product(reach, repeat=3)))
    ball = cube[(cube**2).sum(1) <= radius**2]
    voxels = (points[:, None] + ball).reshape(-1, 3)
    inside = ((voxels >= 0) & (voxels < shape)).all(1)
    return tuple(voxels[inside].T)

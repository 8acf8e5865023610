"""Boxes of an array, by their first and last voxels.

Without zarr, which takes a second to import: configurations import functions over volumes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Vector = Sequence[float] | np.ndarray
"""Three numbers along z, y, x."""


def slices(start: Vector, stop: Vector) -> tuple[slice, ...]:
    """The index of voxels start..stop of an array: one slice an axis."""
    return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))

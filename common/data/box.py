"""Index boxes of voxels in an array.

This module does not import zarr, which takes a second: configurations import functions over
volumes, and those need boxes only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Vector = Sequence[float] | np.ndarray
"""Three numbers along z, y, x."""


def slices(start: Vector, stop: Vector) -> tuple[slice, ...]:
    """Return the index of voxels start..stop-1 of an array: one slice per axis."""
    return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))

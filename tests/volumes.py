"""Volumes on disk, read whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from conftest import CLASSES

from common.data.volumes.ngff import open_levels


def voxels_of(path: str | Path) -> np.ndarray:
    """The voxels of the finest level."""
    level = open_levels(path)[0]
    return level.read((0, 0, 0), level.shape)


def values(folder: Path, names: Sequence[str] = CLASSES) -> np.ndarray:
    """(classes, z, y, x): the finest levels of the classes in a folder."""
    return np.stack([voxels_of(folder / name) for name in names])

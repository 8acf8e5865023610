"""Crops for tests: described, and written to a data root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.data.splits.catalogue import CropInfo
from common.data.volumes import layout
from common.data.volumes.ngff import write_multiscale


def crop(
    dataset: str,
    name: str = "crop1",
    classes: str = "mito",
    start: Sequence[float] = (0, 0, 0),
    shape: tuple[int, ...] = (10, 10, 10),
    voxel_size: tuple[float, ...] = (8.0, 8.0, 8.0),
) -> CropInfo:
    """A crop of 80 nm; classes are separated by spaces, `start` is in nm."""
    translation = tuple(float(position) for position in start)
    return CropInfo(dataset, name, voxel_size, translation, shape, frozenset(classes.split()))


def labelled_store(
    root: Path,
    dataset: str = "d",
    name: str = "crop1",
    classes: Sequence[str] = ("mito",),
    voxel_size: Sequence[float] = (8, 8, 8),
    start: Sequence[float] = (0, 0, 0),
    shape: int = 4,
) -> Path:
    """The store of a dataset with raw, after a crop was added to it."""
    store = root / layout.store(dataset)
    if not (store / layout.RAW).exists():
        write_multiscale(store / layout.RAW, np.zeros((8, 8, 8), np.uint8), (8, 8, 8))
    for label in classes:
        path = store / layout.LABELS / name / label
        write_multiscale(path, np.zeros((shape,) * 3, np.uint8), voxel_size, start)
    return store

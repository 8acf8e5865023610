"""Draw tissue in a second: touching cells, in the layout of flyem_medulla."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from common.data.volumes import layout
from common.data.volumes.ngff import slices, write_multiscale

VOXEL_SIZE = (10, 10, 10)
EXTENT = 116
"""Voxels along an edge of the volume."""
CROP = 56
"""Voxels along an edge of a crop."""
MARGIN = 20
"""Voxels of raw around a crop at least."""


def write_tissue(root: Path, crops: int = 6, seed: int = 0) -> Path:
    """Write a volume with crops of `pm` and `cell` as dataset flyem_medulla; return root.

    Cells are the voxels nearest to points; membranes, two voxels wide, are dark.
    """
    random = np.random.default_rng(seed)
    points = random.uniform(0, EXTENT, (60, 3))
    voxels = np.stack(np.indices((EXTENT,) * 3), axis=-1)
    ids = 1 + cKDTree(points).query(voxels)[1].astype(np.uint16)
    is_pm = ndimage.grey_dilation(ids, 2) != ndimage.grey_erosion(ids, 2)
    grey = np.where(is_pm, 90, 160) + random.normal(0, 15, ids.shape)
    store = root / layout.store("flyem_medulla")
    raw = ndimage.gaussian_filter(grey, 0.7).clip(0, 255).astype(np.uint8)
    write_multiscale(store / layout.RAW, raw, VOXEL_SIZE)
    for number in range(1, crops + 1):
        # cellmap-data leaves out crops without raw for a patch of 92 voxels around them
        start = random.integers(MARGIN, EXTENT - CROP - MARGIN, size=3)
        where = slices(start, start + CROP)
        labels = {"pm": is_pm[where].astype(np.uint8), "cell": np.where(is_pm, 0, ids)[where]}
        for name, label in labels.items():
            path = store / layout.LABELS / f"crop{number}" / name
            write_multiscale(path, label, VOXEL_SIZE, start * 10.0)
    return root

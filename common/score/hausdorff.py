"""The exact Hausdorff distance between two objects, fast for thick and for large ones.

A distance transform of the box around both objects, as in the challenge's public code, looks at
every voxel of it for each pair; here cells of voxels are dropped at once. Times: bench/evaluate.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree


def farthest(
    outside: np.ndarray,
    points: np.ndarray,
    sizes: np.ndarray,
    *,
    corner: Sequence[int] = (0, 0, 0),
    cap: float = math.inf,
) -> float:
    """Return the largest distance (nm) from a voxel of object a to the nearest voxel of object b.

    It is 0 if no voxel of a lies outside of b.

    Args:
        outside: bool (z, y, x), the voxels of a that are not in b. All of them are searched: where
            b is a shell around a, the farthest voxel of a is not on its surface.
        points: (n, 3) nm, the voxels on the surface of b: the nearest voxel is always one of them.
        sizes: (3,) voxel size in nm.
        corner: index of the first voxel of `outside` in the volume that `points` are of.
        cap: nm; a larger distance need not be exact, but is no smaller than this.
    """
    if not outside.any():
        return 0.0
    # a tree that is fast to build: few queries follow
    tree = cKDTree(points, leafsize=64, compact_nodes=False, balanced_tree=False)
    # pyramid[k]: which cells of 2^k voxels' side hold a voxel
    pyramid = [outside]
    while max(pyramid[-1].shape) > 4:
        pyramid.append(_halved(pyramid[-1]))
    # Branch and bound, from the largest cells to single voxels: where the centre of a cell is at
    # distance d, its voxels are at d -+ half its diagonal. What cannot hold the largest is dropped.
    cells = np.argwhere(pyramid[-1])
    for level in range(len(pyramid) - 1, 0, -1):
        distances = _distances_to(tree, _centres(cells, 2**level, corner) * sizes)
        half_diagonal = (2**level - 1) / 2 * np.linalg.norm(sizes)
        surely_reached = (distances - half_diagonal).max()
        if surely_reached >= cap:
            return float(surely_reached)
        can_be_largest = distances + half_diagonal >= surely_reached
        cells = _split(cells[can_be_largest], pyramid[level - 1])
    return float(_distances_to(tree, _centres(cells, 1, corner) * sizes).max())


def surface_points(
    b: np.ndarray, sizes: np.ndarray, corner: Sequence[int] = (0, 0, 0)
) -> np.ndarray:
    """Return (n, 3) nm of the voxels of b with a face neighbour outside of b or of the array.

    corner: index of the array's first voxel in the whole volume.
    """
    core = (slice(1, -1),) * 3
    inner = b[core].copy()
    for axis in range(3):
        for side in (slice(None, -2), slice(2, None)):
            inner &= b[*core[:axis], side, *core[axis + 1 :]]
    surface = b.copy()
    surface[core] ^= inner
    return (np.argwhere(surface) + np.asarray(corner)) * sizes


def _centres(cells: np.ndarray, side: int, corner: Sequence[int]) -> np.ndarray:
    """Return (cells, 3) centres, in voxels, of cells with an edge of `side` voxels."""
    return (cells + 0.5) * side - 0.5 + np.asarray(corner)


def _distances_to(tree: cKDTree, points: np.ndarray) -> np.ndarray:
    """Return (n,) distances in nm from points to the nearest point of the tree."""
    distances, _ = tree.query(points)
    return distances


def _split(cells: np.ndarray, finer: np.ndarray) -> np.ndarray:
    """Return (cells, 3): those eighths of the cells that the mask of the finer level marks."""
    corners = np.indices((2, 2, 2)).reshape(3, -1).T
    parts = (2 * cells[:, None] + corners).reshape(-1, 3)
    # a level of odd size has no second half at its end
    parts = parts[(parts < finer.shape).all(1)]
    return parts[finer[tuple(parts.T)]]


def _halved(mask: np.ndarray) -> np.ndarray:
    """Return the mask of half the edge: True where any of 2^3 voxels is."""
    # an axis a turn: the first one is halved, and goes to the end
    for _ in range(3):
        half = mask[::2].copy()
        half[: len(mask) // 2] |= mask[1::2]
        mask = np.moveaxis(half, 0, -1)
    return mask

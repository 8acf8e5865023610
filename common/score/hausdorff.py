"""The Hausdorff distance between two objects: exact, and fast for thick and for large ones.

A distance transform of the box around both objects, as in the challenge's public code, looks at
every voxel of it for each pair; here cells of voxels are dropped at once. Times: bench/evaluate.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree


def hausdorff(a: np.ndarray, b: np.ndarray, voxel_size: Sequence[float] | np.ndarray) -> float:
    """Hausdorff distance in nm between the voxel centres of two objects, not capped.

    a, b: bool (z, y, x), each with a voxel at least.
    """
    sizes = np.asarray(voxel_size, float)
    # voxels of both are at distance 0
    return max(_farthest(a & ~b, b, sizes), _farthest(b & ~a, a, sizes))


def _farthest(outside: np.ndarray, b: np.ndarray, sizes: np.ndarray) -> float:
    """The largest distance from a voxel of `outside` to the nearest voxel of b, nm.

    No voxel of `outside` is in b; 0 if it has none.
    """
    if not outside.any():
        return 0.0
    # The nearest voxel of b is always on b's surface. The farthest voxel of `outside`, in turn, is
    # not on its own where b is a shell around it, so all of it has to be searched.
    points = np.argwhere(_surface(b)) * sizes
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
        distances = _distances_to(tree, cells, 2**level, sizes)
        half_diagonal = (2**level - 1) / 2 * np.linalg.norm(sizes)
        surely_reached = (distances - half_diagonal).max()
        can_be_largest = distances + half_diagonal >= surely_reached
        cells = _split(cells[can_be_largest], pyramid[level - 1])
    return float(_distances_to(tree, cells, 1, sizes).max())


def _distances_to(tree: cKDTree, cells: np.ndarray, side: int, sizes: np.ndarray) -> np.ndarray:
    """From the centres of cells of `side` voxels to the nearest point of the tree, nm."""
    centres = ((cells + 0.5) * side - 0.5) * sizes
    distances, _ = tree.query(centres)
    return distances


def _split(cells: np.ndarray, finer: np.ndarray) -> np.ndarray:
    """(cells, 3) the eighths of each cell that hold a voxel, by the mask of the finer level."""
    corners = np.indices((2, 2, 2)).reshape(3, -1).T
    parts = (2 * cells[:, None] + corners).reshape(-1, 3)
    # a level of odd size has no second half at its end
    parts = parts[(parts < finer.shape).all(1)]
    return parts[finer[tuple(parts.T)]]


def _surface(b: np.ndarray) -> np.ndarray:
    """Voxels of b with a face neighbour outside b or outside the array."""
    core = (slice(1, -1),) * 3
    inner = b[core].copy()
    for axis in range(3):
        for side in (slice(None, -2), slice(2, None)):
            inner &= b[*core[:axis], side, *core[axis + 1 :]]
    surface = b.copy()
    surface[core] ^= inner
    return surface


def _halved(mask: np.ndarray) -> np.ndarray:
    """Whether a block of 2^3 voxels holds any."""
    # an axis a turn: the first one is halved, and goes to the end
    for _ in range(3):
        half = mask[::2].copy()
        half[: len(mask) // 2] |= mask[1::2]
        mask = np.moveaxis(half, 0, -1)
    return mask

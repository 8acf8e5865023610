"""What is known about a voxel: the label palette, true negatives, groups from atoms.

A crop's truth is a palette image: one small integer a voxel, and a palette with one row for each
combination of labels that occurs. Reasoning about labels acts on the few rows of the palette, never
on the voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.classes import membership

UNKNOWN = -1

GROUP = 32
"""Volumes whose labels are packed into the bits of one int64 beside the rows found so far."""


def complete(
    palette: np.ndarray,
    names: Sequence[str],
    use_mutual_exclusion: bool = True,
    infer_groups: bool = True,
) -> np.ndarray:
    """Fill in what the annotated classes imply for those that are not annotated.

    A voxel is one atom of the class table: a positive class leaves only its own atoms possible, a
    negative class excludes its atoms. A class none of whose atoms is possible is negative; one that
    contains a positive class is positive. Positives are never inferred by elimination, and nothing
    is inferred where the annotation contradicts itself.

    Args:
        palette: (rows, classes) int8, 1 / 0 / UNKNOWN.
        names: of the classes; one outside the table implies nothing and is not inferred.
        use_mutual_exclusion: from positive classes to negatives (as cellmap-data until 2025.12).
        infer_groups: from parts to groups, from negative groups to their parts (ours).

    Returns a new palette; known entries are untouched.
    """
    atoms = membership(names)
    in_table = np.asarray(atoms.any(axis=1))
    positive = (palette == 1) & in_table
    negative = (palette == 0) & in_table
    contradictory = contradicts(palette, names)
    to_infer = (palette == UNKNOWN) & in_table & ~contradictory[:, None]

    possible = np.ones((len(palette), atoms.shape[1]), bool)  # (rows, atoms)
    if use_mutual_exclusion:
        possible &= _count(positive, ~atoms) == 0
    if infer_groups:
        possible &= _count(negative, atoms) == 0
    follows_negative = _count(possible, atoms.T) == 0
    result = np.where(to_infer & follows_negative, 0, palette)
    if infer_groups:
        is_part = (atoms[None] >= atoms[:, None]).all(axis=2) & in_table[:, None]  # [part, group]
        follows_positive = _count(positive, is_part) > 0
        result = np.where(to_infer & follows_positive, 1, result)
    return result.astype(np.int8)


def contradicts(palette: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(rows,) bool: rows whose annotated classes cannot all hold.

    Such as `mito` and `nuc` positive, or `pm` positive and `cell` negative.
    """
    atoms = membership(names)
    in_table = atoms.any(axis=1)
    positive = (palette == 1) & in_table
    negative = (palette == 0) & in_table
    possible = (_count(positive, ~atoms) == 0) & (_count(negative, atoms) == 0)
    return positive.any(axis=1) & ~possible.any(axis=1)


def _count(rows: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(rows, columns) int: how many entries are True both in a row and in a column of `table`."""
    return rows.astype(int) @ table


def encode(volumes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Palette image of several bool volumes of one shape (z, y, x).

    Returns the index volume (int64) and the combinations (rows, volumes) bool:
    `combinations[index]` gives the volumes back.
    """
    index = np.zeros(volumes[0].shape, np.int64)
    combinations = np.zeros((1, 0), bool)
    for first in range(0, len(volumes), GROUP):
        group = volumes[first : first + GROUP]
        bits = np.zeros(index.shape, np.int64)
        for bit, volume in enumerate(group):
            bits |= volume.astype(np.int64) << bit
        # the row of the volumes before in the high bits: rows stay as few as combinations
        codes, index = np.unique(index << GROUP | bits, return_inverse=True)
        index = index.reshape(bits.shape)
        labels = (codes[:, None] >> np.arange(len(group)) & 1).astype(bool)
        combinations = np.concatenate([combinations[codes >> GROUP], labels], axis=1)
    return index, combinations

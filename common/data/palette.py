"""What is known about a voxel: the label palette, true negatives, groups from atoms.

A crop's truth is a palette image: one small integer a voxel, and a palette with one row for each combination of labels
that occurs. Reasoning about labels acts on the few rows of the palette, never on the voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.classes import membership

UNKNOWN = -1


def complete(
    palette: np.ndarray,
    names: Sequence[str],
    use_mutual_exclusion: bool = True,
    infer_groups: bool = True,
) -> np.ndarray:
    """Fill in what the annotated classes imply for those that are not annotated.

    palette: (rows, classes) int8, 1 / 0 / UNKNOWN. Returns a new palette; known entries are untouched.

    A voxel is one atom of the class table. A positive class leaves only its own atoms possible, a negative class excludes
    all of its atoms. A class none of whose atoms is possible is negative; a class that contains a positive class is
    positive. `use_mutual_exclusion` reasons from positive classes to negatives (true negatives, as cellmap-data did until
    2025.12), `infer_groups` from parts to groups and from negative groups to their parts (ours). Positives are never
    inferred by elimination, and nothing is inferred where the annotation contradicts itself.
    """
    atoms, known = membership(names), palette != UNKNOWN
    in_table = atoms.any(axis=1)
    positive = (palette == 1) & in_table
    possible = np.ones((len(palette), atoms.shape[1]), bool)
    if use_mutual_exclusion:
        possible &= positive.astype(int) @ ~atoms == 0
    if infer_groups:
        possible &= ((palette == 0) & in_table).astype(int) @ atoms == 0
    negative = (possible.astype(int) @ atoms.T == 0) & in_table
    consistent = ~contradicts(palette, names)[:, None]
    result = np.where(~known & negative & consistent, np.int8(0), palette)
    if infer_groups:
        contains = (atoms[:, None] >= atoms[None]).all(axis=2) & in_table  # contains[group, part]
        result = np.where(
            ~known & (positive.astype(int) @ contains.T > 0) & consistent, np.int8(1), result
        )
    return result.astype(np.int8)


def contradicts(palette: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(rows,) bool: rows whose annotated classes cannot all hold, such as `mito` and `nuc` positive, or `pm` but not `cell`."""
    atoms = membership(names)
    in_table = atoms.any(axis=1)
    positive, negative = (palette == 1) & in_table, (palette == 0) & in_table
    possible = (positive.astype(int) @ ~atoms == 0) & (negative.astype(int) @ atoms == 0)
    return positive.any(axis=1) & ~possible.any(axis=1)


def encode(volumes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Palette image of several bool volumes of one shape (z, y, x).

    Returns the index volume (int64) and the combinations (rows, volumes) bool: `combinations[index]` gives the volumes back.
    """
    index = np.zeros(volumes[0].shape, np.int64)
    combinations = np.zeros((1, 0), bool)
    for first in range(0, len(volumes), 32):
        word = np.zeros(index.shape, np.int64)
        group = volumes[first : first + 32]
        for bit, volume in enumerate(group):
            word |= volume.astype(np.int64) << bit
        codes, index = np.unique(index << 32 | word, return_inverse=True)
        index = index.reshape(word.shape)
        bits = (codes[:, None] >> np.arange(len(group)) & 1).astype(bool)
        combinations = np.concatenate([combinations[codes >> 32], bits], axis=1)
    return index, combinations

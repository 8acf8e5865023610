"""Palette images of labels, and what annotated classes imply for the others.

The labels of a crop are stored as a palette image: an index volume with one small integer per
voxel, and a palette (rows, classes) with one row for each combination of labels that occurs.
Whatever is inferred about labels is inferred for the few rows of the palette, not for voxels.

A class is a set of *atoms* (see `common.classes`), the smallest parts that the class table tells
apart: `mito` consists of `mito_mem`, `mito_lum` and `mito_ribo`. A *group* is a class of several
atoms. Every voxel belongs to exactly one atom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.classes import Declared, Related, excluding, membership, relate
from common.config.settings import TrainConfig

UNKNOWN = -1
"""Entry of a palette for a class that is not annotated and could not be inferred."""

CODE_OF_UNKNOWN = 255
"""The same in volumes and pictures of uint8."""

GROUP = 32
"""Volumes of which the last decide the order of rows in `encode`."""

BYTE = 8
"""Volumes that `encode` packs into one byte."""

MOST_ROWS = 2**14
"""Rows from which `encode` sorts voxels: a table of 2^22 codes is as large as a block."""


@dataclass(frozen=True)
class Rules:
    """What the labels of some classes imply for the others: the settings of these names."""

    use_mutual_exclusion: bool = True
    """Infer negatives from positive classes, as cellmap-data did until 2025.12."""
    infer_groups: bool = True
    """Infer groups from their parts, and parts from negative groups."""
    exclusive_classes: tuple[str, ...] = ()
    class_relations: Declared = field(default_factory=dict)
    """What is said of classes outside the table, see `common.classes.relate`."""

    @classmethod
    def of(cls, config: TrainConfig) -> Rules:
        """Return the rules of a run."""
        return cls(
            config.use_mutual_exclusion,
            config.infer_groups,
            config.exclusive_classes,
            config.class_relations,
        )

    @property
    def declared(self) -> Declared:
        """What both settings say of classes that exclude or contain each other."""
        return excluding(self.class_relations, self.exclusive_classes)

    def complete(self, palette: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Return the palette with UNKNOWN entries filled in where the known ones imply them.

        A voxel belongs to exactly one atom. So a positive class leaves only its own atoms possible,
        and a negative class rules out its atoms. An unknown class becomes negative if none of its
        atoms is possible, and positive if it contains a positive class. A class is never made
        positive because all others are excluded, and nothing is inferred in a row that contradicts
        itself.

        Args:
            palette: (rows, classes) int8: 1 positive, 0 negative, UNKNOWN.
            names: the class of each column; a class outside the table implies nothing and is not
                inferred, but by what is declared.

        Returns:
            A new palette of the same shape; known entries are unchanged.
        """
        declared = self.declared
        may_infer = ~contradicts(palette, names, declared)[:, None]
        if not declared:
            return _by_table(palette, names, may_infer, self)
        related = relate(names, declared)
        while True:
            before = palette
            palette = _by_table(palette, names, may_infer, self)
            palette = _by_relations(palette, related, may_infer, self)
            if (palette == before).all():
                return palette


def in_uint8(labels: np.ndarray) -> np.ndarray:
    """Return int8 labels (1 positive, 0 negative, UNKNOWN) as uint8, with CODE_OF_UNKNOWN."""
    # not np.where with the number 255, which NumPy 2.5 refuses beside int8
    return np.where(labels == UNKNOWN, np.uint8(CODE_OF_UNKNOWN), labels.astype(np.uint8))


def _by_relations(
    palette: np.ndarray, related: Related, may_infer: np.ndarray, rules: Rules
) -> np.ndarray:
    """Infer from single known classes what is declared: of classes outside the table, and others.

    may_infer: (rows, 1) bool. Returns a new palette.
    """
    positive = palette == 1
    negative = palette == 0
    to_infer = (palette == UNKNOWN) & may_infer
    result = palette
    if rules.use_mutual_exclusion:
        is_excluded = _count(positive, related.excludes) > 0
        result = np.where(to_infer & is_excluded, 0, result)
    if rules.infer_groups:
        lacks_whole = _count(negative, related.is_part.T) > 0
        result = np.where(to_infer & lacks_whole, 0, result)
        has_part = _count(positive, related.is_part) > 0
        result = np.where(to_infer & has_part, 1, result)
    return result.astype(np.int8)


def _by_table(
    palette: np.ndarray, names: Sequence[str], may_infer: np.ndarray, rules: Rules
) -> np.ndarray:
    """Infer the unknown classes of the table from its known ones.

    may_infer: (rows, 1) bool. Returns a new palette.
    """
    atoms = membership(names)
    in_table = np.asarray(atoms.any(axis=1))
    positive = (palette == 1) & in_table
    negative = (palette == 0) & in_table
    to_infer = (palette == UNKNOWN) & in_table & may_infer

    possible = np.ones((len(palette), atoms.shape[1]), bool)  # (rows, atoms)
    if rules.use_mutual_exclusion:
        possible &= _count(positive, ~atoms) == 0
    if rules.infer_groups:
        possible &= _count(negative, atoms) == 0
    follows_negative = _count(possible, atoms.T) == 0
    result = np.where(to_infer & follows_negative, 0, palette)
    if rules.infer_groups:
        contains = (atoms[None] >= atoms[:, None]).all(axis=2)  # [part, group]
        is_part = contains & in_table[:, None]
        follows_positive = _count(positive, is_part) > 0
        result = np.where(to_infer & follows_positive, 1, result)
    return result.astype(np.int8)


def contradicts(
    palette: np.ndarray, names: Sequence[str], declared: Declared | None = None
) -> np.ndarray:
    """Return (rows,) bool: whether the labels of a row contradict the class table, or `declared`.

    Examples are `mito` and `nuc` both positive, or `pm` positive and `cell` negative.
    """
    by_table = _contradicts_table(palette, names)
    if not declared:
        return by_table
    related = relate(names, declared)
    positive = palette == 1
    excluded = positive & (_count(positive, related.excludes) > 0)
    without_whole = positive & (_count(palette == 0, related.is_part.T) > 0)
    return by_table | excluded.any(axis=1) | without_whole.any(axis=1)


def _contradicts_table(palette: np.ndarray, names: Sequence[str]) -> np.ndarray:
    atoms = membership(names)
    in_table = atoms.any(axis=1)
    positive = (palette == 1) & in_table
    negative = (palette == 0) & in_table
    possible = (_count(positive, ~atoms) == 0) & (_count(negative, atoms) == 0)
    return positive.any(axis=1) & ~possible.any(axis=1)


def _count(rows: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return (rows, columns) int: entries True both in a row and in a column of `table`."""
    return rows.astype(int) @ table


def encode(volumes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Encode several bool volumes (z, y, x) of one shape as a palette image.

    Returns:
        The index volume (z, y, x) of integers, and the combinations (rows, volumes) bool that
        occur. `combinations[index]` is (z, y, x, volumes), the volumes again.
    """
    index = np.zeros(volumes[0].shape, np.uint8)
    combinations = np.zeros((1, len(volumes)), bool)
    for first in _in_order(len(volumes)):
        group = volumes[first : first + BYTE]
        present = [bit for bit, volume in enumerate(group) if volume.any()]
        if not present:  # as most classes are from most blocks
            continue
        bits = np.zeros(index.shape, np.uint8)
        for bit in present:
            bits |= group[bit].view(np.uint8) << np.uint8(bit)
        # the row of the volumes before in the high bits: rows stay as few as combinations
        codes, index = _ranks(index, bits, len(combinations))
        combinations = combinations[codes >> BYTE]
        combinations[:, first : first + BYTE] = codes[:, None] >> np.arange(len(group)) & 1
    return index, combinations


def _in_order(count: int) -> Iterator[int]:
    """Iterate over the first volume of each BYTE, in the order in which `encode` takes them.

    It makes the rows those of the crops that are decoded already: sorted by the first GROUP
    volumes, then by the next, where the last volume of a group counts most.
    """
    for group in range(0, count, GROUP):
        yield from reversed(range(group, min(group + GROUP, count), BYTE))


def _ranks(index: np.ndarray, bits: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes `index << BYTE | bits` that occur, ascending, and the rank of each voxel's.

    As np.unique does, by a table of all codes instead of sorting the voxels, in a seventh of the
    time.
    """
    smallest = np.dtype("u2" if rows <= 2**BYTE else "i8")
    voxels = index.astype(smallest) << BYTE | bits
    if rows > MOST_ROWS:
        codes, ranks = np.unique(voxels, return_inverse=True)
        return codes, ranks.reshape(bits.shape)
    occurs = np.zeros(rows << BYTE, bool)
    occurs[voxels] = True
    codes = np.flatnonzero(occurs)
    rank = np.cumsum(occurs, dtype=np.int64) - 1
    # one byte where it will do, since each pass reads and writes all voxels
    return codes, rank.astype(np.uint8 if len(codes) <= 2**BYTE else np.int64)[voxels]

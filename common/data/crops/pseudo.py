"""Choose and store the labels that networks give to voxels that nobody annotated (pseudo-labels).

A label volume with such labels has an array ARRAY beside its finest level, which is 1 where a label
is a network's. Without that array the volume is an ordinary one: 0, 1 and unknown; or, where the
annotation tells objects apart, its ids, WITHOUT_ID and unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import zarr

from common.data.crops.palette import UNKNOWN, Rules
from common.data.volumes.level import Level

ARRAY = "pseudo"

WITHOUT_ID = 2**63 - 2
"""Value in a volume of ids: the class is there, and no annotation says which object it is."""

UNKNOWN_ID = 2**64 - 1
"""Value of unknown in a volume of ids. No id is as large: they are read as int64."""

IN_PALETTE = 2
"""Added to the label of a network where palettes are stored: 2 is negative, 3 positive."""


def of_networks(level: Level) -> zarr.Array | None:
    """Return the array that is 1 where the finest level has a network's label; None without."""
    path = level.group / ARRAY
    return zarr.open_array(str(path), mode="r") if (path / ".zarray").is_file() else None


@dataclass(frozen=True)
class Filled:
    """A block of labels after networks have completed it."""

    labels: np.ndarray
    """(classes, z, y, x) int8: 1, 0 or -1 = unknown."""
    is_pseudo: np.ndarray
    """(classes, z, y, x) bool: the labels that were unknown before."""
    source: np.ndarray
    """(z, y, x) uint8: 1 + number of the class whose network was the surest; 0 where none was."""
    confidence: np.ndarray
    """(z, y, x) uint8: its probability in 255ths; 0 where there is none."""

    @classmethod
    def begin(cls, labels: np.ndarray) -> Filled:
        """Return a copy of labels that no network has completed yet."""
        return cls(
            labels=labels.copy(),
            is_pseudo=np.zeros(labels.shape, bool),
            source=np.zeros(labels.shape[1:], np.uint8),
            confidence=np.zeros(labels.shape[1:], np.uint8),
        )


def fill(
    labels: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str],
    *,
    threshold: float,
    rules: Rules,
) -> Filled:
    """Label the unknown classes of each voxel as the surest networks say, and as follows from that.

    Of the classes that are unknown at a voxel the one with the highest probability above the
    threshold becomes positive there, and what that implies is negative or positive: classes that
    exclude it, and groups that it is a part of. Then comes the surest of those that are still
    unknown, such as a part of the first. What no network is sure of stays unknown; what is known is
    never changed.

    Args:
        labels: (classes, z, y, x) int8, what is known.
        probabilities: (classes, z, y, x) uint8 in 255ths.
        names: of the classes.
        threshold: probability.
        rules: what labels imply.
    """
    filled = Filled.begin(labels)
    # row k: what follows from class k alone
    alone = np.where(np.eye(len(names), dtype=bool), 1, UNKNOWN).astype(np.int8)
    implied = rules.complete(alone, names)
    is_sure = probabilities > threshold * 255
    left = np.where((labels == UNKNOWN) & is_sure, probabilities, 0)
    while left.any():
        surest = left.max(axis=0)
        # of equals the first class: the same whenever it is repeated
        winner = left.argmax(axis=0)
        for number, of_winner in enumerate(implied):
            where = (winner == number) & (surest > 0)
            first = where & (filled.source == 0)
            filled.source[first] = number + 1
            filled.confidence[first] = surest[first]
            _imply(filled, left, where, of_winner)
    return filled


def _imply(filled: Filled, left: np.ndarray, where: np.ndarray, implied: np.ndarray) -> None:
    """Write the labels that are implied into the unknown ones at some voxels.

    Args:
        filled: changed in place.
        left: (classes, z, y, x), set to 0 where a label is decided.
        where: (z, y, x) bool.
        implied: (classes,) int8.
    """
    if not where.any():
        return
    for number in np.flatnonzero(implied != UNKNOWN):
        new = where & (filled.labels[number] == UNKNOWN)
        filled.labels[number][new] = implied[number]
        filled.is_pseudo[number][new] = True
        left[number][where] = 0

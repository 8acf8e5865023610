"""Search the groups of crops that validate: as even as may be, and without gaps.

100000 sets of groups are drawn from the seed and ranked over *all* crops at hand, whatever the
resolution asked for, so that experiments at different resolutions share one assignment. The rank is
the sum of
  - how far the validation fraction is from the wanted one, taken over all crops, over crops of like
    voxel size, over crops of like extent and over the crops of each class (each of the four is
    sum |validation - wanted| / sum crops);
  - how alike the validation crops are: the chance that two of them are of one kind of sample.
The first set in this rank with the fewest coverage gaps *at the resolution asked for* is taken. A
gap is a class without a training crop, or one without a validation crop though two groups annotate
it; one of the first kind counts more than all of the second. Annotated is not the same as present:
whether a class occurs in a crop is known from its voxels only (`fingerprint` counts them).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.data.splits.catalogue import CropInfo
from common.data.splits.split import USAGES

DRAWS = 100_000

DRAWS_AT_ONCE = 10_000
"""Sets that are ranked together; bounds the memory where there are hundreds of groups."""

Sides = list[tuple[str, CropInfo]]
"""(usage, crop), training ones first, test ones last, each side in natural order."""


@dataclass(frozen=True)
class Pool:
    """The crops at hand and what may be done with them."""

    crops: list[CropInfo]
    """In natural order, those that do not fit too: sets are ranked over all."""
    annotated: np.ndarray
    """(crops, classes) bool."""
    usable: np.ndarray
    """(crops,) bool: those that fit."""
    on_side: Mapping[str, np.ndarray]
    """For each usage (crops,) bool: those that the side would take."""
    groups: np.ndarray
    """(crops,) int: group of each crop."""
    names: list[str]
    """Of the groups."""

    @property
    def membership(self) -> np.ndarray:
        """(groups, crops) 0 / 1."""
        return np.eye(len(self.names))[self.groups].T

    @property
    def usable_groups(self) -> int:
        """How many groups have a crop that fits."""
        return len(set(self.groups[self.usable]))

    def sides(self, validates: np.ndarray) -> Sides:
        """Return the sides where the groups in `validates`, (groups,) bool, validate."""
        sides = []
        for usage in USAGES:
            of_group = validates if usage == "validate" else ~validates
            taken = of_group[self.groups] & self.on_side[usage]
            sides += [(usage, self.crops[i]) for i in np.flatnonzero(taken)]
        return sides


class _Judged(NamedTuple):
    """A set of groups that validate; the smaller the better, gaps before rank."""

    gaps: int
    rank: float
    validates: np.ndarray
    """(groups,) bool."""


class Search:
    """Looks for the best set of groups to validate.

    held: (groups,) bool, those that validate in any case; free: those that may.
    """

    def __init__(self, pool: Pool, fraction: float, *, held: np.ndarray, free: np.ndarray):
        members = pool.membership
        self.fraction = fraction
        self.held = held
        self.free = free
        self.strata = [members @ stratum for stratum in _strata(pool.crops)]
        self.kinds = members @ _one_hot([crop.kind for crop in pool.crops])
        self.counts = {}
        for usage in USAGES:
            taken = pool.on_side[usage][:, None]
            self.counts[usage] = members @ (pool.annotated & taken)

    def best_of_draws(self, chance: float, seed: int) -> np.ndarray:
        """Return (groups,) bool: the best of DRAWS sets, each group in it with `chance`, mended."""
        rng = np.random.default_rng(seed)
        groups = len(self.held)
        blocks = []
        for _ in range(DRAWS // DRAWS_AT_ONCE):
            drawn = rng.random((DRAWS_AT_ONCE, groups)) < chance
            blocks.append(self._best(drawn))
        best = min(blocks, key=lambda block: (block.gaps, block.rank))
        # where classes are rare among many groups no random set covers them all
        while best.gaps:
            one_group_moved = best.validates ^ np.eye(groups, dtype=bool)
            moved = self._best(one_group_moved)
            if moved.gaps >= best.gaps:
                break
            best = moved
        return best.validates

    def _best(self, sets: np.ndarray) -> _Judged:
        """Return the best of some sets, (sets, groups) bool."""
        sets = sets & self.free | self.held
        gaps = _gaps(sets, self.counts)
        rank = _rank(sets, self.strata, self.kinds, self.fraction)
        first = np.lexsort((rank, gaps))[0]
        return _Judged(gaps[first], rank[first], sets[first])


# how they are ranked


def _gaps(sets: np.ndarray, counts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Count the classes of each set that have no training, or no validation crop, but could.

    A class without a training crop counts more than all without a validation crop: it is never
    learnt.

    Args:
        sets: (sets, groups) bool, those that validate.
        counts: for each usage (groups, classes) crops that annotate a class.

    Returns:
        (sets,) int.
    """
    train = counts["train"]
    validate = counts["validate"]
    can_train = (train > 0).any(0)
    annotating_groups = ((validate > 0) | (train > 0)).sum(0)
    can_do_both = (validate > 0).any(0) & can_train & (annotating_groups > 1)
    untrained = (~sets @ train == 0) & can_train
    unvalidated = (sets @ validate == 0) & can_do_both
    return untrained.sum(1) * (1 + train.shape[1]) + unvalidated.sum(1)


def _rank(
    sets: np.ndarray, strata: Sequence[np.ndarray], kinds: np.ndarray, fraction: float
) -> np.ndarray:
    """Return (sets,) the sum in the module's text, less is better.

    Args:
        sets: (sets, groups) bool, those that validate.
        strata: each (groups, n) crops of a group in each of n strata.
        kinds: (groups, n) crops of a group of each kind of sample.
        fraction: that is wanted of each stratum.
    """
    uneven = np.zeros(len(sets))
    for stratum in strata:
        wanted = fraction * stratum.sum(0)
        uneven += np.abs(sets @ stratum - wanted).sum(1) / stratum.sum()
    chosen = sets @ kinds
    alike = (chosen**2).sum(1) / np.maximum(chosen.sum(1), 1) ** 2
    # rounded, so that it orders alike on every machine
    return np.round(uneven + alike, 9)


def _strata(crops: Sequence[CropInfo]) -> list[np.ndarray]:
    """Return the four divisions of crops over which the validation fraction should be even.

    Each is (crops, n) 0 / 1: all crops; those of like voxel size; of like extent, both in octaves;
    and of each class.
    """
    names = sorted(set().union(*(crop.classes for crop in crops)))
    annotated = np.zeros((len(crops), len(names)))
    for i, crop in enumerate(crops):
        annotated[i] = [name in crop.classes for name in names]
    return [
        np.ones((len(crops), 1)),
        _one_hot([round(math.log2(max(crop.voxel_size))) for crop in crops]),
        _one_hot([math.floor(math.log2(crop.extent.min())) for crop in crops]),
        annotated,
    ]


def _one_hot(values: Sequence[Hashable]) -> np.ndarray:
    """Return (values, n) 0 / 1: which of the n distinct values each is."""
    index = np.unique(np.array(values), return_inverse=True)[1]
    return np.eye(index.max() + 1)[index]

"""Choose which crops train, which validate, and which are held out for test.

A *side* is training or validation; test crops are named, never drawn, and taken away first. All
crops of a group go to the same side. A group is a specimen,
or a dataset (by="dataset"), or a set of crops linked by overlaps (by="crop").

method="hash": a group validates if SHA-256 of "seed/name of the group", as a number in [0, 1), is
below the wanted fraction. It looks at nothing else, so a new crop moves no old one, and a larger
fraction only adds groups; but few groups come out unevenly. Linked crops have the name of the first
of them: a new crop moves old ones only if it links some that stood on different sides or comes
before those that it overlaps.

method="balanced", the default, searches for the best set of groups, see
`common.data.splits.balanced`.

With folds=K every group validates in exactly one of K splits: by its hash (the K-th part of [0, 1)
that it falls into), or balanced, where each fold is searched as above among the groups that have
not validated yet.

How small a crop may be (min_extent) depends on the smallest target patch, 28 voxels here. The
baselines ask for 28 voxels at 8 nm (a patch can be known everywhere; no fine crop is smaller), for
20 at 32 nm (the usual crops of 400 voxels, 0.65 to 0.8 um, still fill a third of a patch) and for 9
at 128 nm (1.2 um; a smaller crop fills under 4 %).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from common import talk
from common.classes import TESTED
from common.data.splits.balanced import Pool, Search, Sides
from common.data.splits.catalogue import CropInfo, fits, natural_key
from common.data.splits.split import TEST, USAGES
from common.data.volumes import layout
from common.errors import UserError, refuse

GROUPS = ("specimen", "dataset", "crop")

METHODS = ("balanced", "hash")

FORCED = {"": (), "all": USAGES, "train": ("train",), "validate": ("validate",)}
"""The sides that take only crops annotating every class, by the value of force_classes."""

VALIDATION_FRACTION = 0.17

MOST_FOLDS = 1000
"""A file each."""


@dataclass(frozen=True)
class SplitRules:
    """How sides are chosen; see the module docstring."""

    classes: Sequence[str] = TESTED
    """The classes that are wanted; a crop that annotates none of them is left out."""
    scale: tuple[float, ...] | None = None
    """Voxel size in nm, z, y, x; crops with coarser labels are left out. None takes all."""
    validation_fraction: float = VALIDATION_FRACTION
    seed: int = 0
    by: str = "specimen"
    """What stays together, one of GROUPS."""
    min_extent: float = 1
    """Voxels of `scale` that a crop must have along every axis."""
    method: str = "balanced"
    """One of METHODS."""
    hold_out: Sequence[str] = ()
    """Datasets or crops that validate, whole groups of them.

    Exact names: 'jrc_x', 'crop28', '28' or 'jrc_x/crop28'.
    """
    test: Sequence[str] = ()
    """Datasets or crops, whole groups and by exact names too, that neither train nor validate."""
    folds: int = 0
    """How many splits; 0 is one, by the validation fraction."""
    force_classes: str = ""
    """'all', 'train' or 'validate': sides that take only crops annotating every one of `classes`.

    The other crops are left out there, not moved to the other side.
    """

    @property
    def scale_text(self) -> str:
        """'8' for equal numbers, otherwise '50,4.6,4.6', as it is typed; nothing without."""
        sizes = [f"{size:.12g}" for size in self.scale or ()]
        return sizes[0] if len(set(sizes)) == 1 else ",".join(sizes)

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a sentence each."""
        problems = self._wrong_numbers()
        for name, value, known in (
            ("by", self.by, GROUPS),
            ("method", self.method, METHODS),
            ("force-classes", self.force_classes, tuple(FORCED)),
        ):
            if value not in known:
                words = " or ".join(f"'{word}'" for word in known if word)
                problems.append(f"{name} '{value}'; write {words}")
        twice = _exact(self.hold_out) & _exact(self.test)
        if twice:
            problems.append(
                f"hold-out and test both name {talk.some(sorted(twice))}; write it in one of them"
            )
        return problems + self._wrong_folds()

    def _wrong_numbers(self) -> list[str]:
        problems = []
        if self.scale is not None:
            positive = all(0 < size < math.inf for size in self.scale)
            if len(self.scale) != 3 or not positive:
                problems.append(
                    f"scale {self.scale_text}; write the voxel size in nm, as 8 or 8,8,8"
                )
        if not 0 <= self.validation_fraction < 1:
            problems.append(
                f"validation fraction {self.validation_fraction:g}; "
                "write a number from 0 to below 1, such as 0.17"
            )
        if self.seed < 0:
            problems.append(f"seed {self.seed}; write a whole number, 0 or more")
        if not 0 <= self.min_extent < math.inf:
            problems.append(f"min-extent {self.min_extent:g}; write a number of voxels, 0 or more")
        return problems

    def _wrong_folds(self) -> list[str]:
        problems = []
        if self.folds and not 2 <= self.folds <= MOST_FOLDS:
            problems.append(
                f"folds {self.folds}; write 2 or more, up to {MOST_FOLDS}, or 0 for one split"
            )
        if self.folds and self.hold_out:
            problems.append(
                f"hold-out {','.join(self.hold_out)} with {self.folds} folds, "
                "where every group validates once; write one of them"
            )
        if self.folds and self.validation_fraction != VALIDATION_FRACTION:
            problems.append(
                f"validation fraction {self.validation_fraction:g} with {self.folds} folds; "
                "write one of them"
            )
        return problems


def choose_sides(crops: Sequence[CropInfo], rules: SplitRules) -> Sides:
    """Return the sides of the crops that fit the rules.

    Raises:
        UserError: if nothing fits, nothing trains, all that fits would have to move together, or a
            group is held out in part.
    """
    others, tests = _without_tests(crops, rules)
    pool = _pool(others, rules)
    held = _named(pool, rules, "hold-out", rules.hold_out)
    sides = pool.sides(held | _drawn(pool, rules, held))
    if any(usage == "train" for usage, _ in sides):
        return sides + tests
    if not pool.on_side["train"].any():
        raise UserError(
            f"no crop of {len(crops)} annotates all of {', '.join(rules.classes)}; "
            "do not ask for all"
        )
    raise UserError(
        "no crop is left to train on; take another seed, "
        "validate a smaller fraction or hold out less"
    )


def choose_folds(crops: Sequence[CropInfo], rules: SplitRules) -> list[Sides]:
    """Return the sides of each of `rules.folds` splits; every group validates in exactly one.

    The validation fraction and what is held out are not looked at.

    Raises:
        UserError: where `choose_sides` does, and if a fold has no crop that validates.
    """
    others, tests = _without_tests(crops, rules)
    pool = _pool(others, rules)
    _check_several(pool, rules.by)
    if rules.folds > pool.usable_groups:
        raise UserError(
            f"folds {rules.folds}: every group validates in one of them, and "
            f"{pool.usable_groups} groups (by {rules.by}) fit; write {pool.usable_groups} or fewer "
            f"folds{'' if rules.by == 'crop' else ', or --group-by crop'}"
        )
    fold_of = _fold_of_each(pool, rules)
    splits = []
    for fold in range(rules.folds):
        sides = pool.sides(fold_of == fold)
        missing = set(USAGES) - {usage for usage, _ in sides}
        if missing:
            advice = ", or method balanced" if rules.method == "hash" else ""
            raise UserError(
                f"fold {fold} of {rules.folds} has no {min(missing)} crop "
                f"({pool.usable_groups} groups fit); write fewer folds{advice}"
            )
        splits.append(sides + tests)
    return splits


def _without_tests(crops: Sequence[CropInfo], rules: SplitRules) -> tuple[list[CropInfo], Sides]:
    """Return the crops that may train or validate, and the test crops that fit, with their side.

    Raises UserError as `_named`, and if nothing else is left.
    """
    if not rules.test:
        return list(crops), []
    pool = _pool(crops, rules)
    is_test = _named(pool, rules, TEST, rules.test)[pool.groups]
    others = [pool.crops[i] for i in np.flatnonzero(~is_test)]
    if not others:
        raise UserError(f"test: all {len(is_test)} crops are named; leave some to train on")
    return others, [(TEST, pool.crops[i]) for i in np.flatnonzero(is_test & pool.usable)]


def by_specimen_if_several(crops: Sequence[CropInfo], rules: SplitRules) -> SplitRules:
    """Return the rules, grouping by specimen; by crop, with a note, if there is one specimen."""
    rules = replace(rules, by="specimen")
    tests = _exact(rules.test)
    others = [crop for crop in crops if tests.isdisjoint((crop.dataset, crop.name, crop.path))]
    pool = _pool(others or crops, rules)
    if pool.usable_groups > 1 or pool.usable.sum() == 1 or not rules.validation_fraction:
        return rules
    number = pool.usable.sum()
    talk.note(f"all {number} crops that fit are of one specimen, so that they are split by crop")
    return replace(rules, by="crop")


# what a group is


def group_numbers(crops: Sequence[CropInfo], by: str) -> np.ndarray:
    """Return (crops,) int: the group of each crop.

    by: 'specimen', 'dataset', or 'crop', which links the crops that overlap.
    """
    if by == "crop":
        return _linked(crops)
    names = [getattr(crop, by) for crop in crops]
    return np.unique(names, return_inverse=True)[1]


def _linked(crops: Sequence[CropInfo]) -> np.ndarray:
    """Return groups of crops that overlap, also by way of others."""
    groups = np.arange(len(crops))
    for i, crop in enumerate(crops):
        for j, earlier in enumerate(crops[:i]):
            if groups[i] != groups[j] and crop.overlaps(earlier):
                groups[groups == groups[i]] = groups[j]
    return np.unique(groups, return_inverse=True)[1]


def _pool(crops: Sequence[CropInfo], rules: SplitRules) -> Pool:
    """Return the crops at hand, and what may be done with them. Raises UserError if none fits."""
    crops = sorted(crops, key=lambda crop: natural_key(*crop.key))
    annotated = np.zeros((len(crops), len(rules.classes)), bool)
    usable = np.zeros(len(crops), bool)
    for i, crop in enumerate(crops):
        annotated[i] = [name in crop.classes for name in rules.classes]
        usable[i] = annotated[i].any() and fits(crop, rules.scale, rules.min_extent)
    if not usable.any():
        wanted = ""
        if rules.scale is not None:
            wanted = (
                f", as fine as {rules.scale_text} nm, "
                f"{rules.min_extent:g} such voxels on every axis"
            )
        raise UserError(
            f"no crop of {len(crops)} fits (a class asked for{wanted}); "
            "ask for coarser or smaller ones"
        )
    complete = usable & annotated.all(1)
    on_side = dict.fromkeys(USAGES, usable)
    for usage in FORCED[rules.force_classes]:
        on_side[usage] = complete
    groups = group_numbers(crops, rules.by)
    first_crops = [crops[i] for i in np.unique(groups, return_index=True)[1]]
    # linked crops have the name of the first of them
    names = [crop.path if rules.by == "crop" else getattr(crop, rules.by) for crop in first_crops]
    return Pool(crops, annotated, usable, on_side=on_side, groups=groups, names=names)


def _check_several(pool: Pool, by: str) -> None:
    """Raises UserError if there is only one group to put on two sides."""
    if pool.usable_groups > 1:
        return
    if pool.usable.sum() == 1:
        raise UserError(
            f"only {pool.crops[int(pool.usable.argmax())].path} fits, and a crop is on one side; "
            "add crops (import-data --blocks makes several of one), or train on all "
            "(--validation-fraction 0)"
        )
    what = {
        "specimen": "specimen; split it by crop (--group-by crop)",
        "dataset": "dataset; split it by crop (--group-by crop)",
        "crop": "overlapping region; add crops",
    }[by]
    raise UserError(
        f"all {pool.usable.sum()} crops that fit are of one {what}, "
        "or train on all (--validation-fraction 0)"
    )


# how sides are drawn


def _exact(names: Sequence[str]) -> set[str]:
    return {layout.crop_name(name) for name in names}


def _named(pool: Pool, rules: SplitRules, option: str, given: Sequence[str]) -> np.ndarray:
    """Return (groups,) bool: those whose crops are all named in `given`, what the option was given.

    Raises UserError for a name that nothing has, and for a group that is named in part.
    """
    wanted = _exact(given)
    names = [{crop.dataset, crop.name, crop.path} for crop in pool.crops]
    example = pool.crops[0]
    problems = [
        f"{option} '{name}': no dataset or crop at hand has exactly this name; "
        f"write names such as {example.dataset} or {example.path}"
        for name in sorted(wanted.difference(*names))
    ]
    named = np.array([not wanted.isdisjoint(of_crop) for of_crop in names])
    held = np.zeros(len(pool.names), bool)
    held[pool.groups[named]] = True
    for group in np.flatnonzero(held):
        left = [pool.crops[i].path for i in np.flatnonzero((pool.groups == group) & ~named)]
        if not left:
            continue
        what = "the crops that overlap" if rules.by == "crop" else f"{rules.by} {pool.names[group]}"
        advice = "" if rules.by == "crop" else ", or write --group-by crop"
        problems.append(
            f"{option}: a part of {what} only; "
            f"name the other {len(left)} too ({talk.some(left, most=5)}){advice}"
        )
    refuse(problems)
    return held


def _drawn(pool: Pool, rules: SplitRules, held: np.ndarray) -> np.ndarray:
    """Return (groups,) bool: those that validate besides those that are held out."""
    if rules.validation_fraction == 0:
        return np.zeros(len(pool.names), bool)
    if rules.method == "hash":
        return _positions(pool.names, rules.seed) < rules.validation_fraction
    if not held.any():
        _check_several(pool, rules.by)
    free = np.ones(len(pool.names), bool)
    chance = rules.validation_fraction
    search = Search(pool, chance, held=held, free=free)
    return search.best_of_draws(chance, rules.seed)


def _fold_of_each(pool: Pool, rules: SplitRules) -> np.ndarray:
    """Return (groups,) int: in which fold each validates."""
    if rules.method == "hash":
        return (_positions(pool.names, rules.seed) * rules.folds).astype(int)
    last = rules.folds - 1
    fold_of = np.full(len(pool.names), last)
    for fold in range(last):
        left = fold_of == last
        search = Search(pool, 1 / rules.folds, held=np.zeros_like(left), free=left)
        # a K-th of all is a larger part of those that are left
        fold_of[search.best_of_draws(1 / (rules.folds - fold), rules.seed)] = fold
    return fold_of


def _positions(names: Sequence[str], seed: int) -> np.ndarray:
    """Return (names,) float64 in [0, 1): where each falls, by SHA-256 of seed and name."""
    positions = []
    for name in names:
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        # 48 bits: exact in a float64, and never rounded to 1
        positions.append(int.from_bytes(digest[:6]) / 2**48)
    return np.array(positions)

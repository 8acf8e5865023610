"""Which crops train and which validate: groups, draws, ranks, what is held out, folds."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from crops_at_hand import crop

from common.classes import TESTED
from common.data.splits import balanced, catalogue
from common.data.splits.choose_sides import (
    GROUPS,
    METHODS,
    Sides,
    SplitRules,
    choose_folds,
    choose_sides,
    group_numbers,
)
from common.data.splits.split import USAGES
from common.errors import UserError


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """What is tested here holds for any number of draws; test_make_split draws as many as users."""
    monkeypatch.setattr(balanced, "DRAWS", balanced.DRAWS_AT_ONCE)


def choose(crops, **rules) -> Sides:
    return choose_sides(crops, SplitRules(**rules))


def usages(sides: Sides) -> set[str]:
    return {usage for usage, _ in sides}


def fold(crops, **rules) -> list[Sides]:
    return choose_folds(crops, SplitRules(**rules))


# What moves together


def test_crops_linked_by_overlaps_move_together():
    """Along x, in units of 8 nm: a 0-10, b 8-18, c 16-26, d 26-36.

    a and c meet only through b; d touches c; e is as a but above it, f as a but of another dataset;
    g is inside of c with voxels of 2 nm.
    """
    boxes = [
        crop("d", "a"),
        crop("d", "c", start=(0, 0, 128)),
        crop("d", "b", start=(0, 0, 64)),
        crop("d", "d", start=(0, 0, 208)),
        crop("d", "e", start=(80, 0, 0)),
        crop("other", "f"),
        crop("d", "g", start=(29, 29, 157), shape=(4, 4, 4), voxel_size=(2.0, 2.0, 2.0)),
    ]
    units = group_numbers(boxes, "crop")
    groups = {
        frozenset(b.name for b, u in zip(boxes, units, strict=True) if u == unit)
        for unit in set(units)
    }
    assert groups == {frozenset("abcg"), frozenset("d"), frozenset("e"), frozenset("f")}


# Choosing the sides


def specimens(classes):
    return [crop(f"s-{n}", f"crop{n}", " ".join(names)) for n, names in enumerate(classes)]


def gaps(train, validate, crops):
    """By the definition: classes that do not train, those of two specimens that do not validate."""
    untrained = unvalidated = 0
    for name in set().union(*(c.classes for c in crops)):
        owners = [c for c in crops if name in c.classes]
        untrained += not any(c in owners for c in train)
        unvalidated += len(owners) > 1 and not any(c in owners for c in validate)
    return untrained, unvalidated


@pytest.mark.parametrize("seed", range(6))
def test_no_set_of_specimens_leaves_fewer_gaps(seed):
    rng = np.random.default_rng(seed)
    annotated = rng.random((7, 7)) < 0.3
    crops = specimens([list(np.array(TESTED[:7])[names]) or ["er"] for names in annotated])
    chosen = choose(crops, scale=None, seed=seed)
    train = [c for usage, c in chosen if usage == "train"]
    validate = [c for usage, c in chosen if usage == "validate"]
    assert len(train) + len(validate) == len(crops)
    fewest = (len(TESTED), 0)
    for size in range(len(crops)):
        for some in itertools.combinations(crops, size):
            others = [c for c in crops if c not in some]
            fewest = min(fewest, gaps(others, some, crops))
    assert gaps(train, validate, crops) == fewest


def test_rare_classes_reach_both_sides_among_very_many_crops():
    """24 classes of two crops each, so that no random set covers them all: the mending has to."""
    crops = [
        crop("d", f"crop{n}", f"{TESTED[n % 24]} cell", start=(1000 * n, 0, 0)) for n in range(48)
    ]
    chosen = choose(crops, scale=None, by="crop")
    for name in TESTED[:24]:
        assert sorted(usage for usage, c in chosen if name in c.classes) == ["train", "validate"]


def test_a_class_of_one_specimen_trains():
    """Though it would be the better sixth: one crop beside five of the other specimen."""
    crops = [crop("large-1", f"crop{n}", "mito") for n in range(5)]
    for classes, expected in (("mito nuc", "train"), ("mito", "validate")):
        chosen = choose([*crops, crop("small-1", "crop9", classes)], scale=None)
        assert {c.name: usage for usage, c in chosen}["crop9"] == expected


def test_the_rank_is_the_sum_that_the_module_describes():
    crops = [
        crop("a-1", "crop1", "mito er"),
        crop("a-2", "crop2", "mito", voxel_size=(2.0, 2.0, 2.0)),
        crop("b-1", "crop3", "er", shape=(80, 80, 80)),
        crop("c-1", "crop4", "mito er"),
    ]
    strata = [[(0, 1, 2, 3)], [(0, 2, 3), (1,)], [(0, 3), (1,), (2,)], [(0, 1, 3), (0, 2, 3)]]
    sets = np.array(list(itertools.product([False, True], repeat=4)))
    expected = []
    for some in sets:
        chosen = set(np.flatnonzero(some))
        uneven = 0.0
        for stratum in strata:
            off = [abs(len(chosen & set(members)) - 0.3 * len(members)) for members in stratum]
            uneven += sum(off) / sum(map(len, stratum))
        kinds = ["aabc"[n] for n in chosen]
        alike = sum((kinds.count(kind) / len(kinds)) ** 2 for kind in set(kinds))
        expected.append(uneven + alike)
    kinds = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(
        balanced._rank(sets, balanced._strata(crops), kinds, 0.3), expected, atol=1e-8
    )


def test_the_order_of_the_crops_does_not_matter():
    crops = catalogue.read_crop_table()
    shuffled = [crops[n] for n in np.random.default_rng(0).permutation(len(crops))]
    assert choose(shuffled, scale=(8, 8, 8)) == choose(crops, scale=(8, 8, 8))


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    crops = catalogue.read_crop_table()
    first, again, other = (choose(crops, scale=(32, 32, 32), seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_global_random_state_neither_matters_nor_changes():
    crops = specimens([["mito"]] * 6)
    np.random.seed(1)  # noqa: NPY002  # the legacy state is what this is about
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first = choose(crops, scale=None)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert choose(crops, scale=None) == first


def test_a_fraction_of_zero_trains_on_everything():
    """Unlike in the toolbox, where a crop is always moved to training, never one to validation."""
    crops = specimens([["mito"]] * 4)
    assert usages(choose(crops, scale=None, validation_fraction=0)) == {"train"}


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_both_sides_have_crops_at_any_other_fraction(fraction):
    crops = specimens([["mito"]] * 4)
    assert usages(choose(crops, scale=None, validation_fraction=fraction)) == set(USAGES)


def test_by_crop_splits_specimens_but_never_overlapping_crops():
    crops = catalogue.read_crop_table()
    usage = {c.key: side for side, c in choose(crops, scale=(8, 8, 8), by="crop")}
    used = [c for c in crops if c.key in usage]
    pairs = [(a, b) for a, b in itertools.combinations(used, 2) if a.overlaps(b)]
    assert len(pairs) > 20
    assert all(usage[a.key] == usage[b.key] for a, b in pairs)
    hela = {u for (dataset, _), u in usage.items() if dataset == "jrc_hela-2"}
    assert hela == {"train", "validate"}


def test_one_specimen_cannot_be_split_by_specimen():
    crops = [crop("d", f"crop{n}", start=(1000 * n, 0, 0)) for n in range(3)]
    with pytest.raises(
        UserError,
        match=r"one specimen; split it by crop \(--group-by crop\), or .*--validation-fraction 0",
    ):
        choose(crops, scale=None)
    assert usages(choose(crops, scale=None, by="crop")) == set(USAGES)
    with pytest.raises(UserError, match="one overlapping region"):
        choose([crop("d", "a"), crop("d", "b")], scale=None, by="crop")


def test_one_crop_is_not_told_to_be_split_by_crop():
    with pytest.raises(UserError, match=r"only s-1/a fits, .*import-data --blocks.*fraction 0"):
        choose([crop("s-1", "a")], by="specimen")


def test_nothing_that_fits_is_an_error():
    with pytest.raises(UserError, match=r"no crop of 2 fits .*as fine as 4 nm"):
        choose(specimens([["mito"], ["er"]]), scale=(4, 4, 4))
    with pytest.raises(UserError, match="no crop of 0 fits"):
        choose([], scale=(4, 4, 4))


# Sides by hash, held out, folds


def sides(crops, **choice):
    return {c.key: usage for usage, c in choose(crops, **{"scale": None, **choice})}


def validating(usage: dict) -> set:
    return {key for key, side in usage.items() if side == "validate"}


def far_away(crops):
    """One more crop in every dataset, beside all others, and one in a dataset of its own."""
    names = {c.dataset for c in crops} | {"aaa-1"}
    return [*crops, *(crop(name, "crop100000", start=(-1e9, 0, 0)) for name in sorted(names))]


@pytest.mark.parametrize("by", GROUPS)
def test_a_side_by_hash_is_the_hash_of_the_groups_name_and_nothing_else(by):
    crops = catalogue.read_crop_table()
    groups = group_numbers(crops, by)
    expected = {}
    for c, group in zip(crops, groups, strict=True):
        name = getattr(c, by, "")
        if by == "crop":
            linked = [crops[n] for n in np.flatnonzero(groups == group)]
            name = min(linked, key=lambda other: int(other.name[4:])).path
        number = int(hashlib.sha256(f"7/{name}".encode()).hexdigest()[:12], 16) / 16**12
        expected[c.key] = "validate" if number < 0.3 else "train"
    assert sides(crops, by=by, method="hash", seed=7, validation_fraction=0.3) == expected
    assert set(expected.values()) == set(USAGES)


@pytest.mark.parametrize("by", GROUPS)
def test_by_hash_a_new_crop_moves_no_old_one_and_a_larger_fraction_only_adds(by):
    crops = catalogue.read_crop_table()
    choice = {"by": by, "method": "hash", "seed": 1}
    before = sides(crops, **choice, validation_fraction=0.2)
    after = sides(far_away(crops), **choice, validation_fraction=0.2)
    assert len(after) == len(before) + 23
    assert before.items() <= after.items()
    if by != "crop":  # where a crop that is missing may have linked others
        fewer = sides(crops[::2], **choice, validation_fraction=0.2)
        assert fewer.items() <= before.items()
    more = sides(crops, **choice, validation_fraction=0.4)
    assert validating(before) < validating(more)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by", GROUPS)
def test_no_group_stands_on_both_sides(by, method):
    crops = catalogue.read_crop_table()
    usage = sides(crops, by=by, method=method, seed=1, validation_fraction=0.3)
    groups = group_numbers(crops, by)
    side_of = {(group, usage[c.key]) for c, group in zip(crops, groups, strict=True)}
    assert len(side_of) == len(set(groups))
    assert {side for _, side in side_of} == set(USAGES)


def test_by_crop_and_hash_about_the_wanted_fraction_validates():
    """Of 1600 separate crops 400 +- 17 (one standard deviation of a binomial) at a quarter."""
    crops = [crop(f"d-{n}", "crop1") for n in range(1600)]
    chosen = list(sides(crops, by="crop", method="hash", validation_fraction=0.25).values())
    assert abs(chosen.count("validate") - 400) < 4 * 17.3


def test_the_resolution_moves_no_crop_of_a_hash_split():
    crops = catalogue.read_crop_table()
    coarse = sides(crops, scale=(128,) * 3, by="crop", method="hash")
    fine = sides(crops, scale=(4,) * 3, by="crop", method="hash")
    assert len(fine) < len(coarse)
    assert fine.items() <= coarse.items()


def test_only_what_is_named_exactly_is_held_out():
    """x1 does not take x10, nor the dataset s-1 the dataset s-10."""
    names = [
        ("s-1", "x1"),
        ("s-1", "x10"),
        ("s-10", "x10"),
        ("s-10", "x2"),
        ("t-1", "crop3"),
        ("t-1", "crop33"),
    ]
    crops = [crop(d, n, start=(1000 * k, 0, 0)) for k, (d, n) in enumerate(names)]

    def held(*hold_out, by="crop", **choice):
        usage = sides(crops, by=by, validation_fraction=0, hold_out=hold_out, **choice)
        return [key for key, side in usage.items() if side == "validate"]

    assert held("x1") == [("s-1", "x1")]
    assert held("s-1", by="specimen") == [("s-1", "x1"), ("s-1", "x10")]
    assert held("s-10/x10", "3") == [("s-10", "x10"), ("t-1", "crop3")]
    assert held("x10", method="hash") == [("s-1", "x10"), ("s-10", "x10")]
    with pytest.raises(UserError) as caught:
        held("x", "s-*", "crop")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        f"hold-out '{n}'" for n in ("crop", "s-*", "x")
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_held_out_validates_beside_what_is_drawn(method, seed):
    crops = catalogue.read_crop_table()
    named = {"jrc_mus-kidney", "jrc_sum159-1"}
    usage = sides(crops, method=method, seed=seed, hold_out=sorted(named))
    validate = {dataset for dataset, _ in validating(usage)}
    assert validate >= named
    if method == "hash":
        drawn = sides(crops, method=method, seed=seed)
        assert validate == {dataset for dataset, _ in validating(drawn)} | named


def test_a_group_is_not_held_out_in_part():
    crops = catalogue.read_crop_table()
    with pytest.raises(UserError, match=r"part of specimen jrc_hela-2 .*the other \d+ too"):
        sides(crops, hold_out=["jrc_hela-2/crop28"])
    with pytest.raises(UserError, match=r"part of specimen jrc_cos7-1 .*jrc_cos7-1b/crop235"):
        sides(crops, hold_out=["jrc_cos7-1a"])
    by_dataset = sides(crops, by="dataset", hold_out=["jrc_cos7-1a"])
    assert by_dataset["jrc_cos7-1a", "crop234"] == "validate"
    a, b = next((a, b) for a, b in itertools.combinations(crops, 2) if a.overlaps(b))
    with pytest.raises(UserError, match="part of the crops that overlap"):
        sides(crops, by="crop", hold_out=[a.path])
    assert sides([a, b, crop("d")], by="crop", hold_out=[a.name, b.name])[b.key] == "validate"


def test_test_crops_are_named_and_the_rest_is_split_as_if_they_were_not_there():
    crops = catalogue.read_crop_table()
    named = {"jrc_mus-kidney", "jrc_sum159-1"}
    others = [each for each in crops if each.dataset not in named]
    usage = sides(crops, test=sorted(named))
    assert {key[0] for key, side in usage.items() if side == "test"} == named
    del_test = {key: side for key, side in usage.items() if side != "test"}
    assert del_test == sides(others)
    with pytest.raises(UserError, match=r"test: a part of specimen jrc_hela-2 .*the other"):
        sides(crops, test=["jrc_hela-2/crop28"])
    with pytest.raises(UserError, match="test 'jrc_nothing': no dataset or crop"):
        sides(crops, test=["jrc_nothing"])
    assert SplitRules(test=["crop2"], hold_out=["2"]).problems() == [
        "hold-out and test both name crop2; write it in one of them"
    ]
    folds = choose_folds(crops, SplitRules(folds=3, test=sorted(named)))
    for fold in folds:
        assert {each.dataset for side, each in fold if side == "test"} == named


def test_a_split_without_training_crops_is_refused():
    with pytest.raises(UserError, match="no crop is left to train on"):
        sides([crop("a-1"), crop("b-1")], hold_out=["a-1", "b-1"], validation_fraction=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by", GROUPS)
def test_in_folds_every_group_validates_exactly_once_and_trains_in_all_others(by, method):
    crops = catalogue.read_crop_table()
    groups = group_numbers(crops, by)
    group_of = {c.key: group for c, group in zip(crops, groups, strict=True)}
    validated = []
    for split in fold(crops, folds=3, scale=None, by=by, method=method, seed=1):
        usage = {c.key: side for side, c in split}
        assert len(usage) == len(crops)
        of_fold = {group_of[key] for key in validating(usage)}
        assert validating(usage) == {key for key in usage if group_of[key] in of_fold}
        validated += of_fold
    assert sorted(validated) == sorted(set(groups))


def test_balanced_folds_are_of_like_size_and_those_by_hash_move_no_old_crop():
    crops = catalogue.read_crop_table()
    for split in fold(crops, folds=5, scale=(8, 8, 8), min_extent=28):
        assert 0.15 < sum(usage == "validate" for usage, _ in split) / len(split) < 0.25
    rules = SplitRules(folds=4, by="crop", method="hash")
    splits = choose_folds(crops, rules)
    larger = choose_folds(far_away(crops), rules)
    for before, after in zip(splits, larger, strict=True):
        assert {(usage, c.key) for usage, c in before} <= {(usage, c.key) for usage, c in after}


def test_more_folds_than_groups_are_refused():
    crops = [crop(f"s-{n}") for n in range(3)]
    for method in METHODS:
        with pytest.raises(
            UserError, match=r"folds 4: .* 3 groups \(by specimen\) fit; write 3 or fewer"
        ):
            fold(crops, folds=4, scale=None, method=method)
    with pytest.raises(UserError, match="of one dataset"):
        fold([crop("s-1", f"crop{n}") for n in range(3)], folds=2, scale=None, by="dataset")

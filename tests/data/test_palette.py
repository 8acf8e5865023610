"""What annotated classes imply for others: drawn cases, and brute force over single atoms."""

from __future__ import annotations

import numpy as np
import pytest

from common.classes import ATOM_IDS, GROUP_ATOMS, TESTED, excluding, exclusions, membership
from common.data.crops import palette
from common.data.crops.palette import UNKNOWN, Rules, contradicts, encode

TABLE = (*ATOM_IDS, *GROUP_ATOMS)


def complete(palette, names, *switches: bool, declared=None, **named: bool) -> np.ndarray:
    """The palette with what its known entries imply. switches: the first fields of `Rules`."""
    return Rules(*switches, class_relations=declared or {}, **named).complete(palette, names)


def row(**known: int) -> tuple[np.ndarray, list[str]]:
    """A palette of one row over the tested classes where only `known` classes are annotated."""
    return np.array([[known.get(name, UNKNOWN) for name in TESTED]], np.int8), list(TESTED)


def inferred(
    use_mutual_exclusion: bool = True, infer_groups: bool = True, **known: int
) -> dict[str, int]:
    """The classes that `known` ones determine, and what they are."""
    palette, names = row(**known)
    result = complete(palette, names, use_mutual_exclusion, infer_groups)[0]
    inferred = {}
    for name, value in zip(names, result, strict=True):
        if value != UNKNOWN and name not in known:
            inferred[name] = int(value)
    return inferred


def truth_of_random_voxels(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (rows, classes) of voxels that are one atom each, and those of a random subset."""
    random = np.random.default_rng(seed)
    atom = random.integers(len(ATOM_IDS), size=rows)
    truth = membership(TABLE)[:, atom].T.astype(np.int8)
    annotated = random.random(len(TABLE)) < random.random()
    return truth, np.where(annotated, truth, np.int8(UNKNOWN))


def test_a_positive_class_makes_the_classes_that_exclude_it_negative():
    found = inferred(infer_groups=False, mito=1)
    assert found == dict.fromkeys(exclusions(TESTED)["mito"], 0)


def test_a_positive_cell_excludes_only_ecs():
    assert inferred(cell=1) == {"ecs": 0}


def test_a_negative_class_excludes_nothing_without_groups():
    assert inferred(infer_groups=False, mito=0, nuc=0, pm=0) == {}


def test_without_mutual_exclusion_a_positive_class_makes_no_class_negative():
    assert inferred(use_mutual_exclusion=False, infer_groups=False, mito_mem=1) == {}
    assert inferred(use_mutual_exclusion=False, mito_mem=1) == {"mito": 1, "cell": 1}


def test_true_negatives_equal_those_of_the_earlier_loader():
    """The loop of cellmap-data until 2025.12: 0 wherever an exclusive class is positive."""
    partners = exclusions(TABLE)
    for seed in range(30):
        _, palette = truth_of_random_voxels(40, seed)
        expected = palette.copy()
        for channel, name in enumerate(TABLE):
            for other in partners[name]:
                excluded = palette[:, TABLE.index(other)] == 1
                expected[(palette[:, channel] == UNKNOWN) & excluded, channel] = 0
        found = complete(palette, TABLE, use_mutual_exclusion=True, infer_groups=False)
        assert (found[expected == 0] == 0).all() and (found[expected == 1] == 1).all()


def test_a_group_is_positive_where_one_of_its_atoms_is():
    found = inferred(np_in=1)
    assert {name for name, value in found.items() if value == 1} == {
        "np",
        "ne",
        "nuc",
        "er",
        "cell",
        "ne_mem_all",
    }


def test_a_group_is_negative_where_all_its_atoms_are():
    assert inferred(golgi_mem=0, golgi_lum=0) == {"golgi": 0}


def test_a_group_stays_unknown_where_one_of_its_atoms_is_unknown():
    assert "mito" not in inferred(mito_mem=0, mito_lum=0)


def test_a_group_is_not_positive_by_elimination():
    """`np_in` is all that is left of `np`, and yet stays unknown."""
    found = inferred(np=1, np_out=0)
    assert "np_in" not in found


def test_the_parts_of_a_negative_group_are_negative():
    assert inferred(er=0) == dict.fromkeys(
        [
            "er_mem",
            "er_lum",
            "eres_mem",
            "eres_lum",
            "eres",
            "ne_mem",
            "ne_lum",
            "np_out",
            "np_in",
            "ne",
            "np",
            "er_mem_all",
            "ne_mem_all",
        ],
        0,
    )


def test_a_negative_cell_makes_all_but_ecs_negative():
    assert inferred(cell=0) == dict.fromkeys(set(TESTED) - {"cell", "ecs"}, 0)


def test_an_annotated_class_is_never_changed():
    random = np.random.default_rng(0)
    palette = random.integers(-1, 2, (400, len(TABLE))).astype(np.int8)  # mostly impossible rows
    for switches in ((True, True), (True, False), (False, True)):
        found = complete(palette, TABLE, *switches)
        np.testing.assert_array_equal(found[palette != UNKNOWN], palette[palette != UNKNOWN])


def test_the_given_palette_is_left_as_it_was():
    palette, names = row(mito=1)
    before = palette.copy()
    complete(palette, names)
    np.testing.assert_array_equal(palette, before)


def test_with_both_switches_off_nothing_is_inferred():
    assert inferred(use_mutual_exclusion=False, infer_groups=False, mito=1, er=0) == {}


@pytest.mark.parametrize("switches", [(True, True), (True, False), (False, True)])
def test_everything_inferred_is_true_of_voxels_that_are_one_atom(switches):
    said = 0
    for seed in range(120):
        truth, palette = truth_of_random_voxels(60, seed)
        found = complete(palette, TABLE, *switches)
        known = found != UNKNOWN
        np.testing.assert_array_equal(found[known], truth[known])
        assert not contradicts(palette, TABLE).any()
        said += int((known & (palette == UNKNOWN)).sum())
    assert said > 10_000


def test_everything_that_follows_is_inferred_but_for_positives_by_elimination():
    """Over all atoms: a class that is in no atom that fits what is known is negative."""
    atoms = membership(TABLE)
    for seed in range(40):
        _, palette = truth_of_random_voxels(30, seed)
        found = complete(palette, TABLE)
        for known, result in zip(palette, found, strict=True):
            annotated = known != UNKNOWN
            positive = known[annotated] == 1
            fits = (atoms[annotated] == positive[:, None]).all(axis=0)  # (atoms,)
            never = ~atoms[:, fits].any(axis=1)
            np.testing.assert_array_equal(result[~annotated] == 0, never[~annotated])


@pytest.mark.parametrize(
    "known",
    [{"mito": 1, "nuc": 1}, {"pm": 1, "cell": 0}, {"golgi": 1, "golgi_mem": 0, "golgi_lum": 0}],
)
def test_a_contradiction_is_recognised(known):
    assert contradicts(*row(**known)).tolist() == [True]


@pytest.mark.parametrize(
    "known",
    [{}, {"nuc": 1, "er": 1}, {"cell": 0, "ecs": 0}, {"mito": 1, "mito_mem": 0, "mito_lum": 0}],
)
def test_what_can_hold_together_is_no_contradiction(known):
    assert contradicts(*row(**known)).tolist() == [False]


def test_nothing_is_inferred_where_the_annotation_contradicts_itself():
    assert inferred(mito=1, nuc=1) == {}


def test_a_contradiction_leaves_other_rows_alone():
    bad, names = row(mito=1, nuc=1)
    good, _ = row(mito=1)
    both = complete(np.concatenate([bad, good]), names)
    np.testing.assert_array_equal(both[0], bad[0])
    np.testing.assert_array_equal(both[1:], complete(good, names))


def test_a_class_outside_the_table_implies_nothing_and_is_not_inferred():
    names = ["mine", "yours", "mito", "nuc", "cell"]
    palette = np.array(
        [[1, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN], [0, UNKNOWN, 1, UNKNOWN, UNKNOWN]], np.int8
    )
    np.testing.assert_array_equal(complete(palette, names), [[1, -1, -1, -1, -1], [0, -1, 1, 0, 1]])
    assert not contradicts(palette, names).any()


def test_a_row_where_nothing_is_known_stays_unknown():
    assert inferred() == {}


@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 65, 74])
def test_encoded_volumes_come_back(n):
    random = np.random.default_rng(n)
    seeds = random.integers(0, 9, (5, 6, 7))  # nine distinct voxels
    volumes = [random.random(9)[seeds] < 0.5 for _ in range(n)]
    index, combinations = encode(volumes)
    np.testing.assert_array_equal(np.moveaxis(combinations[index], -1, 0), volumes)
    assert len(combinations) <= 9


def by_sorting(volumes):
    """Rows in the order of crops that were decoded before: by 32 volumes at a time."""
    index = np.zeros(volumes[0].shape, np.int64)
    combinations = np.zeros((1, 0), bool)
    for first in range(0, len(volumes), 32):
        group = volumes[first : first + 32]
        bits = sum(volume.astype(np.int64) << bit for bit, volume in enumerate(group))
        codes, index = np.unique(index << 32 | bits, return_inverse=True)
        index = index.reshape(bits.shape)
        labels = (codes[:, None] >> np.arange(len(group)) & 1).astype(bool)
        combinations = np.concatenate([combinations[codes >> 32], labels], axis=1)
    return index, combinations


@pytest.mark.parametrize("most", [palette.MOST_ROWS, 10])
@pytest.mark.parametrize(("n", "kinds"), [(1, 2), (8, 9), (13, 700), (41, 30), (74, 3000)])
def test_rows_are_in_the_order_of_sorted_labels(monkeypatch, n, kinds, most):
    monkeypatch.setattr(palette, "MOST_ROWS", most)
    random = np.random.default_rng(n)
    seeds = random.integers(0, kinds, (9, 20, 30))
    volumes = [random.random(kinds)[seeds] < 0.5 for _ in range(n)]
    for ours, sorted_ in zip(encode(volumes), by_sorting(volumes), strict=True):
        np.testing.assert_array_equal(ours, sorted_)


def test_each_combination_that_occurs_has_one_row():
    a = np.array([[[0, 0, 1, 1, 0]]], bool)
    b = np.array([[[0, 1, 0, 1, 1]]], bool)
    index, combinations = encode([a, b])
    assert sorted(map(tuple, combinations.tolist())) == [
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    ]
    assert index[0, 0, 1] == index[0, 0, 4]


def test_classes_of_ones_own_exclude_each_other_where_they_are_said_to():
    names = ["spine", "axon", "mito", "mito_mem", "er"]
    unknown = UNKNOWN
    palette = np.array(
        [
            [1, unknown, unknown, unknown, unknown],
            [unknown, unknown, unknown, 1, unknown],
            [0, unknown, unknown, unknown, unknown],
            [1, 1, unknown, unknown, unknown],
        ],
        np.int8,
    )
    expected = [
        [1, unknown, 0, 0, unknown],  # no mito, so no membrane of one
        [0, unknown, 1, 1, 0],  # by way of mito, which its membrane makes positive
        [0, unknown, unknown, unknown, unknown],
        [1, 1, 0, 0, unknown],
    ]
    given = palette.copy()
    declared = excluding({}, ["spine", "mito"])
    np.testing.assert_array_equal(complete(palette, names, declared=declared), expected)
    np.testing.assert_array_equal(palette, given)
    alone = complete(palette, names, use_mutual_exclusion=False, declared=declared)
    np.testing.assert_array_equal(alone, complete(palette, names, use_mutual_exclusion=False))


# Classes outside the table

OWN = {
    "granule": {"contains": ["granule_mem"], "excludes": ["mito", "er"]},
    "granule_mem": {},
    "mito": {"contains": ["crista"]},
}


def with_own(use_mutual_exclusion: bool = True, infer_groups: bool = True, **known: int):
    """What `known` classes determine of the others, a few of the table and those of OWN."""
    names = ["mito", "er_mem", "er", "nuc", "cell", "granule", "granule_mem", "crista"]
    palette = np.array([[known.get(name, UNKNOWN) for name in names]], np.int8)
    result = complete(palette, names, use_mutual_exclusion, infer_groups, declared=OWN)[0]
    values = zip(names, result.tolist(), strict=True)
    return {name: value for name, value in values if value != UNKNOWN and name not in known}


def test_true_negatives_of_a_class_outside_the_table_follow_what_it_excludes():
    everything_else = {"mito": 0, "er_mem": 0, "er": 0, "granule_mem": UNKNOWN, "crista": 0}
    found = with_own(granule=1)
    assert found == {name: value for name, value in everything_else.items() if value != UNKNOWN}
    assert with_own(er_mem=1)["granule"] == 0
    # a part of it is not there either
    assert with_own(er_mem=1)["granule_mem"] == 0
    assert "granule" not in with_own(nuc=1)
    assert "granule" not in with_own(mito=0, er=0)


def test_parts_of_classes_are_inferred_as_in_the_table():
    assert with_own(granule_mem=1)["granule"] == 1
    assert with_own(granule=0) == {"granule_mem": 0}
    # a class may hold more than what it is said to contain
    assert with_own(granule_mem=0) == {}
    assert with_own(crista=1) == {
        "mito": 1, "cell": 1, "er": 0, "er_mem": 0, "nuc": 0, "granule": 0, "granule_mem": 0,
    }  # fmt: skip


def test_relations_go_by_the_settings_of_true_negatives():
    assert with_own(infer_groups=False, granule_mem=1) == {
        "mito": 0, "er_mem": 0, "er": 0, "crista": 0,
    }  # fmt: skip
    assert with_own(use_mutual_exclusion=False, granule_mem=1) == {"granule": 1}


def test_nothing_is_inferred_where_labels_contradict_what_is_declared():
    assert with_own(granule=1, mito=1) == {}
    assert with_own(granule=0, granule_mem=1) == {}
    names = ["granule", "er_mem", "granule_mem"]
    rows = np.array([[1, 1, UNKNOWN], [0, 0, 1], [1, 0, 1]], np.int8)
    assert contradicts(rows, names, OWN).tolist() == [True, True, False]


def test_what_is_inferred_is_true_in_every_voxel_that_there_may_be():
    """Against all voxels, an atom each and any of the classes outside the table that may be."""
    names = [*TABLE, "granule", "granule_mem", "crista"]
    voxels = []
    for atom in range(len(ATOM_IDS)):
        of_table = dict(zip(TABLE, membership(TABLE)[:, atom], strict=True))
        for granule, granule_mem, crista in np.ndindex(2, 2, 2):
            forbidden = granule and (of_table["mito"] or of_table["er"])
            if not forbidden and granule_mem <= granule and crista <= of_table["mito"]:
                voxels.append([*of_table.values(), granule, granule_mem, crista])
    voxels = np.array(voxels, np.int8)
    random = np.random.default_rng(3)
    for _ in range(200):
        truth = voxels[random.integers(len(voxels))]
        annotated = random.random(len(names)) < random.choice([0.03, 0.2])
        palette = np.where(annotated, truth, UNKNOWN).astype(np.int8)[None]
        (result,) = complete(palette, names, declared=OWN)
        possible = voxels[(voxels[:, annotated] == truth[annotated]).all(axis=1)]
        known = result != UNKNOWN
        assert (possible[:, known] == result[known]).all()


def test_without_relations_a_class_outside_the_table_implies_nothing():
    palette = np.array([[1, UNKNOWN, UNKNOWN]], np.int8)
    np.testing.assert_array_equal(complete(palette, ["mine", "mito", "cell"]), palette)

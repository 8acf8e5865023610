"""The class table against the facts known of the challenge's `classes.csv`."""

from __future__ import annotations

import re

import numpy as np
import pytest

from common.classes import (
    ATOM_IDS,
    GROUP_ATOMS,
    GROUP_IDS,
    IN_NO_CROP,
    INSTANCES,
    TESTED,
    atoms_of,
    exclusions,
    membership,
    relate,
    relation_problems,
    unknown_names,
)

PARTNERS = exclusions(TESTED)


def overlapping(name: str) -> set[str]:
    """The other tested classes that may share a voxel with `name`."""
    return set(TESTED) - PARTNERS[name] - {name}


def test_the_table_has_74_classes_with_an_id_each():
    ids = [*ATOM_IDS.values(), *GROUP_IDS.values()]
    assert len(ids) == len(set(ids)) == len({*ATOM_IDS, *GROUP_IDS}) == 74
    assert set(ids) == set(range(1, 75))


def test_48_classes_are_tested_in_the_order_of_the_challenge():
    names = """
        ecs pm mito_mem mito_lum mito_ribo golgi_mem golgi_lum ves_mem ves_lum endo_mem endo_lum
        lyso_mem lyso_lum ld_mem ld_lum er_mem er_lum eres_mem eres_lum ne_mem ne_lum np_out np_in
        hchrom echrom nucpl mt_out cyto mt_in nuc golgi ves endo lyso ld eres perox_mem perox_lum
        perox mito er ne np chrom mt cell er_mem_all ne_mem_all
        """
    assert list(TESTED) == names.split()
    assert len(TESTED) == 48


def test_31_tested_classes_are_atoms_and_17_are_groups():
    assert sum(name in ATOM_IDS for name in TESTED) == 31
    assert sum(name in GROUP_ATOMS for name in TESTED) == 17


def test_10_tested_classes_are_scored_as_instances():
    names = ("nuc", "ves", "endo", "lyso", "ld", "perox", "mito", "np", "mt", "cell")
    assert set(INSTANCES) == set(names)
    assert set(INSTANCES) <= set(TESTED)


def test_every_group_has_an_id_and_is_made_of_atoms():
    assert set(GROUP_ATOMS) == set(GROUP_IDS)
    assert all(atoms and atoms <= set(ATOM_IDS) for atoms in GROUP_ATOMS.values())


@pytest.mark.parametrize(
    ("name", "count"),
    {
        "ecs": 47,
        "cell": 1,
        "nuc": 33,
        "er": 32,
        "ne": 37,
        "np": 40,
        "er_mem_all": 38,
        "ne_mem_all": 38,
    }.items(),
)
def test_a_class_excludes_as_many_tested_classes_as_in_the_challenge(name, count):
    assert len(PARTNERS[name]) == count


def test_an_atom_within_the_cell_excludes_41_to_46_tested_classes():
    counts = {len(PARTNERS[name]) for name in TESTED if name in ATOM_IDS and name != "ecs"}
    assert min(counts) >= 41 and max(counts) <= 46


@pytest.mark.parametrize(
    ("name", "others"),
    {
        "mt": {"cell", "mt_in", "mt_out"},
        "golgi": {"cell", "golgi_mem", "golgi_lum"},
        "er_mem": {"cell", "er", "er_mem_all"},
        "pm": {"cell"},
        "ne_mem": {"cell", "nuc", "er", "ne", "er_mem_all", "ne_mem_all"},
        "np_in": {"cell", "nuc", "er", "ne", "np", "ne_mem_all"},
        "hchrom": {"cell", "nuc", "chrom"},
    }.items(),
)
def test_a_class_overlaps_only_these_tested_classes(name, others):
    assert overlapping(name) == others


def test_cell_excludes_only_ecs():
    assert PARTNERS["cell"] == {"ecs"}


@pytest.mark.parametrize(
    ("a", "b"), [("nuc", "er"), ("er_mem_all", "ne_mem_all"), ("np", "ne_mem_all"), ("er", "eres")]
)
def test_classes_with_an_atom_in_common_do_not_exclude_each_other(a, b):
    assert b not in PARTNERS[a] and a not in PARTNERS[b]


def test_exclusion_is_mutual_over_the_whole_table():
    partners = exclusions([*ATOM_IDS, *GROUP_ATOMS])
    assert all(a in partners[b] for a in partners for b in partners[a])


def test_the_cell_is_made_of_the_atoms_with_the_challenges_ids():
    expected = {*range(2, 37), 38, 39, 47, 48, 56, 57, 58, 61, 62}
    assert {ATOM_IDS[atom] for atom in GROUP_ATOMS["cell"]} == expected


def test_membership_lists_the_atoms_of_each_class():
    names = ["mito", "cyto", "mine"]
    atoms = np.array(list(ATOM_IDS))
    found = [set(atoms[row]) for row in membership(names)]
    assert found == [{"mito_mem", "mito_lum", "mito_ribo"}, {"cyto"}, set()]


def test_no_class_has_a_membership_of_no_rows():
    assert membership([]).shape == (0, len(ATOM_IDS))


def test_a_class_of_ones_own_excludes_nothing():
    assert atoms_of("mine") is None
    assert exclusions(["mine", "ecs", "cell"]) == {"mine": set(), "ecs": {"cell"}, "cell": {"ecs"}}


def test_a_misspelt_class_is_named_with_the_nearest_one():
    own = "list a class of your own in extra_classes"
    said = f"unknown class 'granule'; did you mean 'nucleo'? If not, {own}"
    assert unknown_names(["mito", "granule"]) == [said]


def test_a_class_listed_as_extra_is_known():
    assert unknown_names(["synapse"], extra=["synapse"]) == []
    assert unknown_names(["synapse"], otherwise=IN_NO_CROP) == [
        "unknown class 'synapse'; no crop annotates it"
    ]
    assert unknown_names(["synapse"]) == [
        "unknown class 'synapse'; list a class of your own in extra_classes"
    ]


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"granule": ["mito"]}, r"\['granule'\] = \['mito'\]; write"),
        ({"granule": {"exclude": ["mito"]}}, r"write .*contains"),
        ({"granule": {"excludes": "mito"}}, r"write .*contains"),
        ({"granule": {"excludes": ["mitoo"]}}, "unknown class 'mitoo'; did you mean 'mito'"),
        ({"granule": {"contains": ["granule"]}}, "'granule' itself"),
        ({"mito": {"excludes": ["er"]}}, "the table has both"),
        ({"crista": {"excludes": ["er"]}, "mito": {"contains": ["crista"]}}, ""),
        ({"vesicle": {"contains": ["ves"], "excludes": ["ves_mem"]}}, "'ves_mem' can be nowhere"),
        ({"a": {"contains": ["b"]}, "b": {"contains": ["a"]}}, "'a', 'b' can be nowhere, or"),
        (
            {"mito": {"contains": ["crista"]}, "er": {"contains": ["crista"]}},
            "'crista' can be nowhere",
        ),
    ],
)
def test_wrong_relations_are_one_sentence(declared, words):
    problems = relation_problems(declared, ["crista"])
    assert len(problems) == bool(words)
    assert re.search(words, "".join(problems))


def test_relations_follow_through_parts_of_parts():
    declared = {
        "outer": {"contains": ["inner"], "excludes": ["nuc"]},
        "inner": {"contains": ["core"]},
        "core": {},
    }
    names = ["outer", "inner", "core", "hchrom"]
    related = relate(names, declared)
    assert related.is_part[2].tolist() == [True, True, False, False]
    assert related.excludes[3].tolist() == [True, True, True, False]

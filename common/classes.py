"""The class table of the CellMap Segmentation Challenge.

Every voxel of a cell belongs to exactly one *atom* (`mito_mem`, `cyto`, ...). A *group* (`mito`,
`er`, `cell`) is a set of atoms. Two classes exclude each other when they have no atom in common.
Source: the challenge's `classes.csv` (74 classes).
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ATOM_IDS: dict[str, int] = {
    "ecs": 1, "pm": 2, "mito_mem": 3, "mito_lum": 4, "mito_ribo": 5, "golgi_mem": 6,
    "golgi_lum": 7, "ves_mem": 8, "ves_lum": 9, "endo_mem": 10, "endo_lum": 11, "lyso_mem": 12,
    "lyso_lum": 13, "ld_mem": 14, "ld_lum": 15, "er_mem": 16, "er_lum": 17, "eres_mem": 18,
    "eres_lum": 19, "ne_mem": 20, "ne_lum": 21, "np_out": 22, "np_in": 23, "hchrom": 24,
    "nhchrom": 25, "echrom": 26, "nechrom": 27, "nucpl": 28, "nucleo": 29, "mt_out": 30,
    "cent": 31, "cent_dapp": 32, "cent_sdapp": 33, "ribo": 34, "cyto": 35, "mt_in": 36,
    "vim": 38, "glyco": 39, "rbc": 45, "perox_mem": 47, "perox_lum": 48, "isg_mem": 56,
    "isg_lum": 57, "isg_ins": 58, "actin": 61, "tbar": 62, "bm": 63, "chloroplast_mem": 67,
    "chloroplast_lum": 68, "chloroplast_sg": 69, "vacuole_mem": 71, "vacuole_lum": 72,
    "plasmodesmata": 74,
}  # fmt: skip
"""The number of each atom in the challenge's table."""

GROUP_IDS: dict[str, int] = {
    "nuc": 37, "golgi": 40, "ves": 41, "endo": 42, "lyso": 43, "ld": 44, "eres": 46,
    "perox": 49, "mito": 50, "er": 51, "ne": 52, "np": 53, "chrom": 54, "mt": 55, "isg": 59,
    "cell": 60, "er_mem_all": 64, "ne_mem_all": 65, "cent_all": 66, "chloroplast": 70,
    "vacuole": 73,
}  # fmt: skip
"""The number of each group in the challenge's table."""

GROUP_ATOMS: dict[str, frozenset[str]] = {
    group: frozenset(_names(atoms))
    for group, atoms in {
        "nuc": "ne_mem ne_lum np_out np_in hchrom nhchrom echrom nechrom nucpl nucleo",
        "golgi": "golgi_mem golgi_lum",
        "ves": "ves_mem ves_lum",
        "endo": "endo_mem endo_lum",
        "lyso": "lyso_mem lyso_lum",
        "ld": "ld_mem ld_lum",
        "eres": "eres_mem eres_lum",
        "perox": "perox_mem perox_lum",
        "mito": "mito_mem mito_lum mito_ribo",
        # the nuclear envelope and its pores are a part of the endoplasmic reticulum and of the
        # nucleus: these two do not exclude each other
        "er": "er_mem er_lum eres_mem eres_lum ne_mem ne_lum np_out np_in",
        "ne": "ne_mem ne_lum np_out np_in",
        "np": "np_out np_in",
        "chrom": "hchrom nhchrom echrom nechrom",
        "mt": "mt_out mt_in",
        "isg": "isg_mem isg_lum isg_ins",
        "er_mem_all": "er_mem eres_mem ne_mem",
        "ne_mem_all": "ne_mem np_out np_in",
        "cent_all": "cent cent_dapp cent_sdapp",
        "chloroplast": "chloroplast_mem chloroplast_lum chloroplast_sg",
        "vacuole": "vacuole_mem vacuole_lum",
    }.items()
}
"""The atoms of each group."""

# the table gives "cell" every atom but these; organelles of plants are left out of it there
_OUTSIDE_THE_CELL = frozenset(_names("ecs rbc bm plasmodesmata"))
_OF_PLANTS = GROUP_ATOMS["chloroplast"] | GROUP_ATOMS["vacuole"]
GROUP_ATOMS["cell"] = frozenset(ATOM_IDS) - _OUTSIDE_THE_CELL - _OF_PLANTS

TESTED = _names("""
    ecs pm
    mito_mem mito_lum mito_ribo golgi_mem golgi_lum ves_mem ves_lum endo_mem endo_lum
    lyso_mem lyso_lum ld_mem ld_lum er_mem er_lum eres_mem eres_lum ne_mem ne_lum np_out np_in
    hchrom echrom nucpl mt_out cyto mt_in
    nuc golgi ves endo lyso ld eres perox_mem perox_lum perox mito er ne np chrom mt cell
    er_mem_all ne_mem_all
""")
"""The 48 classes that the challenge scores, in its order: the baselines' output channels."""

INSTANCES = _names("nuc ves endo lyso ld perox mito np mt cell")
"""The tested classes that are scored as instances; the other 38 are scored as masks."""


def atoms_of(name: str) -> frozenset[str] | None:
    """The atoms of a class; None for one outside the table, of whose overlaps nothing is known."""
    if name in ATOM_IDS:
        return frozenset({name})
    return GROUP_ATOMS.get(name)


def membership(names: Sequence[str]) -> np.ndarray:
    """Which atoms make up each class: bool (classes, atoms).

    The row of a class outside the table is all False.
    """
    columns = {atom: column for column, atom in enumerate(ATOM_IDS)}
    table = np.zeros((len(names), len(columns)), bool)
    for row, name in enumerate(names):
        for atom in atoms_of(name) or ():
            table[row, columns[atom]] = True
    return table


def exclusions(names: Iterable[str]) -> dict[str, set[str]]:
    """For each class the other classes of `names` that can never share a voxel with it."""
    atoms = {name: atoms_of(name) for name in names}
    partners: dict[str, set[str]] = {name: set() for name in atoms}
    for first, second in itertools.combinations(atoms, 2):
        of_first = atoms[first]
        of_second = atoms[second]
        if of_first and of_second and of_first.isdisjoint(of_second):
            partners[first].add(second)
            partners[second].add(first)
    return partners


def overlapping(names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of different classes that share an atom, such as a part and its whole."""
    pairs = []
    for first, second in itertools.combinations(dict.fromkeys(names), 2):
        shared = (atoms_of(first) or frozenset()) & (atoms_of(second) or frozenset())
        if shared:
            pairs.append((first, second))
    return pairs


IN_EXTRA_CLASSES = "list a class of your own in extra_classes"
IN_NO_CROP = "no crop annotates it"
"""What is said of an unknown class, of a configuration and where crops tell which there are."""


def unknown_names(
    names: Iterable[str], extra: Iterable[str] = (), otherwise: str = IN_EXTRA_CLASSES
) -> list[str]:
    """One sentence for each name that is neither in the table nor in `extra`.

    otherwise: what is said where no name is near, or it is not what was meant.
    """
    table = [*ATOM_IDS, *GROUP_ATOMS, *extra]
    problems = []
    for name in names:
        if name in table:
            continue
        near = difflib.get_close_matches(name, table, 1)
        hint = otherwise
        if near:
            hint = f"did you mean '{near[0]}'?"
            # 'granule' is near 'nucleo', and is none
            if otherwise == IN_EXTRA_CLASSES:
                hint += f" If not, {otherwise}"
        problems.append(f"unknown class '{name}'; {hint}")
    return problems


# Classes outside the table

RELATIONS = ("contains", "excludes")
"""What may be said of a class: other classes that lie in it, or never share a voxel with it."""

Declared = Mapping[str, Mapping[str, Sequence[str]]]
"""{"granule": {"excludes": ["mito"]}}: what is said of classes outside the table."""


def excluding(declared: Declared, exclusive: Sequence[str]) -> Declared:
    """What is declared, and that the classes of a list exclude each other."""
    together = dict(declared)
    for name in exclusive:
        about = dict(together.get(name, {}))
        others = [other for other in exclusive if other != name]
        about["excludes"] = [*about.get("excludes", ()), *others]
        together[name] = about
    return together


class Related(NamedTuple):
    """What is known of pairs of classes of which at least one is outside the table."""

    is_part: np.ndarray
    """(classes, classes) bool, [part, whole]."""
    excludes: np.ndarray
    """(classes, classes) bool, symmetric."""


def relate(names: Sequence[str], declared: Declared) -> Related:
    """What follows for these classes from what is declared and from the table.

    A part of a part is a part; what excludes a class excludes its parts. A class may hold more than
    what it is said to contain.
    """
    every = _all_names(names, declared)
    is_part, excludes = _closure(every, declared)
    own = np.logical_not(np.asarray(membership(every).any(axis=1)))
    # of two classes in the table it says all
    of_own = np.logical_or.outer(own, own)
    np.fill_diagonal(is_part, False)
    index = [every.index(name) for name in names]
    pairs = np.ix_(index, index)
    return Related((is_part & of_own)[pairs], (excludes & of_own)[pairs])


def _all_names(names: Iterable[str], declared: Declared) -> list[str]:
    """The table and all classes outside it, each once."""
    mentioned: list[str] = []
    for about in declared.values():
        for others in about.values():
            mentioned += others
    return list(dict.fromkeys([*ATOM_IDS, *GROUP_ATOMS, *names, *declared, *mentioned]))


def _closure(every: Sequence[str], declared: Declared) -> tuple[np.ndarray, np.ndarray]:
    """[part, whole], each class a part of itself, and which classes exclude each other."""
    number = {name: index for index, name in enumerate(every)}
    atoms = membership(every).astype(int)
    in_table = np.asarray(atoms.any(axis=1))
    both = in_table[:, None] & in_table[None]
    inside = atoms @ (1 - atoms).T == 0
    is_part = (inside & both) | np.eye(len(every), dtype=bool)
    excludes = (atoms @ atoms.T == 0) & both
    for name, about in declared.items():
        for part in about.get("contains", ()):
            is_part[number[part], number[name]] = True
        for other in about.get("excludes", ()):
            excludes[number[name], number[other]] = True
            excludes[number[other], number[name]] = True
    # each turn doubles the chains of parts that are followed; two links are added by a declaration
    for _ in declared:
        is_part = is_part.astype(int) @ is_part > 0
    parts = is_part.astype(int)
    return is_part, parts @ excludes @ parts.T > 0


def relation_problems(
    declared: Declared, extra: Iterable[str] = (), exclusive: Sequence[str] = ()
) -> list[str]:
    """One sentence for each thing that is wrong with what is declared.

    extra: names outside the table that are known from elsewhere. exclusive: see `excluding`.
    """
    problems = []
    known = {*ATOM_IDS, *GROUP_ATOMS, *extra, *declared}
    for name, about in declared.items():
        if not _is_about(about):
            problems.append(
                f"class_relations['{name}'] = {about!r}; write "
                '{"contains": ["a", "b"], "excludes": ["c"]}, one of them or both'
            )
            continue
        for relation, others in about.items():
            for other in others:
                problems += _pair_problem(name, relation, other, known)
    # of exclusive ones by themselves their own check says what is wrong
    if problems or not declared:
        return problems
    return _contradictions(excluding(declared, exclusive))


def _is_about(about: object) -> bool:
    if not isinstance(about, Mapping) or not set(about) <= set(RELATIONS):
        return False
    for others in about.values():
        if not isinstance(others, list | tuple):
            return False
        if not all(isinstance(other, str) for other in others):
            return False
    return True


def _pair_problem(name: str, relation: str, other: str, known: Iterable[str]) -> list[str]:
    where = f"class_relations['{name}']['{relation}']"
    if other == name:
        return [f"{where}: '{name}' itself; remove it"]
    if other not in known:
        return [f"{where}: {problem}" for problem in unknown_names([other], known)]
    if atoms_of(name) is not None and atoms_of(other) is not None:
        return [f"{where}: '{other}': the table has both classes, and says it already; remove it"]
    return []


def _contradictions(declared: Declared) -> list[str]:
    """A sentence for classes that can be nowhere by what is declared, or contain each other."""
    every = _all_names((), declared)
    is_part, excludes = _closure(every, declared)
    mutual = is_part & is_part.T & ~np.eye(len(every), dtype=bool)
    wrong = np.flatnonzero(excludes.diagonal() | mutual.any(axis=1))
    if not wrong.size:
        return []
    names = ", ".join(f"'{every[index]}'" for index in wrong[:5])
    return [
        f"class_relations: by them and the table {names} can be nowhere, or contain each other; "
        "correct contains and excludes"
    ]

"""The class table of the CellMap Segmentation Challenge: which classes there are and which can never share a voxel.

Every voxel of a cell belongs to exactly one *atom* (`mito_mem`, `cyto`, ...). A *group* (`mito`, `er`, `cell`) is a set of
atoms. Two classes exclude each other when they have no atom in common. Source: the challenge's `classes.csv` (74 classes).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import numpy as np

ATOM_IDS: dict[str, int] = {
    "ecs": 1, "pm": 2, "mito_mem": 3, "mito_lum": 4, "mito_ribo": 5, "golgi_mem": 6, "golgi_lum": 7, "ves_mem": 8,
    "ves_lum": 9, "endo_mem": 10, "endo_lum": 11, "lyso_mem": 12, "lyso_lum": 13, "ld_mem": 14, "ld_lum": 15,
    "er_mem": 16, "er_lum": 17, "eres_mem": 18, "eres_lum": 19, "ne_mem": 20, "ne_lum": 21, "np_out": 22, "np_in": 23,
    "hchrom": 24, "nhchrom": 25, "echrom": 26, "nechrom": 27, "nucpl": 28, "nucleo": 29, "mt_out": 30, "cent": 31,
    "cent_dapp": 32, "cent_sdapp": 33, "ribo": 34, "cyto": 35, "mt_in": 36, "vim": 38, "glyco": 39, "rbc": 45,
    "perox_mem": 47, "perox_lum": 48, "isg_mem": 56, "isg_lum": 57, "isg_ins": 58, "actin": 61, "tbar": 62, "bm": 63,
    "chloroplast_mem": 67, "chloroplast_lum": 68, "chloroplast_sg": 69, "vacuole_mem": 71, "vacuole_lum": 72,
    "plasmodesmata": 74,
}  # fmt: skip

GROUP_IDS: dict[str, int] = {
    "nuc": 37, "golgi": 40, "ves": 41, "endo": 42, "lyso": 43, "ld": 44, "eres": 46, "perox": 49, "mito": 50, "er": 51,
    "ne": 52, "np": 53, "chrom": 54, "mt": 55, "isg": 59, "cell": 60, "er_mem_all": 64, "ne_mem_all": 65,
    "cent_all": 66, "chloroplast": 70, "vacuole": 73,
}  # fmt: skip

_OUTSIDE_THE_CELL = {"ecs", "rbc", "bm", "plasmodesmata"} | {
    a for a in ATOM_IDS if a.startswith(("chloro", "vacuole"))
}

GROUP_ATOMS: dict[str, frozenset[str]] = {
    **{
        group: frozenset({f"{group}_mem", f"{group}_lum"})
        for group in ("golgi", "ves", "endo", "lyso", "ld", "eres", "perox", "vacuole")
    },
    "nuc": frozenset(
        [
            "ne_mem",
            "ne_lum",
            "np_out",
            "np_in",
            "hchrom",
            "nhchrom",
            "echrom",
            "nechrom",
            "nucpl",
            "nucleo",
        ]
    ),
    "mito": frozenset({"mito_mem", "mito_lum", "mito_ribo"}),
    "er": frozenset(
        ["er_mem", "er_lum", "eres_mem", "eres_lum", "ne_mem", "ne_lum", "np_out", "np_in"]
    ),
    "ne": frozenset(["ne_mem", "ne_lum", "np_out", "np_in"]),
    "np": frozenset({"np_out", "np_in"}),
    "chrom": frozenset(["hchrom", "nhchrom", "echrom", "nechrom"]),
    "mt": frozenset({"mt_out", "mt_in"}),
    "isg": frozenset({"isg_mem", "isg_lum", "isg_ins"}),
    "cell": frozenset(ATOM_IDS) - _OUTSIDE_THE_CELL,
    "er_mem_all": frozenset({"er_mem", "eres_mem", "ne_mem"}),
    "ne_mem_all": frozenset({"ne_mem", "np_out", "np_in"}),
    "cent_all": frozenset({"cent", "cent_dapp", "cent_sdapp"}),
    "chloroplast": frozenset({"chloroplast_mem", "chloroplast_lum", "chloroplast_sg"}),
}

TESTED: tuple[str, ...] = tuple(
    [
        "ecs",
        "pm",
        "mito_mem",
        "mito_lum",
        "mito_ribo",
        "golgi_mem",
        "golgi_lum",
        "ves_mem",
        "ves_lum",
        "endo_mem",
        "endo_lum",
        "lyso_mem",
        "lyso_lum",
        "ld_mem",
        "ld_lum",
        "er_mem",
        "er_lum",
        "eres_mem",
        "eres_lum",
        "ne_mem",
        "ne_lum",
        "np_out",
        "np_in",
        "hchrom",
        "echrom",
        "nucpl",
        "mt_out",
        "cyto",
        "mt_in",
        "nuc",
        "golgi",
        "ves",
        "endo",
        "lyso",
        "ld",
        "eres",
        "perox_mem",
        "perox_lum",
        "perox",
        "mito",
        "er",
        "ne",
        "np",
        "chrom",
        "mt",
        "cell",
        "er_mem_all",
        "ne_mem_all",
    ]
)
"""The 48 classes that the challenge scores, in its order: the order of the baselines' output channels."""

INSTANCES: tuple[str, ...] = tuple(
    ["nuc", "ves", "endo", "lyso", "ld", "perox", "mito", "np", "mt", "cell"]
)
"""The tested classes that are scored as instances; the other 38 are scored as masks."""


def atoms_of(name: str) -> frozenset[str] | None:
    """The atoms of a class; a class outside the table (a user's own) has None: nothing is known of its overlaps."""
    return frozenset({name}) if name in ATOM_IDS else GROUP_ATOMS.get(name)


def membership(names: Sequence[str]) -> np.ndarray:
    """(classes, atoms) bool: which atoms make up each class; the row of a class outside the table is all False."""
    return np.array(
        [[atom in (atoms_of(name) or ()) for atom in ATOM_IDS] for name in names], bool
    ).reshape(len(names), len(ATOM_IDS))


def exclusions(names: Sequence[str]) -> dict[str, set[str]]:
    """For each class the other classes of `names` that can never share a voxel with it."""
    atoms = {name: atoms_of(name) for name in names}
    return {
        a: {b for b in names if a != b and atoms[a] and atoms[b] and not atoms[a] & atoms[b]}  # type: ignore[operator]
        for a in names
    }


def unknown_names(names: Iterable[str], extra: Iterable[str] = ()) -> list[str]:
    """One sentence for each name that is neither in the table nor in `extra`."""
    table = [*ATOM_IDS, *GROUP_ATOMS, *extra]
    problems = []
    for name in names:
        if name not in table:
            near = difflib.get_close_matches(name, table, 1)
            hint = (
                f"did you mean '{near[0]}'?"
                if near
                else "list a class of your own in extra_classes"
            )
            problems.append(f"unknown class '{name}'; {hint}")
    return problems

"""Versions of the challenge's score: what its code computes, and what its documents say.

The leaderboard runs the code, so that its number is the one to know; it differs from the written
definition where the switches below say so. A later state of the code is another row.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import UserError


@dataclass(frozen=True)
class Version:
    """One way to compute the challenge's score."""

    name: str
    about: str
    """What it is, in words; shown beside figures."""
    unmatched_keep_their_number: bool
    """Predictions are numbered 1..n in the order of their first voxel. One without a match counts
    as a part of what was found of the truth object whose id is that number."""
    largest_id_is_number: bool
    """The guard against too many predicted objects takes the largest truth id for the number of
    truth objects."""
    rounds_distances: bool
    """Distances are float32 before they are normalised."""
    missing_is_done: bool
    """`num_evals_done` counts classes that a submission lacks."""


CSC = Version(
    name="csc-2026-06",
    about="the number that the organisers' code of 2026-06-30 gives",
    unmatched_keep_their_number=True,
    largest_id_is_number=True,
    rounds_distances=True,
    missing_is_done=True,
)

DEFINITION = Version(
    name="definition-2026-06",
    about="the organisers' definition of June 2026 as it is written, which their code is not quite",
    unmatched_keep_their_number=False,
    largest_id_is_number=False,
    rounds_distances=False,
    missing_is_done=False,
)

VERSIONS = {version.name: version for version in (CSC, DEFINITION)}


def find(name: str) -> Version:
    """Return the version of a name. Raises UserError for an unknown name."""
    if name not in VERSIONS:
        raise UserError(f"metric version '{name}'; write one of {', '.join(VERSIONS)}")
    return VERSIONS[name]


def stamp(version: Version) -> str:
    """Return what every result has as `metric`."""
    return f"CellMap Segmentation Challenge, {version.name}"


def about(metric: str) -> str:
    """Return a stamp with its meaning; a stamp that is not ours unchanged."""
    for version in VERSIONS.values():
        if metric == stamp(version):
            return f"{metric}: {version.about}"
    return metric

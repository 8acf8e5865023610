"""The class table under the names of the public toolbox."""

from __future__ import annotations

from collections.abc import Sequence

from common.classes import ATOM_IDS, GROUP_IDS, TESTED, exclusions, unknown_names
from common.errors import UserError


def get_tested_classes() -> list[str]:
    """The 48 classes that the challenge scores, in its order."""
    return list(TESTED)


def get_class_relations(named_classes: Sequence[str] | None = None) -> dict[str, set[str]]:
    """For each class those of `named_classes` (all 74 unless given) that can never share a voxel with it.

    Raises ValueError for names that are not in the challenge's table.
    """
    names = [*ATOM_IDS, *GROUP_IDS] if named_classes is None else named_classes
    if problems := unknown_names([names] if isinstance(names, str) else names):
        raise UserError("\n".join(f"get_class_relations: {problem}" for problem in problems))
    return exclusions(names)

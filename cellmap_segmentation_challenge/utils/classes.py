"""The class table under the names of the public toolbox."""

from __future__ import annotations

from collections.abc import Sequence

from cellmap_segmentation_challenge._public import names_of
from common.classes import ATOM_IDS, GROUP_IDS, TESTED, exclusions, unknown_names
from common.errors import UserError

__getattr__ = names_of(__name__, {})


def get_tested_classes() -> list[str]:
    """The 48 classes that the challenge scores, in its order."""
    return list(TESTED)


def get_class_relations(named_classes: Sequence[str] | None = None) -> dict[str, set[str]]:
    """For each class those of `named_classes` that can never share a voxel with it.

    named_classes: all 74 unless given. Raises UserError for names outside the challenge's table.
    """
    if named_classes is None:
        names = [*ATOM_IDS, *GROUP_IDS]
    elif isinstance(named_classes, str):
        names = [named_classes]
    else:
        names = list(named_classes)
    problems = unknown_names(names)
    if problems:
        raise UserError("\n".join(f"get_class_relations: {problem}" for problem in problems))
    return exclusions(names)

"""The class table under the names of the public toolbox."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from cellmap_segmentation_challenge._public import names_of
from common.classes import ATOM_IDS, GROUP_IDS, TESTED, exclusions, unknown_names
from common.errors import UserError

__getattr__ = names_of(__name__, {})

Names = str | Sequence[str]
Table = str | os.PathLike[str]


def get_tested_classes() -> list[str]:
    """The 48 classes that the challenge scores, in its order."""
    return list(TESTED)


def get_class_relations(
    csv: Names | Table | None = None, named_classes: Names | Table | None = None
) -> dict[str, set[str]]:
    """Return for each named class the named classes that can never share a voxel with it.

    Table and classes may be given in either order. The challenge's table, and all of its classes,
    are taken unless given.

    Args:
        csv: path of a table with lines name,id,"ids": the ids of the classes that it consists of.
        named_classes: names, or one.

    Raises:
        FileNotFoundError: without the table.
        UserError: for names outside of the table, and for a table of another form.
    """
    table, named = (csv, named_classes) if _is_table(csv) else (named_classes, csv)
    if not _is_table(table):  # two lists of classes, or none
        named = named or table
        table = None
    names = [named] if isinstance(named, str) else list(cast(Names, named or ()))
    if table is not None:
        return _of_table(Path(cast(Table, table)), names)
    problems = unknown_names(names)
    if problems:
        raise UserError("\n".join(f"get_class_relations: {problem}" for problem in problems))
    return exclusions(names or [*ATOM_IDS, *GROUP_IDS])


def _is_table(value: Names | Table | None) -> bool:
    return isinstance(value, os.PathLike) or (isinstance(value, str) and value.endswith(".csv"))


def _of_table(path: Path, names: Sequence[str]) -> dict[str, set[str]]:
    """Return the relations by a table: classes without a common id exclude each other."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such table of classes; write its path, or leave it out"
        )
    ids: dict[str, set[int]] = {}
    for line in path.read_text("utf-8-sig").splitlines():
        name, _, numbers = line.partition(",")
        ids_of_name = {int(number) for number in re.findall(r"\d+", numbers)}
        if ids_of_name:  # a header has none
            ids[name.strip().strip('"')] = ids_of_name
    missing = [name for name in names if name not in ids]
    if missing or not ids:
        raise UserError(
            f'{path}: no line for {", ".join(missing) or "any class"}; write name,id,"ids"'
        )
    chosen = list(names) or list(ids)
    relations = {}
    for name in chosen:
        relations[name] = {other for other in chosen if ids[name].isdisjoint(ids[other])}
    return relations

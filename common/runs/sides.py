"""The sides of a comparison (runs, or seeds of one model), and the settings they differ in."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from common.config.groups import PLACES
from common.runs.reading import Reading

MADE_WITH = ("commit", "split_hash", "torch", "device", "precision")
"""Entries of the provenance that are compared."""


@dataclass(frozen=True)
class Side:
    """A run, or the seeds of one model, that is compared with others."""

    name: str
    members: tuple[Reading, ...]

    @property
    def left_out(self) -> int:
        """Number of classes of crops that the challenge's score left out, over all runs."""
        return sum(reading.left_out for reading in self.members)


def as_sides(readings: Sequence[Reading], group_seeds: bool = False) -> list[Side]:
    """Return a side for each run, named without the folders that all share.

    group_seeds: make one side of all runs of a model that differ only in their seed.
    """
    groups: dict[object, list[Reading]] = {}
    for reading in readings:
        key = _without_seed(reading) if group_seeds else reading.name
        groups.setdefault(key, []).append(reading)
    members = list(groups.values())
    names = short_names([_group_name(group) for group in members])
    return [Side(name, tuple(group)) for name, group in zip(names, members, strict=True)]


def _without_seed(reading: Reading) -> tuple:
    """Return a key that is equal for two seeds of one model."""
    hidden = PLACES | {"random_seed"}
    settings = tuple(
        sorted(item for item in reading.record.settings.items() if item[0] not in hidden)
    )
    model = reading.name.rsplit("/", 1)[0]
    # runs without settings are told by their names: seed1, seed2
    return reading.run.experiment, model, settings or re.sub(r"\d+$", "", reading.name)


def _group_name(group: Sequence[Reading]) -> str:
    names = [reading.name for reading in group]
    if len(names) == 1:
        return names[0]
    shared = os.path.commonprefix(names)  # noqa: RUF071  by letters: seed1 and seed2 are seed*
    return shared.rstrip("0123456789") + "*"


def short_names(names: Sequence[str]) -> list[str]:
    """Return names without the folders that all begin with; equal names are numbered."""
    parts = [name.split("/") for name in names]
    shared = 0
    if len(names) > 1:
        shortest = min(map(len, parts))
        while shared < shortest - 1 and len({part[shared] for part in parts}) == 1:
            shared += 1
    short = ["/".join(part[shared:]) for part in parts]
    distinct = []
    for number, name in enumerate(short, 1):
        is_alone = short.count(name) == 1
        distinct.append(name if is_alone else f"{name} ({short[:number].count(name)})")
    return distinct


def differing_settings(sides: Sequence[Side]) -> dict[str, list[str]]:
    """Return the settings in which sides differ, with the value of each side ("" if not known).

    Settings that name places are left out; so is the seed, if a side has several.
    """
    hidden = set(PLACES)
    if any(len(side.members) > 1 for side in sides):
        hidden.add("random_seed")
    names: dict[str, None] = {}
    for side in sides:
        for reading in side.members:
            names |= dict.fromkeys(reading.record.settings)
    return differing(sides, [name for name in names if name not in hidden])


def differing(
    sides: Sequence[Side],
    names: Sequence[str],
    part: Literal["settings", "provenance"] = "settings",
) -> dict[str, list[str]]:
    """Return the entries of the record that differ, with the value of each side.

    The value is "" if not known; several values of one side are joined by |.
    """
    entries = {}
    for name in names:
        values = [" | ".join(_values(side, name, part)) for side in sides]
        known = {value for value in values if value}
        if len(known) > 1:
            entries[name] = values
    return entries


def _values(side: Side, name: str, part: str) -> list[str]:
    """Return the values that the runs of a side have, each once."""
    values = []
    for reading in side.members:
        entries = getattr(reading.record, part)
        if name in entries:
            values.append(str(entries[name]))
    return list(dict.fromkeys(values))

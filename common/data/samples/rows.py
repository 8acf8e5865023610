"""Choose the rows of a datasplit that a run trains and validates on, by the classes it learns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from common.classes import overlapping, relate, unknown_names
from common.config.settings import TrainConfig
from common.data.crops.palette import UNKNOWN, Rules
from common.data.splits import make_split, split
from common.data.splits.split import Row
from common.errors import UserError
from common.talk import nearest, say, some

BegunWith = Callable[[], str]
"""Gives the hash of the split that a run was begun with; "" where it is to begin."""


def rows_of_run(config: TrainConfig, begun_with: BegunWith = str) -> list[Row]:
    """Return the rows of the datasplit that the run is made of, see `that_count`.

    Checks that their folders exist. Raises FileNotFoundError or UserError with all problems in one
    message.
    """
    path = config.path("datasplit_path")
    if config.missing_split and not path.is_file():
        # the public toolbox writes one, too
        # over that of another process of this run, which is the same
        choice = {**config.missing_split, "overwrite": True}
        say(make_split.make(path, data_root=config.path("data_path"), **choice))
    rows = split.read_datasplit(path, config.path("data_path"))
    rows = that_count(rows, config, begun_with)
    if not any(row.usage == "train" and _teaches(row, config) for row in rows):
        raise UserError(
            f"{path}: no training crop annotates any of {', '.join(config.classes)}; "
            "change classes or the split"
        )
    split.check_files(rows)
    return rows


def that_count(rows: Sequence[Row], config: TrainConfig, begun_with: BegunWith = str) -> list[Row]:
    """Return the rows that teach a class of the run, and the training rows of its counter-examples.

    A crop teaches the classes that it annotates, and in training those that are positive where one
    that it annotates is: `mito_mem` teaches `mito`. It validates what is also known to be negative
    by its annotation, else nothing that is found in vain would be counted.

    begun_with: asked where crops of parts make a difference. A run from before these counted goes
        on without them.
    """
    by_name = [row for row in rows if _annotates(row, config)]
    # where many crops are annotated alike one answer does for all
    answers: dict[tuple, bool] = {}
    chosen = []
    for row in rows:
        alike = (row.usage, row.annotated)
        if alike not in answers:
            answers[alike] = _annotates(row, config) or _implies(row, config)
        if answers[alike]:
            chosen.append(row)
    if len(chosen) > len(by_name) and begun_with() == split.split_hash(by_name):
        return by_name
    return chosen


def of_parts(rows: Sequence[Row], classes: Sequence[str], counter: Sequence[str]) -> list[str]:
    """Return a sentence about training crops that teach by parts of a class alone; [] without any.

    rows: as of `that_count`.
    """
    named = {*classes, *counter}
    crops = [row for row in rows if row.usage == "train" and not named.intersection(row.annotated)]
    if not crops:
        return []
    annotated = dict.fromkeys(itertools.chain.from_iterable(row.annotated for row in crops))
    annotate = "training crop annotates" if len(crops) == 1 else "training crops annotate"
    return [
        f"{len(crops)} {annotate} no class that is learnt, and parts of one "
        f"({some(list(annotated))}), which is positive there: {some([row.name for row in crops])}; "
        "leave them out of the datasplit, or set infer_groups = False, if they are not to be learnt"
    ]


def without_effect(rows: Sequence[Row], config: TrainConfig) -> list[str]:
    """Return a sentence for each setting that names classes of which no training crop says a thing.

    rows: of the run.
    """
    known = {*config.classes, *split.annotating(rows, "train")}
    own = [name for name in known if unknown_names([name])]
    sentences = []
    for setting in ("counter_classes", "exclusive_classes", "extra_classes", "class_relations"):
        names = [name for name in getattr(config, setting) if name not in known]
        if setting != "counter_classes":  # which are read where they are annotated alone
            names = [name for name in names if not _has_part(name, known, config)]
        near = [nearest(name, own) for name in names if unknown_names([name])]
        meant = [f"'{name}'" for name in near if name]
        hint = f"did you mean {some(meant)}?" if meant else "leave it out, or add crops of it"
        if names:
            sentences.append(
                f"{setting}: neither learnt nor annotated in a training crop, and so without "
                f"effect: {some(names)}; {hint}"
            )
    return sentences


def _has_part(name: str, others: Collection[str], config: TrainConfig) -> bool:
    """Return whether any of some other classes is a part of a class, so that it says of those."""
    if any(overlapping([name, other]) for other in others):
        return True
    is_part = relate([name, *others], config.class_relations).is_part
    return bool(is_part[1:, 0].any())


def _annotates(row: Row, config: TrainConfig) -> bool:
    """Return whether a row annotates a class that it is wanted for."""
    wanted = set(config.classes)
    if row.usage == "train":
        wanted |= set(config.counter_classes)
    return bool(wanted.intersection(row.annotated))


def _teaches(row: Row, config: TrainConfig) -> bool:
    """Return whether a row can make a class of the run positive."""
    return bool(set(config.classes).intersection(row.annotated)) or _implies(row, config)


def _implies(row: Row, config: TrainConfig) -> bool:
    """Return whether classes of the run follow from those that a row annotates; `that_count`."""
    annotated = len(row.annotated)
    names = [*row.annotated, *config.classes]
    palette = np.full((annotated + 1, len(names)), UNKNOWN, np.int8)
    # one class alone is there, and last none of them is
    np.fill_diagonal(palette, 1)
    palette[-1] = UNKNOWN
    palette[-1, :annotated] = 0
    # what excludes a class says only where it is not, which counter_classes ask for
    rules = replace(Rules.of(config), use_mutual_exclusion=False)
    known = rules.complete(palette, names)[:, annotated:]
    is_positive = (known[:-1] == 1).any(axis=0)
    if row.usage == "train":
        return bool(is_positive.any())
    return bool((is_positive & (known[-1] == 0)).any())

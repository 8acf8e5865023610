"""Compare runs: which is better, by how much, whether that is more than chance, and why.

The best side is compared with each other one, at a level that holds for all of these together
(Bonferroni; that comparisons with the best suffice: Hsu 1981, Simultaneous confidence intervals for
all distances from the best). What is measured, and how sure it is: see `common.runs.measure`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import REPOSITORY
from common.runs.caveats import incomparable
from common.runs.choose import choose
from common.runs.comparison import ClassFigures, Comparison, Lead, Standing
from common.runs.curves import write_curves
from common.runs.measure import Measure, measured
from common.runs.reading import Reading, read_all
from common.runs.sides import MADE_WITH, Side, as_sides, differing, differing_settings
from common.runs.words import terminal
from common.score.interval import LEVEL
from common.talk import Say


def compare(
    names: Sequence[str | Path],
    *,
    root: str | Path = REPOSITORY,
    metric: str = "",
    group_seeds: bool = False,
    png: str | Path = "",
    say: Say = print,
) -> Comparison:
    """Compare two or more runs, say tables and a verdict, and return all of it.

    Args:
        names: of the runs, see `common.runs.choose`.
        root: where the experiments are.
        metric: score, dice, iou, precision or recall; the score where all runs have it for the same
            crops, else the runs' best_metric.
        group_seeds: whether runs that differ in their seed alone are one side.
        png: a file for the curves.
        say: takes lines to print.

    Raises:
        UserError: for an unknown run, fewer than two that validated, and a missing score.
        FileNotFoundError: without the root.
    """
    readings, notes = _validated(read_all(choose(names, root)))
    asked = " ".join(map(str, names))
    if len(readings) < 2:
        raise UserError(f"{asked}: {_too_few(readings, notes)}; give two or more")
    sides = as_sides(readings, group_seeds)
    if len(sides) < 2:
        raise UserError(f"{asked}: these are seeds of one model; give two, or no --group-seeds")
    measure, about_scores = measured(sides, metric)
    order = _best_first(sides, measure)
    sides = [sides[number] for number in order]
    comparison = compared(sides, measure.ordered(order), [*notes, *about_scores])
    say(terminal(comparison))
    if png:
        say(f"\n{write_curves(png, sides, measure.metric)}")
    return comparison


def _best_first(sides: Sequence[Side], measure: Measure) -> list[int]:
    """Return the numbers of the sides, the best first.

    Of equal ones that leads of which the challenge's score left out less, see `Reading.left_out`,
    then the one that was named first.
    """
    values = [measure.of(number)[0] for number in range(len(sides))]
    left_out = np.array([side.left_out for side in sides])
    return np.lexsort((left_out, np.negative(values))).tolist()


def _left_out(side: Side, measure: Measure) -> int:
    """Return how many classes of crops the compared score left out; 0 for a validation metric."""
    if measure.of_validation:
        return 0
    return sum(reading.scores[measure.source].left_out for reading in side.members)


def _validated(readings: Sequence[Reading]) -> tuple[list[Reading], list[str]]:
    """Return the runs that have a validation, and a sentence for each other run."""
    validated = []
    notes = []
    for reading in readings:
        if reading.is_validated:
            validated.append(reading)
        else:
            notes.append(f"{reading.name} has no validation and is left out")
    return validated, notes


def _too_few(readings: Sequence[Reading], notes: Sequence[str]) -> str:
    names = f"only {readings[0].name}" if readings else "none"
    why = f": {notes[0]}" if notes else ""
    return f"{names} of these runs can be compared{why}"


def compared(sides: Sequence[Side], measure: Measure, notes: Sequence[str]) -> Comparison:
    """Compare sides, of which the best is first.

    notes: sentences that come before those about what may not be compared.
    """
    others = range(1, len(sides))
    return Comparison(
        metric=measure.metric,
        source=measure.source,
        of_validation=measure.of_validation,
        standings=[_standing(side, measure, number) for number, side in enumerate(sides)],
        leads=[_lead(sides, measure, other) for other in others],
        classes={
            name: _class_figures(measure, column) for column, name in enumerate(measure.classes, 1)
        },
        settings=differing_settings(sides),
        provenance=differing(sides, MADE_WITH, "provenance"),
        warnings=[*notes, *incomparable(sides, measure)],
    )


def _standing(side: Side, measure: Measure, number: int) -> Standing:
    return Standing(
        name=side.name,
        runs=[reading.name for reading in side.members],
        folders=[str(reading.run.folder) for reading in side.members],
        value=float(measure.of(number)[0]),
        spread=measure.spread(number),
        best_epoch=[reading.best_epoch for reading in side.members],
        epoch=[reading.record.result.epoch for reading in side.members],
        finished=[reading.record.result.finished for reading in side.members],
        left_out=_left_out(side, measure),
    )


def _lead(sides: Sequence[Side], measure: Measure, other: int) -> Lead:
    """Compare the first side with another one, at a level for all comparisons together."""
    comparisons = len(sides) - 1
    best_values = measure.of(0)
    other_values = measure.of(other)
    return Lead(
        best=sides[0].name,
        other=sides[other].name,
        difference=float(best_values[0] - other_values[0]),
        # Bonferroni: the more comparisons, the likelier that one of them errs
        interval=measure.interval(0, other, level=1 - (1 - LEVEL) / comparisons),
        basis=measure.basis(0, other),
        better_in=int((best_values[1:] > other_values[1:]).sum()),
    )


def _class_figures(measure: Measure, column: int) -> ClassFigures:
    """Return the figures of one class on all sides, with the difference of the first two."""
    values = [float(measure.of(side)[column]) for side in range(len(measure.groups))]
    return ClassFigures(
        values=[_known(value) for value in values],
        difference=_known(values[0] - values[1]),
        interval=measure.interval(0, 1, column),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value

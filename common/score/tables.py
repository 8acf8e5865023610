"""Scores as tables of text: for the terminal, and cell by cell for a README."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from common.score import versions
from common.score.interval import Interval
from common.score.result import ClassScore, Kind, Scores
from common.talk import count, some

WIDTH = 120
"""Columns of a terminal."""

INTERVAL_HEAD = "95 % interval"

OVERALL_NAMES = {
    "overall_score": "overall score",
    "overall_instance_score": "instance classes",
    "overall_semantic_score": "semantic classes",
}
"""Names of the scores over classes."""


@dataclass(frozen=True)
class Layout:
    """The columns that are shown of one kind of class."""

    title: str
    heads: dict[str, str]
    """Head of the column of each figure that is shown beside the score."""
    legend: str
    """Meaning of the heads."""


LAYOUTS: dict[Kind, Layout] = {
    "instance": Layout(
        title="instance classes: score = sqrt(F1 x Hausd)",
        heads={
            "f1": "F1",
            "hausdorff": "Hausd",
            "pq": "PQ",
            "voi_split": "VOI s",
            "voi_merge": "VOI m",
            "rand_error": "Rand",
            "dice": "Dice",
            "iou": "IoU",
            "precision": "prec",
            "recall": "recall",
        },
        legend=(
            "Hausd: normalised Hausdorff distance, 1 best; PQ: panoptic quality at IoU > 0.5; "
            "VOI s, m: variation of information by splits and merges in bits, 0 best; "
            "Rand: adapted Rand error, 0 best."
        ),
    ),
    "semantic": Layout(
        title="semantic classes: score = IoU",
        heads={"dice": "Dice", "precision": "prec", "recall": "recall"},
        legend="",
    ),
}

VOXELS = "Dice, IoU, precision and recall count voxels."


@dataclass(frozen=True)
class Table:
    """The classes of one kind, as text."""

    title: str
    head: list[str]
    rows: list[list[str]]


def tables(scores: Scores) -> list[Table]:
    """Return a table for each kind of class that there is, without empty columns."""
    listed = []
    for kind, layout in LAYOUTS.items():
        classes = {name: score for name, score in scores.classes.items() if score.kind == kind}
        if classes:
            listed.append(_table(layout, classes))
    return listed


def terminal(scores: Scores) -> str:
    """Return the tables, the scores over classes and the remarks, in lines of at most WIDTH."""
    lines = []
    for table in tables(scores):
        lines += [table.title, *_aligned([table.head, *table.rows]), ""]
    for key, name in OVERALL_NAMES.items():
        lines.append(f"{name:<18}{overall(scores, key)}")
    for text in remarks(scores):
        # names of classes and crops stay whole, to be searched for and copied
        lines += textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def overall(scores: Scores, key: str) -> str:
    """Return a score over classes with its interval, or a sentence if there is no such class."""
    value = scores.overall(key)
    if value is None and key == "overall_score":
        return "none: it needs classes of both kinds"
    if value is None:
        return "none of this kind"
    interval = scores.interval_95[key]
    return f"{value:.4f} ({_between(interval)})" if interval else f"{value:.4f}"


def remarks(scores: Scores) -> list[str]:
    """Return what a reader of the scores has to know, a text each.

    That is: the number of crops; classes that the metric left out, that are missing, that are not
    annotated; thresholds that were chosen on these crops; the meaning of the columns; the version
    of the metric.
    """
    texts = [_extent(scores)]
    left_out = in_crops(scores, "left_out")
    if left_out:
        texts.append(
            "Left out by the metric, for more predicted objects than it takes, so that they count "
            f"neither way: {', '.join(left_out)}."
        )
    missing = in_crops(scores, "missing")
    if missing:
        texts.append(f"Missing in the submission: {', '.join(missing)}.")
    if scores.not_annotated:
        texts.append(f"Not annotated in these crops: {', '.join(scores.not_annotated)}.")
    tuned_on = (scores.provenance and scores.provenance.tuned_on) or {}
    if tuned_on:
        texts.append(_tuned_text(scores, tuned_on))
    kinds = {score.kind for score in scores.classes.values()}
    legends = [layout.legend for kind, layout in LAYOUTS.items() if kind in kinds]
    texts.append(" ".join(filter(None, [*legends, VOXELS])))
    texts.append(f"Metric: {versions.about(scores.metric)}.")
    return texts


def _table(layout: Layout, classes: dict[str, ClassScore]) -> Table:
    """Return the table of the classes of one kind, at least one."""
    shown = [name for name in layout.heads if _has_figure(classes, name)]
    has_intervals = any(score.interval_95 for score in classes.values())
    # a column of dashes, as of intervals over one crop, would only take width
    head = ["class", "crops", "score"]
    if has_intervals:
        head.append(INTERVAL_HEAD)
    head += [layout.heads[name] for name in shown]
    rows = []
    for name, score in classes.items():
        row = [name, str(score.crops), _number(score.figures.score)]
        if has_intervals:
            row.append(_between(score.interval_95))
        row += [_number(getattr(score.figures, figure)) for figure in shown]
        rows.append(row)
    return Table(layout.title, head, rows)


def _has_figure(classes: dict[str, ClassScore], figure: str) -> bool:
    return any(getattr(score.figures, figure) is not None for score in classes.values())


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with aligned columns, the first one to the left, the others to the right."""
    columns = list(zip(*rows, strict=True))
    # five at least: a figure such as 0.123, whatever the head
    widths = [max(5, *map(len, column)) for column in columns]
    first_width = max(map(len, columns[0]))
    lines = []
    for first, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(first_width), *cells]))
    return lines


def _extent(scores: Scores) -> str:
    """Return how many crops and volumes were scored, and what the intervals are."""
    crops = list(scores.crops)
    named = f"1 crop ({crops[0]})" if len(crops) == 1 else f"{len(crops)} crops"
    text = f"{named}, {count(scores.total_evals, 'volume')} of a class scored."
    if any(scores.interval_95.values()):
        text += " Intervals are of 95 %: Student's t on bootstrap draws of crops."
    return text


def in_crops(scores: Scores, reason: Literal["left_out", "missing"]) -> list[str]:
    """Return 'mito in 2 of 3 crops' for each class that is left out, or missing, in a crop."""
    texts = []
    for name, score in scores.classes.items():
        number = getattr(score, reason)
        if number:
            texts.append(f"{name} in {number} of {score.crops} crops")
    return texts


def _tuned_text(scores: Scores, tuned_on: dict[str, list[str]]) -> str:
    """Return a sentence about thresholds that were chosen on crops that are scored here."""
    is_every_class = set(tuned_on) >= set(scores.classes)
    classes = "all classes" if is_every_class else ", ".join(tuned_on)
    crops = sorted(set().union(*tuned_on.values()))
    where = "all of them" if set(crops) >= set(scores.crops) else some(crops)
    return (
        f"The thresholds of {classes} were chosen on crops that are scored here ({where}), so that "
        "other crops will score lower; tune with --folds says by how much."
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _between(interval: Interval | None) -> str:
    return f"{interval[0]:.3f}-{interval[1]:.3f}" if interval else ""

"""Scores as tables: for the terminal, and in the README of an experiment, with a picture, between two markers."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.settings import TrainConfig
from common.data.regions import Region
from common.errors import UserError
from common.files import REPOSITORY
from common.show import figures, visualize

BEGIN, END = "<!-- scores: written by `evaluate --write-readme` -->", "<!-- end of scores -->"
PICTURE = "scores.png"
SHOWN = 2
"""Crops in the picture."""

WIDTH = 120
"""Columns of a terminal."""

VOXELS = "Dice, IoU, precision and recall count voxels."
KINDS = {
    "instance": (
        "instance classes: score = sqrt(F1 x Hausd)",
        {
            "score": "score",
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
        "Hausd: normalised Hausdorff distance, 1 best; PQ: panoptic quality at IoU > 0.5; VOI s, m: variation of information by splits and "
        "merges in bits, 0 best; Rand: adapted Rand error, 0 best.",
    ),
    "semantic": (
        "semantic classes: score = IoU",
        {"score": "score", "dice": "Dice", "precision": "prec", "recall": "recall"},
        "",
    ),
}
"""For each kind of class a title, the head of the column of each figure that is shown, and what the heads mean."""

OVERALL = {
    "overall_score": "overall score",
    "overall_instance_score": "instance classes",
    "overall_semantic_score": "semantic classes",
}


@dataclass(frozen=True)
class Table:
    """The classes of one kind, as text."""

    title: str
    head: list[str]
    rows: list[list[str]]


def tables(result: dict[str, Any]) -> list[Table]:
    """A table for each kind of class in a result of `common.score.evaluate`; columns that are empty are left out."""
    found = []
    for kind, (title, columns, _) in KINDS.items():
        classes = {name: one for name, one in result["classes"].items() if one["kind"] == kind}
        shown = [
            figure for figure in columns if any(one[figure] is not None for one in classes.values())
        ]
        intervals = any(one["interval_95"] for one in classes.values())
        head = [
            "class",
            "crops",
            "score",
            *["95 % interval"] * intervals,
            *(columns[figure] for figure in shown if figure != "score"),
        ]
        rows = [
            [
                name,
                str(one["crops"]),
                _number(one["score"]),
                *[_between(one["interval_95"])] * intervals,
            ]
            + [_number(one[figure]) for figure in shown if figure != "score"]
            for name, one in classes.items()
        ]
        found += [Table(title, head, rows)] if rows else []
    return found


def terminal(result: dict[str, Any]) -> str:
    """All tables, then the overall scores and what is to be said about them, in lines of WIDTH."""
    lines = []
    for table in tables(result):
        widths = [max(map(len, column)) for column in zip(table.head, *table.rows, strict=True)]
        lines.append(table.title)
        for row in (table.head, *table.rows):
            name, *cells = (text.rjust(max(n, 5)) for text, n in zip(row, widths, strict=True))
            lines.append("  ".join([name.strip().ljust(widths[0]), *cells]))
        lines.append("")
    lines += [f"{name:<18}{overall(result, key)}" for key, name in OVERALL.items()]
    for text in remarks(result):
        lines += textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def overall(result: dict[str, Any], key: str) -> str:
    """A score over classes with its interval; said where there is no class of that kind."""
    if result[key] is None:
        return (
            "none: it needs classes of both kinds"
            if key == "overall_score"
            else "none of this kind"
        )
    return " ".join(
        filter(None, (f"{result[key]:.4f}", _between(result["interval_95"][key], "({})")))
    )


def remarks(result: dict[str, Any]) -> list[str]:
    """What a reader of the scores has to know: what the heads mean, what the metric left out, what is missing, what is not annotated."""
    crops = (
        f"{len(result['crops'])} crops"
        if len(result["crops"]) > 1
        else f"1 crop ({next(iter(result['crops']))})"
    )
    said = [f"{crops}; evaluations: {result['total_evals']}."]
    if any(result["interval_95"].values()):
        said[0] += " Intervals are of 95 %, by bootstrap over crops."
    left_out = [
        f"{name} in {one['left_out']} of {one['crops']} crops"
        for name, one in result["classes"].items()
        if one["left_out"]
    ]
    if left_out:
        said.append(
            f"Left out by the metric, for more predicted objects than it takes, so that they count neither way: {', '.join(left_out)}."
        )
    if missing := [
        f"{name} in {one['missing']} of {one['crops']} crops"
        for name, one in result["classes"].items()
        if one["missing"]
    ]:
        said.append(f"Missing in the submission: {', '.join(missing)}.")
    if names := result.get("not_annotated"):
        said.append(f"Not annotated in these crops: {', '.join(names)}.")
    kinds = {one["kind"] for one in result["classes"].values()}
    legends = [legend for kind, (_, _, legend) in KINDS.items() if kind in kinds and legend]
    return [*said, " ".join([*legends, VOXELS]), f"Metric: {result['metric']}."]


def check(config: TrainConfig) -> None:
    """Raises ValueError where the README of an experiment has one marker without the other: text could be lost."""
    _parts(config.folder / "README.md")


def write_scores(
    config: TrainConfig,
    boxes: Sequence[Region],
    result: dict[str, Any],
    say: Callable[[str], None] = print,
) -> Path:
    """Put the result of `common.score.evaluate.evaluate` and a picture of the first crops into the README; gives its path.

    Replaces what is between the markers; a README without them gets them at its end. Raises ValueError where one of them is missing.
    """
    path = config.folder / "README.md"
    before, after = _parts(path)
    rows = [
        visualize.montage(
            box, visualize.find_layers(config, box, tuple(result["classes"]), say=say)
        )
        for box in boxes[:SHOWN]
    ]
    figures.write_png(config.folder / PICTURE, figures.above(rows, background=255))
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(
        f"{before}{BEGIN}\n{markdown(config, boxes, result)}\n{END}{after}",
        encoding="utf-8",
        newline="",
    )
    temporary.replace(path)
    return path


def markdown(config: TrainConfig, boxes: Sequence[Region], result: dict[str, Any]) -> str:
    """The section: what was scored and how, overall scores, a line a class, the picture."""
    made = result["provenance"]
    thresholds = {name: value for name, value in made["thresholds"].items() if value is not None}
    said = [f"{name} {value:g}" for name, value in thresholds.items() if value != 0.5]
    said += ["0.5 for the others" if said else "0.5"] if len(said) < len(thresholds) else []
    changed = " with uncommitted changes" if made.get("uncommitted_changes") == "True" else ""
    lines = [
        f"`{command(config, result['asked'])}`, {made['date'][:10]}, run {made['run_name']}, {_checkpoints(made['checkpoints'])}; "
        f"commit {made['commit'][:10]}{changed}, torch {made['torch']}. Crops: {_some([str(box) for box in boxes])}. "
        f"Thresholds: {', '.join(said) or 'not on record'}.",
        "",
        "| " + " | ".join(OVERALL.values()) + " |",
        "|---" * len(OVERALL) + "|",
        "| " + " | ".join(overall(result, key) for key in OVERALL) + " |",
    ]
    for table in tables(result):
        lines += ["", f"{table.title[0].upper()}{table.title[1:]}.", ""]
        lines += [
            "| " + " | ".join(row) + " |"
            for row in (table.head, ["---"] * len(table.head), *table.rows)
        ]
    return "\n".join(
        [
            *lines,
            "",
            " ".join(remarks(result)),
            "",
            f"![raw, truth, predictions and processed volumes]({PICTURE})",
        ]
    )


def command(config: TrainConfig, asked: dict[str, Any]) -> str:
    """What to type for the same result; overrides that say where files are on a machine are left out."""
    folder = (
        config.folder.relative_to(REPOSITORY)
        if config.folder.is_relative_to(REPOSITORY)
        else config.folder.name
    )
    words = ["evaluate", str(folder), "--crops", asked["crops"]]
    words += ["--classes", ",".join(asked["classes"])] if asked["classes"] else []
    for override in asked["overrides"]:
        words += [] if "_path" in override.partition("=")[0] else ["--set", override]
    return "python -m cellmap_segmentation_challenge " + shlex.join([*words, "--write-readme"])


def _parts(path: Path) -> tuple[str, str]:
    """The text before and after the section of the scores, line ends as they are."""
    if not path.is_file():
        return f"# {path.parent.name}\n\n## Scores\n\n", "\n"
    text = path.read_bytes().decode()
    begin, end = text.find(BEGIN), text.find(END)
    if (text.count(BEGIN), text.count(END)) == (0, 0):
        return f"{text.rstrip()}\n\n## Scores\n\n", "\n"
    if (text.count(BEGIN), text.count(END)) != (1, 1) or end < begin:
        raise UserError(
            f"{path}: '{BEGIN}' and '{END}' must stand there once, in this order; put them back, or remove both"
        )
    return text[:begin], text[end + len(END) :]


def _checkpoints(found: Sequence[dict[str, Any]]) -> str:
    made = [
        f"epoch {one['epoch']} ({one['metric']}), SHA-256 {one['sha256'][:12]}"
        for one in found
        if one.get("sha256")
    ]
    return f"checkpoint of {'; '.join(made)}" if made else "checkpoint not on record"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _between(interval: Sequence[float] | None, form: str = "{}") -> str:
    return form.format(f"{interval[0]:.3f}-{interval[1]:.3f}") if interval else ""


def _some(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

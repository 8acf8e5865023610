"""The scores in the README of an experiment: a table and a picture between two markers, nothing else of it is touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import figures, visualize
from common.config import REPOSITORY, TrainConfig
from common.regions import Region

BEGIN, END = "<!-- scores: written by `evaluate --write-readme` -->", "<!-- end of scores -->"
PICTURE = "scores.png"
SHOWN = 2
"""Crops in the picture."""

COLUMNS = {
    "score": "score", "dice": "Dice", "iou": "IoU", "precision": "precision", "recall": "recall", "f1": "F1", "hausdorff": "Hausdorff",
    "pq": "PQ", "voi_split": "VOI split", "voi_merge": "VOI merge", "rand_error": "Rand error",
}  # fmt: skip


def write_scores(config: TrainConfig, boxes: Sequence[Region], result: dict[str, Any]) -> Path:
    """Put the result of `common.evaluate.evaluate` and a picture of the first crops into the README; gives its path.

    Replaces what is between the markers; a README without them gets them at its end.
    """
    path = config.folder / "README.md"
    rows = [visualize.montage(box, visualize.find_layers(config, box)) for box in boxes[:SHOWN]]
    figures.write_png(config.folder / PICTURE, figures.above(rows, background=255))
    text = path.read_text() if path.is_file() else f"# {config.folder.name}\n"
    section = f"{BEGIN}\n{scores(config, boxes, result)}\n{END}"
    if BEGIN in text and END in text:
        text = text[: text.index(BEGIN)] + section + text[text.index(END) + len(END) :]
    else:
        text = f"{text.rstrip()}\n\n## Scores\n\n{section}\n"
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    temporary.replace(path)
    return path


def scores(config: TrainConfig, boxes: Sequence[Region], result: dict[str, Any]) -> str:
    """The section as Markdown: what was scored and how, overall scores, a line a class, the picture."""
    about = result["provenance"]
    what = config.folder.relative_to(REPOSITORY) if config.folder.is_relative_to(REPOSITORY) else config.folder.name
    made = "; ".join(f"epoch {one['epoch']} ({one['metric']}), SHA-256 {(one['sha256'] or '?')[:12]}" for one in about["checkpoints"])
    thresholds = ", ".join(f"{name} {value:g}" for name, value in about["thresholds"].items() if value not in (None, 0.5))
    changed = " with uncommitted changes" if about.get("uncommitted_changes") == "True" else ""
    return "\n".join(
        [
            f"`python -m cellmap_segmentation_challenge evaluate {what} --crops {result['crops_asked_for']} --write-readme`, {about['date'][:10]}, "
            f"run {about['run_name']}, checkpoint of {made}; commit {about['commit'][:10]}{changed}, torch {about['torch']}. "
            f"{len(result['crops'])} crops: {_some([str(box) for box in boxes])}. "
            f"Thresholds: {thresholds + ', 0.5 for the others' if thresholds else '0.5'}.",
            "",
            f"Metric: {result['metric']} (`score`; intervals are 95 % by bootstrap over crops).",
            "",
            "| overall | instance classes | semantic classes |",
            "|---|---|---|",
            "| " + " | ".join(_overall(result, name) for name in ("overall_score", "overall_instance_score", "overall_semantic_score")) + " |",
            "",
            *_table(result),
            "",
            f"![raw, truth, predictions and processed volumes]({PICTURE})",
        ]
    )


def _table(result: dict[str, Any]) -> list[str]:
    columns = [name for name in COLUMNS if any(found.get(name) is not None for found in result["classes"].values())]
    lines = ["| class | " + " | ".join(COLUMNS[name] for name in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, found in result["classes"].items():
        cells = [_number(found.get(column)) for column in columns]
        cells[0] += _between(found["interval_95"])
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _overall(result: dict[str, Any], name: str) -> str:
    return _number(result[name]) + _between(result["interval_95"][name])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _between(interval: Sequence[float] | None) -> str:
    return f" ({interval[0]:.3f}-{interval[1]:.3f})" if interval else ""


def _some(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

"""Draw the results of `bench/quality.py`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

# Okabe and Ito's, which people with any kind of colour vision tell apart
COLOURS = {
    "new": "#D55E00",
    "committed": "#8A8A8A",
    "monai": "#0072B2",
    "cellmap": "#CC79A7",
    "nnunet": "#009E73",
    "nnunetv2": "#56B4E9",
    "sections": "#E69F00",
}
APART = 0.045
"""Least distance of two names at the ends of curves, as a fraction of the axis."""


def draw(runs: dict[str, list[dict[str, Any]]], about: dict[str, Any], path: Path) -> None:
    """Draw a panel for each class: the mean over seeds, and a band from lowest to highest."""
    from matplotlib.figure import Figure

    first = next(iter(runs.values()))
    classes = list(first[0]["marks"][0]["iou"])
    width = 4.6 * len(classes)
    figure = Figure(figsize=(width, 4.4), layout="constrained", dpi=150)
    panels = figure.subplots(1, len(classes), squeeze=False)[0]
    for panel, name in zip(panels, classes, strict=True):
        _draw_class(panel, name, runs)
    panels[0].set_ylabel("IoU of the whole validation crop", fontsize=9)
    seeds = len(about["seeds"])
    figure.suptitle(
        f"{about['dataset']}: quality at equal wall time", x=0.01, ha="left", weight="bold"
    )
    mean = f"mean and range of {seeds} seeds; " if seeds > 1 else "one seed; "
    note = f"{mean}{about['conditions']}; {about['machine']}, {about['date']}"
    lines = textwrap.fill(note, int(19 * width))
    figure.supxlabel(lines, fontsize=6.5, color="#666666", x=0.01, ha="left")
    figure.savefig(path)


def _draw_class(panel: Any, name: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    ends = []
    for contestant, seeds in runs.items():
        times = []
        ious = []
        for seed in seeds:
            times.append([mark["seconds"] / 60 for mark in seed["marks"]])
            ious.append([mark["iou"][name] for mark in seed["marks"]])
        minutes = np.mean(times, axis=0)
        values = np.array(ious)
        colour = COLOURS[contestant]
        is_new = contestant == "new"
        panel.fill_between(
            minutes, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, lw=0
        )
        panel.plot(
            minutes,
            values.mean(axis=0),
            color=colour,
            lw=2.4 if is_new else 1.6,
            marker="o",
            ms=4.5 if is_new else 3.5,
            clip_on=False,
            zorder=3 if is_new else 2,
        )
        ends.append((float(values[:, -1].mean()), contestant))
    last = max(line.get_xdata()[-1] for line in panel.get_lines())
    panel.set_xlim(0, last)
    ticks = [mark["minutes"] for mark in next(iter(runs.values()))[0]["marks"]]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    _name_ends(panel, sorted(ends))
    panel.set_title(name, loc="left", fontsize=10)
    panel.set_xlabel("minutes of training", fontsize=9)
    panel.grid(axis="y", color="#E6E6E6", lw=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8, length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def _name_ends(panel: Any, ends: list[tuple[float, str]]) -> None:
    """Write names right of the ends of curves, moved apart if they would overlap."""
    low, high = panel.get_ylim()
    # an IoU of 0 is in the picture unless all are far above
    low = low if low > 0.5 else -0.02 * high
    panel.set_ylim(low, high)
    places = np.array([value for value, _ in ends])
    apart = APART * (high - low)
    for _ in range(200):
        overlaps = np.maximum(apart - np.diff(places), 0) / 2
        places[:-1] -= overlaps
        places[1:] += overlaps
    for place, (value, contestant) in zip(places, ends, strict=True):
        panel.annotate(
            f"{contestant} {value:.2f}",
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(7, 0),
            textcoords="offset points",
            color=COLOURS[contestant],
            fontsize=8.5,
            va="center",
            weight="bold" if contestant == "new" else "normal",
            annotation_clip=False,
        )

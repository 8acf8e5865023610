"""Pictures of how runs learnt: training loss, validation loss and a metric over iterations."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from common.files import replacing
from common.runs.history import METRICS
from common.runs.reading import Reading
from common.runs.sides import Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = 20
"""Most sides in a picture: more colours cannot be told apart."""

POINTS = 250
"""Most points of a curve: longer ones are drawn as means over neighbouring epochs."""

NAME_WIDTH = 70
"""Longest name in the legend, in letters; the legend has two columns."""


def curves(sides: Sequence[Side], metric: str, ink: str = "#222222") -> Figure:
    """Draw the best CURVES sides, a colour a side, with a dot at each run's best epoch.

    Args:
        sides: the best first.
        metric: of the validation; for any other, such as the score, best_metric is drawn.
        ink: colour of axes and text.
    """
    import matplotlib as mpl  # takes half a second

    sides = sides[:CURVES]
    metric = _drawn_metric(sides, metric)
    palette = mpl.colormaps["tab10" if len(sides) <= 10 else "tab20"]
    colours = [palette(number) for number in range(len(sides))]
    with mpl.rc_context(_style(ink)):
        return _draw(sides, metric, colours)


def _drawn_metric(sides: Sequence[Side], metric: str) -> str:
    if metric in METRICS:
        return metric
    for side in sides:
        for reading in side.members:
            if reading.best_metric != "loss":  # which has a panel of its own
                return reading.best_metric
    return "dice"


def _style(ink: str) -> Any:
    """Return settings of matplotlib."""
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(inked, ink),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
    }


def _draw(sides: Sequence[Side], metric: str, colours: Sequence[Any]) -> Figure:
    """Draw three panels, and the names of the sides in two columns below them."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    legend_rows = -(-len(sides) // 2)
    figure = Figure((12, 3.6 + 0.22 * legend_rows), layout="constrained")
    titles = {
        "train/loss": "training loss",
        "validation/loss": "validation loss",
        f"validation/{metric}": metric,
    }
    for panel, (column, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        _draw_panel(panel, sides, column, colours)
        panel.set(title=title, xlabel="iteration")
        panel.grid(alpha=0.25)
    handles = [Line2D([], [], color=colour) for colour in colours]
    names = [_legend_name(number, side.name) for number, side in enumerate(sides, 1)]
    figure.legend(handles, names, loc="outside lower left", ncols=2, frameon=False)
    return figure


def _legend_name(number: int, name: str) -> str:
    if len(name) > NAME_WIDTH:
        name = name[: NAME_WIDTH - 1] + "…"
    # matplotlib reads what stands between two dollars as mathematics
    return f"{number}  {name}".replace("$", r"\$")


def _draw_panel(panel: Axes, sides: Sequence[Side], column: str, colours: Sequence[Any]) -> None:
    """Draw the curves of one column of the history; losses on a logarithmic axis."""
    values = []
    for side, colour in zip(sides, colours, strict=True):
        for reading in side.members:
            curve = _curve(reading, column)
            marker = "." if len(curve) == 1 else ""
            panel.plot(curve.index, curve, color=colour, linewidth=1.2, marker=marker)
            values.append(curve.to_numpy())
            if reading.best is not None and column == f"validation/{reading.best_metric}":
                at = reading.best[_across(reading)]
                panel.plot(at, reading.best[column], "o", color=colour, markersize=4)
    everything = np.concatenate(values)
    if "loss" in column and len(everything) and everything.min() > 0:
        _logarithmic(panel, everything.min(), everything.max())


def _across(reading: Reading) -> str:
    """Return the column for the horizontal axis."""
    return "iteration" if "iteration" in reading.history else "epoch"


def _curve(reading: Reading, column: str) -> pd.Series:
    """Return the values of a column over iterations, at most POINTS of them."""
    if column not in reading.history:
        return pd.Series(dtype=float)
    table = reading.history[[_across(reading), column]].astype(float).dropna()
    if len(table) > POINTS:
        neighbours = np.arange(len(table)) * POINTS // len(table)
        table = table.groupby(neighbours).mean()
    return table.set_index(_across(reading))[column]


def _logarithmic(panel: Axes, lowest: float, highest: float) -> None:
    """Make the axis logarithmic, with readable ticks also over less than a decade."""
    from matplotlib import ticker

    panel.set_yscale("log")
    if highest > 8 * lowest:
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    else:
        panel.yaxis.set_major_locator(ticker.MaxNLocator(6))
    panel.yaxis.set_minor_locator(ticker.NullLocator())
    panel.yaxis.set_major_formatter("{x:g}")


def write_curves(path: str | Path, sides: Sequence[Side], metric: str) -> Path:
    """Write the picture of `curves` as PNG. Raises FileError if it cannot be written."""
    content = render(curves(sides, metric), "png")
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as the content of a "png" or "svg" file."""
    import matplotlib as mpl

    metadata = {}
    if kind == "svg":  # without the date, so that the same runs give the same file
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with (
        warnings.catch_warnings(),
        mpl.rc_context({"svg.fonttype": "none"}),
        io.BytesIO() as file,
    ):
        # a letter that the font does not have is drawn as a box, which says enough
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format=kind, dpi=130, transparent=kind == "svg", metadata=metadata)
        return file.getvalue()

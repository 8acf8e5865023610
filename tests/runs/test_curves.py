"""Curves are those of the history, a colour a side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex
from run_folders import make_run

from common.runs.choose import choose
from common.runs.curves import CURVES, POINTS, curves, render
from common.runs.reading import Reading, read
from common.runs.sides import as_sides


def read_all(root: Path) -> list[Reading]:
    return [read(run) for run in choose(["*"], root)]


def test_curves_are_those_of_the_history_in_a_colour_a_side_on_a_log_axis(tmp_path):
    for number in range(3):
        settings = {"random_seed": str(number), "learning_rate": str(number // 2)}
        make_run(tmp_path, f"x/m/run{number}", {"mito": 0.5}, settings)
    readings = read_all(tmp_path)
    figure = curves(as_sides(readings, group_seeds=True), "dice")
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["training loss", "validation loss", "dice"]
    assert [panel.get_yscale() for panel in figure.axes] == ["log", "log", "linear"]
    lines = figure.axes[0].lines
    colours = [to_hex(line.get_color()) for line in lines]
    assert len(lines) == 3
    assert colours[0] == colours[1] != colours[2]
    np.testing.assert_allclose(lines[0].get_ydata(), readings[0].history["train/loss"])
    np.testing.assert_allclose(lines[0].get_xdata(), [100, 200, 300])
    dots = [line for line in figure.axes[2].lines if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == [200, 200, 200]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["1  run*", "2  run2"]


def test_a_long_curve_is_drawn_as_means_and_the_best_runs_alone(tmp_path):
    for number in range(CURVES + 2):
        epochs = 1000 if number == 0 else 2
        make_run(tmp_path, f"x/m/_run{number}$^$", {"mito": 0.5}, epochs=epochs)
    figure = curves(as_sides(read_all(tmp_path)), "score")
    assert len(figure.legends[0].get_texts()) == CURVES
    (line,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    wanted = (1 / np.arange(1, 1001)).reshape(POINTS, -1).mean(1)
    np.testing.assert_allclose(line.get_ydata(), wanted)
    assert render(figure, "png").startswith(b"\x89PNG")

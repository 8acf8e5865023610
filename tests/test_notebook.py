"""The notebook runs, in a short mode and on a small phantom."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from common.files import REPOSITORY

nbformat = pytest.importorskip("nbformat")
NOTEBOOK = REPOSITORY / "docs" / "tutorials" / "phantom.ipynb"

# the picture is of crop 7, and the experiment names crops 1 to 10
SMALLER = (
    'write_phantom(output / "data")',
    'write_phantom(output / "data", 2, (112, 152, 152), crop_size=32)',
)


@pytest.mark.slow
def test_the_notebook_trains_and_scores(tmp_path, monkeypatch, capsys):
    """Its cells in their order, in this process, which has imported torch."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") for cell in cells), "commit it without outputs"
    program = "\n\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert SMALLER[0] in program
    monkeypatch.setenv("NOTEBOOK_STEPS", "2")
    monkeypatch.setenv("NOTEBOOK_OUTPUT", str(tmp_path))
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    try:
        exec(compile(program.replace(*SMALLER), NOTEBOOK.name, "exec"), {})
    finally:
        plt.close("all")
    said = capsys.readouterr().out
    assert "after 2 epochs" in said
    assert "overall score" in said
    assert len(shown) == 3
    assert (tmp_path / "results" / "seed42" / "scores.json").is_file()

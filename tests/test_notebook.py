"""The notebook runs, in a short mode and on a small phantom."""

from __future__ import annotations

import os

import pytest
from conftest import DEADLINE

from common.files import REPOSITORY

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

SMALLER = (
    'write_phantom(output / "data")',
    'write_phantom(output / "data", 2, (112, 152, 152), crop_size=32)',
)


@pytest.mark.slow
def test_the_notebook_trains_and_scores(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTEBOOK_STEPS", "2")
    monkeypatch.setenv("NOTEBOOK_OUTPUT", str(tmp_path))
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    notebook = nbformat.read(REPOSITORY / "docs" / "tutorials" / "phantom.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    for cell in notebook.cells:
        cell.source = cell.source.replace(*SMALLER)
    assert any(SMALLER[1] in cell.source for cell in notebook.cells)
    client = nbclient.NotebookClient(notebook, timeout=DEADLINE, kernel_name="python3")
    client.execute(cwd=str(tmp_path))
    said = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert "after 2 epochs" in said
    assert "overall score" in said
    assert (tmp_path / "results" / "seed42" / "scores.json").is_file()

"""The demo, on the tiny experiment instead of the phantom cell."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from PIL import Image

from common.data import ngff
from common.shell import demo


@pytest.fixture
def run(experiment, tmp_path, monkeypatch, capsys):
    """Runs the demo into a folder and gives its picture, the folder and what it printed."""
    tiny = experiment()

    def write_data(root):
        shutil.copytree(tiny.data, root, dirs_exist_ok=True)
        (root / "phantom").mkdir()
        (root / "phantom/datasplit.csv").touch()

    monkeypatch.setattr(demo, "EXPERIMENT", tiny.folder)
    monkeypatch.setattr(demo.phantom, "write_phantom", write_data)

    def go(minutes: float = 1.0):
        picture = demo.demo(tmp_path / "out", minutes)
        return picture, tmp_path / "out", capsys.readouterr().out

    return go


def test_it_goes_from_data_to_scores_and_a_picture(run):
    picture, out, said = run()
    assert picture == out / "demo.png"
    with Image.open(picture) as image:
        assert min(image.size) > 300
    [scores] = out.glob("results/**/*.json")
    assert f"{json.loads(scores.read_text())['overall_score']:.4f}" in said and str(picture) in said
    for kind in ("predictions", "processed"):
        [crop] = out.glob(f"{kind}/*/*/tiny.zarr/crop3")
        assert ngff.open_levels(crop / "mito")[0].shape.tolist() == [24, 24, 24]


def test_nothing_is_written_beside_the_experiment(run):
    run()
    assert not {path.name for path in demo.EXPERIMENT.iterdir()} & {
        "predictions",
        "processed",
        "results",
        "checkpoints",
        "logs",
        "cache",
    }


def test_started_again_it_shows_the_same_run(run):
    _, _, first = run()
    picture, _, second = run()
    assert picture and second == first


def test_an_interrupted_training_ends_it(run, monkeypatch):
    monkeypatch.setattr(
        demo.run, "train", lambda *words, **settings: SimpleNamespace(finished=False)
    )
    assert run()[0] is None

"""The demo, on the tiny experiment instead of the phantom cell."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from PIL import Image

from common.data.volumes import ngff
from common.errors import UserError
from common.files import REPOSITORY
from common.shell import demo


@pytest.fixture
def run(experiment, tmp_path, monkeypatch, capsys):
    """Runs the demo into a folder and gives its picture, the folder and what it printed."""
    tiny = experiment()

    def write_data(root):
        shutil.copytree(tiny.data, root, dirs_exist_ok=True)
        (root / "phantom").mkdir(exist_ok=True)
        shutil.copy(tiny.folder / "datasplit.csv", root / "phantom")

    monkeypatch.setattr(demo, "EXPERIMENT", tiny.folder)
    monkeypatch.setattr(demo, "write_data", write_data)

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
    score = json.loads(scores.read_text())["overall_score"]
    assert f"{score:.4f}" in said and str(picture) in said
    for kind in ("predictions", "processed"):
        [crop] = out.glob(f"{kind}/*/*/tiny.zarr/crop3")
        assert ngff.open_levels(crop / "mito")[0].shape.tolist() == [24, 24, 24]


def test_another_example_is_shown_under_its_name(run, experiment, tmp_path, capsys):
    run(0.1)
    other = experiment("other", epochs=5)
    picture = demo.demo(tmp_path / "out", 0, other.folder, ["epochs=1"])
    assert picture == tmp_path / "out" / "other.png" and picture.is_file()
    said = capsys.readouterr().err
    assert "done after epoch 1" in said
    assert said.strip().endswith("import-data RAW --dataset NAME --labels CLASS=FILE")
    with pytest.raises(UserError, match=r"nowhere: no such folder; write one of"):
        demo.demo(tmp_path / "out", 0, tmp_path / "nowhere")


def test_nothing_is_written_beside_the_experiment(run):
    run()
    written = {"predictions", "processed", "results", "checkpoints", "logs", "cache"}
    assert written.isdisjoint(path.name for path in demo.EXPERIMENT.iterdir())


def test_started_again_it_shows_the_same_run(run):
    _, _, first = run()
    picture, _, second = run()
    assert picture and second == first


def test_an_interrupted_training_ends_it(run, monkeypatch):
    def interrupted(*_, **__):
        return SimpleNamespace(finished=False)

    monkeypatch.setattr(demo.run, "train", interrupted)
    assert run()[0] is None


@pytest.mark.parametrize("missing", ["EXPERIMENT", "PHANTOM"])
def test_outside_of_the_repository_it_says_what_it_needs(tmp_path, monkeypatch, missing):
    monkeypatch.setattr(demo, missing, tmp_path / "nowhere")
    with pytest.raises(UserError, match="clone"):
        demo.demo(tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_an_older_phantom_is_written_anew(run):
    _, out, _ = run(0.1)
    assert demo.is_written(out / "data")
    (out / "data/phantom/datasplit.csv").write_text("fewer crops\n")
    assert not demo.is_written(out / "data")
    run(0.1)
    assert demo.is_written(out / "data")


def test_the_phantom_is_that_of_the_repository(tmp_path, monkeypatch):
    phantom = SimpleNamespace(write_phantom=lambda folder: (folder / "written").touch())
    monkeypatch.setattr(demo, "load_module", {REPOSITORY / "testing/phantom.py": phantom}.get)
    demo.write_data(tmp_path)
    assert (tmp_path / "written").is_file()


def test_what_is_wrong_with_an_experiment_is_told_before_data_are_written(experiment, tmp_path):
    broken = experiment("broken", text="def (")
    with pytest.raises(UserError, match="SyntaxError"):
        demo.demo(tmp_path / "out", 0, broken.folder)
    assert not (tmp_path / "out").exists()

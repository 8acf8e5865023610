"""What is known of a run, and where its folders are, also where they are not beside its logs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from run_folders import make_run

from common.errors import UserError
from common.runs.find import Run, find
from common.runs.history import record
from common.runs.reading import Reading, read, run_folder


def only(root: Path) -> Run:
    (run,) = find(root)
    return run


def reading(root: Path) -> Reading:
    return read(only(root))


def results(root: Path) -> Path:
    """Where the results of the only run below a folder are looked for."""
    run = only(root)
    return run_folder(run, record(run), "results_path")


def change_record(folder: Path, part: str, **values: str) -> None:
    content = json.loads((folder / "run.json").read_text())
    content[part] |= values
    (folder / "run.json").write_text(json.dumps(content))


def test_a_metric_of_the_classes_is_that_of_the_best_epoch(tmp_path):
    make_run(tmp_path, "a/a/one", {"mito": 0.5, "er": float("nan")})
    known = reading(tmp_path)
    assert known.best_epoch == 2
    assert known.per_class("dice") == {"mito": 0.5}
    assert known.per_class("iou") == {}


def test_a_run_whose_best_metric_is_the_loss_is_taken_where_that_is_lowest(tmp_path):
    folder = make_run(tmp_path, "a/a/one", {"mito": 0.5, "er": 0.6})
    change_record(folder, "result", best_metric="loss")
    known = reading(tmp_path)
    assert known.best_epoch == 3
    assert known.per_class("dice") == pytest.approx({"mito": 0.25, "er": 0.3})


def test_a_broken_file_of_scores_is_named(tmp_path):
    make_run(tmp_path, "x/m/one", {"mito": 0.5})
    (tmp_path / "x/results/m/one").mkdir(parents=True)
    (tmp_path / "x/results/m/one/scores.json").write_text("{")
    with pytest.raises(UserError, match=r"scores\.json"):
        reading(tmp_path)


# where the folders are


def test_folders_are_where_the_settings_say(experiment, tmp_path):
    tiny = experiment(results_path=str(tmp_path / "scratch/{model_name}-{run_name}"))
    tiny.train(epochs=1)
    assert results(tiny.folder) == tmp_path / "scratch/tiny_experiment-seed42"
    assert results(tiny.folder) == tiny.config().path("results_path")


def test_a_run_whose_logs_are_elsewhere_has_its_results_in_its_experiment(experiment, tmp_path):
    tiny = experiment(logs_save_path=str(tmp_path / "scratch/{run_name}"))
    tiny.train(epochs=1)
    assert results(tmp_path / "scratch") == tiny.config().path("results_path")


def test_a_run_that_was_moved_with_its_experiment_has_its_results_there(experiment, tmp_path):
    tiny = experiment(results_path="scored/{run_name}")
    tiny.train(epochs=1)
    shutil.move(tiny.folder, tmp_path / "moved")
    assert results(tmp_path / "moved") == tmp_path / "moved/scored/seed42"


def test_a_copied_run_has_the_results_of_the_copy(experiment, tmp_path):
    tiny = experiment(results_path="scored/{run_name}")
    tiny.train(epochs=1)
    shutil.copytree(tiny.folder, tmp_path / "copy")
    assert results(tmp_path / "copy") == tmp_path / "copy/scored/seed42"


def test_a_renamed_run_does_not_have_the_results_of_a_new_run_of_its_old_name(experiment):
    tiny = experiment()
    tiny.train(epochs=1)
    logs = tiny.config().path("logs_save_path")
    logs.rename(logs.with_name("baseline"))
    assert results(tiny.folder) == tiny.folder / "results/tiny_experiment/baseline"


def test_a_run_without_settings_has_its_results_beside_its_logs(tmp_path):
    make_run(tmp_path, "x/m/one", {"mito": 0.5}, record=False)
    assert results(tmp_path) == tmp_path / "x/results/m/one"

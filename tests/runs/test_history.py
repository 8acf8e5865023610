"""What a run says of itself is read from its files, and from its events where there are none."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from event_files import value, write

from common.errors import UserError
from common.runs import find, history
from common.train.recording.record import RunRecord, RunResult, add_epoch
from common.train.recording.tracking import Tracker


def only(root: Path) -> find.Run:
    (run,) = find.find(root)
    return run


def log_epochs(folder: Path, epochs: int, best_metric: str = "dice") -> None:
    """What common.train.run logs in two sessions, of `epochs` epochs of 40 iterations in all."""
    settings = {
        "learning_rate": "0.1",
        "best_metric": repr(best_metric),
        "note": "x|y",
        "extra_classes": "",
    }
    for begin in (0, epochs // 2):
        tracker = Tracker(folder, begin * 40)
        tracker.text("settings", settings, begin * 40)
        tracker.text("provenance", {"commit": "abc", "split_hash": "f00"}, begin * 40)
        for epoch in range(begin + 1, epochs + 1):
            log_epoch(folder, tracker, epoch)
        tracker.finish({}, {})
        time.sleep(0.01)


def log_epoch(folder: Path, tracker: Tracker, epoch: int) -> None:
    """Two points of training, a validation and the learning rate; and a row of history.csv."""
    losses = [epoch + 0.1, epoch + 0.3]
    for half, loss in enumerate(losses):
        trained = {
            "loss/train": loss,
            "grad_norm": loss / 2,
            "throughput/samples_per_s": 8.0 + half,
            "throughput/data_wait": 0.1,
        }
        tracker.scalars(trained, epoch * 40 - 20 + 20 * half)
    dice = -((epoch - 3) ** 2) / 100 + 0.9
    classes = {"dice/mito": dice, "dice/er": dice if epoch > 1 else np.nan}
    tracker.scalars({"loss/validation": 1 / epoch, "mean/dice": dice, **classes}, epoch * 40)
    tracker.scalars({"lr": 0.1 / epoch}, epoch * 40)
    row = {
        "epoch": epoch,
        "iteration": epoch * 40,
        "lr": 0.1 / epoch,
        "train/loss": np.mean(losses),
        "train/grad_norm": losses[1] / 2,
        "train/samples_per_s": 9.0,
        "train/data_wait": 0.1,
        "validation/loss": 1 / epoch,
        "validation/dice": dice,
        **classes,
    }
    add_epoch(folder, row)


def test_a_history_made_of_events_is_that_of_the_file(tmp_path):
    log_epochs(tmp_path / "exp/logs/m/s", 6)
    run = only(tmp_path)
    told = history.history(run)
    assert list(told.columns) == list(pd.read_csv(run.folder / "history.csv").columns)
    (run.folder / "history.csv").unlink()
    pd.testing.assert_frame_equal(history.history(run)[told.columns], told, rtol=1e-6)


def test_a_history_of_others_has_a_row_for_each_step_of_their_epochs(tmp_path):
    losses = [value("loss/train", step, step) for step in range(1, 41)]
    validated = [value("loss/validation", 0.5, 20), value("loss/validation", 0.4, 40)]
    write(tmp_path / "exp/tensorboard/m", losses + validated)
    assert history.history(only(tmp_path)).to_dict("list") == {
        "epoch": [1, 2],
        "iteration": [20, 40],
        "train/loss": [10.5, 30.5],
        "validation/loss": pytest.approx([0.5, 0.4]),
    }


def test_without_a_tag_of_epochs_each_step_is_a_row(tmp_path):
    write(tmp_path / "exp/tensorboard/m", [value("loss", step, step) for step in range(1, 41)])
    assert len(history.history(only(tmp_path))) == 40


def test_a_history_of_nothing_is_empty(tmp_path):
    write(tmp_path / "exp/logs/m/s", [])
    assert len(history.history(only(tmp_path))) == 0
    assert history.record(only(tmp_path)).result == RunResult()


@pytest.mark.parametrize("content", ["", 'a,b\n1,2,3\n4,5,6,"7'])
def test_a_broken_history_is_named(tmp_path, content):
    folder = tmp_path / "exp/logs/m/s"
    write(folder, [])
    (folder / "history.csv").write_text(content)
    with pytest.raises(UserError, match=r"history\.csv: cannot be read"):
        history.history(only(tmp_path))


def test_a_record_is_what_the_file_says(tmp_path):
    folder = tmp_path / "exp/logs/m/s"
    folder.mkdir(parents=True)
    content = {"experiment": "unet8_all", "result": {"epoch": 3, "best": None}}
    (folder / "run.json").write_text(json.dumps(content))
    assert history.record(only(tmp_path)) == RunRecord("unet8_all", result=RunResult(epoch=3))


@pytest.mark.parametrize(
    ("text", "problem"), [('{"a": ', "cannot be read"), ("[1]", "holds a list")]
)
def test_a_broken_record_is_named(tmp_path, text, problem):
    folder = tmp_path / "exp/logs/m/s"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(text)
    with pytest.raises(UserError, match=f"run.json: {problem}"):
        history.record(only(tmp_path))


@pytest.mark.parametrize(("metric", "best", "epoch"), [("dice", 0.9, 3), ("loss", 1 / 6, 6)])
def test_a_record_made_of_the_log_has_settings_and_result(tmp_path, metric, best, epoch):
    log_epochs(tmp_path / "exp/logs/m/s", 6, metric)
    record = history.record(only(tmp_path))
    assert (record.experiment, record.model_name, record.run_name) == ("exp", "m", "s")
    assert record.settings == {
        "learning_rate": "0.1",
        "best_metric": repr(metric),
        "note": "x/y",
        "extra_classes": "",
    }
    assert record.provenance == {"commit": "abc", "split_hash": "f00"}
    iterations = [(part.first_iteration, part.last_iteration) for part in record.sessions]
    assert iterations == [(0, 240), (120, 240)]
    result = record.result
    assert (result.epoch, result.iteration) == (6, 240)
    assert (result.best_metric, result.best_epoch) == (metric, epoch)
    assert result.best == pytest.approx(best)
    assert (result.samples_per_s, result.finished) == (9.0, None)


def test_hours_count_sessions_and_not_the_pauses_between_nor_two_writers_twice(tmp_path):
    folder = tmp_path / "exp/logs/m/s"
    spans = [(3600, 7200), (5400, 9000), (36000, 43200)]
    for number, (began, ended) in enumerate(spans):
        write(folder, [value("a", 1, 1, began), value("a", 1, 2, ended)], number)
    assert history.record(only(tmp_path)).result.hours == pytest.approx(1.5 + 2)


def write_record(folder: Path, settings: Mapping[str, str], **result) -> None:
    folder.mkdir(parents=True)
    content = {"settings": settings, "provenance": {"commit": "abc"}, "result": result}
    (folder / "run.json").write_text(json.dumps(content))


def test_the_table_has_results_origins_and_the_settings_that_differ(tmp_path):
    settings = {"learning_rate": "0.1", "epochs": "9", "old": "1"}
    write_record(tmp_path / "a/logs/m/s", settings, epoch=9, best=0.5)
    write_record(tmp_path / "b/logs/m/s", {"learning_rate": "0.2", "epochs": "9"}, epoch=8)
    write(tmp_path / "c/logs/m/s", [value("mean/dice", 0.25, 10)])
    table = history.table(find.find(tmp_path))
    assert list(table.columns) == [
        "run",
        *history.RESULT,
        *history.PROVENANCE,
        "settings/learning_rate",
    ]
    assert list(table.run) == ["a/m/s", "b/m/s", "c/m/s"]
    assert table["settings/learning_rate"].fillna("").tolist() == ["0.1", "0.2", ""]
    assert table.best.fillna(-1).tolist() == [0.5, -1, 0.25]
    assert table.epoch.tolist() == [9, 8, 1]
    assert table.commit.fillna("").tolist() == ["abc", "abc", ""]


def test_the_table_of_no_runs_has_its_columns():
    assert list(history.table([]).columns) == ["run", *history.RESULT, *history.PROVENANCE]


def test_a_copied_run_keeps_its_record_but_is_named_by_its_folder(tmp_path):
    write_record(tmp_path / "a/logs/m/s", {"learning_rate": "0.1"}, epoch=9)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert history.table(find.find(tmp_path)).run.tolist() == ["a/m/s", "b/m/s"]

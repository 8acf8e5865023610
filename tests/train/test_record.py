from __future__ import annotations

import csv
import errno
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from common.errors import FileError, UserError
from common.train.recording import checksums, record
from common.train.recording.record import Recorder, RunRecord, RunResult, Session

# history.csv


def rows(folder) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_history_has_a_row_for_each_epoch(tmp_path):
    for epoch in (1, 2):
        record.add_epoch(tmp_path, {"epoch": epoch, "train/loss": 1 / epoch})
    assert (tmp_path / "history.csv").read_text() == "epoch,train/loss\n1,1.0\n2,0.5\n"


def test_an_epoch_that_is_run_again_replaces_its_row_and_those_after_it(tmp_path):
    for epoch in (1, 2, 3):
        record.add_epoch(tmp_path, {"epoch": epoch, "loss": 0.5})
    record.add_epoch(tmp_path, {"epoch": 2, "loss": 0.25})
    assert rows(tmp_path) == [{"epoch": "1", "loss": "0.5"}, {"epoch": "2", "loss": "0.25"}]


def test_a_column_that_comes_later_is_empty_before(tmp_path):
    record.add_epoch(tmp_path, {"epoch": 1, "loss": 0.5, "old": 1})
    record.add_epoch(tmp_path, {"epoch": 2, "loss": 0.5, "dice": 0.75})
    assert rows(tmp_path) == [
        {"epoch": "1", "loss": "0.5", "dice": "", "old": "1"},
        {"epoch": "2", "loss": "0.5", "dice": "0.75", "old": ""},
    ]


def test_a_history_that_cannot_be_written_leaves_the_one_before_it(tmp_path, monkeypatch):
    record.add_epoch(tmp_path, {"epoch": 1, "loss": 0.5})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv.DictWriter, "writerows", full)
    with pytest.raises(FileError, match="No space left"):
        record.add_epoch(tmp_path, {"epoch": 2, "loss": 0.25})
    assert rows(tmp_path) == [{"epoch": "1", "loss": "0.5"}]
    assert not list(tmp_path.glob(".*"))


def test_a_history_is_read_back_with_nan_for_empty_cells(tmp_path):
    record.add_epoch(tmp_path, {"epoch": 1, "loss": 0.5})
    record.add_epoch(tmp_path, {"epoch": 2, "loss": 0.25, "dice/mito": 0.75})
    history = record.read_history(tmp_path)
    assert history["epoch"].tolist() == [1, 2]
    assert history["loss"].tolist() == [0.5, 0.25]
    assert np.isnan(history["dice/mito"][0])
    assert history["dice/mito"][1] == 0.75


def test_a_history_is_read_back_to_the_last_bit(tmp_path):
    values = np.random.default_rng(0).uniform(size=200).tolist()
    for epoch, value in enumerate(values, 1):
        record.add_epoch(tmp_path, {"epoch": epoch, "loss": value})
    assert record.read_history(tmp_path)["loss"].tolist() == values


@pytest.mark.parametrize("text", ["", 'a,b\n1,2,3\n4,5,6,"7'])
def test_a_damaged_history_is_named(tmp_path, text):
    (tmp_path / "history.csv").write_text(text)
    with pytest.raises(UserError, match=r"history\.csv: cannot be read"):
        record.read_history(tmp_path)


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda text: text[:-3], [1.0, 2.0]),
        (lambda text: text.replace("2,0.2", "2,x"), [1.0, 3.0]),
        (lambda text: "\x00" + text, []),
    ],
)
def test_training_goes_on_with_a_damaged_history_and_loses_none_of_it(
    tmp_path, capsys, damage, kept
):
    for epoch in (1, 2, 3):
        record.add_epoch(tmp_path, {"epoch": epoch, "loss": epoch / 10})
    path = tmp_path / "history.csv"
    damaged = damage(path.read_text())
    path.write_text(damaged)
    record.add_epoch(tmp_path, {"epoch": 4, "loss": 0.4})
    assert record.read_history(tmp_path)["epoch"].tolist() == [*kept, 4.0]
    assert (tmp_path / "history.csv.unreadable").read_text() == damaged
    assert "history.csv.unreadable now" in capsys.readouterr().err


def test_training_goes_on_with_a_damaged_record_and_keeps_it(tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"settings": ')
    record.Recorder(tmp_path, 5, record.RunRecord(run_name="seed1"))
    assert record.read_record(tmp_path).run_name == "seed1"
    assert (tmp_path / "run.json.unreadable").read_text() == '{"settings": '
    assert "run.json.unreadable now" in capsys.readouterr().err


def test_no_advice_about_a_damaged_file_loses_it(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="give it another name") as raised:
        record.read_record(tmp_path)
    assert "remove" not in str(raised.value)


def test_no_history_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        record.read_history(tmp_path)


# run.json


def test_the_file_has_the_form_that_it_always_had(tmp_path):
    written = RunRecord(
        experiment="unet8_all",
        model_name="unet8",
        run_name="seed42",
        settings={"epochs": "2"},
        provenance={"commit": "abc"},
        sessions=[Session("2026-11-20T10:00:00+00:00", None, 0, None)],
    )
    record.write_record(tmp_path, written)
    content = {
        "experiment": "unet8_all",
        "model_name": "unet8",
        "run_name": "seed42",
        "settings": {"epochs": "2"},
        "provenance": {"commit": "abc"},
        "sessions": [
            {
                "began": "2026-11-20T10:00:00+00:00",
                "ended": None,
                "first_iteration": 0,
                "last_iteration": None,
            }
        ],
        "result": {},
    }
    assert (tmp_path / "run.json").read_text() == json.dumps(content, indent=1) + "\n"
    written.result = RunResult(3, 9, "loss", 0.5, 2, True, 7.0, 1.5)
    written.mlflow_run = "f00"
    record.write_record(tmp_path, written)
    content["result"] = {
        "epoch": 3,
        "iteration": 9,
        "best_metric": "loss",
        "best": 0.5,
        "best_epoch": 2,
        "finished": True,
        "samples_per_s": 7.0,
        "hours": 1.5,
    }
    content["mlflow_run"] = "f00"
    assert (tmp_path / "run.json").read_text() == json.dumps(content, indent=1) + "\n"
    assert record.read_record(tmp_path) == written


def test_hours_are_those_of_all_sessions(tmp_path, monkeypatch):
    clock = iter([0.0, 3600.0, 7200.0, 50000.0, 51800.0])
    monkeypatch.setattr(record, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    first = Recorder(tmp_path, 0, RunRecord())
    first.result(epoch=1)
    first.result(epoch=2)
    Recorder(tmp_path, 10, RunRecord()).result(epoch=3)
    assert record.read_record(tmp_path).result.hours == 2.5


def test_a_record_that_begins_anew_forgets_and_one_that_goes_on_keeps(tmp_path):
    first = Recorder(tmp_path, 0, RunRecord(run_name="a", settings={"epochs": "2"}))
    first.result(epoch=1, best=float("nan"))
    first.end(10)
    second = Recorder(tmp_path, 10, RunRecord(run_name="a", settings={"epochs": "4"}))
    found = record.read_record(tmp_path)
    assert found.settings == {"epochs": "4"}
    assert (found.result.epoch, found.result.best) == (1, None)
    ended, running = found.sessions
    assert (ended.first_iteration, ended.last_iteration, ended.ended is None) == (0, 10, False)
    assert (running.first_iteration, running.last_iteration, running.ended) == (10, None, None)
    second.result(epoch=2)
    assert record.read_record(tmp_path).result.hours >= found.result.hours
    Recorder(tmp_path, 0, RunRecord(run_name="a"))
    anew = record.read_record(tmp_path)
    assert anew.result == RunResult()
    assert len(anew.sessions) == 1


def test_a_result_that_is_not_written_this_time_stays(tmp_path):
    recorder = Recorder(tmp_path, 0, RunRecord())
    recorder.result(epoch=1, samples_per_s=7.0)
    recorder.result(epoch=2)
    result = record.read_record(tmp_path).result
    assert (result.epoch, result.samples_per_s) == (2, 7.0)


def test_a_record_that_cannot_be_written_leaves_the_one_before_it(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path, 0, RunRecord(run_name="a"))
    before = (tmp_path / "run.json").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(FileError, match="No space left"):
        recorder.result(epoch=1)
    assert (tmp_path / "run.json").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checksums.json", "run.json"]


def test_a_run_without_a_record_has_none(tmp_path):
    assert record.read_record(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read"),
        ("[1]", "a list"),
        ('{"result": [1]}', r"result is \[1\]"),
        ('{"sessions": [1]}', "sessions"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, text, problem):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=rf"run\.json: .*{problem}"):
        record.read_record(tmp_path)


def test_a_record_that_may_not_be_read_is_not_damaged_and_stays(tmp_path, monkeypatch):
    """Else training would begin another one, and say that this one cannot be read by anyone."""

    def denied(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "run.json").write_text("{}")
    monkeypatch.setattr("pathlib.Path.read_text", denied)
    with pytest.raises(FileError, match=r"run\.json: cannot be read \(Permission denied\)"):
        Recorder(tmp_path, 3, RunRecord())
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_what_a_file_lacks_is_empty_and_what_is_unknown_is_left_out(tmp_path):
    (tmp_path / "run.json").write_text('{"result": {"epoch": 3, "new": 1}, "settings": null}')
    assert record.read_record(tmp_path) == RunRecord(result=RunResult(epoch=3))


# the best epoch


@pytest.mark.parametrize(
    ("value", "best", "metric", "wanted"),
    [
        (0.5, math.nan, "dice", True),
        (0.5, 0.4, "dice", True),
        (0.5, 0.4, "loss", False),
        (0.4, 0.5, "loss", True),
        (0.5, 0.5, "dice", False),
        (0.5, 0.5, "loss", False),
        (math.nan, math.nan, "dice", False),
        (math.nan, 0.5, "loss", False),
        (math.inf, 0.5, "dice", False),
    ],
)
def test_better_is_higher_or_a_lower_loss_and_never_equal_or_nan(value, best, metric, wanted):
    assert record.is_better(value, best, metric) is wanted


@pytest.mark.parametrize(("metric", "wanted"), [("dice", 3), ("loss", 2)])
def test_the_best_epoch_is_the_first_of_equal_ones(metric, wanted):
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 3, 4, 5],
            "validation/dice": [math.nan, 0.1, 0.7, 0.7, 0.3],
            "validation/loss": [0.5, 0.2, 0.2, 0.9, math.nan],
        }
    )
    assert record.best_epoch(history, metric) == wanted


def test_without_a_validation_there_is_no_best_epoch():
    history = pd.DataFrame({"epoch": [1, 2], "validation/dice": [math.nan, math.nan]})
    assert record.best_epoch(history, "dice") is None
    assert record.best_epoch(history, "loss") is None
    assert record.best_epoch(pd.DataFrame(), "loss") is None


@pytest.mark.parametrize("quoted", ["'loss'", "loss"])
def test_the_metric_is_the_results_or_that_of_the_settings(quoted):
    settings = {"best_metric": quoted}
    assert RunRecord(settings=settings).best_metric == "loss"
    assert RunRecord(settings=settings, result=RunResult(best_metric="iou")).best_metric == "iou"
    assert RunRecord().best_metric == ""


# A changed digit


@pytest.fixture(params=["history.csv", "run.json"])
def changed(request, tmp_path):
    """A file of a run that trained two epochs, one digit of which is another."""
    recorder = Recorder(tmp_path, 0, RunRecord(run_name="a"))
    for epoch in (1, 2):
        record.add_epoch(tmp_path, {"epoch": epoch, "validation/dice": 0.25})
        recorder.result(epoch=epoch, best=0.25)
    path = tmp_path / request.param
    path.write_text(path.read_text().replace("0.25", "0.95", 1))
    return path


def read_both(folder) -> None:
    record.read_history(folder)
    record.read_record(folder)


def test_a_changed_digit_is_told_by_whoever_reads_the_file(changed, capsys):
    read_both(changed.parent)
    assert capsys.readouterr().err.startswith(f"note: {changed}: no longer as training wrote it")


def test_a_run_that_goes_on_tells_it_before_it_writes_the_file_anew(changed, capsys):
    recorder = Recorder(changed.parent, 20, RunRecord(run_name="a"))
    record.add_epoch(changed.parent, {"epoch": 3, "validation/dice": 0.5})
    recorder.end(30)
    assert capsys.readouterr().err.count("no longer as training wrote it") == 1


def test_files_as_they_were_written_are_read_without_a_word(tmp_path, capsys):
    recorder = Recorder(tmp_path, 0, RunRecord(run_name="a"))
    for epoch in (1, 2, 1):
        record.add_epoch(tmp_path, {"epoch": epoch, "loss": 0.25})
        recorder.result(epoch=epoch)
        read_both(tmp_path)
    (tmp_path / checksums.CHECKSUMS).unlink()  # of an older version
    read_both(tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("times", [1, 2])
def test_a_write_that_does_not_come_to_its_end_makes_no_other_file_of_it(
    tmp_path, monkeypatch, capsys, times
):
    record.add_epoch(tmp_path, {"epoch": 1, "loss": 0.25})
    replace = Path.replace

    def killed(self, target):
        if target.name == "history.csv":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        for epoch in range(times):
            with pytest.raises(KeyboardInterrupt):
                record.add_epoch(tmp_path, {"epoch": 2 + epoch, "loss": 0.5})
    assert len(record.read_history(tmp_path)) == 1
    record.add_epoch(tmp_path, {"epoch": 2, "loss": 0.5})
    assert len(record.read_history(tmp_path)) == 2
    assert capsys.readouterr().err == ""

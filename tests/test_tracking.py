from __future__ import annotations

import csv

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from common.tracking import Tracker


@pytest.fixture
def track(tmp_path):
    """Makes trackers of one folder and closes them."""
    made = []

    def make(iteration: int = 0) -> Tracker:
        for tracker in made:
            tracker.writer.close()
        made.append(Tracker(tmp_path / "run", iteration))
        return made[-1]

    yield make
    for tracker in made:
        tracker.writer.close()


@pytest.fixture
def read(tmp_path):
    """Reads back what TensorBoard would show of the run, or of a run below it."""

    def load(name: str = "") -> EventAccumulator:
        return EventAccumulator(str(tmp_path / "run" / name)).Reload()

    return load


def scalars(log: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 4)) for event in log.Scalars(tag)]


def test_scalars_stand_under_their_tags(track, read):
    tracker = track()
    tracker.scalars({"loss/train": 0.5, "lr": 1e-4}, 20)
    tracker.scalars({"loss/train": 0.25}, 40)
    log = read()
    assert set(log.Tags()["scalars"]) == {"loss/train", "lr"}
    assert scalars(log, "loss/train") == [(20, 0.5), (40, 0.25)]


def test_scalars_are_on_disk_before_the_run_ends(track, read):
    tracker = track()
    tracker.scalars({"loss/train": 0.5}, 20)
    assert scalars(read(), "loss/train") == [(20, 0.5)]  # and tracker is not closed
    assert tracker.writer is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_left_out(track, read, value):
    track().scalars({"dice/mito": value, "dice/er": 0.5}, 20)
    assert read().Tags()["scalars"] == ["dice/er"]


def test_a_continued_run_replaces_what_was_logged_after_it(track, read):
    tracker = track()
    for step, loss in ((10, 0.9), (20, 0.8), (30, 0.7)):
        tracker.scalars({"loss/train": loss}, step)
    track(iteration=20).scalars({"loss/train": 0.6}, 30)
    assert scalars(read(), "loss/train") == [(10, 0.9), (20, 0.8), (30, 0.6)]


def test_a_run_that_starts_anew_replaces_what_was_logged_before(track, read):
    track().scalars({"loss/train": 0.9}, 10)
    track().scalars({"loss/train": 0.8}, 5)
    assert scalars(read(), "loss/train") == [(5, 0.8)]


def test_an_image_is_shown_in_its_size(track, read):
    tracker = track()
    tracker.image("raw, target, prediction/mito", np.zeros((12, 30, 3), np.uint8), 7)
    tracker.writer.flush()
    (image,) = read().Images("raw, target, prediction/mito")
    assert (image.step, image.height, image.width) == (7, 12, 30)


def test_text_is_a_table_of_names_and_values(track, read):
    tracker = track()
    tracker.text("settings", {"classes": "('mito', 'er')", "note": "a|b"})
    tracker.writer.flush()
    (event,) = read().Tensors("settings/text_summary")
    table = event.tensor_proto.string_val[0].decode()
    assert table.splitlines() == ["| name | value |", "|---|---|", "| classes | ('mito', 'er') |", "| note | a/b |"]


def test_the_end_of_a_run_is_on_the_hparams_page(track, read):
    track().finish({"learning_rate": 1e-3, "use_mutual_exclusion": True}, {"dice": 0.75, "loss": float("nan")})
    log = read("hparams")
    assert scalars(log, "final/dice") == [(0, 0.75)] and log.Tags()["scalars"] == ["final/dice"]
    content = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    given = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert (given["learning_rate"].number_value, given["use_mutual_exclusion"].number_value) == (1e-3, 1)


def test_a_run_without_metrics_has_no_place_there(track, tmp_path):
    track().finish({"learning_rate": 1e-3}, {"dice": float("nan")})
    assert not (tmp_path / "run" / "hparams").exists()


# history.csv


def rows(tmp_path) -> list[dict[str, str]]:
    with open(tmp_path / "run" / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_history_has_a_row_for_each_epoch(track, tmp_path):
    tracker = track()
    for epoch in (1, 2):
        tracker.history({"epoch": epoch, "train/loss": 1 / epoch})
    assert (tmp_path / "run" / "history.csv").read_text() == "epoch,train/loss\n1,1.0\n2,0.5\n"


def test_an_epoch_that_is_run_again_replaces_its_row_and_those_after_it(track, tmp_path):
    tracker = track()
    for epoch in (1, 2, 3):
        tracker.history({"epoch": epoch, "loss": 0.5})
    track(iteration=10).history({"epoch": 2, "loss": 0.25})
    assert rows(tmp_path) == [{"epoch": "1", "loss": "0.5"}, {"epoch": "2", "loss": "0.25"}]


def test_a_column_that_comes_later_is_empty_before(track, tmp_path):
    tracker = track()
    tracker.history({"epoch": 1, "loss": 0.5, "old": 1})
    tracker.history({"epoch": 2, "loss": 0.5, "dice": 0.75})
    assert rows(tmp_path) == [
        {"epoch": "1", "loss": "0.5", "dice": "", "old": "1"}, {"epoch": "2", "loss": "0.5", "dice": "0.75", "old": ""},
    ]  # fmt: skip


def test_a_history_that_cannot_be_written_leaves_the_one_before_it(track, tmp_path, monkeypatch):
    tracker = track()
    tracker.history({"epoch": 1, "loss": 0.5})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv.DictWriter, "writerows", full)
    with pytest.raises(OSError, match="No space left"):
        tracker.history({"epoch": 2, "loss": 0.25})
    assert rows(tmp_path) == [{"epoch": "1", "loss": "0.5"}]
    assert not list((tmp_path / "run").glob(".*"))


def test_a_training_run_logs_curves_figures_and_settings(experiment):
    tiny = experiment(epochs=1, iterations_per_epoch=20, batch_size=1)
    tiny.train()
    log = EventAccumulator(str(tiny.folder / "logs/tiny_experiment/seed42")).Reload()
    wanted = {"loss/train", "loss/validation", "mean/dice", "dice/mito", "iou/er", "lr", "grad_norm"}
    assert wanted | {"throughput/samples_per_s", "throughput/data_wait"} <= set(log.Tags()["scalars"])
    assert "raw, target, prediction/mito" in log.Tags()["images"]
    assert {"settings/text_summary", "provenance/text_summary"} <= set(log.Tags()["tensors"])

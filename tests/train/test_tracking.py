from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from common.train.record import read_history, read_record
from common.train.tracking import Tracker


@pytest.fixture
def track(tmp_path):
    """Makes trackers of one folder and closes them."""
    made = []

    def make(iteration: int = 0) -> Tracker:
        for tracker in made:
            tracker.finish({}, {})
            time.sleep(1 - time.time() % 1)  # event files are told apart by their second
        made.append(Tracker(tmp_path / "run", iteration))
        return made[-1]

    yield make
    for tracker in made:
        tracker.finish({}, {})


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
    assert tracker.sinks


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
    tracker.finish({}, {})
    (image,) = read().Images("raw, target, prediction/mito")
    assert (image.step, image.height, image.width) == (7, 12, 30)


def test_text_is_a_table_of_names_and_values(track, read):
    tracker = track()
    tracker.text("settings", {"classes": "('mito', 'er')", "note": "a|b"})
    tracker.finish({}, {})
    (event,) = read().Tensors("settings/text_summary")
    table = event.tensor_proto.string_val[0].decode()
    assert table.splitlines() == [
        "| name | value |",
        "|---|---|",
        "| classes | ('mito', 'er') |",
        "| note | a/b |",
    ]


def test_the_end_of_a_run_is_on_the_hparams_page(track, read):
    track().finish(
        {"learning_rate": 1e-3, "use_mutual_exclusion": True}, {"dice": 0.75, "loss": float("nan")}
    )
    log = read("hparams")
    assert scalars(log, "final/dice") == [(0, 0.75)] and log.Tags()["scalars"] == ["final/dice"]
    content = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    given = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert (given["learning_rate"].number_value, given["use_mutual_exclusion"].number_value) == (
        1e-3,
        1,
    )


def test_a_run_without_metrics_has_no_place_there(track, tmp_path):
    track().finish({"learning_rate": 1e-3}, {"dice": float("nan")})
    assert not (tmp_path / "run" / "hparams").exists()


def test_a_training_run_logs_curves_figures_and_settings(experiment):
    tiny = experiment(epochs=1, iterations_per_epoch=20, batch_size=1)
    tiny.train()
    log = EventAccumulator(str(tiny.folder / "logs/tiny_experiment/seed42")).Reload()
    wanted = {
        "loss/train",
        "loss/validation",
        "mean/dice",
        "dice/mito",
        "iou/er",
        "lr",
        "grad_norm",
    }
    assert wanted | {"throughput/samples_per_s", "throughput/data_wait"} <= set(
        log.Tags()["scalars"]
    )
    assert "raw, target, prediction/mito" in log.Tags()["images"]
    assert {"settings/text_summary", "provenance/text_summary"} <= set(log.Tags()["tensors"])


# MLflow

of_mlflow = pytest.mark.filterwarnings("ignore")  # it warns of what it does itself


def test_without_mlflow_one_sentence_says_what_to_install(experiment, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    tiny = experiment(trackers=("tensorboard", "mlflow"))
    with pytest.raises(ValueError, match="pip install mlflow, or leave it out of trackers"):
        tiny.train()


def test_a_tracker_that_there_is_not_is_refused(experiment):
    with pytest.raises(ValueError, match="'tensorboard' and 'mlflow'"):
        experiment(trackers=("wandb",)).config()


@of_mlflow
def test_without_tensorboard_there_is_a_history_and_no_events(experiment):
    pytest.importorskip("mlflow")
    tiny = experiment(trackers=("mlflow",), epochs=1)
    logs = tiny.train().logs
    assert sorted(path.name for path in logs.iterdir()) == ["history.csv", "run.json"]


@pytest.fixture
def store():
    """Reads the MLflow store of an experiment back through its own API."""
    mlflow = pytest.importorskip("mlflow")

    def runs(tiny, uri: str = ""):
        client = mlflow.MlflowClient(tracking_uri=uri or f"sqlite:///{tiny.folder}/logs/mlflow.db")
        (of,) = [one for one in client.search_experiments() if one.name == "tiny_experiment"]
        return client, client.search_runs([of.experiment_id], order_by=["attributes.start_time"])

    return runs


@of_mlflow
def test_mlflow_has_what_history_has_the_settings_the_commit_and_the_files(experiment, store):
    tiny = experiment(trackers=("tensorboard", "mlflow"), epochs=2)
    result = tiny.train()
    client, (run,) = store(tiny)
    assert (run.info.run_name, run.info.status) == ("seed42", "FINISHED")
    history = read_history(result.logs)
    found = {
        (metric.step, metric.value)
        for metric in client.get_metric_history(run.info.run_id, "dice/mito")
    }
    assert found == set(zip(history["iteration"], history["dice/mito"], strict=True))
    assert run.data.metrics["final/dice"] == result.best_metric
    assert run.data.params == {name: text or "" for name, text in tiny.config().record().items()}
    record = read_record(result.logs)
    assert run.data.tags["mlflow.source.git.commit"] == record.provenance["commit"]
    assert record.mlflow_run == run.info.run_id
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {
        "best.pt",
        "datasplit.csv",
        "settings.json",
        "provenance.json",
        "figures",
        "experiment",
    }
    kept = tiny.folder / "logs/mlflow" / run.info.run_id / "artifacts"
    assert (kept / "best.pt").read_bytes() == result.checkpoint.read_bytes()
    assert {path.name for path in (kept / "figures").iterdir()} == {"mito.png", "er.png", "nuc.png"}
    assert (kept / "experiment/model.py.txt").read_text() == (tiny.folder / "model.py").read_text()


@of_mlflow
def test_a_continued_run_goes_on_in_the_same_mlflow_run(experiment, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/elsewhere/store.db"
    tiny = experiment(trackers=("mlflow",), epochs=4, mlflow_uri=uri)
    tiny.train(training_time_limit=1e-6)
    tiny.train(epochs=3)
    client, (run,) = store(tiny, uri)
    steps = [
        metric.step for metric in client.get_metric_history(run.info.run_id, "loss/validation")
    ]
    assert steps == [3, 6, 9] and run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "4"  # a store keeps the first
    tiny.train(run_name="other", epochs=1)
    assert len(store(tiny, uri)[1]) == 2
    assert not (tmp_path / "mlruns").exists() and (tmp_path / "elsewhere/store").is_dir()


@of_mlflow
def test_a_failed_run_is_failed_in_mlflow(experiment, store):
    tiny = experiment(trackers=("mlflow",), epochs=5, learning_rate=1e30, weight_decay=0.9)
    with pytest.raises(FloatingPointError):
        tiny.train()
    assert store(tiny)[1][0].info.status == "FAILED"


@of_mlflow
def test_the_trials_of_a_search_are_nested_in_one_run(experiment, store):
    pytest.importorskip("optuna")
    from common.train.search import search

    tiny = experiment(trackers=("mlflow",), epochs=1)
    tiny.write(
        "search_space.py",
        "from common.train.search import choice\nlearning_rate = choice(0.01, 0.02)",
    )
    search(tiny.folder, 1, data=tiny.data)
    search(tiny.folder, 2, data=tiny.data)
    _, runs = store(tiny)
    (parent,) = [run for run in runs if run.info.run_name == "search"]
    nested = {
        run.info.run_name: run.data.tags.get("mlflow.parentRunId")
        for run in runs
        if run is not parent
    }
    assert nested == {"trial-0001": parent.info.run_id, "trial-0002": parent.info.run_id}
    assert parent.data.metrics["final/dice"] == max(
        run.data.metrics["final/dice"] for run in runs if run is not parent
    )

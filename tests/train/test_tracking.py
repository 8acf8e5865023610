from __future__ import annotations

import inspect
import json
import sys
import textwrap
import time
import types

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from common import provenance
from common.errors import UserError
from common.train import progress
from common.train.recording.record import read_history, read_record
from common.train.recording.tracking import Sink, Tracker
from common.train.several.each_class import train_each_class


@pytest.fixture
def track(tmp_path):
    """Makes trackers of one folder and closes them."""
    trackers = []

    def make(iteration: int = 0) -> Tracker:
        for tracker in trackers:
            tracker.finish({}, {})
            time.sleep(1 - time.time() % 1)  # event files are told apart by their second
        trackers.append(Tracker(tmp_path / "run", iteration))
        return trackers[-1]

    yield make
    for tracker in trackers:
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


def test_the_end_of_a_run_is_on_the_hparams_page_and_no_second_run(track, read, tmp_path):
    settings = {"learning_rate": 1e-3, "use_mutual_exclusion": True}
    track().finish(settings, {"dice": 0.75, "loss": float("nan")})
    assert not [path for path in (tmp_path / "run").iterdir() if path.is_dir()]
    log = read()
    assert scalars(log, "final/dice") == [(0, 0.75)]
    assert log.Tags()["scalars"] == ["final/dice"]
    content = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    given = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert given["learning_rate"].number_value == 1e-3
    assert given["use_mutual_exclusion"].number_value == 1


def test_a_run_has_no_list_of_columns_which_would_be_that_of_all_runs(track, read):
    track().finish({"learning_rate": 1e-3}, {"dice": 0.5})
    assert "_hparams_/experiment" not in read().PluginTagToContent("hparams")


def test_a_run_without_metrics_has_no_place_there(track, read):
    track().finish({"learning_rate": 1e-3}, {"dice": float("nan")})
    with pytest.raises(KeyError):
        read().PluginTagToContent("hparams")


def test_what_blue_means_is_said_once(track, read):
    tracker = track()
    for step in (1, 2):
        tracker.image("raw, target, prediction/mito", np.zeros((2, 2, 3), np.uint8), step)
    tracker.finish({}, {})
    (event,) = read().Tensors("raw, target, prediction/text_summary")
    assert b"blue where nobody knows" in event.tensor_proto.string_val[0]


def test_all_settings_but_places_are_on_the_hparams_page(experiment):
    tiny = experiment(weight_decay=0.5, use_mutual_exclusion=False)
    given = progress.hparams(tiny.config())
    assert (given["weight_decay"], given["use_mutual_exclusion"]) == (0.5, False)
    assert given["classes"] == "('mito', 'er', 'nuc')"
    assert not {"run_name", "data_path", "model_save_path"} & set(given)


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
    throughput = {"throughput/samples_per_s", "throughput/data_wait"}
    assert wanted | throughput <= set(log.Tags()["scalars"])
    assert figure("mito") in log.Tags()["images"]
    assert {"settings/text_summary", "provenance/text_summary"} <= set(log.Tags()["tensors"])


# a tracker of one's own

RECORDER = """
    import json


    class Recorder:
        def __init__(self, folder, run_name, settings):
            self.file = (folder / "calls.txt").open("a")
            self.write("begin", run_name, settings["learning_rate"])

        def write(self, *words):
            self.file.write(json.dumps(words) + "\\n")

        def scalars(self, values, step):
            self.write("scalars", sorted(values), step)

        def image(self, tag, image, step):
            self.write("image", tag, list(image.shape), str(image.dtype), step)

        def text(self, tag, values, step):
            self.write("text", tag, step)

        def finish(self, status, settings, metrics, files):
            self.write("finish", status, sorted(metrics), [file.name for file in files])
            self.file.close()


    class Half:
        def __init__(self, folder, run_name, settings):
            pass

        def scalars(self, values, step):
            pass

        text = scalars


    class EndsOtherwise(Half):
        def image(self, tag, image, step):
            pass

        def text(self, tag, values, step):
            pass

        def finish(self, status):
            pass


    def takes_too_few(folder):
        return None


    def gives_nothing(folder, run_name, settings):
        pass
    """


@pytest.fixture
def own(experiment):
    """Makes experiments with these trackers out of a file of their own."""

    def make(trackers: str, **settings):
        text = f"from . import recorder\n\ntrackers = ({trackers},)"
        return experiment(files={"recorder.py": RECORDER}, text=text, **settings)

    return make


def calls_of(logs) -> list:
    return [json.loads(line) for line in (logs / "calls.txt").read_text().splitlines()]


def test_a_tracker_of_ones_own_is_called_for_all_that_a_run_logs(own):
    result = own("'tensorboard', recorder.Recorder", epochs=1).train()
    calls = calls_of(result.logs)
    assert calls[0] == ["begin", "seed42", "0.01"]
    assert ["text", "settings", 0] in calls
    assert ["text", "provenance", 0] in calls
    assert ["scalars", ["loss/validation"], 3] in calls
    (shape,) = [call[2] for call in calls if call[:2] == ["image", figure("mito")]]
    assert shape[2] == 3
    finish, status, metrics, files = calls[-1]
    assert (finish, status, metrics) == ("finish", "FINISHED", ["dice", "loss"])
    assert {"best.pt", "datasplit.csv", "train_config.py"} <= set(files)
    assert list(result.logs.glob("events*"))


def figure(name: str) -> str:
    return f"raw, target, prediction/{name}"


def test_a_tracker_of_ones_own_may_be_the_only_one_and_is_asked_again_when_a_run_goes_on(own):
    tiny = own("recorder.Recorder", epochs=2)
    tiny.train(training_time_limit=1e-6)
    calls = calls_of(tiny.train().logs)
    assert [call[0] for call in calls].count("begin") == 2
    assert [call[2] for call in calls if call[:2] == ["scalars", ["loss/validation"]]] == [3, 6]
    assert not list((tiny.folder / "logs/tiny_experiment/seed42").glob("events*"))


def test_a_run_that_fails_tells_it(own):
    tiny = own("recorder.Recorder", epochs=5, learning_rate=1e30, weight_decay=0.9)
    with pytest.raises(FloatingPointError):
        tiny.train()
    logs = tiny.folder / "logs/tiny_experiment/seed42"
    assert calls_of(logs)[-1][:2] == ["finish", "FAILED"]


@pytest.mark.parametrize(
    ("trackers", "problem"),
    [
        ("'wandb'", "'tensorboard', 'mlflow'"),
        ("3", "names"),
        ("recorder.takes_too_few", r"recorder\.takes_too_few.*folder, run_name, settings"),
        ("recorder.Half", "Half without image, finish"),
        ("recorder.gives_nothing", "NoneType without scalars"),
        ("recorder.EndsOtherwise", r"EndsOtherwise\.finish: too many positional .*write it as"),
    ],
)
def test_a_tracker_that_cannot_be_one_is_refused_before_training(own, trackers, problem):
    tiny = own(trackers)
    with pytest.raises(UserError, match=problem):
        tiny.train()
    assert not (tiny.folder / "checkpoints").exists()


class WandbStandIn(types.ModuleType):
    """What the documented example uses of the package wandb."""

    def __init__(self):
        super().__init__("wandb")
        self.calls = []
        self.config = self.summary = self

    def init(self, **options):
        self.calls.append(("init", options))
        return self

    def Image(self, image):
        return image.shape

    def log(self, values, step):
        self.calls.append(("log", values, step))

    def update(self, values, **options):
        self.calls.append(("update", values))

    def finish(self, exit_code):
        self.calls.append(("finish", exit_code))


def test_the_documented_example_logs_to_weights_and_biases(experiment, monkeypatch):
    wandb = WandbStandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    example = inspect.getdoc(Sink)
    module = example[example.index("    class Weights") : example.index("and in train_config.py")]
    configuration = example[example.index("    from .wandb_tracker") :]
    tiny = experiment(
        files={"wandb_tracker.py": textwrap.dedent(module)},
        text=textwrap.dedent(configuration),
        epochs=1,
    )
    result = tiny.train()
    name, options = wandb.calls[0]
    assert (name, options["project"], options["id"]) == ("init", "tiny_experiment", "seed42")
    assert options["config"] == tiny.config().record()
    assert ("log", {"loss/validation": result.scores.loss}, 3) in wandb.calls
    assert wandb.calls[-2][1]["final/dice"] == result.best_metric
    assert wandb.calls[-1] == ("finish", 0)


# MLflow

of_mlflow = pytest.mark.filterwarnings("ignore")  # it warns of what it does itself


def test_without_mlflow_one_sentence_says_what_to_install(experiment, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    tiny = experiment(trackers=("tensorboard", "mlflow"))
    # before crops are decoded, which may take long
    monkeypatch.setattr("common.data.samples.loaders.open_data", None)
    with pytest.raises(UserError, match="pip install mlflow"):
        tiny.train()


@of_mlflow
def test_without_tensorboard_there_is_a_history_and_no_events(experiment):
    pytest.importorskip("mlflow")
    tiny = experiment(trackers=("mlflow",), epochs=1)
    logs = tiny.train().logs
    names = sorted(path.name for path in logs.iterdir())
    assert names == ["checksums.json", "history.csv", "run.json"]


@pytest.fixture
def store():
    """Reads the MLflow store of an experiment back through its own API."""
    mlflow = pytest.importorskip("mlflow")

    def runs(tiny, uri: str = ""):
        client = mlflow.MlflowClient(tracking_uri=uri or f"sqlite:///{tiny.folder}/logs/mlflow.db")
        ids = {known.name: known.experiment_id for known in client.search_experiments()}
        found = client.search_runs([ids["tiny_experiment"]], order_by=["attributes.start_time"])
        return client, found

    return runs


@of_mlflow
def test_mlflow_has_what_history_has_the_settings_the_commit_and_the_files(experiment, store):
    tiny = experiment(trackers=("tensorboard", "mlflow"), epochs=2)
    result = tiny.train()
    client, (run,) = store(tiny)
    assert (run.info.run_name, run.info.status) == ("seed42", "FINISHED")
    history = read_history(result.logs)
    logged = client.get_metric_history(run.info.run_id, "dice/mito")
    written = zip(history["iteration"], history["dice/mito"], strict=True)
    assert {(metric.step, metric.value) for metric in logged} == set(written)
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
    pictures = {path.name for path in (kept / "figures").iterdir()}
    assert pictures == {"mito.png", "er.png", "nuc.png", "tiny crop3.png"}
    assert (kept / "experiment/model.py.txt").read_text() == (tiny.folder / "model.py").read_text()


@of_mlflow
def test_uncommitted_changes_and_the_run_that_others_are_nested_in_are_kept(
    experiment, store, monkeypatch
):
    monkeypatch.setattr(provenance, "uncommitted", lambda repository: b"diff --git a/a b/a\n")
    tiny = experiment(
        trackers=("mlflow",), epochs=1, iterations_per_epoch=1, classes=("mito", "er")
    )
    for _ in range(2):
        results = train_each_class(tiny.folder, data=tiny.data)
    assert (results[0].logs / "uncommitted.patch").read_text() == "diff --git a/a b/a\n"
    client, runs = store(tiny)
    parent, *nested = runs
    assert parent.info.run_name == "seed42 each class"
    assert [run.info.run_name for run in nested] == ["seed42-mito", "seed42-er"]
    for run in nested:
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert "uncommitted.patch" in files
    assert parent.data.metrics.keys() <= {"final/dice/mito", "final/dice/er"}


@of_mlflow
def test_a_continued_run_goes_on_in_the_same_mlflow_run(experiment, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/elsewhere/store.db"
    tiny = experiment(trackers=("mlflow",), epochs=4, mlflow_uri=uri)
    tiny.train(training_time_limit=1e-6)
    tiny.train(epochs=3)
    client, (run,) = store(tiny, uri)
    losses = client.get_metric_history(run.info.run_id, "loss/validation")
    assert [metric.step for metric in losses] == [3, 6, 9]
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "4"  # a store keeps the first
    tiny.train(run_name="other", epochs=1)
    assert len(store(tiny, uri)[1]) == 2
    assert not (tmp_path / "mlruns").exists()
    assert (tmp_path / "elsewhere/store").is_dir()


@of_mlflow
def test_a_failed_run_is_failed_in_mlflow(experiment, store):
    tiny = experiment(trackers=("mlflow",), epochs=5, learning_rate=1e30, weight_decay=0.9)
    with pytest.raises(FloatingPointError):
        tiny.train()
    assert store(tiny)[1][0].info.status == "FAILED"


@of_mlflow
def test_the_trials_of_a_search_are_nested_in_one_run(experiment, store):
    pytest.importorskip("optuna")
    from common.train.search.trials import search

    tiny = experiment(trackers=("mlflow",), epochs=1)
    tiny.write(
        "search_space.py",
        "from common.train.search import choice\nlearning_rate = choice(0.01, 0.02)",
    )
    search(tiny.folder, 1, data=tiny.data)
    search(tiny.folder, 2, data=tiny.data)
    _, runs = store(tiny)
    by_name = {run.info.run_name: run for run in runs}
    parent = by_name.pop("search")
    assert sorted(by_name) == ["trial-0001", "trial-0002"]
    for run in by_name.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    best = max(run.data.metrics["final/dice"] for run in by_name.values())
    assert parent.data.metrics["final/dice"] == best

"""What an epoch is judged by: running means, training metrics, validation that says nothing."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score

from common.data.volumes.ngff import open_levels, write_multiscale
from common.errors import UserError
from common.train import steps
from common.train.recording.record import best_epoch, read_history, read_record
from common.train.state import State

# values of a metric: tried once before training, then an epoch each
JUMPS = """
    import numpy

    _calls = []
    VALUES = [9, 0.2, 0.4, 0.9, 0.3, 0.5, 0.6]


    def odd(tp, fp, fn, tn):
        _calls.append(1)
        return numpy.full(3, float(VALUES[(len(_calls) - 1) % 7]))


    metrics = {"odd": odd}
    best_metric = "odd"
    """


def running_means(values: list[float], weight: float) -> list[float]:
    means = [values[0]]
    for value in values[1:]:
        means.append(weight * means[-1] + (1 - weight) * value)
    return means


def test_a_running_mean_decides(experiment):
    tiny = experiment(text=JUMPS, epochs=6, metric_smoothing=0.75)
    result = tiny.train()
    history = read_history(result.logs)
    expected = running_means([0.2, 0.4, 0.9, 0.3, 0.5, 0.6], 0.75)
    np.testing.assert_allclose(history["validation/odd_smoothed"], expected)
    np.testing.assert_allclose(history["validation/odd"], [0.2, 0.4, 0.9, 0.3, 0.5, 0.6])
    # by itself the third epoch is the best
    best = 1 + int(np.argmax(expected))
    assert best == 6
    assert best_epoch(history, "odd") == best
    assert torch.load(result.checkpoint, weights_only=True)["epoch"] == best
    assert read_record(result.logs).result.best == pytest.approx(expected[-1])


def test_a_running_mean_stops_early_and_steers_the_rate(experiment):
    """0.2 0.4 0.9 0.3: the mean still rises in the fourth epoch where its value falls."""
    text = JUMPS.replace("0.9, 0.3, 0.5", "0.9, 0.6, 0.1") + (
        "\n    from torch.optim.lr_scheduler import ReduceLROnPlateau as scheduler\n"
        "    scheduler_kwargs = {'patience': 0}\n"
    )
    tiny = experiment(text=text, epochs=6, early_stopping_patience=1, metric_smoothing=0.5)
    result = tiny.train()
    # means: 0.2, 0.3, 0.6, 0.6 (not better)
    assert result.epochs == 4
    rates = read_history(tiny.train(run_name="alone", metric_smoothing=0.0).logs)["lr"]
    assert len(rates) == 4 and rates.iloc[-1] == 0.01


def test_a_continued_running_mean_is_that_of_an_undisturbed_run(experiment):
    tiny = experiment(metric_smoothing=0.6)
    whole = tiny.train(epochs=4, run_name="whole")
    tiny.train(epochs=2, run_name="parts")
    parts = tiny.train(epochs=4, run_name="parts")
    column = "validation/dice_smoothed"
    assert read_history(whole.logs)[column].tolist() == read_history(parts.logs)[column].tolist()
    assert whole.best_metric == parts.best_metric
    with pytest.raises(UserError, match=r"metric_smoothing was 0\.6 and is 0\.5"):
        tiny.train(epochs=5, run_name="parts", metric_smoothing=0.5)


def test_a_weight_of_one_is_refused(experiment):
    with pytest.raises(UserError, match="metric_smoothing = 1 keeps the first value"):
        experiment(metric_smoothing=1.0).config()


def bare_state() -> State:
    model = torch.nn.Conv3d(1, 2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return State(model, optimizer, None, torch.amp.GradScaler("cpu", enabled=False))


def test_training_metrics_are_those_of_all_counted_batches():
    state = bare_state()
    assert math.isnan(state.training_metric("dice"))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 4, 4, 4, generator=generator)
    target = torch.randint(0, 2, logits.shape, generator=generator).float()
    target[0, 0] = torch.nan  # unknown
    for sample in range(3):
        part = slice(sample, sample + 1)
        state.count_voxels(logits[part], target[part])
    of_class: dict[str, list[float]] = {"dice": [], "iou": []}
    for channel in range(2):
        known = ~target[:, channel].isnan()
        wanted = target[:, channel][known].numpy() > 0
        given = logits[:, channel][known].numpy() > 0
        of_class["dice"].append(f1_score(wanted, given))
        of_class["iou"].append(jaccard_score(wanted, given))
    for name, values in of_class.items():
        assert state.training_metric(name) == pytest.approx(np.mean(values))


@pytest.mark.parametrize("every", [1, 3])
def test_training_metrics_of_an_interrupted_epoch_are_those_of_a_whole_one(
    experiment, monkeypatch, every
):
    """The counts of the steps before are in the checkpoint; steps are counted where they were."""
    from common.train import run
    from common.train.setup import prepare

    monkeypatch.setattr(steps, "LOG_EVERY", every)
    tiny = experiment(epochs=2, iterations_per_epoch=7)
    whole = read_history(tiny.train(run_name="whole").logs)
    setup, state = prepare(tiny.config(run_name="cut"))
    with run.progress.open_logs(setup.config, state, setup.about()) as logs:
        run.run_epochs(setup, state, logs, stopped=lambda: state.iteration >= 10, report=None)
    assert state.iteration == 10 and state.epoch == 1
    cut = read_history(tiny.train(run_name="cut").logs)
    for name in ("train/dice", "train/iou"):
        assert whole[name].notna().all()
        assert cut[name].tolist() == whole[name].tolist()


def test_training_metrics_stand_beside_those_of_validation(experiment):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from common.runs.find import find
    from common.runs.history import history

    tiny = experiment()
    result = tiny.train()
    log = EventAccumulator(str(result.logs)).Reload()
    logged = [event.value for event in log.Scalars("mean/dice/train")]
    stored = read_history(result.logs)["train/dice"].tolist()
    np.testing.assert_allclose(logged, stored, rtol=1e-6)
    # what is read from the events alone has them under the same names
    (result.logs / "history.csv").unlink()
    (found,) = find(tiny.folder)
    assert history(found)["train/dice"].tolist() == pytest.approx(stored, rel=1e-6)


def test_a_validation_without_a_positive_voxel_decides_nothing(experiment, capfd):
    tiny = experiment(
        text="from torch.optim.lr_scheduler import ReduceLROnPlateau as scheduler\n"
        "scheduler_kwargs = {'patience': 0}",
        epochs=3,
        early_stopping_patience=1,
    )
    empty = np.zeros((24, 24, 24), np.uint8)
    for name in ("mito", "er", "nuc"):
        group = tiny.crop("crop3") / name
        origin = open_levels(group)[0].translation
        shutil.rmtree(group)
        write_multiscale(group, empty, (8, 8, 8), origin)
    result = tiny.train()
    assert result.epochs == 3
    assert math.isnan(result.best_metric) and result.checkpoint.name == "latest.pt"
    assert read_history(result.logs)["lr"].tolist() == [0.01] * 3
    said = capfd.readouterr().err
    assert said.count("has dice nan: it and others like it decide nothing") == 1

"""Told to stop, a run saves and ends, wherever it is, and goes on as if it had not been stopped."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from common import stopping
from common.data.crops import opened as crops
from common.data.samples.batches import WorkerLost
from common.stopping import Stopped
from common.train import setup, steps, validation
from common.train.checkpointing import checkpoint, resume
from common.train.recording.tracking import Tracker

LATEST = "checkpoints/tiny_experiment/{run}/latest.pt"


def signalling(monkeypatch, owner, name: str) -> None:
    """Send this process SIGTERM at the first call of a function."""
    original = getattr(owner, name)
    calls = []

    def call(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


def weights(tiny, run: str) -> dict[str, torch.Tensor]:
    return torch.load(tiny.folder / LATEST.format(run=run), weights_only=True)["model"]


def is_same(tiny, a: str, b: str) -> bool:
    ours = weights(tiny, a)
    theirs = weights(tiny, b)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (steps, "step"),
        (validation, "validate"),
        (Tracker, "image"),
        (Tracker, "history"),
        (checkpoint, "save"),
    ],
    ids=["training", "validation", "figures", "logs", "saving"],
)
def test_it_is_saved_from_every_phase_and_equals_an_undisturbed_run(
    experiment, monkeypatch, owner, name
):
    tiny = experiment()
    tiny.train(run_name="whole")
    signalling(monkeypatch, owner, name)
    cut = tiny.train(run_name="cut")
    assert cut.requeue and not cut.finished and cut.epochs <= 1
    rest = tiny.train(run_name="cut")
    assert rest.finished and rest.epochs == 2
    assert is_same(tiny, "whole", "cut")


@pytest.mark.parametrize(
    ("owner", "name"),
    [(setup, "build_model"), (crops, "decode"), (resume, "resume")],
    ids=["start-up", "decoding", "resuming"],
)
def test_before_training_it_ends_at_once(experiment, monkeypatch, owner, name):
    tiny = experiment()
    signalling(monkeypatch, owner, name)
    with pytest.raises(Stopped):
        tiny.train()
    assert tiny.train().finished


def test_in_the_last_epoch_it_is_finished(experiment, monkeypatch):
    signalling(monkeypatch, Tracker, "history")
    assert experiment(epochs=1).train().finished


def test_a_worker_that_the_same_signal_ended_is_no_fault(experiment, monkeypatch):
    tiny = experiment()
    take_step = steps.step
    taken = []

    def step(*arguments, **options):
        taken.append(1)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            raise WorkerLost("a worker that reads samples ended (SIGTERM)")
        return take_step(*arguments, **options)

    monkeypatch.setattr(steps, "step", step)
    assert tiny.train().requeue
    saved = torch.load(tiny.folder / LATEST.format(run="seed42"), weights_only=True)
    assert saved["iteration"] == 2


def test_a_time_limit_saves_in_the_middle_of_an_epoch(experiment, run, monkeypatch):
    tiny = experiment(epochs=1, iterations_per_epoch=8)
    tiny.train(run_name="whole")
    take_step = steps.step
    taken = []

    def step(*arguments, **options):
        taken.append(1)
        return take_step(*arguments, **options)

    monkeypatch.setattr(steps, "step", step)
    monkeypatch.setattr(stopping, "seconds_left", lambda: 1e-9 if len(taken) == 5 else 1e6)
    words = ["train", tiny.folder, "--data", tiny.data, "--set", "run_name=cut"]
    code, _, said = run(*words, "--time-limit", "11h")
    assert code == 75 and "the time limit: stopping after this step" in said
    saved = torch.load(tiny.folder / LATEST.format(run="cut"), weights_only=True)
    assert (saved["iteration"], saved["epoch"]) == (5, 0)
    monkeypatch.setattr(stopping, "seconds_left", lambda: 1e6)
    assert run(*words, "--time-limit", "1d")[0] == 0
    assert is_same(tiny, "whole", "cut")


def test_a_time_limit_ends_what_comes_before_training(experiment, forked):
    """The network takes for ever to be built."""
    text = """
        def build_model(classes):
            import time

            while True:
                time.sleep(1)
        """
    tiny = experiment(text=text)
    code, _, said = forked("train", tiny.folder, "--data", tiny.data, "--time-limit", "1s").ended()
    assert code == 75
    assert "stopped by the time limit; the same command goes on" in said


@pytest.mark.parametrize("text", ["90", "11:30", "soon", "0h"])
def test_what_is_no_time_limit(run, text):
    code, _, said = run("train", "x", "--time-limit", text)
    assert code == 2 and "--time-limit" in said and "30m" in said


def test_check_and_a_time_limit_do_not_go_together(run):
    code, _, said = run("train", "unet8_all", "--check", "--time-limit", "1h")
    assert code == 2
    assert "leave --seeds, --submit and --time-limit out" in said

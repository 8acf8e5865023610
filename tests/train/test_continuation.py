"""A run that is stopped or killed anywhere, and goes on, ends as one that was not disturbed."""

from __future__ import annotations

import math
import random
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch

from common import runtime
from common.runs.find import Run
from common.train import run as run_module
from common.train import steps
from common.train.record import read_history, read_record

MODEL = """
    from torch import nn


    def build_model(classes):
        return nn.Sequential(
            nn.Conv3d(1, 4, 3),
            nn.BatchNorm3d(4),
            nn.Dropout(0.3),
            nn.Conv3d(4, 4, 3),
            nn.ReLU(),
            nn.Conv3d(4, len(classes), 1),
        )
    """
"""Draws random numbers in every step, and counts in buffers."""

SCHEDULE = """
    import torch

    scheduler = torch.optim.lr_scheduler.StepLR
    scheduler_kwargs = {"step_size": 1}
    """

TIMES = ("samples_per_s", "data_wait")
"""Ends of names of what is measured by a clock."""


@pytest.fixture
def tiny(experiment, monkeypatch):
    """Two epochs of five steps; a training loss is logged at every second."""
    monkeypatch.setattr(steps, "LOG_EVERY", 2)
    return experiment(
        files={"model.py": MODEL},
        text=SCHEDULE,
        iterations_per_epoch=5,
        ema_decay=0.9,
        noise_std=0.05,
    )


def is_equal(one, other) -> bool:
    """Whether two contents of checkpoints are the same, to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=True)
        return len(one) == len(other) and all(is_equal(*pair) for pair in pairs)
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return one == other


def state_of(tiny, run: str, which: str = "latest") -> dict:
    """A checkpoint, without what names the run, its code and its versions."""
    path = tiny.config(run_name=run).path("model_save_path") / f"{which}.pt"
    saved = torch.load(path, weights_only=True)
    for name in ("settings", "provenance"):
        del saved[name]
    return saved


def without_times(table: pd.DataFrame) -> pd.DataFrame:
    return table[[name for name in table if not name.endswith(TIMES)]]


def events_of(tiny, run: str) -> pd.DataFrame:
    """Scalars as a reader sees them: what was logged again is there once."""
    from common.runs import events

    folder = tiny.config(run_name=run).path("logs_save_path")
    found = Run(tiny.folder, folder, folder, tuple(sorted(folder.glob("events*"))))
    log = events.scalars(found)[["tag", "step", "value"]]
    log = log[~log["tag"].str.endswith(TIMES)]
    return log.sort_values(["tag", "step"], ignore_index=True)


def assert_equal_ends(tiny, run: str, undisturbed: str = "undisturbed") -> None:
    for which in ("latest", "best"):
        one = state_of(tiny, run, which)
        other = state_of(tiny, undisturbed, which)
        differing = [name for name in other if not is_equal(one[name], other[name])]
        assert not differing, which
    folders = [tiny.config(run_name=name).path("logs_save_path") for name in (run, undisturbed)]
    one, other = (without_times(read_history(folder)) for folder in folders)
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    pd.testing.assert_frame_equal(
        events_of(tiny, run), events_of(tiny, undisturbed), check_exact=True
    )
    one, other = (read_record(folder).result for folder in folders)
    for name in ("epoch", "iteration", "best", "best_epoch", "finished", "validation_blocks"):
        assert getattr(one, name) == getattr(other, name), name


def stopping_when(is_time):
    """Stands in for `runtime.interruptible`: the run is told to stop once is_time() is true."""

    @contextmanager
    def interruptible():
        yield is_time

    return interruptible


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_with_dropout_that_is_stopped_in_an_epoch_goes_on_as_if_it_was_not(
    tiny, monkeypatch, num_workers
):
    """After steps 3, 4 and 8, of which the first two lie between two logged losses."""
    tiny.train(run_name="undisturbed")
    taken = []
    take_step = steps.step

    def step(*arguments, **options):
        taken.append(1)
        return take_step(*arguments, **options)

    monkeypatch.setattr(steps, "step", step)
    for last in (3, 4, 8):
        with monkeypatch.context() as patch:
            patch.setattr(
                run_module, "interruptible", stopping_when(lambda last=last: len(taken) >= last)
            )
            assert not tiny.train(run_name="stopped", num_workers=num_workers).finished
        assert state_of(tiny, "stopped")["iteration"] == last
    assert tiny.train(run_name="stopped", num_workers=num_workers).finished
    assert len(taken) == 10
    assert_equal_ends(tiny, "stopped")


def test_a_run_that_is_stopped_in_its_validation_goes_on_as_if_it_was_not(tiny, monkeypatch):
    """Its loss draws random numbers, also of what was validated before the stop."""
    tiny.add(
        """
        from common.train.losses import weighted_bce


        def criterion(logits, target, pos_weight):
            torch.rand(3)
            return weighted_bce(logits, target, pos_weight)
        """
    )
    tiny.train(run_name="undisturbed", batch_size=1)
    validated = []
    count = steps.count

    def counting(*arguments):
        validated.append(1)
        return count(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "count", counting)
        # three of training, the fourth is the first block of the validation
        patch.setattr(run_module, "interruptible", stopping_when(lambda: len(validated) == 4))
        assert not tiny.train(run_name="stopped", batch_size=1).finished
    saved = state_of(tiny, "stopped")
    assert (saved["epoch"], saved["iteration"]) == (0, 5)
    assert tiny.train(run_name="stopped", batch_size=1).finished
    assert_equal_ends(tiny, "stopped")


def test_all_global_generators_are_restored():
    def draw():
        return [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.gauss(0, 1)]  # noqa: NPY002

    random.gauss(0, 1)  # every second number is kept back
    before = runtime.random_state()
    first = draw()
    assert draw() != first
    runtime.restore_random_state(before)
    assert draw() == first


def test_a_random_state_of_torch_alone_is_restored():
    """As earlier versions saved it."""
    before = {"rng": torch.get_rng_state(), "cuda_rng": None}
    first = torch.rand(3)
    runtime.restore_random_state(before)
    assert torch.equal(torch.rand(3), first)

"""Several processes train one run: what they come to is what one comes to."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from common.train import run as run_module
from common.train import steps
from common.train.record import read_history, read_record

NORMED = """
    from torch import nn


    def build_model(classes):
        return nn.Sequential(
            nn.Conv3d(1, 6, 3, bias=False),
            nn.BatchNorm3d(6),
            nn.LeakyReLU(),
            nn.Conv3d(6, 6, 3),
            nn.LeakyReLU(),
            nn.Conv3d(6, len(classes), 1),
        )
    """

DEEP = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.body = nn.Sequential(nn.Conv3d(1, 4, 5), nn.ReLU())
            self.fine = nn.Conv3d(4, classes, 1)
            self.coarse = nn.Conv3d(4, classes, 1)
            self.unused = nn.Conv3d(4, 1, 1)

        def forward(self, raw):
            features = self.body(raw)
            return [self.fine(features), self.coarse(nn.functional.avg_pool3d(features, 2))]


    def build_model(classes):
        return Net(len(classes))
    """

# how a run can be: what it adds to the settings, its text, its network
KINDS: dict[str, dict[str, Any]] = {
    "normed": {
        "files": {"model.py": NORMED},
        "learning_rate": 0.01,  # its gradients are large, and so is what they are rounded by
        "gradient_accumulation_steps": 2,
        "ema_decay": 0.9,
        "figure_samples": 2,
        "figure_crops": 1,
    },
    "deep": {
        "files": {"model.py": DEEP},
        "text": "from common.train.losses import bce_dice\ncriterion = bce_dice",
    },
    "each_sample": {
        "text": "from functools import partial\nfrom common.train.losses import dice_loss\n"
        "criterion = partial(dice_loss, per_sample=True)",
        "validation_batch_limit": 1,
    },
    "of_torch": {"text": "criterion = torch.nn.BCEWithLogitsLoss", "num_workers": 1},
}
SGD = """
    import torch


    def optimizer(groups, lr, weight_decay):
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)
    """


@pytest.fixture
def processes():
    """Forks processes that have imported what takes long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["common.train.run", "common.shell.cli"])
    return context


def free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


def as_one_of(number: int, size: int, port: int, act: Callable, *words: Any) -> None:
    """Call act(*words) as torchrun would, in process `number` of `size`."""
    torch.set_num_threads(1)
    steps.LOG_EVERY = 2
    torchrun = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": size}
    torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in torchrun.items()})
    act(*words)


def in_processes(context: Any, size: int, act: Callable, *words: Any) -> list[int]:
    """Call a function in so many processes; gives their exit codes."""
    port = free_port()
    children = []
    for number in range(size):
        call = (number, size, port, act, *words)
        children.append(context.Process(target=as_one_of, args=call))
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    return [child.exitcode for child in children]


def train_all(calls: list[dict[str, Any]]) -> None:
    for words in calls:
        run_module.train(**words)


def state_of(tiny: Any, run: str) -> dict[str, Any]:
    path = tiny.config(run_name=run).path("model_save_path") / "latest.pt"
    return torch.load(path, weights_only=True)


def assert_equal_ends(tiny: Any, run: str, other: str) -> None:
    """Weights and numbers within 1e-6, and of the same names."""
    one, two = state_of(tiny, run), state_of(tiny, other)
    for part in ("model", "ema"):
        if one[part] is not None:
            torch.testing.assert_close(one[part], two[part], atol=1e-6, rtol=0)
    exact = ("epoch", "iteration", "best_epoch", "judged", "shown", "validation_batches")
    for name in exact:
        assert one[name] == two[name], name
    for name in ("best", "best_loss", "epoch_counts", "validation_loss", "grad_norm"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5, err_msg=name)
    history, others = (
        read_history(tiny.config(run_name=name).path("logs_save_path")) for name in (run, other)
    )
    assert list(history) == list(others)
    for column in history:
        if column not in ("train/samples_per_s", "train/data_wait"):
            np.testing.assert_allclose(history[column], others[column], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "kinds"), [(2, ("normed", "deep")), (3, ("each_sample", "of_torch"))]
)
def test_several_processes_come_to_what_one_comes_to(
    experiment, processes, monkeypatch, size, kinds
):
    monkeypatch.setattr(steps, "LOG_EVERY", 2)
    tinies = {}
    calls = []
    for kind in kinds:
        changes = {"learning_rate": 0.2, **KINDS[kind]}
        criterion = changes.pop("text", "")
        tiny = experiment(kind, batch_size=6, iterations_per_epoch=2, text=SGD, **changes)
        tiny.add(criterion)
        tinies[kind] = tiny
        calls.append(words_of(tiny, run_name="several"))
        tiny.train(run_name="one")
    assert in_processes(processes, size, train_all, calls) == [0] * size
    for tiny in tinies.values():
        assert_equal_ends(tiny, "one", "several")
        logs = tiny.config(run_name="several").path("logs_save_path")
        assert read_record(logs).result.finished


def words_of(tiny: Any, **settings: Any) -> dict[str, Any]:
    """What `train` is called with in another process."""
    cache = str(tiny.config().path("cache_path"))
    return {"config_path": tiny.folder, "data": tiny.data, "cache_path": cache, **settings}

"""Killed at twenty random moments, train, predict and process end as if nobody had.

`bench/kills.py` does the same for longer, by hand, with several processes.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bench.kills import files_of, state_of_run

MODEL = """
    from torch import nn


    def build_model(classes):
        return nn.Sequential(
            nn.Conv3d(1, 4, 5), nn.ReLU(), nn.Dropout(0.3), nn.Conv3d(4, len(classes), 1)
        )
    """

PROCESS = """
    import math

    from .data import classes


    def process_func(logits):
        return logits > 0
    """

KINDS = (signal.SIGKILL, signal.SIGTERM)

LEFT = {"train": ("checkpoints", "logs"), "predict": ("predictions",), "process": ("processed",)}
"""Folders that a command leaves."""


@pytest.fixture
def tiny(experiment):
    made = experiment(
        files={"model.py": MODEL, "process_config.py": PROCESS},
        iterations_per_epoch=5,
        ema_decay=0.9,
        checkpoint_minutes=0.001,
    )
    made.train()
    return made


def killed(forked: Callable, words: list, after_s: float, number: int) -> bool:
    """Run a command and kill it after some seconds; False if it came to its end before."""
    process = forked(*words)
    process.process.join(after_s)
    if process.is_running:
        process.send_signal(number)
    code, _, said = process.ended()
    assert code in (0, 75, -number), said
    return code != 0


@pytest.mark.slow
@pytest.mark.parametrize(("command", "kills"), [("train", 6), ("predict", 6), ("process", 8)])
def test_a_command_that_is_killed_at_random_moments_ends_as_if_it_was_not(
    tiny, forked, command, kills
):
    words = [command, tiny.folder, "--data", tiny.data]
    words += ["--block", 8] if command == "predict" else []
    if command == "process":
        assert forked("predict", *words[1:]).ended()[0] == 0
    folders = [tiny.folder / name for name in LEFT[command]]
    result = partial(state_of, command, folders)
    remove(folders)
    forked("--version").ended()  # what forks it imports for seconds first
    begun = time.monotonic()
    assert forked(*words).ended()[0] == 0
    seconds = time.monotonic() - begun
    expected = result()
    remove(folders)
    # the moments, whatever happens in them: what comes of it is the same
    chance = random.Random(0)
    for number in range(kills):
        if not killed(forked, words, chance.uniform(0, seconds), KINDS[number % 2]):
            assert result() == expected
            remove(folders)
    code, _, said = forked(*words).ended()
    assert code == 0, said
    assert result() == expected


def remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def state_of(command: str, folders: list[Path]) -> dict[str, str]:
    if command == "train":
        return state_of_run(*(folder / "tiny_experiment/seed42" for folder in folders))
    return files_of(*folders)

"""The contestants of `bench/quality.py`: ours as it was and as it is, and its peers.

Each is a generator: it trains until one mark of the clock after another, and gives at each a
`Snapshot` that can be predicted with. The clock stands still while a snapshot is looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import nnunet_package, peers
from bench.case import Case, Clock, Snapshot
from bench.side_by_side import REPOSITORY
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.score.whole_crops import of_run
from common.train import progress
from common.train.run import run_epochs
from common.train.setup import Setup, prepare
from common.train.state import State

CALIBRATED = 0.03
"""Fraction of the training time for which the speed is measured before."""


def committed(case: Case) -> Iterator[Snapshot]:
    """Train the example as it was before its recipe was worked on."""
    path = REPOSITORY / "bench" / "recipes" / f"{case.dataset}.py"
    return ours(path, case.settings, case.marks)


def new(case: Case) -> Iterator[Snapshot]:
    """Train the example as it is."""
    return ours(REPOSITORY / "examples" / case.dataset, case.settings, case.marks)


def sections(case: Case) -> Iterator[Snapshot]:
    """Train a 2-D network over neighbouring sections of drosophila_vnc."""
    path = REPOSITORY / "bench" / "recipes" / f"{case.dataset}_sections.py"
    return ours(path, case.settings, case.marks)


def ours(
    path: Path, settings: dict[str, Any], marks: Sequence[float], overrides: Sequence[str] = ()
) -> Iterator[Snapshot]:
    """Train an experiment by this repository's trainer; its schedule ends at the last mark.

    The trainer itself is interrupted at each mark, as by Ctrl-C, and goes on from there. It
    does not validate: that is no training, and what is looked at is the whole crop.
    """
    probe = settings | {"run_name": "calibration"}
    pace = seconds_per_step(load_config(path, overrides, **probe), CALIBRATED * marks[-1])
    lengths = as_long_as(load_config(path, overrides, **settings), round(marks[-1] / pace))
    config = load_config(path, overrides, **settings | lengths)
    return train_until(config, marks)


def for_steps(
    path: Path, settings: dict[str, Any], steps: int, overrides: Sequence[str] = ()
) -> Iterator[Snapshot]:
    """Train an experiment, schedule included, for a number of steps; one snapshot at the end."""
    lengths = as_long_as(load_config(path, overrides, **settings), steps)
    config = load_config(path, overrides, **settings | lengths)
    return train_until(config, [math.inf])


def as_long_as(config: TrainConfig, steps: int) -> dict[str, int]:
    """Return settings that make a run about `steps` long in the same number of epochs.

    Its schedule, which counts epochs, then keeps its shape.
    """
    epochs = max(1, min(config.epochs, steps))
    return {"epochs": epochs, "iterations_per_epoch": max(1, round(steps / epochs))}


def train_until(config: TrainConfig, marks: Sequence[float]) -> Iterator[Snapshot]:
    """Train; a snapshot at each mark (s), and at the end of the run where that comes before."""
    setup, state = start(config)
    clock = Clock()
    with progress.open_logs(config, state, setup.about()) as run_logs:
        for mark in marks:
            clock.start(mark)
            run_epochs(setup, state, run_logs, stopped=clock.due, report=None)
            clock.pause()
            yield Snapshot(
                config,
                "latest",
                seconds=clock.seconds,
                steps=state.iteration,
                voxels=state.iteration * voxels_per_step(config),
            )


def start(config: TrainConfig) -> tuple[Setup, State]:
    """Prepare a run that does not validate."""
    setup, state = prepare(config, of_run)
    return replace(setup, validation=None), state


def voxels_per_step(config: TrainConfig) -> int:
    """Return the number of target voxels of an optimiser step."""
    patches = config.batch_size * config.gradient_accumulation_steps
    return patches * math.prod(config.target_array_info["shape"])


def seconds_per_step(config: TrainConfig, seconds: float) -> float:
    """Return the seconds of a step, measured for about `seconds` and at least two steps."""
    setup, state = start(config)
    begun: list[float] = []

    def enough() -> bool:
        begun.append(time.perf_counter())
        # the first step, in which buffers are made and kernels chosen, does not count
        return len(begun) > 3 and begun[-1] - begun[1] > seconds

    with progress.open_logs(config, state, setup.about()) as run_logs:
        run_epochs(setup, state, run_logs, stopped=enough, report=None)
    return (begun[-1] - begun[1]) / max(len(begun) - 2, 1)


CONTESTANTS: dict[str, Callable[[Case], Iterator[Snapshot]]] = {
    "committed": committed,
    "new": new,
    "sections": sections,
    "monai": peers.monai,
    "cellmap": peers.cellmap,
    "nnunet": peers.nnunet,
    "nnunetv2": nnunet_package.nnunetv2,
}

NEEDS = {
    "monai": "monai",
    "cellmap": "cellmap_data",
    "nnunet": "dynamic_network_architectures",
    "nnunetv2": "nnunetv2",
}
"""The package that each peer needs."""

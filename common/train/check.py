"""`train --check`: a dry run that says what a run takes."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import runtime
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data import loaders, targets
from common.data.loaders import Data
from common.train import steps
from common.train.run import _duration, log_epoch, prepare, training_batches, validation_batches
from common.train.steps import Method, Scores, State
from common.train.tracking import Tracker


def check(
    config_path: str | Path, overrides: Sequence[str] = (), data: str | Path | None = None
) -> str:
    """Read the configuration, train and validate for some seconds, write nothing but decoded crops; a report of what the run takes.

    Steps are timed once the queue of the workers is as full as it will be in a long run; validation for up to ten seconds.
    """
    config = load_config(config_path, overrides, data)
    device, crops, state, method = prepare(config)
    group, seconds, waited, loss, norm = time_steps(config, state, method, crops, device)
    validation, scores = time_validation(config, state, method, crops, device)
    once, each = logs_size(config, state, scores)
    saved = _bytes([state.model.state_dict(), state.optimizer.state_dict()])
    hours = config.epochs * (config.iterations_per_epoch * seconds + validation) / 3600
    sizes = [(p.numel(), p.requires_grad) for p in state.model.parameters()]
    known = float(
        np.mean(
            [float(targets.known(targets.dense(batch.target)).float().mean()) for batch in group]
        )
    )
    raw = group[0].raw
    return "\n".join(
        [
            f"raw         {tuple(raw.shape)} at {_nm(config.input_array_info)} nm, {float(raw.min()):.2f} to {float(raw.max()):.2f}",
            f"target      {tuple(targets.dense(group[0].target).shape)} at {_nm(config.target_array_info)} nm, {known:.0%} known",
            f"parameters  {sum(n for n, _ in sizes):,}, {sum(n for n, trained in sizes if trained):,} of them trained",
            f"crops       {len(crops.train)} train, {len(crops.validation)} validate in {len(crops.blocks)} blocks",
            f"device      {device}, {method.forward.precision.name}; peak memory {runtime.peak_memory_gb(device):.2f} GB, {runtime.free_memory_gb(device):.1f} GB more are free",
            f"iteration   {seconds:.3f} s, {waited:.3f} s of it waiting for data; loss {loss:.4f}, gradient norm {norm:.3g}",
            f"validation  {_duration(validation)} after each epoch"
            if scores
            else "validation  none",
            f"run         {config.epochs} epochs of {config.iterations_per_epoch} iterations take {_duration(hours * 3600)} here",
            f"writes      {_size(2 * saved)} of checkpoints, {_size(once + each * config.epochs)} of logs",
            *(
                f"note        {notice}"
                for notice in (
                    *runtime.warnings_about(device),
                    *loaders.notices(crops, config.classes),
                )
            ),
        ]
    )


TIMED_STEPS, TIMED_S, VALIDATION_S = 8, 30.0, 10.0
"""Steps that a check times; seconds after which it begins no more of them; seconds that it validates."""


def time_steps(
    config: TrainConfig, state: State, method: Method, crops: Data, device: torch.device
) -> tuple[list[loaders.Batch], float, float, float, float]:
    """The last group of batches; seconds a step, and of it waiting for data; its loss and gradient norm.

    A step's first calls choose convolutions and fill memory pools, and workers have batches ready that were read meanwhile:
    steps are timed after both, their mean is what a long run will see.
    """
    accumulation = config.gradient_accumulation_steps
    warm_up = 2 + math.ceil(
        2 * config.num_workers / accumulation
    )  # torch reads two batches ahead for each worker
    batches = training_batches(config, crops, device).between(
        0, (warm_up + TIMED_STEPS) * config.batch_size * accumulation
    )
    times: list[tuple[float, float]] = []
    for count in (warm_up, TIMED_STEPS):
        begun, times = time.perf_counter(), []
        while len(times) < count and time.perf_counter() - begun < TIMED_S:
            start = time.perf_counter()
            group = [next(batches) for _ in range(accumulation)]
            waited = time.perf_counter() - start
            loss, norm = steps.step(
                state, method, group
            )  # ends with a copy to the CPU: the device has then done its work
            times.append((time.perf_counter() - start, waited))
    seconds, waited = np.mean(times, 0)
    return group, float(seconds), float(waited), loss, norm


def time_validation(
    config: TrainConfig, state: State, method: Method, crops: Data, device: torch.device
) -> tuple[float, Scores | None]:
    """Seconds that a validation takes, from as many of its batches as VALIDATION_S has time for; and what those gave."""
    fixed = validation_batches(config, crops, device)
    if not fixed:
        return 0.0, None
    begun = time.perf_counter()
    limit = min(VALIDATION_S, config.validation_time_limit or VALIDATION_S)
    scores = steps.validate(
        state,
        method,
        fixed,
        config.classes,
        limit,
        config.validation_batch_limit,
        config.figure_samples,
        lambda: False,
    )
    seconds, blocks = time.perf_counter() - begun, math.ceil(len(crops.blocks) / config.batch_size)
    whole = (
        seconds / state.validation_batches * min(config.validation_batch_limit or blocks, blocks)
    )
    return min(
        whole, max(config.validation_time_limit, seconds)
    ) if config.validation_time_limit else whole, scores


def logs_size(config: TrainConfig, state: State, scores: Scores | None) -> tuple[int, int]:
    """Bytes of TensorBoard's events that a run writes once, and for each epoch: found by writing one epoch elsewhere."""
    if "tensorboard" not in config.trackers:
        return 0, 0
    with tempfile.TemporaryDirectory() as folder:
        tracker, sizes = Tracker(Path(folder)), []
        trained = {"loss": 1.0, "grad_norm": 1.0, "samples_per_s": 1.0, "data_wait": 0.0}
        for log in (
            lambda: tracker.text("settings", config.record()),
            lambda: tracker.scalars({f"{name}/train": value for name, value in trained.items()}, 1),
            lambda: log_epoch(config, state, trained, scores, 0.1, tracker),
        ):
            log()
            tracker.scalars({"flush": 0.0}, 1)
            sizes.append(sum(path.stat().st_size for path in Path(folder).iterdir()))
        tracker.finish({}, {})
    once, steps_too, all_of_it = sizes
    return once, all_of_it - steps_too + (steps_too - once) * (config.iterations_per_epoch // 20)


def _bytes(value: Any) -> int:
    """Of the tensors in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_bytes, items))


def _size(count: float) -> str:
    return (
        f"{count / 1e9:.1f} GB"
        if count > 1e9
        else f"{count / 1e6:.1f} MB"
        if count > 1e6
        else f"{count / 1e3:.0f} kB"
    )


def _nm(info: dict) -> str:
    return " x ".join(f"{s:g}" for s in info["scale"])

"""The command `train --check`: a dry run that reports shapes, memory and time."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import runtime
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.samples import targets
from common.data.samples.batches import Batch
from common.talk import count, duration, nm, size
from common.train import steps, validation
from common.train.checkpointing.checkpoint import bytes_of_run
from common.train.progress import log_epoch, notices
from common.train.recording.tracking import Tracker
from common.train.setup import Score, Setup, prepare
from common.train.state import State, StepResult
from common.train.steps import LOG_EVERY, TrainedEpoch
from common.train.validation import ValidationScores

TIMED_STEPS = 8
"""Number of steps that are timed."""

TIMED_S = 30.0
"""Seconds after which no further step is begun."""

VALIDATION_S = 10.0
"""Seconds after which the validation is cut short."""


def check(
    config_path: str | Path,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    *,
    score: Score | None = None,
) -> str:
    """Train and validate for some seconds, and return a report of what a run would take.

    Only decoded crops are written. Steps are timed once the queue of the workers is in the steady
    state of a long run.
    """
    config = load_config(config_path, overrides, data)
    setup, state = prepare(config, score)
    step = time_steps(setup, state)
    validated = time_validation(setup, state)
    events = bytes_of_logs(config, state, validated.scores)
    # best.pt, and latest.pt with those before it
    checkpoints = bytes_of_run(config, state)
    lines = [
        *_patch_lines(setup, step.group),
        *_setup_lines(setup, state),
        *_time_lines(setup, step, validated),
        _line("writes", f"{size(checkpoints)} of checkpoints, {size(events)} of logs"),
    ]
    found = notices(setup, state)
    if step.result.is_skipped:
        where: list[str] = []
        for batch in step.group:
            where += batch.where
        found.append(f"loss or gradient is not finite, on {', '.join(where)}")
    lines += [_line("note", notice) for notice in found]
    return "\n".join(lines)


def _line(name: str, text: str) -> str:
    return f"{name:<12}{text}"


def _patch_lines(setup: Setup, group: Sequence[Batch]) -> list[str]:
    config = setup.config
    raw = group[0].raw[:, :1]
    labels = [targets.dense(batch.target) for batch in group]
    known = np.mean([float(targets.known(label).float().mean()) for label in labels])
    raw_nm = nm(config.input_array_info["scale"])
    target_nm = nm(config.target_array_info["scale"])
    low = float(raw.min())
    high = float(raw.max())
    return [
        _line("raw", f"{tuple(raw.shape)} at {raw_nm} nm, {low:.2f} to {high:.2f}"),
        *(_line("", f"{name}: {scaling}") for name, scaling in setup.data.scalings.items()),
        *_channel_lines(config, group[0]),
        _line("target", f"{tuple(labels[0].shape)} at {target_nm} nm, {known:.0%} known"),
    ]


def _channel_lines(config: TrainConfig, batch: Batch) -> list[str]:
    """What the network gets beside raw, in the first batch."""
    lines = []
    for number, name in enumerate(config.input_channels, 1):
        patches = batch.raw[:, number]
        values = f"{float(patches.min()):.2f} to {float(patches.max()):.2f}"
        lines.append(_line("", f"channel {name}, {values}"))
    return lines


def _setup_lines(setup: Setup, state: State) -> list[str]:
    parameters = list(state.model.parameters())
    every = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    data = setup.data
    precision = setup.method.forward.precision.name
    peak = runtime.peak_memory_gb(setup.device)
    free = runtime.free_memory_gb(setup.device)
    return [
        _line("parameters", f"{every:,}, {trained:,} of them trained"),
        _line(
            "crops",
            f"{len(data.train)} train, {len(data.validation)} validate in "
            f"{count(len(data.blocks), 'block')}",
        ),
        _line(
            "device",
            f"{setup.device}, {precision}; peak memory {peak:.2f} GB, {free:.1f} GB more are free",
        ),
    ]


def _time_lines(setup: Setup, step: TimedStep, validated: TimedValidation) -> list[str]:
    config = setup.config
    numbers = step.result.numbers
    an_epoch = config.iterations_per_epoch * step.seconds + validated.seconds
    validation_time = "none"
    if validated.scores:
        validation_time = f"{duration(validated.seconds)} after each epoch"
    if config.validation_score_every:
        validation_time += ", and the score of whole crops, which is not measured here"
    return [
        _line(
            "iteration",
            f"{step.seconds:.3f} s, {step.waited:.3f} s of it waiting for data; "
            f"loss {numbers.loss:.4f}, gradient norm {numbers.grad_norm:.3g}",
        ),
        _line("validation", validation_time),
        _line(
            "run",
            f"{count(config.epochs, 'epoch')} of "
            f"{count(config.iterations_per_epoch, 'iteration')} "
            f"{'takes' if config.epochs == 1 else 'take'} "
            f"{duration(config.epochs * an_epoch)} here",
        ),
    ]


@dataclass(frozen=True)
class TimedStep:
    """How long an optimiser step takes, and the last step."""

    group: list[Batch]
    """The batches of the last step."""
    seconds: float
    """Mean seconds per step."""
    waited: float
    """Mean seconds per step spent waiting for data."""
    result: StepResult
    """Of the last step."""


def time_steps(setup: Setup, state: State) -> TimedStep:
    """Return the mean time of TIMED_STEPS steps, after a warm-up.

    In the first steps convolution algorithms are chosen, memory pools fill, and workers have
    batches ready that they read ahead. Steps are timed after that, so that their mean is that of a
    long run.
    """
    config = setup.config
    accumulation = setup.method.accumulation
    # torch reads two batches ahead for each worker
    warm_up = 2 + math.ceil(2 * config.num_workers / accumulation)
    samples = (warm_up + TIMED_STEPS) * config.batch_size * accumulation
    batches = setup.training.between(0, samples)
    for wanted in (warm_up, TIMED_STEPS):
        times: list[float] = []
        waits: list[float] = []
        begun = time.perf_counter()
        while len(times) < wanted and time.perf_counter() - begun < TIMED_S:
            start = time.perf_counter()
            group = [next(batches) for _ in range(accumulation)]
            waits.append(time.perf_counter() - start)
            # it ends with a copy to the CPU: the device has then done its work
            result = steps.step(state, setup.method, group)
            times.append(time.perf_counter() - start)
    return TimedStep(group, float(np.mean(times)), float(np.mean(waits)), result)


@dataclass(frozen=True)
class TimedValidation:
    """How long a validation takes, and its results."""

    seconds: float
    scores: ValidationScores | None
    """None without a validation."""


def time_validation(setup: Setup, state: State) -> TimedValidation:
    """Estimate the seconds of a whole validation from as many batches as VALIDATION_S allows.

    Without the score of whole crops, which a network that has learnt nothing says nothing about.
    """
    if setup.validation is None:
        return TimedValidation(0.0, None)
    config = setup.config
    limit = min(VALIDATION_S, config.validation_time_limit or VALIDATION_S)
    begun = time.perf_counter()
    short = dataclasses.replace(config, validation_time_limit=limit, validation_score_every=0)
    of_blocks = dataclasses.replace(setup.validation, config=short)
    scores = validation.validate(state, setup.method, of_blocks, lambda: False)
    seconds = time.perf_counter() - begun
    batches = math.ceil(len(setup.data.blocks) / config.batch_size)
    if config.validation_batch_limit:
        batches = min(batches, config.validation_batch_limit)
    whole = seconds / state.validation_batches * batches
    if config.validation_time_limit:
        whole = min(whole, max(config.validation_time_limit, seconds))
    return TimedValidation(whole, scores)


def bytes_of_logs(config: TrainConfig, state: State, scores: ValidationScores | None) -> int:
    """Measure what a run writes to its TensorBoard events, by logging one epoch elsewhere."""
    if "tensorboard" not in config.trackers:
        return 0
    trained = TrainedEpoch(loss=1.0, grad_norm=1.0, samples_per_s=1.0, data_wait=0.0)
    scalars = {f"{name}/train": value for name, value in dataclasses.asdict(trained).items()}
    with tempfile.TemporaryDirectory() as folder:
        tracker = Tracker(Path(folder))

        def size_after(log: Callable[[], None]) -> int:
            log()
            tracker.scalars({"flush": 0.0}, 1)
            return sum(path.stat().st_size for path in Path(folder).iterdir())

        once = size_after(lambda: tracker.text("settings", config.record()))
        with_steps = size_after(lambda: tracker.scalars(scalars, 1))
        with_epoch = size_after(lambda: log_epoch(config, state, tracker, trained, scores=scores))
        tracker.finish({}, {})
    logged_steps = config.iterations_per_epoch // LOG_EVERY
    an_epoch = with_epoch - with_steps + (with_steps - once) * logged_steps
    return once + an_epoch * config.epochs

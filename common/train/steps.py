"""Train for one epoch: optimiser steps, one after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common.data.samples.batches import Batch
from common.data.samples.targets import Target
from common.data.samples.workers import WorkerLost
from common.stopping import ShouldStop
from common.train import skipped
from common.train.metrics import finite_mean
from common.train.optimising import optim
from common.train.processes import ranks, together
from common.train.skipped import Numbers
from common.train.state import Method, State, StepResult

LOG_EVERY = 20
"""Iterations (optimiser steps) between two logged training losses."""

Look = Callable[[torch.Tensor, Target], None]
"""`look(logits, target)`, of one batch."""

Log = Callable[[dict[str, float], int], None]
"""`log(values, iteration)` logs scalars by tag, such as "loss/train"."""

AfterStep = Callable[[list[Batch], StepResult], None]
"""`after_step(group, result)`, of the batches of a step and what came of it."""


@dataclass(frozen=True)
class TrainedEpoch:
    """Results of one epoch of training."""

    loss: float
    """Mean over the steps of the epoch."""
    grad_norm: float
    """Norm of the gradient in the last step, before clipping."""
    samples_per_s: float
    data_wait: float
    """Fraction of the time spent waiting for data, 0 to 1."""
    dice: float = math.nan
    """Mean over the classes in the logged batches, before their steps; NaN without one."""
    iou: float = math.nan
    skipped: int = 0
    """Number of steps that were skipped."""


def train_epoch(
    state: State,
    method: Method,
    batches: Iterator[Batch],
    last_iteration: int,
    *,
    log: Log,
    stop: ShouldStop,
    bar: tqdm,
    after_step: AfterStep = lambda *_: None,
) -> TrainedEpoch:
    """Take optimiser steps until `last_iteration`, or until stop() returns True.

    Args:
        state: state of the run, updated in place.
        method: how a step is taken.
        batches: training batches, in order; each step takes `method.accumulation` of them.
        last_iteration: the iteration at which this epoch ends, counted over the whole run.
        log: called every LOG_EVERY iterations with the mean loss since the last call.
        stop: called before each step.
        bar: progress bar, advanced by one per step.
        after_step: called after each step, when the state is whole and the step is logged.
    """
    state.model.train()
    clock = _Clock()
    _log_what_found_no_room(state, log, last_iteration)
    while state.iteration < last_iteration and not stop():
        with clock.waiting():
            group = _next_group(batches, method.accumulation)
        is_logged = _is_logged(state.iteration + 1, last_iteration)
        result = step(state, method, group, look=state.count_voxels if is_logged else None)
        _step_schedule(state, method)
        state.count_step(result)
        clock.samples += ranks.size() * sum(len(batch.raw) for batch in group)
        if is_logged:
            _log_losses(state, log, clock.scalars())
        bar.set_postfix_str(f"loss {state.mean_loss:.4f}, {clock}", refresh=False)
        bar.update()
        after_step(group, result)
    return _trained(state, clock)


def _is_logged(iteration: int, last_iteration: int) -> bool:
    """Return whether the losses until an iteration, counted from 1, are logged after it."""
    return iteration % LOG_EVERY == 0 or iteration == last_iteration


def _log_what_found_no_room(state: State, log: Log, last_iteration: int) -> None:
    """Log what the call before this one could not, and ended of: its disk was full."""
    if state.recent_losses and _is_logged(state.iteration, last_iteration):
        _log_losses(state, log, {})


def _step_schedule(state: State, method: Method) -> None:
    """Step a scheduler of iterations; after skipped steps too: its rate is that of an iteration."""
    if method.schedules_iterations:
        optim.step_scheduler(state.scheduler, math.nan)


def _log_losses(state: State, log: Log, speed: dict[str, float]) -> None:
    """Log the steps since the last time; they are kept until that is written."""
    mean = finite_mean(np.array(state.recent_losses))
    log({"loss/train": mean, "grad_norm": state.grad_norm} | speed, state.iteration)
    state.recent_losses = []


def _next_group(batches: Iterator[Batch], number: int) -> list[Batch]:
    # no process is to take a step without the others
    with ranks.raised_by_all(WorkerLost):
        return [next(batches) for _ in range(number)]


def _trained(state: State, clock: _Clock) -> TrainedEpoch:
    """Return what came of the steps of an epoch."""
    return TrainedEpoch(
        loss=state.mean_loss,
        grad_norm=state.grad_norm,
        samples_per_s=clock.samples_per_s,
        data_wait=clock.data_wait,
        dice=state.training_metric("dice"),
        iou=state.training_metric("iou"),
        skipped=state.skipped_in_epoch,
    )


def step(state: State, method: Method, group: list[Batch], look: Look | None = None) -> StepResult:
    """Take one optimiser step on a group of batches.

    The loss is the mean over the known (voxel, class) pairs of the whole group, that of a head over
    its own pairs: the loss of each batch is weighted by its number of known pairs. A step whose
    numbers are not finite is skipped: weights, their average, running statistics and buffers of the
    loss stay as they were. Random numbers that were drawn stay drawn.

    `look` is called with the logits and the target of the last batch, when the step is taken.
    """
    before = _buffers(state)
    with together.one_step():
        loss, logits = _gradients(state, method, group)
        state.scaler.unscale_(state.optimizer)
    norm = _clip(state.model, method.max_grad_norm)
    numbers = _numbers(state.model, loss, norm)
    is_skipped = skipped.is_bad(numbers, state.scaler)
    # a gradient that overflows in fp16 alone: the scaler lowers its factor, and no step is taken
    is_taken = math.isfinite(numbers.grad_norm) and not is_skipped
    _update_weights(state, method, is_taken)
    if is_skipped:
        _restore_buffers(state, before)
        skipped.keep_scale(state.scaler)
    else:
        state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if look and not is_skipped:
        # only now: the graph of the forward pass is gone, and its memory free
        look(method.forward.shown(logits), group[-1].target)
    return StepResult(numbers, is_skipped)


def _gradients(
    state: State, method: Method, group: list[Batch]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradient of the loss of a group; return the loss and the last batch's logits."""
    fractions = method.fractions([batch.target for batch in group])
    loss = torch.zeros((), device=group[0].raw.device)
    for number, batch in enumerate(group):
        with together.gradients_wait(method.forward, number + 1 < len(group)):
            outputs = method.forward.outputs(state.model, batch.raw)
            part = method.loss(outputs, batch.target, fractions[number])
            together.backward(state.scaler.scale(part))
        loss += part.detach()
    return together.summed(loss), outputs[0].detach()


def _clip(model: nn.Module, max_grad_norm: float) -> torch.Tensor:
    """Clip the gradient; return the norm that it had. 0 clips nothing."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    return nn.utils.clip_grad_norm_(parameters, max_grad_norm or math.inf)


def _numbers(model: nn.Module, loss: torch.Tensor, norm: torch.Tensor) -> Numbers:
    """Return the numbers of a step, the same in all processes."""
    statistics = skipped.largest_statistic(model).to(loss.device)
    statistics = together.added_up(statistics)  # infinite in all processes once it is in one
    # one wait for the device, not three
    return Numbers(*torch.stack([loss, norm, statistics]).tolist())


def _update_weights(state: State, method: Method, is_taken: bool) -> None:
    """Move the weights, and the average of them, by the gradient; by nothing unless `is_taken`."""
    fraction = optim.warmed_up(state.iteration, method.warmup)
    with optim.at_fraction(state.optimizer, fraction):
        state.learning_rate = float(state.optimizer.param_groups[0]["lr"])
        if is_taken:
            state.scaler.step(state.optimizer)
    if not is_taken:
        optim.count_as_stepped(state.optimizer)
    elif state.ema is not None:
        state.ema.update_parameters(state.model)


def _buffers(state: State) -> list[dict[str, torch.Tensor]]:
    """Return copies of what forward passes change: running statistics, counts of a loss."""
    copies = []
    for module in (state.model, state.criterion):
        buffers = module.named_buffers() if module is not None else ()
        copies.append({name: buffer.clone() for name, buffer in buffers})
    return copies


@torch.no_grad()
def _restore_buffers(state: State, before: list[dict[str, torch.Tensor]]) -> None:
    """Undo what forward passes did since `_buffers`: one NaN in a running mean never leaves it."""
    for module, copies in zip((state.model, state.criterion), before, strict=True):
        buffers = dict(module.named_buffers()) if module is not None else {}
        for name, copy in copies.items():
            buffers[name].copy_(copy)


class _Clock:
    """Measures samples per second and the fraction of the time spent waiting for data."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.samples = 0
        self.waited = 0.0
        """Seconds."""

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time spent in the with-block as time waiting for data."""
        asked = time.perf_counter()
        yield
        self.waited += time.perf_counter() - asked

    @property
    def seconds(self) -> float:
        return max(time.perf_counter() - self.begin, 1e-9)

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds

    @property
    def data_wait(self) -> float:
        return self.waited / self.seconds

    def scalars(self) -> dict[str, float]:
        """As they are logged."""
        return {
            "throughput/samples_per_s": self.samples_per_s,
            "throughput/data_wait": self.data_wait,
        }

    def __str__(self) -> str:
        return f"{self.samples_per_s:.1f} samples/s, data wait {self.data_wait:.0%}"

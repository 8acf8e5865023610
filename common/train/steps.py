"""Train for one epoch, take one optimiser step, run one validation.

`State` holds what changes during a run, `Method` and `Validation` what does not.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from common.data import targets
from common.data.batches import Batch, Batches, WorkerLost
from common.data.normalize import Scalings
from common.data.targets import Target
from common.errors import UserError
from common.model.forward import ForwardPass
from common.train import metrics, optim, ranks, skipped, together, whole_slice
from common.train.criterion import CONTRACT, Criterion, over_outputs, problem_with, set_mode
from common.train.heads import HeadsLoss
from common.train.panels import Panels
from common.train.skipped import Numbers
from common.train.whole_slice import WholeSlice

LOG_EVERY = 20
"""Iterations (optimiser steps) between two logged training losses."""

Stop = Callable[[], bool]
"""Returns True once the run should end."""

Look = Callable[[torch.Tensor, Target], None]
"""`look(logits, target)`, of one batch."""

CHALLENGE = "challenge"
"""The name of the challenge's score of whole crops among the metrics."""


@dataclass(frozen=True)
class WholeCropScore:
    """The challenge's score of whole validation crops."""

    overall: float
    """What ranks submissions, over instance and semantic classes; NaN without a class."""
    per_class: np.ndarray
    """(classes,), NaN of a class that is not scored."""


ScoreCrops = Callable[[Scalings, nn.Module, ForwardPass, Stop], WholeCropScore | None]
"""`score(scalings, model, forward, stop)`: how raw is normalised, a model in eval mode, and how raw
goes through it. None once stop() returned True."""

Log = Callable[[dict[str, float], int], None]
"""`log(values, iteration)` logs scalars by tag, such as "loss/train"."""

AfterStep = Callable[[list[Batch], "StepResult"], None]
"""`after_step(group, result)`, of the batches of a step and what came of it."""


@dataclass
class State:
    """Everything that changes during a run, and is saved in a checkpoint."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    scaler: torch.amp.GradScaler
    epoch: int = 0
    """Number of finished epochs, validation included."""
    iteration: int = 0
    """Number of optimiser steps, with those that were skipped."""
    skipped: int = 0
    """Number of steps of the run that were skipped, see `StepResult.is_skipped`."""
    skipped_in_epoch: int = 0
    """Those of the current epoch."""
    skipped_in_a_row: int = 0
    """Those since the last step that was not skipped."""
    best: float = math.nan
    """The best value of best_metric so far; NaN before the first validation."""
    best_epoch: int = 0
    """The epoch of `best`, counted from 1; 0 before the first validation."""
    judged: list[int] = field(default_factory=list)
    """Channels of the classes on which epochs are compared, see record.BestSoFar."""
    best_loss: float = math.nan
    """The lowest training loss of an epoch so far, which decides where no crop validates."""
    waited: int = 0
    """Number of epochs since the last better one; those without a value do not count."""
    passed_over: int = 0
    """Number of epochs of this call without a value; it is not saved."""
    validation_batches: int = 0
    """Number of batches in every validation, fixed by the first one; 0 before it."""
    shown: dict[str, list[int]] = field(default_factory=dict)
    """Validation blocks shown as figures, by class; fixed by the first validation."""
    epoch_loss: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Sum of the losses and number of steps in the current epoch."""
    recent_losses: list[float] = field(default_factory=list)
    """Losses since one was last logged."""
    learning_rate: float = math.nan
    """Of the last step, in the first group of parameters."""
    grad_norm: float = 0.0
    """Norm of the gradient in the last step, before clipping."""
    epoch_counts: list[list[float]] = field(default_factory=list)
    """Voxels of logged training batches in the current epoch, as `count` gives them; [] before."""
    validation_loss: float = math.nan
    """Of the last validation; NaN before the first."""
    smoothed: float = math.nan
    """The running mean of best_metric, see the setting metric_smoothing."""
    raw_scalings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the raw of each volume is normalised, fixed by the first call; see data.normalize."""
    criterion: nn.Module | None = None
    """The loss, if it is a module, which may count something; None otherwise."""
    ema: AveragedModel | None = None
    """The moving average of the weights; None with ema_decay = 0."""

    @property
    def predictor(self) -> nn.Module:
        """The network that is validated and will predict: the average, where one is kept."""
        return self.model if self.ema is None else self.ema.module

    def count_step(self, result: StepResult) -> None:
        """Count an optimiser step; of one that was skipped, nothing else than that it was."""
        self.iteration += 1
        if result.is_skipped:
            self.skipped += 1
            self.skipped_in_epoch += 1
            self.skipped_in_a_row += 1
            return
        self.skipped_in_a_row = 0
        self.epoch_loss[0] += result.loss
        self.epoch_loss[1] += 1
        self.recent_losses.append(result.loss)
        self.grad_norm = result.grad_norm

    @torch.no_grad()
    def count_voxels(self, logits: torch.Tensor, target: Target) -> None:
        """Count what a training batch got right, for the training metrics of the epoch."""
        counts = together.added_up(count(logits, targets.binary(target))).cpu().numpy()
        before = self.epoch_counts or np.zeros_like(counts)
        self.epoch_counts = np.add(before, counts).tolist()

    def training_metric(self, name: str) -> float:
        """Mean of "dice" or "iou" over the classes in the logged batches of the epoch, or NaN."""
        if not self.epoch_counts:
            return math.nan
        return finite_mean(metrics.of_counts(np.array(self.epoch_counts), {})[name])

    @property
    def mean_loss(self) -> float:
        """Mean loss over the steps of the current epoch so far; NaN before the first."""
        total, steps = self.epoch_loss
        return total / steps if steps else math.nan


@dataclass(frozen=True)
class StepResult:
    """What came of one optimiser step."""

    numbers: Numbers
    is_skipped: bool = False
    """Whether they are bad, see skipped.is_bad: then nothing of the step is kept."""

    @property
    def loss(self) -> float:
        """Mean over the known (voxel, class) pairs of the group."""
        return self.numbers.loss

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient before clipping."""
        return self.numbers.grad_norm


@dataclass(frozen=True)
class Method:
    """How a step is taken; it does not change during a run."""

    criterion: Criterion
    pos_weight: torch.Tensor | None
    """(classes,) weight of positive voxels in the loss; None with weight_loss = False."""
    forward: ForwardPass
    max_grad_norm: float
    """Gradients are clipped to this norm; 0 turns clipping off."""
    accumulation: int = 1
    """Batches (forward passes) in one optimiser step."""
    warmup: int = 0
    """Iterations in which the learning rate rises to that of the scheduler."""
    schedules_iterations: bool = False
    """Whether the scheduler is stepped after each iteration, not after each epoch."""

    def loss(self, outputs: list[torch.Tensor], target: Target) -> torch.Tensor:
        """Return the loss of a network's outputs, a scalar; several are deep supervision.

        In a step of several processes it is this process's share, see `together.as_share`.
        """
        if torch.is_grad_enabled() and not outputs[0].requires_grad:
            raise UserError(
                "the model gives logits without a gradient; leave detach(), numpy() and no_grad() "
                "out of its forward"
            )
        set_mode(self.criterion, training=torch.is_grad_enabled())
        if len(outputs) == 1:
            return self._share(outputs[0], target, self.pos_weight)
        return over_outputs(self._share, outputs, target, self.pos_weight)

    def _share(
        self, logits: torch.Tensor, target: Target, pos_weight: torch.Tensor | None
    ) -> torch.Tensor:
        loss = self.criterion(targets.weighed(logits, target), target, pos_weight)
        # tried before training, but a loss may give something else where a class is missing
        problem = problem_with(loss)
        if problem:
            raise UserError(f"criterion {problem} for a batch in training; {CONTRACT}")
        # heads have shares of their own, of their own known pairs
        return loss if isinstance(self.criterion, HeadsLoss) else together.as_share(loss, target)


@dataclass(frozen=True)
class Validation:
    """What every validation runs on; the same in every epoch."""

    batches: Batches
    classes: tuple[str, ...]
    """Names of all channels."""
    time_limit: float = 0.0
    """Seconds after which the first validation ends; 0 is no limit."""
    batch_limit: int = 0
    """Most batches in a validation; 0 is no limit."""
    figure_samples: int = 0
    """Blocks shown as figures for each class."""
    figure_crops: int = 0
    """Crops of which a whole slice is shown."""
    preview_every: int = 0
    """All sections of these crops, in each epoch whose number is a multiple of this; 0 is never."""
    metrics: Mapping[str, metrics.Metric] = field(default_factory=dict)
    """The user's own metrics by name."""
    score: Callable[[nn.Module, ForwardPass, Stop], WholeCropScore | None] | None = None
    """Scores whole crops: a ScoreCrops that has its scalings."""
    score_every: int = 0
    """In each epoch whose number is a multiple of this; 0 is never."""

    def is_scored(self, epoch: int) -> bool:
        """Return whether whole crops are scored in an epoch, counted from 1."""
        return self.score is not None and self.score_every > 0 and epoch % self.score_every == 0

    def stacks(self, epoch: int) -> list[list[WholeSlice]]:
        """Return the stacks of sections to fill in an epoch, counted from 1."""
        if not self.preview_every or epoch % self.preview_every:
            return []
        return whole_slice.stacks_of(self.batches.blocks, self.figure_crops, self.classes)


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


@dataclass
class Scores:
    """Results of one validation."""

    loss: float
    """Mean over the known (voxel, class) pairs of all blocks."""
    per_class: dict[str, np.ndarray]
    """dice, iou, precision, recall and the user's own metrics, (classes,) each. A voxel counts as
    predicted above probability 0.5. The four are NaN for a class without a positive or without a
    negative voxel."""
    images: dict[str, np.ndarray]
    """RGB image (y, x, 3) uint8 by class, of its fixed blocks."""
    slices: dict[str, np.ndarray] = field(default_factory=dict)
    """RGB image (y, x, 3) uint8 by crop, of a slice through all of it."""
    stacks: list[list[WholeSlice]] = field(default_factory=list)
    """All sections of some crops, in the epochs that have a preview."""
    whole: WholeCropScore | None = None
    """The challenge's score of whole crops, in the epochs that have one."""
    judged: float = math.nan
    """What the epoch is judged by: best_metric, smoothed if asked; NaN if by nothing."""

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over the classes where it is finite.

        For "loss" the loss, for "challenge" the overall score. NaN if there is none.
        """
        if metric == CHALLENGE:
            return self.whole.overall if self.whole else math.nan
        values = np.array([self.loss]) if metric == "loss" else self.per_class[metric]
        return finite_mean(values)

    def channels(self, metric: str) -> list[int]:
        """Return the channels of the classes that `mean` is over; none for "loss"."""
        if metric not in self.per_class:
            return []
        return np.flatnonzero(np.isfinite(self.per_class[metric])).tolist()


def train_epoch(
    state: State,
    method: Method,
    batches: Iterator[Batch],
    last_iteration: int,
    *,
    log: Log,
    stop: Stop,
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
    if state.recent_losses and _is_logged(state.iteration, last_iteration):
        # the call before this one ended since the disk had no room for it
        log(_losses(state), state.iteration)
        state.recent_losses = []
    while state.iteration < last_iteration and not stop():
        with clock.waiting():
            group = _next_group(batches, method.accumulation)
        is_logged = _is_logged(state.iteration + 1, last_iteration)
        result = step(state, method, group, look=state.count_voxels if is_logged else None)
        if method.schedules_iterations:
            # also after a step that was skipped: the rate is a function of the iteration
            optim.step_scheduler(state.scheduler, math.nan)
        state.count_step(result)
        clock.took(ranks.size() * sum(len(batch.raw) for batch in group))
        if is_logged:
            log(_losses(state) | clock.scalars(), state.iteration)
            state.recent_losses = []
        bar.set_postfix_str(f"loss {state.mean_loss:.4f}, {clock}", refresh=False)
        bar.update()
        after_step(group, result)
    return TrainedEpoch(
        loss=state.mean_loss,
        grad_norm=state.grad_norm,
        samples_per_s=clock.samples / max(clock.since_begin(), 1e-9),
        data_wait=clock.data_wait,
        dice=state.training_metric("dice"),
        iou=state.training_metric("iou"),
        skipped=state.skipped_in_epoch,
    )


def _is_logged(iteration: int, last_iteration: int) -> bool:
    """Return whether the losses until an iteration, counted from 1, are logged after it."""
    return iteration % LOG_EVERY == 0 or iteration == last_iteration


def _losses(state: State) -> dict[str, float]:
    """Return what is logged of the steps since the last time."""
    mean = finite_mean(np.array(state.recent_losses))
    return {"loss/train": mean, "grad_norm": state.grad_norm}


def _next_group(batches: Iterator[Batch], number: int) -> list[Batch]:
    # no process is to take a step without the others
    with ranks.raised_by_all(WorkerLost):
        return [next(batches) for _ in range(number)]


class _Clock:
    """Measures samples per second and the fraction of the time spent waiting for data."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.samples = 0
        self.waited = 0.0
        """Seconds."""
        self.samples_per_s = 0.0
        self.data_wait = 0.0

    def since_begin(self) -> float:
        return time.perf_counter() - self.begin

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time spent in the with-block as time waiting for data."""
        asked = time.perf_counter()
        yield
        self.waited += time.perf_counter() - asked

    def took(self, samples: int) -> None:
        """Count the samples of the step that has just ended."""
        self.samples += samples
        elapsed = self.since_begin()
        self.samples_per_s = self.samples / elapsed
        self.data_wait = self.waited / elapsed

    def scalars(self) -> dict[str, float]:
        """As they are logged."""
        return {
            "throughput/samples_per_s": self.samples_per_s,
            "throughput/data_wait": self.data_wait,
        }

    def __str__(self) -> str:
        return f"{self.samples_per_s:.1f} samples/s, data wait {self.data_wait:.0%}"


def finite_mean(values: np.ndarray) -> float:
    """Return the mean of what is finite; NaN of nothing."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def step(state: State, method: Method, group: list[Batch], look: Look | None = None) -> StepResult:
    """Take one optimiser step on a group of batches.

    `look` is called with the logits and the target of the last batch, when the step is taken.

    The loss is the mean over the known (voxel, class) pairs of the whole group: the loss of each
    batch is weighted by its number of known pairs. A step whose numbers are not finite is
    skipped: weights, their average, running statistics and buffers of the loss stay as they
    were. Random numbers that were drawn stay drawn.
    """
    before = _buffers(state)
    with together.one_step():
        loss, logits = _gradients(state, method, group)
        state.scaler.unscale_(state.optimizer)
    parameters = [p for p in state.model.parameters() if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(parameters, method.max_grad_norm or math.inf)
    statistics = skipped.largest_statistic(state.model).to(loss.device)
    statistics = together.added_up(statistics)  # infinite in all processes once it is in one
    # one wait for the device, not three
    numbers = Numbers(*torch.stack([loss, norm, statistics]).tolist())
    is_skipped = skipped.is_bad(numbers, state.scaler)
    is_taken = math.isfinite(numbers.grad_norm) and not is_skipped
    fraction = optim.warmed_up(state.iteration, method.warmup)
    with optim.at_fraction(state.optimizer, fraction):
        state.learning_rate = float(state.optimizer.param_groups[0]["lr"])
        if is_taken:
            state.scaler.step(state.optimizer)
    if is_skipped:
        _restore_buffers(state, before)
        skipped.keep_scale(state.scaler)
    else:
        state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if is_taken and state.ema is not None:
        state.ema.update_parameters(state.model)
    if not is_taken:
        optim.count_as_stepped(state.optimizer)
    if look and not is_skipped:
        # only now: the graph of the forward pass is gone, and its memory free
        look(method.forward.shown(logits), group[-1].target)
    return StepResult(numbers, is_skipped)


def _gradients(
    state: State, method: Method, group: list[Batch]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradient of the loss of a group; return the loss and the last batch's logits."""
    known = together.summed(torch.stack([targets.count_known(batch.target) for batch in group]))
    total = known.sum().clamp(min=1)
    loss = torch.zeros((), device=total.device)
    for number, batch in enumerate(group):
        with together.gradients_wait(method.forward, number + 1 < len(group)):
            outputs = method.forward.outputs(state.model, batch.raw)
            # a batch's loss is a mean: weighed by its known pairs, they add up to the whole mean
            part = method.loss(outputs, batch.target) * (known[number] / total).float()
            together.backward(state.scaler.scale(part))
        loss += part.detach()
    return together.summed(loss), outputs[0].detach()


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


@torch.no_grad()
def validate(state: State, method: Method, validation: Validation, stop: Stop) -> Scores | None:
    """Compute the loss and the metrics over the fixed blocks; None if stop() returned True.

    Voxels are counted over all blocks before a metric is computed; metrics are not averaged over
    batches. The first call fixes the number of batches of all later calls
    (state.validation_batches) and the blocks that are shown (state.shown).
    """
    model = state.predictor.eval()
    batches = validation.batches
    counts = torch.zeros(4, len(validation.classes), dtype=torch.float64, device=batches.device)
    loss, known = torch.zeros(2, dtype=torch.float64, device=batches.device)
    ratio = np.divide(batches.blocks.target.scale, batches.blocks.input.scale)
    panels = Panels(validation.classes, state.shown, validation.figure_samples, ratio)
    slices = whole_slice.slices_of(batches.blocks, validation.figure_crops, validation.classes)
    stacks = validation.stacks(state.epoch + 1)
    wholes = [*slices, *itertools.chain.from_iterable(stacks)]
    is_first = not state.validation_batches
    begin = time.perf_counter()
    blocks = blocks_looked_at(state, validation)
    every = math.ceil(blocks / batches.batch_size)
    done = 0
    own = batches.every(ranks.size(), ranks.rank(), blocks)
    # in each round every process has a batch, but for the last one
    while done < every:
        if stop():
            return None
        number = done + ranks.rank()
        with ranks.raised_by_all(WorkerLost):
            batch = next(own, None)
        if batch is not None:
            logits = _logits(model, method.forward, batch.raw)
            labels = targets.binary(batch.target)
            known_pairs = targets.count_known(batch.target)
            loss += method.loss([logits], batch.target).double() * known_pairs
            known += known_pairs
            logits = method.forward.shown(logits)
            counts += count(logits, labels)
            raw = batch.raw_in_unit_range()
            first = number * batches.batch_size
            panels.take(raw, labels, logits, first)
            whole_slice.take(wholes, batches.blocks, first, raw=raw, labels=labels, logits=logits)
        done = min(done + ranks.size(), every)
        out_of_time = validation.time_limit and time.perf_counter() - begin > validation.time_limit
        if is_first and ranks.any_rank(bool(out_of_time)):
            break
    if is_first:
        state.validation_batches = done
    loss, known, counts = (together.added_up(part) for part in (loss, known, counts))
    panels.gather()
    whole_slice.gather(wholes)
    state.shown = panels.blocks()
    per_class = metrics.of_counts(counts.cpu().numpy(), validation.metrics)
    whole = None
    if validation.score and validation.is_scored(state.epoch + 1):
        whole = validation.score(model, method.forward, stop)
        if whole is None:
            return None
        per_class[CHALLENGE] = np.full(len(validation.classes), np.nan)
        per_class[CHALLENGE][: len(whole.per_class)] = whole.per_class
    return Scores(
        whole=whole,
        loss=float(loss / known.clamp(min=1)),
        per_class=per_class,
        images=panels.images(),
        slices={whole.title: whole.image() for whole in slices},
        stacks=stacks,
    )


def _logits(model: nn.Module, forward: ForwardPass, raw: torch.Tensor) -> torch.Tensor:
    """Return the logits of a batch, computed in parts as large as those of training.

    A process has a part of each batch in training, and memory for no more.
    """
    parts = raw.split(math.ceil(len(raw) / ranks.size()))
    if len(parts) == 1:
        return forward.outputs(model, raw)[0]
    return torch.cat([forward.outputs(model, part)[0] for part in parts])


def blocks_looked_at(state: State, validation: Validation) -> int:
    """Return the number of blocks to validate on, given the limits and the first validation."""
    blocks = len(validation.batches.blocks)
    size = validation.batches.batch_size
    batches = math.ceil(blocks / size)
    for limit in (state.validation_batches, validation.batch_limit):
        if limit:
            batches = min(batches, limit)
    return min(batches * size, blocks)


def count(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Count the known voxels as (4, classes) float64: tp, fp, fn, tn.

    A voxel is predicted positive where its logit is above 0, that is, its probability above 0.5.
    Both arguments are (B, classes, z, y, x); `labels` are integers with -1 for unknown.
    """
    predicted = logits > 0
    positive = labels == 1
    negative = labels == 0
    axes = (0, 2, 3, 4)
    true_positive = (predicted & positive).sum(axes)
    false_positive = (predicted & negative).sum(axes)
    false_negative = positive.sum(axes) - true_positive
    true_negative = negative.sum(axes) - false_positive
    counts = [true_positive, false_positive, false_negative, true_negative]
    return torch.stack(counts).double()

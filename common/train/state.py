"""What a run consists of while it trains: `State` changes and is saved, `Method` does not."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from common.data.samples import targets
from common.data.samples.targets import Target
from common.errors import UserError
from common.model.forward import ForwardPass
from common.train import metrics
from common.train.losses.criterion import CONTRACT, Criterion, over_outputs, problem_with, set_mode
from common.train.losses.heads import HeadsLoss
from common.train.processes import together
from common.train.skipped import Numbers


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
    """Voxels of logged training batches in the current epoch, see `metrics.count`; [] before."""
    validation_loss: float = math.nan
    """Of the last validation; NaN before the first."""
    smoothed: float = math.nan
    """The running mean of best_metric, see the setting metric_smoothing."""
    raw_scalings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the raw of each volume is normalised, fixed by the first call; see data.normalize."""
    input_channels: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of which volume each further input channel is in each crop; see data.input_channels."""
    labels: dict[str, str] = field(default_factory=dict)
    """What tells the labels of each crop, as they are now, from others; see data.labels_of."""
    raws: dict[str, str] = field(default_factory=dict)
    """Likewise of their raw; see data.raws_of."""
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
        self.epoch_loss[0] += result.numbers.loss
        self.epoch_loss[1] += 1
        self.recent_losses.append(result.numbers.loss)
        self.grad_norm = result.numbers.grad_norm

    @torch.no_grad()
    def count_voxels(self, logits: torch.Tensor, target: Target) -> None:
        """Count what a training batch got right, for the training metrics of the epoch."""
        own = metrics.count(logits, targets.binary(target))
        counts = together.added_up(own).cpu().numpy()
        before = self.epoch_counts or np.zeros_like(counts)
        self.epoch_counts = np.add(before, counts).tolist()

    def training_metric(self, name: str) -> float:
        """Mean of "dice" or "iou" over the classes in the logged batches of the epoch, or NaN."""
        if not self.epoch_counts:
            return math.nan
        by_metric = metrics.of_counts(np.array(self.epoch_counts), {})
        return metrics.finite_mean(by_metric[name])

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

    def fractions(self, of_batches: Sequence[Target]) -> torch.Tensor:
        """Return which part of the known pairs of a group each batch has, (batches, heads) float32.

        In a step of several processes of those of all. A loss without heads counts as one head.
        """
        if not isinstance(self.criterion, HeadsLoss):
            pairs = [targets.count_known(target).view(1) for target in of_batches]
        elif len(of_batches) > 1:
            pairs = [self.criterion.known_pairs(target) for target in of_batches]
        else:  # it has all of them: what is derived need not be counted
            return torch.ones(1, len(self.criterion.heads))
        of_all = together.summed(torch.stack(pairs))
        return (of_all / of_all.sum(0).clamp(min=1)).float()

    def loss(
        self, outputs: list[torch.Tensor], target: Target, fractions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of a network's outputs, a scalar; several are deep supervision.

        In a step of several processes it is this process's share, see `together.as_share`.

        fractions: (heads,) of this batch in its group, by which the means over batches are weighed
        so that they add up to the mean over the group; 1 unless given.
        """
        if torch.is_grad_enabled() and not outputs[0].requires_grad:
            raise UserError(
                "the model gives logits without a gradient; leave detach(), numpy() and no_grad() "
                "out of its forward"
            )
        set_mode(self.criterion, training=torch.is_grad_enabled())
        share = functools.partial(self._share, fractions=fractions)
        if len(outputs) == 1:
            loss = share(outputs[0], target, self.pos_weight)
        else:
            loss = over_outputs(share, outputs, target, self.pos_weight)
        if fractions is None or isinstance(self.criterion, HeadsLoss):
            return loss
        return loss * fractions[0]

    def _share(
        self,
        logits: torch.Tensor,
        target: Target,
        pos_weight: torch.Tensor | None,
        *,
        fractions: torch.Tensor | None,
    ) -> torch.Tensor:
        logits = targets.weighed(logits, target)
        if isinstance(self.criterion, HeadsLoss):
            # heads have shares of their own, of their own known pairs
            return self.criterion(logits, target, pos_weight, fractions)
        loss = self.criterion(logits, target, pos_weight)
        # tried before training, but a loss may give something else where a class is missing
        problem = problem_with(loss)
        if problem:
            raise UserError(f"criterion {problem} for a batch in training; {CONTRACT}")
        return together.as_share(loss, target)

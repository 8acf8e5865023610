"""Train one epoch, validate once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common.data import targets
from common.data.loaders import Batch, Batches
from common.errors import NotFinite
from common.model.forward import ForwardPass
from common.show import figures
from common.train import metrics


@dataclass
class State:
    """All that changes while a run goes on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    scaler: torch.amp.GradScaler
    epoch: int = 0
    """Epochs done, validation included."""
    iteration: int = 0
    """Optimiser steps done."""
    best: float = math.nan
    best_epoch: int = 0
    validation_batches: int = 0
    """How many batches the first validation had time for; 0 before it."""
    shown: dict[str, list[int]] = field(default_factory=dict)
    """For each class the validation blocks shown in TensorBoard, fixed by the first validation."""
    epoch_loss: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Sum of the losses and number of steps of the epoch under way."""


@dataclass(frozen=True)
class Method:
    """How a step is made: what does not change while a run goes on."""

    criterion: Callable
    pos_weight: torch.Tensor | None
    forward: ForwardPass
    max_grad_norm: float


def train_epoch(
    state: State,
    method: Method,
    batches: Iterator[Batch],
    last_iteration: int,
    accumulation: int,
    log: Callable[[dict[str, float], int], None],
    stop: Callable[[], bool],
    bar: tqdm,
) -> dict[str, float]:
    """Steps until `last_iteration`; ends early, after a whole step, when stop() is true.

    Returns loss (mean over steps), grad_norm (of the last step), samples_per_s and data_wait (fraction of the time).
    Raises NotFinite at a loss or gradient that is not finite, before the step is taken.
    """
    state.model.train()
    begin, waited, samples, norm, wait = time.perf_counter(), 0.0, 0, 0.0, 0.0
    recent: list[float] = []
    while state.iteration < last_iteration and not stop():
        asked = time.perf_counter()
        group = [next(batches) for _ in range(accumulation)]
        waited += time.perf_counter() - asked
        loss, norm = step(state, method, group)
        state.iteration += 1
        state.epoch_loss[0] += loss
        state.epoch_loss[1] += 1
        recent.append(loss)
        samples += sum(len(batch.raw) for batch in group)
        elapsed = time.perf_counter() - begin
        rate, wait = samples / elapsed, waited / elapsed
        if state.iteration % 20 == 0 or state.iteration == last_iteration:
            log(
                {
                    "loss/train": float(np.mean(recent)),
                    "grad_norm": norm,
                    "throughput/samples_per_s": rate,
                    "throughput/data_wait": wait,
                },
                state.iteration,
            )
            recent = []
        bar.set_postfix_str(
            f"loss {state.epoch_loss[0] / state.epoch_loss[1]:.4f}, {rate:.1f} samples/s, data wait {wait:.0%}",
            refresh=False,
        )
        bar.update()
    rate = samples / max(time.perf_counter() - begin, 1e-9)
    return {
        "loss": state.epoch_loss[0] / max(state.epoch_loss[1], 1),
        "grad_norm": norm,
        "samples_per_s": rate,
        "data_wait": wait,
    }


def step(state: State, method: Method, group: list[Batch]) -> tuple[float, float]:
    """One optimiser step on the mean over all known (voxel, class) pairs of a group of batches; loss and gradient norm."""
    known = [targets.count_known(batch.target) for batch in group]
    total = torch.stack(known).sum().clamp(min=1)
    loss = torch.zeros((), device=total.device)
    for batch, n in zip(group, known, strict=True):
        part = (
            method.criterion(
                method.forward(state.model, batch.raw), batch.target, method.pos_weight
            )
            * (n / total).float()
        )
        state.scaler.scale(part).backward()
        loss += part.detach()
    state.scaler.unscale_(state.optimizer)
    parameters = [p for p in state.model.parameters() if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(parameters, method.max_grad_norm or math.inf)
    value, size = torch.stack([loss, norm]).tolist()
    overflow = state.scaler.is_enabled() and math.isfinite(
        value
    )  # fp16: the scaler leaves this step out and scales less
    if not (math.isfinite(value) and math.isfinite(size)) and not overflow:
        crops = ", ".join(where for batch in group for where in batch.where)
        raise NotFinite(
            f"iteration {state.iteration + 1}: loss {value}, gradient norm {size}, on {crops}; the step was not taken. "
            "Lower learning_rate, set max_grad_norm, or look at these crops"
        )
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    return value, size


@dataclass
class Scores:
    """What a validation found."""

    loss: float
    per_class: dict[str, np.ndarray]
    """dice, iou, precision, recall: (classes,) at probability 0.5 over all known voxels; NaN for a class without a positive one."""
    images: dict[str, np.ndarray]
    """RGB image of each class on its fixed blocks."""

    def mean(self, metric: str) -> float:
        """A metric's mean over the classes that occur, or the loss."""
        values = np.array([self.loss]) if metric == "loss" else self.per_class[metric]
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else math.nan


@torch.no_grad()
def validate(
    state: State,
    method: Method,
    batches: Batches,
    classes: tuple[str, ...],
    time_limit: float,
    batch_limit: int,
    figure_samples: int,
    stop: Callable[[], bool],
) -> Scores | None:
    """Loss and metrics over the fixed blocks; None if stop() became true. The first call sets state.validation_batches.

    Counts are pooled over everything seen, not averaged over batches.
    """
    state.model.eval()
    size, blocks = batches.batch_size, len(batches.blocks)
    wanted = min(n for n in (state.validation_batches, batch_limit, math.ceil(blocks / size)) if n)
    counts = torch.zeros(3, len(classes), dtype=torch.float64, device=batches.device)
    loss, known = torch.zeros(2, dtype=torch.float64, device=batches.device)
    ratio = np.divide(batches.blocks.target.scale, batches.blocks.input.scale)
    panels = _Panels(classes, state.shown, figure_samples, ratio)
    begin = time.perf_counter()
    done = 0
    for number, batch in enumerate(batches.between(0, min(wanted * size, blocks))):
        if stop():
            return None
        logits = method.forward(state.model, batch.raw)
        target = targets.dense(batch.target)
        n = targets.count_known(batch.target)
        loss += method.criterion(logits, batch.target, method.pos_weight).double() * n
        known += n
        counts += count(logits, target)
        panels.take(batch.raw, target, logits, number * size)
        done += 1
        if time_limit and not state.validation_batches and time.perf_counter() - begin > time_limit:
            break
    state.validation_batches = state.validation_batches or done
    state.shown = panels.blocks()
    return Scores(
        float(loss / known.clamp(min=1)), metrics.metrics(*counts.cpu().numpy()), panels.images()
    )


def count(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(3, classes) float64: true positive, false positive, false negative voxels at probability 0.5, where known."""
    predicted, positive, negative = logits > 0, target == 1, target == 0
    axes = (0, 2, 3, 4)
    hit = (predicted & positive).sum(axes)
    return torch.stack([hit, (predicted & negative).sum(axes), positive.sum(axes) - hit]).double()


class _Panels:
    """Pictures of a few blocks for each class: of the given ones, or, the first time, of those with most of the class."""

    def __init__(
        self, classes: tuple[str, ...], shown: dict[str, list[int]], samples: int, ratio: np.ndarray
    ):
        self.classes, self.shown, self.samples = classes, shown, samples
        self.ratio = ratio  # size of a target voxel in raw voxels, z, y, x
        self.kept: dict[str, list[tuple[int, int, np.ndarray]]] = {name: [] for name in classes}

    def take(
        self, raw: torch.Tensor, target: torch.Tensor, logits: torch.Tensor, first_block: int
    ) -> None:
        """Keep the slices of this batch that are to be shown: the z with most positive voxels of the class."""
        if not self.samples:
            return
        per_slice = (target == 1).sum((3, 4)).cpu().numpy()  # (B, classes, z)
        for sample, of_classes in enumerate(per_slice):
            for channel, name in enumerate(self.classes):
                block, amount = first_block + sample, int(of_classes[channel].sum())
                if self.shown:
                    wanted = block in self.shown.get(name, ())
                else:
                    wanted = amount > 0 and (
                        len(self.kept[name]) < self.samples or amount > self.kept[name][-1][0]
                    )
                if wanted:
                    z = int(of_classes[channel].argmax())
                    self.kept[name].append(
                        (
                            amount,
                            block,
                            self._slice(
                                raw[sample, 0], target[sample, channel], logits[sample, channel], z
                            ),
                        )
                    )
                    self.kept[name] = sorted(self.kept[name], key=lambda kept: (-kept[0], kept[1]))[
                        : self.samples
                    ]

    def _slice(
        self, raw: torch.Tensor, target: torch.Tensor, logits: torch.Tensor, z: int
    ) -> np.ndarray:
        raw_z = int((z + 0.5 - len(target) / 2) * self.ratio[0] + len(raw) / 2)
        slices = raw[raw_z], target[z], logits[z].float().sigmoid()
        return figures.panel(*(part.cpu().numpy() for part in slices), self.ratio[1:])

    def blocks(self) -> dict[str, list[int]]:
        return self.shown or {
            name: [block for _, block, _ in kept] for name, kept in self.kept.items() if kept
        }

    def images(self) -> dict[str, np.ndarray]:
        return {
            name: figures.above([image for _, _, image in kept])
            for name, kept in self.kept.items()
            if kept
        }

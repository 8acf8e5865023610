"""One validation: the loss, the metrics and the pictures of a network over fixed blocks."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from common import runtime
from common.config.settings import CHALLENGE, TrainConfig
from common.data.crops.normalize import Scalings
from common.data.samples import targets
from common.data.samples.batches import Batch, Batches
from common.data.samples.workers import WorkerLost
from common.model.forward import ForwardPass
from common.stopping import ShouldStop
from common.train import metrics
from common.train.processes import ranks, together
from common.train.recording import whole_slice
from common.train.recording.panels import Panels
from common.train.recording.whole_slice import WholeSlice
from common.train.state import Method, State


@dataclass(frozen=True)
class WholeCropScore:
    """The challenge's score of whole validation crops."""

    overall: float
    """What ranks submissions, over instance and semantic classes; NaN without a class."""
    per_class: np.ndarray
    """(classes,), NaN of a class that is not scored."""


ScoreCrops = Callable[[Scalings, nn.Module, ForwardPass, ShouldStop], WholeCropScore | None]
"""`score(scalings, model, forward, stop)`: how raw is normalised, a model in eval mode, and how raw
goes through it. None once stop() returned True."""


@dataclass(frozen=True)
class Validation:
    """What every validation runs on; the same in every epoch."""

    config: TrainConfig
    batches: Batches
    score: Callable[[nn.Module, ForwardPass, ShouldStop], WholeCropScore | None] | None = None
    """Scores whole crops: a ScoreCrops that has its scalings."""

    def stacks(self, epoch: int) -> list[list[WholeSlice]]:
        """Return the stacks of sections to fill in an epoch, counted from 1."""
        if not is_one_of_every(self.config.preview_every, epoch):
            return []
        return whole_slice.stacks_of(
            self.batches.blocks, self.config.figure_crops, self.config.channels
        )


def is_one_of_every(number: int, epoch: int) -> bool:
    """Return whether something is done in an epoch that is done in every so many; 0 is never."""
    return number > 0 and epoch % number == 0


@dataclass
class ValidationScores:
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
        return metrics.finite_mean(values)

    def channels(self, metric: str) -> list[int]:
        """Return the channels of the classes that `mean` is over; none for "loss"."""
        if metric not in self.per_class:
            return []
        return np.flatnonzero(np.isfinite(self.per_class[metric])).tolist()

    def add_whole_crops(self, whole: WholeCropScore) -> None:
        """Take the score of whole crops among the metrics; derived channels have none."""
        channels = len(self.per_class["dice"])
        of_channels = np.full(channels, np.nan)
        of_channels[: len(whole.per_class)] = whole.per_class
        self.per_class[CHALLENGE] = of_channels
        self.whole = whole


@torch.no_grad()
def validate(
    state: State, method: Method, validation: Validation | None, stop: ShouldStop
) -> ValidationScores | None:
    """Compute the loss and the metrics over the fixed blocks.

    The first call fixes the number of batches of all later calls (state.validation_batches) and the
    blocks that are shown (state.shown).

    None without validation crops, or if stop() returned True. What does not come to its end leaves
    the random numbers as they were: the call that goes on begins it again.
    """
    if validation is None:
        return None
    before = runtime.random_state()
    scores = None
    try:
        scores = _scores(state, method, validation, stop)
    finally:
        if scores is None:
            runtime.restore_random_state(before)
    return scores


def _scores(
    state: State, method: Method, validation: Validation, stop: ShouldStop
) -> ValidationScores | None:
    """Return the results of a validation; None if stop() returned True."""
    state.predictor.eval()
    measured = _Measured(state, validation)
    done = _look_at_blocks(state, method, validation, measured=measured, stop=stop)
    if done is None:
        return None
    state.validation_batches = state.validation_batches or done
    measured.gather()
    state.shown = measured.panels.blocks()
    scores = measured.scores(validation)
    every = validation.config.validation_score_every
    if validation.score and is_one_of_every(every, state.epoch + 1):
        whole = validation.score(state.predictor, method.forward, stop)
        if whole is None:
            return None
        scores.add_whole_crops(whole)
    return scores


def _look_at_blocks(
    state: State, method: Method, validation: Validation, *, measured: _Measured, stop: ShouldStop
) -> int | None:
    """Measure batch after batch; return the number of batches, None if stop() returned True.

    Several processes take turns: in each round every one has a batch, but for the last round.
    """
    batches = validation.batches
    blocks = blocks_looked_at(state, validation)
    last = math.ceil(blocks / batches.batch_size)
    own = batches.every(ranks.size(), ranks.rank(), blocks)
    is_first_validation = not state.validation_batches
    time_limit = validation.config.validation_time_limit
    begun = time.perf_counter()
    done = 0
    while done < last:
        if stop():
            return None
        with ranks.raised_by_all(WorkerLost):
            batch = next(own, None)
        if batch is not None:
            number = done + ranks.rank()
            logits = _logits(state.predictor, method.forward, batch.raw)
            measured.count_loss(method.loss([logits], batch.target), batch)
            measured.look(batch, method.forward.shown(logits), number * batches.batch_size)
        done = min(done + ranks.size(), last)
        if is_first_validation and ranks.any_rank(_is_over(time_limit, begun)):
            break
    return done


def _is_over(time_limit: float, begun: float) -> bool:
    """Return whether a time limit, in seconds, has passed since `begun`; 0 is no limit."""
    return time_limit > 0 and time.perf_counter() - begun > time_limit


class _Measured:
    """What a validation has measured so far.

    Voxels are counted over all blocks before a metric is computed; metrics are not averaged over
    batches.
    """

    def __init__(self, state: State, validation: Validation):
        """Nothing yet, and the pictures that this validation is to make."""
        config = validation.config
        classes = config.channels
        blocks = validation.batches.blocks
        zeros = torch.zeros(2, dtype=torch.float64, device=validation.batches.device)
        self.loss = zeros[0]
        """Sum over the known (voxel, class) pairs."""
        self.known = zeros[1]
        """Number of known pairs."""
        self.voxels = zeros.new_zeros(4, len(classes))
        """See `metrics.count`."""
        self.blocks = blocks
        ratio = np.divide(blocks.target.scale, blocks.input.scale)
        self.panels = Panels(classes, state.shown, config.figure_samples, ratio)
        self.slices = whole_slice.slices_of(blocks, config.figure_crops, classes)
        self.stacks = validation.stacks(state.epoch + 1)

    @property
    def sections(self) -> list[WholeSlice]:
        """All sections through whole crops that are to be filled."""
        return [*self.slices, *itertools.chain.from_iterable(self.stacks)]

    def count_loss(self, loss: torch.Tensor, batch: Batch) -> None:
        """Add the loss of a batch, which is a mean over its known pairs."""
        known = targets.count_known(batch.target)
        self.loss += loss.double() * known
        self.known += known

    def look(self, batch: Batch, logits: torch.Tensor, first_block: int) -> None:
        """Count the voxels of a batch, and draw what is shown of it.

        logits: (B, classes, z, y, x), whose sigmoids are probabilities.
        """
        labels = targets.binary(batch.target)
        self.voxels += metrics.count(logits, labels)
        raw = batch.raw_in_unit_range()
        self.panels.take(raw, labels, logits, first_block)
        whole_slice.take(
            self.sections, self.blocks, first_block, raw=raw, labels=labels, logits=logits
        )

    def gather(self) -> None:
        """Add what other processes measured of their batches."""
        self.loss = together.added_up(self.loss)
        self.known = together.added_up(self.known)
        self.voxels = together.added_up(self.voxels)
        self.panels.gather()
        whole_slice.gather(self.sections)

    def scores(self, validation: Validation) -> ValidationScores:
        """Return what was measured, without a score of whole crops."""
        return ValidationScores(
            loss=float(self.loss / self.known.clamp(min=1)),
            per_class=metrics.of_counts(self.voxels.cpu().numpy(), validation.config.metrics),
            images=self.panels.images(),
            slices={whole.title: whole.image() for whole in self.slices},
            stacks=self.stacks,
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
    for limit in (state.validation_batches, validation.config.validation_batch_limit):
        if limit:
            batches = min(batches, limit)
    return min(batches * size, blocks)

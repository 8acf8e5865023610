"""What an epoch is worth: whether it is the best so far, and how long none was better."""

from __future__ import annotations

import math

from common.config.settings import CHALLENGE, TrainConfig
from common.talk import note, some
from common.train.optimising import optim
from common.train.recording.record import BestSoFar, is_better
from common.train.state import State
from common.train.steps import TrainedEpoch
from common.train.validation import ValidationScores


def count_epoch(
    config: TrainConfig, state: State, trained: TrainedEpoch, scores: ValidationScores | None
) -> bool:
    """Count an epoch, step a scheduler of epochs; return whether the epoch is the best so far."""
    state.epoch += 1
    state.epoch_loss = [0.0, 0.0]
    state.epoch_counts = []
    state.skipped_in_epoch = 0
    if scores:
        state.validation_loss = scores.loss
        value, improved = judge_validation(config, state, scores)
    else:
        value = trained.loss
        improved = is_better(value, state.best_loss, "loss")
    if is_better(trained.loss, state.best_loss, "loss"):
        state.best_loss = trained.loss
    if improved:
        state.waited = 0
    elif math.isfinite(value):
        state.waited += 1
    if config.scheduler_step == "epoch":
        optim.step_scheduler(state.scheduler, value)
    return improved and scores is not None


def judge_validation(
    config: TrainConfig, state: State, scores: ValidationScores
) -> tuple[float, bool]:
    """Compare a validation with the best so far, and keep it if it is better.

    Returns its best_metric, smoothed if that is asked for and NaN if there is none that can be
    compared, and whether it is the best.
    """
    if config.best_metric == CHALLENGE and scores.whole is None:
        return math.nan, False  # whole crops are scored in other epochs
    value = scores.mean(config.best_metric)
    classes = scores.channels(config.best_metric)
    best = BestSoFar(state.best, frozenset(state.judged))
    if not best.compares(classes):
        missing = [config.channels[channel] for channel in sorted(best.classes - set(classes))]
        pass_over(state, f"has no {config.best_metric} of {some(missing)}, as others have")
        return math.nan, False
    if not math.isfinite(value):
        pass_over(state, f"has {config.best_metric} {value}")
        return math.nan, False
    # a mean over other classes than before begins anew, as the best does
    is_like_before = frozenset(classes) == best.classes and math.isfinite(state.smoothed)
    weight = config.metric_smoothing if is_like_before else 0.0
    if weight:
        value = weight * state.smoothed + (1 - weight) * value
    state.smoothed = value
    scores.judged = value
    is_best = best.take(value, classes, config.best_metric)
    state.judged = sorted(best.classes)
    if is_best:
        state.best = value
        state.best_epoch = state.epoch
    return value, is_best


def pass_over(state: State, why: str) -> None:
    """Count an epoch that nothing can be decided by, and say so at the first one."""
    state.passed_over += 1
    if state.passed_over == 1:
        note(
            f"epoch {state.epoch} {why}: it and others like it decide nothing, neither what is "
            "best nor the learning rate nor when to stop"
        )


def is_finished(config: TrainConfig, state: State) -> bool:
    """Return whether all epochs are done, or early stopping ends the run."""
    patience = config.early_stopping_patience
    out_of_patience = patience > 0 and state.waited >= patience
    return state.epoch >= config.epochs or out_of_patience

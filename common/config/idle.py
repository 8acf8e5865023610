"""Settings that are given and have nothing to do beside others of the same run."""

from __future__ import annotations

import math
from collections.abc import Callable

from common.config.settings import CHALLENGE, LOGS, TrainConfig

NEVER_COMES = {
    "early_stopping_patience": "training never ends early",
    "preview_every": "no preview is made",
    "validation_score_every": "no crop is scored",
}
"""Settings in epochs, and what comes of one that the run is too short for."""


def _changes_no_intensity(config: TrainConfig) -> bool:
    ranges = {*config.gamma_range, *config.contrast_range}
    return ranges == {1.0} and not config.noise_std


def _logs_to_no_mlflow(config: TrainConfig) -> bool:
    return "mlflow" not in config.trackers


UNHEEDED: dict[str, tuple[Callable[[TrainConfig], bool], str]] = {
    "pos_weight_cap": (
        lambda config: not config.weight_loss,
        "weight_loss = False, which weights no voxel",
    ),
    "positive_centre_fraction": (
        lambda config: not config.weighted_sampler,
        "weighted_sampler = False, which places no patch",
    ),
    "intensity_probability": (
        _changes_no_intensity,
        "none of gamma_range, contrast_range and noise_std",
    ),
    "worker_time_limit": (
        lambda config: not config.num_workers,
        "num_workers = 0, which waits for none",
    ),
    "mlflow_uri": (_logs_to_no_mlflow, "no 'mlflow' among trackers"),
    "mlflow_parent": (_logs_to_no_mlflow, "no 'mlflow' among trackers"),
}
"""By setting: when it has no effect, and beside what."""


def idle_settings(config: TrainConfig) -> list[str]:
    """Return a sentence for each setting that changes nothing in a run.

    They are no mistakes: a shorter run, or one without a method, is often tried with --set.
    """
    sentences = []
    for name, outcome in NEVER_COMES.items():
        if _comes_too_late(config, name):
            sentences.append(
                f"{name} = {getattr(config, name)} and epochs = {config.epochs}: {outcome}"
            )
    for name, (has_no_effect, beside) in UNHEEDED.items():
        value = getattr(config, name)
        if value != getattr(TrainConfig, name) and has_no_effect(config):
            sentences.append(f"{name} = {value!r} has no effect beside {beside}")
    if config.counter_classes and config.weighted_sampler and config.positive_centre_fraction == 1:
        sentences.append(
            "counter_classes: crops that annotate nothing else are never drawn beside "
            "positive_centre_fraction = 1, which places every patch on a class that is learnt"
        )
    if not set(LOGS).intersection(config.path("logs_save_path").parts):
        sentences.append(
            f"logs_save_path = {config.logs_save_path!r}: unite and report find runs in folders "
            f"called {' or '.join(LOGS)}, and in others where these are named"
        )
    return sentences


def _comes_too_late(config: TrainConfig, name: str) -> bool:
    """Whether a number of epochs is longer than the run; 0 is no number of them."""
    waited = getattr(config, name)
    last = config.epochs
    if name == "early_stopping_patience":
        # epochs without a value do not count, and the first one is always the best so far
        is_scored = config.best_metric == CHALLENGE and config.validation_score_every
        every = config.validation_score_every if is_scored else 1
        last = math.ceil(config.epochs / every) - 1
    return bool(waited) and waited > last

"""Settings that are given and have nothing to do beside others of the same run."""

from __future__ import annotations

from common.config.settings import TrainConfig

NEVER_COMES = {
    "early_stopping_patience": "training never ends early",
    "preview_every": "no preview is made",
    "validation_score_every": "no crop is scored",
}
"""Settings in epochs, and what comes of one that the run is too short for."""

UNHEEDED = {
    "pos_weight_cap": "weight_loss = False, which weights no voxel",
    "positive_centre_fraction": "weighted_sampler = False, which places no patch",
    "intensity_probability": "none of gamma_range, contrast_range and noise_std",
    "worker_time_limit": "num_workers = 0, which waits for none",
    "mlflow_uri": "no 'mlflow' among trackers",
    "mlflow_parent": "no 'mlflow' among trackers",
}
"""Settings, and beside what they have no effect."""


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
    for name, beside in UNHEEDED.items():
        value = getattr(config, name)
        if value != getattr(TrainConfig, name) and _is_unheeded(config, name):
            sentences.append(f"{name} = {value!r} has no effect beside {beside}")
    return sentences


def _comes_too_late(config: TrainConfig, name: str) -> bool:
    waited = getattr(config, name)
    # the first epoch is always the best so far, and none of those that are waited
    last = config.epochs - 1 if name == "early_stopping_patience" else config.epochs
    return bool(waited) and waited > last


def _is_unheeded(config: TrainConfig, name: str) -> bool:
    if name == "pos_weight_cap":
        return not config.weight_loss
    if name == "positive_centre_fraction":
        return not config.weighted_sampler
    if name == "intensity_probability":
        ranges = (*config.gamma_range, *config.contrast_range)
        return set(ranges) == {1.0} and not config.noise_std
    if name == "worker_time_limit":
        return not config.num_workers
    return "mlflow" not in config.trackers

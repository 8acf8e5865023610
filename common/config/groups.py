"""Groups of settings by name: which may change in a continued run, in a search, after training.

A new setting is in those that its kind belongs to; in none, a continued run may not change it.
"""

from __future__ import annotations

from common.config.settings import RUN_FOLDERS

PLACES = frozenset(
    {
        "base_experiment_path",
        "model_name",
        "run_name",
        "data_path",
        "datasplit_path",
        "cache_path",
        "process_config_path",
        *RUN_FOLDERS,
    }
)
"""Settings that say where things are, not what is done."""

# that the datasplit's path may change does not let its content: a run keeps a hash of it
MAY_CHANGE = PLACES | frozenset(
    [
        "load_model",
        "cache_gb",
        "num_workers",
        "worker_time_limit",
        "predictions_codec",
        "epochs",
        "device",
        "precision",
        "channels_last",
        "compile",
        "early_stopping_patience",
        "checkpoint_minutes",
        "checkpoints_kept",
        "skipped_steps_limit",
        "training_time_limit",
        "figure_samples",
        "figure_crops",
        "preview_every",
        "preview_tiff",
        "metrics",
        "trackers",
        "mlflow_uri",
        "mlflow_parent",
        "translated",
        "missing_split",
    ]
)
"""Settings that a continued run may change.

They take effect at once, and change neither the data nor the method of training.
"""

OF_THE_SCHEDULE = ("scheduler", "scheduler_kwargs", "scheduler_step", "warmup_iterations")
"""Settings that say how the learning rate goes, beside epochs."""

OF_THE_FUTURE = frozenset([*OF_THE_SCHEDULE, "ema_decay"])
"""Settings that a continued run may change, too: they say how it goes on, and no more.

At which rate, and whether its weights are averaged, which the trained ones do not depend on.
"""

OF_TRAINING = frozenset(
    [
        *OF_THE_FUTURE,
        "num_workers",
        "worker_time_limit",
        "selective",
        "pseudo_weight",
        "positive_centre_fraction",
        "crop_sampling_weights",
        "spatial_transforms",
        "intensity_probability",
        "gamma_range",
        "contrast_range",
        "noise_std",
        "epochs",
        "iterations_per_epoch",
        "gradient_accumulation_steps",
        "learning_rate",
        "weight_decay",
        "criterion_kwargs",
        "weight_loss",
        "pos_weight_cap",
        "init_output_to_prior",
        "init_logit_rms",
        "max_grad_norm",
        "skipped_steps_limit",
        "compile",
        "checkpoint_minutes",
        "checkpoints_kept",
        "training_time_limit",
        "validation_time_limit",
        "validation_batch_limit",
        "metric_smoothing",
        "early_stopping_patience",
        "figure_samples",
        "figure_crops",
        "preview_every",
        "preview_tiff",
        "trackers",
        "mlflow_uri",
        "mlflow_parent",
    ]
)
"""Settings that training alone reads, and that are not checked against any that others read.

Commands after it are not told them.
"""

OF_INPUT = ("raw_range", "raw_normalization", "raw_sections", "softmax")
"""Settings by which weights know what they are given, and what is made of what they give."""

OBJECTIVE = frozenset(
    [
        "best_metric",
        "metric_smoothing",
        "validation_score_every",
        "validation_time_limit",
        "validation_batch_limit",
        "datasplit_path",
        "data_path",
        "classes",
        "extra_classes",
        "class_relations",
        "exclusive_classes",
        "counter_classes",
        "derived",
        "softmax",
        "input_array_info",
        "target_array_info",
        "random_seed",
        "use_mutual_exclusion",
        "infer_groups",
    ]
)
"""Settings that decide how a trial is measured: the blocks, their labels, the metric."""

BUDGET = frozenset(
    ["epochs", "iterations_per_epoch", "early_stopping_patience", "training_time_limit"]
)
"""Settings that decide how long a trial may take; they are the same for all trials."""

OF_THE_LOSS = frozenset(
    ["criterion", "criterion_kwargs", "criteria", "loss_weights", "weight_loss", "pos_weight_cap"]
)
"""Settings that change the validation loss: part of the measure if best_metric is "loss"."""

OF_SEVERAL = {
    "class_sampling_weights": "{}",
    "derived": "{}",
    "criteria": "{}",
    "loss_weights": "{}",
    "softmax": "",
}
"""Settings of several channels, and how `--set` says that there are none."""

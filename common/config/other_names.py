"""What settings are called in other programs, and what to say about a name that is none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

TOOLBOX_NAMES = {
    "model": "give build_model(classes), which is called after seeding",
    "model_to_load": "load_model takes a checkpoint file",
    "dataloader_kwargs": "num_workers is the one that is left of it",
    "low_is_best": "best_metric says what is best",
    "smoothing_window": "metric_smoothing is the weight of the epochs before",
    "validation_prob": "make-datasplit takes --validation-fraction",
    "force_all_classes": "write the datasplit with make-datasplit",
    "filter_by_scale": "make-datasplit takes --scale",
    "use_s3": "fetch the data to the data root first",
    "target_value_transforms": "labels are 0 and 1 already",
}
"""Settings of the public toolbox that do not exist here, and what to write instead."""

# the toolbox reads one pair of these names, configurations in use set the other
for _name in ("train_raw", "train_raw_value", "val_raw", "val_raw_value"):
    TOOLBOX_NAMES[f"{_name}_transforms"] = (
        "raw_range and raw_normalization scale raw; gamma_range, contrast_range and noise_std "
        "change it"
    )

_CALLED = {
    "precision": "amp mixed_precision fp16 bf16 half dtype",
    "compile": "torch_compile compile_model",
    "learning_rate": "lr base_lr step_size",
    "weight_decay": "wd l2",
    "random_seed": "seed",
    "device": "gpu gpus cuda cpu accelerator",
    "num_workers": "workers n_workers num_threads",
    "batch_size": "bs batch",
    "epochs": "n_epochs num_epochs max_epochs",
    "iterations_per_epoch": "steps_per_epoch max_iterations",
    "gradient_accumulation_steps": "accumulation_steps accumulate_grad_batches",
    "ema_decay": "ema use_ema model_ema",
    "max_grad_norm": "clip_grad clip_grad_norm grad_clip gradient_clip_val",
    "criterion": "loss loss_fn loss_function",
    "optimizer": "optim",
    "scheduler": "lr_scheduler",
    "warmup_iterations": "warmup warmup_steps num_warmup_steps",
    "scheduler_step": "scheduler_interval",
    "early_stopping_patience": "patience early_stopping",
    "input_array_info": "patch_size patch_shape input_shape input_size crop_size voxel_size "
    "resolution",
    "target_array_info": "output_shape target_shape",
    "classes": "labels class_names",
    "build_model": "network net",
    "augmentations": "augmentation",
    "spatial_transforms": "transforms",
    "load_model": "checkpoint resume resume_from pretrained weights",
    "run_name": "name",
    "model_name": "experiment_name",
    "logs_save_path": "output_dir log_dir logdir",
    "model_save_path": "checkpoint_dir save_path",
    "data_path": "data data_dir data_root",
    "datasplit_path": "split datasplit",
    "cache_path": "cache",
    "raw_normalization": "normalize normalization norm",
    "raw_sections": "z_sum zsum",
    "best_metric": "metric monitor",
    "training_time_limit": "time_limit max_time",
    "trackers": "logger wandb mlflow",
}
"""By setting the names that it has in other programs of this field."""

OTHER_NAMES: dict[str, str] = {}
"""By such a name the setting."""
for _setting, _names in _CALLED.items():
    OTHER_NAMES |= dict.fromkeys(_names.split(), _setting)

NOT_HERE = {
    "momentum": "give it to the optimizer: functools.partial(torch.optim.SGD, momentum=0.9)",
    "betas": "give them to the optimizer: functools.partial(torch.optim.AdamW, betas=...)",
    "eps": "give it to the optimizer: functools.partial(torch.optim.AdamW, eps=...)",
    "nesterov": "give it to the optimizer: functools.partial(torch.optim.SGD, nesterov=True, ...)",
    "warmup_epochs": "write warmup_iterations, which counts optimiser steps",
    "dropout": "the network is built by build_model: give it there, or by model_kwargs",
    "shuffle": "samples are drawn at random by random_seed",
    "pin_memory": "num_workers is all that is to be set of the loader",
    "persistent_workers": "num_workers is all that is to be set of the loader",
    "prefetch_factor": "num_workers is all that is to be set of the loader",
    "distributed": "several GPUs are asked for by train --gpus all, or by torchrun",
    "ddp": "several GPUs are asked for by train --gpus all, or by torchrun",
    "devices": "several GPUs are asked for by train --gpus 0,1, one by the setting device",
    "num_gpus": "several GPUs are asked for by train --gpus 0,1, one by the setting device",
    "deterministic": "the same random_seed gives the same run",
    "num_classes": "it is the number of names in classes",
    "in_channels": "raw is one channel; input_channels names further ones, and build_model gets "
    "their number",
    "out_channels": "it is the number of names in classes",
    "verbose": "there is none",
    "debug": "there is none; `train --check` takes a few steps and keeps nothing",
}
"""What to do instead of settings that other programs have and that do not exist here."""


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is no setting: the nearest one, or what to do instead."""
    known = list(known)
    key = name.lower()
    near = difflib.get_close_matches(key, known, 1, 0.6)
    # what another program calls so is known better than by likeness
    elsewhere = OTHER_NAMES.get(key)
    if elsewhere in known:
        hint = f"did you mean '{elsewhere}'?"
    elif name in TOOLBOX_NAMES:
        hint = TOOLBOX_NAMES[name]
    elif key in NOT_HERE:
        hint = NOT_HERE[key]
    elif near:
        hint = f"did you mean '{near[0]}'?"
    else:
        hint = "remove it, or begin its name with _ if it is not a setting"
    return f"unknown setting '{name}'; {hint}"

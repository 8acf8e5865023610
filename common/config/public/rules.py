"""What becomes of each name of the public toolbox that is no setting here, or another one.

The table; a rule writes settings into a `Draft` and says in a note what it took how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.config.public import places, training, transforms, values
from common.config.public.draft import Draft

RULES: dict[str, Callable[[Draft, Any], None]] = {
    # in this order: an optimiser is over the model, a scheduler over the optimiser
    "model": training.model,
    "optimizer": training.optimizer,
    "scheduler": training.scheduler,
    "scheduler_kwargs": training.scheduler_kwargs,
    "criterion": training.criterion,
    "criterion_kwargs": training.criterion_kwargs,
    "classes": values.classes,
    "input_array_info": values.array_info("input_array_info"),
    "target_array_info": values.array_info("target_array_info"),
    "model_save_path": places.model_save_path,
    "logs_save_path": places.logs_save_path,
    "load_model": places.load_model,
    "model_to_load": places.model_to_load,
    "data_base_path": places.data_base_path,
    "force_all_classes": places.force_all_classes,
    "filter_by_scale": places.filter_by_scale,
    "validation_prob": places.validation_prob,
    "use_s3": places.use_s3,
    "dataloader_kwargs": values.dataloader_kwargs,
    "random_seed": values.random_seed,
    "device": values.device,
    "smoothing_window": values.smoothing_window,
    "use_mixed_precision": values.use_mixed_precision,
    "train_raw_value_transforms": transforms.raw_transforms,
    "train_raw_transforms": transforms.raw_transforms,
    "val_raw_value_transforms": transforms.raw_transforms,
    "val_raw_transforms": transforms.raw_transforms,
    "value_transforms": transforms.raw_transforms,
    "target_value_transforms": transforms.target_transforms,
}
"""What becomes of a name of the toolbox that is no setting here, or another one."""

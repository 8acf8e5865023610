"""Residual-encoder U-Net on the 48 tested classes at 8 nm.

    python -m cellmap_segmentation_challenge train resenc8_all/train_config.py

Every setting, its default and its meaning: docs/reference/settings.md.
"""

from torch.optim import AdamW as optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR as scheduler

from common.train.losses import bce_dice as criterion

from .data import classes, input_array_info, target_array_info
from .model import build_model

# a batch of 8 is enough for batch norm, whose statistics in prediction are those of training
model_kwargs = {"norm": "batch"}
batch_size = 8

# what was measured on small volumes for minutes (docs/explanation/recipe.md), slower for days
learning_rate = 1e-3
warmup_iterations = 1000
scheduler_step = "iteration"
ema_decay = 0.999
init_logit_rms = 1.0
epochs = 300
iterations_per_epoch = 1000
weight_loss = False  # Dice balances the classes
max_grad_norm = 100.0  # loose: only against blow-ups, as in the other baselines
validation_time_limit = 60.0

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.1}},
    "transpose": {"axes": ["x", "y", "z"]},
    "rotate": {"axes": {"x": [-180, 180], "y": [-180, 180], "z": [-180, 180]}},
}
gamma_range = (0.9, 1.1)
contrast_range = (0.9, 1.1)
noise_std = 0.01

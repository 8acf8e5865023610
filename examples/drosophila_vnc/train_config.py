"""Residual-encoder U-Net on sections of a fly larva's ventral nerve cord.

    python -m cellmap_segmentation_challenge train examples/drosophila_vnc --data FOLDER

Crops 1 to 4 train, crop 5 validates. FOLDER holds drosophila_vnc/drosophila_vnc.zarr.
"""

from torch.optim import AdamW as optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR as scheduler

from common.train.losses import bce_dice as criterion

from .data import classes, input_array_info, target_array_info
from .model import build_model

# batch norm: statistics in prediction are those of training, and a batch is many patches
model_kwargs = {"width": 8, "stem_stride": 2, "norm": "batch", "deep_supervision": True}

# many small patches learn more per minute than few large ones: docs/explanation/recipe.md
batch_size = 16
learning_rate = 2e-3
max_grad_norm = 1.0
warmup_iterations = 20
scheduler_step = "iteration"
ema_decay = 0.99
init_logit_rms = 1.0
epochs = 10
iterations_per_epoch = 80
weight_loss = False  # Dice balances the classes
best_metric = "iou"
num_workers = 0

spatial_transforms = {  # in the plane of the sections only
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["x", "y"]},
}

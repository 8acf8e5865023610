"""Residual-encoder U-Net on the cells of a fly's optic medulla, their edges and affinities.

    python -m cellmap_segmentation_challenge train examples/affinities --data FOLDER

Crops 1 to 5 train, crop 6 validates. FOLDER holds flyem_medulla/flyem_medulla.zarr.
"""

from torch.optim import AdamW as optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR as scheduler

from common.train.losses import bce_dice as criterion

from .data import classes, derived, input_array_info, target_array_info
from .model import build_model

# batch norm: statistics in prediction are those of training, and a batch is many patches
model_kwargs = {"width": 8, "norm": "batch"}

# many small patches learn more per minute than few large ones: docs/explanation/recipe.md
batch_size = 8
# at 4e-3 and without the limit one seed in three loses what it had learnt
learning_rate = 2e-3
max_grad_norm = 1.0
warmup_iterations = 20
scheduler_step = "iteration"
ema_decay = 0.99
init_logit_rms = 1.0
epochs = 12
iterations_per_epoch = 150
weight_loss = False  # Dice balances the channels
best_metric = "iou"
num_workers = 0

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["x", "y", "z"]},
}

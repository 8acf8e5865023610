"""Residual-encoder U-Net on a phantom cell. `make demo` writes the phantom and trains this.

python -m cellmap_segmentation_challenge demo
"""

from torch.optim import AdamW as optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR as scheduler

from common.train.losses import bce_dice as criterion

from .data import classes, input_array_info, target_array_info
from .model import build_model

# batch norm: statistics in prediction are those of training, and a batch is many patches
# coarser outputs are trained, too: small organelles are learnt in fewer steps
model_kwargs = {"width": 8, "norm": "batch", "deep_supervision": True}

# many small patches learn more per minute than few large ones: docs/explanation/recipe.md
batch_size = 8
learning_rate = 5e-3
warmup_iterations = 20
scheduler_step = "iteration"
ema_decay = 0.99
init_logit_rms = 1.0
max_grad_norm = 1.0
epochs = 7
iterations_per_epoch = 48
weight_loss = False  # Dice balances the classes

# small organelles are seldom met: with these, droplets are found in the same number of steps
positive_centre_fraction = 0.75
class_sampling_weights = dict.fromkeys(
    ("hchrom", "golgi", "ves", "endo", "lyso", "ld", "perox", "mt"), 3.0
)
num_workers = 0

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["x", "y", "z"]},
}

"""One network for each organelle of the phantom cell, whose crops annotate half of them each.

python -m cellmap_segmentation_challenge train examples/organelles_single --each-class
"""

from torch.optim import AdamW as optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR as scheduler

from common.train.losses import bce_dice as criterion

from .data import classes, input_array_info, target_array_info
from .model import build_model

# batch norm: statistics in prediction are those of training, and a batch is many patches
# coarser outputs are trained, too: small organelles are learnt in fewer steps
model_kwargs = {"width": 8, "stem_stride": 2, "norm": "batch", "deep_supervision": True}

# many small patches learn more per minute than few large ones: docs/explanation/recipe.md
batch_size = 8
learning_rate = 1e-2
warmup_iterations = 20
scheduler_step = "iteration"
ema_decay = 0.99
init_logit_rms = 1.0
max_grad_norm = 1.0
epochs = 3
iterations_per_epoch = 40
weight_loss = False  # Dice balances the classes
num_workers = 0

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["x", "y", "z"]},
}

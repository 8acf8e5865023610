"""Boundaries of objects by a 2-D network over five sections, with weights by frequency.

python -m cellmap_segmentation_challenge demo examples/nf1_boundary
"""

from torch.optim import AdamW as optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR as scheduler

from common.train.losses import FrequencyWeightedBCE as criterion

from .data import classes, derived, input_array_info, target_array_info
from .model import build_model

# one class and three derived channels: a rare one counts more, and follows what the batches hold
criterion_kwargs = {"classes": len(classes) + len(derived), "alpha": 0.1, "samples": 100}
weight_loss = False  # it would weigh positive voxels a second time

batch_size = 16
learning_rate = 3e-3
warmup_iterations = 20
scheduler_step = "iteration"
ema_decay = 0.99
epochs = 8
iterations_per_epoch = 50
num_workers = 0

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["x", "y"]},
}

"""LeibNetz U-Net on a phantom cell. `make demo` writes the phantom and trains this.

python -m cellmap_segmentation_challenge demo
"""

from functools import partial

from torch.optim import RAdam
from torch.optim.lr_scheduler import CosineAnnealingLR

from .data import classes, input_array_info, target_array_info
from .model import build_model

learning_rate = 4e-3
# betas: warm after 100 steps instead of 1000
optimizer = partial(RAdam, betas=(0.9, 0.99), decoupled_weight_decay=True)
batch_size = 1
epochs = 10
iterations_per_epoch = 45
scheduler = CosineAnnealingLR
scheduler_kwargs = {"T_max": epochs}
max_grad_norm = 1.0
pos_weight_cap = 3.0
num_workers = 0

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["x", "y", "z"]},
}

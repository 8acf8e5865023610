"""LeibNetz U-Net on a phantom cell. `make demo` writes the phantom and trains this.

    python -m cellmap_segmentation_challenge demo
"""

from torch.optim.lr_scheduler import CosineAnnealingLR

from .data import classes, input_array_info, target_array_info
from .model import build_model

learning_rate = 2e-3  # for a few hundred steps
batch_size = 2
epochs = 12
iterations_per_epoch = 50
scheduler = CosineAnnealingLR
scheduler_kwargs = {"T_max": epochs}
pos_weight_cap = 3.0
num_workers = 0

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["x", "y", "z"]},
}

"""LeibNetz U-Net on the membranes of a fly's optic medulla, 250^3 voxels of FIB-SEM.

    python -m cellmap_segmentation_challenge train examples/flyem_medulla --data FOLDER

Crops 1 to 5 train, crop 6 validates. FOLDER holds flyem_medulla/flyem_medulla.zarr.
"""

from torch.optim.lr_scheduler import CosineAnnealingLR

from common.train.losses import bce_dice

from .data import classes, input_array_info, target_array_info
from .model import build_model

learning_rate = 2e-3  # for two thousand steps instead of a million
batch_size = 1
epochs = 12
iterations_per_epoch = 130
scheduler = CosineAnnealingLR
scheduler_kwargs = {"T_max": epochs}
criterion = bce_dice
weight_loss = (
    False  # 13 % of the voxels are membrane: not rare enough to be painted thicker than it is
)
best_metric = "iou"
num_workers = 0

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["x", "y", "z"]},
}
gamma_range = (0.8, 1.25)
contrast_range = (0.8, 1.25)
noise_std = 0.02

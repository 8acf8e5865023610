"""LeibNetz U-Net on sections of a fly larva's ventral nerve cord.

    python -m cellmap_segmentation_challenge train examples/drosophila_vnc --data FOLDER

Crops 1 to 4 train, crop 5 validates. FOLDER holds drosophila_vnc/drosophila_vnc.zarr.
"""

from torch.optim.lr_scheduler import CosineAnnealingLR

from common.train.losses import bce_dice

from .data import classes, input_array_info, target_array_info
from .model import build_model

learning_rate = 2e-3
batch_size = 1
epochs = 6
iterations_per_epoch = 100
scheduler = CosineAnnealingLR
scheduler_kwargs = {"T_max": epochs}
criterion = bce_dice
weight_loss = False
num_workers = 0

spatial_transforms = {  # in the plane of the sections only
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["x", "y"]},
}

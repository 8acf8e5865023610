# the shape of the toolbox's 3-D example
import os

import torch
from upath import UPath

from cellmap_segmentation_challenge.models import UNet_3D

learning_rate = 1e-4
batch_size = 2
input_array_info = {"shape": (32, 32, 32), "scale": (8, 8, 8)}
target_array_info = {"shape": (32, 32, 32), "scale": (8, 8, 8)}
epochs = 1000
iterations_per_epoch = 1000
random_seed = getattr(os.environ, "SEED", 42)
classes = ["nuc", "er"]

model_name = "3d_unet"
model_to_load = "3d_unet"
model = UNet_3D(1, len(classes))
load_model = "latest"

logs_save_path = UPath("tensorboard/{model_name}").path
model_save_path = UPath("checkpoints/{model_name}_{epoch}.pth").path
datasplit_path = "datasplit.csv"

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.1}},
    "transpose": {"axes": ["x", "y", "z"]},
    "rotate": {"axes": {"x": [-180, 180], "y": [-180, 180], "z": [-180, 180]}},
}
validation_time_limit = 30
filter_by_scale = True
use_mutual_exclusion = False
optimizer = torch.optim.RAdam(
    model.parameters(), lr=learning_rate, decoupled_weight_decay=True
)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR
scheduler_kwargs = {"T_max": 1000}

if __name__ == "__main__":
    from cellmap_segmentation_challenge import train

    train(__file__)

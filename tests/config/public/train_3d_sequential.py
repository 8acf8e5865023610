import os

import torch
from upath import UPath

learning_rate = 0.01
batch_size = 2
input_array_info = {"shape": (20, 20, 20), "scale": (8, 8, 8)}
target_array_info = {"shape": (16, 16, 16), "scale": (8, 8, 8)}
epochs = 2
iterations_per_epoch = 3
random_seed = getattr(os.environ, "SEED", 42)
classes = ["mito", "er", "nuc"]
model_name = "3d_unet"
model_to_load = "3d_unet"
load_model = "latest"
logs_save_path = UPath("tensorboard/{model_name}").path
model_save_path = UPath("checkpoints/{model_name}_{epoch}.pth").path
datasplit_path = "datasplit.csv"
spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.1}},
    "transpose": {"axes": ["x", "y", "z"]},
    "rotate": {"axes": {"x": [-180, 180], "y": [-180, 180], "z": [-180, 180]}},
}
validation_time_limit = None
max_grad_norm = None
model = torch.nn.Sequential(
    torch.nn.Conv3d(1, 8, 3),
    torch.nn.ReLU(),
    torch.nn.Conv3d(8, 8, 3),
    torch.nn.ReLU(),
    torch.nn.Conv3d(8, len(classes), 1),
)
optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

if __name__ == "__main__":
    from cellmap_segmentation_challenge import train

    train(__file__)

# a ViT-V-Net, with an optimiser and a scheduler that are instances
import torch

from cellmap_segmentation_challenge.models import ViTVNet

learning_rate = 1e-4
batch_size = 1
input_array_info = {"shape": (64, 64, 64), "scale": (4, 4, 4)}
target_array_info = {"shape": (64, 64, 64), "scale": (4, 4, 4)}
epochs = 10
iterations_per_epoch = 10
random_seed = 42
classes = ["nuc", "er"]
model_name = "3d_vitvnet"
model_to_load = "3d_vitvnet"
model = ViTVNet(len(classes), img_size=input_array_info["shape"])
load_model = "latest"
logs_save_path = "tensorboard/{model_name}"
model_save_path = "checkpoints/{model_name}_{epoch}.pth"
datasplit_path = "datasplit.csv"
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
warmup_steps = 3
scheduler = torch.optim.lr_scheduler.SequentialLR(
    optimizer,
    [
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=warmup_steps),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs - warmup_steps),
    ],
    [warmup_steps],
)
use_mixed_precision = True
n_gpus = 1
dataloader_kwargs = {"num_workers": 0, "pin_memory": True, "persistent_workers": False}

if __name__ == "__main__":
    from cellmap_segmentation_challenge import train

    train(__file__)

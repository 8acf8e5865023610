# another group's: arrays with names, transforms of torchvision, a loss of MONAI, helper variables
import monai
import torch
import torchvision.transforms.v2 as T
from cellmap_data.transforms.augment import GaussianNoise, NaNtoNum, RandomContrast

from cellmap_segmentation_challenge.models import UNet_3D
from cellmap_segmentation_challenge.utils import get_tested_classes

HIDDEN = 8
tested = get_tested_classes()
organelles = [name for name in tested if name in ("nuc", "er", "mito")]
classes = organelles
patch = 32
shape, scale = (patch,) * 3, (8, 8, 8)
learning_rate = 3e-4
batch_size = 1
input_array_info = {"raw": {"shape": shape, "scale": scale}}
target_array_info = {"labels": {"shape": shape, "scale": scale}}
epochs = 20
iterations_per_epoch = 10
random_seed = 3
model_name = "mine"
model_to_load = "mine"
model = UNet_3D(1, len(classes))
optimizer = torch.optim.AdamW(
    [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ],
    lr=learning_rate,
)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=epochs)
criterion = monai.losses.DiceCELoss
criterion_kwargs = {"sigmoid": True}
weight_loss = False
train_raw_value_transforms = T.Compose(
    [
        T.ToDtype(torch.float, scale=True),
        RandomContrast((0.8, 1.2)),
        GaussianNoise(0, 0.05),
        T.GaussianBlur(3, (0.1, 0.5)),
        T.Normalize([0.5], [0.25]),
        NaNtoNum({"nan": 0}),
    ]
)
val_raw_value_transforms = T.Compose(
    [T.ToDtype(torch.float, scale=True), T.Normalize([0.5], [0.25]), NaNtoNum({"nan": 0})]
)
load_model = "latest"
logs_save_path = "tensorboard/{model_name}"
model_save_path = "checkpoints/{model_name}_{epoch}.pth"
datasplit_path = "datasplit.csv"
spatial_transforms = {"rotate": {"axes": {"z": [-45, 45]}}}
filter_by_scale = [8, 8, 8]
gamma_correction = True
notes = "third try"

if __name__ == "__main__":
    from cellmap_segmentation_challenge import train

    train(__file__)

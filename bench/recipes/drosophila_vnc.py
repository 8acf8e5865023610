"""examples/drosophila_vnc as it was before the recipe was worked on: LeibNetz, 50 nm -> 12.5 nm.

A contestant of `bench/quality.py`, which stays what it is when the example changes. What the
settings' defaults were then is written out where a default may change.
"""

from torch.optim.lr_scheduler import CosineAnnealingLR

from common.model.unet import build_unet
from common.train.losses import bce_dice

datasplit_path = "../../examples/drosophila_vnc/datasplit.csv"
classes = ["pm", "mito", "cyto"]
input_array_info = {"shape": (68, 92, 92), "scale": (12.5, 9.2, 9.2)}
target_array_info = {"shape": (28, 52, 52), "scale": (12.5, 9.2, 9.2)}


def build_model(classes):
    return build_unet(classes, (12.5, 9.2, 9.2))


learning_rate = 2e-3
weight_decay = 0.01
batch_size = 1
epochs = 6
iterations_per_epoch = 100
scheduler = CosineAnnealingLR
scheduler_kwargs = {"T_max": epochs}
criterion = bce_dice
weight_loss = False
init_output_to_prior = True
max_grad_norm = 0.0
weighted_sampler = True
positive_centre_fraction = 0.5

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["x", "y"]},
}

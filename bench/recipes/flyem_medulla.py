"""examples/flyem_medulla as it was before the recipe was worked on: LeibNetz, 92^3 -> 52^3.

A contestant of `bench/quality.py`, which stays what it is when the example changes. What the
settings' defaults were then is written out where a default may change.
"""

from torch.optim.lr_scheduler import CosineAnnealingLR

from common.model.unet import build_unet
from common.train.losses import bce_dice

datasplit_path = "../../examples/flyem_medulla/datasplit.csv"
classes = ["pm", "cell"]
input_array_info = {"shape": (92, 92, 92), "scale": (10, 10, 10)}
target_array_info = {"shape": (52, 52, 52), "scale": (10, 10, 10)}


def build_model(classes):
    return build_unet(classes, (10, 10, 10))


learning_rate = 2e-3
weight_decay = 0.01
batch_size = 1
epochs = 12
iterations_per_epoch = 130
scheduler = CosineAnnealingLR
scheduler_kwargs = {"T_max": epochs}
criterion = bce_dice
weight_loss = False
init_output_to_prior = True
max_grad_norm = 0.0
weighted_sampler = True
positive_centre_fraction = 0.5
best_metric = "iou"

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["x", "y", "z"]},
}
intensity_probability = 0.5
gamma_range = (0.8, 1.25)
contrast_range = (0.8, 1.25)
noise_std = 0.02

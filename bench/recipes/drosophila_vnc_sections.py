"""examples/drosophila_vnc by a 2-D network that sees the section before and the one after.

A contestant of `bench/quality.py`: the settings are those of the example, but for the patch, the
network and as many patches in a step as hold half of its voxels.
"""

from monai.networks.nets import BasicUNet
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from common.model.sections import Sections
from common.train.losses import bce_dice

datasplit_path = "../../examples/drosophila_vnc/datasplit.csv"
classes = ["pm", "mito", "cyto"]
input_array_info = {"shape": (3, 64, 64), "scale": (50, 4.6, 4.6)}
target_array_info = {"shape": (1, 64, 64), "scale": (50, 4.6, 4.6)}


def build_model(classes):
    network = BasicUNet(2, 3, len(classes), features=(16, 16, 32, 64, 128, 16), norm="batch")
    return Sections(network, 3)


optimizer = AdamW
scheduler = CosineAnnealingLR
criterion = bce_dice
batch_size = 32
learning_rate = 4e-3
warmup_iterations = 20
scheduler_step = "iteration"
ema_decay = 0.99
init_logit_rms = 1.0
epochs = 10
iterations_per_epoch = 80
weight_loss = False
best_metric = "iou"
num_workers = 0

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["x", "y"]},
}

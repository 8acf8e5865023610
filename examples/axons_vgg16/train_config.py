"""VGG16 on background, axon and border: Dice + categorical focal loss, and a plateau.

    python -m cellmap_segmentation_challenge demo examples/axons_vgg16

The best checkpoint by Dice is best.pt; history.csv has the losses and metrics of every epoch.
"""

from torch.optim import AdamW as optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau as scheduler

from common.train.losses import dice_focal

from .data import classes, derived, input_array_info, softmax, target_array_info
from .model import build_model

criteria = {"softmax": dice_focal}
weight_loss = False  # Dice balances the channels

batch_size = 2
learning_rate = 1e-3
scheduler_kwargs = {"factor": 0.5, "patience": 2}
epochs = 6
iterations_per_epoch = 25
init_output_to_prior = False  # the last convolution is 3x3x3, as in segmentation-models
num_workers = 0

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["x", "y", "z"]},
}

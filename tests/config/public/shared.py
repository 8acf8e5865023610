# beside the files of the original experiments, which take their settings from it
import os

import torch
import torchvision.transforms.v2 as transforms
from cellmap_data.transforms.augment import (
    Binarize,
    GaussianNoise,
    NaNtoNum,
    Normalize,
    RandomContrast,
    RandomGamma,
)

from cellmap_segmentation_challenge.utils import get_tested_classes

classes = get_tested_classes()
random_seed = getattr(os.environ, "SEED", 42)
use_mutual_exclusion = False
force_all_classes = True
spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.1}},
    "transpose": {"axes": ["x", "y", "z"]},
    "rotate": {"axes": {"x": [-180, 180], "y": [-180, 180], "z": [-180, 180]}},
}
train_raw_transforms = transforms.Compose(
    [
        Normalize(),
        transforms.ToDtype(torch.float, scale=True),
        transforms.RandomApply([RandomGamma((0.9, 1.1))], p=0.5),
        transforms.RandomApply([RandomContrast((0.9, 1.1))], p=0.5),
        transforms.RandomApply([GaussianNoise(std=0.01)], p=0.5),
        NaNtoNum({"nan": 0, "posinf": None, "neginf": None}),
    ]
)
val_raw_transforms = transforms.Compose(
    [
        Normalize(),
        transforms.ToDtype(torch.float, scale=True),
        NaNtoNum({"nan": 0, "posinf": None, "neginf": None}),
    ]
)
target_value_transforms = transforms.Compose([transforms.ToDtype(torch.float), Binarize()])

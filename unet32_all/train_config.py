"""LeibNetz U-Net on the 48 tested classes at 32 nm.

    python -m cellmap_segmentation_challenge train unet32_all/train_config.py

Every setting, its default and its meaning: docs/reference/settings.md.
"""

from .data import classes, input_array_info, target_array_info
from .model import build_model

learning_rate = 1e-4  # the default of the public toolbox; the original baselines took 1e-6
batch_size = 16
epochs = 1000
iterations_per_epoch = 1000
max_grad_norm = 100.0  # loose: only against blow-ups, as in the original baselines
validation_time_limit = 60.0

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.1}},
    "transpose": {"axes": ["x", "y", "z"]},
    "rotate": {"axes": {"x": [-180, 180], "y": [-180, 180], "z": [-180, 180]}},
}
gamma_range = (0.9, 1.1)
contrast_range = (0.9, 1.1)
noise_std = 0.01

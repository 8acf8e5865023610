# the shape of the toolbox's 2-D example
import os

from upath import UPath

from cellmap_segmentation_challenge.models import UNet_2D
from cellmap_segmentation_challenge.utils import get_tested_classes

learning_rate = 1e-4
batch_size = 2
input_array_info = {"shape": (1, 32, 32), "scale": (8, 8, 8)}
target_array_info = {"shape": (1, 32, 32), "scale": (8, 8, 8)}
epochs = 1000
iterations_per_epoch = 1000
random_seed = getattr(os.environ, "SEED", 42)
classes = get_tested_classes()

model_name = "2d_unet"
model_to_load = "2d_unet"
model = UNet_2D(1, len(classes))
load_model = "latest"

logs_save_path = UPath("tensorboard/{model_name}").path
model_save_path = UPath("checkpoints/{model_name}_{epoch}.pth").path
datasplit_path = "datasplit.csv"

spatial_transforms = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5}},
    "transpose": {"axes": ["x", "y"]},
    "rotate": {"axes": {"x": [-180, 180], "y": [-180, 180]}},
}
validation_time_limit = 30
filter_by_scale = True

if __name__ == "__main__":
    from cellmap_segmentation_challenge import train

    train(__file__)

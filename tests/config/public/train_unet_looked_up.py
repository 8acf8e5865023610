# an experiment that reads the file beside it by load_safe_config
import leibnetz
from upath import UPath

from cellmap_segmentation_challenge.utils import load_safe_config

shared = load_safe_config(UPath(__file__).parent / "shared.py", force_safe=False)
classes = shared.classes
random_seed = shared.random_seed
use_mutual_exclusion = True
force_all_classes = "validation"
spatial_transforms = shared.spatial_transforms
train_raw_value_transforms = shared.train_raw_transforms
val_raw_value_transforms = shared.val_raw_transforms
target_value_transforms = shared.target_value_transforms

learning_rate = 1e-6
batch_size = 1
model = leibnetz.build_unet(
    top_resolution=(8, 8, 8),
    final_activation="Identity",
    base_nc=2,
    nc_increase_factor=2,
    output_nc=len(classes),
)
model.step_up_size(steps=1, step_size=4)
input_array_info = {
    "shape": model.input_shapes["input"]["shape"],
    "scale": model.input_shapes["input"]["scale"],
}
target_array_info = {
    "shape": model.output_shapes["output"]["shape"],
    "scale": model.output_shapes["output"]["scale"],
}
epochs = 1000
iterations_per_epoch = 1000
model_name = "unet8_all." + str(random_seed)
model_to_load = "unet8_all." + str(random_seed)
load_model = "latest"
logs_save_path = UPath("tensorboard/{model_name}").path
model_save_path = UPath("checkpoints/{model_name}_{epoch}.pth").path
datasplit_path = "datasplit.csv"
data_base_path = "../data"
max_grad_norm = 100
validation_time_limit = 60

if __name__ == "__main__":
    from cellmap_segmentation_challenge import train

    train(__file__)

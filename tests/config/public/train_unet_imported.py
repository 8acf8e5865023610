# an experiment that imports the file beside it
from shared import classes, random_seed, spatial_transforms, use_mutual_exclusion
from shared import force_all_classes, target_value_transforms
from shared import train_raw_transforms, val_raw_transforms
from upath import UPath

import leibnetz

learning_rate = 1e-6
batch_size = 1
model_kwargs = {
    "output_nc": len(classes),
    "top_resolution": (8, 8, 8),
    "final_activation": "Identity",
    "base_nc": 2,
    "nc_increase_factor": 2,
    "residual": True,
}
model = leibnetz.build_unet(**model_kwargs)
input_array_info = model.input_shapes["input"]
target_array_info = model.output_shapes["output"]
epochs = 1000
iterations_per_epoch = 1000
model_name = f"unet8_all.{random_seed}"
model_to_load = model_name
load_model = "best"
logs_save_path = UPath("tensorboard/{model_name}").path
model_save_path = UPath("checkpoints/{model_name}_{epoch}.pth").path
datasplit_path = "datasplit.csv"
data_base_path = "../data"
max_grad_norm = 100
validation_time_limit = 60

if __name__ == "__main__":
    from cellmap_segmentation_challenge import train

    train(__file__)

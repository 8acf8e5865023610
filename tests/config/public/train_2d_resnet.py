# a 2-D example with another network, limits that are None, and the default classes
from upath import UPath

from cellmap_segmentation_challenge.models import ResNet

learning_rate = 1e-4
batch_size = 4
input_array_info = {"shape": (1, 16, 16), "scale": (8, 8, 8)}
target_array_info = input_array_info
epochs = 100
iterations_per_epoch = 10
random_seed = 42
classes = ["nuc", "er"]
model_name = "2d_resnet"
model_to_load = model_name
model = ResNet(ndims=2, output_nc=len(classes))
load_model = "best"
logs_save_path = UPath("tensorboard/{model_name}").path
model_save_path = UPath("checkpoints/{model_name}_{epoch}.pth").path
datasplit_path = "datasplit.csv"
spatial_transforms = {"mirror": {"axes": {"x": 0.5, "y": 0.5}}}
validation_time_limit = None
validation_batch_limit = 10
max_grad_norm = None
gradient_accumulation_steps = 2
weighted_sampler = True
weight_loss = False
use_mutual_exclusion = True
force_all_classes = True

if __name__ == "__main__":
    from cellmap_segmentation_challenge import train

    train(__file__)

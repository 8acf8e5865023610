# an experiment that trains a new head on a COSEM network
import torch
from cellmap_models.pytorch import cosem
from shared import classes, force_all_classes, random_seed, spatial_transforms
from shared import train_raw_transforms, use_mutual_exclusion, val_raw_transforms
from upath import UPath

learning_rate = 1e-6
batch_size = 2
base_model = cosem.load_model("setup04/1820500")
backbone = base_model.backbone[0]
for parameter in backbone.parameters():
    parameter.requires_grad = False
features = 5
model = torch.nn.Sequential(
    backbone,
    torch.nn.Conv3d(features, 6, 3),
    torch.nn.ReLU(),
    torch.nn.Conv3d(6, len(classes), 1),
)
input_array_info = {"shape": (38, 38, 38), "scale": (8, 8, 8)}
target_array_info = {"shape": (6, 6, 6), "scale": (8, 8, 8)}
epochs = 1000
iterations_per_epoch = 1000
model_name = f"setup04.1820500_{random_seed}_8nmOut.all"
model_to_load = model_name
load_model = "best"
logs_save_path = UPath("tensorboard/{model_name}").path
model_save_path = UPath("checkpoints/{model_name}_{epoch}.pth").path
datasplit_path = "datasplit.csv"
max_grad_norm = 100
validation_time_limit = 60

if __name__ == "__main__":
    from cellmap_segmentation_challenge import train

    train(__file__)

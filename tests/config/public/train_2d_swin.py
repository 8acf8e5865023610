# a network whose weights the file loads itself, if there are any
from upath import UPath

from cellmap_segmentation_challenge.models import SwinTransformer, load_best_val, load_latest

learning_rate = 1e-4
batch_size = 1
input_array_info = {"shape": (1, 64, 64), "scale": (8, 4, 4)}
target_array_info = {"shape": (1, 64, 64), "scale": (8, 4, 4)}
epochs = 10
iterations_per_epoch = 10
random_seed = 42
classes = ["nuc", "er"]
model_name = "swin"
model_to_load = "swin"
model = SwinTransformer(
    patch_size=[2, 2],
    embed_dim=12,
    depths=[1, 1, 1, 1],
    num_heads=[1, 2, 2, 2],
    window_size=[4, 4],
    num_classes=len(classes),
    ndims=2,
)
load_model = "best"
logs_save_path = UPath("tensorboard/{model_name}").path
model_save_path = UPath("checkpoints/{model_name}_{epoch}.pth").path
datasplit_path = "datasplit.csv"
validation_prob = 0.2
use_s3 = False
load_best_val(logs_save_path.format(model_name=model_name), model_save_path, model)
load_latest(model_save_path.replace("{model_name}", model_name), model)

if __name__ == "__main__":
    from cellmap_segmentation_challenge import train

    train(__file__)

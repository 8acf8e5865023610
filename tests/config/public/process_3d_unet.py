# the shape of the toolbox's process example
from upath import UPath

from cellmap_segmentation_challenge.utils import load_safe_config

config_path = UPath(__file__).parent / "train_3d_unet.py"
config = load_safe_config(config_path)
batch_size = 8
input_array_info = config.target_array_info
target_array_info = config.target_array_info
classes = config.classes


def process_func(x):
    return x > 0.0


if __name__ == "__main__":
    from cellmap_segmentation_challenge import process

    process(__file__, overwrite=True)

# and one that imports process at its beginning, with named arrays
from cellmap_segmentation_challenge import process
from cellmap_segmentation_challenge.utils import load_safe_config

config_path = __file__.replace("process", "train")
config = load_safe_config(config_path)
classes = list(config.classes)
batch_size = 4
input_array_info = {"input": dict(config.target_array_info)}
device = None


def process_func(x):
    return x.gt(0)


if __name__ == "__main__":
    process(__file__)

# another: the training file by its name, the classes looked up, a device
from cellmap_segmentation_challenge.utils import load_safe_config

config_path = __file__.replace("process", "train")
config = load_safe_config(config_path)
classes = config.get("classes")
batch_size = config.batch_size
input_array_info = config.input_array_info
device = "cuda"


def process_func(x):
    return (x > 0).float()


if __name__ == "__main__":
    from cellmap_segmentation_challenge import process

    process(__file__)

# a file for predict: names of its own, the network of training
from cellmap_segmentation_challenge import predict
from cellmap_segmentation_challenge.utils import load_safe_config

config_path = __file__.replace("predict", "train")
config = load_safe_config(config_path)
batch_size = 4

if __name__ == "__main__":
    predict(__file__, crops="test")

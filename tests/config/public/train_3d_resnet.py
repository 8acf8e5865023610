# a 3-D ResNet, with a loss that is a class with arguments
import torch

from cellmap_segmentation_challenge.models import ResNet

learning_rate = 1e-4
batch_size = 2
input_array_info = {"shape": (12, 12, 12), "scale": (8, 8, 8)}
target_array_info = {"shape": (12, 12, 12), "scale": (8, 8, 8)}
epochs = 10
iterations_per_epoch = 10
random_seed = 7
classes = ["nuc", "er"]
model_name = "3d_resnet"
model_to_load = "3d_resnet"
model = ResNet(ndims=3, output_nc=len(classes))
load_model = "latest"
logs_save_path = "tensorboard/{model_name}"
model_save_path = "checkpoints/{model_name}_{epoch}.pth"
datasplit_path = "datasplit.csv"
criterion = torch.nn.MultiLabelSoftMarginLoss
criterion = torch.nn.BCEWithLogitsLoss
criterion_kwargs = {"pos_weight": torch.ones(len(classes), 1, 1, 1)}
weight_loss = False
device = None

if __name__ == "__main__":
    from cellmap_segmentation_challenge import train

    train(__file__)

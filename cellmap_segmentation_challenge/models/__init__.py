"""Networks that configurations of the public toolbox name, and what loads their weights.

The U-Nets, the ResNet and the ViT-V-Net have the toolbox's tensors under the toolbox's names, so
that its weights load. Where the toolbox is installed, too, its own classes are taken. All are
imported when they are used.
"""

from __future__ import annotations

from cellmap_segmentation_challenge._public import names_of

_HERE = "cellmap_segmentation_challenge.models"

NETWORKS = {
    "UNet_2D": f"{_HERE}.unet_model_2D",
    "UNet_3D": f"{_HERE}.unet_model_3D",
    "ResNet": f"{_HERE}.resnet",
    "ViTVNet": f"{_HERE}.vitnet",
    "SwinTransformer": f"{_HERE}.swin",
}
"""Where each network is."""

LOADING = {
    "load_latest": f"{_HERE}.model_load",
    "load_best_val": f"{_HERE}.model_load",
    "get_latest_checkpoint_epoch": f"{_HERE}.model_load",
    "get_best_val_epoch": f"{_HERE}.model_load",
    "newest_wildcard_path": f"{_HERE}.model_load",
}
"""Where each function is."""

__all__ = [  # given by __getattr__
    "ResNet",
    "SwinTransformer",
    "UNet_2D",
    "UNet_3D",
    "ViTVNet",
    "get_best_val_epoch",
    "get_latest_checkpoint_epoch",
    "load_best_val",
    "load_latest",
    "newest_wildcard_path",
]

__getattr__ = names_of(__name__, NETWORKS | LOADING, theirs_first=NETWORKS)

"""Networks that configurations of the public toolbox name, and what loads their weights.

The U-Nets, the ResNet and the ViT-V-Net have the toolbox's tensors under the toolbox's names, so
that its weights load. Where the toolbox is installed, too, its own classes are taken. All are
imported when they are used.
"""

from __future__ import annotations

from cellmap_segmentation_challenge import _names
from cellmap_segmentation_challenge._public import names_of

NETWORKS = ("ResNet", "SwinTransformer", "UNet_2D", "UNet_3D", "ViTVNet")
"""Names that are the toolbox's own where it is installed."""

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

__getattr__ = names_of(__name__, _names.MODELS, theirs_first=NETWORKS)


def __dir__() -> list[str]:
    return [*globals(), *_names.ours(__name__)]

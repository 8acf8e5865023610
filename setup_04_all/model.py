"""The network: the backbone of COSEM's setup04 and a new head.

235,105,092 parameters for 48 classes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch import nn

from common.model.cosem import build_finetune, load_backbone


def build_model(
    classes: Sequence[str], freeze_backbone: bool = True, weights: str = "setup04/1820500"
) -> nn.Module:
    """(B, 1, z, y, x) to logits (B, len(classes), z - 186, y - 186, x - 186), 8 nm in and out.

    Args:
        classes: one output channel each.
        freeze_backbone: train the head alone, 423,624 parameters for 48 classes.
        weights: the COSEM checkpoint of the backbone, downloaded once, or "random" for the same
            network without pretraining.

    Raises:
        FileNotFoundError: if the checkpoint is neither in the cache nor can be downloaded.
    """
    if weights != "random":
        return build_finetune(classes, load_backbone(weights), freeze_backbone)
    frozen = " and freeze_backbone=True keeps it so" if freeze_backbone else ""
    print(f"WARNING: weights='random': the backbone is NOT pretrained{frozen}", file=sys.stderr)
    return build_finetune(classes, load_backbone(pretrained=False), freeze_backbone)

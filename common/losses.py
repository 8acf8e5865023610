"""Losses as means over *known* voxels, in float32.

logits: (B, classes, z, y, x) of any float type. target: the same shape, int8, 1 positive, 0 negative, -1 unknown; a float
target with NaN for unknown works as well. pos_weight: (classes,) weight of positive voxels, or None.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def known(target: torch.Tensor) -> torch.Tensor:
    """Bool, where the target is known."""
    return ~target.isnan() if target.is_floating_point() else target >= 0


def weighted_bce(logits: torch.Tensor, target: torch.Tensor, pos_weight: torch.Tensor | None = None) -> torch.Tensor:
    """Binary cross-entropy, the mean over known (voxel, class) pairs; 0 where none is known.

    The public toolbox divides by all voxels, so that its step size follows the annotated fraction; this does not.
    """
    mask = known(target)
    weight = None if pos_weight is None else pos_weight.float().view(-1, *[1] * (logits.ndim - 2))
    positive = (target > 0).float()  # NaN > 0 is False
    total = F.binary_cross_entropy_with_logits(
        logits.float(), positive, weight=mask.float(), pos_weight=weight, reduction="sum"
    )
    return total / mask.sum().clamp(min=1)


def dice_loss(logits: torch.Tensor, target: torch.Tensor, pos_weight: torch.Tensor | None = None) -> torch.Tensor:
    """1 - soft Dice, the mean over classes with a known positive voxel in the batch; 0 where there is none.

    pos_weight is not used: Dice balances foreground and background itself. Source: Milletari et al. 2016, V-Net.
    """
    mask = known(target).float()
    positive = (target > 0).float()
    probability = logits.float().sigmoid() * mask
    axes = [0, *range(2, logits.ndim)]
    overlap, size = (probability * positive).sum(axes), (probability + positive).sum(axes)
    occurs = positive.sum(axes) > 0
    return ((1 - 2 * overlap / size.clamp(min=1e-6)) * occurs).sum() / occurs.sum().clamp(min=1)


def bce_dice(logits: torch.Tensor, target: torch.Tensor, pos_weight: torch.Tensor | None = None) -> torch.Tensor:
    """weighted_bce plus dice_loss. Source: Isensee et al. 2021, nnU-Net."""
    return weighted_bce(logits, target, pos_weight) + dice_loss(logits, target)

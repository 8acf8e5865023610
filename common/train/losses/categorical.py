"""Losses over channels of which exactly one is true of a voxel: a softmax in place of sigmoids.

They take `criterion(logits, target, pos_weight)` as those of `common.train.losses` do, and are for
classes that exclude each other and fill the volume, such as background, axon and border. A voxel
counts where one channel is positive, whatever is known of the others; anywhere else it is unknown.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.samples.targets import dense
from common.train.losses.losses import AnyTarget, refuse_below_zero
from common.train.processes import together


def categorical_focal_loss(
    logits: Tensor,
    target: AnyTarget,
    pos_weight: Tensor | None = None,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
) -> Tensor:
    """Return the focal loss of a softmax, averaged over the voxels whose class is known.

    The term of a voxel is - (1 - p)^gamma log p, where p is the probability of the class that is
    true: with alpha = 0.25, gamma = 2 and p = 0.5 it is 0.0433. Source: Lin et al. 2017.
    segmentation-models takes the mean over classes, too, which divides it by their number.

    Args:
        logits: see the module; so is `target`.
        target: what is true.
        pos_weight: multiplies the terms of the voxels of a class.
        gamma: 0 is cross-entropy.
        alpha: factor on all terms, which in a sum of losses is a weight; None is 1.
    """
    refuse_below_zero("categorical_focal_loss", gamma=gamma, alpha=1 if alpha is None else alpha)
    truth, is_known = true_channel(target)
    log_p = F.log_softmax(logits.float(), 1).gather(1, truth.unsqueeze(1)).squeeze(1)
    # of 0 a power below 1 has no slope
    missed = (-log_p.expm1()).clamp(min=1e-12)
    terms = -(missed**gamma) * log_p
    if alpha is not None:
        terms = alpha * terms
    if pos_weight is not None:
        terms = terms * pos_weight.float()[truth]
    total = together.summed(torch.where(is_known, terms, 0).sum())
    return total / together.summed(is_known.sum().double()).clamp(min=1).float()


def categorical_dice_loss(
    logits: Tensor,
    target: AnyTarget,
    pos_weight: Tensor | None = None,
    *,
    smooth: float = 0.0,
) -> Tensor:
    """Return 1 - soft Dice of a softmax, averaged over the classes that occur in the batch.

    Dice is (2 overlap + smooth) / (predicted + positive + smooth), sums over the voxels of the
    batch whose class is known. 0 if there is none. `pos_weight` is ignored.
    """
    refuse_below_zero("categorical_dice_loss", smooth=smooth)
    truth, is_known = true_channel(target)
    probability = torch.where(is_known.unsqueeze(1), logits.float().softmax(1), 0)
    positive = F.one_hot(truth, logits.shape[1]).movedim(-1, 1) * is_known.unsqueeze(1)
    axes = [0, *range(2, logits.ndim)]
    parts = [(probability * positive).sum(axes), probability.sum(axes), positive.sum(axes)]
    overlap, predicted, size = together.summed(torch.stack(parts))
    dice = (2 * overlap + smooth) / (predicted + size + smooth).clamp(min=1e-6)
    occurs = size > 0
    return ((1 - dice) * occurs).sum() / occurs.sum().clamp(min=1)


def dice_focal(
    logits: Tensor,
    target: AnyTarget,
    pos_weight: Tensor | None = None,
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
) -> Tensor:
    """Return categorical_dice_loss + categorical_focal_loss."""
    focal = categorical_focal_loss(logits, target, pos_weight, gamma=gamma, alpha=alpha)
    return categorical_dice_loss(logits, target) + focal


def true_channel(target: AnyTarget) -> tuple[Tensor, Tensor]:
    """Return the number of the channel that is true, (B, z, y, x), and where it is known.

    The number is 0 where none is positive; where several are it is the last of them.
    """
    positive = dense(target) > 0
    numbers = torch.arange(1, positive.shape[1] + 1, device=positive.device)
    last = (positive * numbers.view(-1, *[1] * (positive.ndim - 2))).amax(1)
    return (last - 1).clamp(min=0), last > 0

"""Losses that are averaged over the known voxels, computed in float32.

Each is called as `criterion(logits, target, pos_weight)` and returns a scalar:

* logits: (B, classes, z, y, x), any floating-point type, before the sigmoid.
* target: a `PaletteTarget`, or a dense tensor of the shape of the logits: integers with 1 positive,
  0 negative and -1 unknown, or floats with 1, 0 and NaN. See `common.data.samples.targets`.
* pos_weight: (classes,) weight of the positive voxels of each class, or None for 1.

What follows pos_weight is given by name: `criterion = functools.partial(focal_loss, gamma=1.5)`.
`common.train.losses.criterion` adapts losses with another signature, such as those of torch and
MONAI.

The name of this module stands in the settings on record of each run, `losses.bce_dice`: under
another one, runs of before would look as if their loss had been changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config.as_text import as_text
from common.data.samples.targets import PaletteTarget, count_known, dense, known
from common.errors import UserError
from common.train.losses.palette_sums import SumOverPairs, SumsOverPalette, Terms
from common.train.processes import together

AnyTarget = PaletteTarget | Tensor


def refuse_below_zero(loss: str, **numbers: float) -> None:
    """Raise UserError for an argument of a loss with which it would reward what is wrong."""
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise UserError(f"{loss}: {name} = {number}; write a number, 0 or more")


def weighted_bce(logits: Tensor, target: AnyTarget, pos_weight: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy, averaged over the known (voxel, class) pairs.

    The term of a positive pair is multiplied by `pos_weight` of its class. The result is 0, with a
    gradient of 0, if no pair is known. The public toolbox divides by the number of all voxels
    instead, which makes smaller steps on sparsely annotated crops.
    """
    weight = _weight_of_positives(logits, pos_weight)
    if isinstance(target, PaletteTarget):
        total = _sum_over_pairs(logits, target, weight, torch.ones_like(weight), terms=BCE)
        return total / count_known(target).clamp(min=1).float()
    mask = known(target)
    total = F.binary_cross_entropy_with_logits(
        logits.float(),
        (target > 0).float(),  # NaN > 0 is False
        weight=mask.float(),
        pos_weight=_along_classes(weight, logits),
        reduction="sum",
    )
    return total / mask.sum().clamp(min=1)


def _weight_of_positives(logits: Tensor, pos_weight: Tensor | None) -> Tensor:
    """Return (classes,) float32 weights, 1 unless they are given."""
    if pos_weight is None:
        return torch.ones(logits.shape[1], device=logits.device)
    return pos_weight.float()


def _along_classes(weight: Tensor, logits: Tensor) -> Tensor:
    """Return (classes,) weights in the shape in which they multiply logits."""
    return weight.view(-1, *[1] * (logits.ndim - 2))


def _sum_over_pairs(
    logits: Tensor, target: AnyTarget, of_positive: Tensor, of_negative: Tensor, *, terms: Terms
) -> Tensor:
    """Return the sum of a loss of single pairs, a scalar; an unknown pair has no term.

    of_positive, of_negative: (classes,) weights of the terms.
    """
    if isinstance(target, PaletteTarget):
        # per row of the palette: the weight of the positive term, and of both terms together
        positive = (target.palette == 1) * of_positive
        both = positive + (target.palette == 0) * of_negative
        return SumOverPairs.apply(logits, target.rows, positive, both, terms)
    positive = (target > 0) * _along_classes(of_positive, logits)
    both = positive + (target == 0) * _along_classes(of_negative, logits)  # NaN is not 0
    return terms.value(logits.float(), positive, both).sum()


def _bce_value(x: Tensor, positive: Tensor, both: Tensor) -> Tensor:
    return torch.addcmul(positive * -x, both, F.softplus(x))


def _bce_slope(x: Tensor, positive: Tensor, both: Tensor) -> Tensor:
    return torch.addcmul(-positive, both, x.sigmoid())


BCE = Terms(_bce_value, _bce_slope)


def _focal(gamma: float) -> Terms:
    """Cross-entropy times (1 - probability of the truth) to the power of gamma."""

    def value(x: Tensor, positive: Tensor, both: Tensor) -> Tensor:
        p = x.sigmoid()
        if_positive = (1 - p) ** gamma * F.softplus(-x)
        if_negative = p**gamma * F.softplus(x)
        return positive * if_positive + (both - positive) * if_negative

    def slope(x: Tensor, positive: Tensor, both: Tensor) -> Tensor:
        p = x.sigmoid()
        if_positive = -((1 - p) ** gamma) * (gamma * p * F.softplus(-x) + 1 - p)
        if_negative = p**gamma * (gamma * (1 - p) * F.softplus(x) + p)
        return positive * if_positive + (both - positive) * if_negative

    return Terms(value, slope)


def focal_loss(
    logits: Tensor,
    target: AnyTarget,
    pos_weight: Tensor | None = None,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
) -> Tensor:
    """Return the binary focal loss, averaged over the known (voxel, class) pairs.

    It is weighted_bce in which each term is multiplied by (1 - probability of the truth) to the
    power of `gamma`: what is known already counts less. Source: Lin et al. 2017, focal loss.

    Args:
        logits: see the module; so are `target` and `pos_weight`.
        target: what is true.
        pos_weight: multiplies the terms of positive pairs.
        gamma: 0 is cross-entropy.
        alpha: in addition, weight of positive pairs; negative ones have 1 - alpha. None is 1 for
            both. The source found 0.25 best with gamma 2.
    """
    refuse_below_zero("focal_loss", gamma=gamma)
    weight = _weight_of_positives(logits, pos_weight)
    of_negative = torch.ones_like(weight)
    if alpha is not None and not 0 <= alpha <= 1:
        raise UserError(f"focal_loss: alpha = {alpha}; write a number between 0 and 1")
    if alpha is not None:
        weight = weight * alpha
        of_negative = of_negative * (1 - alpha)
    total = _sum_over_pairs(logits, target, weight, of_negative, terms=_focal(gamma))
    return total / count_known(target).clamp(min=1).float()


class _Sums(NamedTuple):
    """What overlaps are made of, sums over the known voxels, (samples, classes) each."""

    overlap: Tensor
    """Of the probabilities of positive voxels."""
    predicted: Tensor
    """Of all probabilities."""
    positive: Tensor
    """Number of positive voxels."""

    def over_batch(self) -> _Sums:
        """Return the sums over all samples, (1, classes) each; in training of all processes."""
        over_samples = [part.sum(0, keepdim=True) for part in self]
        return _Sums(*together.summed(torch.stack(over_samples)))


def _sums(logits: Tensor, target: AnyTarget) -> _Sums:
    """Return the sums of each sample, float32."""
    if isinstance(target, PaletteTarget):
        return _Sums(*SumsOverPalette.apply(logits, target.rows, target.palette))
    mask = known(target)
    probability = torch.where(mask, logits.float().sigmoid(), 0)
    positive = (target > 0).float()
    axes = list(range(2, logits.ndim))
    return _Sums((probability * positive).sum(axes), probability.sum(axes), positive.sum(axes))


def dice_loss(
    logits: Tensor,
    target: AnyTarget,
    pos_weight: Tensor | None = None,
    *,
    per_sample: bool = False,
    smooth: float = 0.0,
) -> Tensor:
    """Return 1 - soft Dice, averaged over the classes with a positive voxel in the batch.

    Dice is (2 overlap + smooth) / (predicted + positive + smooth), sums over all known voxels of
    the batch. The result is 0 if no class has a positive voxel. Source: Milletari et al. 2016.

    Args:
        logits: see the module; so is `target`.
        target: what is true.
        pos_weight: ignored, since Dice balances foreground and background by itself.
        per_sample: sum over each sample of the batch by itself, and average over those samples and
            classes that have a positive voxel.
        smooth: pulls Dice towards 1 where a class has few voxels; nnU-Net has 1e-5.
    """
    refuse_below_zero("dice_loss", smooth=smooth)
    sums = _sums(logits, target)
    if not per_sample:
        sums = sums.over_batch()
    size = sums.predicted + sums.positive + smooth
    dice = (2 * sums.overlap + smooth) / size.clamp(min=1e-6)
    return _mean_where_positive(1 - dice, sums, per_sample)


def tversky_loss(
    logits: Tensor,
    target: AnyTarget,
    pos_weight: Tensor | None = None,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    per_sample: bool = False,
    smooth: float = 0.0,
) -> Tensor:
    """Return 1 - the Tversky index, averaged like `dice_loss`, which is alpha = beta = 0.5.

    The index is TP / (TP + alpha FP + beta FN), with `smooth` added to both, of soft counts over
    known voxels. Source: Salehi et al. 2017.

    Args:
        logits: see the module; so is `target`.
        target: what is true.
        pos_weight: ignored.
        alpha: weight of what is predicted and not there.
        beta: weight of what is there and not predicted: above alpha, less is missed.
        per_sample: as of `dice_loss`.
        smooth: added to numerator and denominator.
    """
    refuse_below_zero("tversky_loss", alpha=alpha, beta=beta, smooth=smooth)
    if alpha == beta == 0:
        raise UserError("tversky_loss: alpha = beta = 0 leaves nothing to learn; write 0.3 and 0.7")
    sums = _sums(logits, target)
    if not per_sample:
        sums = sums.over_batch()
    false_positive = sums.predicted - sums.overlap
    false_negative = sums.positive - sums.overlap
    size = sums.overlap + alpha * false_positive + beta * false_negative + smooth
    index = (sums.overlap + smooth) / size.clamp(min=1e-6)
    return _mean_where_positive(1 - index, sums, per_sample)


def _mean_where_positive(losses: Tensor, sums: _Sums, per_sample: bool) -> Tensor:
    """Return the mean over the (sample, class) pairs with a positive voxel; 0 if there is none."""
    occurs = sums.positive > 0
    total = (losses * occurs).sum()
    pairs = occurs.sum()
    if per_sample:  # other processes have other samples
        total = together.summed(total)
        pairs = together.summed(pairs)
    return total / pairs.clamp(min=1)


def categorical_cross_entropy(
    logits: Tensor, target: AnyTarget, pos_weight: Tensor | None = None
) -> Tensor:
    """Return the cross-entropy of a softmax, averaged over the voxels with a positive channel.

    Of exclusive channels; a voxel is multiplied by `pos_weight` of the channel that is positive.
    Where none is known to be positive there is no gradient. In a step of several processes the mean
    is over the voxels of all: known pairs, by which the trainer weighs, are not in proportion to
    them where a voxel is known of some channels alone.
    """
    positive = (dense(target) == 1).float()
    counted = together.summed(positive.sum()).clamp(min=1)
    if pos_weight is not None:
        positive = positive * _along_classes(pos_weight.float(), logits)
    total = together.summed(-(positive * logits.float().log_softmax(1)).sum())
    return total / counted


def bce_dice(logits: Tensor, target: AnyTarget, pos_weight: Tensor | None = None) -> Tensor:
    """Return weighted_bce + dice_loss. Source: Isensee et al. 2021, nnU-Net."""
    return weighted_bce(logits, target, pos_weight) + dice_loss(logits, target)


def weighted_sum(
    logits: Tensor,
    target: AnyTarget,
    pos_weight: Tensor | None = None,
    *,
    losses: Sequence[tuple[float, Callable[..., Tensor]]],
) -> Tensor:
    """Return the sum of several losses of three arguments, each times its weight.

    `criterion = partial(weighted_sum, losses=[(1.0, focal_loss), (0.5, dice_loss)])`. A loss that
    counts something is a module, and belongs into a `WeightedSum`: UserError for one.
    """
    for weight, loss in losses:
        refuse_below_zero("weighted_sum", weight=weight)
        if isinstance(loss, nn.Module):
            raise UserError(
                f"weighted_sum: {type(loss).__name__} is a module, whose state would be lost; "
                "write WeightedSum"
            )
    parts = [weight * loss(logits, target, pos_weight) for weight, loss in losses]
    return torch.stack(parts).sum()


class WeightedSum(nn.Module):
    """The sum of several losses of three arguments, each times its weight.

    `criterion = WeightedSum` with `criterion_kwargs = {"losses": [(1.0, focal_loss), (0.5,
    dice_loss)]}`. Of losses that are modules the state is saved with the run.
    """

    def __init__(self, losses: Sequence[tuple[float, Callable[..., Tensor]]]):
        super().__init__()
        for weight, _ in losses:
            refuse_below_zero("WeightedSum", weight=weight)
        self.losses = tuple(losses)
        # what is a module is found by torch here, and nowhere else
        self.modules_among = nn.ModuleList(
            loss for _, loss in losses if isinstance(loss, nn.Module)
        )
        self.text = as_text(list(losses))
        """The losses as text: a run records the numbers and texts of a module."""

    def forward(
        self, logits: Tensor, target: AnyTarget, pos_weight: Tensor | None = None
    ) -> Tensor:
        """Return the sum."""
        parts = [weight * loss(logits, target, pos_weight) for weight, loss in self.losses]
        return torch.stack(parts).sum()


def class_weighted_bce(
    logits: Tensor,
    target: AnyTarget,
    pos_weight: Tensor | None = None,
    *,
    class_weight: Tensor,
) -> Tensor:
    """Return the binary cross-entropy, a mean in which each class has a weight.

    The mean over the known (voxel, class) pairs, each counted as often as `class_weight` of its
    class says; in a step of several processes over the pairs of all. 0 if none is known.

    Args:
        logits: see the module; so are `target` and `pos_weight`.
        target: what is true.
        pos_weight: in addition, multiplies the terms of positive pairs.
        class_weight: (classes,), 0 or more.
    """
    weight = _weight_of_classes(class_weight, logits)
    of_positive = weight if pos_weight is None else weight * pos_weight.float()
    total = together.summed(_sum_over_pairs(logits, target, of_positive, weight, terms=BCE))
    if isinstance(target, PaletteTarget):
        pairs = (target.palette >= 0) * weight
        size = pairs.sum(1).index_select(0, target.rows.flatten()).sum(dtype=torch.float64)
    else:
        size = (known(target) * _along_classes(weight, logits)).sum(dtype=torch.float64)
    size = together.summed(size)
    return total / size.clamp(min=torch.finfo(torch.float32).tiny).float()


def _weight_of_classes(given: Tensor, logits: Tensor) -> Tensor:
    """Return weights as (classes,) float32. Raises UserError for another number of them."""
    weight = torch.as_tensor(given, dtype=torch.float32, device=logits.device)
    if weight.shape != logits.shape[1:2]:
        raise UserError(
            f"class_weighted_bce: class_weight of shape {tuple(weight.shape)}; write one number "
            f"for each of the {logits.shape[1]} classes"
        )
    return weight

"""The loss of a network with several heads: each has its own, and the sum of them is learnt.

A network of classes alone has one head, and the loss of that one. See `common.config.heads`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config.derived import SIGNED, SOFTMAX
from common.config.heads import CLASSES, Head, heads_of, main_head
from common.config.settings import TrainConfig
from common.data.samples.targets import (
    MixedTarget,
    PaletteTarget,
    Target,
    count_known,
    known,
    of_channels,
)
from common.errors import UserError
from common.train.losses import criterion, own_loss
from common.train.losses.criterion import Criterion
from common.train.losses.losses import categorical_cross_entropy, weighted_bce
from common.train.processes import together

SHARP = 0.1
"""Difference, in units of the clipped distance, below which the smooth L1 loss is a square."""


def build(config: TrainConfig, device: torch.device) -> Criterion:
    """Return the loss of a run, on `device`, each of its heads tried out once.

    Raises UserError for a loss that cannot be called.
    """
    heads = heads_of(config)
    if [head.name for head in heads] == [CLASSES] and not config.derived:
        return own_loss.build_criterion(config, device)
    losses = [build_of_head(head, config, device) for head in heads]
    return HeadsLoss(heads, losses)


def unusual(loss: Criterion, config: TrainConfig, device: torch.device) -> list[str]:
    """Return what is unusual about losses that were given, as sentences."""
    if not isinstance(loss, HeadsLoss):
        return own_loss.unusual(loss, config, device) if config.criterion else []
    sentences = []
    for head, of_head in zip(loss.heads, loss.losses, strict=True):
        own = config_of(head, config)
        if own.criterion and head.activation not in (SOFTMAX, SIGNED):
            sentences += own_loss.unusual(of_head, own, device)
    return sentences


def notices(loss: Criterion, config: TrainConfig) -> list[str]:
    """Return what the user should know about the losses, as sentences."""
    losses = loss.losses if isinstance(loss, HeadsLoss) else [loss]
    sentences = []
    for of_head in losses:
        if not isinstance(of_head, SignedLoss):
            sentences += own_loss.notices(of_head, config.weight_loss)
    return sentences


def config_of(head: Head, config: TrainConfig) -> TrainConfig:
    """Return the settings of a run that learns the channels of one head, as its classes."""
    setting = config.criteria.get(head.name)
    keywords = {}
    if head.name == main_head(config):
        setting = config.criterion
        keywords = config.criterion_kwargs
    names = tuple(config.channels[number] for number in head.channels)
    return dataclasses.replace(
        config,
        criterion=setting,
        criterion_kwargs=keywords,
        classes=names,
        derived={},
        softmax=(),
        criteria={},
        loss_weights={},
    )


def build_of_head(head: Head, config: TrainConfig, device: torch.device) -> Criterion:
    """Return the loss of one head, tried out once."""
    own = config_of(head, config)
    if head.activation == SIGNED:
        loss = SignedLoss(own_loss.make_loss(own) if own.criterion else smooth_l1)
        _try_signed(head, loss, config, device)
        return loss
    if head.activation == SOFTMAX and own.criterion is None:
        return categorical_cross_entropy
    return own_loss.build_criterion(own, device)


def smooth_l1(values: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Return the smooth L1 loss of numbers from -1 to 1: a square below a difference of SHARP."""
    return F.smooth_l1_loss(values, target, reduction=reduction, beta=SHARP)


class HeadsLoss(nn.Module):
    """The weighted sum of the losses of all heads, each a mean over its own known pairs.

    A module, so that what the losses count is saved with a run.
    """

    def __init__(self, heads: Sequence[Head], losses: Sequence[Criterion]):
        """Take a loss for each head, called with the logits of its channels."""
        super().__init__()
        self.heads = tuple(heads)
        self.losses = list(losses)
        for head, loss in zip(heads, losses, strict=True):
            module = criterion.module_of(loss)
            if module is not None:
                self.add_module(f"of {head.name}", module)

    def train(self, mode: bool = True) -> HeadsLoss:
        """Put the losses into the mode of training or of validation."""
        super().train(mode)
        for loss in self.losses:
            criterion.set_mode(loss, mode)
        return self

    def forward(
        self,
        logits: Tensor,
        target: Target,
        pos_weight: Tensor | None = None,
        fractions: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; of several processes in a step this one's share, see `as_share`.

        fractions: (heads,), by which the losses of heads are multiplied, see `Method.fractions`.
        """
        total = torch.zeros((), device=logits.device)
        for number, (head, loss) in enumerate(zip(self.heads, self.losses, strict=True)):
            if not head.weight:
                continue
            value = self._of_head(head, loss, logits, target, pos_weight=pos_weight)
            weight = head.weight if fractions is None else head.weight * fractions[number]
            total = total + weight * value
        return total

    def known_pairs(self, target: Target) -> Tensor:
        """Return the number of known pairs that the loss of each head is a mean over, (heads,)."""
        return torch.stack([count_known(_target_of(head, target)) for head in self.heads])

    def _of_head(
        self,
        head: Head,
        loss: Criterion,
        logits: Tensor,
        target: Target,
        *,
        pos_weight: Tensor | None,
    ) -> Tensor:
        parts = [head.channels]
        if loss is weighted_bce:
            # a mean over pairs: that of classes needs no dense target
            parts = _classes_and_derived(head.channels, target)
        shares = []
        pairs = []
        for channels in parts:
            own_target = _target_of(head, target, channels)
            weight = None if pos_weight is None else pos_weight[list(channels)]
            value = loss(_of(logits, channels), own_target, weight)
            problem = criterion.problem_with(value)
            if problem:
                raise UserError(f"the loss of {head.name} {problem}; {criterion.CONTRACT}")
            shares.append(together.as_share(value, own_target))
            pairs.append(together.summed(count_known(own_target)))
        if len(parts) == 1:
            return shares[0]
        known_pairs = torch.stack(pairs)
        fractions = (known_pairs / known_pairs.sum().clamp(min=1)).float()
        return (torch.stack(shares) * fractions).sum()


def _classes_and_derived(channels: Sequence[int], target: Target) -> list[tuple[int, ...]]:
    """Return the channels of classes and those that are derived; one list where all are alike."""
    first = target.classes.palette.shape[1] if isinstance(target, MixedTarget) else 0
    classes = tuple(number for number in channels if number < first)
    derived = tuple(number for number in channels if number >= first)
    return [part for part in (classes, derived) if part]


def _target_of(head: Head, target: Target, channels: Sequence[int] = ()) -> PaletteTarget | Tensor:
    """Return the target of a head's channels, or of some of them."""
    own = of_channels(target, channels or head.channels)
    return decided(own) if head.activation == SOFTMAX else own


def _of(logits: Tensor, channels: Sequence[int]) -> Tensor:
    """The logits of some channels: a view where they lie side by side."""
    first = channels[0]
    behind = channels[-1] + 1
    if list(channels) == list(range(first, behind)):
        return logits[:, first:behind]
    return logits[:, list(channels)]


def decided(target: Target) -> Tensor:
    """Return the dense labels of exclusive channels, NaN where it is not known which is true.

    (B, channels, z, y, x) float32: at each voxel one channel is 1, or all are NaN.
    """
    labels = target if isinstance(target, Tensor) else target.dense()
    is_decided = (labels == 1).any(1, keepdim=True)
    return (labels == 1).float().masked_fill(~is_decided, torch.nan)


class SignedLoss:
    """Wraps a loss of (values, target) of numbers from -1 to 1, so that unknown ones are left out.

    The values are 2 sigmoid(logits) - 1. pos_weight is accepted and ignored.
    """

    def __init__(self, loss: Callable[..., Tensor]):
        """Wrap a loss that returns a scalar, or a tensor of the shape of the values."""
        self.loss = loss
        self.for_each_voxel = criterion.without_reduction(loss)

    def __call__(self, logits: Tensor, target: Target, pos_weight: Tensor | None = None) -> Tensor:
        """Return the loss over the known voxels, a float32 scalar."""
        assert isinstance(target, Tensor)
        values = logits.float().sigmoid() * 2 - 1
        mask = known(target)
        # in their place a pair that is right, so that no gradient is NaN
        values = values.where(mask, 0)
        wanted = target.where(mask, 0)
        losses = self.for_each_voxel(values, wanted)
        if getattr(losses, "shape", None) == values.shape:
            return criterion.mean_over_known(losses, mask)
        return self.loss(values, wanted)


def _try_signed(head: Head, loss: SignedLoss, config: TrainConfig, device: torch.device) -> None:
    """Call the loss of a distance on some logits, whose values should be 0.5.

    Raises UserError if it does not give a finite scalar, or if it rewards what is wrong.
    """
    shape = (1, len(head.channels), *config.target_array_info["shape"])
    logits = torch.zeros(shape, device=device, requires_grad=True)
    what = f"{config.folder}: criteria['{head.name}']"
    wanted = "write loss(values, target) of numbers from -1 to 1, such as torch.nn.MSELoss()"
    target = torch.full(shape, 0.5, device=device)
    try:
        value = loss(logits, target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what}: cannot be called ({error}); {wanted}") from error
    problem = criterion.problem_with(value)
    if not problem and not value.isfinite():
        problem = f"gives {value.item()}"
    if problem:
        raise UserError(f"{what} {problem}; {wanted}")
    near = float(loss(logits + 1, target).detach())
    far = float(loss(logits - 1, target).detach())
    if near > far:
        raise UserError(
            f"{what} gives {near:.4g} for values near the target and {far:.4g} for those far from "
            "it, and what is lower is learnt; turn its sign"
        )

"""Any loss as a function that the trainer can call, of known voxels and several outputs.

Two kinds of loss are accepted:

* A loss with three arguments, `criterion(logits, target, pos_weight)`, such as those of
  `common.train.losses`. It is called as it is, and has to leave out unknown voxels itself.
* A loss with two arguments, `criterion(logits, target)`, such as those of torch and MONAI. It gets
  float32 logits and a dense float32 target of 0 and 1; `OrdinaryLoss` leaves out unknown voxels. If
  the loss can return one value per voxel (reduction="none"), the mean over the known voxels is
  taken, as in the toolbox's CellMapLossWrapper. If it returns a single number, as Dice losses do,
  unknown voxels are passed with target 0 and logit -30: they get no gradient and add nothing to an
  overlap or a sum.

`common.train.losses.own_loss` makes one of the setting `criterion`.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from common.data.samples.targets import MixedTarget, PaletteTarget, Target, dense, known
from common.errors import UserError
from common.train.processes import together

Criterion = Callable[[torch.Tensor, Any, torch.Tensor | None], torch.Tensor]
"""`criterion(logits, target, pos_weight)` returns a scalar, see `common.train.losses`."""


SURELY_NEGATIVE = -30.0
"""A logit with probability 1e-13, which is too small to change a sum in float32."""


def module_of(criterion: Criterion) -> nn.Module | None:
    """Return the module that a criterion is, whose state is saved; None of a function."""
    loss = criterion.loss if isinstance(criterion, OrdinaryLoss) else criterion
    return loss if isinstance(loss, nn.Module) else None


def set_mode(criterion: Criterion, training: bool) -> None:
    """Put a criterion that is a module into the mode of training or of validation."""
    parts: list[Any] = [criterion]
    if isinstance(criterion, OrdinaryLoss):
        parts = [criterion.loss, criterion.for_each_voxel]
    for part in parts:
        if isinstance(part, nn.Module):
            part.train(training)


def uses_pos_weight(criterion: Criterion) -> bool:
    """Return whether a criterion uses pos_weight: any but a wrapped loss of two arguments."""
    return not isinstance(criterion, OrdinaryLoss)


def takes_pos_weight(loss: Callable) -> bool:
    """Return whether a loss is to be called with pos_weight as third argument.

    It is if its third positional parameter has no default or is named pos_weight. Functions without
    a Python signature are called with two arguments.
    """
    # of a module the signature of __call__ says nothing
    function = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # functions written in C need not have one
        return False
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(by_position) < 3:
        return False
    third = by_position[2]
    return third.default is third.empty or third.name == "pos_weight"


class OrdinaryLoss:
    """Wraps a loss of (logits, target) so that unknown voxels are left out.

    pos_weight is accepted and ignored.
    """

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
        """Wrap a loss that returns a scalar or a tensor of the shape of the logits.

        A loss with a true attribute `takes_unknown` gets the float32 logits and a target that is
        NaN where the label is unknown; its result is returned unchanged.
        """
        self.loss = loss
        self.for_each_voxel = without_reduction(loss)
        self.gives_one_number: bool | None = None
        """Whether the loss returns no value per voxel; None before the first call."""

    def __call__(
        self, logits: torch.Tensor, target: Target, pos_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss over the known voxels of `target`, a float32 scalar."""
        labels = dense(target)
        mask = known(labels)
        logits = logits.float()
        positive = (labels > 0).float()  # unknown ones, -1 or NaN, are not above 0
        if getattr(self.loss, "takes_unknown", False):
            return self.loss(logits, positive.masked_fill(~mask, torch.nan))
        if not self.gives_one_number:
            losses = self.for_each_voxel(logits, positive)
            if getattr(losses, "shape", None) == (len(logits), *logits.shape[2:]):
                # one for all channels of a voxel, such as torch's cross-entropy of a softmax
                return mean_over_known(losses, mask.all(1))
            self.gives_one_number = getattr(losses, "shape", None) != logits.shape
            if not self.gives_one_number:
                return mean_over_known(losses, mask)
        return self.loss(logits.where(mask, SURELY_NEGATIVE), positive)


def mean_over_known(losses: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of `losses` where `mask` is True; 0 if it is True nowhere.

    In a step of several processes it is the mean over all of them: of a loss that has one value for
    all channels of a voxel, the trainer's count of known pairs is not the count of its terms.
    """
    total = together.summed(torch.where(mask, losses, 0).sum())
    return total / together.summed(mask.sum()).clamp(min=1)


def without_reduction(loss: Callable) -> Callable[..., torch.Tensor]:
    """Return the loss with reduction="none" if it has a reduction, otherwise the loss itself."""
    if isinstance(loss, nn.Module):
        if not hasattr(loss, "reduction"):
            return loss
        elementwise = copy.copy(loss)
        elementwise.reduction = "none"  # type: ignore[assignment]  # a text, no submodule
        return elementwise
    try:
        has_reduction = "reduction" in inspect.signature(loss).parameters
    except ValueError:
        return loss
    return functools.partial(loss, reduction="none") if has_reduction else loss


def over_outputs(
    criterion: Criterion,
    outputs: Sequence[torch.Tensor],
    target: Target,
    pos_weight: torch.Tensor | None,
) -> torch.Tensor:
    """Return the weighted mean of the losses of several outputs (deep supervision).

    `outputs` are logits (B, classes, z, y, x), the finest first; the target is on the voxels of the
    finest. The weights are 1, 1/2, 1/4, ..., divided by their sum, as in nnU-Net (Isensee et al.
    2021). A coarser output covers the same volume and is compared with the nearest voxels of the
    target. Raises UserError if the outputs differ in batch size or number of channels.
    """
    loss = torch.zeros((), device=outputs[0].device)
    weights = [0.5**k for k in range(len(outputs))]
    for weight, output in zip(weights, outputs, strict=True):
        if output.shape[:2] != outputs[0].shape[:2]:
            raise UserError(
                f"the model gives outputs of shapes {tuple(outputs[0].shape)} and "
                f"{tuple(output.shape)}; give all of them one channel for each class"
            )
        part = criterion(output, resampled(target, output.shape[2:]), pos_weight)
        loss = loss + part * (weight / sum(weights))
    return loss


def resampled(target: Target, shape: Sequence[int]) -> Target:
    """Return the target on `shape` (z, y, x) voxels over the same volume, by nearest neighbour."""
    if isinstance(target, PaletteTarget):
        return replace(target, rows=_nearest(target.rows, shape))
    if isinstance(target, MixedTarget):
        classes = replace(target.classes, rows=_nearest(target.rows, shape))
        return replace(target, classes=classes, derived=_nearest(target.derived, shape))
    return _nearest(target, shape)


def _nearest(volume: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    for axis, size in zip((-3, -2, -1), shape, strict=True):
        old_size = volume.shape[axis]
        if size != old_size:
            centres = (torch.arange(size, device=volume.device) + 0.5) * (old_size / size)
            volume = volume.index_select(axis, centres.floor().long())
    return volume


CONTRACT = (
    "write criterion(logits, target), which gives one number or one for each voxel, "
    "or criterion(logits, target, pos_weight) as in common.train.losses.losses"
)


def problem_with(loss: Any) -> str:
    """Return what is wrong with the type of a criterion's result; "" if nothing is."""
    if not isinstance(loss, torch.Tensor):
        return f"gives a {type(loss).__name__}"
    if loss.ndim:
        return f"gives a tensor of shape {tuple(loss.shape)}"
    if torch.is_grad_enabled() and not loss.requires_grad:
        return "gives a number without a gradient"
    if loss.is_complex():
        return "gives a complex number"
    return ""


def name_of(criterion: Callable) -> str:
    """Return the name of a loss in messages."""
    loss = criterion.loss if isinstance(criterion, OrdinaryLoss) else criterion
    if isinstance(loss, functools.partial):
        loss = loss.func
    return getattr(loss, "__name__", type(loss).__name__)

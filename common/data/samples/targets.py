"""The target of a loss, and functions that turn it into dense labels, masks and counts.

A target labels every (voxel, class) pair as positive (1), negative (0) or unknown. Unknown means
not annotated: such a pair must not contribute to a loss or a metric. A target has one of three
forms:

* a `PaletteTarget`, which the loaders make: an image of palette rows and a table of label
  combinations. It takes 4 bytes per voxel for any number of classes.
* a dense tensor of the shape of the logits, (B, classes, z, y, x): integers with -1 for unknown, or
  floats with NaN for unknown.
* a `MixedTarget`, the first form for classes beside the second one for derived channels, whose
  distances are numbers from -1 to 1.

`dense` and `known` accept all forms, so a loss of your own can be written as


    def my_loss(logits, target, pos_weight=None):
        labels = dense(target)
        mask = known(labels)
        per_voxel = some_loss(logits.float(), (labels > 0).float())  # NaN and -1 are not > 0
        return (per_voxel * mask).sum() / mask.sum().clamp(min=1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PaletteTarget:
    """Labels of all classes as a palette image, 4 bytes per voxel for any number of classes."""

    rows: Tensor
    """(B, z, y, x) int32: the palette row of each voxel."""
    palette: Tensor
    """(rows, classes) int8: 1 positive, 0 negative, -1 unknown."""
    weights: Tensor | None = None
    """(rows, classes) float32, factors of the gradient, see `weighed`; None where all are 1."""

    def dense(self) -> Tensor:
        """Return the labels as (B, classes, z, y, x) int8, in channels-last memory order.

        1 is positive, 0 negative, -1 unknown.
        """
        labels = self.palette.index_select(0, self.rows.flatten())
        return labels.view(*self.rows.shape, -1).permute(0, 4, 1, 2, 3)


@dataclass(frozen=True)
class MixedTarget:
    """The labels of classes beside those of derived channels, which follow them."""

    classes: PaletteTarget
    derived: Tensor
    """(B, derived channels, z, y, x) float32, NaN for unknown."""
    exclusive: tuple[int, ...] = ()
    """Numbers of the channels of which one is true, in order; see `exclusive_labels`."""

    @property
    def rows(self) -> Tensor:
        """(B, z, y, x) int32: the palette row of each voxel."""
        return self.classes.rows

    @property
    def weights(self) -> Tensor | None:
        """(rows, channels) as of a PaletteTarget, 1 of derived channels."""
        if self.classes.weights is None:
            return None
        return F.pad(self.classes.weights, (0, self.derived.shape[1]), value=1.0)

    def dense(self) -> Tensor:
        """Return the labels of all channels, (B, channels, z, y, x) float32, NaN for unknown."""
        channels = self.classes.palette.shape[1] + self.derived.shape[1]
        return self.of(range(channels))

    def of(self, channels: Sequence[int]) -> Tensor:
        """Return the labels of some channels, (B, channels, z, y, x) float32, NaN for unknown."""
        first = self.classes.palette.shape[1]
        labels = [self._alone(channel, first) for channel in channels]
        among = [channel for channel in channels if channel in self.exclusive]
        if among:
            together = torch.stack([self._alone(n, first) for n in self.exclusive], 1)
            together = exclusive_labels(together)
            for channel in among:
                which = self.exclusive.index(channel)
                labels[list(channels).index(channel)] = together[:, which]
        return torch.stack(labels, 1)

    def _alone(self, channel: int, first: int) -> Tensor:
        """Return the labels of a channel, (B, z, y, x) float32, whatever excludes it."""
        if channel >= first:
            return self.derived[:, channel - first]
        values = self.classes.palette[:, channel]
        values = values.float().masked_fill(values < 0, torch.nan)
        rows = self.classes.rows
        return values.index_select(0, rows.flatten()).view(rows.shape)


Target = PaletteTarget | MixedTarget | Tensor


def exclusive_labels(labels: Tensor) -> Tensor:
    """Return the labels of classes, along axis 1, so that at most one is positive.

    Where several are, the last one counts, and those before it become negative. It becomes unknown
    where one after it is unknown, which may be the one. Integers with -1 for unknown, or floats.
    """
    positive = labels == 1
    is_unknown = ~known(labels)
    overridden = _any_after(positive)
    is_unknown = is_unknown | (positive & _any_after(is_unknown))
    unknown = torch.nan if labels.is_floating_point() else -1
    return labels.masked_fill(is_unknown, unknown).masked_fill(overridden, 0)


def _any_after(mask: Tensor) -> Tensor:
    """Return whether the mask is true at a later place along axis 1."""
    flipped = mask.flip(1).int()
    before = flipped.cumsum(1) - flipped
    return before.flip(1) > 0


def dense(target: Target) -> Tensor:
    """Return the labels in the shape of the logits; a tensor is returned unchanged.

    A `PaletteTarget` gives int8 with -1 for unknown, a `MixedTarget` float32 with NaN.
    """
    return target if isinstance(target, Tensor) else target.dense()


def binary(target: Target) -> Tensor:
    """Return the labels in the shape of the logits as integers, -1 for unknown.

    A distance is 1 where it is above 0, and 0 elsewhere.
    """
    labels = dense(target)
    if not labels.is_floating_point():
        return labels
    return (labels > 0).to(torch.int8).masked_fill_(labels.isnan(), -1)


def of_channels(target: Target, channels: Sequence[int]) -> PaletteTarget | Tensor:
    """Return the target of some channels, as a palette image where they are classes."""
    if isinstance(target, Tensor):
        return target[:, list(channels)]
    classes = target if isinstance(target, PaletteTarget) else target.classes
    if isinstance(target, MixedTarget):
        are_classes = max(channels) < classes.palette.shape[1]
        if not are_classes or set(channels) & set(target.exclusive):
            return target.of(channels)
    weights = None if classes.weights is None else classes.weights[:, list(channels)]
    return PaletteTarget(classes.rows, classes.palette[:, list(channels)], weights)


def of_sample(target: Target, number: int) -> Target:
    """Return the target of one sample of a batch, as a batch of one."""
    sample = slice(number, number + 1)
    if isinstance(target, Tensor):
        return target[sample]
    if isinstance(target, PaletteTarget):
        return replace(target, rows=target.rows[sample])
    classes = replace(target.classes, rows=target.rows[sample])
    return replace(target, classes=classes, derived=target.derived[sample])


def known(labels: Tensor) -> Tensor:
    """Return a bool mask of the shape of dense `labels`, True where the label is known.

    Unknown is NaN in floating-point labels and any value below 0 in integer labels.
    """
    return ~labels.isnan() if labels.is_floating_point() else labels >= 0


def count_known(target: Target) -> Tensor:
    """Return the number of known (voxel, class) pairs, a float64 scalar on the target's device."""
    if isinstance(target, PaletteTarget):
        # counted per row of the palette: a dense mask would be as large as the logits
        known_classes = (target.palette >= 0).sum(1, dtype=torch.int32)
        return known_classes.index_select(0, target.rows.flatten()).sum(dtype=torch.float64)
    if isinstance(target, MixedTarget):
        return count_known(target.classes) + count_known(target.derived)
    return known(target).sum(dtype=torch.float64)


def weighed(logits: Tensor, target: Target) -> Tensor:
    """Return the same logits, whose gradient is multiplied by the weights of the target.

    So labels with a weight below 1 count less in any loss; the value of the loss stays the same.
    """
    if isinstance(target, Tensor) or target.weights is None or not logits.requires_grad:
        return logits
    return _Weighed.apply(logits, target.rows, target.weights)


class _Weighed(torch.autograd.Function):
    """The identity, whose gradient is multiplied by the weight of each (voxel, class) pair."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        rows, weights = ctx.saved_tensors
        of_pairs = weights.index_select(0, rows.flatten()).view(*rows.shape, -1)
        return grad_outputs[0] * of_pairs.movedim(-1, 1).to(grad_outputs[0].dtype), None, None

"""The target of a loss, and functions that turn it into dense labels, masks and counts.

A target labels every (voxel, class) pair as positive (1), negative (0) or unknown. Unknown means
not annotated: such a pair must not contribute to a loss or a metric. A target has one of two forms:

* a `PaletteTarget`, which the loaders make: an image of palette rows and a table of label
  combinations. It takes 4 bytes per voxel for any number of classes.
* a dense tensor of the shape of the logits, (B, classes, z, y, x): integers with -1 for unknown, or
  floats with NaN for unknown.

`dense` and `known` accept both forms, so a loss of your own can be written as


    def my_loss(logits, target, pos_weight=None):
        labels = dense(target)
        mask = known(labels)
        per_voxel = some_loss(logits.float(), (labels > 0).float())  # NaN and -1 are not > 0
        return (per_voxel * mask).sum() / mask.sum().clamp(min=1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
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


def dense(target: PaletteTarget | Tensor) -> Tensor:
    """Return the labels in the shape of the logits; a tensor is returned unchanged.

    A `PaletteTarget` gives int8 with -1 for unknown.
    """
    return target.dense() if isinstance(target, PaletteTarget) else target


def known(labels: Tensor) -> Tensor:
    """Return a bool mask of the shape of dense `labels`, True where the label is known.

    Unknown is NaN in floating-point labels and any value below 0 in integer labels.
    """
    return ~labels.isnan() if labels.is_floating_point() else labels >= 0


def count_known(target: PaletteTarget | Tensor) -> Tensor:
    """Return the number of known (voxel, class) pairs, a float64 scalar on the target's device."""
    if isinstance(target, PaletteTarget):
        # counted per row of the palette: a dense mask would be as large as the logits
        known_classes = (target.palette >= 0).sum(1, dtype=torch.int32)
        return known_classes.index_select(0, target.rows.flatten()).sum(dtype=torch.float64)
    return known(target).sum(dtype=torch.float64)


def weighed(logits: Tensor, target: PaletteTarget | Tensor) -> Tensor:
    """Return the same logits, whose gradient is multiplied by the weights of the target.

    So labels count less in any loss, whatever it makes of single pairs: its value is as without.
    """
    if isinstance(target, Tensor) or target.weights is None or not logits.requires_grad:
        return logits
    return _Weighed.apply(logits, target.rows, target.weights)


class _Weighed(torch.autograd.Function):
    """The identity, backwards times the weight of each (voxel, class) pair."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        rows, weights = ctx.saved_tensors
        of_pairs = weights.index_select(0, rows.flatten()).view(*rows.shape, -1)
        return grad_outputs[0] * of_pairs.movedim(-1, 1).to(grad_outputs[0].dtype), None, None

"""What a loss is given as target, and how to get labels, masks and counts out of it.

A target says of every voxel and class: positive (1), negative (0) or unknown. It has two forms:

* `PaletteTarget`, as the loaders make it: one small number a voxel, and a table of label
  combinations. It is what keeps 48 classes at 4 bytes a voxel.
* a dense tensor of the logits' shape (B, classes, z, y, x): integers with -1 for unknown, or floats
  with NaN for unknown.

A loss of your own takes either with `dense` and `known`:

    def my_loss(logits, target, pos_weight=None):
        labels = dense(target)
        mask = known(labels)
        per_voxel = some_loss(logits.float(), (labels > 0).float())  # NaN and -1 are not > 0
        return (per_voxel * mask).sum() / mask.sum().clamp(min=1)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PaletteTarget:
    """Labels of all classes as a palette image: 4 bytes a voxel whatever the number of classes."""

    rows: Tensor
    """(B, z, y, x) int32: for each voxel its row of the palette."""
    palette: Tensor
    """(rows, classes) int8: 1 positive, 0 negative, -1 unknown."""

    def dense(self) -> Tensor:
        """Labels as (B, classes, z, y, x) int8, in the memory order of channels last."""
        labels = self.palette.index_select(0, self.rows.flatten())
        return labels.view(*self.rows.shape, -1).permute(0, 4, 1, 2, 3)


def dense(target: PaletteTarget | Tensor) -> Tensor:
    """The labels as a tensor of the shape of the logits; a tensor is returned as it is."""
    return target.dense() if isinstance(target, PaletteTarget) else target


def known(labels: Tensor) -> Tensor:
    """Where dense labels are known: bool of their shape."""
    return ~labels.isnan() if labels.is_floating_point() else labels >= 0


def count_known(target: PaletteTarget | Tensor) -> Tensor:
    """Number of known (voxel, class) pairs, a float64 scalar on the target's device."""
    if isinstance(target, PaletteTarget):
        # counted per row of the palette: a dense mask would be as large as the logits
        known_classes = (target.palette >= 0).sum(1, dtype=torch.int32)
        return known_classes.index_select(0, target.rows.flatten()).sum(dtype=torch.float64)
    return known(target).sum(dtype=torch.float64)

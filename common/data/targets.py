"""What a loss is given: a palette image, or a dense target in which NaN or -1 is unknown."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Target:
    """Labels as a palette image: 4 bytes a voxel whatever the number of classes."""

    rows: torch.Tensor
    """(B, z, y, x) int32, a palette row for each voxel."""
    palette: torch.Tensor
    """(rows, classes) int8, 1 positive, 0 negative, -1 unknown."""

    def dense(self) -> torch.Tensor:
        """(B, classes, z, y, x) int8, channels last in memory."""
        found = self.palette.index_select(0, self.rows.flatten())
        return found.view(*self.rows.shape, -1).permute(0, 4, 1, 2, 3)


def dense(target: Target | torch.Tensor) -> torch.Tensor:
    """The target as a tensor of the shape of the logits."""
    return target.dense() if isinstance(target, Target) else target


def known(target: torch.Tensor) -> torch.Tensor:
    """Bool, where a dense target is known."""
    return ~target.isnan() if target.is_floating_point() else target >= 0


def count_known(target: Target | torch.Tensor) -> torch.Tensor:
    """Number of known (voxel, class) pairs, a float64 scalar."""
    if isinstance(target, Target):
        in_row = (target.palette >= 0).sum(1, dtype=torch.int32)
        return in_row.index_select(0, target.rows.flatten()).sum(dtype=torch.float64)
    return known(target).sum(dtype=torch.float64)

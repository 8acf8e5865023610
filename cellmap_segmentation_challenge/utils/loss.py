"""Any criterion of torch, over the known voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from common.errors import UserError

Arrays = torch.Tensor | Mapping[str, torch.Tensor] | Sequence[torch.Tensor]


class CellMapLossWrapper(nn.Module):
    """`loss_class(**kwargs)` as a mean over known voxels: those where the target is not NaN. 0 where none is known.

    loss_class: gives one loss an element with reduction="none", as torch's criteria do. The public toolbox divides by
    all voxels, so that its loss follows the annotated fraction, and leaves NaN outputs out; here the loss is then NaN.
    """

    def __init__(self, loss_class: type[nn.Module], **kwargs: Any):
        super().__init__()
        self.kwargs = {**kwargs, "reduction": "none"}
        self.loss_fn = loss_class(**self.kwargs)

    def calc_loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Of one array."""
        known = ~target.isnan()
        losses = self.loss_fn(outputs, target.nan_to_num(0))
        if losses.shape != target.shape:
            raise UserError(
                f"{type(self.loss_fn).__name__} gives losses of shape {tuple(losses.shape)} for a target of shape "
                f"{tuple(target.shape)}; use a criterion that gives one an element"
            )
        return torch.where(known, losses, 0).sum() / known.sum().clamp(min=1)

    def forward(self, outputs: Arrays, targets: Arrays) -> torch.Tensor:
        """Of one array, or the mean over several: targets by name, outputs by name or in the order of the targets."""
        if isinstance(targets, torch.Tensor):
            return self.calc_loss(outputs, targets)
        if len(outputs) != len(targets):
            raise UserError(f"{len(outputs)} outputs for {len(targets)} targets; give one for each")
        if isinstance(targets, Mapping):
            outputs = (
                [outputs[name] for name in targets] if isinstance(outputs, Mapping) else outputs
            )
            targets = list(targets.values())
        return torch.stack(
            [self.calc_loss(*pair) for pair in zip(outputs, targets, strict=True)]
        ).mean()

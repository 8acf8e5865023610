"""Any criterion of torch, over the known voxels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from cellmap_segmentation_challenge._public import names_of
from common.data.samples.targets import known
from common.errors import UserError
from common.train.losses.criterion import mean_over_known

__getattr__ = names_of(__name__, {})

Arrays = torch.Tensor | Mapping[str, torch.Tensor] | Sequence[torch.Tensor]


class CellMapLossWrapper(nn.Module):
    """The mean of `loss_class(**kwargs)` over known voxels, where the target is not NaN.

    It is 0 if no voxel is known. The public toolbox divides by all voxels, so that its loss follows
    the annotated fraction, and leaves out outputs that are NaN; here the loss is NaN then.

    loss_class: returns a loss for each element with reduction="none", as torch's criteria do.
    """

    takes_unknown = True
    """Tells the trainer to pass targets with NaN for unknown voxels."""

    def __init__(self, loss_class: type[nn.Module], **kwargs: Any) -> None:
        super().__init__()
        self.kwargs = {**kwargs, "reduction": "none"}
        self.loss_fn = loss_class(**self.kwargs)

    def calc_loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of one array."""
        losses = self.loss_fn(outputs, target.nan_to_num(0))
        if losses.shape != target.shape:
            raise UserError(
                f"{type(self.loss_fn).__name__} gives losses of shape {tuple(losses.shape)} for "
                f"a target of shape {tuple(target.shape)}; use a criterion that gives one an "
                "element"
            )
        return mean_over_known(losses, known(target))

    def forward(self, outputs: Arrays, targets: Arrays) -> torch.Tensor:
        """Return the loss of one array, or the mean over several.

        Several targets are given by name; outputs by name, or in the order of the targets.
        """
        if isinstance(targets, torch.Tensor):
            return self.calc_loss(cast(torch.Tensor, outputs), targets)
        if len(outputs) != len(targets):
            raise UserError(f"{len(outputs)} outputs for {len(targets)} targets; give one for each")
        losses = []
        for output, target in zip(*_in_one_order(outputs, targets), strict=True):
            losses.append(self.calc_loss(output, target))
        return torch.stack(losses).mean()


def _in_one_order(
    outputs: Arrays, targets: Mapping[str, torch.Tensor] | Sequence[torch.Tensor]
) -> tuple[Iterable[torch.Tensor], Iterable[torch.Tensor]]:
    """Return outputs and targets in the order of the targets."""
    if not isinstance(outputs, Mapping):
        return outputs, targets.values() if isinstance(targets, Mapping) else targets
    if not isinstance(targets, Mapping):
        raise UserError("outputs are given by name and targets are not; name the targets, too")
    return [outputs[name] for name in targets], targets.values()

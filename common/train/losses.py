"""Losses that are averaged over the known voxels, computed in float32.

Each is called as `criterion(logits, target, pos_weight)` and returns a scalar:

* logits: (B, classes, z, y, x), any floating-point type, before the sigmoid.
* target: a `PaletteTarget`, or a dense tensor of the shape of the logits: integers with 1 positive,
  0 negative and -1 unknown, or floats with 1, 0 and NaN. See `common.data.targets`.
* pos_weight: (classes,) weight of the positive voxels of each class, or None for 1.

`common.train.criterion` adapts losses with another signature, such as those of torch and MONAI.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from common.data.targets import PaletteTarget, count_known, dense, known

AnyTarget = PaletteTarget | torch.Tensor

VOXELS_AT_ONCE = 8192
"""Voxels of a palette image that are expanded to all classes at a time on a CPU."""
# with 48 classes they fit into its cache

MORE_ON_A_GPU = 128
"""Factor on VOXELS_AT_ONCE on other devices: a GPU needs more work in each kernel launch."""


def weighted_bce(
    logits: torch.Tensor, target: AnyTarget, pos_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the binary cross-entropy, averaged over the known (voxel, class) pairs.

    The term of a positive pair is multiplied by `pos_weight` of its class. The result is 0, with a
    gradient of 0, if no pair is known. The public toolbox divides by the number of all voxels
    instead, which makes smaller steps on sparsely annotated crops.
    """
    if pos_weight is None:
        weight = torch.ones(logits.shape[1], device=logits.device)
    else:
        weight = pos_weight.float()
    if isinstance(target, PaletteTarget):
        # per row of the palette: the weight of the positive term, and of both terms together
        positive = (target.palette == 1) * weight
        both = positive + (target.palette == 0)
        total = _PaletteBCE.apply(logits, target.rows, positive, both)
        return total / count_known(target).clamp(min=1).float()
    mask = known(target)
    total = F.binary_cross_entropy_with_logits(
        logits.float(),
        (target > 0).float(),  # NaN > 0 is False
        weight=mask.float(),
        pos_weight=weight.view(-1, *[1] * (logits.ndim - 2)),
        reduction="sum",
    )
    return total / mask.sum().clamp(min=1)


class _PaletteBCE(torch.autograd.Function):
    """Sum of the weighted cross-entropy over a palette image, computed chunk by chunk.

    Let w+ and w- be the weights of the positive and the negative term, both 0 for an unknown pair.
    The loss of a pair is (w+ + w-) softplus(x) - w+ x, its gradient (w+ + w-) sigmoid(x) - w+. The
    forward pass computes both, so that no dense target and no mask are ever allocated.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  # torch calls it by position
        ctx: Any,
        logits: torch.Tensor,
        rows: torch.Tensor,
        positive: torch.Tensor,
        both: torch.Tensor,
    ) -> torch.Tensor:
        classes = logits.shape[1]
        # a view, not a copy, if the logits are channels last
        values = logits.movedim(1, -1).reshape(-1, classes)
        rows = rows.flatten()
        gradient = torch.empty_like(values) if ctx.needs_input_grad[0] else None
        # float64: a float32 sum over millions of voxels loses the last digits
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        size = VOXELS_AT_ONCE
        if logits.device.type != "cpu":
            size *= MORE_ON_A_GPU
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            x = values[part].float()
            w = positive.index_select(0, rows[part])
            s = both.index_select(0, rows[part])
            total += torch.addcmul(w * -x, s, F.softplus(x)).sum()
            if gradient is not None:
                gradient[part] = torch.addcmul(-w, s, x.sigmoid())
        if gradient is not None:
            as_logits = gradient.view(*logits.shape[:1], *logits.shape[2:], classes)
            ctx.save_for_backward(as_logits.movedim(-1, 1))
        return total.float()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].to(gradient.dtype), None, None, None


def dice_loss(
    logits: torch.Tensor, target: AnyTarget, pos_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Return 1 - soft Dice, averaged over the classes with a positive voxel in the batch.

    Overlaps and sizes are summed over all known voxels of the batch. The result is 0 if no class
    has a positive voxel. pos_weight is ignored, since Dice balances foreground and background by
    itself. Source: Milletari et al. 2016, V-Net.
    """
    labels = dense(target)
    mask = known(labels).float()
    positive = (labels > 0).float()
    probability = logits.float().sigmoid() * mask
    axes = [0, *range(2, logits.ndim)]
    overlap = (probability * positive).sum(axes)
    size = (probability + positive).sum(axes)
    occurs = positive.sum(axes) > 0
    loss = 1 - 2 * overlap / size.clamp(min=1e-6)
    return (loss * occurs).sum() / occurs.sum().clamp(min=1)


def bce_dice(
    logits: torch.Tensor, target: AnyTarget, pos_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Return weighted_bce + dice_loss. Source: Isensee et al. 2021, nnU-Net."""
    return weighted_bce(logits, target, pos_weight) + dice_loss(logits, target)

"""Losses as means over *known* voxels, in float32.

logits: (B, classes, z, y, x) of any float type. pos_weight: (classes,) weight of positive voxels, or None. target: a `PaletteTarget`,
which looks its palette up only where it is needed, or a tensor of the shape of logits: integers 1 positive, 0 negative,
-1 unknown, or floats with NaN for unknown.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from common.data.targets import PaletteTarget, count_known, dense, known

CHUNK = 8192
"""Voxels whose labels and losses are in memory at a time on a CPU: with 48 classes they stay in its cache."""


def weighted_bce(
    logits: torch.Tensor,
    target: PaletteTarget | torch.Tensor,
    pos_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Binary cross-entropy, the mean over known (voxel, class) pairs; 0 where none is known.

    The public toolbox divides by all voxels, so that its step size follows the annotated fraction; this does not.
    """
    weight = (
        torch.ones(logits.shape[1], device=logits.device)
        if pos_weight is None
        else pos_weight.float()
    )
    if isinstance(target, PaletteTarget):
        positive = (target.palette == 1) * weight
        total = _PaletteBCE.apply(logits, target.rows, positive, positive + (target.palette == 0))
        return total / count_known(target).clamp(min=1).float()
    mask = known(target)
    positive = (target > 0).float()  # NaN > 0 is False
    weight = weight.view(-1, *[1] * (logits.ndim - 2))
    total = F.binary_cross_entropy_with_logits(
        logits.float(), positive, weight=mask.float(), pos_weight=weight, reduction="sum"
    )
    return total / mask.sum().clamp(min=1)


class _PaletteBCE(torch.autograd.Function):
    """Sum of the weighted cross-entropy of a palette image, chunk by chunk, the gradient made in the same pass.

    With w+ and w- the weights of the positive and the negative term, a pair's loss is (w+ + w-) softplus(x) - w+ x and its
    gradient (w+ + w-) sigmoid(x) - w+. Neither a dense target nor a mask of it ever exists.
    """

    @staticmethod
    def forward(
        ctx, logits: torch.Tensor, rows: torch.Tensor, positive: torch.Tensor, both: torch.Tensor
    ) -> torch.Tensor:
        classes = logits.shape[1]
        values = logits.movedim(1, -1).reshape(
            -1, classes
        )  # a view if the logits are channels last
        rows = rows.flatten()
        gradient = torch.empty_like(values) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        size = CHUNK if logits.device.type == "cpu" else 128 * CHUNK
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            x = values[part].float()
            w, s = positive.index_select(0, rows[part]), both.index_select(0, rows[part])
            total += torch.addcmul(w * -x, s, F.softplus(x)).sum()
            if gradient is not None:
                gradient[part] = torch.addcmul(-w, s, x.sigmoid())
        if gradient is not None:
            ctx.save_for_backward(
                gradient.view(*logits.shape[:1], *logits.shape[2:], classes).movedim(-1, 1)
            )
        return total.float()

    @staticmethod
    def backward(ctx, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.to(gradient.dtype), None, None, None


def dice_loss(
    logits: torch.Tensor,
    target: PaletteTarget | torch.Tensor,
    pos_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """1 - soft Dice, the mean over classes with a known positive voxel in the batch; 0 where there is none.

    pos_weight is not used: Dice balances foreground and background itself. Source: Milletari et al. 2016, V-Net.
    """
    target = dense(target)
    mask = known(target).float()
    positive = (target > 0).float()
    probability = logits.float().sigmoid() * mask
    axes = [0, *range(2, logits.ndim)]
    overlap, size = (probability * positive).sum(axes), (probability + positive).sum(axes)
    occurs = positive.sum(axes) > 0
    return ((1 - 2 * overlap / size.clamp(min=1e-6)) * occurs).sum() / occurs.sum().clamp(min=1)


def bce_dice(
    logits: torch.Tensor,
    target: PaletteTarget | torch.Tensor,
    pos_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """weighted_bce plus dice_loss. Source: Isensee et al. 2021, nnU-Net."""
    return weighted_bce(logits, target, pos_weight) + dice_loss(logits, target)

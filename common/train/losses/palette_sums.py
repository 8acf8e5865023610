"""Sums over the (voxel, class) pairs of a palette image, computed part by part.

The forward pass computes the gradient too, or what it is made of: a dense target of all classes is
never allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

VOXELS_AT_ONCE = 8192
"""Voxels of a palette image that are expanded to all classes at a time on a CPU."""
# with 48 classes they fit into its cache

MORE_ON_A_GPU = 128
"""Factor on VOXELS_AT_ONCE on other devices: a GPU needs more work in each kernel launch."""


class Terms(NamedTuple):
    """A loss of single pairs, as functions of the logits x and two weights of each pair.

    The weights are that of the positive term, and that of both terms together; both are 0 for an
    unknown pair.
    """

    value: Callable[[Tensor, Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Derivative of `value` by x."""


def _parts(voxels: int, device: torch.device) -> Iterator[slice]:
    """Yield the parts of a palette image that are expanded to all classes at a time."""
    size = VOXELS_AT_ONCE
    if device.type != "cpu":
        size *= MORE_ON_A_GPU
    for start in range(0, voxels, size):
        yield slice(start, start + size)


def _classes_last(logits: Tensor) -> Tensor:
    """Return logits as (voxels, classes); a view, not a copy, if they are channels last."""
    return logits.movedim(1, -1).reshape(-1, logits.shape[1])


def _as_logits(values: Tensor, logits: Tensor) -> Tensor:
    """Return (voxels, classes) values in the shape of the logits."""
    shape = (len(logits), *logits.shape[2:], logits.shape[1])
    return values.view(shape).movedim(-1, 1)


class SumOverPairs(torch.autograd.Function):
    """Sum of a loss of single pairs over a palette image, computed part by part.

    The forward pass computes loss and gradient, so that no dense target and no mask are ever
    allocated.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  # torch calls it by position
        ctx: Any, logits: Tensor, rows: Tensor, positive: Tensor, both: Tensor, terms: Terms
    ) -> Tensor:
        """Return the sum, a float32 scalar; `positive` and `both` are weights by row and class."""
        values = _classes_last(logits)
        rows = rows.flatten()
        gradient = torch.empty_like(values) if ctx.needs_input_grad[0] else None
        # float64: a float32 sum over millions of voxels loses the last digits
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for part in _parts(len(rows), logits.device):
            x = values[part].float()
            w = positive.index_select(0, rows[part])
            s = both.index_select(0, rows[part])
            total += terms.value(x, w, s).sum()
            if gradient is not None:
                gradient[part] = terms.slope(x, w, s)
        if gradient is not None:
            ctx.save_for_backward(_as_logits(gradient, logits))
        return total.float()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient by the logits."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].to(gradient.dtype), None, None, None, None


class SumsOverPalette(torch.autograd.Function):
    """Soft overlap, prediction and truth of each class over a palette image, part by part.

    The gradient of a pair is p (1 - p) times the gradient by overlap, if it is positive, and by
    predicted, if it is known. It is computed part by part, too: no dense target is ever allocated.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, rows: Tensor, palette: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return overlap, predicted and positive, (samples, classes) each."""
        is_known = (palette >= 0).float()
        is_positive = (palette == 1).float()
        sums = torch.zeros(3, *logits.shape[:2], dtype=torch.float64, device=logits.device)
        for k in range(len(logits)):
            values = _classes_last(logits[k : k + 1])
            of_sample = rows[k].flatten()
            for part in _parts(len(of_sample), logits.device):
                p = values[part].float().sigmoid()
                positive = is_positive.index_select(0, of_sample[part])
                sums[0, k] += (p * positive).sum(0)
                sums[1, k] += (p * is_known.index_select(0, of_sample[part])).sum(0)
                sums[2, k] += positive.sum(0)
        ctx.save_for_backward(logits, rows, is_known, is_positive)
        overlap, predicted, count = sums.float()
        ctx.mark_non_differentiable(count)
        return overlap, predicted, count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient by the logits."""
        logits, rows, is_known, is_positive = ctx.saved_tensors
        by_overlap, by_predicted, _ = grad_outputs
        gradient = torch.empty_like(logits)
        for k in range(len(logits)):
            values = _classes_last(logits[k : k + 1])
            of_sample = rows[k].flatten()
            factors = is_positive * by_overlap[k] + is_known * by_predicted[k]
            slopes = torch.empty_like(values)
            for part in _parts(len(of_sample), logits.device):
                p = values[part].float().sigmoid()
                slopes[part] = factors.index_select(0, of_sample[part]) * (p - p * p)
            gradient[k : k + 1] = _as_logits(slopes, logits[k : k + 1])
        return gradient, None, None

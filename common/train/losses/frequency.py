"""A cross-entropy whose class weights follow how often the classes are annotated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.data.samples.targets import PaletteTarget, dense, known
from common.errors import UserError
from common.train.losses.losses import AnyTarget, class_weighted_bce
from common.train.processes import together


class FrequencyWeightedBCE(nn.Module):
    """Binary cross-entropy in which a rare class counts more; the weights are moving averages.

    A batch says of each class which part of its annotated voxels is positive. Weights are
    proportional to 1 / that part, and their sum is 1: of 4,000,000, 800,000 and 150,000 positive
    voxels among as many annotated ones they are 0.0306, 0.1531 and 0.8163. The first `samples` are
    pooled; then each batch moves the weights by `alpha` towards its own. A class without a positive
    voxel in the batch holds its weight, and the others share what is left.

    The weights are buffers: saved, restored and equal in all processes. Validation leaves them as
    they are. With deep supervision every output moves them.
    """

    def __init__(self, classes: int, alpha: float = 0.1, samples: int = 100):
        """Begin with equal weights.

        Args:
            classes: number of channels.
            alpha: weight of a batch in the moving average, above 0 and up to 1.
            samples: patches from which the weights are estimated at first.

        Raises:
            UserError: for a number that is none of these.
        """
        super().__init__()
        if not 0 < alpha <= 1:
            raise UserError(f"FrequencyWeightedBCE: alpha = {alpha}; write a number in (0, 1]")
        if samples < 1 or classes < 1:
            raise UserError(
                f"FrequencyWeightedBCE: classes = {classes}, samples = {samples}; write 1 or more"
            )
        self.alpha = alpha
        self.samples = samples
        first = torch.full((classes,), 1 / classes, dtype=torch.float64)
        self.register_buffer("class_weight", first)
        self.register_buffer("counts", torch.zeros(2, classes, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    class_weight: Tensor
    """(classes,) float64, sum 1."""
    counts: Tensor
    """(2, classes) positive and annotated voxels of the first samples."""
    seen: Tensor
    """Number of samples in `counts`."""

    def forward(
        self, logits: Tensor, target: AnyTarget, pos_weight: Tensor | None = None
    ) -> Tensor:
        """Return the weighted mean over the known pairs, see `class_weighted_bce`."""
        channels = logits.shape[1]
        if channels != len(self.class_weight):
            raise UserError(
                f"FrequencyWeightedBCE: classes = {len(self.class_weight)}, and it is given "
                f"{channels} channels; write criterion_kwargs = {{'classes': {channels}}}"
            )
        if self.training:
            self._follow(target, len(logits))
        return class_weighted_bce(logits, target, pos_weight, class_weight=self.class_weight)

    @torch.no_grad()
    def _follow(self, target: AnyTarget, samples: int) -> None:
        """Move the weights by the batch of a step, that of all processes together."""
        counts = together.summed(positive_and_known(target))
        if self.seen < self.samples:
            self.counts += counts
            self.seen += together.summed(self.seen.new_tensor(samples))
            equal = torch.full_like(self.class_weight, 1 / len(self.class_weight))
            self.class_weight.copy_(balanced(self.counts, equal))
        else:
            self.class_weight.lerp_(balanced(counts, self.class_weight), self.alpha)


def balanced(counts: Tensor, before: Tensor) -> Tensor:
    """Return weights (classes,) that are proportional to 1 / frequency.

    A class without a positive voxel has its weight of `before`; the sum stays that of `before`.

    counts: (2, classes) positive and annotated voxels.
    """
    positive, annotated = counts
    occurs = positive > 0
    inverse = torch.where(occurs, annotated / positive.clamp(min=1), 0)
    left = torch.where(occurs, before, 0).sum()
    scale = left / inverse.sum().clamp(min=1)  # annotated / positive is 1 or more
    return torch.where(occurs, inverse * scale, before)


def positive_and_known(target: AnyTarget) -> Tensor:
    """Return the numbers of positive and of known voxels of each class, (2, classes) float64."""
    if isinstance(target, PaletteTarget):
        rows = torch.bincount(target.rows.flatten(), minlength=len(target.palette)).double()
        return torch.stack(
            [rows @ (target.palette == 1).double(), rows @ known(target.palette).double()]
        )
    labels = dense(target)
    axes = [0, *range(2, labels.ndim)]
    counts = [(labels > 0).sum(axes), known(labels).sum(axes)]
    return torch.stack(counts).double()

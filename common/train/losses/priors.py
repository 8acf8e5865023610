"""How often each channel is positive in training, for its weight and for the first prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.config.derived import SIGNED, SOFTMAX
from common.config.heads import exclusive_channels, heads_of
from common.config.settings import TrainConfig
from common.data.samples import targets
from common.data.samples.batches import training_batches
from common.data.samples.loaders import Data
from common.talk import some
from common.train.losses.criterion import Criterion, uses_pos_weight
from common.train.losses.heads import HeadsLoss

SAMPLES = 32
"""Training samples in which channels that are no classes are counted: those a run begins with."""


@dataclass(frozen=True)
class Frequencies:
    """Voxels of each channel, (channels,) float64 each."""

    positive: np.ndarray
    """Of a distance, the sum of (value + 1) / 2."""
    negative: np.ndarray
    of_none: float = 0.0
    """Part of the voxels, known for all exclusive channels, in which none of them is true."""

    def weights(self, config: TrainConfig, loss: Criterion) -> np.ndarray:
        """Return (channels,) float32 weights of positive voxels; 1 where the loss uses none."""
        weights = np.ones(len(self.positive), np.float32)
        if not config.weight_loss:
            return weights
        balanced = positive_weights(self.positive, self.negative, config.pos_weight_cap)
        losses = loss.losses if isinstance(loss, HeadsLoss) else [loss]
        for head, of_head in zip(heads_of(config), losses, strict=True):
            if uses_pos_weight(of_head) and head.activation != SIGNED:
                weights[list(head.channels)] = balanced[list(head.channels)]
        return weights

    def prior(self, config: TrainConfig, weights: np.ndarray) -> np.ndarray:
        """Return (channels,) float32: the constant logits with the least loss."""
        logits = prior_logits(self.positive, self.negative, weights)
        for head in heads_of(config):
            if head.activation == SOFTMAX:
                numbers = list(head.channels)
                share = weights[numbers] * np.maximum(self.positive[numbers], 1)
                logits[numbers] = np.log(share / share.sum())
        return logits

    def notices(self, config: TrainConfig) -> list[str]:
        """Return sentences about derived channels that are nowhere positive, or never negative."""
        first = len(config.classes)
        sentences = []
        for values, word in ((self.positive, "positive"), (self.negative, "negative")):
            names = [n for n, value in zip(config.channels, values, strict=True) if not value]
            names = [name for name in names if name in config.channels[first:]]
            if names:
                sentences.append(
                    f"{some(names)}: nowhere {word} in the first {SAMPLES} training samples"
                )
        if self.of_none > 0:
            sentences.append(
                f"none of {some(config.softmax)} is true in {self.of_none:.1%} of the voxels in "
                "which they are known, which a softmax cannot learn: add a background(...) to "
                "derived, and to softmax"
            )
        return sentences


def measure(config: TrainConfig, data: Data, device: torch.device) -> Frequencies:
    """Return the frequencies of all channels of a run.

    Those of classes are counted in the training crops, those of other channels and of exclusive
    ones in the first training samples.
    """
    counts = np.zeros((2, len(config.channels)))
    counts[:, : len(config.classes)] = data.foreground, data.background
    first = len(config.classes)
    numbers = sorted({*exclusive_channels(config), *range(first, counts.shape[1])})
    of_none = 0.0
    if numbers:
        counts[:, numbers], of_none = _in_samples(config, data, numbers, device=device)
    return Frequencies(counts[0], counts[1], of_none)


def _in_samples(
    config: TrainConfig, data: Data, channels: Sequence[int], *, device: torch.device
) -> tuple[np.ndarray, float]:
    """Count voxels of some channels in the first training samples, (2, channels).

    And the part of the voxels with no exclusive channel, see `Frequencies.of_none`.
    """
    exclusive = [channels.index(number) for number in exclusive_channels(config)]
    signed = [head.channels for head in heads_of(config) if head.activation == SIGNED]
    is_signed = torch.tensor([(number,) in signed for number in channels], device=device)
    counts = torch.zeros(2, len(channels), dtype=torch.float64, device=device)
    complete = counts.new_zeros(())
    without = counts.new_zeros(())
    # read here, whose samples are those that workers read
    here = dataclasses.replace(config, num_workers=0, augment=None)
    for batch in training_batches(here, data, device).between(0, SAMPLES):
        labels = targets.dense(targets.of_channels(batch.target, channels))
        mask = targets.known(labels)
        values = labels.float()
        share = torch.where(is_signed.view(-1, 1, 1, 1), (values + 1) / 2, values)
        counts[0] += _sum_where(mask, share)
        counts[1] += _sum_where(mask, 1 - share)
        if exclusive:
            are_known = mask[:, exclusive].all(1)
            none_is_true = (values[:, exclusive] == 0).all(1)
            complete += are_known.sum()
            without += (are_known & none_is_true).sum()
    return counts.cpu().numpy(), float(without / complete.clamp(min=1))


def _sum_where(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the sums of (B, channels, z, y, x) values where the mask is true, (channels,)."""
    return values.where(mask, 0).sum((0, 2, 3, 4), dtype=torch.float64)


def positive_weights(foreground: np.ndarray, background: np.ndarray, cap: float) -> np.ndarray:
    """Return (classes,) float32 weights of positive voxels: background / foreground, at most `cap`.

    The arguments are voxel counts (classes,). The weight is 1 for a class that is nowhere positive
    or nowhere negative. The public toolbox has no cap; there, a class with one positive voxel gets
    a weight of up to 1e8.
    """
    weights = np.minimum(background / np.maximum(foreground, 1), cap)
    is_seen = (foreground > 0) & (background > 0)
    return np.where(is_seen, weights, 1.0).astype(np.float32)


def prior_logits(foreground: np.ndarray, background: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return (classes,) float32: the constant logits with the least weighted cross-entropy.

    This is log(weight * foreground / background), from voxel counts and weights of positive voxels,
    (classes,) each. Counts below 1 are taken as 1.
    """
    odds = weights * np.maximum(foreground, 1) / np.maximum(background, 1)
    return np.log(odds).astype(np.float32)

"""A network, or the mean of several, over a volume, one block at a time.

A block of the output is computed from the raw around it alone, so blocks can be computed in any
order, by any number of calls, and are written once. `compute_block` does not know who calls it;
`common.infer.predicting.conveyor` calls it on one device. How windows make up a block is in
`common.infer.predicting.tiling`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from common.data.volumes import regrid
from common.data.volumes.box import slices
from common.infer.networks.window import Forward
from common.infer.predicting.plan import BlockPlan
from common.infer.predicting.raw_blocks import RawBlock, on_host
from common.infer.predicting.tiling import network_logits

Verdict = Callable[[], None]
"""Raises what is wrong with a block; to be called when its values are on the host."""


def fine() -> None:
    """Raise nothing: the verdict where nothing can be wrong."""


def unseen(_: torch.Tensor) -> Verdict:
    """Return the verdict on logits that nobody looks at."""
    return fine


class Pass(NamedTuple):
    """A network over the blocks of a volume, in the planes of one axis if it is 2-D."""

    plan: BlockPlan
    """All passes over a box have the same blocks, each in windows of its own."""
    forward: Forward
    """Raw to logits, of one window or several."""


@dataclass(frozen=True)
class Predictor:
    """A network over the blocks of a volume, alone or as one of an ensemble."""

    passes: Sequence[Pass]
    """Their mean logits are the network's: several where it predicts planes across other axes."""
    look: Callable[[torch.Tensor], Verdict] = unseen
    """Called with the network's logits (classes, z, y, x) of each block, on the device."""


@torch.inference_mode()
def compute_block(
    plan: BlockPlan, raw: RawBlock, forward: Forward, device: torch.device
) -> torch.Tensor:
    """Return logits (classes, z, y, x) of a block on the voxels that are written, on the device."""
    logits = network_logits(plan, raw.to(device), forward)
    if plan.resampled:
        return _resampled(plan, raw.number, logits)
    start, stop = plan.output_box(raw.number)
    first, _ = plan.network_box(raw.number)
    return logits[:, *slices(start - first, stop - first)]


@torch.inference_mode()
def mean_logits(
    predictors: Sequence[Predictor], raw: Sequence[RawBlock], device: torch.device
) -> tuple[torch.Tensor, list[Verdict]]:
    """Return logits (classes, z, y, x) of the mean probability of all networks, and verdicts.

    There is one verdict for each network, of its `look`. For a single network the logits are its
    own.

    Probabilities are averaged, as in deep ensembles (Lakshminarayanan et al. 2017) and as nnU-Net
    joins configurations (Isensee et al. 2021): in a mean of logits the network that is surest of
    itself decides, and networks of different losses differ in that by far. The sums are of
    logarithms, so that the logit is exact where the probability rounds to 1; however many networks
    there are, two sums and the logits of one are in memory.

    Args:
        predictors: the networks.
        raw: for each pass of each network.
        device: where they are.
    """
    positive: torch.Tensor | None = None
    negative: torch.Tensor | None = None
    verdicts = []
    blocks = iter(raw)
    for predictor in predictors:
        raw_of_passes = [next(blocks) for _ in predictor.passes]
        logits = _mean_over_passes(predictor, raw_of_passes, device)
        verdicts.append(predictor.look(logits))
        if len(predictors) == 1:
            return logits, verdicts
        logits = logits.float()
        is_class = functional.logsigmoid(logits)
        is_not = functional.logsigmoid(-logits)
        positive = is_class if positive is None else torch.logaddexp(positive, is_class)
        negative = is_not if negative is None else torch.logaddexp(negative, is_not)
    assert positive is not None and negative is not None
    return positive - negative, verdicts


def _mean_over_passes(
    predictor: Predictor, raw: Sequence[RawBlock], device: torch.device
) -> torch.Tensor:
    """Return logits (classes, z, y, x) of a network, the mean over its passes.

    raw: for each pass.
    """
    if len(predictor.passes) == 1:
        (only,) = predictor.passes
        return compute_block(only.plan, raw[0], only.forward, device)
    total: torch.Tensor | None = None
    for (plan, forward), block in zip(predictor.passes, raw, strict=True):
        logits = compute_block(plan, block, forward, device).float()
        total = logits if total is None else total + logits
    assert total is not None
    return total / len(predictor.passes)


def _resampled(plan: BlockPlan, number: int, logits: torch.Tensor) -> torch.Tensor:
    """Return float32 logits of a block on the voxels that are written, resampled axis by axis."""
    start, stop = plan.output_box(number)
    first, _ = plan.network_box(number)
    network_scale = np.array(plan.window.output.scale)
    corner = plan.grid.box()[0]
    values = logits.float()
    for axis in range(3):
        target = regrid.Axis(
            plan.grid.origin[axis] + start[axis] * plan.grid.scale[axis],
            plan.grid.scale[axis],
            int(stop[axis] - start[axis]),
        )
        source = regrid.Axis(
            corner[axis] + (first[axis] + 0.5) * network_scale[axis],
            network_scale[axis],
            values.shape[axis + 1],
        )
        matrix = regrid.axis_weights(target, source, repeat_edge=True)
        # from page-locked memory a GPU copies without having come to the end of what it computes
        weights = on_host(matrix, values.is_cuda).to(values.device, non_blocking=True)
        values = torch.tensordot(values, weights, dims=([axis + 1], [1])).movedim(-1, axis + 1)
    return values

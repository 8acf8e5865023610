"""One training step by several processes, each on its part of every batch.

Inside `one_step()` sums are over all processes: of the known voxels by which a loss is divided, of
the overlaps that Dice is made of, of what batch normalisation measures, and of gradients. Outside
of it, and with one process, each computes for itself: `summed` gives back what it is given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.data.samples.targets import Target, count_known
from common.errors import UserError
from common.model.forward import ForwardPass, in_float32
from common.model.shapes import parameters_of_outputs
from common.train.processes import ranks


@contextmanager
def one_step() -> Iterator[None]:
    """Context manager: the processes take one training step together, each on its part."""
    global _is_together  # noqa: PLW0603
    _is_together = ranks.are_joined()
    try:
        yield
    finally:
        _is_together = False


_is_together = False


def are_together() -> bool:
    """Return whether this process computes with others now."""
    return _is_together


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _Sum.apply(grad_outputs[0])


def summed(part: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes that compute together."""
    return _Sum.apply(part) if are_together() else part


def added_up(part: Tensor) -> Tensor:
    """Return the sum over all processes of what each of them computed by itself."""
    return part if not ranks.are_joined() else _Sum.apply(part)


def as_share(loss: Tensor, target: Target) -> Tensor:
    """Return this process's share in the loss of a batch; the shares add up to that loss.

    loss: of this process's part of the batch, a mean over the known pairs of its `target`; or that
        of the whole batch.
    """
    if not are_together():
        return loss
    known = count_known(target)
    return loss * (known / summed(known).clamp(min=1)).float()


def with_gradients_of_all(forward: ForwardPass, model: nn.Module, raw: torch.Tensor) -> ForwardPass:
    """Return a forward pass that learns with gradients which are means over all processes.

    The weights of the main process become those of all. raw: of the shape of a patch.
    """
    if not ranks.are_joined():
        return forward
    exact = in_float32(forward.channels_last)
    channels, *shape = raw.shape[1:]
    used = set().union(*parameters_of_outputs(model, exact.outputs, shape, channels))
    trained = {name for name, weights in model.named_parameters() if weights.requires_grad}
    # of 1x1x1 convolutions: their strides have two names in memory that is channels last
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    replica = DistributedDataParallel(
        forward.learning or model,
        device_ids=[raw.device] if raw.device.type == "cuda" else None,
        find_unused_parameters=bool(trained - used),
    )
    return dataclasses.replace(forward, learning=replica)


def refuse_other_weights(model: nn.Module, iteration: int) -> None:
    """Raise UserError unless all processes go on from the same checkpoint."""
    if not ranks.are_joined():
        return
    total = torch.zeros((), dtype=torch.float64)
    for weights in model.state_dict().values():
        total += weights.double().sum().cpu()
    states = ranks.gathered((iteration, float(total)))
    for number, other in enumerate(states):
        if other != states[0] and not math.isnan(other[1]):
            raise UserError(
                f"process {number} found another checkpoint (iteration {other[0]}) than the main "
                f"one (iteration {states[0][0]}); see that all machines have the same model_save_"
                "path, on one disk"
            )


def backward(part: Tensor) -> None:
    """Compute the gradient of a share of the loss."""
    # a replica takes the mean over the processes, and shares are to be added up
    (part * ranks.size()).backward()


def gradients_wait(forward: ForwardPass, more: bool) -> contextlib.AbstractContextManager:
    """Context manager: while more batches of the step follow, gradients are not sent around."""
    if more and isinstance(forward.learning, DistributedDataParallel):
        return forward.learning.no_sync()
    return contextlib.nullcontext()


def share_statistics(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a network whose batch normalisation is over the parts of all processes together.

    The names of its tensors stay. Layers of classes that are derived from torch's are left alone.
    """
    if not ranks.are_joined():
        return model
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = _SharedBatchNorm
    return model


class _SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over all processes, on the CPU, where torch's SyncBatchNorm has none."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Return the input, normalised; in training with the statistics of all processes."""
        if not (self.training and are_together()):
            return super().forward(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = [0, *range(2, values.ndim)]
        shape = (1, -1, *[1] * (values.ndim - 2))
        count = summed(values.new_tensor(values.numel() / values.shape[1]))
        mean = summed(values.sum(axes)) / count
        # not from sums of squares, whose difference has few digits left
        centred = values - mean.view(shape)
        variance = summed(centred.square().sum(axes)) / count
        self._keep(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        output = centred * scale.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        return output.to(input.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as torch's layer does."""
        if not self.track_running_stats or self.running_mean is None:
            return
        assert self.num_batches_tracked is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        factor = self.momentum
        if factor is None:  # the mean over all batches
            factor = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, factor)
        self.running_var.lerp_(variance, factor)

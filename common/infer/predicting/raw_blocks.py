"""The raw that blocks need, read from disk: for one pass of a network, or for several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from common.data.crops.input_channels import ChannelVolume
from common.data.volumes.box import around
from common.infer.predicting.plan import BlockPlan


@dataclass(frozen=True)
class ChannelValues:
    """What a block needs of an input channel beside raw."""

    volume: ChannelVolume
    values: torch.Tensor
    """(z, y, x) uint8, or float32 in [0, 1]."""
    start: np.ndarray
    """(3,) first voxel of `values`, in voxels of the channel's grid."""

    def to(self, device: torch.device) -> ChannelValues:
        """Return a copy on a device."""
        return replace(self, values=self.values.to(device, non_blocking=True))


@dataclass(frozen=True)
class RawBlock:
    """The raw that a block needs."""

    number: int
    values: torch.Tensor
    """(z, y, x) uint8, or float32 in [0, 1]."""
    start: np.ndarray
    """(3,) first voxel of `values`, in voxels of the raw's grid."""
    channels: tuple[ChannelValues, ...] = ()
    """The network's inputs beside raw."""
    blank: bool = False
    """Whether the raw is 0 throughout."""

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All values that were read: raw, then the channels."""
        return [self.values, *(channel.values for channel in self.channels)]

    def to(self, device: torch.device) -> RawBlock:
        """Return a copy on a device.

        To a CUDA device the values are copied on the current stream; page-locked values are copied
        while the caller goes on.
        """
        channels = tuple(channel.to(device) for channel in self.channels)
        values = self.values.to(device, non_blocking=True)
        return replace(self, values=values, channels=channels)


def read_for_passes(
    plans: Sequence[BlockPlan], number: int, pinned: bool = False
) -> list[RawBlock]:
    """Return the raw of a block for each of several passes; raw that all take alike is read once.

    Args:
        plans: of the passes.
        number: of the block.
        pinned: whether the values are to be in page-locked memory.
    """
    boxes = [plan.input_box(number, plan.raw.grid) for plan in plans]
    are_alike = all(plan.raw.reads_like(plans[0].raw) for plan in plans)
    if not are_alike or any(plan.channels for plan in plans):
        return [_read(plan, number, box, pinned) for plan, box in zip(plans, boxes, strict=True)]
    return [_read(plans[0], number, around(boxes), pinned)] * len(plans)


def _read(
    plan: BlockPlan, number: int, box: tuple[np.ndarray, np.ndarray], pinned: bool
) -> RawBlock:
    """Return the raw of a block from a box in voxels of the raw, and the channels beside it."""
    start, stop = box
    raw = on_host(plan.raw.read_mirrored(start, stop), pinned)
    channels = []
    for volume in plan.channels:
        first, last = plan.input_box(number, volume.raw.grid)
        values = on_host(volume.read_around(first, last), pinned)
        channels.append(ChannelValues(volume, values, first))
    return RawBlock(number, raw, start, tuple(channels), blank=not raw.any())


def on_host(values: np.ndarray, pinned: bool) -> torch.Tensor:
    """Return an array as a contiguous tensor, in page-locked memory if `pinned`."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory() if pinned else tensor

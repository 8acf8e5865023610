"""Cut the blocks that samples read out of memory-mapped crops, in the processes of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.config.derived import Derived
from common.config.heads import exclusive_channels
from common.config.settings import TrainConfig
from common.data.crops.opened import Crop
from common.data.samples import sampling
from common.data.samples.loaders import objects_patch, with_ids
from common.data.samples.sampling import Patch, Sample, Sampler
from common.data.volumes.level import Grid


class Block(NamedTuple):
    """What a patch reads of a volume, before it is oriented and resampled."""

    voxels: Tensor
    """(z, y, x) uint8, int32 or float32."""
    affine: np.ndarray
    """(3, 4) float64, from voxels of the patch to voxels of the block, see `sampling.cut`."""

    def to(self, device: torch.device) -> Block:
        """Return the block with its voxels on a device."""
        return Block(self.voxels.to(device, non_blocking=True), self.affine)


class Piece(NamedTuple):
    """One sample as a worker cuts it."""

    sample: Sample
    raw: Block
    """uint8, or float32 in [0, 1]."""
    labels: Block
    """Rows of the crop's own palette."""
    channels: tuple[Block, ...] = ()
    """Of each further input channel, uint8, or float32 in [0, 1]."""
    ids: tuple[Block | None, ...] = ()
    """The objects of each class that channels are derived from, see `Crop.ids`; None where the
    class is not annotated."""

    @property
    def blocks(self) -> list[Block]:
        """All of its blocks."""
        of_ids = [block for block in self.ids if block is not None]
        return [self.raw, self.labels, *self.channels, *of_ids]


@dataclass(frozen=True)
class Channels:
    """What a run learns beside its classes."""

    derived: tuple[Derived, ...] = ()
    exclusive: tuple[int, ...] = ()
    """Numbers of the channels of which one is true."""
    with_ids: tuple[str, ...] = ()
    """The classes that channels are derived from."""
    objects: Patch | None = None
    """The patch of their ids: the target patch and what decides about it around it."""

    @classmethod
    def of(cls, config: TrainConfig) -> Channels:
        """Return the channels of a run."""
        return cls(
            derived=tuple(config.derived.values()),
            exclusive=exclusive_channels(config),
            with_ids=with_ids(config),
            objects=objects_patch(config),
        )


@dataclass(eq=False)
class Blocks(Dataset):
    """Map-style dataset: item k is sample k as a `Piece`."""

    crops: Sequence[Crop]
    samples: Sampler | Sequence[Sample]
    input: Patch
    target: Patch
    channels: Channels = field(default_factory=Channels)

    def __len__(self) -> int:
        if isinstance(self.samples, Sampler):
            raise TypeError("a sampler has no end; ask for samples start..stop-1")
        return len(self.samples)

    def sample(self, k: int) -> Sample:
        """Return where sample k lies."""
        return self.samples.draw(k) if isinstance(self.samples, Sampler) else self.samples[k]

    def __getitem__(self, k: int) -> Piece:
        sample = self.sample(k)
        crop = self.crops[sample.crop]
        channels = []
        for channel in crop.channels:
            channels.append(_block(channel.voxels(), channel.grid, sample, self.input))
        return Piece(
            sample=sample,
            raw=_block(crop.raw(), crop.raw_grid, sample, self.input),
            labels=_block(crop.labels(), crop.label_grid, sample, self.target),
            channels=tuple(channels),
            ids=tuple(self._ids(crop, sample, name) for name in self.channels.with_ids),
        )

    def _ids(self, crop: Crop, sample: Sample, name: str) -> Block | None:
        """Return the objects of a class; None where it is not annotated."""
        if name not in crop.with_ids:
            return None
        assert self.channels.objects is not None
        return _block(crop.ids(name), crop.label_grid, sample, self.channels.objects)


def _block(volume: np.ndarray, grid: Grid, sample: Sample, patch: Patch) -> Block:
    """Cut the block of a volume, as `sampling.cut`."""
    voxels, affine = sampling.cut(volume, grid, sample, patch)
    if voxels.dtype in (np.uint16, np.uint32):
        voxels = voxels.astype(np.int32)  # torch computes little in these
    return Block(torch.from_numpy(voxels), affine)

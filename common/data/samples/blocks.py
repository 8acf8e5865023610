"""Cut the blocks that samples read out of memory-mapped crops, in the processes of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Piece(NamedTuple):
    """One sample as a worker cuts it, before it is oriented and resampled."""

    sample: Sample
    raw: Tensor
    """Block (z, y, x) uint8, or float32 in [0, 1]."""
    raw_affine: np.ndarray
    """(3, 4) float64, from voxels of the patch to voxels of the block, see `sampling.cut`."""
    labels: Tensor
    """Block (z, y, x) uint8 or int32, rows of the crop's own palette."""
    labels_affine: np.ndarray
    """(3, 4) float64, likewise."""
    channels: tuple[Tensor, ...] = ()
    """A block (z, y, x) of each further input channel, uint8, or float32 in [0, 1]."""
    channel_affines: tuple[np.ndarray, ...] = ()
    """(3, 4) float64 of each, likewise."""
    ids: tuple[Tensor, ...] = ()
    """A block (z, y, x) of the objects of each class that channels are derived from, see
    `Crop.ids`; empty where the class is not annotated."""
    ids_affine: np.ndarray | None = None
    """(3, 4) float64, likewise; None without ids."""


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


class Blocks(Dataset):
    """Map-style dataset: item k is sample k as a `Piece`."""

    def __init__(
        self,
        crops: Sequence[Crop],
        samples: Sampler | Sequence[Sample],
        input: Patch,
        target: Patch,
        *,
        channels: Channels | None = None,
    ):
        self.crops = crops
        self.samples = samples
        self.input = input
        self.target = target
        self.channels = channels or Channels()

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
        raw, raw_affine = sampling.cut(crop.raw(), crop.raw_grid, sample, self.input)
        labels, labels_affine = sampling.cut(crop.labels(), crop.label_grid, sample, self.target)
        if labels.dtype == np.uint16:
            labels = labels.astype(np.int32)  # torch computes little in uint16
        return Piece(
            sample=sample,
            raw=torch.from_numpy(raw),
            raw_affine=raw_affine,
            labels=torch.from_numpy(labels),
            labels_affine=labels_affine,
            **self._input_channels(crop, sample),
            **self._ids(crop, sample),
        )

    def _input_channels(self, crop: Crop, sample: Sample) -> dict[str, Any]:
        """Return the fields of a piece about further input channels."""
        cuts = []
        for channel in crop.channels:
            cuts.append(sampling.cut(channel.voxels(), channel.grid, sample, self.input))
        return {
            "channels": tuple(torch.from_numpy(block) for block, _ in cuts),
            "channel_affines": tuple(affine for _, affine in cuts),
        }

    def _ids(self, crop: Crop, sample: Sample) -> dict[str, Any]:
        """Return the fields of a piece about objects."""
        patch = self.channels.objects
        if patch is None:
            return {}
        blocks = []
        affine = None
        for name in self.channels.with_ids:
            block = np.empty((0, 0, 0), np.int32)
            if name in crop.with_ids:
                block, affine = sampling.cut(crop.ids(name), crop.label_grid, sample, patch)
            if block.dtype != np.uint8:
                block = block.astype(np.int32)  # torch computes little in uint16 and uint32
            blocks.append(torch.from_numpy(block))
        return {"ids": tuple(blocks), "ids_affine": affine}

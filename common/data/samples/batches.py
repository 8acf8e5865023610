"""Training and validation batches of the crops that `common.data.samples.loaders` opened.

`training_batches` and `validation_batches` make the streams of batches. Workers cut blocks out of
memory-mapped crops (`common.data.samples.blocks`); orientation, resampling and intensity changes
happen on the training device (`Batches.on_device`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.config.settings import TrainConfig
from common.data.crops import normalize
from common.data.crops.ids import BACKGROUND
from common.data.crops.normalize import Scaling
from common.data.crops.opened import Crop
from common.data.samples import augment, defects, derive
from common.data.samples.augment import OwnAugmentation
from common.data.samples.blocks import Block, Blocks, Channels, Piece
from common.data.samples.distort import Distortion, PatchDistortion
from common.data.samples.loaders import Data, used_for
from common.data.samples.sampling import Patch, Sample
from common.data.samples.targets import MixedTarget, PaletteTarget, exclusive_labels
from common.data.samples.workers import Reading, WorkerLost, that_fit
from common.data.volumes.level import Grid


@dataclass(frozen=True)
class Batch:
    """The input of one forward pass and its loss, on the training device."""

    raw: Tensor
    """(B, in_channels, z, y, x) float32: raw, in [0, 1] unless raw_normalization says otherwise,
    then the further input channels, in [0, 1]."""
    target: PaletteTarget | MixedTarget
    """Labels of all channels; `target.dense()` is (B, channels, z, y, x)."""
    crops: Sequence[str]
    """dataset/crop of each patch."""
    scalings: Sequence[Scaling | None] = ()
    """How the raw of each patch was normalised; empty if it was not."""
    samples: Sequence[Sample] = ()
    """Where each patch is from, and how it was changed."""

    @property
    def where(self) -> list[str]:
        """Crop name and sample number of each patch, for messages."""
        pairs = zip(self.crops, self.samples, strict=True)
        return [f"{crop} (sample {sample.k})" for crop, sample in pairs]

    def raw_in_unit_range(self) -> Tensor:
        """Return raw (B, 1, z, y, x) in [0, 1], to be looked at."""
        return normalize.in_unit_range(self.raw[:, :1], self.scalings)


def training_batches(config: TrainConfig, data: Data, device: torch.device) -> Batches:
    """Return the batches of training samples, augmented.

    They are the same in every run with the same settings and seed.
    """
    return _batches(config, data, "train", device)


def validation_batches(config: TrainConfig, data: Data, device: torch.device) -> Batches | None:
    """Return the batches of the fixed validation blocks, not augmented.

    None if the datasplit has no validation crop.
    """
    return _batches(config, data, "validate", device) if data.blocks else None


def _batches(config: TrainConfig, data: Data, usage: str, device: torch.device) -> Batches:
    """Return the batches of a usage, "train" or "validate", as the settings ask for them."""
    sampler = data.sampler
    is_training = usage == "train"
    blocks = Blocks(
        data.train if is_training else data.validation,
        sampler if is_training else data.blocks,
        sampler.input,
        sampler.target,
        channels=Channels.of(config),
    )
    return Batches(
        blocks,
        config.batch_size,
        config.num_workers,
        device,
        raw_range=config.raw_range,
        scalings=_scalings_of_crops(config, data, usage),
        own_augmentation=config.augment if is_training else None,
        worker_time_limit=config.worker_time_limit,
        pseudo_weight=config.pseudo_weight if is_training else 1.0,
    )


def _scalings_of_crops(config: TrainConfig, data: Data, usage: str) -> list[Scaling]:
    """Return the scaling of each crop of a usage; [] where raw is not normalised."""
    if not data.scalings:
        return []
    rows = used_for(usage, data.rows)
    return [data.scalings[normalize.name_of(row.raw, config)] for row in rows]


@dataclass(frozen=True)
class PartOfEach(Sequence[int]):
    """The numbers of the samples of one process, where several processes share each batch."""

    samples: range
    """The numbers of the samples of a whole number of batches."""
    batch_size: int
    """Samples of a batch, of all processes together."""
    part: int
    """Number of the process, from 0."""
    parts: int
    """Number of processes; each reads an equal part of every batch."""

    @property
    def size(self) -> int:
        """Number of samples in a part of a batch."""
        return self.batch_size // self.parts

    def __len__(self) -> int:
        return len(self.samples) // self.parts

    def __getitem__(self, index: Any) -> Any:
        """Return the number of the sample at a position, or a list of numbers for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        batch, within = divmod(index, self.size)
        return self.samples[batch * self.batch_size + self.part * self.size + within]


def _row_by_row(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Join tables of palette rows (rows, channels), with each row contiguous in memory.

    A lookup copies rows. Tables of chosen columns lie column by column in memory, which NumPy keeps
    when it joins them: looking up 17 classes took a hundred times as long.
    """
    return np.ascontiguousarray(np.concatenate(tables))


def _weights_of(crop: Crop, pseudo_weight: float) -> np.ndarray:
    """Return (rows, classes) float32: `pseudo_weight` where a network labelled, 1 elsewhere."""
    if crop.pseudo is None:
        return np.ones(crop.palette.shape, np.float32)
    return np.where(crop.pseudo, pseudo_weight, 1).astype(np.float32)


def _one_palette(crops: Sequence[Crop], channels: Channels) -> Tensor:
    """Join the palettes of all crops to one (rows, channels), in which a batch is looked up."""
    palette = torch.from_numpy(_row_by_row([crop.palette for crop in crops]))
    if channels.exclusive and not channels.derived:
        among = list(channels.exclusive)
        palette[:, among] = exclusive_labels(palette[:, among])
    return palette


@dataclass(eq=False)
class Batches:
    """Batches of consecutive samples: workers cut the blocks, the device resamples them."""

    blocks: Blocks
    """The samples."""
    batch_size: int
    num_workers: int
    """Worker processes; 0 cuts blocks in this process. The batches do not depend on it."""
    device: torch.device
    """Of the batches."""
    _: KW_ONLY
    raw_range: Sequence[float] = ()
    """Values of uint8 raw that become 0 and 1, (0, 255) if empty."""
    scalings: Sequence[Scaling | None] = ()
    """How the raw of each crop of `blocks` is normalised; empty if it is not."""
    own_augmentation: OwnAugmentation | None = None
    """The setting `augment`, applied after the built-in changes."""
    worker_time_limit: float = 0.0
    """Seconds to wait for workers, see Reading."""
    pseudo_weight: float = 1.0
    """Of the labels of networks, see `PaletteTarget.weights`."""

    @property
    def channels(self) -> Channels:
        """What is learnt beside classes."""
        return self.blocks.channels

    @functools.cached_property
    def palette(self) -> Tensor:
        """(rows, channels) int8, of all crops, in which a batch is looked up."""
        return _one_palette(self.blocks.crops, self.channels).to(self.device)

    @functools.cached_property
    def weights(self) -> Tensor | None:
        """(rows, channels) float32, see `PaletteTarget.weights`; None where all are 1."""
        crops = self.blocks.crops
        if self.pseudo_weight == 1 or all(crop.pseudo is None for crop in crops):
            return None
        weights = _row_by_row([_weights_of(crop, self.pseudo_weight) for crop in crops])
        return torch.from_numpy(weights).to(self.device)

    @functools.cached_property
    def first_row(self) -> list[int]:
        """Of each crop: the row of `palette` that its own palette begins at."""
        lengths = [len(crop.palette) for crop in self.blocks.crops]
        return np.cumsum([0, *lengths]).tolist()

    def between(self, start: int, stop: int) -> Iterator[Batch]:
        """Iterate over the batches of samples start..stop-1, in order; the last may be smaller.

        Raises WorkerLost if samples cannot be read.
        """
        return self._read(range(start, stop), self.batch_size)

    def part_of_each(self, start: int, stop: int, part: int, parts: int) -> Iterator[Batch]:
        """Iterate over one of `parts` equal parts of each of the same batches."""
        samples = PartOfEach(range(start, stop), self.batch_size, part, parts)
        return self._read(samples, samples.size)

    def every(self, step: int, first: int, stop: int) -> Iterator[Batch]:
        """Iterate over the batches number first, first + step, ... of samples 0..stop-1."""
        size = self.batch_size
        firsts = range(first * size, stop, step * size)
        samples: list[int] = []
        for start in firsts:
            samples += range(start, min(start + size, stop))
        return self._read(samples, size)

    def _read(self, samples: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """Iterate over batches of these samples, in order."""
        reading = Reading(
            dataset=self.blocks,
            batch_size=batch_size,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            where=self._crop_of,
            time_limit=self.worker_time_limit,
        )
        if self.num_workers and len(samples):
            with self._unreadable_is_lost():
                piece = self.blocks[samples[0]]
            batches = -(-len(samples) // batch_size)
            item_bytes = sum(block.voxels.nbytes for block in piece.blocks)
            tensors = 2 + len(piece.channels) + len(piece.ids)
            workers = that_fit(reading, item_bytes, item_tensors=tensors, batches=batches)
            reading = dataclasses.replace(reading, num_workers=workers)
        return self._on_device(reading.of(samples))

    def _on_device(self, batches: Iterator[list[Piece]]) -> Iterator[Batch]:
        while True:
            with self._unreadable_is_lost():
                pieces = next(batches, None)
            if pieces is None:
                return
            yield self.on_device(pieces)

    def _crop_of(self, k: int) -> str:
        """Return dataset/crop of sample k."""
        return self.blocks.crops[self.blocks.sample(k).crop].name

    @contextlib.contextmanager
    def _unreadable_is_lost(self) -> Iterator[None]:
        """Raise WorkerLost where the block raises what the system says of a disk, also a worker's.

        The block reads samples, in this process or from a live worker.
        """
        try:
            yield
        except WorkerLost:
            raise
        except OSError as error:
            # torch puts a worker's whole traceback into the message
            reason = str(error).strip().splitlines()[-1]
            raise WorkerLost(
                f"{self.blocks.crops[0].folder.parent}: decoded crops cannot be read ({reason}); "
                "see that the disk of cache_path is there, and run the same command again"
            ) from error

    def on_device(self, pieces: Sequence[Piece]) -> Batch:
        """Turn pieces on the CPU into a batch on the device.

        Raw is oriented, resampled by linear interpolation, spoilt, and changed in its intensities.
        Labels are oriented and resampled by nearest neighbour. An offset is added to the palette
        rows of each crop, so that one palette serves all crops.
        """
        samples = [piece.sample for piece in pieces]
        scalings = [self.scalings[sample.crop] if self.scalings else None for sample in samples]
        inputs = torch.stack(list(map(self._input, pieces, scalings)))
        rows = torch.stack([self._rows(piece) for piece in pieces])
        crops = [self.blocks.crops[sample.crop].name for sample in samples]
        return Batch(inputs, self._target(rows, pieces), crops, scalings, samples)

    def _input(self, piece: Piece, scaling: Scaling | None) -> Tensor:
        """Return what the network gets of a sample, (in_channels, z, y, x), as `Batch.raw`."""
        sample = piece.sample
        raw = self._raw(piece, scaling)
        augment.change_intensity(raw, sample.intensity)
        if sample.defects is not None:
            defects.cut_out(raw, sample.defects, self.blocks.input.scale)
        if self.own_augmentation is not None:
            augment.apply_own(self.own_augmentation, raw, sample.intensity)
        normalize.standardize(raw, scaling)
        return torch.cat([raw, *self._beside(piece)])

    def _target(self, rows: Tensor, pieces: Sequence[Piece]) -> PaletteTarget | MixedTarget:
        classes = PaletteTarget(rows, self.palette, self.weights)
        if not self.channels.derived:
            return classes
        derived = torch.stack([self._derived(piece) for piece in pieces])
        return MixedTarget(classes, derived, self.channels.exclusive)

    def _derived(self, piece: Piece) -> Tensor:
        """Return the derived channels of a sample, (channels, z, y, x) float32, NaN for unknown."""
        target = self.blocks.target
        margin = derive.margin_of(self.channels.derived, target.scale)
        patches: dict[str, derive.IdPatch] = {}
        for name, block in zip(self.channels.with_ids, piece.ids, strict=True):
            if block is not None:
                patches[name] = derive.IdPatch(self._ids(piece.sample, block), margin, target.scale)
        parts = []
        for channel in self.channels.derived:
            if channel.of in patches:
                parts.append(derive.derive(channel, patches[channel.of]))
            else:
                parts.append(derive.unknown(channel, target.shape, self.device))
        return torch.cat(parts)

    def _ids(self, sample: Sample, block: Block) -> Tensor:
        """Resample a block of ids to a patch (z, y, x) int32: 0 is background, -1 unknown."""
        patch = self.channels.objects
        assert patch is not None
        return self._nearest(sample, block, patch.shape) - BACKGROUND

    def _rows(self, piece: Piece) -> Tensor:
        """Return the labels of a sample, (z, y, x) int32: rows of `palette`."""
        of_crop = self._nearest(piece.sample, piece.labels, self.blocks.target.shape)
        return of_crop + self.first_row[piece.sample.crop]

    def _raw(self, piece: Piece, scaling: Scaling | None) -> Tensor:
        """Return the raw of a sample, (1, z, y, x) float32 in [0, 1], with its defects."""
        sample = piece.sample
        block = piece.raw.to(self.device)
        if sample.defects is not None:
            unit = self._unit(block.voxels, scaling)
            spoilt = defects.spoil_sections(block.voxels, sample.defects, unit)
            block = block._replace(voxels=spoilt)
        grid = self.blocks.crops[sample.crop].raw_grid
        patch = self._linear(sample, block, grid, self.raw_range)
        normalize.to_unit_range(patch, scaling)
        if sample.defects is not None:
            patch = defects.spoil_optics(patch, sample.defects, self.blocks.input.scale)
        return patch

    def _beside(self, piece: Piece) -> Iterator[Tensor]:
        """Iterate over the further input channels of a sample, (1, z, y, x) float32 in [0, 1].

        They are where raw is: only intensities differ.
        """
        channels = self.blocks.crops[piece.sample.crop].channels
        for channel, block in zip(channels, piece.channels, strict=True):
            on_device = block.to(self.device)
            yield self._linear(piece.sample, on_device, channel.grid, channel.value_range)

    def _linear(
        self, sample: Sample, block: Block, grid: Grid, value_range: Sequence[float]
    ) -> Tensor:
        """Resample a block of raw, or of another input channel, to (1, z, y, x) in [0, 1].

        Args:
            sample: where it lies.
            block: on the device.
            grid: that of the volume that the block is cut from.
            value_range: values of uint8 blocks that become 0 and 1, (0, 255) if empty.
        """
        patch = self.blocks.input
        return augment.raw_patches(
            [block.voxels],
            [block.affine],
            patch.shape,
            value_range,
            distortions=[_on_voxels(sample.distortion, patch, grid)],
        )[0]

    def _nearest(self, sample: Sample, block: Block, shape: Sequence[int]) -> Tensor:
        """Resample a block of labels or ids to `shape` (z, y, x), int32."""
        of_labels = sample.distortion and sample.distortion.of_labels
        grid = self.blocks.crops[sample.crop].label_grid
        distortion = _on_voxels(of_labels, self.blocks.target, grid)
        voxels, affine = block.to(self.device)
        return augment.resample_nearest([voxels], [affine], shape, [distortion])[0]

    def _unit(self, block: Tensor, scaling: normalize.Scaling | None) -> float:
        """Return the difference between the values of a block that are 0 and 1 in the patch."""
        low, high = self.raw_range or (0.0, 255.0)
        unit = high - low if block.dtype == torch.uint8 else 1.0
        return unit if scaling is None else unit * (scaling.high - scaling.low)


def _on_voxels(distortion: Distortion | None, patch: Patch, volume: Grid) -> PatchDistortion | None:
    """Return the distortion of a sample on the voxels of its patch and of the volume it reads."""
    if distortion is None:
        return None
    return PatchDistortion(distortion, patch.scale, volume.scale)

"""Training and validation batches, and how often each class occurs."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from common.config.settings import TrainConfig
from common.data import augment, sampling, split
from common.data.crops import Crop, open_crops
from common.data.sampling import Patch, Sample, Sampler
from common.data.targets import PaletteTarget
from common.errors import UserError


@dataclass(frozen=True)
class Batch:
    """What a forward pass and its loss take, on the training device."""

    raw: torch.Tensor
    """(B, 1, z, y, x) float32 in [0, 1]."""
    target: PaletteTarget
    """Palette image of (B, z, y, x) voxels; `target.dense()` is (B, classes, z, y, x)."""
    where: list[str]
    """Crop and sample number of each patch, for messages."""


@dataclass(frozen=True)
class Data:
    """The crops of a run and the patches drawn from them."""

    train: list[Crop]
    validation: list[Crop]
    sampler: Sampler
    blocks: list[Sample]
    """Validation samples, always in this order."""
    foreground: np.ndarray
    """(classes,) training voxels known to be positive; `background` likewise negative; in target voxels."""
    background: np.ndarray
    split_hash: str


def open_data(config: TrainConfig) -> Data:
    """Read the datasplit, decode what is not decoded yet, and check that there is something to learn.

    Raises FileNotFoundError or ValueError with all problems in one message.
    """
    path, root = config.path("datasplit_path"), config.path("data_path")
    rows = split.read_datasplit(path, root)
    rows = [row for row in rows if set(row.annotated) & set(config.classes)]
    if not any(row.usage == "train" for row in rows):
        raise UserError(
            f"{path}: no training crop annotates any of {', '.join(config.classes)}; change classes or the split"
        )
    split.check_files(rows)
    raw, target = Patch(**config.input_array_info), Patch(**config.target_array_info)
    opened = {}
    for usage, margin in sampling.margins_nm(raw, target, config.spatial_transforms).items():
        opened[usage] = open_crops(
            [row for row in rows if row.usage == usage],
            config.classes,
            raw.scale,
            target.scale,
            margin,
            raw.extent,
            config.path("cache_path"),
            config.cache_gb,
            config.raw_range,
            config.use_mutual_exclusion,
            config.infer_groups,
            beside=opened.get("train", ()),
        )
    train, validation = opened["train"], opened["validate"]
    sampler = Sampler(
        train,
        raw,
        target,
        config.random_seed,
        config.weighted_sampler,
        config.positive_centre_fraction,
        config.spatial_transforms,
        config.intensity_probability,
        config.gamma_range,
        config.contrast_range,
        config.noise_std,
    )
    blocks = (
        sampling.validation_samples(validation, raw, target, config.random_seed)
        if validation
        else []
    )
    foreground, background = (count_voxels(train, value, target.scale) for value in (1, 0))
    if not foreground.any():
        raise UserError(
            f"{path}: no training crop has a positive voxel of {', '.join(config.classes)}; add crops that do"
        )
    return Data(train, validation, sampler, blocks, foreground, background, split.split_hash(rows))


def count_voxels(crops: Sequence[Crop], value: int, scale: Sequence[float]) -> np.ndarray:
    """(classes,) float64: how many voxels of size `scale` (nm) the crops know to be `value` (1 or 0)."""
    return sum(
        crop.counts @ (crop.palette == value) * (crop.label_grid.scale.prod() / np.prod(scale))
        for crop in crops
    )  # type: ignore[return-value]


def notices(data: Data, classes: Sequence[str]) -> list[str]:
    """What a user should know of the data before training, a sentence each, each said once."""
    found = []
    if absent := [c for c, n in zip(classes, data.foreground, strict=True) if n == 0]:
        found.append(f"no positive voxel in the training crops, so not learnt: {', '.join(absent)}")
    at_odds = [crop for crop in (*data.train, *data.validation) if crop.contradictions]
    if at_odds:
        worst = max(at_odds, key=lambda crop: crop.contradictions / crop.counts.sum())
        found.append(
            f"the annotation contradicts the class table in {sum(crop.contradictions for crop in at_odds):,} voxels of {len(at_odds)} crops, "
            f"most in {worst.name} ({worst.contradictions / worst.counts.sum():.1%}); annotated labels are used as they are"
        )
    if not data.validation:
        found.append(
            "the datasplit has no validation crop: no metric, and the best checkpoint is the last"
        )
    return found


class Blocks(Dataset):
    """What sample k needs, cut out of the decoded crops: all that a worker does."""

    def __init__(
        self,
        crops: Sequence[Crop],
        samples: Sampler | Sequence[Sample],
        input: Patch,
        target: Patch,
    ):
        self.crops, self.samples, self.input, self.target = crops, samples, input, target

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, k: int) -> Piece:
        sample = self.samples.draw(k) if isinstance(self.samples, Sampler) else self.samples[k]
        crop = self.crops[sample.crop]
        raw, raw_affine = sampling.cut(crop.raw(), crop.raw_grid, sample, self.input)
        index, index_affine = sampling.cut(crop.labels(), crop.label_grid, sample, self.target)
        index = (
            index.astype(np.int32, copy=False) if index.dtype == np.uint16 else index
        )  # torch computes little in uint16
        return Piece(
            sample, torch.from_numpy(raw), raw_affine, torch.from_numpy(index), index_affine
        )


class Piece(NamedTuple):
    """One sample before its geometry: blocks (z, y, x) and the affines (3, 4) from patch voxels to block voxels."""

    sample: Sample
    raw: torch.Tensor
    raw_affine: np.ndarray
    index: torch.Tensor
    index_affine: np.ndarray


class Batches:
    """Batches of consecutive samples, blocks read by workers, geometry and palettes on the device."""

    def __init__(
        self,
        blocks: Blocks,
        batch_size: int,
        num_workers: int,
        device: torch.device,
        raw_range: Sequence[float] = (),
    ):
        self.blocks, self.batch_size, self.num_workers, self.device = (
            blocks,
            batch_size,
            num_workers,
            device,
        )
        self.raw_range = raw_range
        self.palette = torch.from_numpy(np.concatenate([crop.palette for crop in blocks.crops])).to(
            device
        )
        self.first_row = np.cumsum([0, *(len(crop.palette) for crop in blocks.crops)]).tolist()

    def between(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of samples start..stop-1, in order; the last one may be smaller."""
        loader = DataLoader(
            self.blocks,
            self.batch_size,
            sampler=range(start, stop),
            num_workers=self.num_workers,
            collate_fn=list,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_trainer,
        )
        return (self.on_device(pieces) for pieces in loader)

    def on_device(self, pieces: list[Piece]) -> Batch:
        """Orient and resample: from blocks on the CPU to what network and loss consume."""
        samples = [piece.sample for piece in pieces]
        raw = [piece.raw.to(self.device, non_blocking=True) for piece in pieces]
        index = [piece.index.to(self.device, non_blocking=True) for piece in pieces]
        patches = augment.raw_patches(
            raw, [piece.raw_affine for piece in pieces], self.blocks.input.shape, self.raw_range
        )
        patches = augment.change_intensity(
            patches,
            [s.gamma for s in samples],
            [s.contrast for s in samples],
            [s.noise_std for s in samples],
            [s.noise_seed for s in samples],
        )
        rows = augment.resample_nearest(
            index, [piece.index_affine for piece in pieces], self.blocks.target.shape
        )
        for of_sample, sample in zip(rows, samples, strict=True):
            of_sample += self.first_row[sample.crop]
        where = [f"{self.blocks.crops[sample.crop].name} (sample {sample.k})" for sample in samples]
        return Batch(patches, PaletteTarget(rows, self.palette), where)


def _leave_signals_to_the_trainer(_: int) -> None:
    """Workers inherit the trainer's handlers: Ctrl-C reaches them too, and they are ended by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

"""From a datasplit to training and validation batches, and how often each class occurs."""

from __future__ import annotations

import fnmatch
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.config.settings import TrainConfig
from common.data import augment, sampling, split
from common.data.augment import OwnAugmentation
from common.data.crop_cache import CropCache
from common.data.crops import Crop, CropRequest, open_crops
from common.data.sampling import Augmentation, Patch, Sample, Sampler
from common.data.split import Row
from common.data.targets import PaletteTarget
from common.errors import UserError

# The data of a run


@dataclass(frozen=True)
class Data:
    """The crops of a run and the patches drawn from them."""

    train: list[Crop]
    validation: list[Crop]
    sampler: Sampler
    blocks: list[Sample]
    """Validation samples, always in this order."""
    foreground: np.ndarray
    """(classes,) training voxels known to be positive, in target voxels."""
    background: np.ndarray
    """(classes,) training voxels known to be negative, likewise."""
    split_hash: str


def open_data(config: TrainConfig) -> Data:
    """Read the datasplit, decode what is not decoded yet, check that there is something to learn.

    Raises FileNotFoundError or UserError with all problems in one message.
    """
    rows = rows_of_run(config)
    request = crop_request(config)
    cache = crop_cache(config)
    train = open_crops(_used_for("train", rows), request, cache)
    validation = open_crops(_used_for("validate", rows), request, cache, beside=train)

    sampler = _sampler(config, train)
    blocks: list[Sample] = []
    if validation:
        blocks = sampling.validation_samples(
            validation, sampler.input, sampler.target, config.random_seed
        )
    foreground = count_voxels(train, 1, sampler.target.scale)
    background = count_voxels(train, 0, sampler.target.scale)
    if not foreground.any():
        raise UserError(
            f"{config.path('datasplit_path')}: no training crop has a positive voxel of "
            f"{', '.join(config.classes)}; add crops that do"
        )
    return Data(
        train=train,
        validation=validation,
        sampler=sampler,
        blocks=blocks,
        foreground=foreground,
        background=background,
        split_hash=split.split_hash(rows),
    )


def rows_of_run(config: TrainConfig) -> list[Row]:
    """The rows of the datasplit that annotate a class of the run; their files are there.

    Raises FileNotFoundError or UserError with all problems in one message.
    """
    path = config.path("datasplit_path")
    rows = split.read_datasplit(path, config.path("data_path"))
    rows = [row for row in rows if set(row.annotated) & set(config.classes)]
    if not _used_for("train", rows):
        raise UserError(
            f"{path}: no training crop annotates any of {', '.join(config.classes)}; "
            "change classes or the split"
        )
    split.check_files(rows)
    return rows


def _used_for(usage: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.usage == usage]


def crop_request(config: TrainConfig) -> CropRequest:
    """What a run wants of its crops."""
    raw = Patch(**config.input_array_info)
    target = Patch(**config.target_array_info)
    return CropRequest(
        classes=config.classes,
        input_scale=raw.scale,
        target_scale=target.scale,
        patch_nm=raw.extent,
        margins_nm=sampling.margins_nm(raw, target, config.spatial_transforms),
        raw_range=config.raw_range,
        use_mutual_exclusion=config.use_mutual_exclusion,
        infer_groups=config.infer_groups,
    )


def crop_cache(config: TrainConfig) -> CropCache:
    """Where the decoded crops of a run are; runs with one cache_path share them."""
    return CropCache(config.path("cache_path") / "crops", config.cache_gb)


def _sampler(config: TrainConfig, crops: Sequence[Crop]) -> Sampler:
    return Sampler(
        crops=crops,
        input=Patch(**config.input_array_info),
        target=Patch(**config.target_array_info),
        seed=config.random_seed,
        weighted=config.weighted_sampler,
        positive_centre_fraction=config.positive_centre_fraction,
        augmentation=Augmentation(
            spatial_transforms=config.spatial_transforms,
            intensity_probability=config.intensity_probability,
            gamma_range=config.gamma_range,
            contrast_range=config.contrast_range,
            noise_std=config.noise_std,
        ),
        class_weights=_class_weights(config, crops),
        crop_weights=_crop_weights(config, crops),
    )


def _class_weights(config: TrainConfig, crops: Sequence[Crop]) -> np.ndarray | None:
    """(classes,) of class_sampling_weights; None if it is empty.

    Raises UserError if no class that occurs is left.
    """
    given = config.class_sampling_weights
    if not given:
        return None
    weights = np.array([given.get(name, 1.0) for name in config.classes], float)
    occurs = count_voxels(crops, 1, config.target_array_info["scale"]) > 0
    if occurs.any() and not weights[occurs].any():
        raise UserError(
            f"class_sampling_weights = {given}: 0 for every class that has a positive voxel in the "
            "training crops; write a number above 0 for one of them"
        )
    return weights


def _crop_weights(config: TrainConfig, crops: Sequence[Crop]) -> np.ndarray | None:
    """(crops,) of crop_sampling_weights; None if it is empty.

    Raises UserError with the patterns that fit no training crop.
    """
    given = config.crop_sampling_weights
    if not given:
        return None
    weights = np.ones(len(crops))
    problems = []
    for pattern, weight in given.items():
        fits = [fnmatch.fnmatchcase(crop.name, pattern) for crop in crops]
        weights[fits] = weight
        if not any(fits):
            problems.append(
                f"crop_sampling_weights['{pattern}']: no training crop has such a name; "
                f"write a pattern that fits names like '{crops[0].name}'"
            )
    if problems:
        raise UserError("\n".join(problems))
    return weights


def count_voxels(crops: Sequence[Crop], value: int, scale: Sequence[float]) -> np.ndarray:
    """(classes,) float64: voxels of `scale` (nm) that the crops know to be `value` (1 or 0)."""
    total = np.zeros(crops[0].palette.shape[1])
    for crop in crops:
        per_target_voxel = crop.label_grid.scale.prod() / np.prod(scale)
        total += crop.counts @ (crop.palette == value) * per_target_voxel
    return total


def notices(data: Data, classes: Sequence[str]) -> list[str]:
    """What a user should know of the data before training, a sentence each, each said once."""
    sentences = []
    absent = [name for name, voxels in zip(classes, data.foreground, strict=True) if voxels == 0]
    if absent:
        sentences.append(
            f"no positive voxel in the training crops, so not learnt: {', '.join(absent)}"
        )
    at_odds = [crop for crop in (*data.train, *data.validation) if crop.contradictions]
    if at_odds:
        worst = max(at_odds, key=_contradicted)
        voxels = sum(crop.contradictions for crop in at_odds)
        sentences.append(
            f"the annotation contradicts the class table in {voxels:,} voxels of {len(at_odds)} "
            f"crops, most in {worst.name} ({_contradicted(worst):.1%}); "
            "annotated labels are used as they are"
        )
    if not data.validation:
        sentences.append(
            "the datasplit has no validation crop: no metric, and the best checkpoint is the last"
        )
    return sentences


def _contradicted(crop: Crop) -> float:
    """Fraction of a crop's voxels whose annotated classes cannot all hold."""
    return crop.contradictions / crop.counts.sum()


# Batches


@dataclass(frozen=True)
class Batch:
    """What a forward pass and its loss take, on the training device."""

    raw: Tensor
    """(B, 1, z, y, x) float32 in [0, 1]."""
    target: PaletteTarget
    """Labels of (B, z, y, x) voxels; `target.dense()` is (B, classes, z, y, x)."""
    where: list[str]
    """Crop and sample number of each patch, for messages."""


def training_batches(config: TrainConfig, data: Data, device: torch.device) -> Batches:
    """The stream of training samples: the same in every run with these settings and this seed."""
    blocks = Blocks(data.train, data.sampler, data.sampler.input, data.sampler.target)
    return Batches(
        blocks,
        config.batch_size,
        config.num_workers,
        device,
        raw_range=config.raw_range,
        own_augmentation=config.augment,
    )


def validation_batches(config: TrainConfig, data: Data, device: torch.device) -> Batches | None:
    """The fixed validation blocks, never augmented; None if no crop validates."""
    if not data.blocks:
        return None
    blocks = Blocks(data.validation, data.blocks, data.sampler.input, data.sampler.target)
    return Batches(
        blocks, config.batch_size, config.num_workers, device, raw_range=config.raw_range
    )


class Piece(NamedTuple):
    """One sample before its geometry: blocks (z, y, x), affines (3, 4) from patch to block."""

    sample: Sample
    raw: Tensor
    raw_affine: np.ndarray
    labels: Tensor
    """Palette rows."""
    labels_affine: np.ndarray


class Blocks(Dataset):
    """What sample k needs, cut out of the decoded crops: all that a worker does."""

    def __init__(
        self,
        crops: Sequence[Crop],
        samples: Sampler | Sequence[Sample],
        input: Patch,
        target: Patch,
    ):
        self.crops = crops
        self.samples = samples
        self.input = input
        self.target = target

    def __len__(self) -> int:
        if isinstance(self.samples, Sampler):
            raise TypeError("a sampler has no end; ask for samples start..stop-1")
        return len(self.samples)

    def __getitem__(self, k: int) -> Piece:
        sample = self.samples.draw(k) if isinstance(self.samples, Sampler) else self.samples[k]
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
        )


class Batches:
    """Batches of consecutive samples: blocks read by workers, geometry done on the device."""

    def __init__(
        self,
        blocks: Blocks,
        batch_size: int,
        num_workers: int,
        device: torch.device,
        *,
        raw_range: Sequence[float] = (),
        own_augmentation: OwnAugmentation | None = None,
    ):
        """Batches of `batch_size` samples of `blocks`.

        Args:
            blocks: the samples.
            batch_size: patches of a batch.
            num_workers: processes that read; 0 reads in this one. The batches do not depend on it.
            device: where they are used.
            raw_range: values of uint8 raw that become 0 and 1.
            own_augmentation: a user's change of each patch, after the built-in ones.
        """
        self.blocks = blocks
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.device = device
        self.raw_range = raw_range
        self.own_augmentation = own_augmentation
        # one palette for all crops: a batch is looked up at once
        palettes = [crop.palette for crop in blocks.crops]
        self.palette = torch.from_numpy(np.concatenate(palettes)).to(device)
        self.first_row = np.cumsum([0, *map(len, palettes)]).tolist()

    def between(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of samples start..stop-1, in order; the last one may be smaller."""
        loader = DataLoader(
            self.blocks,
            self.batch_size,
            sampler=range(start, stop),
            num_workers=self.num_workers,
            collate_fn=list,  # blocks differ in size: they become one tensor on the device
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_trainer,
        )
        return (self.on_device(pieces) for pieces in loader)

    def on_device(self, pieces: Sequence[Piece]) -> Batch:
        """Orient and resample: from blocks on the CPU to what network and loss take."""
        samples = [piece.sample for piece in pieces]
        raw = [piece.raw.to(self.device, non_blocking=True) for piece in pieces]
        labels = [piece.labels.to(self.device, non_blocking=True) for piece in pieces]

        affines = [piece.raw_affine for piece in pieces]
        patches = augment.raw_patches(raw, affines, self.blocks.input.shape, self.raw_range)
        changes = [sample.intensity for sample in samples]
        patches = augment.change_intensity(patches, changes)
        if self.own_augmentation is not None:
            patches = augment.apply_own(self.own_augmentation, patches, changes)

        affines = [piece.labels_affine for piece in pieces]
        rows = augment.resample_nearest(labels, affines, self.blocks.target.shape)
        for i, sample in enumerate(samples):
            rows[i] += self.first_row[sample.crop]
        where = [f"{self.blocks.crops[sample.crop].name} (sample {sample.k})" for sample in samples]
        return Batch(patches, PaletteTarget(rows, self.palette), where)


def _leave_signals_to_the_trainer(_: int) -> None:
    # workers inherit the trainer's handlers; Ctrl-C reaches them too, torch ends them by SIGTERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

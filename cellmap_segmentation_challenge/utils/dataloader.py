"""Batches as dicts, for training loops of one's own."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellmap_segmentation_challenge._public import names_of
from cellmap_segmentation_challenge.utils.security import Config
from common import runtime
from common.config.check import check_settings
from common.config.load import environment
from common.config.public.configs import DATA_RULES, OF_A_LOADER, translate_data
from common.config.settings import TrainConfig, describe
from common.data.samples import augment
from common.data.samples.batches import Batch, Batches, training_batches, validation_batches
from common.data.samples.loaders import open_data
from common.data.samples.targets import known
from common.talk import note

__getattr__ = names_of(__name__, {})

DEFAULT_INFO = {"shape": (1, 128, 128), "scale": (8, 8, 8)}
"""The public toolbox's: one slice."""

DEFAULT_CLASSES = ("nuc", "er")

PARAMETERS = ("datasplit_path", "classes", "batch_size", "input_array_info", "target_array_info")
"""Settings that are arguments of their own."""

DATA_SETTINGS = frozenset(
    [
        "augment",
        "augmentations",
        "cache_gb",
        "cache_path",
        "class_relations",
        "class_sampling_weights",
        "contrast_range",
        "counter_classes",
        "crop_sampling_weights",
        "data_path",
        "derived",
        "device",
        "exclusive_classes",
        "extra_classes",
        "gamma_range",
        "infer_groups",
        "input_channels",
        "intensity_probability",
        "iterations_per_epoch",
        "noise_std",
        "num_workers",
        "positive_centre_fraction",
        "random_seed",
        "raw_normalization",
        "raw_range",
        "raw_sections",
        "selective",
        "softmax",
        "spatial_transforms",
        "use_mutual_exclusion",
        "weighted_sampler",
        "worker_time_limit",
    ]
)
"""Further settings of a TrainConfig that have an effect on data."""


@dataclass(frozen=True)
class Dataset:
    """Describes the data of a loader."""

    classes: tuple[str, ...]
    class_weights: dict[str, float]
    """For each class the number of known negative voxels per positive voxel in training crops."""


class Loader:
    """Iterates over batches as dicts of float32 on the device.

    "input" (B, 1, z, y, x), in [0, 1] unless raw_normalization = "zscore", with input_channels
    behind raw; "output" (B, channels, z, y, x) of 1, 0 and NaN = unknown, distances from -1 to 1.
    Each iteration over a training loader gives the next `iterations_per_epoch` batches; a
    validation loader gives the same ones every time. `len()` is the number of batches.

    batches: the batches, by the numbers of their samples.
    dataset: describes the data.
    samples: number of samples in an iteration.
    is_train: whether the next iteration goes on with further samples.
    """

    def __init__(self, batches: Batches, dataset: Dataset, samples: int, is_train: bool) -> None:
        self.batches = batches
        self.dataset = dataset
        self.samples = samples
        self.epochs = itertools.count() if is_train else itertools.repeat(0)

    @property
    def loader(self) -> Loader:
        """The loader itself: scripts for the public toolbox iterate over `train_loader.loader`."""
        return self

    def refresh(self) -> None:
        """Do nothing: each iteration over a training loader has other samples."""

    def __len__(self) -> int:
        return math.ceil(self.samples / self.batches.batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        start = next(self.epochs) * self.samples
        return map(_as_dict, self.batches.between(start, start + self.samples))


# the order of the public toolbox: scripts give the first five by position
def get_dataloader(  # noqa: PLR0917
    datasplit_path: str | os.PathLike[str] | Config | None = None,
    classes: Sequence[str] | None = None,
    batch_size: int | None = None,
    input_array_info: dict | None = None,
    target_array_info: dict | None = None,
    **settings: Any,
) -> tuple[Loader, Loader | None]:
    """Return training and validation loader of a datasplit; the latter is None without crops.

    An argument that is None counts as left out. Differences to the public toolbox are noted.
    Raises FileNotFoundError, or UserError with everything that is wrong.

    Args:
        datasplit_path: which crops train and which validate, datasplit.csv unless given. Its paths
            start from data_path, or CELLMAP_DATA, or data/ of the repository. Or `config`.
        classes: in the order of the channels; nuc and er unless given.
        batch_size: patches in a batch; 1 unless given.
        input_array_info: {"shape": (z, y, x) in voxels, "scale": (z, y, x) in nm}; (1, 128, 128)
            at 8 nm unless given.
        target_array_info: likewise; that of the input unless given.
        settings: those in DATA_SETTINGS, as in a train_config.py; the public toolbox's
            train_raw_value_transforms, val_raw_value_transforms, target_value_transforms and
            options of a loader; and `config`, what `load_safe_config` gives, whose values go
            before.
    """
    given = dict(settings)
    config = given.pop("config", None)
    if isinstance(datasplit_path, Config):
        config = datasplit_path
        datasplit_path = None
    given |= {
        "datasplit_path": datasplit_path,
        "classes": classes,
        "batch_size": batch_size,
        "input_array_info": input_array_info,
        "target_array_info": target_array_info,
    }
    if config is not None:
        given |= _of_config(config)
    checked = _settings({name: value for name, value in given.items() if value is not None})
    device = runtime.pick_device(checked.device)
    if checked.augment:
        augment.check_own(checked.augment, checked.input_array_info["shape"], device)
    data = open_data(checked)
    weights = data.background / np.maximum(data.foreground, 1)
    dataset = Dataset(checked.classes, dict(zip(checked.classes, weights.tolist(), strict=True)))
    batches = training_batches(checked, data, device)
    samples = checked.iterations_per_epoch * checked.batch_size
    training = Loader(batches, dataset, samples, is_train=True)
    fixed = validation_batches(checked, data, device)
    if fixed is None:
        return training, None
    return training, Loader(fixed, dataset, len(fixed.blocks), is_train=False)


def _of_config(config: Config) -> dict[str, Any]:
    """Return the settings of a configuration that are about data."""
    taken = {}
    for name in (*PARAMETERS, *DATA_SETTINGS, *OF_A_LOADER, *DATA_RULES, "random_validation"):
        value = config.get(name)
        # such as a function that the file imports, and that is called softmax
        is_tool = callable(value) and name not in ("augment", *DATA_RULES)
        if value is not None and not is_tool:
            taken[name] = value
    size = config.get("train_micro_batch_size_per_gpu")
    return {**taken, **config.get("kwargs", {}), **({"batch_size": size} if size else {})}


def _settings(given: dict[str, Any]) -> TrainConfig:
    """Check the arguments as settings of a training. Raises UserError for those without effect."""
    values, problems = environment()
    known = {row.name for row in describe()}
    for name in given:
        if name in known - DATA_SETTINGS - set(PARAMETERS):
            problems.append(f"{name} has no effect on data; leave it out")
    if given.pop("random_validation", False):
        problems.append("random_validation: the same blocks validate every time; leave it out")
    translation = translate_data(given)
    for sentence in translation.notes:
        note(f"get_dataloader: {sentence}")
    problems += translation.problems
    values |= translation.settings
    info = values.setdefault("input_array_info", DEFAULT_INFO)
    values.setdefault("target_array_info", info)
    values.setdefault("classes", DEFAULT_CLASSES)
    values.setdefault("batch_size", 1)
    values["datasplit_path"] = Path(values.get("datasplit_path", "datasplit.csv")).absolute()
    values["build_model"] = torch.nn.Identity  # required, and not used
    return check_settings("get_dataloader", values, problems, TrainConfig)


def _as_dict(batch: Batch) -> dict[str, torch.Tensor]:
    labels = batch.target.dense()
    return {"input": batch.raw, "output": labels.float().masked_fill(~known(labels), torch.nan)}

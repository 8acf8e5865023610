"""nnU-Net itself, the package `nnunetv2`, as a contestant of `bench/quality.py`.

The package's own: the fingerprint of the data set, the planner of the residual-encoder preset M and
its preprocessing (`nnUNetv2_plan_and_preprocess`), the network with all channels and blocks of the
plan, patches with a third about the foreground, its augmentation, Dice + cross-entropy with deep
supervision, SGD with Nesterov's momentum and polynomial decay, and limited gradients.

Chosen here: on a CPU the planner is given `MEMORY_OF_CPU` instead of 8 GB, which makes patches of
64^3, two a step, where the preset has 128^3; on a GPU the preset stays as it is. The thousand
epochs of the schedule last as long as the time given, however many steps that is; nothing is
validated in between. What is predicted is predicted as of all other contestants, with windows that
overlap by a quarter and without mirroring, where nnU-Net's predictor takes the mean of eight
mirrored passes over windows that overlap by half.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench import peers
from bench.case import Case, Snapshot
from common import runtime
from common.config.settings import TrainConfig
from common.data.crops.opened import Crop
from common.data.samples import loaders
from common.model.forward import ForwardPass

MEMORY_OF_CPU = 0.9
"""GPU memory (GB) that the planner is told of on a CPU."""

MEMORY_OF_QUICK = 0.12
"""The same for drawn tissue: patches of 32^3."""

DATASET = "Dataset001_crops"
CONFIGURATION = "3d_fullres"
PLANS = "nnUNetResEncUNetMPlans"

PLAN = "from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints as package; "
PLAN += "package.plan_and_preprocess_entry()"


def nnunetv2(case: Case) -> Iterator[Snapshot]:
    """Train nnU-Net by the clock: see the module for what is its own."""
    bare = peers.config_of_peer(case, peers.build_basic_unet)
    data = loaders.open_data(bare)
    labels = labels_of(data.train, bare.classes)
    folders = folders_of(case)
    write_dataset(folders["nnUNet_raw"] / DATASET, data.train, labels, bare.classes)
    plan_and_preprocess(case, folders)
    # before the package is imported, which looks at it
    os.environ.update(environment(folders, case.workers))
    trainer = new_trainer(case)
    # nnU-Net's z-score, of the image that is predicted
    grey = np.concatenate([peers.as_float(peers.raw_of(crop)).ravel() for crop in data.validation])
    build = partial(
        build_planned,
        folder=folders["nnUNet_preprocessed"] / DATASET,
        mean=float(grey.mean()),
        deviation=float(grey.std()),
    )
    plan = trainer.configuration_manager
    patch = bare.input_array_info | {"shape": tuple(int(voxels) for voxels in plan.patch_size)}
    config = replace(bare, build_model=build, input_array_info=patch, target_array_info=patch)
    # torch.compile, the package's default on a GPU, wraps the network
    network = getattr(trainer.network, "_orig_mod", trainer.network)
    model = Planned(network, labels.channels(bare.classes), mean=0, deviation=1)
    return peers.train_peer(Package(config, model, trainer), case)


@dataclass
class Package:
    """The package's trainer, a step at a time; a `peers.Trained`."""

    config: TrainConfig
    model: nn.Module
    trainer: Any

    def step(self, forward: ForwardPass, passed: float) -> int:
        """Take a step of its `run_training`; return the number of target voxels."""
        trainer = self.trainer
        epochs = trainer.num_epochs
        trainer.lr_scheduler.step(min(int(passed * epochs), epochs - 1))
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        if not math.isfinite(loss):
            raise FloatingPointError("the loss is not finite")
        plan = trainer.configuration_manager
        return trainer.batch_size * math.prod(int(voxels) for voxels in plan.patch_size)


# The data set


@dataclass(frozen=True)
class Labels:
    """One number for each combination of classes: nnU-Net reads one label map for all classes."""

    combinations: dict[tuple[int, ...], int]
    """Labels from 1 on, by what a palette row says: 1 where the class is positive, else 0."""
    has_unknown: bool
    """Whether there are voxels of which a class is unknown; nnU-Net ignores them for all."""

    @property
    def ignore(self) -> int:
        """The label of unknown voxels, which must be the highest."""
        return len(self.combinations) + 1

    @property
    def overlap(self) -> bool:
        """Whether a voxel may be of two classes: regions then, each with a sigmoid."""
        return any(sum(combination) > 1 for combination in self.combinations)

    def of_class(self, column: int) -> list[int]:
        """Return the labels of the voxels of a class."""
        chosen = [label for row, label in self.combinations.items() if row[column]]
        assert chosen, "nnU-Net takes no class without a positive voxel"
        return chosen

    def of_row(self, row: Sequence[int]) -> int:
        """Return the label of a palette row."""
        if min(row) < 0:
            return self.ignore
        return self.combinations.get(tuple(row), 0)

    def channels(self, classes: Sequence[str]) -> list[int] | None:
        """Return the softmax channel of each class; None for regions, which are the channels."""
        if self.overlap:
            return None
        return [self.of_class(column)[0] for column in range(len(classes))]

    def about(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return what dataset.json says of the labels."""
        labels: dict[str, int | list[int]] = {"background": 0}
        for column, name in enumerate(classes):
            chosen = self.of_class(column)
            labels[name] = chosen if self.overlap else chosen[0]
        if self.has_unknown:
            labels["ignore"] = self.ignore
        about: dict[str, Any] = {"labels": labels}
        if self.overlap:
            # of label maps that are predicted, which nobody asks for
            about["regions_class_order"] = list(range(1, len(classes) + 1))
        return about


def labels_of(crops: Sequence[Crop], classes: Sequence[str]) -> Labels:
    """Return the labels of all combinations of classes that there are in crops."""
    rows = set()
    for crop in crops:
        rows |= {tuple(row) for row in crop.palette[crop.counts > 0].tolist()}
    known = [row for row in rows if min(row) >= 0]
    # the classes alone in their order, as one would number them
    in_order = sorted((row for row in known if any(row)), key=lambda row: (sum(row), row[::-1]))
    combinations = {row: label for label, row in enumerate(in_order, start=1)}
    return Labels(combinations, has_unknown=len(known) < len(rows))


def write_dataset(
    folder: Path, crops: Sequence[Crop], labels: Labels, classes: Sequence[str]
) -> None:
    """Write crops as nnU-Net reads them: a TIFF of raw and one of labels, the voxel size beside."""
    import tifffile

    images = folder / "imagesTr"
    truths = folder / "labelsTr"
    for parent in (images, truths):
        parent.mkdir(parents=True, exist_ok=True)
    for crop in crops:
        name = crop.name.replace("/", "_")
        label_of_row = np.array([labels.of_row(row) for row in crop.palette.tolist()], np.uint8)
        # three or four sections would be taken for colours
        write = partial(tifffile.imwrite, photometric="minisblack")
        write(images / f"{name}_0000.tif", peers.raw_of(crop))
        write(truths / f"{name}.tif", label_of_row[np.array(crop.labels())])
        spacing = json.dumps({"spacing": [float(nm) for nm in crop.label_grid.scale]})
        for parent in (images, truths):
            (parent / f"{name}.json").write_text(spacing)
    about = labels.about(classes) | {
        "channel_names": {"0": "EM"},
        "numTraining": len(crops),
        "file_ending": ".tif",
    }
    (folder / "dataset.json").write_text(json.dumps(about))


# The package


def folders_of(case: Case) -> dict[str, Path]:
    """Return the package's folders by the names of their variables."""
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    return {name: case.folder / name for name in names}


def environment(folders: dict[str, Path], workers: int) -> dict[str, str]:
    """Return the variables that the package reads. workers: processes that augment; 0 for none."""
    paths = {name: str(folder) for name, folder in folders.items()}
    return paths | {"nnUNet_n_proc_DA": str(workers), "nnUNet_def_n_proc": "1"}


def plan_and_preprocess(case: Case, folders: dict[str, Path]) -> None:
    """Call `nnUNetv2_plan_and_preprocess`, in a process of its own; its words go to the log."""
    command = [sys.executable, "-c", PLAN, "-d", "1", "-pl", "nnUNetPlannerResEncM"]
    command += ["-overwrite_plans_name", PLANS, "-c", CONFIGURATION, "-npfp", "1", "-np", "1"]
    command += ["--no_pbar"]
    if case.quick:
        command += ["-gpu_memory_target", str(MEMORY_OF_QUICK)]
    elif case.device == "cpu":
        command += ["-gpu_memory_target", str(MEMORY_OF_CPU)]
    # the planner makes as many threads as there are processes that augment, and none is refused
    variables = environment(folders, workers=1)
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | variables)


def new_trainer(case: Case) -> Any:
    """Return the package's trainer, ready for its first step.

    Its fold "all" trains on all crops that it was given; the validation crop is none of them.
    """
    from nnunetv2.run.run_training import get_trainer_from_args

    runtime.seed_everything(case.seed)
    trainer = get_trainer_from_args(
        DATASET,
        CONFIGURATION,
        "all",
        plans_identifier=PLANS,
        device=runtime.pick_device(case.device),
    )
    trainer.on_train_start()
    return trainer


def build_planned(
    classes: Sequence[str], *, folder: Path, mean: float, deviation: float
) -> nn.Module:
    """Return the network of a plan, ready to predict.

    Args:
        classes: those of the data set.
        folder: of the preprocessed data set, which has the plan.
        mean: of raw in [0, 1].
        deviation: of the same.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    about = json.loads((folder / "dataset.json").read_text())
    plans = PlansManager(str(folder / f"{PLANS}.json"))
    # the only place where axes could change; nnU-Net puts the longest voxel edge first
    assert plans.transpose_forward == [0, 1, 2]
    labels = plans.get_label_manager(about)
    network = nnUNetTrainer.build_network_architecture(
        plans,
        plans.get_configuration(CONFIGURATION),
        num_input_channels=1,
        num_output_channels=labels.num_segmentation_heads,
        enable_deep_supervision=False,
    )
    channels = None if labels.has_regions else [about["labels"][name] for name in classes]
    return Planned(network, channels, mean=mean, deviation=deviation)


class Planned(nn.Module):
    """A network of nnU-Net on raw in [0, 1], with a logit for each class."""

    def __init__(
        self, network: nn.Module, channels: Sequence[int] | None, *, mean: float, deviation: float
    ):
        super().__init__()
        self.network = network
        self.channels = channels
        self.mean = mean
        self.deviation = deviation

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        logits = self.network((raw - self.mean) / self.deviation)
        return logits if self.channels is None else one_against_all(logits, self.channels)


def one_against_all(logits: torch.Tensor, channels: Sequence[int]) -> torch.Tensor:
    """Return the logits of the probabilities that softmax gives to channels (B, channels, ...)."""
    of_channels = []
    for channel in channels:
        others = torch.cat([logits[:, :channel], logits[:, channel + 1 :]], dim=1)
        of_channels.append(logits[:, channel] - others.logsumexp(dim=1))
    return torch.stack(of_channels, dim=1)

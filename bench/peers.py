"""The contestants of `bench/quality.py` that are not ours: training loops of one page each."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from bench.case import Case, Clock, Snapshot
from bench.side_by_side import REPOSITORY
from common import runtime
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.crops.opened import Crop
from common.data.samples import loaders
from common.data.volumes import layout
from common.data.volumes.ngff import slices
from common.model.forward import ForwardPass
from common.train.losses import bce_dice
from common.train.losses.criterion import OrdinaryLoss

PATCHES = {
    "flyem_medulla": ((64, 64, 64), (10.0, 10.0, 10.0)),
    "drosophila_vnc": ((16, 128, 128), (50.0, 9.2, 9.2)),
}
"""Patch (voxels) and voxel size (nm) of the peers that pad; as many voxels in both."""

QUICK_PATCH = (32, 32, 32)


@dataclass
class Peer:
    """A training loop of one page."""

    config: TrainConfig
    """Settings to predict with its network."""
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]]
    """Raw (B, 1, z, y, x) in [0, 1], and target (B, classes, z, y, x), NaN = unknown."""
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]
    """Takes the outputs of the network, the finest first, and the target."""
    rate: Callable[[float], float] | None = None
    """Returns the learning rate for the passed fraction of the time; None for a constant rate."""
    max_grad_norm: float = math.inf

    def step(self, forward: ForwardPass, passed: float) -> int:
        """Take one step; return the number of target voxels."""
        device = next(self.model.parameters()).device
        raw, target = next(self.batches)
        if self.rate:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(passed)
        self.optimizer.zero_grad()
        outputs = forward.outputs(self.model, raw.to(device))
        loss = self.loss([output.float() for output in outputs], target.to(device))
        loss.backward()
        if math.isfinite(self.max_grad_norm):
            nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        if not math.isfinite(loss.item()):
            raise FloatingPointError("the loss is not finite")
        return len(target) * math.prod(target.shape[2:])


class Trained(Protocol):
    """What is trained by the clock: a `Peer`, or a package with a loop of its own."""

    config: TrainConfig
    model: nn.Module

    def step(self, forward: ForwardPass, passed: float) -> int:
        """Take one step; return the number of target voxels. passed: fraction of the time."""


def train_peer(peer: Trained, case: Case) -> Iterator[Snapshot]:
    """Train a peer by the clock."""
    device = runtime.pick_device(case.device)
    forward = ForwardPass(runtime.pick_precision(case.precision, device), channels_last=False)
    weights = case.folder / "weights.pt"
    weights.parent.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    steps = 0
    voxels = 0
    for mark in case.marks:
        peer.model.train()
        clock.start(mark)
        while not clock.due():
            voxels += peer.step(forward, clock.seconds / case.marks[-1])
            steps += 1
        torch.save(peer.model.state_dict(), weights)
        yield Snapshot(peer.config, str(weights), clock.seconds, steps=steps, voxels=voxels)


def monai(case: Case) -> Iterator[Snapshot]:
    """A plain MONAI loop: BasicUNet with instance norm, Dice + BCE, AdamW, no schedule."""
    from monai.losses import DiceLoss

    config = config_of_peer(case, build_basic_unet)
    model = new_model(config, case)
    dice = OrdinaryLoss(DiceLoss(sigmoid=True))
    cross_entropy = OrdinaryLoss(nn.BCEWithLogitsLoss())
    peer = Peer(
        config,
        patches(config, loaders.open_data(config).train, case),
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-3),
        loss=lambda outputs, target: dice(outputs[0], target) + cross_entropy(outputs[0], target),
    )
    return train_peer(peer, case)


def build_basic_unet(classes: Sequence[str]) -> nn.Module:
    """MONAI's BasicUNet, 1.3 million parameters."""
    from monai.networks.nets import BasicUNet

    return BasicUNet(
        out_channels=len(classes),
        features=(16, 16, 32, 64, 128, 16),
        norm=("instance", {"affine": True}),
    )


def nnunet(case: Case) -> Iterator[Snapshot]:
    """Train as nnU-Net does, at a size for one core: see `build_residual_unet`.

    Dice + cross-entropy at all scales but the coarsest, SGD with Nesterov's momentum 0.99, rate
    0.01 falling with the 0.9th power of what is left of the time, a third of the patches about a
    positive voxel, raw less its mean over its deviation. Source: Isensee et al. 2021; not
    its augmentations beyond mirroring and turns, nor its 250,000 steps.
    """
    bare = config_of_peer(case, build_basic_unet)
    crops = loaders.open_data(bare).train
    grey = np.concatenate([as_float(crop.raw()).ravel() for crop in crops])
    statistics = {"mean": float(grey.mean()), "deviation": float(grey.std())}
    build = partial(build_residual_unet, voxel_size=bare.input_array_info["scale"], **statistics)
    config = config_of_peer(case, build)
    model = new_model(config, case)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.99, nesterov=True, weight_decay=3e-5
    )
    peer = Peer(
        config,
        patches(config, crops, case, positive_fraction=1 / 3),
        model,
        optimizer,
        loss=deeply_supervised,
        rate=lambda passed: 0.01 * max(1 - passed, 0) ** 0.9,
        max_grad_norm=12,
    )
    return train_peer(peer, case)


class Standardised(nn.Module):
    """A network on raw less its mean, over its deviation."""

    def __init__(self, network: nn.Module, mean: float, deviation: float):
        super().__init__()
        self.network = network
        self.mean = mean
        self.deviation = deviation

    def forward(self, raw: torch.Tensor) -> list[torch.Tensor]:
        return self.network((raw - self.mean) / self.deviation)


def build_residual_unet(
    classes: Sequence[str], *, voxel_size: Sequence[float], mean: float, deviation: float
) -> nn.Module:
    """A residual encoder U-Net, planned by nnU-Net's rules for the voxel size.

    Half its channels and fewer blocks: as nnU-Net's preset has them, a step takes a minute on a
    core.
    """
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    # the plane is pooled, and looked at, alone until voxels are about as long on all axes
    flat = voxel_size[0] / voxel_size[2] > 2
    in_plane = 2 if flat else 0
    kernels = [[1, 3, 3]] * in_plane + [[3, 3, 3]] * (5 - in_plane)
    strides = [[1, 1, 1]] + [[1, 2, 2]] * in_plane + [[2, 2, 2]] * (4 - in_plane)
    network = ResidualEncoderUNet(
        input_channels=1,
        n_stages=5,
        features_per_stage=[16, 32, 64, 128, 160],
        conv_op=nn.Conv3d,
        kernel_sizes=kernels,
        strides=strides,
        n_blocks_per_stage=[1, 2, 2, 2, 2],
        num_classes=len(classes),
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    return Standardised(network, mean, deviation)


def deeply_supervised(outputs: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """Dice + cross-entropy at each scale, half the weight of the one before, the last left out."""
    total = torch.zeros((), device=target.device)
    used = outputs[:-1] or outputs
    weights = [0.5**scale for scale in range(len(used))]
    for weight, output in zip(weights, used, strict=True):
        coarse = interpolate(target, output.shape[2:], mode="nearest")
        total = total + weight / sum(weights) * bce_dice(output, coarse)
    return total


def cellmap(case: Case) -> Iterator[Snapshot]:
    """A plain loop over cellmap-data and LeibNetz, as the public toolbox's.

    Its defaults: RAdam at 1e-4, cross-entropy weighted by background over foreground, mean over all
    voxels. Patches as of `committed`, one a step. Raw is brought to [0, 1], which the toolbox means
    to do.
    """
    from bench.reference import cellmap_data_loader

    path = REPOSITORY / "bench" / "recipes" / f"{case.dataset}.py"
    config = load_config(path, **case.settings)
    data = loaders.open_data(config)
    loader = cellmap_data_loader(
        write_split(data.rows, case.folder / "datasplit.csv"),
        classes=config.classes,
        input_shape=config.input_array_info["shape"],
        target_shape=config.target_array_info["shape"],
        scale=config.target_array_info["scale"],
        rotate=False,
        batch_size=1,
        iterations=10**6,
    )
    model = new_model(config, case)
    weight = data.background / np.maximum(data.foreground, 1)
    pos_weight = torch.tensor(weight, dtype=torch.float32, device=case.device).view(-1, 1, 1, 1)

    def loss(outputs: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        losses = nn.functional.binary_cross_entropy_with_logits(
            outputs[0], target.nan_to_num(0), pos_weight=pos_weight, reduction="none"
        )
        return (losses * ~target.isnan()).mean()

    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-4, decoupled_weight_decay=True)
    batches = ((batch["input"] / 255, batch["output"]) for batch in loader)
    return train_peer(Peer(config, batches, model, optimizer, loss), case)


def write_split(rows: Sequence[Any], path: Path) -> Path:
    """Write a datasplit with absolute paths, which cellmap-data needs; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        for row in rows:
            store = layout.store_of(row.raw)
            assert store is not None
            crop = f"{row.crop.relative_to(store)}/[{','.join(row.annotated)}]"
            writer.writerow([row.usage, store, row.raw.relative_to(store), store, crop])
    return path


def config_of_peer(case: Case, build_model: Callable) -> TrainConfig:
    """Return the settings to read a peer's data, and to predict with its network."""
    shape, scale = PATCHES[case.dataset]
    patch = {"shape": QUICK_PATCH if case.quick else shape, "scale": scale}
    path = REPOSITORY / "bench" / "recipes" / f"{case.dataset}.py"
    settings = {
        "build_model": build_model,
        "input_array_info": patch,
        "target_array_info": patch,
        "spatial_transforms": {},
    }
    return load_config(path, **case.settings | settings)


def new_model(config: TrainConfig, case: Case) -> nn.Module:
    """A peer's network with weights drawn from its seed, on its device."""
    runtime.seed_everything(case.seed)
    return config.build_model(config.classes).to(runtime.pick_device(case.device))


def as_float(raw: np.ndarray) -> np.ndarray:
    """Raw in [0, 1]."""
    return raw / np.float32(255) if raw.dtype == np.uint8 else raw


@dataclass(frozen=True)
class InMemory:
    """A crop in memory."""

    raw: np.ndarray
    """(z, y, x) float32 in [0, 1]."""
    labels: np.ndarray
    """(z, y, x) palette rows of the same voxels."""
    crop: Crop


Batch = tuple[torch.Tensor, torch.Tensor]


def patches(
    config: TrainConfig, crops: Sequence[Crop], case: Case, *, positive_fraction: float = 0
) -> Iterator[Batch]:
    """Yield batches of two patches, mirrored and turned at random, cut from crops in memory.

    positive_fraction: fraction of the patches that are placed about a positive voxel of a class.
    """
    random = np.random.default_rng(case.seed)
    shape = np.array(config.target_array_info["shape"])
    is_isotropic = len(set(config.target_array_info["scale"])) == 1
    planes = [(0, 1), (0, 2), (1, 2)] if is_isotropic else [(1, 2)]
    volumes = [in_memory(crop) for crop in crops]
    while True:
        raws = []
        targets = []
        for _ in range(2):
            volume = volumes[random.integers(len(volumes))]
            start = None
            if random.random() < positive_fraction:
                start = about_a_positive(volume.crop, shape, random)
            if start is None:
                start = random.integers(np.array(volume.labels.shape) - shape + 1)
            plane = planes[random.integers(len(planes))]
            raw, target = turned_patch(volume, start, shape, plane=plane, random=random)
            raws.append(raw)
            targets.append(target)
        yield torch.stack(raws), torch.stack(targets)


def turned_patch(
    volume: InMemory,
    start: np.ndarray,
    shape: np.ndarray,
    *,
    plane: tuple[int, int],
    random: np.random.Generator,
) -> Batch:
    """Cut raw (1, z, y, x) and target (classes, z, y, x) from voxel `start` on.

    Mirrored, and turned by quarters in a plane if it is square.
    """
    where = slices(start, start + shape)
    flips = [axis for axis in range(3) if random.random() < 0.5]
    is_square = shape[plane[0]] == shape[plane[1]]
    turns = random.integers(4) if is_square else 0
    raw = np.rot90(np.flip(volume.raw[where], flips), turns, plane)
    rows = np.rot90(np.flip(volume.labels[where], flips), turns, plane)
    target = volume.crop.palette[rows].astype(np.float32)
    target[target < 0] = np.nan
    channels_first = np.moveaxis(target, -1, 0)
    return torch.from_numpy(raw.copy())[None], torch.from_numpy(channels_first.copy())


def in_memory(crop: Crop) -> InMemory:
    """Read a crop with its raw on the voxels of its labels."""
    return InMemory(as_float(raw_of(crop)), np.array(crop.labels()), crop)


def raw_of(crop: Crop) -> np.ndarray:
    """Return the raw of a crop (z, y, x), as it is stored, on the voxels of its labels."""
    assert np.allclose(crop.label_grid.scale, crop.raw_grid.scale, rtol=1e-3)
    first = (crop.label_grid.origin - crop.raw_grid.origin) / crop.raw_grid.scale
    start = np.rint(first).astype(int)
    return crop.raw()[slices(start, start + crop.label_grid.shape)]


def about_a_positive(
    crop: Crop, shape: np.ndarray, random: np.random.Generator
) -> np.ndarray | None:
    """Return the start of a patch about a positive voxel of a random class; None without one."""
    column = random.integers(crop.palette.shape[1])
    rows = np.flatnonzero((crop.palette[:, column] == 1) & (crop.counts > 0))
    if not len(rows):
        return None
    examples = crop.examples[random.choice(rows)]
    centre = examples[random.integers(len(examples))]
    return np.clip(centre - shape // 2, 0, np.array(crop.label_grid.shape) - shape)

"""The contestants of `bench/quality.py`: five ways to train on the same crops.

Each is a generator: it trains until one mark of the clock after another, and gives at each a
`Snapshot` that can be predicted with. The clock stands still while a snapshot is looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from bench.side_by_side import REPOSITORY
from common import runtime
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data import loaders
from common.data.crops import Crop
from common.model.forward import ForwardPass
from common.train import logs
from common.train.criterion import OrdinaryLoss
from common.train.losses import bce_dice
from common.train.run import Setup, prepare, run_epochs
from common.train.steps import State

CALIBRATED = 0.03
"""Part of the time that a contestant trains for which its speed is measured before."""

PATCHES = {
    "flyem_medulla": ((64, 64, 64), (10.0, 10.0, 10.0)),
    "drosophila_vnc": ((16, 128, 128), (50.0, 9.2, 9.2)),
}
"""Patch (voxels) and voxel size (nm) of the peers that pad; as many voxels in both."""

QUICK_PATCH = (32, 32, 32)


@dataclass(frozen=True)
class Case:
    """One contestant with one seed."""

    contestant: str
    dataset: str
    data: str
    """The data root."""
    seed: int
    minutes: tuple[float, ...]
    """Of the clock, when it is looked at."""
    device: str
    precision: str
    workers: int
    """Processes that read patches for our trainer."""
    scratch: str
    """Folder of whatever is written."""
    quick: bool = False

    @property
    def marks(self) -> list[float]:
        """Seconds of the clock, when it is looked at."""
        return [60 * minutes for minutes in sorted(self.minutes)]

    @property
    def folder(self) -> Path:
        """What is written of this case alone."""
        return Path(self.scratch) / f"{self.contestant}-{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that all contestants share."""
        return settings_of_run(
            self.folder,
            data_path=self.data,
            cache_path=str(Path(self.scratch) / "cache"),
            random_seed=self.seed,
            device=self.device,
            precision=self.precision,
            num_workers=self.workers,
        )


@dataclass(frozen=True)
class Snapshot:
    """A contestant at a mark of the clock."""

    config: TrainConfig
    """With which its network is predicted with."""
    weights: str
    """Of its network: "latest", or a file."""
    seconds: float
    """On the clock."""
    steps: int
    voxels: int
    """Of target, seen so far, each as often as it was seen."""


class Clock:
    """Seconds of training; it stands still while anything else is done."""

    def __init__(self) -> None:
        self.mark = 0.0
        """Seconds at which it is due."""
        self._before = 0.0
        self._begun: float | None = None

    @property
    def seconds(self) -> float:
        """So far."""
        running = 0.0 if self._begun is None else time.perf_counter() - self._begun
        return self._before + running

    def start(self, mark: float) -> None:
        """Let it run until `mark`."""
        self.mark = mark
        self._begun = time.perf_counter()

    def pause(self) -> None:
        self._before = self.seconds
        self._begun = None

    def due(self) -> bool:
        """Whether the mark is reached; it stands still then."""
        if self.seconds < self.mark:
            return False
        self.pause()
        return True


def settings_of_run(folder: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a run whose files all go to `folder`, with nothing that only a user looks at."""
    places = ("model_save", "logs_save", "predictions", "processed", "results")
    # of its own for each name: the run whose steps are timed has another
    paths = {f"{place}_path": str(folder / "{run_name}" / place) for place in places}
    return paths | {"figure_samples": 0, **settings}


# Ours


def committed(case: Case) -> Iterator[Snapshot]:
    """The example as it was before its recipe was worked on."""
    path = REPOSITORY / "bench" / "recipes" / f"{case.dataset}.py"
    return ours(path, case.settings, case.marks)


def new(case: Case) -> Iterator[Snapshot]:
    """The example as it is."""
    return ours(REPOSITORY / "examples" / case.dataset, case.settings, case.marks)


def ours(
    path: Path, settings: dict[str, Any], marks: Sequence[float], overrides: Sequence[str] = ()
) -> Iterator[Snapshot]:
    """Train an experiment by this repository's trainer; its schedule ends at the last mark.

    The trainer itself is interrupted at each mark, as by Ctrl-C, and goes on from there. It
    does not validate: that is no training, and what is looked at is the whole crop.
    """
    probe = settings | {"run_name": "calibration"}
    pace = seconds_per_step(load_config(path, overrides, **probe), CALIBRATED * marks[-1])
    lengths = as_long_as(load_config(path, overrides, **settings), round(marks[-1] / pace))
    config = load_config(path, overrides, **settings | lengths)
    return train_until(config, marks)


def for_steps(
    path: Path, settings: dict[str, Any], steps: int, overrides: Sequence[str] = ()
) -> Iterator[Snapshot]:
    """Train an experiment for so many steps, its schedule with it; one snapshot, at the end."""
    lengths = as_long_as(load_config(path, overrides, **settings), steps)
    config = load_config(path, overrides, **settings | lengths)
    return train_until(config, [math.inf])


def as_long_as(config: TrainConfig, steps: int) -> dict[str, int]:
    """Settings that make a run `steps` long, or nearly so, in as many epochs as it has.

    So that its schedule, which counts epochs, keeps its shape.
    """
    epochs = max(1, min(config.epochs, steps))
    return {"epochs": epochs, "iterations_per_epoch": max(1, round(steps / epochs))}


def train_until(config: TrainConfig, marks: Sequence[float]) -> Iterator[Snapshot]:
    """Train; a snapshot at each mark (s), and at the end of the run where that comes before."""
    setup, state = start(config)
    clock = Clock()
    with logs.open_logs(config, state, setup.about()) as run_logs:
        for mark in marks:
            clock.start(mark)
            run_epochs(setup, state, run_logs, stopped=clock.due, report=None)
            clock.pause()
            yield Snapshot(
                config,
                "latest",
                seconds=clock.seconds,
                steps=state.iteration,
                voxels=state.iteration * voxels_per_step(config),
            )


def start(config: TrainConfig) -> tuple[Setup, State]:
    """What a run needs, and its state; it does not validate."""
    setup, state = prepare(config)
    return replace(setup, validation=None), state


def voxels_per_step(config: TrainConfig) -> int:
    """Target voxels that an optimiser step is made of."""
    patches = config.batch_size * config.gradient_accumulation_steps
    return patches * math.prod(config.target_array_info["shape"])


def seconds_per_step(config: TrainConfig, seconds: float) -> float:
    """How long a step takes, measured for about so many seconds and at least two steps."""
    setup, state = start(config)
    begun: list[float] = []

    def enough() -> bool:
        begun.append(time.perf_counter())
        # the first step, in which buffers are made and kernels chosen, does not count
        return len(begun) > 3 and begun[-1] - begun[1] > seconds

    with logs.open_logs(config, state, setup.about()) as run_logs:
        run_epochs(setup, state, run_logs, stopped=enough, report=None)
    return (begun[-1] - begun[1]) / max(len(begun) - 2, 1)


# Peers


@dataclass
class Peer:
    """A training loop of one page."""

    config: TrainConfig
    """With which its network is predicted with."""
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]]
    """Raw (B, 1, z, y, x) in [0, 1], and target (B, classes, z, y, x), NaN = unknown."""
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]
    """Of the outputs of the network, the finest first."""
    rate: Callable[[float], float] | None = None
    """Learning rate by the part of the time that has passed; None for a constant one."""
    max_grad_norm: float = math.inf

    def step(self, forward: ForwardPass, passed: float) -> int:
        """One update; gives the voxels of its target."""
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


def train_peer(peer: Peer, case: Case) -> Iterator[Snapshot]:
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
    """As nnU-Net trains, at a size that one core can: see `build_residual_unet`.

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
    kernels = [[1, 3, 3] if flat and stage < 2 else [3, 3, 3] for stage in range(5)]
    strides = [[1, 1, 1]] + [[1, 2, 2] if flat and stage < 2 else [2, 2, 2] for stage in range(4)]
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
        each = nn.functional.binary_cross_entropy_with_logits(
            outputs[0], target.nan_to_num(0), pos_weight=pos_weight, reduction="none"
        )
        return (each * ~target.isnan()).mean()

    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-4, decoupled_weight_decay=True)
    batches = ((batch["input"] / 255, batch["output"]) for batch in loader)
    return train_peer(Peer(config, batches, model, optimizer, loss), case)


def write_split(rows: Sequence[Any], path: Path) -> Path:
    """The same datasplit with absolute paths, which cellmap-data wants."""
    import csv

    from common.data import layout

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        for row in rows:
            store = layout.store_of(row.raw)
            assert store is not None
            crop = f"{row.crop.relative_to(store)}/[{','.join(row.annotated)}]"
            writer.writerow([row.usage, store, row.raw.relative_to(store), store, crop])
    return path


CONTESTANTS: dict[str, Callable[[Case], Iterator[Snapshot]]] = {
    "committed": committed,
    "new": new,
    "monai": monai,
    "cellmap": cellmap,
    "nnunet": nnunet,
}

NEEDS = {"monai": "monai", "cellmap": "cellmap_data", "nnunet": "dynamic_network_architectures"}
"""The package that a peer is made of."""


def config_of_peer(case: Case, build_model: Callable) -> TrainConfig:
    """Settings with which a peer's data are read, and its network is predicted with."""
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


def patches(
    config: TrainConfig, crops: Sequence[Crop], case: Case, *, positive_fraction: float = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of two patches, mirrored and turned at random, cut from crops in memory.

    positive_fraction: of the patches, that are placed about a positive voxel of a class.
    """
    random = np.random.default_rng(case.seed)
    shape = np.array(config.target_array_info["shape"])
    scale = config.target_array_info["scale"]
    planes = [(0, 1), (0, 2), (1, 2)] if len(set(scale)) == 1 else [(1, 2)]
    volumes = [in_memory(crop) for crop in crops]
    while True:
        raws = []
        targets = []
        for _ in range(2):
            raw, labels, crop = volumes[random.integers(len(volumes))]
            is_positive = random.random() < positive_fraction
            start = about_a_positive(crop, shape, random) if is_positive else None
            if start is None:
                start = random.integers(np.array(labels.shape) - shape + 1)
            where = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
            plane = planes[random.integers(len(planes))]
            turns = random.integers(4) if shape[plane[0]] == shape[plane[1]] else 0
            flips = [axis for axis in range(3) if random.random() < 0.5]
            cut = [np.rot90(np.flip(v[where], flips), turns, plane) for v in (raw, labels)]
            raws.append(torch.from_numpy(cut[0].copy())[None])
            known = crop.palette[cut[1]].astype(np.float32)
            known[known < 0] = np.nan
            targets.append(torch.from_numpy(known).movedim(-1, 0))
        yield torch.stack(raws), torch.stack(targets).contiguous()


def in_memory(crop: Crop) -> tuple[np.ndarray, np.ndarray, Crop]:
    """Raw in [0, 1] and palette rows of a crop, on the same voxels."""
    first = (crop.label_grid.origin - crop.raw_grid.origin) / crop.raw_grid.scale
    assert np.allclose(crop.label_grid.scale, crop.raw_grid.scale, rtol=1e-3)
    start = np.rint(first).astype(int)
    where = tuple(
        slice(a, a + n) for a, n in zip(start.tolist(), crop.label_grid.shape, strict=True)
    )
    return as_float(crop.raw()[where]), np.array(crop.labels()), crop


def about_a_positive(
    crop: Crop, shape: np.ndarray, random: np.random.Generator
) -> np.ndarray | None:
    """Where a patch begins that has a positive voxel of a random class in its middle, if any."""
    column = random.integers(crop.palette.shape[1])
    rows = np.flatnonzero((crop.palette[:, column] == 1) & (crop.counts > 0))
    if not len(rows):
        return None
    examples = crop.examples[random.choice(rows)]
    centre = examples[random.integers(len(examples))]
    return np.clip(centre - shape // 2, 0, np.array(crop.label_grid.shape) - shape)

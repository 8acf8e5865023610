"""Predict boxes of volumes with a trained network, from top to bottom."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from fasteners import InterProcessLock
from tqdm import tqdm

from common import runtime
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data import ngff, raw, regions
from common.data.regions import Region
from common.data.sampling import Patch
from common.errors import FileError, UserError
from common.files import REPOSITORY
from common.infer import encode
from common.infer.blocks import compute_blocks, oriented
from common.infer.plan import BlockPlan, plan_blocks
from common.infer.window import Forward, Window, judged, probe
from common.model import build
from common.model.forward import ForwardPass
from common.model.shapes import Shapes
from common.provenance import provenance
from common.train import checkpoint, run

WRITERS = min(16, max(2, os.cpu_count() or 1))
"""Threads that compress and write."""

UNWRITTEN = 2
"""Blocks that may wait to be written while others are computed."""

BLOCK = {"cuda": 256}
"""Largest edge of a block in voxels, by kind of device; 128 on others."""

SMALLEST_BLOCK = 32
"""Edge in voxels below which blocks are not made smaller to save memory."""

MEMORY_FRACTION = 0.5
"""Of the device's free memory, that a block may take."""

DETERMINING = (
    "sha256",
    "precision",
    "content",
    "dtype",
    "orientations",
    "raw",
    "raw_range",
    "voxel_size",
    "translation",
    "shape",
)
"""Attributes of a prediction that say which voxels it has: one with the same is the same, and is gone on with."""


@dataclass(frozen=True)
class Output:
    """How predictions are stored."""

    content: str = "probability"
    """"probability" or "logits"."""
    dtype: str = "uint8"
    """"uint8" (probabilities in 255ths), "float16" or "float32"."""
    scale: tuple[float, ...] = ()
    """Voxel size in nm, z, y, x; the network's unless given."""
    orientations: int = 1
    """Mirrored and transposed copies whose logits are averaged: 1, 8 or 16."""
    block: int = 0
    """Largest edge of a block in voxels; chosen for the device unless given."""


def predict(
    config_path: str | Path,
    crops: str = "validate",
    *,
    volume: str | Path = "",
    roi: str = "",
    classes: Sequence[str] = (),
    weights: str = "",
    manifest_path: str = "",
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    **output: Any,
) -> list[Path]:
    """Predict crops, or a volume, with the best checkpoint of an experiment's run; gives the folders that were written.

    crops, volume, roi, manifest_path: see `common.data.regions.choose`; classes: some of the network's, all unless
    given; weights: "best", "latest" or a checkpoint file; output: the fields of `Output`. A class is finished whole or
    stays marked as unfinished; the same call goes on with it. overwrite: replace what was predicted by other weights or settings.
    Raises FileNotFoundError, ValueError or OSError with a sentence, and KeyboardInterrupt when Ctrl-C or SIGTERM came.
    """
    config = load_config(config_path, overrides, data)
    how = check_output(Output(**output), config)
    if unknown := [name for name in classes if name not in config.classes]:
        raise UserError(
            f"{config.folder}: the network has no class {', '.join(unknown)}; it has {', '.join(config.classes)}"
        )
    chosen = survey(
        config,
        regions.choose(config, crops, volume, roi, manifest_path=manifest_path, say=run.say),
        classes,
    )
    network = load_network(config, weights)
    run.say(
        f"{network.about['checkpoint']}: epoch {network.about['epoch']}, {network.about['metric']}; on {network.device}"
    )
    with runtime.interruptible() as stopped:
        return [
            predict_region(network, config, region, names, how, overwrite, stopped)
            for region, names in chosen
        ]


def survey(
    config: TrainConfig, boxes: Sequence[Region], classes: Sequence[str]
) -> list[tuple[Region, list[str]]]:
    """Each box with the classes to predict there: those asked for, and of a test crop those that are scored, if there are any.

    Raises ValueError with everything that is wrong with the raw of the boxes.
    """
    asked, chosen, problems = classes or config.classes, [], []
    for region in boxes:
        try:
            lower, upper = raw.open_raw(
                region.raw, config.input_array_info["scale"], config.raw_range
            ).level.box()
        except (ValueError, FileNotFoundError) as error:
            problems.append(str(error))
            continue
        if (region.lower >= upper).any() or (region.upper <= lower).any():
            problems.append(
                f"{region}: {regions.box_text(region.lower, region.upper)} nm, outside of its raw {region.raw}, which is "
                f"{regions.box_text(lower, upper)} nm; check translation and scale in their .zattrs"
            )
        scored = region.classes if region.truth is None and region.classes else asked
        if names := [name for name in config.classes if name in asked and name in scored]:
            chosen.append((region, names))
        else:
            run.say(f"note: {region} is left out, none of {', '.join(asked)} is scored there")
    if not chosen and not problems:
        problems.append(
            f"nothing to predict: none of {', '.join(asked)} is scored in these crops; name other classes or crops"
        )
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return chosen


def check_output(how: Output, config: TrainConfig) -> Output:
    """The same, or a ValueError with everything that is wrong with it."""
    problems = []
    if how.content not in ("probability", "logits"):
        problems.append(f"content '{how.content}'; write probability or logits")
    if how.dtype not in ("uint8", "float16", "float32"):
        problems.append(f"dtype '{how.dtype}'; write uint8, float16 or float32")
    if how.content == "logits" and how.dtype == "uint8":
        problems.append("logits do not fit into uint8; write --dtype float16 or float32")
    if how.orientations not in (1, 8, 16):
        problems.append(
            f"{how.orientations} orientations; write 1, 8 (mirrored) or 16 (with y and x exchanged)"
        )
    (_, sy, sx), (_, ty, tx) = config.input_array_info["scale"], config.target_array_info["scale"]
    if how.orientations == 16 and (sy != sx or ty != tx):
        problems.append("16 orientations exchange y and x, whose voxel sizes differ here; write 8")
    if how.scale and (len(how.scale) != 3 or min(how.scale) <= 0):
        problems.append(f"scale {how.scale}; write three voxel sizes in nm, z, y, x")
    if how.block < 0:
        problems.append(f"block {how.block}; write a number of voxels, such as 128")
    if problems:
        raise UserError("\n".join(problems))
    return how


@dataclass(frozen=True)
class Network:
    """A trained network, ready to predict."""

    forward: Forward
    window: Window
    shapes: Shapes
    device: torch.device
    about: dict[str, Any]
    """What it is: checkpoint, its hash, epoch and metric, versions, commit."""


def load_network(config: TrainConfig, weights: str = "") -> Network:
    """The network with the weights of a checkpoint, every one. Raises FileNotFoundError or ValueError; never has other weights."""
    path = checkpoint_path(config, weights)
    saved = checkpoint.load(path, config.classes)
    _refuse_other_input(path, saved["settings"], config)
    device = runtime.pick_device(config.device)
    model = build.build_model(config, device)
    checkpoint.load_weights(model, saved, path)
    model.eval()
    forward = ForwardPass(runtime.pick_precision(config.precision, device), config.channels_last)
    exact = ForwardPass(runtime.pick_precision("fp32", device), config.channels_last)
    shapes = Shapes(model, exact)
    window = probe(shapes, Patch(**config.input_array_info), Patch(**config.target_array_info))
    with torch.inference_mode():
        window = judged(window, partial(exact, model), device)
    metric = (
        f"{config.best_metric} {saved['best']:.4f} at epoch {saved['best_epoch']}"
        if math.isfinite(saved["best"])
        else "not validated"
    )
    about = {
        "experiment": config.folder.name,
        "model_name": config.model_name,
        "run_name": config.path("model_save_path").name,
        "checkpoint": str(path),
        "sha256": _sha256(path),
        "epoch": saved["epoch"],
        "metric": metric,
        "precision": forward.precision.name,
        **provenance(REPOSITORY),
    }
    return Network(partial(forward, model), window, shapes, device, about)


def checkpoint_path(config: TrainConfig, weights: str) -> Path:
    """The file that `weights` names: the best of this run (the latest where none was validated), "best", "latest" or a path."""
    folder = config.path("model_save_path")
    if weights in ("", "best", "latest"):
        path = checkpoint.find(folder, weights or "best") or (
            None if weights else checkpoint.find(folder, "latest")
        )
        if path is None:
            raise FileNotFoundError(
                f"{folder}: no {weights or 'best'} checkpoint; train first, write the run's name (--set run_name=...), or --checkpoint FILE"
            )
        return path
    path = (
        Path(weights)
        if Path(weights).is_absolute() or Path(weights).is_file()
        else config.folder / weights
    ).absolute()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; write --checkpoint best, latest or the path of one"
        )
    return path


def predict_region(
    network: Network,
    config: TrainConfig,
    region: Region,
    classes: Sequence[str],
    how: Output,
    overwrite: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Path:
    """Predict one box into its folder, or go on where an earlier call stopped. KeyboardInterrupt if stopped() became true."""
    folder = region.folder(config.path("predictions_path"))
    plan = make_plan(network, config, region, how)
    about = describe(network, plan, how)
    with _writable(folder), _alone(folder):
        todo, largest = unfinished(folder, classes, about, overwrite)
        if not todo:
            run.say(f"{region}: already there, in {folder}")
            return folder
        if largest and not how.block:  # as it was begun, whatever memory is free now
            plan = make_plan(network, config, region, how, largest)
        about |= {
            "largest_block": plan.largest,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        zarr.open_group(str(folder.parent), mode="a").require_group(folder.name)
        targets = [
            Target(folder / name, plan, how.dtype, {"class": name, "prediction": about})
            for name in todo
        ]
        left = [
            number
            for number in range(math.prod(plan.blocks))
            if any(number not in target.done for target in targets)
        ]
        announce(region, network, plan, how, len(todo), len(left), shutil.disk_usage(folder).free)
        channels = [config.classes.index(name) for name in todo]
        try:
            blank = write_blocks(network, plan, how, channels, targets, left, stopped)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{network.device}: not enough memory for blocks of {plan.largest} voxels; write --block {plan.largest // 2}"
            ) from error
        if blank:
            run.say(
                f"note: the raw of {region} is 0 throughout in {blank} of {len(left)} blocks; if that is not so, fetch its EM chunks"
            )
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(lambda target: stopped() or target.finish(), targets))
    if stopped():
        run.say(f"interrupted; the same command goes on with {folder}")
        raise KeyboardInterrupt
    return folder


def make_plan(
    network: Network, config: TrainConfig, region: Region, how: Output, largest: int = 0
) -> BlockPlan:
    """Blocks of up to `largest` voxels along an edge; unless given, as large as there is memory for, up to the largest that pay."""
    volume = raw.open_raw(region.raw, network.window.input.scale, config.raw_range)

    def of(largest: int) -> BlockPlan:
        return plan_blocks(
            volume, network.window, region.lower, region.upper, how.scale or None, largest
        )

    given, largest = (
        largest or how.block,
        largest or how.block or BLOCK.get(network.device.type, 128),
    )
    free = MEMORY_FRACTION * runtime.free_memory_gb(network.device)
    while (
        not given
        and largest > SMALLEST_BLOCK
        and gigabytes(network, of(largest), len(config.classes)) > free
    ):
        largest = largest * 3 // 4
    (z, y, x), (_, *wanted) = of(largest).window.input.shape, of(largest).window.output.shape
    if (
        how.orientations == 16
        and network.shapes((z, y, x))
        and (network.shapes((z, x, y)) or ())[1:] != (wanted[1], wanted[0])
    ):
        raise UserError(
            f"{region}: 16 orientations exchange y and x, and the network does not take {(z, x, y)} voxels; write 8"
        )
    return of(largest)


def gigabytes(network: Network, plan: BlockPlan, classes: int) -> float:
    """Roughly what a block takes at its peak: a forward pass, and its logits in float32, twice."""
    return (
        network.shapes.forward_bytes(plan.window.input.shape) / 1e9
        + 2 * 4 * classes * math.prod(plan.block) / 1e9
    )


def describe(network: Network, plan: BlockPlan, how: Output) -> dict[str, Any]:
    """The attributes of a prediction: what it was made with, and a key that tells whether another one has the same voxels."""
    about = {
        **network.about,
        "content": how.content,
        "dtype": how.dtype,
        "orientations": how.orientations,
        "raw": str(plan.raw.level.path),
        "raw_range": list(plan.raw.raw_range),
        "voxel_size": plan.grid.scale.tolist(),
        "translation": plan.grid.origin.tolist(),
        "shape": list(plan.grid.shape),
    }
    key = json.dumps([about[name] for name in DETERMINING])
    return {**about, "key": hashlib.sha256(key.encode()).hexdigest()[:24]}


def unfinished(
    folder: Path, classes: Sequence[str], about: dict[str, Any], overwrite: bool
) -> tuple[list[str], int]:
    """The classes that are still to be predicted, and the block edge that one was begun with (0: none was).

    Raises ValueError if the folder holds something else in the place of one.
    """
    todo, largest = [], 0
    for name in classes:
        attributes = _attributes(folder / name)
        found = attributes.get("prediction", {})
        if (
            not found
            and (folder / name).is_dir()
            and any(path.name != ".zgroup" for path in (folder / name).iterdir())
        ):
            raise UserError(
                f"{folder / name}: not written by predict; set another predictions_path, or remove it"
            )
        same = found.get("key") == about["key"]
        if found and not same and not overwrite:
            raise UserError(
                f"{folder / name}: holds the prediction of {found.get('checkpoint')} (epoch {found.get('epoch')}), made otherwise "
                f"({_differences(found, about)}); write --overwrite, or set another predictions_path"
            )
        if not same:
            todo.append(name)
        elif "multiscales" not in attributes:
            todo.append(name)
            largest = largest or found["largest_block"]
    return todo, largest


class Target:
    """One class of a prediction while it is written: its volume and, in a file beside it, the numbers of the blocks that it holds.

    A number is added when its block is on disk, so that a call that ends anywhere can be gone on with. The first coarser
    level is written along with the finest, block by block, where its chunks are made of whole ones.
    """

    def __init__(self, path: Path, plan: BlockPlan, dtype: str, attributes: dict[str, Any]):
        self.path, self.grid, self.journal = path, plan.grid, path / ".blocks"
        self.factors = ngff.pyramid(plan.grid)
        chunks, shape = np.array(plan.chunks), np.array(plan.grid.shape)
        self.halved = bool(self.factors) and bool(
            ((chunks % self.factors[0] == 0) | (chunks >= shape)).all()
        )
        mine, found = attributes["prediction"], _attributes(path).get("prediction", {})
        begun = (
            all(found.get(name) == mine[name] for name in ("key", "largest_block"))
            and self.journal.is_file()
        )
        if not begun:
            ngff.start_multiscale(path, plan.grid, dtype, plan.chunks, attributes=attributes)
            if self.halved:
                ngff.add_level(path, 1, self.factors[0], -(-chunks // self.factors[0]))
            self.journal.touch()
        lines = self.journal.read_bytes().split(b"\n")
        if lines.pop():  # a line that was cut off
            self.journal.write_bytes(b"".join(line + b"\n" for line in lines))
        self.done = {int(line) for line in lines}
        self.levels = [
            zarr.open_array(str(path / f"s{number}"), mode="r+", write_empty_chunks=False)
            for number in range(1 + self.halved)
        ]

    def write(self, number: int, start: np.ndarray, values: np.ndarray) -> None:
        """Put a block in its place."""
        for array, factor in zip(self.levels, ((1, 1, 1), *self.factors), strict=False):
            values = ngff.block_mean(values, factor) if max(factor) > 1 else values
            first = start // factor
            array[tuple(map(slice, first, first + values.shape))] = values
        with self.journal.open("ab", buffering=0) as file:
            file.write(b"%d\n" % number)

    def finish(self) -> None:
        """Make it an image, when all blocks are written."""
        for part in self.path.rglob(
            "*.partial"
        ):  # of a chunk that was being written when a call was killed
            part.unlink()
        ngff.finish_multiscale(
            self.path, self.grid, self.factors, ngff.block_mean, written=len(self.levels) - 1
        )
        self.journal.unlink()


def write_blocks(
    network: Network,
    plan: BlockPlan,
    how: Output,
    channels: Sequence[int],
    targets: Sequence[Target],
    left: Sequence[int],
    stopped: Callable[[], bool],
) -> int:
    """Compute blocks and write them while the next ones are computed; the number of blocks whose raw is 0 throughout."""
    forward = oriented(network.forward, how.orientations)
    bar = tqdm(
        total=math.prod(plan.blocks),
        initial=math.prod(plan.blocks) - len(left),
        unit="block",
        leave=False,
        disable=None,
    )
    blank, waiting = 0, deque()

    def finish(logits: torch.Tensor) -> torch.Tensor:
        picked = logits if len(channels) == len(logits) else logits[list(channels)]
        return encode.encode(picked, how.content, getattr(torch, how.dtype))

    def settle(jobs: list[Future]) -> None:
        for job in jobs:
            job.result()
        bar.update()

    with ThreadPoolExecutor(WRITERS) as pool, bar:
        for number, values, empty in compute_blocks(plan, left, forward, finish, network.device):
            start = plan.place(number)[0]
            waiting.append(
                [
                    pool.submit(t.write, number, start, block)
                    for t, block in zip(targets, values, strict=True)
                    if number not in t.done
                ]
            )
            blank += empty
            if len(waiting) > UNWRITTEN:
                settle(waiting.popleft())
            if stopped():
                break
        while waiting:
            settle(waiting.popleft())
    return blank


def announce(
    region: Region,
    network: Network,
    plan: BlockPlan,
    how: Output,
    classes: int,
    blocks: int,
    free: int,
) -> None:
    """Say what is about to be predicted."""
    shape, block = (" x ".join(map(str, voxels)) for voxels in (plan.grid.shape, plan.block))
    size = math.prod(plan.grid.shape) * classes * np.dtype(how.dtype).itemsize
    run.say(
        f"{region}: {shape} voxels of {' x '.join(f'{s:g}' for s in plan.grid.scale)} nm, {classes} classes, {blocks} blocks of {block}"
        f"{'' if network.window.agree else ', overlapping windows'}; up to {size / 1e9:.2g} GB, of {free / 1e9:.2g} GB that are free"
    )


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """What goes wrong while a folder is written, as a sentence."""
    try:
        yield
    except (OSError, KeyError) as error:
        reason = (
            error.__cause__ if isinstance(error, KeyError) else error
        )  # zarr's, where a folder cannot be made
        if not isinstance(reason, OSError):
            raise
        raise FileError(
            f"{folder}: could not be written ({reason.strerror or reason}); mend that, and the same command goes on"
        ) from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. ValueError if another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = InterProcessLock(folder / ".lock")
    if not lock.acquire(blocking=False):
        lock.lockfile.close()
        raise UserError(
            f"{folder}: another process is predicting it; wait for that one, or end it first"
        )
    try:
        yield
    finally:
        (folder / ".lock").unlink(
            missing_ok=True
        )  # while it is held: who waits for it sees a finished folder
        lock.release()


def _attributes(path: Path) -> dict[str, Any]:
    """Attributes of a zarr group; none where there is none."""
    return json.loads((path / ".zattrs").read_text()) if (path / ".zattrs").is_file() else {}


def _differences(found: dict[str, Any], about: dict[str, Any]) -> str:
    texts = [
        (name, str(found.get(name)), str(about[name]))
        for name in DETERMINING
        if found.get(name) != about[name]
    ]
    return "; ".join(f"{name} was {was[:80]} and is {now[:80]}" for name, was, now in texts)


def _refuse_other_input(path: Path, settings: dict[str, str], config: TrainConfig) -> None:
    """What the network was trained on is what it must be given."""
    mine = config.record()
    changed = [
        f"{name} was {settings[name]} and is {mine[name]}"
        for name in ("raw_range", "model_kwargs")
        if settings[name] != mine[name]
    ]
    for name in ("input_array_info", "target_array_info"):
        if ast.literal_eval(settings[name])["scale"] != getattr(config, name)["scale"]:
            changed.append(f"{name} was {settings[name]} and is {mine[name]}")
    if changed:
        raise UserError(
            f"{path}: trained with other settings ({'; '.join(changed)}); set them back"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

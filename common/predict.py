"""Predict boxes of volumes with a trained network, from top to bottom."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from tqdm import tqdm

from common import checkpoint, inference, ngff, raw, regions, runtime, train
from common.config import REPOSITORY, TrainConfig, load_config
from common.inference import Plan, Window
from common.regions import Region
from common.sampling import Patch
from common.steps import Method

WRITERS = 4
"""Threads that compress and write."""

BLOCK = {"cuda": 256}
"""Largest edge of a block in voxels, by kind of device; 128 on others."""

MEMORY_FRACTION = 0.4
"""Of the device's free memory, that a forward pass may take."""


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
    config_path: str | Path, crops: str = "validate", *, volume: str | Path = "", roi: str = "", classes: Sequence[str] = (),
    weights: str = "", manifest_path: str = "", overwrite: bool = False, overrides: Sequence[str] = (), data: str | Path | None = None,
    **output: Any,
) -> list[Path]:  # fmt: skip
    """Predict crops, or a volume, with the best checkpoint of an experiment's run; gives the folders that were written.

    crops, volume, roi, manifest_path: see `common.regions.choose`; classes: some of the network's, all unless
    given; weights: "best", "latest" or a checkpoint file; output: the fields of `Output`. A folder is finished whole or
    stays marked as unfinished; the same call goes on with it. Raises FileNotFoundError, ValueError or OSError with a sentence.
    """
    config = load_config(config_path, overrides, data)
    how = check_output(Output(**output), config)
    boxes = regions.choose(config, crops, volume, roi, manifest_path, train.say)
    if unknown := [name for name in classes if name not in config.classes]:
        raise ValueError(f"{config.folder}: the network has no class {', '.join(unknown)}; it has {', '.join(config.classes)}")
    network = load_network(config, weights)
    train.say(f"{network.about['checkpoint']}: epoch {network.about['epoch']}, {network.about['metric']}; on {network.device}")
    return [predict_region(network, config, box, _wanted(config, box, classes), how, overwrite) for box in boxes]


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
        problems.append(f"{how.orientations} orientations; write 1, 8 (mirrored) or 16 (with y and x exchanged)")
    (_, sy, sx), (_, ty, tx) = config.input_array_info["scale"], config.target_array_info["scale"]
    if how.orientations == 16 and (sy != sx or ty != tx):
        problems.append("16 orientations exchange y and x, whose voxel sizes differ here; write 8")
    if how.scale and (len(how.scale) != 3 or min(how.scale) <= 0):
        problems.append(f"scale {how.scale}; write three voxel sizes in nm, z, y, x")
    if how.block < 0:
        problems.append(f"block {how.block}; write a number of voxels, such as 128")
    if problems:
        raise ValueError("\n".join(problems))
    return how


@dataclass(frozen=True)
class Network:
    """A trained network, ready to predict."""

    forward: inference.Forward
    window: Window
    shapes: inference.Shapes
    device: torch.device
    about: dict[str, Any]
    """What it is: checkpoint, its hash, epoch and metric, versions, commit."""


def load_network(config: TrainConfig, weights: str = "") -> Network:
    """The network with the weights of a checkpoint, every one. Raises FileNotFoundError or ValueError; never has other weights."""
    path = checkpoint_path(config, weights)
    saved = checkpoint.load(path, config.classes)
    _refuse_other_input(path, saved["settings"], config)
    device = runtime.pick_device(config.device)
    model = train.build_model(config, device)
    checkpoint.load_weights(model, saved, path)
    model.eval()
    method = Method(None, None, runtime.pick_precision(config.precision, device), config.channels_last, 0.0)
    exact = Method(None, None, runtime.pick_precision("fp32", device), config.channels_last, 0.0)
    shapes = inference.Shapes(model, exact.logits)
    window = inference.probe(shapes, Patch(**config.input_array_info), Patch(**config.target_array_info))
    with torch.inference_mode():
        window = inference.judged(window, lambda x: exact.logits(model, x), device)
    metric = f"{config.best_metric} {saved['best']:.4f} at epoch {saved['best_epoch']}" if math.isfinite(saved["best"]) else "not validated"
    about = {
        "experiment": config.folder.name, "model_name": config.model_name, "run_name": config.path("model_save_path").name,
        "checkpoint": str(path), "sha256": _sha256(path), "epoch": saved["epoch"], "metric": metric,
        "precision": method.precision.name, **runtime.provenance(REPOSITORY),
    }  # fmt: skip
    return Network(lambda x: method.logits(model, x), window, shapes, device, about)


def checkpoint_path(config: TrainConfig, weights: str) -> Path:
    """The file that `weights` names: the best of this run (the latest where none was validated), "best", "latest" or a path."""
    folder = config.path("model_save_path")
    if weights in ("", "best", "latest"):
        path = checkpoint.find(folder, weights or "best") or (None if weights else checkpoint.find(folder, "latest"))
        if path is None:
            raise FileNotFoundError(
                f"{folder}: no {weights or 'best'} checkpoint; train first, write the run's name (--set run_name=...), or --checkpoint FILE"
            )
        return path
    return (Path(weights) if Path(weights).is_absolute() or Path(weights).is_file() else config.folder / weights).absolute()


def predict_region(network: Network, config: TrainConfig, region: Region, classes: Sequence[str], how: Output, overwrite: bool = False) -> Path:
    """Predict one box into its folder, or go on where an earlier call stopped."""
    plan = make_plan(network, config, region, how)
    folder = region.folder(config.path("predictions_path"))
    about = _identity(network, plan, how)
    todo = _unfinished(folder, classes, about, overwrite)
    if not todo:
        train.say(f"{region}: already there, in {folder}")
        return folder
    arrays, journal = open_arrays(folder, todo, plan, how, {**network.about, **about})
    left = [number for number in range(math.prod(plan.blocks)) if number not in journal.done]
    size = math.prod(plan.grid.shape)
    train.say(
        f"{region}: {' x '.join(map(str, plan.grid.shape))} voxels of {_nm(plan.grid.scale)} nm, {len(todo)} classes, {len(left)} blocks of "
        f"{' x '.join(map(str, plan.block))}{'' if network.window.agree else ', overlapping windows'}; "
        f"up to {size * len(todo) * np.dtype(how.dtype).itemsize / 1e9:.2g} GB"
    )
    blank = write_blocks(network, plan, how, config.classes, arrays, journal, left)
    if blank:
        train.say(f"note: the raw of {region} is 0 throughout in {blank} of {len(left)} blocks; if that is not so, fetch its EM chunks")
    factors = ngff.pyramid(plan.grid)
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda name: ngff.finish_multiscale(folder / name, plan.grid, factors, ngff.block_mean), todo))
    journal.close()
    return folder


def make_plan(network: Network, config: TrainConfig, region: Region, how: Output) -> Plan:
    """Blocks as large as the device has memory for, up to the largest that pay."""
    volume = raw.open_raw(region.raw, network.window.input.scale, config.raw_range)
    edge = how.block or BLOCK.get(network.device.type, 128)
    while True:
        plan = inference.plan(volume, network.window, region.lower, region.upper, how.scale or None, edge)
        smaller = not how.block and edge > 32
        if not smaller or network.shapes.gigabytes(plan.window.input.shape) < MEMORY_FRACTION * runtime.free_memory_gb(network.device):
            return plan
        edge = edge * 3 // 4


class Journal:
    """Which blocks are written, one line each, so that an interrupted call can go on. Held in a file beside the volumes."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().split("\n")[:-1] if path.is_file() else []  # a last line without its end was cut off
        self.done = {int(line) for line in lines}
        self.file = path.open("a")
        if lines or path.stat().st_size:
            self.file.write("\n" if not path.read_text().endswith("\n") else "")

    def add(self, number: int) -> None:
        """Note a block, after its voxels are written."""
        self.file.write(f"{number}\n")
        self.file.flush()

    def close(self) -> None:
        """All is written."""
        self.file.close()
        self.path.unlink()


def open_arrays(folder: Path, classes: Sequence[str], plan: Plan, how: Output, about: dict[str, Any]) -> tuple[dict[str, zarr.Array], Journal]:
    """The arrays to write, and the journal of what is written already."""
    zarr.open_group(str(folder.parent), mode="a").require_group(folder.name)
    key = hashlib.sha256(json.dumps([about["key"], *classes]).encode()).hexdigest()[:16]
    path = folder / f".blocks-{key}"
    begun = path.is_file() and all((folder / name / "s0").is_dir() for name in classes)
    if not begun:
        path.unlink(missing_ok=True)
        about = {**about, "made": datetime.now(UTC).isoformat(timespec="seconds")}
        for name in classes:
            ngff.start_multiscale(folder / name, plan.grid, how.dtype, plan.chunks, {"class": name, "prediction": about})
    return {name: zarr.open_array(str(folder / name / "s0"), mode="r+", write_empty_chunks=False) for name in classes}, Journal(path)


def write_blocks(
    network: Network, plan: Plan, how: Output, channels: Sequence[str], arrays: dict[str, zarr.Array], journal: Journal, left: Sequence[int]
) -> int:  # fmt: skip
    """Compute blocks and write them while the next ones are computed; the number of blocks whose raw is 0 throughout."""
    picked = [channels.index(name) for name in arrays]
    forward = inference.oriented(network.forward, how.orientations)
    finish = _finish(picked if len(picked) < len(channels) else None, how)
    blank, waiting = 0, deque()
    with ThreadPoolExecutor(WRITERS) as pool, _bar(plan, left) as bar:
        for number, values, empty in inference.run(plan, left, forward, finish, network.device):
            start, stop = plan.place(number)
            where = tuple(map(slice, start.tolist(), stop.tolist()))
            jobs = [pool.submit(array.__setitem__, where, block) for array, block in zip(arrays.values(), values, strict=True)]
            waiting.append((number, jobs, int(np.prod(stop - start))))
            blank += empty
            if len(waiting) > 2:
                _settle(*waiting.popleft(), journal, bar)
        while waiting:
            _settle(*waiting.popleft(), journal, bar)
    return blank


def _settle(number: int, jobs: list[Future], voxels: int, journal: Journal, bar: tqdm) -> None:
    try:
        for job in jobs:
            job.result()
    except OSError as error:
        raise OSError(
            f"{journal.path.parent}: could not be written ({error.strerror or error}); free space and run the same command again, it goes on"
        ) from error
    journal.add(number)
    bar.update(voxels)


def _finish(picked: list[int] | None, how: Output) -> Callable[[torch.Tensor], torch.Tensor]:
    """What is done to the logits of a block before they leave the device."""
    dtype = getattr(torch, how.dtype)
    return lambda logits: inference.encode(logits if picked is None else logits[picked], how.content, dtype)


@contextlib.contextmanager
def _bar(plan: Plan, left: Sequence[int]) -> Iterator[tqdm]:
    total = sum(int(np.prod(np.subtract(*plan.place(number)[::-1]))) for number in left)
    with tqdm(total=total, unit="voxel", unit_scale=True, leave=False, disable=None) as bar:
        yield bar


def _wanted(config: TrainConfig, region: Region, classes: Sequence[str]) -> list[str]:
    """The classes to predict in a box: those asked for; of a test crop those that are scored there."""
    asked = set(classes or config.classes)
    if region.truth is None and region.classes:
        asked &= set(region.classes)
    if not asked:
        raise ValueError(f"{region}: the network has none of the classes that are scored there; leave this crop out")
    return [name for name in config.classes if name in asked]


def _identity(network: Network, plan: Plan, how: Output) -> dict[str, Any]:
    """What determines the voxels of a prediction, and a key made of it."""
    about = {
        "content": how.content, "dtype": how.dtype, "orientations": how.orientations, "block": list(plan.block),
        "raw": str(plan.raw.level.path), "raw_range": list(plan.raw.raw_range),
    }  # fmt: skip
    place = [plan.grid.origin.tolist(), plan.grid.scale.tolist(), list(plan.grid.shape)]
    key = json.dumps([about, place, network.about["sha256"], network.about["precision"]], sort_keys=True)
    return {**about, "key": hashlib.sha256(key.encode()).hexdigest()[:24]}


def _unfinished(folder: Path, classes: Sequence[str], about: dict[str, Any], overwrite: bool) -> list[str]:
    """The classes that are still to be predicted. ValueError if the folder holds another prediction of one."""
    todo = []
    for name in classes:
        attributes = zarr.open_group(str(folder / name), mode="r").attrs.asdict() if (folder / name / ".zattrs").is_file() else {}
        found = attributes.get("prediction", {})
        if found and found.get("key") != about["key"] and not overwrite:
            raise ValueError(
                f"{folder / name}: holds the prediction of {found.get('checkpoint')} (epoch {found.get('epoch')}, {found.get('dtype')} "
                f"{found.get('content')}), made with other weights or settings; write --overwrite, or another predictions_path"
            )
        if overwrite or found.get("key") != about["key"] or "multiscales" not in attributes:
            todo.append(name)
    return todo


def _refuse_other_input(path: Path, settings: dict[str, str], config: TrainConfig) -> None:
    """What the network was trained on is what it must be given."""
    mine = config.record()
    changed = [f"{name} was {settings[name]} and is {mine[name]}" for name in ("raw_range", "model_kwargs") if settings[name] != mine[name]]
    for name in ("input_array_info", "target_array_info"):
        if ast.literal_eval(settings[name])["scale"] != getattr(config, name)["scale"]:
            changed.append(f"{name} was {settings[name]} and is {mine[name]}")
    if changed:
        raise ValueError(f"{path}: trained with other settings ({'; '.join(changed)}); set them back")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _nm(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)

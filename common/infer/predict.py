"""Predict boxes of volumes with a trained network, from top to bottom.

choose boxes -> load the network -> for each box: plan its blocks, see what is left, compute and
write, finish
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from common import runtime, stopping
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data import normalize, regions, series
from common.data.raw import Raw, open_raw
from common.data.records import PredictionRecord
from common.data.regions import Region
from common.errors import UserError
from common.files import is_held
from common.infer import encode, ledger, room, sharing
from common.infer.blocks import BlockValues, Member, compute_blocks, oriented
from common.infer.ensemble import load_network, note_training_crops
from common.infer.network import Network
from common.infer.plan import BlockPlan, in_same_blocks, plan_blocks
from common.infer.room import Need
from common.infer.writer import ClassVolume, open_class, writing
from common.talk import count, nm, note, progress, say, voxels

# Blosc lets go of the interpreter's lock, so threads compress side by side
WRITERS = min(16, max(2, os.cpu_count() or 1))
"""Threads that compress and write."""

# each waits in memory with all of its classes: more would only move the disk's backlog there
UNWRITTEN = 2
"""Blocks that may wait to be written while others are computed."""

LARGEST_BLOCK = {"cuda": 256}
"""Edge in voxels that blocks have at most, by kind of device; 128 on others."""

# below, a block is mostly context that is computed and dropped
SMALLEST_BLOCK = 32
"""Edge in voxels below which blocks are not made smaller to save memory."""

# half: `gigabytes` is an estimate, and other processes want some too
MEMORY_FRACTION = 0.5
"""Of the device's free memory, that a block may take."""


@dataclass(frozen=True)
class Output:
    """How predictions are stored."""

    content: str = "probability"
    """"probability" or "logits"."""
    dtype: str = "uint8"
    """"uint8" (probabilities in 255ths), "float16" or "float32"."""
    scale: tuple[float, ...] = ()
    """Voxel size in nm, z, y, x; unless given the network's, or that of a test crop if coarser."""
    orientations: int = 1
    """Mirrored and transposed copies whose logits are averaged: 1, 8 or 16."""
    block: int = 0
    """Largest edge of a block in voxels; chosen for the device unless given."""


def never() -> bool:
    """Whether to stop, where nobody asks for it."""
    return False


def predict(  # noqa: PLR0913  # the options of the command
    config_path: str | Path,
    crops: str = "validate",
    *,
    volume: str | Path = "",
    roi: str = "",
    classes: Sequence[str] = (),
    weights: str | Sequence[str] = "",
    manifest_path: str = "",
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    **output: Any,
) -> list[Path]:
    """Predict crops, or a volume, with a checkpoint of an experiment's run; gives their folders.

    A folder has a multiscale group for each class, whole or marked as unfinished, with which the
    same call goes on. Raises UserError, FileNotFoundError, and KeyboardInterrupt on Ctrl-C; NotYet
    where other processes work on some of the boxes, after all others.

    Args:
        config_path: the experiment; with `overrides` and `data` as of `common.config.load`.
        crops: which; or `volume` with `roi`; with `manifest_path` as of `common.data.regions`.
        volume: path of a volume of one's own.
        roi: box of it.
        classes: some of the network's, all unless given.
        weights: "best", "latest" or a checkpoint file; the best unless given. Several are an
            ensemble, see `common.infer.ensemble.load_network`.
        manifest_path: of test crops.
        overwrite: replace what is there, also of other weights or settings; what was begun alike is
            gone on with.
        overrides: "name=value" for settings.
        data: data root.
        output: fields of `Output`.
    """
    config = load_config(config_path, overrides, data)
    stored_as = check_output(Output(**output), config)
    boxes = regions.choose(
        config, crops, volume=volume, roi=roi, manifest_path=manifest_path, say=say
    )
    chosen = choose_classes(config, boxes, classes)
    network = load_network(config, weights)
    return _predict_regions(network, config, chosen, stored_as, overwrite=overwrite)


def _predict_regions(
    network: Network,
    config: TrainConfig,
    chosen: Sequence[tuple[Region, list[str]]],
    output: Output,
    *,
    overwrite: bool,
) -> list[Path]:
    _announce_network(network)
    note_training_crops(network, [region for region, _ in chosen])
    # of all boxes before anything is written, so that what cannot be done is said at once
    needs = []
    for region, names in chosen:
        need = _need(network, config, region, names, output=output, overwrite=overwrite)
        needs.append(need)
    room.announce(config.path("predictions_path"), needs)
    with stopping.interruptible() as stopped:
        run = partial(predict_region, output=output, overwrite=overwrite, stopped=stopped)
        return sharing.each(lambda box: run(network, config, *box), chosen)


def _need(
    network: Network,
    config: TrainConfig,
    region: Region,
    classes: Sequence[str],
    *,
    output: Output,
    overwrite: bool,
) -> Need:
    """What is left to write of a box. Raises UserError where something is in its place."""
    folder = region.folder(config.path("predictions_path"))
    raw = network.raw_of(region)
    stored_as = at_asked_scale(output, region, config)
    # how large blocks may be changes nothing in what is written
    plan = _plan_of_edge(network, raw, region, stored_as, edge=SMALLEST_BLOCK)
    plan = replace(plan, scaling=network.scaling_of(region, raw))
    wanted = describe(network, region, plan, output)
    try:
        left = ledger.unfinished(folder, classes, wanted, overwrite).classes
    except UserError:
        if is_held(folder / sharing.LOCK):
            return Need(0, 0, 0)  # another process may be in the middle of beginning a class
        raise
    new = [name for name in left if not (folder / name).is_dir()]
    of_class = room.bytes_of(plan.grid, output.dtype)
    return Need(
        values=math.prod(plan.grid.shape) * len(left),
        bytes=of_class * len(left),
        new_bytes=of_class * len(new),
    )


def at_asked_scale(output: Output, region: Region, config: TrainConfig) -> Output:
    """How a box is stored: a test crop in no finer voxels than any of its classes is scored at.

    Crops of 16 and 32 nm would take most of the disk at a network's 8 nm. It is one size for all
    classes that the network has, whichever are asked for, so that later ones stand beside them.
    """
    scales = [region.asked_scales[name] for name in config.classes if name in region.asked_scales]
    if output.scale or not scales:
        return output
    network_scale = np.array(config.target_array_info["scale"], float)
    asked = np.min(scales, axis=0)
    if (asked <= network_scale).all():
        return output
    return replace(output, scale=tuple(np.maximum(asked, network_scale).tolist()))


def _announce_network(network: Network) -> None:
    if network.members:
        say(f"the mean probability of {len(network.members)} networks, on {network.device}:")
    for each in network.each:
        about = each.record
        trained = "weights alone" if about.epoch is None else f"epoch {about.epoch}, {about.metric}"
        say(f"{about.checkpoint}: {trained}; on {network.device}")


def check_output(output: Output, config: TrainConfig) -> Output:
    """The same. Raises UserError with everything that is wrong with it."""
    problems = []
    if output.content not in ("probability", "logits"):
        problems.append(f"content '{output.content}'; write probability or logits")
    if output.dtype not in ("uint8", "float16", "float32"):
        problems.append(f"dtype '{output.dtype}'; write uint8, float16 or float32")
    if output.content == "logits" and output.dtype == "uint8":
        problems.append("logits do not fit into uint8; write --dtype float16 or float32")
    if output.orientations not in (1, 8, 16):
        problems.append(
            f"{output.orientations} orientations; write 1, 8 (mirrored) or 16 (with y and x "
            "exchanged)"
        )
    if output.orientations == 16 and not _is_square_in_plane(config):
        problems.append("16 orientations exchange y and x, whose voxel sizes differ here; write 8")
    if output.scale and (len(output.scale) != 3 or min(output.scale) <= 0):
        problems.append(f"scale {output.scale}; write three voxel sizes in nm, z, y, x")
    if output.block < 0:
        problems.append(f"block {output.block}; write a number of voxels, such as 128")
    if problems:
        raise UserError("\n".join(problems))
    return output


def _is_square_in_plane(config: TrainConfig) -> bool:
    """Whether voxels of raw and target are as long along y as along x."""
    for info in (config.input_array_info, config.target_array_info):
        _, y, x = info["scale"]
        if y != x:
            return False
    return True


def choose_classes(
    config: TrainConfig, boxes: Sequence[Region], classes: Sequence[str]
) -> list[tuple[Region, list[str]]]:
    """Each box with the classes to predict there.

    These are the classes asked for, and of a test crop those of them that are scored. Boxes where
    none is left are left out. Raises UserError with everything that is wrong with the raw of the
    boxes.
    """
    asked = classes or config.classes
    unknown = [name for name in asked if name not in config.classes]
    if unknown:
        raise UserError(
            f"{config.folder}: the network has no class {', '.join(unknown)}; it has "
            f"{', '.join(config.classes)}"
        )
    chosen = []
    problems = []
    for region in boxes:
        problem = _problem_of_raw(region, config)
        if problem:
            problems.append(problem)
            continue
        # in the network's order, whatever order they were asked for in
        names = [name for name in config.classes if name in asked]
        if region.truth is None and region.classes:
            names = [name for name in names if name in region.classes]
        if names:
            chosen.append((region, names))
        else:
            note(f"{region} is left out, none of {', '.join(asked)} is scored there")
    if not chosen and not problems:
        problems.append(
            f"nothing to predict: none of {', '.join(asked)} is scored in these crops; name other "
            "classes or crops"
        )
    if problems:
        # each once: crops of one volume share what is wrong with it
        raise UserError("\n".join(dict.fromkeys(problems)))
    return chosen


def _problem_of_raw(region: Region, config: TrainConfig) -> str:
    """Why a box cannot be predicted; "" where it can."""
    try:
        raw = open_raw(region.raw, config.input_array_info["scale"], config.raw_range)
    except (UserError, FileNotFoundError) as error:
        return str(error)
    lower, upper = raw.level.box()
    is_outside = (region.lower >= upper).any() or (region.upper <= lower).any()
    if not is_outside:
        return _problem_of_values(raw, region, config)
    return (
        f"{region}: {regions.box_text(region.lower, region.upper)} nm, outside of its raw "
        f"{region.raw}, which is {regions.box_text(lower, upper)} nm; check translation and "
        "scale in their .zattrs"
    )


def _problem_of_values(raw: Raw, region: Region, config: TrainConfig) -> str:
    """Why the middle of a box cannot be read; "" where it can. Notes little contrast."""
    try:
        if config.raw_normalization not in normalize.MEASURED:
            raw.note_contrast(region.lower, region.upper)
    except UserError as error:
        return str(error)
    return ""


def predict_region(
    network: Network,
    config: TrainConfig,
    region: Region,
    classes: Sequence[str],
    *,
    output: Output,
    overwrite: bool = False,
    stopped: Callable[[], bool] = never,
) -> Path:
    """Predict one box into its folder, or go on where an earlier call stopped.

    Args:
        network: trained.
        config: its experiment.
        region: the box.
        classes: some of the network's.
        output: how it is stored.
        overwrite: replace what is there; else what is whole is left, and what was predicted by
            other weights or settings is a UserError.
        stopped: asked after each block whether to end there, with a KeyboardInterrupt.
    """
    folder = region.folder(config.path("predictions_path"))
    output = at_asked_scale(output, region, config)
    plan = make_plan(network, config, region, output)
    with writing(folder), sharing.sole_worker(folder, "predicting"):
        wanted = describe(network, region, plan, output)
        left = ledger.unfinished(folder, classes, wanted, overwrite)
        if not left.classes:
            say(f"{region}: already there, in {folder}")
            return folder
        # as it was begun, whatever memory is free now: its chunks are of that size
        if left.largest_block and not output.block:
            plan = make_plan(network, config, region, output, largest=left.largest_block)
        work = begin(network, region, plan, output, folder=folder, classes=left.classes)
        _announce(region, work)
        _note_blank(region, work, compute_and_write(work, stopped))
        finish(work.volumes, stopped)
    if stopped():
        say(f"interrupted; the same command goes on with {folder}")
        raise KeyboardInterrupt
    return folder


def make_plan(
    network: Network, config: TrainConfig, region: Region, output: Output, *, largest: int = 0
) -> BlockPlan:
    """The blocks of a box.

    largest: edge of blocks in voxels; unless it or `output.block` is given, as large as there is
    memory for, up to the largest that pay.
    """
    raw = network.raw_of(region)
    given = largest or output.block
    edge = given or LARGEST_BLOCK.get(network.device.type, 128)
    plan = _plan_of_edge(network, raw, region, output, edge=edge)
    if not given:
        free = MEMORY_FRACTION * runtime.free_memory_gb(network.device)
        classes = len(config.classes)
        while edge > SMALLEST_BLOCK and gigabytes(network, region, plan, classes) > free:
            edge = edge * 3 // 4
            plan = _plan_of_edge(network, raw, region, output, edge=edge)
    if output.orientations == 16:
        for each, its_plan in zip(network.each, plans_of(network, region, plan), strict=True):
            _refuse_exchange(each, region, its_plan.window.input.shape)
    return replace(plan, scaling=network.scaling_of(region, raw))


def plans_of(network: Network, region: Region, plan: BlockPlan) -> list[BlockPlan]:
    """The blocks of a box for each network of an ensemble, or for the only one.

    plan: as of `make_plan`.
    """
    if not network.members:
        return [plan]
    plans = []
    for member in network.members:
        raw = member.raw_of(region)
        its_plan = in_same_blocks(plan, raw, member.window)
        plans.append(replace(its_plan, scaling=member.scaling_of(region, raw)))
    return plans


def _plan_of_edge(
    network: Network, raw: Raw, region: Region, output: Output, *, edge: int
) -> BlockPlan:
    return plan_blocks(
        raw, network.window, region.lower, region.upper, scale=output.scale, largest=edge
    )


def _refuse_exchange(network: Network, region: Region, shape: tuple[int, int, int]) -> None:
    """Raises UserError where the network does not take a window with y and x exchanged."""
    given = network.shapes(shape)
    if given is None:
        return  # it cannot be asked
    z, y, x = shape
    exchanged = network.shapes((z, x, y))
    if exchanged is None or exchanged[1:] != (given[2], given[1]):
        raise UserError(
            f"{region}: 16 orientations exchange y and x, and the network does not take "
            f"{(z, x, y)} voxels; write 8"
        )


def gigabytes(network: Network, region: Region, plan: BlockPlan, classes: int) -> float:
    """Roughly what a block takes at its peak: a forward pass, and its logits in float32, twice.

    Of an ensemble the largest pass, and three times more logits: two sums, and what is added.
    """
    logits = 4 * classes * math.prod(plan.block_shape) / 1e9
    passes = []
    for each, its_plan in zip(network.each, plans_of(network, region, plan), strict=True):
        passes.append(each.shapes.forward_bytes(its_plan.window.input.shape) / 1e9)
    return max(passes) + (5 if network.members else 2) * logits


def describe(network: Network, region: Region, plan: BlockPlan, output: Output) -> PredictionRecord:
    """What a prediction will say of how it was made."""
    record = replace(
        network.record,
        content=output.content,
        dtype=output.dtype,
        orientations=output.orientations,
        raw=str(plan.raw.level.path),
        raw_range=list(plan.raw.raw_range),
        raw_scaling=_scaling_record(plans_of(network, region, plan)),
        voxel_size=plan.grid.scale.tolist(),
        translation=plan.grid.origin.tolist(),
        shape=list(plan.grid.shape),
    )
    return record.with_key()


def _scaling_record(plans: Sequence[BlockPlan]) -> dict[str, Any] | None:
    """How raw is normalised for each network, as a prediction has it on record."""
    records = [plan.scaling.record() if plan.scaling else None for plan in plans]
    if not any(records):
        return None
    return records[0] if len(records) == 1 else {"members": records}


@dataclass(frozen=True)
class Work:
    """What is left to do of one box."""

    network: Network
    plan: BlockPlan
    plans: list[BlockPlan]
    """Of each network, with the blocks of `plan`."""
    output: Output
    channels: list[int]
    """Of the network, those to be stored."""
    volumes: list[ClassVolume]
    """Where they are stored."""
    left: list[int]
    """Numbers of the blocks that are not on disk for every class."""


def begin(
    network: Network,
    region: Region,
    plan: BlockPlan,
    output: Output,
    *,
    folder: Path,
    classes: Sequence[str],
) -> Work:
    """Open the classes of a box for writing, and see which blocks an earlier call left."""
    record = replace(
        describe(network, region, plan, output),
        largest_block=plan.largest,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    zarr.open_group(str(folder.parent), mode="a").require_group(folder.name)
    volumes = [open_class(folder / name, plan, name, record) for name in classes]
    left = []
    for number in plan.blocks:
        if any(number not in volume.done for volume in volumes):
            left.append(number)
    return Work(
        network,
        plan,
        plans=plans_of(network, region, plan),
        output=output,
        channels=[network.config.classes.index(name) for name in classes],
        volumes=volumes,
        left=left,
    )


def _announce(region: Region, work: Work) -> None:
    """Say what is about to be predicted."""
    plan = work.plan
    overlapping = "" if plan.window.agree else ", overlapping windows"
    say(
        f"{region}: {voxels(plan.grid.shape)} voxels of {nm(plan.grid.scale.tolist())} nm, "
        f"{count(len(work.volumes), 'class', 'classes')}, "
        f"{count(len(work.left), 'block')} of {voxels(plan.block_shape)}"
        f"{overlapping}"
    )


def _note_blank(region: Region, work: Work, blank: int) -> None:
    """Raw of 0 is what a chunk has that was not downloaded."""
    if blank:
        note(
            f"the raw of {region} is 0 throughout in {blank} of {len(work.left)} blocks; if that "
            "is not so, fetch its EM chunks, and predict it again with --overwrite"
        )


def compute_and_write(work: Work, stopped: Callable[[], bool] = never) -> int:
    """Compute the blocks that are left, and write them while the next ones are computed.

    Returns the number of blocks whose raw is 0 throughout. Raises UserError where memory does not
    do, and for outputs that are NaN.
    """
    blank = 0
    waiting: deque[list[Future]] = deque()
    total = len(work.plan.blocks)
    bar = progress(total, unit="block", done=total - len(work.left))
    with ThreadPoolExecutor(WRITERS) as pool, bar, _within_memory(work):
        for block in _computed(work):
            waiting.append(_begin_writing(pool, work, block))
            blank += block.blank
            if len(waiting) > UNWRITTEN:
                _wait(waiting.popleft())
                bar.update()
            if stopped():
                break
        for jobs in waiting:
            _wait(jobs)
            bar.update()
    return blank


def _computed(work: Work) -> Iterator[BlockValues]:
    """The blocks that are left, as they are stored."""
    members = []
    for network, plan in zip(work.network.each, work.plans, strict=True):
        forward = oriented(network.forward, work.output.orientations)
        members.append(Member(plan, forward, look=partial(_refuse_nan, network)))
    return compute_blocks(
        members, work.left, to_stored=partial(_stored, work), device=work.network.device
    )


def _stored(work: Work, logits: torch.Tensor) -> torch.Tensor:
    """What is stored of the logits (classes, z, y, x) of all classes: some of them, encoded."""
    # all of them are not indexed, which would copy a block
    picked = logits if len(work.channels) == len(logits) else logits[work.channels]
    return encode.encode(picked, work.output.content, getattr(torch, work.output.dtype))


def _refuse_nan(network: Network, logits: torch.Tensor) -> None:
    """Raises UserError for NaN, which uint8 would hold as 0."""
    # a sum is NaN if one of them is, and takes a tenth of the time of looking for it
    if not logits.sum(dtype=torch.float32).isnan() or not logits.isnan().any():
        return
    about = network.record
    raise UserError(
        f"{about.checkpoint}: the network gives NaN, in {about.precision}; predict with --set "
        "precision=fp32, and if that does not help, its weights are broken: take another checkpoint"
    )


def _begin_writing(pool: ThreadPoolExecutor, work: Work, block: BlockValues) -> list[Future]:
    """Have the classes of a block written that are not on disk."""
    start, _ = work.plan.output_box(block.number)
    jobs = []
    for volume, values in zip(work.volumes, block.values, strict=True):
        if block.number not in volume.done:
            jobs.append(pool.submit(volume.write, block.number, start, values))
    return jobs


def _wait(jobs: Sequence[Future]) -> None:
    """Until all are done. Raises what one of them raised."""
    for job in jobs:
        job.result()


@contextlib.contextmanager
def _within_memory(work: Work) -> Iterator[None]:
    """A device that has too little memory, as a sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        edge = work.plan.largest
        raise UserError(
            f"{work.network.device}: not enough memory for blocks of {edge} voxels; write --block "
            f"{edge // 2}"
        ) from error


def finish(volumes: Sequence[ClassVolume], stopped: Callable[[], bool] = never) -> None:
    """Make classes images whose blocks are all written, until `stopped()` is true."""
    with ThreadPoolExecutor(WRITERS) as pool:
        jobs = [pool.submit(_finish_unless, stopped, volume) for volume in volumes]
    _wait(jobs)
    series.add([volume.path for volume in volumes])


def _finish_unless(stopped: Callable[[], bool], volume: ClassVolume) -> None:
    if not stopped():
        volume.finish()

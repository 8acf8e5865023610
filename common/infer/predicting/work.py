"""One box of a prediction: its plan, what is left of it, its blocks computed and written."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from common import runtime
from common.config.heads import offset_nm, range_nm
from common.config.settings import TrainConfig
from common.data.splits.regions import Region
from common.data.volumes import series
from common.data.volumes.raw import Raw
from common.data.volumes.records import PredictionRecord
from common.errors import FileError, UserError
from common.files import key_of
from common.infer.machines.crew import Tally, never
from common.infer.machines.status import Progress
from common.infer.networks import planes
from common.infer.networks.network import Network
from common.infer.predicting import encode
from common.infer.predicting.blocks import (
    Member,
    Verdict,
    unseen,
    windows_at_once,
)
from common.infer.predicting.conveyor import BlockValues, compute_blocks
from common.infer.predicting.orientations import check_windows, oriented_network
from common.infer.predicting.plan import BlockPlan, in_same_blocks, plan_blocks
from common.infer.predicting.writer import ClassVolume, open_class
from common.provenance import now, usable_cores
from common.talk import count, progress, voxels

# Blosc lets go of the interpreter's lock, so threads compress side by side
WRITERS = min(16, max(4, usable_cores()))
"""Threads that compress and write; more than two cores, as some of them wait for the disk."""

# each waits in memory with all of its classes: more would only move the disk's backlog there. On a
# CPU none: those who write would take the cores from the network in the middle of its layers, whose
# threads wait for each other
UNWRITTEN = {"cuda": 2}
"""Blocks that may wait to be written while others are computed, by kind of device; 0 on others."""

LARGEST_BLOCK = {"cuda": 256}
"""Edge in voxels that blocks have at most, by kind of device; 128 on others."""

# below, a block is mostly context that is computed and dropped
SMALLEST_BLOCK = 32
"""Edge in voxels below which blocks are not made smaller to save memory."""

TOO_LARGE = 4
"""Times the free memory: what `gigabytes` estimates above it surely does not fit."""

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
    planes: str = planes.OWN
    """Planes that a 2-D network predicts, whose logits are averaged; one of `planes.CHOICES`."""
    block: int = 0
    """Largest edge of a block in voxels; chosen for the device unless given."""
    margin: float = 0.0
    """Nm around a box that are predicted, too, as far as its raw goes."""


def make_plan(
    network: Network,
    config: TrainConfig,
    region: Region,
    output: Output,
    *,
    largest: int = 0,
    sharers: int = 1,
) -> BlockPlan:
    """The blocks of a box.

    Args:
        network: trained.
        config: its experiment.
        region: the box.
        output: how it is stored.
        largest: edge of blocks in voxels; unless it or `output.block` is given, as large as there
            is memory for, up to the largest that pay.
        sharers: processes that share that memory.
    """
    raw = network.raw_of(region)
    given = largest or output.block
    usual = LARGEST_BLOCK.get(network.device.type, 128)
    edge = given or usual
    plan = plan_of_edge(network, raw, region, output, edge=edge)
    if not given:
        free = MEMORY_FRACTION * runtime.free_memory_gb(network.device) / sharers
        classes = len(config.channels)
        while edge > SMALLEST_BLOCK and gigabytes(network, region, plan, classes) > free:
            edge = edge * 3 // 4
            plan = plan_of_edge(network, raw, region, output, edge=edge)
    elif edge > usual:
        _refuse_too_large(network, region, plan, edge)
    if output.orientations == 16:
        for each, its_plan in _passes(network, region, plan):
            _refuse_exchange(each, region, its_plan.window.input.shape)
    if output.orientations > 1:
        for each in network.every_pass:
            check_windows(each)
    return with_own(plan, network, region)


def _refuse_too_large(network: Network, region: Region, plan: BlockPlan, block: int) -> None:
    """Raises UserError for blocks that take far more memory than the device has free."""
    free = runtime.free_memory_gb(network.device)
    needed = gigabytes(network, region, plan, len(network.config.channels))
    # an estimate: what may still fit is tried
    if needed > TOO_LARGE * free:
        raise UserError(
            f"--block {block}: a block of {voxels(plan.block_shape)} voxels takes about "
            f"{needed:.3g} GB, and {network.device} has {free:.3g} GB free; write a smaller one, "
            "or leave it out"
        )


def with_own(plan: BlockPlan, network: Network, region: Region) -> BlockPlan:
    """The plan with what one network needs of a box: how raw is normalised, further channels.

    Raises UserError or FileNotFoundError for channels that are not there, or end too early.
    """
    scaling = network.scaling_of(region, plan.raw)
    plan = replace(plan, scaling=scaling, channels=network.channels_of(region))
    plan.check_channels(str(region))
    return plan


def plans_of(network: Network, region: Region, plan: BlockPlan) -> list[BlockPlan]:
    """The blocks of a box for each network of an ensemble, or for the only one.

    Of a network over several planes for each of these, one after the other.

    plan: as of `make_plan`.
    """
    every = network.every_pass
    if every[0] is network and len(every) == 1:
        return [plan]
    plans = []
    for each in every:
        raw = each.raw_of(region)
        its_plan = in_same_blocks(plan, raw, each.window)
        plans.append(with_own(its_plan, each, region))
    return plans


def _passes(
    network: Network, region: Region, plan: BlockPlan
) -> Iterator[tuple[Network, BlockPlan]]:
    """Each network over each of its planes, with the blocks of a box."""
    yield from zip(network.every_pass, plans_of(network, region, plan), strict=True)


def plan_of_edge(
    network: Network, raw: Raw, region: Region, output: Output, *, edge: int
) -> BlockPlan:
    """The blocks of a box, of at most so many voxels along an edge."""
    lower, upper = _with_margin(region, raw, output.margin)
    return plan_blocks(raw, network.window, lower, upper, scale=output.scale, largest=edge)


def _with_margin(region: Region, raw: Raw, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a box with so many nm around it, as far as its raw goes."""
    lower, upper = raw.grid.box()
    return (
        np.minimum(region.lower, np.maximum(region.lower - margin, lower)),
        np.maximum(region.upper, np.minimum(region.upper + margin, upper)),
    )


def _refuse_exchange(network: Network, region: Region, shape: tuple[int, int, int]) -> None:
    """Raises UserError where the network does not take a window with y and x exchanged."""
    across = network.forward_pass.sections or network.flat
    if across:
        raise UserError(
            f"{region}: 16 orientations exchange y and x, and planes across {'zyx'[across]} would "
            "be others then; write 8"
        )
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

    Of an ensemble the largest pass, and three times more logits: two sums, and what is added. Where
    the network's voxels are smaller than those that are written, its logits are there, too.
    """
    logits = 4 * classes * math.prod(plan.block_shape) / 1e9
    passes = []
    for each, its_plan in _passes(network, region, plan):
        window = its_plan.window.of_slices(its_plan.window.at_once)
        needed = each.shapes.forward_bytes(window.input.shape) / 1e9
        needed *= windows_at_once(window, network.device)
        if its_plan.resampled:
            ratio = its_plan.grid.scale / window.output.scale
            needed += logits * float(np.prod(np.maximum(ratio, 1)))
        passes.append(needed)
    return max(passes) + (5 if network.members else 2) * logits


def describe(network: Network, region: Region, plan: BlockPlan, output: Output) -> PredictionRecord:
    """What a prediction will say of how it was made."""
    plans = plans_of(network, region, plan)
    record = replace(
        network.record,
        content=output.content,
        dtype=output.dtype,
        orientations=output.orientations,
        planes=3 if any(each.planes for each in network.each) else None,
        raw=str(plan.raw.level.path),
        raw_range=list(plan.raw.raw_range),
        raw_sections=plan.raw.sections or None,
        raw_scaling=_scaling_record(plans),
        input_channels=_channel_record(plans),
        voxel_size=plan.grid.scale.tolist(),
        translation=plan.grid.origin.tolist(),
        shape=list(plan.grid.shape),
    )
    return record.with_key()


def with_raw(record: PredictionRecord, plan: BlockPlan) -> PredictionRecord:
    """What a prediction will say, also of the raw that it is made of, of which a little is read.

    Of what the network gets beside raw, too.
    """
    box = plan.grid.box()
    volumes = [plan.raw, *(channel.raw for channel in plan.channels)]
    samples = [raw.sample_key(*box) for raw in volumes]
    return replace(record, raw_sample=key_of(samples))


def _scaling_record(plans: Sequence[BlockPlan]) -> dict[str, Any] | None:
    """How raw is normalised for each network, as a prediction has it on record."""
    records = [plan.scaling.record() if plan.scaling else None for plan in plans]
    if not any(records):
        return None
    return records[0] if len(records) == 1 else {"members": records}


def _channel_record(plans: Sequence[BlockPlan]) -> dict[str, Any] | None:
    """What each network got beside raw, as a prediction has it on record; None without any."""
    records = []
    for plan in plans:
        records.append({channel.name: channel.record() for channel in plan.channels})
    if not any(records):
        return None
    return records[0] if len(records) == 1 else {"members": records}


@dataclass(frozen=True)
class Work:
    """What is left to do of one box."""

    network: Network
    region: Region
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
    keeps_ledger: bool = True
    """Whether a block is noted where it is written; the caller of workers does it for them."""

    @property
    def folder(self) -> Path:
        """Of the box."""
        return self.volumes[0].path.parent


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
    config = network.config
    record = replace(
        with_raw(describe(network, region, plan, output), plan),
        largest_block=plan.largest,
        trained_on=_was_trained_on(network, region),
        made=now(),
    )
    zarr.open_group(str(folder.parent), mode="a").require_group(folder.name)

    def opened(name: str) -> ClassVolume:
        of_channel = replace(
            record, range_nm=range_nm(config, name), offset_nm=offset_nm(config, name)
        )
        return open_class(folder / name, plan, name, of_channel, codec=config.predictions_codec)

    # a dozen small files each, for which a disk of a cluster takes its time
    with ThreadPoolExecutor(WRITERS) as pool:
        volumes = list(pool.map(opened, classes))
    done = set(plan.blocks).intersection(*(volume.done for volume in volumes))
    return Work(
        network,
        region,
        plan,
        plans=plans_of(network, region, plan),
        output=output,
        channels=[config.channels.index(name) for name in classes],
        volumes=volumes,
        left=[number for number in plan.blocks if number not in done],
    )


def _was_trained_on(network: Network, region: Region) -> bool | None:
    """Whether one of the networks was trained on a box; None where nothing tells of one of them."""
    unknown = False
    for each in network.each:
        if each.trained_on is None:
            unknown = True
        elif str(region) in each.trained_on:
            return True
    return None if unknown else False


def compute_and_write(work: Work, stopped: Callable[[], bool] = never) -> int:
    """Compute the blocks that are left, and write them while the next ones are computed.

    Returns the number of blocks whose raw is 0 throughout. Raises UserError where memory does not
    do, and for outputs that are NaN.
    """
    blank = 0
    total = len(work.plan.blocks)
    tally = Tally(total, total - len(work.left), workers=1)
    began = time.monotonic()
    with progress(total, unit="block", done=tally.done) as bar:
        so_far = Progress(work.folder, "predicting", bar)
        for new, (_, is_blank) in enumerate(written(work, stopped), 1):
            blank += is_blank
            tally.done += 1
            tally.rate = new / (time.monotonic() - began)
            so_far.tell(tally)
        so_far.close(tally)
    return blank


def written(work: Work, stopped: Callable[[], bool] = never) -> Iterator[tuple[int, bool]]:
    """The blocks that are left, each when it is on disk, and whether its raw is 0 throughout."""
    waiting: deque[tuple[BlockValues, list[Future]]] = deque()
    most = UNWRITTEN.get(work.network.device.type, 0)
    with ThreadPoolExecutor(WRITERS) as pool, _within_memory(work):
        for block in _computed(work):
            waiting.append((block, _begin_writing(pool, work, block)))
            # or it would be in memory until the next one is computed
            del block
            if len(waiting) > most:
                yield _when_written(*waiting.popleft())
            if stopped():
                break
        while waiting:
            yield _when_written(*waiting.popleft())


def _when_written(block: BlockValues, jobs: Sequence[Future]) -> tuple[int, bool]:
    _wait(jobs)
    return block.number, block.blank


def _computed(work: Work) -> Iterator[BlockValues]:
    """The blocks that are left, as they are stored."""
    members = []
    plans = iter(work.plans)
    for network, passes in zip(work.network.each, work.network.passes, strict=True):
        first, *further = [
            (next(plans), oriented_network(each, work.output.orientations)) for each in passes
        ]
        # of one network all that is stored is looked at as it is encoded
        look = partial(_look_for_nan, network) if work.network.members else unseen
        members.append(Member(*first, look=look, further=further))
    return compute_blocks(
        members, work.left, to_stored=partial(_stored, work), device=work.network.device
    )


def _stored(work: Work, logits: torch.Tensor) -> tuple[torch.Tensor, Verdict]:
    """What is stored of the logits (classes, z, y, x) of all classes: some of them, encoded.

    And what raises a UserError for NaN, which uint8 would hold as 0.
    """
    # all of them in their order are not indexed, which would copy a block
    is_all = work.channels == list(range(len(logits)))
    picked = logits if is_all else logits[work.channels]
    encoded = encode.encode(picked, work.output.content, getattr(torch, work.output.dtype))
    return encoded.values, partial(_refuse_nan, work.network, encoded.has_nan)


def _look_for_nan(network: Network, logits: torch.Tensor) -> Verdict:
    """What raises a UserError for NaN of a member, by its name."""
    return partial(_refuse_nan, network, encode.has_nan(logits))


def _refuse_nan(network: Network, has_nan: bool | torch.Tensor) -> None:
    if not has_nan:
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
        if block.number in volume.done:
            continue
        if work.keeps_ledger:
            jobs.append(pool.submit(volume.write, block.number, start, values))
        else:
            jobs.append(pool.submit(volume.put, start, values))
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


def finish(work: Work, stopped: Callable[[], bool] = never) -> None:
    """Make classes images whose blocks are all written, until `stopped()` is true."""
    is_left = threading.Event()
    finish_class = partial(_finish_unless, stopped, work, is_left)
    with ThreadPoolExecutor(WRITERS) as pool:
        jobs = [pool.submit(finish_class, volume) for volume in work.volumes]
        try:
            _wait(jobs)
        except BaseException:
            # or the pool would wait until the levels of all classes are there
            is_left.set()
            raise
    series.add([volume.path for volume in work.volumes])


def _finish_unless(
    stopped: Callable[[], bool], work: Work, is_left: threading.Event, volume: ClassVolume
) -> None:
    if stopped():
        return
    missing = set(work.plan.blocks) - volume.journal.look()
    if missing:
        raise FileError(
            f"{volume.path}: {count(len(missing), 'block')} of {len(work.plan.blocks)} not in its "
            "ledger after all were written; run the same command again"
        )
    volume.finish(is_left.is_set)

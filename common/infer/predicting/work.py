"""One box of a prediction: begun on disk, its blocks computed and written, finished."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import zarr

from common.config.heads import offset_nm, range_nm
from common.config.settings import TrainConfig
from common.data.splits.regions import Region
from common.data.volumes import series
from common.data.volumes.records import PredictionRecord
from common.errors import FileError, UserError
from common.infer.machines import sharing
from common.infer.machines.crew import Tally
from common.infer.machines.status import Progress
from common.infer.networks.network import Network
from common.infer.predicting import encode
from common.infer.predicting.blocks import Pass, Predictor, Verdict, unseen
from common.infer.predicting.box_plans import plans_of_passes
from common.infer.predicting.conveyor import BlockValues, compute_blocks
from common.infer.predicting.orientations import oriented_network
from common.infer.predicting.output import Output
from common.infer.predicting.plan import BlockPlan
from common.infer.predicting.record import describe, was_trained_on, with_raw_sample
from common.infer.predicting.writer import ClassVolume, open_class
from common.provenance import now, usable_cores
from common.stopping import ShouldStop, never
from common.talk import count, progress

# tensorstore compresses in threads of its own; those here halve, and wait for it and for the disk
WRITERS = min(16, max(4, usable_cores()))
"""Threads that write, each one class of a block."""

# each waits in memory with all of its classes: more would only move the disk's backlog there. On a
# CPU none: those who write would take the cores from the network in the middle of its layers, whose
# threads wait for each other
UNWRITTEN = {"cuda": 2}
"""Blocks that may wait to be written while others are computed, by kind of device; 0 on others."""


@dataclass(frozen=True)
class Work:
    """A box whose classes are begun on disk, and the blocks that are still to be computed."""

    network: Network
    region: Region
    plan: BlockPlan
    plans: list[BlockPlan]
    """Of each pass of the network, with the blocks of `plan`."""
    output: Output
    channels: list[int]
    """Numbers of the network's channels that are stored, in the order of `volumes`."""
    volumes: list[ClassVolume]
    """Where they are stored."""
    missing: list[int]
    """Numbers of the blocks that are not on disk for every class."""
    keeps_ledger: bool = True
    """Whether this process notes blocks as written; workers leave that to their caller."""

    @property
    def folder(self) -> Path:
        """The folder of the box."""
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
    """Open the classes of a box for writing, and find the blocks that are not on disk yet.

    Args:
        network: trained.
        region: the box.
        plan: as of `common.infer.predicting.sizes.make_plan`.
        output: how the box is stored.
        folder: of the box; it is made, and a group for each class in it.
        classes: those to predict, some of the network's.
    """
    record = replace(
        with_raw_sample(describe(network, region, plan, output), plan),
        largest_block=plan.largest,
        trained_on=was_trained_on(network, region),
        made=now(),
    )
    zarr.open_group(str(folder.parent), mode="a").require_group(folder.name)
    volumes = _opened(plan, record, network.config, folder=folder, classes=classes)
    done = set(plan.blocks).intersection(*(volume.done for volume in volumes))
    return Work(
        network,
        region,
        plan,
        plans=plans_of_passes(network, region, plan),
        output=output,
        channels=[network.config.channels.index(name) for name in classes],
        volumes=volumes,
        missing=[number for number in plan.blocks if number not in done],
    )


def _opened(
    plan: BlockPlan,
    record: PredictionRecord,
    config: TrainConfig,
    *,
    folder: Path,
    classes: Sequence[str],
) -> list[ClassVolume]:
    """Open the classes of a box for writing. record: of the box."""

    def opened(name: str) -> ClassVolume:
        class_record = replace(
            record, range_nm=range_nm(config, name), offset_nm=offset_nm(config, name)
        )
        return open_class(folder / name, plan, name, class_record, codec=config.predictions_codec)

    # a dozen small files each, for which a disk of a cluster takes its time
    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(opened, classes))


# Compute and write


def compute_and_write(work: Work, stopped: ShouldStop = never) -> int:
    """Compute the missing blocks, and write them while the next ones are computed.

    Return the number of blocks whose raw is 0 throughout. Raise UserError where memory does not
    suffice, and for outputs that are NaN.

    stopped: asked after each block whether to end.
    """
    blank = 0
    total = len(work.plan.blocks)
    tally = Tally(total, total - len(work.missing), workers=1)
    refuse = partial(sharing.refuse_taken, work.folder)
    began = time.monotonic()
    with progress(total, unit="block", done=tally.done) as bar:
        so_far = Progress(work.folder, "predicting", bar)
        for new, (_, is_blank) in enumerate(written(work, refuse, stopped), 1):
            blank += is_blank
            tally.done += 1
            tally.rate = new / (time.monotonic() - began)
            so_far.tell(tally)
        so_far.close(tally)
    return blank


def written(
    work: Work, refuse: Callable[[], None], stopped: ShouldStop = never
) -> Iterator[tuple[int, bool]]:
    """The blocks that are left, each when it is on disk, and whether its raw is 0 throughout.

    Args:
        work: whose they are.
        refuse: called before a block is written; raises where another process has the box.
        stopped: asked after each block whether to end.
    """
    waiting: deque[tuple[BlockValues, list[Future]]] = deque()
    most = UNWRITTEN.get(work.network.device.type, 0)
    with ThreadPoolExecutor(WRITERS) as pool, _within_memory(work):
        for block in _computed(work):
            refuse()
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
    """Wait until a block is on disk; return its number, and whether its raw is 0 throughout."""
    _wait(jobs)
    return block.number, block.blank


def _computed(work: Work) -> Iterator[BlockValues]:
    """Yield the missing blocks, as they are stored."""
    predictors = []
    plans = iter(work.plans)
    for network, of_network in zip(work.network.members_or_self, work.network.passes, strict=True):
        passes = []
        for network_in_planes in of_network:
            forward = oriented_network(network_in_planes, work.output.orientations)
            passes.append(Pass(next(plans), forward))
        # of one network all that is stored is looked at as it is encoded
        look = partial(_look_for_nan, network) if work.network.members else unseen
        predictors.append(Predictor(passes, look))
    return compute_blocks(
        predictors, work.missing, to_stored=partial(_stored, work), device=work.network.device
    )


def _stored(work: Work, logits: torch.Tensor) -> tuple[torch.Tensor, Verdict]:
    """Return what is stored of the logits (classes, z, y, x) of all classes, and the verdict.

    Stored are the channels of the work, encoded. The verdict raises UserError for NaN, which uint8
    would hold as 0.
    """
    # all of them in their order are not indexed, which would copy a block
    is_all = work.channels == list(range(len(logits)))
    picked = logits if is_all else logits[work.channels]
    encoded = encode.encode(picked, work.output.content, getattr(torch, work.output.dtype))
    return encoded.values, partial(_refuse_nan, work.network, encoded.has_nan)


def _look_for_nan(network: Network, logits: torch.Tensor) -> Verdict:
    """Return the verdict on the logits of one network: it raises UserError for NaN, and names it.

    logits: (classes, z, y, x).
    """
    return partial(_refuse_nan, network, encode.has_nan(logits))


def _refuse_nan(network: Network, has_nan: bool | torch.Tensor) -> None:
    """Raise UserError if the network gave NaN."""
    if not has_nan:
        return
    record = network.record
    raise UserError(
        f"{record.checkpoint}: the network gives NaN, in {record.precision}; predict with --set "
        "precision=fp32, and if that does not help, its weights are broken: take another checkpoint"
    )


def _begin_writing(pool: ThreadPoolExecutor, work: Work, block: BlockValues) -> list[Future]:
    """Hand the classes of a block that are not on disk to threads that write; return their jobs."""
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
    """Wait until all jobs are done. Raise what one of them raised."""
    for job in jobs:
        job.result()


@contextlib.contextmanager
def _within_memory(work: Work) -> Iterator[None]:
    """Turn torch's error for too little memory into a UserError with the block edge to write."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        edge = work.plan.largest
        raise UserError(
            f"{work.network.device}: not enough memory for blocks of {edge} voxels; write --block "
            f"{edge // 2}"
        ) from error


# Finish


def finish(work: Work, stopped: ShouldStop = never) -> None:
    """Make images of the classes, when all their blocks are written.

    Raise FileError where the ledger of a class lacks a block.

    stopped: asked before each class whether to end.
    """
    is_given_up = threading.Event()
    finish_class = partial(_finish_unless, stopped, work, is_given_up)
    with ThreadPoolExecutor(WRITERS) as pool:
        jobs = [pool.submit(finish_class, volume) for volume in work.volumes]
        try:
            _wait(jobs)
        except BaseException:
            # or the pool would wait until the levels of all classes are there
            is_given_up.set()
            raise
    series.add([volume.path for volume in work.volumes])


def _finish_unless(
    stopped: ShouldStop, work: Work, is_given_up: threading.Event, volume: ClassVolume
) -> None:
    """Make an image of a class, unless `stopped()`. is_given_up: whether to end within it."""
    if stopped():
        return
    sharing.refuse_taken(work.folder)
    missing = set(work.plan.blocks) - volume.journal.look()
    if missing:
        raise FileError(
            f"{volume.path}: {count(len(missing), 'block')} of {len(work.plan.blocks)} not in its "
            "ledger after all were written; run the same command again"
        )
    volume.finish(is_given_up.is_set)

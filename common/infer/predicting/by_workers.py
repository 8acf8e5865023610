"""A box's blocks on workers: what a worker is told, what it keeps, and what its caller notes.

Voxels go from a worker to the disk, and only numbers of blocks go back to the caller, which alone
writes the ledger. Blocks are whole chunks, so no two workers write one.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

from common.config.settings import TrainConfig
from common.data.splits.regions import Region
from common.errors import FileError, Incomplete
from common.files import mark
from common.infer.machines import sharing, status
from common.infer.machines.crew import Crew, Tally
from common.infer.machines.status import Progress
from common.infer.made_by import predicting_hash, refuse_other_predicting
from common.infer.networks import package
from common.infer.networks.ensemble import load_network
from common.infer.networks.network import Network
from common.infer.networks.planes import AUTO, OWN, with_planes
from common.infer.predicting.box_plans import plans_of_passes
from common.infer.predicting.output import Output
from common.infer.predicting.record import describe
from common.infer.predicting.sizes import make_plan
from common.infer.predicting.work import Work, written
from common.infer.predicting.writer import reopen_class
from common.stopping import ShouldStop, never
from common.talk import progress


@dataclass(frozen=True)
class NetworkSource:
    """What a worker loads the network by."""

    config_path: Path
    """Folder of the experiment, or a package."""
    overrides: tuple[str, ...]
    """"name=value" for settings."""
    data: str
    """Data root."""
    precision: str
    """The caller's: what a worker would choose may be another."""
    weights: tuple[str, ...]
    """Files."""
    planes: str = OWN
    """One of `common.infer.networks.planes.CHOICES`."""


def source_of(network: Network, config: TrainConfig, overrides: Sequence[str]) -> NetworkSource:
    """Return what workers load the same network by.

    overrides: "name=value" that the settings were read with.
    """
    weights = tuple(str(member.record.checkpoint) for member in network.members_or_self)
    return NetworkSource(
        package.path_of(config) or config.folder,
        tuple(overrides),
        str(config.path("data_path")),
        precision=str(network.record.precision),
        weights=weights,
        # 3-D networks of an ensemble have no others
        planes=AUTO if any(member.planes for member in network.members_or_self) else OWN,
    )


@dataclass(frozen=True)
class BoxTask:
    """A box as a worker is told of it: small, since it goes with every batch of blocks."""

    token: str
    """Tells the boxes of all calls apart."""
    source: NetworkSource
    region: Region
    output: Output
    largest: int
    """Edge of blocks in voxels, which makes the worker's plan the caller's."""
    classes: tuple[str, ...]
    folder: Path
    """Of the box."""
    key: str
    """Of the caller's record: blocks of other weights or other raw do not belong together."""
    code: str
    """`common.infer.made_by.predicting_hash` of the caller: nor do those of other code."""
    block_shape: tuple[int, ...]
    mark: str
    """What the lock of the folder says while the caller is alive."""


def compute_by_crew(
    crew: Crew, source: NetworkSource, work: Work, stopped: ShouldStop = never
) -> int:
    """Compute and write the missing blocks by workers; this process keeps the ledger.

    Return the number of blocks whose raw is 0 throughout. Raise Incomplete where blocks failed.

    Args:
        crew: the workers.
        source: what they load the network by.
        work: the box.
        stopped: asked several times a second whether to end.
    """
    plan = work.plan
    total = len(plan.blocks)
    tally = Tally(total, total - len(work.missing))
    blank = []

    def done(number: int, is_blank: bool) -> None:
        for volume in work.volumes:
            if number not in volume.done:
                volume.journal.add(number)
        blank.append(is_blank)

    with progress(total, unit="block", done=tally.done) as bar:
        so_far = Progress(work.folder, "predicting", bar)
        failures = crew.run(
            partial(compute_part, _task_of(work, source)),
            work.missing,
            done=done,
            tell=so_far.tell,
            tally=tally,
            stopped=sharing.ends_if_taken(work.folder, stopped),
        )
        failed = [
            status.describe(failure, plan.grid, *plan.output_box(failure.number))
            for failure in failures
        ]
        so_far.close(tally, failed)
    if failed:
        raise Incomplete(status.failed(work.folder, failed, total))
    return sum(blank)


def _task_of(work: Work, source: NetworkSource) -> BoxTask:
    """Return what a worker is told of a box."""
    return BoxTask(
        uuid.uuid4().hex,
        source,
        work.region,
        work.output,
        work.plan.largest,
        classes=tuple(volume.path.name for volume in work.volumes),
        folder=work.folder,
        key=describe(work.network, work.region, work.plan, work.output).key,
        code=predicting_hash(),
        block_shape=work.plan.block_shape,
        mark=mark(),
    )


# In a worker


def compute_part(task: BoxTask, numbers: Sequence[int]) -> Iterator[tuple[int, bool]]:
    """Compute and write some blocks of a box; yield the number of each, and whether raw is 0."""
    if task.token not in _kept:
        _kept.clear()
        _kept[task.token] = _open_work(task)
    work = replace(_kept[task.token], missing=list(numbers))
    # what is written for a caller that died could be in the way of the next one, of another plan
    yield from written(work, partial(sharing.refuse_left, task.folder, task.mark))


_kept: dict[str, Work] = {}
"""The box that this worker is at, by its token."""


def _open_work(task: BoxTask) -> Work:
    """Open the classes of a box, begun by the caller.

    Raise FileError where this worker would not give the caller's voxels.
    """
    network, config = _network_of(task.source)
    plan = make_plan(network, config, task.region, task.output, largest=task.largest)
    key = describe(network, task.region, plan, task.output).key
    refuse_other_predicting(task.code)
    if key != task.key or plan.block_shape != task.block_shape:
        raise FileError(
            f"{socket.gethostname()}: this worker would give other voxels than its caller's "
            "(weights, raw, settings or versions differ); let both see the same files"
        )
    return Work(
        network,
        task.region,
        plan,
        plans=plans_of_passes(network, task.region, plan),
        output=task.output,
        channels=[config.channels.index(name) for name in task.classes],
        volumes=[reopen_class(task.folder / name, plan) for name in task.classes],
        missing=[],
        keeps_ledger=False,
    )


@lru_cache(maxsize=1)
def _network_of(source: NetworkSource) -> tuple[Network, TrainConfig]:
    """Load the network once in a worker, and keep it."""
    overrides = (*source.overrides, f"precision={source.precision}")
    config = package.settings_of(source.config_path, overrides, source.data)
    return with_planes(load_network(config, source.weights), source.planes), config

"""A box's blocks on workers: what a worker is told, what it keeps, and what its caller notes.

Voxels go from a worker to the disk, and only numbers of blocks go back to the caller, which alone
writes the ledger. Blocks are whole chunks, so no two workers write one.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
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
from common.infer.predicting.work import Output, Work, describe, make_plan, never, plans_of, written
from common.infer.predicting.writer import reopen_class
from common.talk import progress


@dataclass(frozen=True)
class NetworkSource:
    """What a worker loads the network by."""

    config_path: Path
    overrides: tuple[str, ...]
    data: str
    """Data root."""
    precision: str
    """The caller's: what a worker would choose may be another."""
    weights: tuple[str, ...]
    """Files."""
    planes: str = OWN
    """As of `common.infer.networks.planes`."""


def source_of(network: Network, config: TrainConfig, overrides: Sequence[str]) -> NetworkSource:
    """What workers load the same network by. overrides: that the settings were read with."""
    weights = tuple(str(each.record.checkpoint) for each in network.each)
    return NetworkSource(
        package.path_of(config) or config.folder,
        tuple(overrides),
        str(config.path("data_path")),
        precision=str(network.record.precision),
        weights=weights,
        # 3-D networks of an ensemble have no others
        planes=AUTO if any(each.planes for each in network.each) else OWN,
    )


@dataclass(frozen=True)
class Part:
    """A box as a worker is told of it: small, since it goes with every batch of blocks."""

    token: str
    """Tells the boxes of all calls apart."""
    source: NetworkSource
    region: Region
    output: Output
    largest: int
    """Edge of blocks in voxels, which makes the plan what the caller's is."""
    classes: tuple[str, ...]
    folder: Path
    key: str
    """Of the caller's record: blocks of other weights or other raw do not belong together."""
    code: str
    """As of `common.infer.made_by.predicting_hash`, likewise."""
    block_shape: tuple[int, ...]
    mark: str
    """What the lock of the folder says while the caller is alive."""


def compute_by_crew(
    crew: Crew, source: NetworkSource, work: Work, stopped: Callable[[], bool] = never
) -> int:
    """As `work.compute_and_write`, by workers; this process keeps the ledger.

    source: what they load the network by. Raises Incomplete where blocks failed.
    """
    plan = work.plan
    total = len(plan.blocks)
    tally = Tally(total, total - len(work.left))
    blank = []

    def done(number: int, is_blank: bool) -> None:
        for volume in work.volumes:
            if number not in volume.done:
                volume.journal.add(number)
        blank.append(is_blank)

    with progress(total, unit="block", done=tally.done) as bar:
        so_far = Progress(work.folder, "predicting", bar)
        failures = crew.run(
            partial(compute_part, _part_of(work, source)),
            work.left,
            done=done,
            tell=so_far.tell,
            tally=tally,
            stopped=stopped,
        )
        failed = []
        for failure in failures:
            start, stop = plan.output_box(failure.number)
            failed.append(status.describe(failure, plan.grid, start, stop))
        so_far.close(tally, failed)
    if failed:
        raise Incomplete(status.failed(work.folder, failed, total))
    return sum(blank)


def _part_of(work: Work, source: NetworkSource) -> Part:
    return Part(
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


def compute_part(part: Part, numbers: Sequence[int]) -> Iterator[tuple[int, bool]]:
    """Compute and write some blocks of a box; of each the number, and whether its raw is 0."""
    if part.token not in _kept:
        _kept.clear()
        _kept[part.token] = _open_work(part)
    work = replace(_kept[part.token], left=list(numbers))
    # what is written for a caller that died could be in the way of the next one, of another plan
    yield from written(work, lambda: not sharing.is_still(part.folder, part.mark))


_kept: dict[str, Work] = {}
"""The box that this worker is at, by its token."""


def _open_work(part: Part) -> Work:
    """Raises FileError where this worker would not give the caller's voxels."""
    network, config = _network_of(part.source)
    plan = make_plan(network, config, part.region, part.output, largest=part.largest)
    key = describe(network, part.region, plan, part.output).key
    refuse_other_predicting(part.code)
    if key != part.key or plan.block_shape != part.block_shape:
        raise FileError(
            f"{socket.gethostname()}: this worker would give other voxels than its caller's "
            "(weights, raw, settings or versions differ); let both see the same files"
        )
    return Work(
        network,
        part.region,
        plan,
        plans=plans_of(network, part.region, plan),
        output=part.output,
        channels=[config.channels.index(name) for name in part.classes],
        volumes=[reopen_class(part.folder / name, plan) for name in part.classes],
        left=[],
        keeps_ledger=False,
    )


@lru_cache(maxsize=1)
def _network_of(source: NetworkSource) -> tuple[Network, TrainConfig]:
    """Loaded once in a worker, and kept."""
    overrides = (*source.overrides, f"precision={source.precision}")
    config = package.settings_of(source.config_path, overrides, source.data)
    return with_planes(load_network(config, source.weights), source.planes), config

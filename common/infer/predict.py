"""Predict boxes of volumes with a trained network, from top to bottom.

choose boxes -> load the network -> for each box: plan its blocks, see what is left, compute and
write, finish
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from common import stopping
from common.config.arguments import as_typed
from common.config.settings import TrainConfig
from common.data.splits import regions
from common.data.splits.regions import Region
from common.data.volumes import series
from common.errors import UserError
from common.files import is_held, key_of
from common.infer import ledger
from common.infer.machines import cluster, sharing
from common.infer.machines.engine import IN_THIS_PROCESS, Engine
from common.infer.networks import package
from common.infer.networks.ensemble import load_network, note_training_crops
from common.infer.networks.network import Network
from common.infer.networks.planes import with_planes
from common.infer.predicting import request, room
from common.infer.predicting.parts import NetworkSource, compute_by_crew, source_of
from common.infer.predicting.room import Need
from common.infer.predicting.work import (
    SMALLEST_BLOCK,
    Output,
    Work,
    begin,
    compute_and_write,
    describe,
    finish,
    make_plan,
    never,
    plan_of_edge,
    with_own,
    with_raw,
)
from common.infer.predicting.writer import writing
from common.talk import count, nm, note, say, voxels

# a block of a large network takes minutes on a CPU, and schedulers kill after half a minute
PATIENCE_S = 10.0
"""Seconds after a signal in which a block may come to its end; then it is given up."""

Compute = Callable[[Work, Callable[[], bool]], int]
"""Computes and writes what is left of a box, until it is told to stop; gives the blank blocks."""


@dataclass(frozen=True)
class Run:
    """What all boxes of a call have in common."""

    network: Network
    """Trained."""
    config: TrainConfig
    """Of its experiment."""
    output: Output
    """How predictions are stored."""
    overwrite: bool = False
    """Replace what is there; else what is whole is left, and what was predicted by other weights or
    settings is a UserError."""
    stopped: Callable[[], bool] = never
    """Asked after each block whether to end there, with a KeyboardInterrupt."""
    compute: Compute = compute_and_write
    """This process does it unless given."""
    sharers: int = 1
    """Processes that share the device's memory."""

    def folder_of(self, region: Region) -> Path:
        """Where the prediction of a box is written."""
        return region.folder(self.config.path("predictions_path"))

    def output_of(self, region: Region) -> Output:
        """How the prediction of a box is stored."""
        return request.at_asked_scale(self.output, region, self.config)


@as_typed(*(field.name for field in fields(Output)))
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
    engine: Engine = IN_THIS_PROCESS,
    **output: Any,
) -> list[Path]:
    """Predict crops, or a volume; gives their folders. Raises UserError, and as `predict_boxes`.

    Args:
        config_path: the experiment, or a package, see `common.infer.networks.package`.
        crops: which, as of `common.data.splits.regions.choose`, unless `volume` is given.
        volume: path of a volume of one's own.
        roi: box of it.
        classes: some of the network's, all unless given.
        weights: "best", "latest" or checkpoints, see `common.infer.networks.ensemble.load_network`.
        manifest_path: of test crops.
        overwrite: see `Run`.
        overrides: "name=value" for settings.
        data: data root.
        engine: where blocks are computed.
        output: fields of `Output`.
    """
    config = package.settings_of(config_path, overrides, data)
    package.refuse_no_boxes(config, crops, volume)
    stored_as = request.check_output(Output(**output), config)
    boxes = regions.choose(config, crops, volume, roi, manifest_path=manifest_path, say=say)
    chosen = request.choose_classes(config, boxes, classes)
    network = with_planes(load_network(config, weights), stored_as.planes)
    run = Run(network, config, stored_as, overwrite)
    return predict_boxes(run, chosen, engine, source_of(network, config, overrides))


def predict_boxes(
    run: Run, boxes: Sequence[tuple[Region, list[str]]], engine: Engine, source: NetworkSource
) -> list[Path]:
    """Predict classes of boxes; gives their folders.

    A folder has a multiscale group for each class, whole or marked as unfinished, with which the
    same call goes on. Raises FileNotFoundError, and KeyboardInterrupt on Ctrl-C; after all other
    boxes NotYet where other processes work on some, and Incomplete where blocks failed.

    source: what workers load the network by.
    """
    # workers have a time of their own, see crew.STOP_S
    patience = 0 if engine.is_used else PATIENCE_S
    with stopping.interruptible(patience) as stopped:
        _announce_network(run.network)
        note_training_crops(run.network, [region for region, _ in boxes])
        root = run.config.path("predictions_path")
        # of all boxes before anything is written, so that what cannot be done is said at once
        room.announce(root, [_need(run, region, classes) for region, classes in boxes])
        asked = [[str(region), classes] for region, classes in boxes]
        # by this hash the same command is known on another machine
        call = key_of(["predict", run.network.record.sha256, asked, asdict(run.output)])
        with cluster.opened(engine, root, call, stopped) as crew:
            run = replace(
                run,
                stopped=stopped,
                compute=partial(compute_by_crew, crew, source) if crew else compute_and_write,
                sharers=engine.sharers(run.network.device.type),
            )
            return sharing.each(lambda box: predict_region(run, *box), boxes)


def _announce_network(network: Network) -> None:
    if network.members:
        say(f"the mean probability of {len(network.members)} networks, on {network.device}:")
    for each in network.each:
        about = each.record
        trained = "weights alone" if about.epoch is None else f"epoch {about.epoch}, {about.metric}"
        planes = "; in planes across z, y and x" if each.planes else ""
        say(f"{about.checkpoint}: {trained}; on {network.device}{planes}")


def _need(run: Run, region: Region, classes: Sequence[str]) -> Need:
    """What is left to write of a box. Raises UserError where something is in its place."""
    folder = run.folder_of(region)
    output = run.output_of(region)
    raw = run.network.raw_of(region)
    # how large blocks may be changes nothing in what is written
    plan = plan_of_edge(run.network, raw, region, output, edge=SMALLEST_BLOCK)
    plan = with_own(plan, run.network, region)
    wanted = describe(run.network, region, plan, output)
    if folder.is_dir():
        wanted = with_raw(wanted, plan)
    try:
        left = ledger.unfinished(folder, classes, wanted, run.overwrite).classes
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


def predict_region(run: Run, region: Region, classes: Sequence[str]) -> Path:
    """Predict some of the network's classes in one box, or go on where an earlier call stopped.

    Gives their folder.
    """
    folder = run.folder_of(region)
    output = run.output_of(region)
    plan = make_plan(run.network, run.config, region, output, sharers=run.sharers)
    wanted = with_raw(describe(run.network, region, plan, output), plan)
    with writing(folder), sharing.sole_worker(folder, "predicting"):
        left = ledger.unfinished(folder, classes, wanted, run.overwrite)
        if not left.classes:
            series.complete([folder / name for name in classes])
            say(f"{region}: already there, in {folder}")
            return folder
        # as it was begun, whatever memory is free now: its chunks are of that size
        if left.largest_block and not output.block:
            plan = make_plan(run.network, run.config, region, output, largest=left.largest_block)
        work = begin(run.network, region, plan, output, folder=folder, classes=left.classes)
        _announce(region, work)
        blank = run.compute(work, run.stopped)
        # raw of 0 is what a chunk has that was not downloaded
        if blank:
            note(
                f"the raw of {region} is 0 throughout in {blank} of {len(work.left)} blocks; if "
                "that is not so, fetch its EM chunks, and predict it again with --overwrite"
            )
        finish(work, run.stopped)
    if run.stopped():
        say(f"interrupted; the same command goes on with {folder}")
        raise KeyboardInterrupt
    return folder


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

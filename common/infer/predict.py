"""Predict boxes of volumes with a trained network, from top to bottom.

choose boxes -> load the network -> for each box: plan its blocks, find those that are missing,
compute and write, finish
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
from common.infer.networks.ensemble import load_network
from common.infer.networks.network import Network
from common.infer.networks.planes import with_planes
from common.infer.networks.training_crops import note_training_crops
from common.infer.predicting import disk_space, request
from common.infer.predicting.box_plans import plan_of_edge, with_inputs
from common.infer.predicting.by_workers import NetworkSource, compute_by_crew, source_of
from common.infer.predicting.disk_space import Need
from common.infer.predicting.output import Output, at_asked_scale, check_output
from common.infer.predicting.record import describe, with_raw_sample
from common.infer.predicting.sizes import SMALLEST_BLOCK, make_plan
from common.infer.predicting.work import Work, begin, compute_and_write, finish
from common.infer.predicting.writer import writing
from common.stopping import ShouldStop, never
from common.talk import count, nm, note, say, voxels

# a block of a large network takes minutes on a CPU, and schedulers kill after half a minute
PATIENCE_S = 10.0
"""Seconds after a signal in which a block may come to its end; then it is given up."""

Compute = Callable[[Work, ShouldStop], int]
"""Computes and writes the missing blocks of a box, until it is told to stop.

Returns the number of blocks whose raw is 0 throughout.
"""


@dataclass(frozen=True)
class PredictCall:
    """What all boxes of a call have in common."""

    network: Network
    """Trained."""
    config: TrainConfig
    """Of the network's experiment."""
    output: Output
    """How predictions are stored."""
    overwrite: bool = False
    """Whether predictions on disk are replaced.

    Else those that are whole are kept, and one by other weights or settings is a UserError.
    """
    stopped: ShouldStop = never
    """Asked after each block whether to end there, with a KeyboardInterrupt."""
    compute: Compute = compute_and_write
    """Computes in this process unless given."""
    sharers: int = 1
    """Processes that share the device's memory."""

    def folder_of(self, region: Region) -> Path:
        """Return where the prediction of a box is written."""
        return region.folder(self.config.path("predictions_path"))

    def output_of(self, region: Region) -> Output:
        """Return how the prediction of a box is stored."""
        return at_asked_scale(self.output, region, self.config)


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
    """Predict crops, or a volume, and return their folders. Raise as `predict_boxes`, or UserError.

    Args:
        config_path: the experiment, or a package, see `common.infer.networks.package`.
        crops: which, as of `common.data.splits.regions.choose`, unless `volume` is given.
        volume: path of a volume of one's own.
        roi: box of it.
        classes: some of the network's, all unless given.
        weights: "best", "latest" or checkpoints, see `common.infer.networks.ensemble.load_network`.
        manifest_path: of test crops.
        overwrite: see `PredictCall`.
        overrides: "name=value" for settings.
        data: data root.
        engine: where blocks are computed.
        output: fields of `Output`.
    """
    config = package.settings_of(config_path, overrides, data)
    package.refuse_no_boxes(config, crops, volume)
    stored_as = check_output(Output(**output), config)
    boxes = regions.choose(config, crops, volume, roi, manifest_path=manifest_path, say=say)
    chosen = request.choose_classes(config, boxes, classes)
    network = with_planes(load_network(config, weights), stored_as.planes)
    call = PredictCall(network, config, stored_as, overwrite)
    return predict_boxes(call, chosen, engine, source_of(network, config, overrides))


def predict_boxes(
    call: PredictCall,
    boxes: Sequence[tuple[Region, list[str]]],
    engine: Engine,
    source: NetworkSource,
) -> list[Path]:
    """Predict classes of boxes, and return their folders.

    A folder has a multiscale group for each class, whole or marked as unfinished; the same call
    goes on with one that is unfinished. Raise FileNotFoundError, and KeyboardInterrupt on Ctrl-C;
    after all other boxes NotYet where other processes work on some, and Incomplete where blocks
    failed.

    Args:
        call: what the boxes have in common.
        boxes: each with the classes to predict there.
        engine: where blocks are computed.
        source: what workers load the network by.
    """
    # workers have a time of their own, see crew.STOP_S
    patience = 0 if engine.is_used else PATIENCE_S
    with stopping.interruptible(patience) as stopped:
        _announce_network(call.network)
        note_training_crops(call.network, [region for region, _ in boxes])
        root = call.config.path("predictions_path")
        # of all boxes before anything is written, so that what cannot be done is said at once
        disk_space.announce(root, [_need(call, region, classes) for region, classes in boxes])
        asked = [[str(region), classes] for region, classes in boxes]
        # by this hash the same command is known on another machine
        key = key_of(["predict", call.network.record.sha256, asked, asdict(call.output)])
        with cluster.opened(engine, root, key, stopped) as crew:
            call = replace(
                call,
                stopped=stopped,
                compute=partial(compute_by_crew, crew, source) if crew else compute_and_write,
                sharers=engine.sharers(call.network.device.type),
            )
            return sharing.for_each_box(lambda box: predict_region(call, *box), boxes)


def _announce_network(network: Network) -> None:
    """Say which checkpoints predict, and on which device."""
    if network.members:
        say(f"the mean probability of {len(network.members)} networks, on {network.device}:")
    for member in network.members_or_self:
        record = member.record
        trained = "weights alone"
        if record.epoch is not None:
            trained = f"epoch {record.epoch}, {record.metric}"
        planes = "; in planes across z, y and x" if member.planes else ""
        say(f"{record.checkpoint}: {trained}; on {network.device}{planes}")


def _need(call: PredictCall, region: Region, classes: Sequence[str]) -> Need:
    """Return what is still to be written of a box.

    Raise UserError where a class on disk may not be replaced.
    """
    folder = call.folder_of(region)
    output = call.output_of(region)
    raw = call.network.raw_of(region)
    # how large blocks may be changes nothing in what is written
    plan = plan_of_edge(call.network, raw, region, output, edge=SMALLEST_BLOCK)
    plan = with_inputs(plan, call.network, region)
    wanted = describe(call.network, region, plan, output)
    if folder.is_dir():
        wanted = with_raw_sample(wanted, plan)
    try:
        unfinished = ledger.unfinished(folder, classes, wanted, call.overwrite).classes
    except UserError:
        if is_held(folder / sharing.LOCK):
            return Need(0, 0, 0)  # another process may be in the middle of beginning a class
        raise
    new = [name for name in unfinished if not (folder / name).is_dir()]
    bytes_of_class = disk_space.bytes_of(plan.grid, output.dtype)
    return Need(
        values=math.prod(plan.grid.shape) * len(unfinished),
        bytes=bytes_of_class * len(unfinished),
        new_bytes=bytes_of_class * len(new),
    )


def predict_region(call: PredictCall, region: Region, classes: Sequence[str]) -> Path:
    """Predict some of the network's classes in one box, or go on where an earlier call stopped.

    Return the folder of the box. Raise KeyboardInterrupt if it was stopped.
    """
    folder = call.folder_of(region)
    output = call.output_of(region)
    plan = make_plan(call.network, call.config, region, output, sharers=call.sharers)
    wanted = with_raw_sample(describe(call.network, region, plan, output), plan)
    with writing(folder), sharing.sole_worker(folder, "predicting"):
        unfinished = ledger.unfinished(folder, classes, wanted, call.overwrite)
        if not unfinished.classes:
            series.complete([folder / name for name in classes])
            say(f"{region}: already there, in {folder}")
            return folder
        # as it was begun, whatever memory is free now: its chunks are of that size
        largest = unfinished.largest_block
        if largest and not output.block:
            plan = make_plan(call.network, call.config, region, output, largest=largest)
        work = begin(call.network, region, plan, output, folder=folder, classes=unfinished.classes)
        _announce(region, work)
        blank = call.compute(work, call.stopped)
        # raw of 0 is what a chunk has that was not downloaded
        if blank:
            note(
                f"the raw of {region} is 0 throughout in {blank} of {len(work.missing)} blocks; if "
                "that is not so, fetch its EM chunks, and predict it again with --overwrite"
            )
        finish(work, call.stopped)
    if call.stopped():
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
        f"{count(len(work.missing), 'block')} of {voxels(plan.block_shape)}"
        f"{overlapping}"
    )

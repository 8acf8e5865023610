"""Predict boxes of volumes with a trained network, from top to bottom.

choose boxes -> load the network -> for each box: plan its blocks, see what is left, compute and
write, finish
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common import stopping
from common.config.derived import Affinities, channel_classes, with_derived
from common.config.settings import TrainConfig
from common.data import normalize, regions, series
from common.data.raw import Raw, open_raw
from common.data.regions import Region
from common.errors import UserError
from common.files import is_held, key_of
from common.infer import cluster, ledger, package, room, sharing
from common.infer.engine import IN_THIS_PROCESS, Engine
from common.infer.ensemble import load_network, note_training_crops
from common.infer.network import Network
from common.infer.parts import Hands, Source, source_of
from common.infer.planes import CHOICES, OWN, with_planes
from common.infer.room import Need
from common.infer.work import (
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
)
from common.infer.writer import writing
from common.talk import count, nm, note, say, voxels

# a block of a large network takes minutes on a CPU, and schedulers kill after half a minute
PATIENCE_S = 10.0
"""Seconds after a signal in which a block may come to its end; then it is given up."""


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
    """Predict crops, or a volume, with a checkpoint of an experiment's run; gives their folders.

    A folder has a multiscale group for each class, whole or marked as unfinished, with which the
    same call goes on. Raises UserError, FileNotFoundError, and KeyboardInterrupt on Ctrl-C; after
    all other boxes NotYet where other processes work on some, and Incomplete where blocks failed.

    Args:
        config_path: the experiment, or a package, see `common.infer.package`; with `overrides` and
            `data` as of `common.config.load`.
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
        engine: where blocks are computed.
        output: fields of `Output`.
    """
    config = package.settings_of(config_path, overrides, data)
    if package.is_experiment(config):
        weights = weights or str(config_path)
        package.refuse_no_boxes(config, crops, volume)
    stored_as = check_output(Output(**output), config)
    boxes = regions.choose(
        config, crops, volume=volume, roi=roi, manifest_path=manifest_path, say=say
    )
    chosen = choose_classes(config, boxes, classes)
    network = with_planes(load_network(config, weights), stored_as.planes)
    source = source_of(network, config, overrides)
    # workers have a time of their own, see crew.STOP_S
    patience = 0 if engine.is_used else PATIENCE_S
    with stopping.interruptible(patience) as stopped:
        run = _Run(network, config, stored_as, overwrite, stopped)
        return _predict_regions(run, chosen, engine, source)


@dataclass(frozen=True)
class _Run:
    """What all boxes of a call have in common."""

    network: Network
    config: TrainConfig
    output: Output
    overwrite: bool
    stopped: Callable[[], bool]


def _predict_regions(
    run: _Run, chosen: Sequence[tuple[Region, list[str]]], engine: Engine, source: Source
) -> list[Path]:
    network = run.network
    _announce_network(network)
    note_training_crops(network, [region for region, _ in chosen])
    # of all boxes before anything is written, so that what cannot be done is said at once
    needs = []
    for region, names in chosen:
        need = _need(network, run.config, region, names, output=run.output, overwrite=run.overwrite)
        needs.append(need)
    root = run.config.path("predictions_path")
    room.announce(root, needs)
    call = _call(network, chosen, run.output)
    with cluster.opened(engine, root, call, run.stopped) as crew:
        work = partial(
            predict_region,
            output=run.output,
            overwrite=run.overwrite,
            stopped=run.stopped,
            compute=Hands(crew, source).compute_and_write if crew else compute_and_write,
            sharers=engine.sharers(network.device.type),
        )
        return sharing.each(lambda box: work(network, run.config, *box), chosen)


def _call(network: Network, chosen: Sequence[tuple[Region, list[str]]], output: Output) -> str:
    """Hash of what a call predicts, by which the same command is known on another machine."""
    boxes = [[str(region), names] for region, names in chosen]
    return key_of(["predict", network.record.sha256, boxes, asdict(output)])


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
    plan = plan_of_edge(network, raw, region, stored_as, edge=SMALLEST_BLOCK)
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
        planes = "; in planes across z, y and x" if each.planes else ""
        say(f"{about.checkpoint}: {trained}; on {network.device}{planes}")


def check_output(output: Output, config: TrainConfig) -> Output:
    """The same. Raises UserError with everything that is wrong with it."""
    problems = []
    if output.content not in ("probability", "logits"):
        problems.append(f"content '{output.content}'; write probability or logits")
    if output.dtype not in ("uint8", "float16", "float32"):
        problems.append(f"dtype '{output.dtype}'; write uint8, float16 or float32")
    if output.content == "logits" and output.dtype == "uint8":
        problems.append("logits do not fit into uint8; write --dtype float16 or float32")
    if output.planes not in CHOICES:
        problems.append(f"planes '{output.planes}'; write {', '.join(CHOICES)}")
    if output.orientations not in (1, 8, 16):
        problems.append(
            f"{output.orientations} orientations; write 1, 8 (mirrored) or 16 (with y and x "
            "exchanged)"
        )
    if output.orientations == 16 and not _is_square_in_plane(config):
        problems.append("16 orientations exchange y and x, whose voxel sizes differ here; write 8")
    problems += _problem_of_pairs(output, config)
    if output.scale and (len(output.scale) != 3 or min(output.scale) <= 0):
        problems.append(f"scale {output.scale}; write three voxel sizes in nm, z, y, x")
    if output.block < 0:
        problems.append(f"block {output.block}; write a number of voxels, such as 128")
    if problems:
        raise UserError("\n".join(problems))
    return output


def _problem_of_pairs(output: Output, config: TrainConfig) -> list[str]:
    """What is wrong with the mean over turned copies, of channels that have a direction."""
    has_pairs = any(isinstance(channel, Affinities) for channel in config.derived.values())
    if not has_pairs or (output.orientations == 1 and output.planes == OWN):
        return []
    return [
        "affinities are of pairs along a direction, which a turned copy has along another one; "
        "leave --orientations and --planes out"
    ]


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
    asked = with_derived(classes or config.channels, config.derived)
    unknown = [name for name in asked if name not in config.channels]
    if unknown:
        raise UserError(
            f"{config.folder}: the network has no class {', '.join(unknown)}; it has "
            f"{', '.join(config.channels)}"
        )
    made_of = channel_classes(config.classes, config.derived)
    chosen = []
    problems = []
    for region in boxes:
        problem = _problem_of_raw(region, config)
        if problem:
            problems.append(problem)
            continue
        # in the network's order, whatever order they were asked for in
        names = [name for name in config.channels if name in asked]
        if region.truth is None and region.classes:
            names = [name for name in names if made_of[name] in region.classes]
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
        raw = open_raw(
            region.raw, config.input_array_info["scale"], config.raw_range, config.raw_sections
        )
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


Compute = Callable[[Work, Callable[[], bool]], int]
"""Computes and writes what is left of a box, until it is told to stop; gives the blank blocks."""


def predict_region(  # noqa: PLR0913  # what one box of a call is
    network: Network,
    config: TrainConfig,
    region: Region,
    classes: Sequence[str],
    *,
    output: Output,
    overwrite: bool = False,
    stopped: Callable[[], bool] = never,
    compute: Compute = compute_and_write,
    sharers: int = 1,
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
        compute: this process does it unless given.
        sharers: processes that share the device's memory.
    """
    folder = region.folder(config.path("predictions_path"))
    output = at_asked_scale(output, region, config)
    plan = make_plan(network, config, region, output, sharers=sharers)
    with writing(folder), sharing.sole_worker(folder, "predicting"):
        wanted = describe(network, region, plan, output)
        left = ledger.unfinished(folder, classes, wanted, overwrite)
        if not left.classes:
            series.complete([folder / name for name in classes])
            say(f"{region}: already there, in {folder}")
            return folder
        # as it was begun, whatever memory is free now: its chunks are of that size
        if left.largest_block and not output.block:
            plan = make_plan(network, config, region, output, largest=left.largest_block)
        work = begin(network, region, plan, output, folder=folder, classes=left.classes)
        _announce(region, work)
        _note_blank(region, work, compute(work, stopped))
        finish(work, stopped)
    if stopped():
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


def _note_blank(region: Region, work: Work, blank: int) -> None:
    """Raw of 0 is what a chunk has that was not downloaded."""
    if blank:
        note(
            f"the raw of {region} is 0 throughout in {blank} of {len(work.left)} blocks; if that "
            "is not so, fetch its EM chunks, and predict it again with --overwrite"
        )

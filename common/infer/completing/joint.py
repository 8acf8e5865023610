"""Complete the labels of training crops by networks of single classes, for a joint network.

A crop becomes a folder of label volumes, {dataset}.zarr/{crop}/{class}, whole or not there at all.
A datasplit beside them names them, and the validation and test crops of the annotation. A crop that
is there is left as it is; where it would be made otherwise now, that is said.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from common import files, stopping
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.crops.cache import stamp_of_labels
from common.data.crops.palette import Rules
from common.data.crops.plan import told_apart
from common.data.samples.loaders import with_ids
from common.data.splits import regions, split
from common.data.splits.regions import Region
from common.data.splits.split import Row
from common.data.volumes import ngff
from common.errors import UserError
from common.infer.completing import class_networks
from common.infer.completing import crop as crop_module
from common.infer.completing.class_networks import ClassNetwork
from common.infer.completing.crop import CONFIDENCE, SOURCE, Completed, CropToComplete
from common.infer.networks.ensemble import load_network
from common.infer.predict import PredictCall, predict_region
from common.infer.predicting.output import Output
from common.stopping import ShouldStop
from common.talk import command_line, count, note, say, some

THRESHOLD = 0.33
"""Probability that a network must exceed for its class to be taken."""

RECORD = "joint.json"
"""Name of a file in the folder of a crop: what it was made of, and how much is known.

The file of that name beside the datasplit has the same of all crops.
"""

HEAD = "# made by joint init, whose next call replaces what is changed here"
"""First line of the datasplit."""


@dataclass(frozen=True)
class Joint:
    """What one call of `init` works on."""

    config: TrainConfig
    """Of the joint network."""
    networks: Sequence[ClassNetwork]
    """That complete its labels."""
    threshold: float
    """Probability that a network must exceed for its class to be taken."""
    datasplit: Path
    """The file that is written."""
    overwrite: bool
    """Whether crops are completed again that were completed otherwise."""
    stopped: ShouldStop
    """Asked after each block whether to end."""
    overrides: Sequence[str] = ()
    """"name=value" for settings, which training on the labels is to have, too."""


@dataclass(frozen=True)
class CropJob:
    """One training crop that is to be completed."""

    row: Row
    region: Region
    """Its box."""
    folder: Path
    """The folder that is written."""
    made_of: dict[str, Any] = field(repr=False)
    """What the labels depend on, as JSON has it."""
    completed: Completed | None = None
    """What came of the crop, where it is on disk as it would be completed now."""


def init(
    config_path: str | Path,
    members: str | Path = "",
    *,
    threshold: float = THRESHOLD,
    selective: bool = False,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
) -> Path:
    """Complete the labels of the training crops; return the datasplit of these, which is written.

    Raise UserError for a missing network, one that was trained on crops that judge, one that
    changed since crops were completed, and annotation that changed since; KeyboardInterrupt if it
    was stopped, and the same call goes on.

    Args:
        config_path: the experiment of the joint network.
        members: the experiment whose `train --each-class` trained the networks; the same one unless
            given.
        threshold: probability above which a network decides.
        selective: leave out crops without a positive voxel of any class.
        overwrite: complete crops again that would be completed otherwise now.
        overrides: settings as "name=value", of both.
        data: data root.
    """
    config = load_config(config_path, overrides, data)
    _refuse(config, threshold)
    path = _datasplit_to_write(config)
    annotation = config.path("datasplit_path")
    rows = split.read_datasplit(annotation, config.path("data_path"), with_test=True)
    _check_training(config, rows)
    networks = class_networks.find(config.classes, members or config_path, overrides, data)
    class_networks.refuse_judges(networks, rows)
    class_networks.note_other_voxels(networks, config)
    busy = f"{path.parent}: {{holder}} completes labels there; wait for it"
    with stopping.interruptible() as stopped, files.alone(path.parent / ".lock", otherwise=busy):
        joint = Joint(
            config,
            networks,
            threshold,
            path,
            overwrite=overwrite,
            stopped=stopped,
            overrides=overrides,
        )
        _join(joint, rows, selective=selective)
    return path


def _join(joint: Joint, rows: Sequence[Row], *, selective: bool) -> None:
    """Complete the training crops, and write the datasplit that has them."""
    jobs = [_job_of(joint, row) for row in rows if row.usage == "train"]
    completed = _complete_all(joint, jobs)
    kept = [job for job in jobs if completed[job.row.name].positive or not selective]
    if not kept:
        raise UserError(
            f"{joint.datasplit}: no training crop has a positive voxel; leave --selective out"
        )
    others = [row for row in rows if row.usage != "train"]
    _write_datasplit(joint, kept, others, completed)
    _report(joint, completed, left_out=len(jobs) - len(kept))


# What is refused, and where it goes


def _refuse(config: TrainConfig, threshold: float) -> None:
    """Raise UserError for a threshold and for classes that labels cannot be completed with."""
    if not 0 < threshold < 1:
        raise UserError(f"--threshold {threshold:g}; write a probability between 0 and 1")
    for name in (SOURCE, CONFIDENCE):
        if name in config.classes:
            raise UserError(
                f"{config.folder}: a class is called '{name}', as a volume beside the classes is; "
                "give it another name"
            )
    if len(config.classes) > 254:  # their numbers are stored in uint8
        raise UserError(f"{config.folder}: {len(config.classes)} classes; join at most 254")


def _check_training(config: TrainConfig, rows: Sequence[Row]) -> None:
    """Raise UserError for crops that are missing, and where derived channels are of a mask."""
    training = [row for row in rows if row.usage == "train"]
    split.refuse_of_one_name(training, "completed crops have their folders")
    split.check_files(training)
    for row in training:
        told_apart(row, [name for name in with_ids(config) if name in row.annotated])


def _datasplit_to_write(config: TrainConfig) -> Path:
    """Return the datasplit of completed crops; their labels lie beside it.

    Raise UserError where it is the one that is to be completed, or where another program wrote it.
    """
    path = config.folder / "joint" / "datasplit.csv"
    if path == config.path("datasplit_path"):
        raise UserError(
            f"{path}: is what joint init writes; set datasplit_path to the annotation's here, and "
            "train with --set datasplit_path=joint/datasplit.csv"
        )
    if path.is_file() and path.read_text(errors="replace").splitlines()[:1] != [HEAD]:
        raise UserError(f"{path}: is there, and was not made by joint init; move it away")
    return path


def _job_of(joint: Joint, row: Row) -> CropJob:
    """Return a crop with what is known of it.

    Raise UserError where it is on disk, and would be completed otherwise now.
    """
    region = regions.of_row(row)
    folder = region.folder(joint.datasplit.parent)
    job = CropJob(row, region, folder, _made_of(joint, row))
    stored = _stored(folder)
    if stored is None:
        return job
    made_of, completed = stored
    if made_of == job.made_of:
        return replace(job, completed=completed)
    if not joint.overwrite:
        raise UserError(
            f"{folder}: {_changes(made_of, job.made_of)} since its labels were completed; write "
            "--overwrite to complete all crops anew"
        )
    return job


def _made_of(joint: Joint, row: Row) -> dict[str, Any]:
    """Return what the labels of a crop depend on, as JSON has it."""
    stamps = {name: stamp_of_labels(row.class_volume(name)) for name in row.annotated}
    made_of = {
        "networks": {network.name: network.sha256 for network in joint.networks},
        "annotation": stamps,
        "with_ids": crop_module.with_ids(row),
        "threshold": joint.threshold,
        "rules": asdict(Rules.of(joint.config)),
    }
    # as it is read back: tuples are lists there
    return json.loads(json.dumps(made_of))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words how crops would be completed otherwise now.

    before, now: as of `_made_of`.
    """
    parts = []
    for what, words in (("networks", "the network of"), ("annotation", "the annotation of")):
        was = before.get(what, {})
        names = [name for name in {**was, **now[what]} if was.get(name) != now[what].get(name)]
        if names:
            parts.append(f"{words} {some(names)} changed")
    if before["with_ids"] != now["with_ids"]:
        parts.append(f"ids are kept of {some(now['with_ids'])}")
    if before.get("threshold") != now["threshold"]:
        parts.append(f"--threshold was {before.get('threshold')} and is {now['threshold']}")
    if before.get("rules") != now["rules"]:
        parts.append("what labels imply changed (use_mutual_exclusion and the settings beside it)")
    return "; ".join(parts)


def _stored(folder: Path) -> tuple[dict[str, Any], Completed] | None:
    """Return what a crop was completed by, and what came of it; None if it is not completed.

    Raise UserError for a record that cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text())
        values = dict(stored["completed"])
        completed = Completed(**{**values, "classes": tuple(values["classes"])})
        # crops that were completed before ids were kept have none
        return {"with_ids": [], **stored["made_of"]}, completed
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); remove the folder {folder}, and it is made anew"
        ) from error


# Completing


def _complete_all(joint: Joint, jobs: Sequence[CropJob]) -> dict[str, Completed]:
    """Complete the crops that are not on disk as they would be completed now; return all by name.

    Each network predicts all of them before the next one does: one at a time is in memory. Raise
    KeyboardInterrupt if it was stopped.
    """
    completed = {job.row.name: job.completed for job in jobs if job.completed}
    incomplete = [job for job in jobs if not job.completed]
    if completed:
        say(f"{count(len(completed), 'crop')} of {len(jobs)} completed already")
    for network in joint.networks if incomplete else ():
        call = PredictCall(
            load_network(network.config),
            network.config,
            Output(),
            overwrite=joint.overwrite,
            stopped=joint.stopped,
        )
        for job in incomplete:
            predict_region(call, job.region, [network.name])
    for job in incomplete:
        if joint.stopped():
            say("interrupted; the same command goes on")
            raise KeyboardInterrupt
        completed[job.row.name] = _complete(joint, job)
        say(f"{job.row.name}: {completed[job.row.name]}")
    return completed


def _complete(joint: Joint, job: CropJob) -> Completed:
    """Write the labels of one crop, whole or not at all."""
    predicted = []
    for network in joint.networks:
        folder = job.region.folder(network.config.path("predictions_path"))
        predicted.append(ngff.open_levels(folder / network.name)[0])
    crop = CropToComplete(
        job.row, joint.config.classes, predicted, joint.threshold, rules=Rules.of(joint.config)
    )
    unfinished = job.folder.with_name(f".{job.folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        completed = crop_module.write(crop, unfinished)
    except OSError as error:
        raise files.not_written(unfinished, error) from error
    content = {"made_of": job.made_of, "completed": asdict(completed)}
    files.write_json(unfinished / RECORD, content)
    shutil.rmtree(job.folder, ignore_errors=True)
    unfinished.rename(job.folder)
    return completed


# What is written of all crops, and said


def _write_datasplit(
    joint: Joint,
    kept: Sequence[CropJob],
    others: Sequence[Row],
    completed: Mapping[str, Completed],
) -> None:
    """Write the datasplit, and the record of all crops beside it.

    Args:
        joint: the call.
        kept: training crops of the datasplit.
        others: rows that validate or are held out, which stay as people annotated them.
        completed: what came of all crops, by name.
    """
    rows = []
    for job in kept:
        classes = completed[job.row.name].classes
        if classes:
            rows.append(Row("train", job.row.raw, job.folder, classes))
        else:
            note(f"{job.row.name} is left out: nothing is known of any class")
    lines = [HEAD, *map(split.text_of, [*rows, *others])]
    files.write_text(joint.datasplit, "".join(f"{line}\n" for line in lines))
    networks = {}
    for network in joint.networks:
        path = str(network.checkpoint)
        networks[network.name] = {"checkpoint": path, "sha256": network.sha256}
    record = {
        "networks": networks,
        "threshold": joint.threshold,
        "crops": {name: asdict(counts) for name, counts in completed.items()},
    }
    files.write_json(joint.datasplit.parent / RECORD, record)


def _report(joint: Joint, completed: Mapping[str, Completed], *, left_out: int) -> None:
    """Say how much is known now, and how to train on it. left_out: number of crops."""
    total = sum(completed.values(), Completed())
    say(f"{count(len(completed), 'crop')}: {total}")
    if left_out:
        say(f"{left_out} of them left out, without a positive voxel (--selective)")
    config = joint.config
    settings = [
        *joint.overrides,
        f"datasplit_path={joint.datasplit.relative_to(config.folder)}",
        f"run_name={config.run_name}-joint",
    ]
    data = config.path("data_path")
    say(f"next: {command_line('train', config.folder, set=settings, data=data)}")

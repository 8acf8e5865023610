"""Complete the labels of training crops by networks of single classes, for a joint network.

A crop becomes a folder of label volumes, {dataset}.zarr/{crop}/{class}, whole or not there at all.
A datasplit beside them names them, and the validation and test crops of the annotation. A crop that
is there is left as it is; where it would be made otherwise now, that is said.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from common import files, stopping
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data import ngff, pseudo, regions, regrid, split
from common.data.annotation import LabelReader
from common.data.box import boxes
from common.data.crop_cache import stamp_of_labels
from common.data.decode import Labels, encode_known
from common.data.level import Grid, Level
from common.data.palette import CODE_OF_UNKNOWN, UNKNOWN
from common.data.regions import Region
from common.data.split import Row
from common.errors import UserError
from common.infer import members as members_module
from common.infer.ensemble import load_network
from common.infer.members import Member
from common.infer.predict import Run, predict_region
from common.infer.work import Output
from common.talk import command_line, count, note, progress, say, some

THRESHOLD = 0.33
"""Probability that a network must exceed for its class to be taken."""

CHUNK = 64
"""Edge of the blocks that are completed at once, and of the chunks that are stored."""

SOURCE = "source"
CONFIDENCE = "confidence"
"""Volumes beside the classes of a crop: whose network was the surest, and how sure."""

RECORD = "joint.json"
"""In the folder of a crop: what it was made of, and how much is known. Beside the datasplit: the
same of all crops."""

HEAD = "# made by joint init, whose next call replaces what is changed here"


@dataclass(frozen=True)
class Completed:
    """What came of a crop: numbers of (voxel, class) pairs."""

    pairs: int = 0
    before: int = 0
    """Annotated, or following from that."""
    after: int = 0
    """With what networks add."""
    positive: int = 0
    """Those of them that are positive."""
    classes: tuple[str, ...] = ()
    """Those of which anything is known."""

    def __add__(self, other: Completed) -> Completed:
        classes = tuple(dict.fromkeys([*self.classes, *other.classes]))
        return Completed(
            pairs=self.pairs + other.pairs,
            before=self.before + other.before,
            after=self.after + other.after,
            positive=self.positive + other.positive,
            classes=classes,
        )

    def __str__(self) -> str:
        before = self.before / self.pairs
        return f"{before:.1%} of the labels were known, {self.after / self.pairs:.1%} are now"


@dataclass(frozen=True)
class Joint:
    """What one call of `init` works on."""

    config: TrainConfig
    """Of the joint network."""
    members: Sequence[Member]
    threshold: float
    datasplit: Path
    """That is written."""
    overwrite: bool
    stopped: Callable[[], bool]

    @property
    def rules(self) -> pseudo.Rules:
        """What labels imply for others."""
        config = self.config
        return pseudo.Rules(
            config.use_mutual_exclusion,
            config.infer_groups,
            config.exclusive_classes,
            config.class_relations,
        )


@dataclass(frozen=True)
class CropJob:
    """One training crop."""

    row: Row
    region: Region
    folder: Path
    """That is written."""
    made_of: dict[str, Any] = field(repr=False)
    """What its labels depend on, as it is stored."""
    completed: Completed | None = None
    """What came of it, where it is there as it would be made now."""


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
    """Complete the labels of the training crops; write and return the datasplit that has them.

    Args:
        config_path: the experiment of the joint network.
        members: the experiment whose `train --each-class` trained the networks; the same one unless
            given.
        threshold: probability above which a network decides.
        selective: leave out crops without a positive voxel of any class.
        overwrite: make crops anew that would be made otherwise now.
        overrides: settings as "name=value", of both.
        data: data root.

    Raises:
        UserError: for a missing network, one that was trained on crops that judge, one that changed
            since crops were completed, and annotation that changed since.
        KeyboardInterrupt: if it was stopped; the same call goes on.
    """
    config = load_config(config_path, overrides, data)
    _refuse(config, threshold)
    path = _datasplit_to_write(config)
    rows = _rows(config)
    found = members_module.find(config.classes, members or config_path, overrides, data)
    members_module.refuse_judges(found, rows)
    split.check_files([row for row in rows if row.usage == "train"])
    with stopping.interruptible() as stopped, _alone_in(path.parent):
        joint = Joint(config, found, threshold, path, overwrite=overwrite, stopped=stopped)
        _join(joint, rows, selective=selective)
    return path


def _rows(config: TrainConfig) -> list[Row]:
    """The annotated crops, those of each usage."""
    datasplit = config.path("datasplit_path")
    return split.read_datasplit(datasplit, config.path("data_path"), with_test=True)


def _alone_in(folder: Path) -> AbstractContextManager[None]:
    """Context manager: this process alone completes labels there."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: {{holder}} completes labels there; wait for it"
    return files.alone(folder / ".lock", otherwise=busy)


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


def _datasplit_to_write(config: TrainConfig) -> Path:
    """The datasplit of completed crops; beside it stand their labels.

    Raises UserError where it is the one that is to be completed, or where somebody else wrote it.
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
    """What is to be done of a crop.

    Raises UserError where it is there, and would be made otherwise now.
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
    """What the labels of a crop depend on, as JSON has it."""
    stamps = {}
    for name in row.annotated:
        volume = row.class_volume(name)
        stamps[name] = stamp_of_labels(volume, ngff.open_levels(volume)[0])
    made_of = {
        "networks": {member.name: member.sha256 for member in joint.members},
        "annotation": stamps,
        "threshold": joint.threshold,
        "rules": asdict(joint.rules),
    }
    # as it is read back: tuples are lists there
    return json.loads(json.dumps(made_of))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, in what crops were made otherwise."""
    parts = []
    for what, words in (("networks", "the network of"), ("annotation", "the annotation of")):
        was = before.get(what, {})
        names = [name for name in {**was, **now[what]} if was.get(name) != now[what].get(name)]
        if names:
            parts.append(f"{words} {some(names)} changed")
    if before.get("threshold") != now["threshold"]:
        parts.append(f"--threshold was {before.get('threshold')} and is {now['threshold']}")
    if before.get("rules") != now["rules"]:
        parts.append("what labels imply changed (use_mutual_exclusion and the settings beside it)")
    return "; ".join(parts)


def _stored(folder: Path) -> tuple[dict[str, Any], Completed] | None:
    """What a completed crop was made of, and what came of it; None where it was not completed."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text())
        values = dict(stored["completed"])
        completed = Completed(**{**values, "classes": tuple(values["classes"])})
        return dict(stored["made_of"]), completed
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); remove the folder {folder}, and it is made anew"
        ) from error


# Completing


def _complete_all(joint: Joint, jobs: Sequence[CropJob]) -> dict[str, Completed]:
    """Complete the crops that are not there as they would be made now.

    Network by network all of them are predicted, so that one network at a time is in memory.
    """
    completed = {job.row.name: job.completed for job in jobs if job.completed}
    left = [job for job in jobs if not job.completed]
    if completed:
        say(f"{count(len(completed), 'crop')} of {len(jobs)} completed already")
    for member in joint.members if left else ():
        run = Run(
            load_network(member.config),
            member.config,
            Output(),
            overwrite=joint.overwrite,
            stopped=joint.stopped,
        )
        for job in left:
            predict_region(run, job.region, [member.name])
    for job in left:
        if joint.stopped():
            say("interrupted; the same command goes on")
            raise KeyboardInterrupt
        completed[job.row.name] = _complete(joint, job)
        say(f"{job.row.name}: {completed[job.row.name]}")
    return completed


def _complete(joint: Joint, job: CropJob) -> Completed:
    """Write the labels of one crop, whole or not at all."""
    unfinished = job.folder.with_name(f".{job.folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        completed = _write_crop(joint, job, unfinished)
    except OSError as error:
        raise files.not_written(unfinished, error) from error
    content = {"made_of": job.made_of, "completed": asdict(completed)}
    files.write_json(unfinished / RECORD, content)
    shutil.rmtree(job.folder, ignore_errors=True)
    unfinished.rename(job.folder)
    return completed


def _write_crop(joint: Joint, job: CropJob, folder: Path) -> Completed:
    """Write the volumes of a crop block by block."""
    classes = joint.config.classes
    readers = _readers(job)
    grid = readers[0].level.grid
    predicted = [_prediction(member, job) for member in joint.members]
    written = _Written.begin(folder, grid, classes)
    completed = Completed()
    known = np.zeros(len(classes), bool)
    blocks = list(boxes(grid.shape, (CHUNK,) * 3))
    with progress(len(blocks), f"completing {job.row.name}", unit="block") as bar:
        for start, stop in blocks:
            labels = _known_labels(readers, classes, joint.rules, start=start, stop=stop)
            place = Grid(grid.origin + start * grid.scale, grid.scale, tuple(stop - start))
            probabilities = np.stack([regrid.ids(level, place) for level in predicted])
            filled = pseudo.fill(
                labels, probabilities, classes, threshold=joint.threshold, rules=joint.rules
            )
            written.write(start, stop, filled)
            known |= (filled.labels != UNKNOWN).any(axis=(1, 2, 3))
            completed += Completed(
                pairs=labels.size,
                before=int(np.count_nonzero(labels != UNKNOWN)),
                after=int(np.count_nonzero(filled.labels != UNKNOWN)),
                positive=int(np.count_nonzero(filled.labels == 1)),
            )
            bar.update()
    for reader in readers:
        reader.check_whole()
    written.finish(grid)
    names = [name for name, is_known in zip(classes, known, strict=True) if is_known]
    return completed + Completed(classes=tuple(names))


def _readers(job: CropJob) -> list[LabelReader]:
    """The annotated volumes of a crop. Raises UserError where they do not share one grid."""
    readers = []
    for name in job.row.annotated:
        level = ngff.open_levels(job.row.class_volume(name))[0]
        if pseudo.of_networks(level) is not None:
            raise UserError(
                f"{level.group}: has labels of networks already; write the crops of the "
                "annotation into the datasplit that joint init reads"
            )
        readers.append(LabelReader(level, name))
    first = readers[0].level.grid
    for reader in readers:
        grid = reader.level.grid
        if grid.shape != first.shape or not np.allclose(grid.origin, first.origin, atol=0.5):
            raise UserError(
                f"{reader.level.group}: not on the grid of '{job.row.annotated[0]}'; the classes "
                "of a crop share one grid"
            )
    return readers


def _prediction(member: Member, job: CropJob) -> Level:
    folder = job.region.folder(member.config.path("predictions_path"))
    return ngff.open_levels(folder / member.name)[0]


def _known_labels(
    readers: Sequence[LabelReader],
    classes: Sequence[str],
    rules: pseudo.Rules,
    *,
    start: np.ndarray,
    stop: np.ndarray,
) -> np.ndarray:
    """(classes, z, y, x) int8: what is annotated in a block, and what follows from it."""
    annotated = [reader.name for reader in readers]
    names = [*annotated, *(name for name in classes if name not in annotated)]
    index, combinations = encode_known([Labels(*reader.read(start, stop)) for reader in readers])
    palette = np.full((len(combinations), len(names)), UNKNOWN, np.int8)
    palette[:, : len(annotated)] = combinations
    palette = rules.complete(palette, names)[:, [names.index(name) for name in classes]]
    return np.moveaxis(palette[index], -1, 0)


@dataclass(frozen=True)
class _Written:
    """The arrays of a crop that is being written."""

    folder: Path
    labels: Mapping[str, zarr.Array]
    of_networks: Mapping[str, zarr.Array]
    source: zarr.Array
    confidence: zarr.Array

    @classmethod
    def begin(cls, folder: Path, grid: Grid, classes: Sequence[str]) -> _Written:
        chunks = (CHUNK,) * 3
        encoding = {"absent": 0, "present": 1, "unknown": CODE_OF_UNKNOWN}
        about = {"type": "semantic_segmentation", "encoding": encoding}
        attributes = {"cellmap": {"annotation": {"annotation_type": about}}}
        labels = {}
        of_networks = {}
        for name in classes:
            path = folder / name
            labels[name] = ngff.start_multiscale(
                path, grid, np.uint8, chunks, attributes=attributes
            )
            of_networks[name] = ngff.add_array(path, pseudo.ARRAY)
        numbers = {str(number): name for number, name in enumerate(classes, 1)}
        return cls(
            folder,
            labels,
            of_networks,
            source=ngff.start_multiscale(
                folder / SOURCE, grid, np.uint8, chunks, attributes={"networks": numbers}
            ),
            confidence=ngff.start_multiscale(
                folder / CONFIDENCE, grid, np.uint8, chunks, attributes={"unit": "1/255"}
            ),
        )

    def write(self, start: np.ndarray, stop: np.ndarray, filled: pseudo.Filled) -> None:
        """Write a block."""
        where = ngff.slices(start, stop)
        for number, name in enumerate(self.labels):
            of_class = filled.labels[number]
            stored = np.where(of_class == UNKNOWN, CODE_OF_UNKNOWN, of_class)
            self.labels[name][where] = stored.astype(np.uint8)
            self.of_networks[name][where] = filled.is_pseudo[number].astype(np.uint8)
        self.source[where] = filled.source
        self.confidence[where] = filled.confidence

    def finish(self, grid: Grid) -> None:
        """Make images of the volumes."""
        for name in (*self.labels, SOURCE, CONFIDENCE):
            ngff.finish_multiscale(self.folder / name, grid, [], ngff.pick)


# What is written of all crops, and said


def _write_datasplit(
    joint: Joint,
    kept: Sequence[CropJob],
    others: Sequence[Row],
    completed: Mapping[str, Completed],
) -> None:
    """Write the datasplit, and the record of all crops beside it.

    others: rows that validate or are held out, which stay as people annotated them.
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
    for member in joint.members:
        networks[member.name] = {"checkpoint": str(member.checkpoint), "sha256": member.sha256}
    record = {
        "networks": networks,
        "threshold": joint.threshold,
        "crops": {name: asdict(of_crop) for name, of_crop in completed.items()},
    }
    files.write_json(joint.datasplit.parent / RECORD, record)


def _report(joint: Joint, completed: Mapping[str, Completed], *, left_out: int) -> None:
    total = sum(completed.values(), Completed())
    say(f"{count(len(completed), 'crop')}: {total}")
    if left_out:
        say(f"{left_out} of them left out, without a positive voxel (--selective)")
    config = joint.config
    settings = [
        f"datasplit_path={joint.datasplit.relative_to(config.folder)}",
        f"run_name={config.run_name}-joint",
    ]
    data = config.path("data_path")
    say(f"to train on them:\n  {command_line('train', config.folder, set=settings, data=data)}")

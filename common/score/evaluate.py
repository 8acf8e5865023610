"""Score processed crops, or a packed submission, against the annotation, from top to bottom.

The result is written as JSON, see `common.score.result`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType

from common.classes import INSTANCES
from common.config.arguments import as_typed
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.splits import regions
from common.data.splits.regions import Region
from common.data.volumes import ngff, regrid
from common.data.volumes.records import ProcessedRecord
from common.errors import UserError, collect
from common.files import REPOSITORY, refuse_unwritable
from common.infer.processing.recipe import (
    THRESHOLDS,
    Recipe,
    load_recipe,
    read_thresholds,
    refuse_classes_of_others,
    run_of,
)
from common.infer.processing.record import check_processed
from common.provenance import now, provenance
from common.score import judge, kept, submission, submitted, versions
from common.score.judge import Evaluation, Truth
from common.score.publish import note_networks, note_values, publish
from common.score.result import Asked, Checkpoint, Provenance, Scores
from common.score.submitted import SubmittedCrop
from common.score.summary import summary
from common.score.versions import CSC, Version
from common.score.workers import Workers, parallel
from common.talk import Say, note, some


@dataclass(frozen=True)
class Job:
    """One class in one crop: what a process needs to read and score it."""

    crop: str
    name: str
    """The class."""
    truth: Path
    """Multiscale group of the annotation."""
    processed: Path
    """Multiscale group that `process` wrote."""
    predicted: Path
    """Multiscale group that `predict` wrote."""
    is_instance: bool
    """Whether the class is scored by its objects."""
    version: Version = CSC
    """Version of the challenge's score."""
    kept: Path | None = None
    """Folder of what is scored already, see `common.score.kept`."""


@as_typed()
def evaluate(  # noqa: PLR0913  the options of the command
    config_path: str | Path,
    crops: str = "validate",
    *,
    classes: Sequence[str] = (),
    manifest_path: str = "",
    write_readme: bool = False,
    metric_version: str = CSC.name,
    workers: Workers = 1,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    say: Say = print,
) -> Scores:
    """Score the volumes of annotated crops, write the scores, return them. Raises as `check`.

    A call that was stopped is gone on with, see `common.score.kept`.

    Args:
        config_path: folder of an experiment, or its train_config.py.
        crops: see `common.data.splits.regions.find`.
        classes: some of process_config.py's; all unless given.
        manifest_path: table of test crops.
        write_readme: also into the experiment's README, with a picture.
        metric_version: of the challenge's score, see `common.score.versions`.
        workers: processes, or a crew.
        overrides: settings as NAME=VALUE.
        data: root of the data.
        say: takes what is told.
    """
    version = versions.find(metric_version)
    config = load_config(config_path, overrides, data)
    recipe = load_recipe(config, classes)
    if write_readme:
        _readme().check(config)
    chosen = regions.choose(config, crops, manifest_path=manifest_path, say=say)
    boxes = [box for box in chosen if box.truth]
    path = config.path("results_path") / result_name(crops, classes, version)
    refuse_unwritable(path)
    asked = Asked(crops, tuple(classes), tuple(overrides))
    folder = kept.folder_of(path)
    jobs = _jobs(config, recipe, boxes, version, folder=folder)
    scores = _score(config, recipe, jobs, asked, version=version, workers=workers)
    publish(scores, path, say)
    kept.forget(folder)
    if write_readme:
        say(str(_readme().write_scores(config, boxes, scores, say)))
    return scores


def evaluate_submission(
    path: str | Path,
    truth: str | Path,
    *,
    result_path: str | Path = "result.json",
    instance_classes: Collection[str] = INSTANCES,
    metric_version: str = CSC.name,
    workers: Workers = 1,
    say: Say = print,
) -> Scores:
    """Score a packed submission, write the scores as JSON and return them.

    A class that the submission lacks counts as missing, as in the challenge.

    Args:
        path: the submission, see `common.score.submission.opened`.
        truth: store of {crop}/{class}, and {class}_mask where only a part is annotated. Arrays of
            both have the attributes voxel_size and translation (centre of the first voxel) in nm.
        result_path: the JSON file.
        instance_classes: those that are scored by their objects.
        metric_version: of the challenge's score, see `common.score.versions`.
        workers: processes, or a crew.
        say: takes what is told, tables included.

    Raises:
        FileNotFoundError: without a submission or truths.
        UserError: where one of them is not what it should be.
    """
    version = versions.find(metric_version)
    refuse_unwritable(result_path)
    folder = kept.folder_of(Path(result_path))
    like = SubmittedCrop(
        Path(path), Path(truth), "", version, frozenset(instance_classes), kept=folder
    )
    evaluations = _judge_submission(like, workers)
    about = Provenance(
        date=now(), versions=provenance(REPOSITORY), submission=str(path), truth=str(truth)
    )
    scores = replace(summary(evaluations, version), provenance=about)
    publish(scores, Path(result_path), say)
    kept.forget(folder)
    _say_refused(evaluations, say)
    note_values(evaluations)
    _note_unknown(evaluations)
    return scores


def check(recipe: Recipe, job: Job) -> ProcessedRecord | None:
    """Return the record of a processed volume; None if another program wrote it.

    Raises FileNotFoundError or UserError if the volume is not complete, does not cover the crop, or
    was made of another prediction, other code or other thresholds than there are now.
    """
    truth = ngff.open_levels(job.truth)[0]
    level, record = check_processed(recipe, job.name, job.processed, job.predicted)
    if not regrid.covers(level, truth.grid):
        raise UserError(
            f"{job.processed}: {regrid.shortfall(level, truth.grid)} of {job.crop}; "
            "predict and process the whole crop"
        )
    return record


def judge_job(job: Job) -> Evaluation:
    """Read a class of a crop and score it on the voxels of the annotation."""
    return kept.once(job, _judge_job, [job.truth, job.processed])


def _judge_job(job: Job) -> Evaluation:
    level = ngff.open_levels(job.truth)[0]
    truth = Truth(job.crop, job.name, level, job.is_instance, version=job.version)
    try:
        return judge.judge(truth, ngff.open_levels(job.processed)[0])
    except UserError as error:
        if str(error).startswith("prediction"):  # of arrays, which have no path
            raise UserError(f"{job.processed}: {error}") from error
        raise


def result_name(crops: str, classes: Sequence[str] = (), version: Version = CSC) -> str:
    """Return the name of the file of scores for a set of crops and classes.

    It is scores.json for all classes of the crops that validate, else scores_CROPS_CLASSES.json,
    with the version of the metric where that is not CSC.
    """
    is_usual = crops == "validate" and not classes
    parts = [] if is_usual else [crops.replace(" ", "")]
    if classes:
        parts.append(",".join(classes))
    if version != CSC:
        parts.append(version.name)
    words = "_".join(filter(None, parts))
    name = re.sub(r"[^\w,.-]", "-", words.replace("*", "all"))[:80]
    # what is shortened, or changed in a way that another may be too, is told apart by its checksum
    if words not in (name, "*"):
        name += f"_{zlib.crc32(words.encode()):08x}"
    return f"scores_{name}.json" if name else "scores.json"


def _readme() -> ModuleType:
    """Import the module that writes READMEs: it needs Pillow, which scoring does without."""
    from common.score import readme

    return readme


def _score(
    config: TrainConfig,
    recipe: Recipe,
    jobs: Sequence[Job],
    asked: Asked,
    *,
    version: Version,
    workers: Workers,
) -> Scores:
    """Check all volumes, then score them. Raises as `evaluate` does."""
    if not jobs:
        raise UserError(
            f"--crops {asked.crops}: no annotated crop has one of these classes; "
            "test crops are scored by the organisers"
        )
    refuse_classes_of_others(config, {job.name: job.processed.is_dir() for job in jobs})
    # what is wrong with any of them is said before the minutes of work
    records = collect(partial(check, recipe), jobs)
    predictions = []
    for job, record in zip(jobs, records, strict=True):
        if record is not None:
            predictions.append((job.crop, job.name, record.prediction))
    note_networks(predictions)
    evaluations = parallel(judge_job, jobs, workers)
    note_values(evaluations)
    evaluations = _known_ones(evaluations)
    about = _provenance(config, jobs, records)
    # without checkpoints of tune, process_config.py has thresholds of its own or nobody has
    if recipe.checkpoints:
        tuned_on = _tuned_on(config, recipe, asked, jobs=jobs, records=records)
        about = replace(about, tuned_on=tuned_on)
    annotated = {evaluation.name for evaluation in evaluations}
    return replace(
        summary(evaluations, version),
        asked=asked,
        not_annotated=tuple(name for name in recipe.classes if name not in annotated),
        provenance=about,
    )


def _known_ones(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the evaluations whose annotation is known in at least one voxel.

    The others would score 1, the best there is: nothing can be missed or found wrongly. Raises
    UserError if none is left.
    """
    known = [evaluation for evaluation in evaluations if evaluation.is_known]
    unknown = _where_unknown(evaluations)
    if not known:
        raise UserError(f"nothing is known of {some(unknown)}: the annotation is unknown there")
    if unknown:
        note(f"not scored, since the annotation is unknown throughout: {some(unknown)}")
    return known


def _where_unknown(evaluations: Sequence[Evaluation]) -> list[str]:
    unknown = [evaluation for evaluation in evaluations if not evaluation.is_known]
    return [f"{evaluation.crop}/{evaluation.name}" for evaluation in unknown]


def _judge_submission(like: SubmittedCrop, workers: Workers) -> list[Evaluation]:
    """Score all classes of all crops. Raises as `evaluate_submission` does.

    like: the job of a crop, whose name is filled in here.
    """
    crops = submitted.crops_of(like.truths)
    with submission.opened(like.submission):
        pass  # so that what is wrong with it is said once, and first
    jobs = [replace(like, crop=crop) for crop in crops]
    evaluations: list[Evaluation] = []
    for of_crop in parallel(submitted.judge_crop, jobs, workers):
        evaluations += of_crop
    if not evaluations:
        raise UserError(
            f"{like.truths}: no arrays {{crop}}/{{class}} in it; write the store of the truths"
        )
    return evaluations


def _note_unknown(evaluations: Sequence[Evaluation]) -> None:
    """Note the classes in crops that the challenge scores although their truth is unknown."""
    unknown = _where_unknown(evaluations)
    if unknown:
        note(f"scored 1, since the truth is unknown throughout: {some(unknown)}")


def _say_refused(evaluations: Sequence[Evaluation], say: Say) -> None:
    """Say which volumes of a submission could not be scored."""
    lines = submitted.refused(evaluations)
    if lines:
        say("\n".join(["", *lines]))


def _jobs(
    config: TrainConfig,
    recipe: Recipe,
    boxes: Sequence[Region],
    version: Version,
    *,
    folder: Path,
) -> list[Job]:
    """Return a job for each class and each annotated box that has it, class by class.

    folder: of what is scored already.
    """
    jobs = []
    for name in recipe.classes:
        for box in boxes:
            if name in box.classes:
                job = Job(
                    crop=str(box),
                    name=name,
                    truth=box.truth_of(name),
                    processed=box.folder(config.path("processed_path")) / name,
                    predicted=box.folder(config.path("predictions_path")) / name,
                    is_instance=recipe.is_scored_by_objects(name),
                    version=version,
                    kept=folder,
                )
                jobs.append(job)
    return jobs


def _provenance(
    config: TrainConfig, jobs: Sequence[Job], records: Sequence[ProcessedRecord | None]
) -> Provenance:
    """Return checkpoints and thresholds on record, versions, commit and date."""
    checkpoints = {_checkpoint(record): None for record in records}
    thresholds = {}
    for job, record in zip(jobs, records, strict=True):
        thresholds[job.name] = record.threshold if record else None
    return Provenance(
        date=now(),
        versions=provenance(REPOSITORY),
        experiment=config.folder.name,
        model_name=config.model_name,
        run_name=config.run,
        checkpoints=tuple(sorted(checkpoints, key=str)),
        thresholds=thresholds,
    )


def _tuned_on(
    config: TrainConfig,
    recipe: Recipe,
    asked: Asked,
    *,
    jobs: Sequence[Job],
    records: Sequence[ProcessedRecord | None],
) -> dict[str, list[str]]:
    """Return for each class the scored crops that `tune` chose its threshold on.

    A thresholds.json of an older version names no crops; then all crops count if `--crops` was the
    same for `tune` and `evaluate`.
    """
    tuned = read_thresholds(config.folder / THRESHOLDS).get(run_of(config), {})
    crops: dict[str, list[str]] = {}
    for job, record in zip(jobs, records, strict=True):
        # a class may have a threshold of process_config.py's own
        if record is None or job.name not in recipe.checkpoints:
            continue
        entry = tuned[job.name]
        names = entry.get("chosen_on")
        is_same = entry.get("crops") == asked.crops if names is None else job.crop in names
        if is_same:
            crops.setdefault(job.name, []).append(job.crop)
    return crops


def _checkpoint(record: ProcessedRecord | None) -> Checkpoint:
    names = [field.name for field in fields(Checkpoint)]
    prediction = record.prediction if record else None
    return Checkpoint(**{name: getattr(prediction, name, None) for name in names})

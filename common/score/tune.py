"""Choose the threshold of each class that scores best on annotated crops.

48 classes in 41 crops annotated on 400^3 voxels take about three hours, by the number of processes,
see `common.score.trials`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config.arguments import as_typed
from common.config.kinds import is_a
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.splits import regions
from common.data.volumes import ngff, regrid
from common.errors import UserError, collect
from common.files import alone, refuse_unwritable, write_json
from common.infer.processing.prediction import Prediction, open_prediction
from common.infer.processing.recipe import (
    THRESHOLDS,
    Recipe,
    functions_of,
    read_recipe,
    read_thresholds,
    refuse_classes_of_others,
    run_of,
)
from common.provenance import now
from common.score import kept, tune_words, versions
from common.score.best_thresholds import Tuned, search
from common.score.judge import beside, beside_text
from common.score.publish import note_networks
from common.score.trials import COARSE, Trial
from common.score.versions import CSC, Version
from common.score.workers import Workers
from common.talk import Say, some


@as_typed()
def tune(  # noqa: PLR0913  the options of the command
    config_path: str | Path,
    crops: str = "validate",
    *,
    classes: Sequence[str] = (),
    folds: int = 0,
    metric_version: str = CSC.name,
    workers: Workers = 1,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    say: Say = print,
) -> list[Tuned]:
    """Choose and write the threshold of each class. Raises FileNotFoundError or UserError.

    A call that was stopped is gone on with, see `common.score.kept`.

    Args:
        config_path: folder of an experiment, or its train_config.py.
        crops: annotated and predicted ones, see `common.data.splits.regions.find`.
        classes: some of process_config.py's; all unless given.
        folds: of a cross-validation over crops, whose score is told as well; 0 for none.
        metric_version: of the score, see `common.score.versions`.
        workers: processes or a crew, each process with the memory that `evaluate` takes.
        overrides: settings as NAME=VALUE.
        data: root of the data.
        say: takes what is told.
    """
    version = versions.find(metric_version)
    config = load_config(config_path, overrides, data)
    recipe = read_recipe(config.path("process_config_path"), classes)
    path = config.folder / THRESHOLDS
    _check_thresholds(recipe, path)
    folder = kept.folder_of(path, run_of(config), crops, classes, version.name)
    boxes = _boxes(config, crops, folds, say)
    trials = _trials(config, recipe, boxes, version, folder=folder)
    checkpoints = _checkpoints(trials, say)
    tuned = search(trials, workers, folds, options=recipe.settings.instance_options)
    _refuse_none(tuned, recipe, crops)
    about = {"crops": crops, "metric": version.name, "functions": functions_of(recipe)}
    _say_each(tune_words.table(tuned), say)  # before writing, as the disk may be full by now
    add(path, run_of(config), _records(tuned, about, checkpoints))
    lines = tune_words.remarks(path, recipe, tuned) + tune_words.everywhere(tuned)
    _say_each(lines + tune_words.at_edges(tuned, trials, workers), say)
    kept.forget(folder)
    return tuned


def _boxes(config: TrainConfig, crops: str, folds: int, say: Say) -> list[regions.Region]:
    """Return the chosen boxes. Raises UserError for more folds than annotated ones."""
    boxes = regions.choose(config, crops, with_test=False, say=say)
    _check_folds(folds, boxes)
    return boxes


def add(path: Path, run: str, records: Mapping[str, Any]) -> None:
    """Write the entries of some classes of a run into thresholds.json; all others stay."""
    # read now: while this call searched, another one may have added its classes
    with alone(path.with_name(f".{path.name}.lock"), wait=True):
        runs = read_thresholds(path)
        runs.setdefault(run, {}).update(records)
        write_json(path, runs)


def _say_each(lines: Sequence[str], say: Say) -> None:
    for line in lines:
        say(line)


def _check_thresholds(recipe: Recipe, path: Path) -> None:
    """Raise UserError if thresholds would have no effect, or could not be added to the file."""
    read_thresholds(path)
    own = [name for name in recipe.classes if name in recipe.thresholds]
    if own:
        raise UserError(
            f"{recipe.path}: thresholds are set there for {some(own)}, and go before those that "
            "tune writes; remove them, or tune --classes others"
        )
    refuse_unwritable(path)


def _check_folds(folds: int, boxes: Sequence[regions.Region]) -> None:
    """Raise UserError for one fold, and for more than there are crops."""
    if folds and not (is_a(int, folds) and folds > 1):
        raise UserError(f"--folds {folds}; write 2 or more, or leave it out")
    number = sum(box.truth is not None for box in boxes)
    if folds <= number:
        return
    if number < 2:
        raise UserError(
            f"--folds {folds}: thresholds are chosen on one crop, which no other one can judge; "
            "leave --folds out, or name more crops"
        )
    raise UserError(
        f"--folds {folds}: there are {number} crops; write {number}, which leaves each of them out "
        "once, or fewer"
    )


def _refuse_none(tuned: Sequence[Tuned], recipe: Recipe, crops: str) -> None:
    """Raise UserError if no class has a positive voxel."""
    if not tuned:
        names = some(recipe.classes, 10)
        raise UserError(f"--crops {crops}: none of these crops has a positive voxel of {names}")


def _trials(
    config: TrainConfig,
    recipe: Recipe,
    boxes: Sequence[regions.Region],
    version: Version,
    *,
    folder: Path,
) -> list[Trial]:
    """Return a trial at COARSE for each class and each crop that annotates it, class by class.

    folder: of what is tried already.

    Raises UserError for classes that are not predicted, and never are by the network of the run.
    """
    trials = []
    for name in recipe.classes:
        for box in boxes:
            if box.truth and name in box.classes:
                trial = Trial(
                    config_path=recipe.path,
                    code=recipe.code,
                    name=name,
                    predicted=box.folder(config.path("predictions_path")) / name,
                    truth=box.truth_of(name),
                    thresholds=COARSE,
                    crop=str(box),
                    version=version,
                    kept=folder,
                )
                trials.append(trial)
    refuse_classes_of_others(config, {trial.name: trial.predicted.is_dir() for trial in trials})
    return trials


def _checkpoints(trials: Sequence[Trial], say: Say) -> dict[str, str]:
    """Return the SHA-256 of the checkpoint that predicted each class; "" if not on record.

    Says which predictions lie beside the voxels of the annotation, and notes as `note_networks`.
    Raises UserError, with all of them, for predictions that cannot be used.
    """
    checkpoints = {}
    offsets = {}
    records = []
    # all predictions are looked at before the first is processed
    predictions = collect(_check, trials)
    for trial, prediction in zip(trials, predictions, strict=True):
        checkpoints[trial.name] = prediction.record.sha256 or ""
        records.append((trial.crop, trial.name, prediction.record))
        truth = ngff.open_levels(trial.truth)[0]
        offsets[f"{trial.crop}/{trial.name}"] = beside(prediction.level, truth.grid)
    text = beside_text(offsets, len(trials), "the annotation")
    if text:
        say(f"note: {text}")
    note_networks(records)
    return checkpoints


def _check(trial: Trial) -> Prediction:
    """Open a prediction. Raises FileNotFoundError or UserError if it does not cover its crop."""
    prediction = open_prediction(trial.predicted)
    truth = ngff.open_levels(trial.truth)[0]
    if not regrid.covers(prediction.level, truth.grid):
        short = regrid.shortfall(prediction.level, truth.grid)
        raise UserError(
            f"{trial.predicted}: {short} of the annotation; run predict with --overwrite"
        )
    return prediction


def _records(
    tuned: Sequence[Tuned], about: Mapping[str, str], checkpoints: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Return the entries of thresholds.json by class. about: what all of them say."""
    # the checkpoint, because a threshold is for the network it was tuned with: process notes others
    date = now()
    records: dict[str, dict[str, Any]] = {}
    for of_class in tuned:
        records[of_class.name] = {
            "threshold": of_class.threshold,
            "score": of_class.score,
            "score_by_others": of_class.by_others,
            **about,
            # by name: what is asked for, such as 'validate', may be others one day
            "chosen_on": list(of_class.crops),
            "checkpoint": checkpoints[of_class.name],
            "date": date,
        }
        if of_class.options:
            records[of_class.name]["options"] = of_class.options
    return records

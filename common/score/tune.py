"""The threshold of each class that scores best on annotated crops, from top to bottom.

In a crop annotated on 400^3 voxels a candidate takes 0.15 s for a semantic class and 0.3 to 4 s for
an instance class on one core (AMD EPYC), more where instance_func is slow; so 48 classes in 41 such
crops take about three hours, by the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data import ngff, regions, regrid
from common.data.ngff import Level
from common.errors import UserError
from common.files import write_json
from common.infer import process
from common.infer.process import Prediction
from common.infer.recipe import THRESHOLDS, Recipe, read_recipe, read_thresholds, run_of
from common.score import challenge, versions
from common.score.versions import CSC, Version
from common.score.workers import parallel
from common.talk import some

COARSE = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Probabilities that are tried for each class.

Then, to each side of the best, the middle between it and the next one.
"""

DEFAULT = 0.5
"""The threshold of a class that is not tuned; of equal scores the one nearest to it wins."""


@dataclass(frozen=True)
class Tuned:
    """What was found for one class."""

    name: str
    threshold: float
    score: float
    """The challenge's score of the class at that threshold, over all crops; `before` at DEFAULT."""
    before: float


@dataclass(frozen=True)
class Trial:
    """One class in one crop at some thresholds, to be processed and scored by any process."""

    folder: Path
    """Of the experiment."""
    code: str
    """Hash of process_config.py and what it imports."""
    name: str
    """The class."""
    predicted: Path
    """Multiscale group, as the next is."""
    truth: Path
    thresholds: tuple[float, ...]
    version: Version = CSC
    """Of the challenge's score."""


@dataclass(frozen=True)
class TrialResult:
    """What came out of a trial."""

    is_positive: bool
    """Whether the crop has a positive voxel of the class."""
    counts: tuple[challenge.Counts, ...]
    """At each threshold."""


def tune(
    config_path: str | Path,
    crops: str = "validate",
    *,
    classes: Sequence[str] = (),
    metric_version: str = CSC.name,
    workers: int = 1,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Tuned]:
    """Choose the threshold of each class; writes thresholds.json beside process_config.py.

    Each candidate is processed and scored as `process` and `evaluate` do it, by the challenge's
    score of the class pooled over the crops. A class without a positive voxel keeps 0.5 and is left
    out. Thresholds of other classes and runs stay. Raises FileNotFoundError or UserError.

    Args:
        config_path: folder of an experiment, or its train_config.py.
        crops: annotated and predicted ones, see `common.data.regions.find`.
        classes: some of process_config.py's; all unless given.
        metric_version: of the challenge's score, see `common.score.versions`.
        workers: processes, each with the memory that `evaluate` takes.
        overrides: settings as NAME=VALUE.
        data: root of the data.
        say: takes what is to be told.
    """
    version = versions.find(metric_version)
    config = load_config(config_path, overrides, data)
    recipe = read_recipe(config.folder, classes)
    _check_thresholds(recipe)
    path = config.folder / THRESHOLDS
    # read before the hours of work: where the file is damaged nothing could be added to it
    runs = read_thresholds(path)
    boxes = regions.choose(config, crops, say=say)
    trials = [replace(trial, version=version) for trial in _trials(config, recipe, boxes)]
    checkpoints = _checkpoints(trials)
    found = search(trials, workers)
    _check_found(found, recipe, crops)
    runs.setdefault(run_of(config), {}).update(_records(found, crops, checkpoints))
    write_json(path, runs)
    for line in table(found) + _remarks(path, recipe, found):
        say(line)
    return found


def search(trials: Sequence[Trial], workers: int = 1) -> list[Tuned]:
    """The best threshold of each class with a positive voxel, in two rounds, see COARSE."""
    # two rounds of 13 candidates in all: each costs a run of process and evaluate over all crops
    scores = scores_of(trials, workers)
    finer = []
    for trial in trials:
        if trial.name in scores:
            thresholds = _beside(_best(scores[trial.name]))
            finer.append(replace(trial, thresholds=thresholds))
    for name, more in scores_of(finer, workers).items():
        scores[name] |= more
    found = []
    for name, of_class in scores.items():
        threshold = _best(of_class)
        found.append(Tuned(name, threshold, of_class[threshold], of_class[DEFAULT]))
    return found


def scores_of(trials: Sequence[Trial], workers: int = 1) -> dict[str, dict[float, float]]:
    """For each class with a positive voxel the score pooled over crops at each threshold."""
    by_class: dict[str, list[TrialResult]] = {}
    thresholds: dict[str, tuple[float, ...]] = {}
    for trial, result in zip(trials, parallel(run_trial, trials, workers), strict=True):
        by_class.setdefault(trial.name, []).append(result)
        thresholds[trial.name] = trial.thresholds
    scores = {}
    for name, results in by_class.items():
        if any(result.is_positive for result in results):
            at_each = zip(*(result.counts for result in results), strict=True)
            pooled = [class_score(counts) for counts in at_each]
            scores[name] = dict(zip(thresholds[name], pooled, strict=True))
    return scores


def class_score(counts: Iterable[challenge.Counts]) -> float:
    """The challenge's score of one class from its counts in several crops."""
    combined = challenge.combine(("", one) for one in counts)
    return combined.label_scores[""].score


def run_trial(trial: Trial) -> TrialResult:
    """Process and score one class of one crop at each threshold."""
    recipe = _recipe(trial.folder, trial.code)
    prediction = process.open_prediction(trial.predicted)
    level = ngff.open_levels(trial.truth)[0]
    truth = regrid.ids(level, level.grid)
    if not recipe.is_scored_by_objects(trial.name):
        truth = truth > 0
    counts = []
    for threshold in trial.thresholds:
        volume = processed(
            replace(recipe, thresholds={trial.name: threshold}), trial.name, prediction
        )
        counts.append(_counts(volume, truth, level, trial.version))
    return TrialResult(bool(truth.any()), tuple(counts))


def processed(recipe: Recipe, name: str, prediction: Prediction) -> Level:
    """What `process` would write for a class, in memory."""
    if recipe.makes_objects(name):
        values = process.objects(recipe, name, prediction).array
    else:
        values = np.zeros(prediction.grid.shape, np.uint8)
        for where, mask in process.mask_blocks(recipe, name, prediction):
            values[where] = mask
    array = zarr.array(values, chunks=prediction.chunks, compressor=None)
    grid = prediction.grid
    return Level(prediction.level.path, array, grid.scale, grid.origin)


def table(found: Sequence[Tuned]) -> list[str]:
    """Lines for the terminal."""
    width = max(len(one.name) for one in found) + 2
    lines = [f"{'class':<{width}}{'threshold':>10}{'score':>9}{'at 0.5':>9}"]
    for one in found:
        lines.append(
            f"{one.name:<{width}}{one.threshold:>10.4g}{one.score:>9.3f}{one.before:>9.3f}"
        )
    return lines


def _check_thresholds(recipe: Recipe) -> None:
    if recipe.thresholds:
        raise UserError(
            f"{recipe.path}: thresholds are set there and go before those that tune writes; "
            "remove them"
        )


def _check_found(found: Sequence[Tuned], recipe: Recipe, crops: str) -> None:
    if not found:
        names = some(recipe.classes, 10)
        raise UserError(f"--crops {crops}: none of these crops has a positive voxel of {names}")


def _remarks(path: Path, recipe: Recipe, found: Sequence[Tuned]) -> list[str]:
    """What was left out, and what the file is."""
    texts = []
    tuned = {one.name for one in found}
    left = [name for name in recipe.classes if name not in tuned]
    if left:
        names = ", ".join(left)
        texts.append(f"not annotated or without a positive voxel there, left at 0.5: {names}")
    texts.append(
        f"{path}: read by process. "
        "The crops that thresholds are chosen on score better with them than new ones will"
    )
    return texts


def _counts(volume: Level, truth: np.ndarray, level: Level, version: Version) -> challenge.Counts:
    """A processed volume on the annotation's voxels; truth: ids, or bool for a semantic class."""
    if truth.dtype == bool:
        return challenge.semantic(truth, regrid.mask(volume, level.grid))
    found = regrid.ids(volume, level.grid)
    counts = challenge.instance(truth, found, level.scale, version=version)
    # else the threshold with the most specks would win: a crop that is left out does not hurt
    return challenge.missing(truth, True) if counts.status == challenge.SKIPPED else counts


def _trials(config: TrainConfig, recipe: Recipe, boxes: Sequence[regions.Region]) -> list[Trial]:
    """Class by class, the crops that annotate it, at the coarse thresholds."""
    trials = []
    for name in recipe.classes:
        for box in boxes:
            if box.truth and name in box.classes:
                trial = Trial(
                    folder=config.folder,
                    code=recipe.code,
                    name=name,
                    predicted=box.folder(config.path("predictions_path")) / name,
                    truth=box.truth / name,
                    thresholds=COARSE,
                )
                trials.append(trial)
    return trials


def _checkpoints(trials: Sequence[Trial]) -> dict[str, str]:
    """SHA-256 of the checkpoint that predicted each class; "" where the prediction does not say."""
    checkpoints = {}
    # all predictions are looked at before the first is processed
    predictions = process.gather(_check, trials)
    for trial, prediction in zip(trials, predictions, strict=True):
        checkpoints[trial.name] = prediction.record.sha256 or ""
    return checkpoints


def _check(trial: Trial) -> Prediction:
    """Raises FileNotFoundError or UserError where there is no whole prediction of the crop."""
    prediction = process.open_prediction(trial.predicted)
    truth = ngff.open_levels(trial.truth)[0]
    if not regrid.covers(prediction.level, truth.grid):
        short = regrid.shortfall(prediction.level, truth.grid)
        raise UserError(
            f"{trial.predicted}: {short} of the annotation; run predict with --overwrite"
        )
    return prediction


def _records(
    found: Sequence[Tuned], crops: str, checkpoints: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """The entries of thresholds.json, by class."""
    # the checkpoint, because a threshold is for the network it was tuned with: process notes others
    date = datetime.now(UTC).isoformat(timespec="seconds")
    records = {}
    for one in found:
        records[one.name] = {
            "threshold": one.threshold,
            "score": one.score,
            "crops": crops,
            "checkpoint": checkpoints[one.name],
            "date": date,
        }
    return records


def _best(scores: dict[float, float]) -> float:
    # of equal scores the nearest to 0.5: the least that is read out of these crops
    return max(scores, key=lambda threshold: (scores[threshold], -abs(threshold - DEFAULT)))


def _beside(threshold: float) -> tuple[float, ...]:
    """The middles between a coarse threshold and its neighbours; 0 and 1 are the outermost."""
    tried = (0.0, *COARSE, 1.0)
    place = tried.index(threshold)
    neighbours = (tried[place - 1], tried[place + 1])
    return tuple(round((threshold + neighbour) / 2, 4) for neighbour in neighbours)


@lru_cache(1)
def _recipe(folder: Path, code: str) -> Recipe:
    """process_config.py runs once in a process, or again when it was edited."""
    return read_recipe(folder)

"""The threshold of each class that scores best on annotated crops, found by processing and scoring, from top to bottom.

In a crop annotated on 400^3 voxels a candidate takes 0.15 s for a semantic class and 0.3 to 4 s for an instance class on one core (AMD
EPYC), more where instance_func is slow; so 48 classes in 41 such crops take about three hours, by the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import zarr

from common.config.load import load_config
from common.data import ngff, regions, regrid
from common.data.ngff import Level
from common.errors import UserError
from common.infer import process
from common.infer.process import Prediction, Recipe
from common.score import challenge, evaluate

COARSE = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Probabilities that are tried for each class; then, to each side of the best, the middle between it and the next one."""


@dataclass(frozen=True)
class Tuned:
    """What was found for one class."""

    name: str
    threshold: float
    score: float
    """The challenge's score of the class at that threshold, over all crops; `before` at 0.5."""
    before: float


@dataclass(frozen=True)
class Trial:
    """One class in one crop at some thresholds, to be processed and scored by any process."""

    folder: Path
    code: str
    """Of process_config.py."""
    name: str
    predicted: Path
    truth: Path
    thresholds: tuple[float, ...]


def tune(
    config_path: str | Path,
    crops: str = "validate",
    *,
    classes: Sequence[str] = (),
    workers: int = 1,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Tuned]:
    """Choose the threshold of each class that is annotated and predicted in these crops; writes thresholds.json beside process_config.py.

    Each candidate is processed and scored as `process` and `evaluate` do it, by the challenge's score of the class pooled over the crops;
    of equal ones the nearest to 0.5. Where the metric leaves a crop out for its many objects, the crop counts as missed. A class without
    a positive voxel keeps 0.5 and is left out. Thresholds of other classes and runs stay. workers: processes, each with the memory
    that `evaluate` takes. Raises FileNotFoundError or ValueError.
    """
    config = load_config(config_path, overrides, data)
    recipe = process.read_recipe(config.folder, classes)
    if recipe.thresholds:
        raise UserError(
            f"{recipe.path}: thresholds are set there and go before those that tune writes; remove them"
        )
    runs = process.read_thresholds(config.folder / process.THRESHOLDS)
    boxes = [box for box in regions.choose(config, crops, say=say) if box.truth]
    trials = [
        Trial(
            config.folder,
            recipe.code,
            name,
            box.folder(config.path("predictions_path")) / name,
            box.truth / name,
            COARSE,
        )
        for name in recipe.classes
        for box in boxes
        if name in box.classes
    ]
    predictions = process.gather(_check, trials)
    checkpoints = {
        trial.name: one.about.get("sha256", "")
        for trial, one in zip(trials, predictions, strict=True)
    }
    positive, scores = _scores(trials, workers)
    trials = [trial for trial in trials if trial.name in positive]
    if not trials:
        raise UserError(
            f"--crops {crops}: none of these crops has a positive voxel of {', '.join(recipe.classes[:10])}"
        )
    near = {name: _around(_best(found)) for name, found in scores.items()}
    _, fine = _scores([replace(trial, thresholds=near[trial.name]) for trial in trials], workers)
    found = []
    for name in positive:
        of = scores[name] | fine[name]
        found.append(Tuned(name, _best(of), of[_best(of)], of[0.5]))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    runs.setdefault(process.run_of(config), {}).update(
        {
            one.name: {
                "threshold": one.threshold,
                "score": one.score,
                "crops": crops,
                "checkpoint": checkpoints[one.name],
                "date": date,
            }
            for one in found
        }
    )
    path = evaluate.write(runs, config.folder / process.THRESHOLDS)
    for line in table(found):
        say(line)
    if skipped := [name for name in recipe.classes if name not in positive]:
        say(f"not annotated or without a positive voxel there, left at 0.5: {', '.join(skipped)}")
    say(
        f"{path}: read by process. The crops that thresholds are chosen on score better with them than new ones will"
    )
    return found


def table(found: Sequence[Tuned]) -> list[str]:
    width = max(len(one.name) for one in found) + 2
    lines = [f"{'class':<{width}}{'threshold':>10}{'score':>9}{'at 0.5':>9}"]
    return lines + [
        f"{one.name:<{width}}{one.threshold:>10.4g}{one.score:>9.3f}{one.before:>9.3f}"
        for one in found
    ]


def counts_at(trial: Trial) -> tuple[bool, list[challenge.Counts]]:
    """Whether the class has a positive voxel there, and its counts at each threshold."""
    recipe, prediction = _recipe(trial.folder, trial.code), process.open_prediction(trial.predicted)
    level, is_instance = ngff.open_levels(trial.truth)[0], recipe.is_scored_by_objects(trial.name)
    truth = regrid.ids(level, level.grid)
    truth = truth if is_instance else truth > 0
    counts = [
        _counts(
            replace(recipe, thresholds={trial.name: value}), trial.name, prediction, truth, level
        )
        for value in trial.thresholds
    ]
    return bool(truth.any()), counts


def _counts(
    recipe: Recipe, name: str, prediction: Prediction, truth: np.ndarray, level: Level
) -> challenge.Counts:
    """One class of one crop, processed in memory and scored on the annotation's voxels."""
    if recipe.makes_objects(name):
        made = process.objects(recipe, name, prediction).array
    else:
        made = np.zeros(prediction.grid.shape, np.uint8)
        for where, mask in process.mask_blocks(recipe, name, prediction):
            made[where] = mask
    volume = Level(
        prediction.level.path,
        zarr.array(made, chunks=prediction.chunks, compressor=None),
        prediction.grid.scale,
        prediction.grid.origin,
    )
    if not recipe.is_scored_by_objects(name):
        return challenge.semantic(truth, regrid.mask(volume, level.grid))
    counts = challenge.instance(truth, regrid.ids(volume, level.grid), level.scale)
    return challenge.missing(truth, True) if counts.status == challenge.SKIPPED else counts


def _check(trial: Trial) -> Prediction:
    """Raises FileNotFoundError or ValueError where there is no whole prediction of the crop."""
    prediction, truth = process.open_prediction(trial.predicted), ngff.open_levels(trial.truth)[0]
    if not regrid.covers(prediction.level, truth.grid):
        raise UserError(
            f"{trial.predicted}: {regrid.shortfall(prediction.level, truth.grid)} of the annotation; run predict with --overwrite"
        )
    return prediction


def _scores(
    trials: Sequence[Trial], workers: int
) -> tuple[list[str], dict[str, dict[float, float]]]:
    """Classes with a positive voxel, and for each class the score pooled over crops at each threshold."""
    found = list(zip(trials, evaluate.parallel(counts_at, trials, workers), strict=True))
    positive = {trial.name: None for trial, (is_there, _) in found if is_there}
    scores = {}
    for name in positive:
        thresholds = next(trial.thresholds for trial in trials if trial.name == name)
        counts = zip(*(counts for trial, (_, counts) in found if trial.name == name), strict=True)
        scores[name] = {
            value: evaluate.class_score(name, one)
            for value, one in zip(thresholds, counts, strict=True)
        }
    return list(positive), scores


def _best(scores: dict[float, float]) -> float:
    return max(scores, key=lambda threshold: (scores[threshold], -abs(threshold - 0.5)))


def _around(threshold: float) -> tuple[float, ...]:
    tried = (0.0, *COARSE, 1.0)
    at = tried.index(threshold)
    return tuple(round((threshold + tried[k]) / 2, 4) for k in (at - 1, at + 1))


@lru_cache(1)
def _recipe(folder: Path, code: str) -> Recipe:
    """process_config.py runs once in a process, or again when it was edited."""
    return process.read_recipe(folder)

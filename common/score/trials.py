"""Process and score a class of a crop at several thresholds, in memory, as the commands do.

In a crop annotated on 400^3 voxels a threshold takes 0.15 s for a semantic class and 0.3 to 4 s for
an instance class on one core (AMD EPYC), more where instance_func is slow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from common.config.instance_options import defaults
from common.data.volumes import ngff, regrid
from common.data.volumes.level import Level
from common.infer.processing import one_class
from common.infer.processing.one_class import Making
from common.infer.processing.prediction import Prediction, open_prediction
from common.infer.processing.recipe import Recipe, read_recipe
from common.score import challenge, kept
from common.score.judge import Evaluation, Truth, annotated, judge
from common.score.versions import CSC, Version
from common.score.workers import Workers, parallel

COARSE = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Probabilities that are tried for each class; then the middles around the best of them."""

DEFAULT = 0.5
"""The threshold of a class that is not tuned. Of equal scores the threshold nearest to it wins."""


@dataclass(frozen=True)
class Trial:
    """One class in one crop at some thresholds: what a process needs to process and score it."""

    config_path: Path
    """process_config.py."""
    code: str
    """Hash of process_config.py and what it imports."""
    name: str
    """The class."""
    predicted: Path
    """Multiscale group of the prediction."""
    truth: Path
    """Multiscale group of the annotation."""
    thresholds: tuple[float, ...]
    version: Version = CSC
    """Version of the challenge's score."""
    crop: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of instance_func; its defaults for the others."""
    kept: Path | None = None
    """Folder of what is tried already, see `common.score.kept`."""

    @property
    def makes_objects(self) -> bool:
        """Whether instance_func makes objects of the class."""
        return self.recipe(DEFAULT).makes_objects(self.name)

    @property
    def defaults(self) -> dict[str, Any]:
        """Defaults of the options of instance_func, by name; {} without one."""
        function = self.recipe(DEFAULT).settings.instance_func
        return defaults(function) if function else {}

    def recipe(self, threshold: float) -> Recipe:
        """Return how the class is processed at a threshold."""
        return replace(
            _recipe(self.config_path, self.code),
            thresholds={self.name: threshold},
            options={self.name: self.options},
        )


@dataclass(frozen=True)
class TrialResult:
    """The counts of a trial."""

    is_positive: bool
    """Whether the crop has a positive voxel of the class."""
    counts: tuple[challenge.Counts, ...]
    """At each threshold."""
    found: tuple[int, ...] = ()
    """Number of predicted positive voxels at each threshold."""
    annotated: int = 0
    """Number of annotated positive voxels."""
    voxels: int = 0
    """Number of voxels of the crop."""


@dataclass
class Tried:
    """The counts of one class at every threshold that was tried."""

    crops: list[str] = field(default_factory=list)
    counts: dict[float, list[challenge.Counts]] = field(default_factory=dict)
    """For each threshold the counts of every crop, in the order of `crops`."""
    is_positive: bool = False
    """Whether any crop has a positive voxel of the class."""
    found: dict[float, int] = field(default_factory=dict)
    """For each threshold the number of predicted positive voxels of all crops."""
    annotated: int = 0
    """Number of annotated positive voxels of all crops."""
    voxels: int = 0
    """Number of voxels of all crops."""

    def add(self, trial: Trial, result: TrialResult) -> None:
        """Add the result of one more crop."""
        self.crops.append(trial.crop)
        self.is_positive |= result.is_positive
        self.annotated += result.annotated
        self.voxels += result.voxels
        for threshold, counts in zip(trial.thresholds, result.counts, strict=True):
            self.counts.setdefault(threshold, []).append(counts)
        for threshold, found in zip(trial.thresholds, result.found, strict=True):
            self.found[threshold] = self.found.get(threshold, 0) + found

    def score(self, threshold: float, crops: Iterable[int] | None = None) -> float:
        """Return the challenge's score at a threshold, pooled over crops.

        crops: their numbers; all unless given.
        """
        counts = self.counts[threshold]
        return class_score(counts if crops is None else [counts[number] for number in crops])

    def best(
        self, thresholds: Iterable[float] | None = None, crops: Sequence[int] | None = None
    ) -> float:
        """Return the threshold that scores best.

        thresholds: those to choose from; all that were tried unless given. crops: as of `score`.
        """
        scores = {
            threshold: self.score(threshold, crops) for threshold in thresholds or self.counts
        }
        # of equal scores the nearest to 0.5: the least that is read out of these crops
        return max(scores, key=lambda threshold: (scores[threshold], -abs(threshold - DEFAULT)))

    def by_others(self, folds: int) -> float | None:
        """Return the score with thresholds chosen on other crops (cross-validation).

        Crop k is in fold k modulo `folds`. The crops of a fold are scored at the threshold of
        COARSE that is best on all other crops; counts are pooled over the folds. With as many folds
        as crops, or more, each crop is left out once. None with fewer than two crops or folds.
        """
        number = len(self.crops)
        folds = min(folds, number)
        if folds < 2:
            return None
        pooled = []
        for fold in range(folds):
            held = range(fold, number, folds)
            others = [crop for crop in range(number) if crop not in held]
            # finer thresholds lie about the best of all crops, those that are held among them
            threshold = self.best(COARSE, others)
            pooled += [self.counts[threshold][crop] for crop in held]
        return class_score(pooled)


def try_all(trials: Sequence[Trial], workers: Workers = 1) -> dict[str, Tried]:
    """Run all trials; return the counts of each class that has a positive voxel."""
    tried: dict[str, Tried] = {}
    for trial, result in zip(trials, parallel(run_trial, trials, workers), strict=True):
        tried.setdefault(trial.name, Tried()).add(trial, result)
    return {name: of_class for name, of_class in tried.items() if of_class.is_positive}


def class_score(counts: Iterable[challenge.Counts]) -> float:
    """The challenge's score of one class from its counts in several crops."""
    combined = challenge.combine(("", crop) for crop in counts)
    return combined.label_scores[""].score


def run_trial(trial: Trial) -> TrialResult:
    """Process and score one class of one crop at each threshold."""
    # instance_func may read the predictions of other classes
    beside = trial.predicted.parent if trial.makes_objects else None
    return kept.once(trial, _run_trial, [trial.truth, trial.predicted], beside=beside)


def _run_trial(trial: Trial) -> TrialResult:
    recipe = trial.recipe(DEFAULT)
    prediction = open_prediction(trial.predicted)
    level = ngff.open_levels(trial.truth)[0]
    is_instance = recipe.is_scored_by_objects(trial.name)
    truth, known, _ = annotated(level, trial.name, is_instance)
    on_grid = regrid.ids
    if not is_instance:
        truth = truth > 0
        on_grid = regrid.mask
    counts = []
    positive = []
    for threshold in trial.thresholds:
        volume = processed(trial.recipe(threshold), trial.name, prediction)
        predicted = on_grid(volume, level.grid)
        counts.append(_counts(predicted, truth, level, known=known, version=trial.version))
        positive.append(int(np.count_nonzero(predicted)))
    return TrialResult(
        is_positive=bool(truth.any()),
        counts=tuple(counts),
        found=tuple(positive),
        annotated=int(np.count_nonzero(truth)),
        voxels=truth.size,
    )


def look(trial: Trial) -> list[Evaluation]:
    """Return the evaluation of one class of one crop at each threshold, as `evaluate` makes it."""
    recipe = trial.recipe(DEFAULT)
    prediction = open_prediction(trial.predicted)
    truth = Truth(
        crop=trial.crop,
        name=trial.name,
        level=ngff.open_levels(trial.truth)[0],
        is_instance=recipe.is_scored_by_objects(trial.name),
        version=trial.version,
    )
    evaluations = []
    for threshold in trial.thresholds:
        volume = processed(trial.recipe(threshold), trial.name, prediction)
        evaluations.append(judge(truth, volume))
    return evaluations


def processed(recipe: Recipe, name: str, prediction: Prediction) -> Level:
    """Return what `process` would write for a class, in memory."""
    making = Making(recipe, name, prediction)
    if recipe.makes_objects(name):
        values = one_class.objects(making).array
    else:
        values = one_class.mask(making).array.view(np.uint8)
    array = zarr.array(values, chunks=prediction.chunks, compressor=None)
    grid = prediction.grid
    return Level(prediction.level.path, array, grid.scale, grid.origin)


def _counts(
    predicted: np.ndarray,
    truth: np.ndarray,
    level: Level,
    *,
    known: np.ndarray | None,
    version: Version,
) -> challenge.Counts:
    """Count a prediction on the annotation's voxels. truth: ids; bool for a semantic class."""
    if truth.dtype == bool:
        return challenge.semantic(truth, predicted, known)
    counts = challenge.instance(truth, predicted, level.scale, known, version=version)
    # else the threshold with the most specks would win: a crop that is left out does not hurt
    return challenge.missing(truth, True) if counts.status == challenge.SKIPPED else counts


@lru_cache(1)
def _recipe(path: Path, code: str) -> Recipe:
    """Read process_config.py once in a process; again when `code`, its hash, is another."""
    return read_recipe(path)

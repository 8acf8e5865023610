"""The threshold of each class that scores best on annotated crops, found by processing and scoring, from top to bottom."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import zarr
from tqdm import tqdm

from common import evaluate, ngff, process, regions, regrid
from common.classes import INSTANCES
from common.config import load_config
from common.ngff import Level
from common.process import Prediction, Recipe

CANDIDATES = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""Probabilities that are tried."""


@dataclass(frozen=True)
class Tuned:
    """What was found for one class."""

    name: str
    threshold: float
    score: float
    """The challenge's score of the class at that threshold, over all crops; `before` at 0.5."""
    before: float


def tune(
    config_path: str | Path, crops: str = "validate", *, classes: Sequence[str] = (), overrides: Sequence[str] = (),
    data: str | Path | None = None, say: Callable[[str], None] = print,
) -> list[Tuned]:  # fmt: skip
    """Choose the threshold of each class that is annotated and predicted in these crops; writes thresholds.json beside process_config.py.

    Each candidate is processed and scored as `process` and `evaluate` do it, with the challenge's score of the class pooled over
    the crops; of equal ones the nearest to 0.5. A class without a positive voxel keeps 0.5 and is left out. Thresholds of other
    classes in the file stay, if they were tuned on this run. Raises FileNotFoundError or ValueError.
    """
    config = load_config(config_path, overrides, data)
    recipe = process.load_recipe(config, classes)
    if recipe.settings.thresholds:
        raise ValueError(f"{config.folder / 'process_config.py'}: thresholds are set there and go before those that tune writes; remove them")
    boxes = [box for box in regions.choose(config, crops) if box.truth]
    found, skipped = [], []
    for name in tqdm(recipe.classes, unit="class", leave=False, disable=None):
        pairs = [
            (process.open_prediction(box.folder(config.path("predictions_path")) / name), ngff.open_levels(box.truth / name)[0])
            for box in boxes
            if name in box.classes
        ]
        pairs = [(prediction, truth) for prediction, truth in pairs if truth.array[...].any()]
        if not pairs:
            skipped.append(name)
            continue
        found.append(_best(recipe, name, pairs))
    if not found:
        raise ValueError(f"--crops {crops}: none of these crops has a positive voxel of {', '.join(recipe.classes[:10])}")
    path = config.folder / process.THRESHOLDS
    _write(path, found, f"{config.model_name}/{config.path('model_save_path').name}", crops)
    say(f"{'class':<14}{'threshold':>10}{'score':>9}{'at 0.5':>9}")
    for one in found:
        say(f"{one.name:<14}{one.threshold:>10.2f}{one.score:>9.3f}{one.before:>9.3f}")
    if skipped:
        say(f"not annotated or without a positive voxel there, left at 0.5: {', '.join(skipped)}")
    say(f"{path}: read by process. The crops that thresholds are chosen on score better with them than new ones will")
    return found


def _best(recipe: Recipe, name: str, pairs: Sequence[tuple[Prediction, Level]]) -> Tuned:
    """The candidate with the highest score over all pairs of prediction and truth."""
    truths = [regrid.ids(truth, truth.grid) for _, truth in pairs]
    scores = {}
    for threshold in CANDIDATES:
        tried = replace(recipe, thresholds={name: threshold})
        evaluations = [
            _evaluate(tried, name, prediction, truth, level) for (prediction, level), truth in zip(pairs, truths, strict=True)
        ]
        scores[threshold] = evaluate.figures(evaluations)["score"]
    best = max(CANDIDATES, key=lambda threshold: (scores[threshold], -abs(threshold - 0.5)))
    return Tuned(name, best, scores[best], scores[0.5])


def _evaluate(recipe: Recipe, name: str, prediction: Prediction, truth: np.ndarray, level: Level) -> evaluate.Evaluation:
    """One class of one crop, processed in memory and scored on the annotation's voxels."""
    if name in recipe.settings.instance_classes:
        made = process.objects(recipe, name, prediction).array
    else:
        made = np.zeros(prediction.grid.shape, np.uint8)
        for where, mask in process.mask_blocks(recipe, name, prediction):
            made[where] = mask
    volume = Level(prediction.level.path, zarr.array(made, compressor=None), prediction.grid.scale, prediction.grid.origin)
    is_instance = name in INSTANCES
    found = (regrid.ids if is_instance else regrid.mask)(volume, level.grid)
    return evaluate.compare(str(level.path), name, truth, found, level.scale, is_instance)


def _write(path: Path, found: Sequence[Tuned], run: str, crops: str) -> None:
    before, tuned_on = process.read_thresholds(path)
    kept = before if tuned_on == run else {}
    thresholds = kept | {one.name: one.threshold for one in found}
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps({"run": run, "crops": crops, "thresholds": thresholds}, indent=1) + "\n")
    temporary.replace(path)

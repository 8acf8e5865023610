"""Score a network on whole validation crops, whichever program trained it.

The engine's own predict, process and score are used: networks that pad get overlapping windows,
which are blended; others get the real raw around the crop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from common.classes import INSTANCES
from common.config.settings import ProcessConfig, TrainConfig
from common.data.splits import regions
from common.data.splits.regions import Region
from common.data.volumes import ngff
from common.infer.networks.ensemble import load_network
from common.infer.predict import Output, PredictCall, predict_region
from common.infer.process import find_predictions, process_region
from common.infer.processing.recipe import Recipe, read_recipe
from common.score import judge, summary
from common.score.judge import Evaluation, Truth

OVERLAP = 0.25
"""Overlap of windows that are blended; the command's 0.5 takes twice as long."""

BLOCK = 256
"""Largest edge of a block (voxels): a crop is one. Windows between blocks are computed for both."""

FIGURES = ("score", "f1", "hausdorff", "pq", "voi_split", "voi_merge")
"""Figures that are reported of the objects of an instance class."""


def above_half(logits):
    """Return 1 where the probability is above 0.5, else 0."""
    return (logits > 0) * 1


def thresholded(config: TrainConfig) -> Recipe:
    """Return the recipe of a threshold, and of connected components for instance classes."""
    settings = ProcessConfig(process_func=above_half, classes=config.classes)
    # nothing asks for the hash: each volume is made anew
    return Recipe(Path(__file__), settings, classes=config.classes, code="")


def of_experiment(folder: Path) -> Recipe:
    """Return the process_config.py of an experiment at threshold 0.5, without tuning."""
    return replace(read_recipe(folder), thresholds={})


@dataclass(frozen=True)
class Predicted:
    """The validation crops as a network predicted them."""

    config: TrainConfig
    crops: list[Region]

    def iou(self) -> dict[str, float]:
        """Return the IoU of each class at probability 0.5, over the known voxels of all crops."""
        counted: dict[str, list[Evaluation]] = {name: [] for name in self.config.classes}
        for evaluation in self._judged(thresholded(self.config), by_objects=False):
            counted[evaluation.name].append(evaluation)
        return {name: _iou(of_class) for name, of_class in counted.items() if of_class}

    def objects(self, recipe: Recipe) -> dict[str, dict[str, float]]:
        """Return FIGURES of each instance class, whose objects a recipe makes."""
        counted: dict[str, list[Evaluation]] = {}
        for evaluation in self._judged(recipe, by_objects=True):
            counted.setdefault(evaluation.name, []).append(evaluation)
        figures = {}
        for name, of_class in counted.items():
            pooled = summary.figures(of_class)
            figures[name] = {figure: getattr(pooled, figure) for figure in FIGURES}
        return figures

    def _judged(self, recipe: Recipe, *, by_objects: bool) -> list[Evaluation]:
        """Score every class of every crop; by_objects: only INSTANCES, by their objects."""
        evaluations = []
        for crop in self.crops:
            assert crop.truth is not None
            names = [name for name in recipe.classes if name in crop.classes]
            if by_objects:
                names = [name for name in names if name in INSTANCES]
            wanted = replace(recipe, classes=tuple(names))
            predictions = find_predictions(wanted, self.config, crop)
            root = self.config.path("processed_path")
            folder = process_region(wanted, crop, predictions, root=root, overwrite=True)
            for name in names:
                truth = Truth(str(crop), name, ngff.open_levels(crop.truth / name)[0], by_objects)
                predicted = ngff.open_levels(folder / name)[0]
                evaluations.append(judge.judge(truth, predicted))
        return evaluations


def predict_crops(config: TrainConfig, weights: str) -> Predicted:
    """Predict the validation crops with a checkpoint, as the command `predict` does."""
    network = load_network(config, weights)
    network = replace(network, window=replace(network.window, overlap=OVERLAP))
    crops = regions.choose(config, "validate")
    classes = list(config.classes)
    call = PredictCall(network, config, Output(block=BLOCK), overwrite=True)
    for crop in crops:
        predict_region(call, crop, classes)
    return Predicted(config, crops)


def _iou(evaluations: list[Evaluation]) -> float:
    hits = sum(evaluation.voxels.tp for evaluation in evaluations)
    misses = sum(evaluation.voxels.fp + evaluation.voxels.fn for evaluation in evaluations)
    return hits / max(hits + misses, 1)

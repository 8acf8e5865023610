"""The texts in which `tune` tells the thresholds that it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.infer.objects.volume import EVERYWHERE
from common.infer.processing.recipe import Recipe
from common.score import summary
from common.score.best_thresholds import Tuned, middles
from common.score.judge import FULL, Evaluation
from common.score.trials import COARSE, DEFAULT, Trial, look
from common.score.workers import Workers, parallel


def table(tuned: Sequence[Tuned]) -> list[str]:
    """Return the lines of a table: threshold and scores of each class."""
    width = max(len(of_class.name) for of_class in tuned) + 2
    is_validated = any(of_class.by_others is not None for of_class in tuned)
    head = f"{'class':<{width}}{'threshold':>10}{'score':>9}{'at 0.5':>9}"
    lines = [f"{head}{'by others':>11}" if is_validated else head]
    for of_class in tuned:
        scores = f"{of_class.score:>9.3f}{of_class.before:>9.3f}"
        line = f"{of_class.name:<{width}}{of_class.threshold:>10.4g}{scores}"
        if is_validated:
            line += f"{'-':>11}" if of_class.by_others is None else f"{of_class.by_others:>11.3f}"
        lines.append(line)
    return lines


def remarks(path: Path, recipe: Recipe, classes: Sequence[Tuned]) -> list[str]:
    """Return lines about chosen options, classes left at 0.5, the file, and how to read scores."""
    texts = []
    for of_class in classes:
        if of_class.options:
            values = ", ".join(f"{option} = {value}" for option, value in of_class.options.items())
            texts.append(f"{of_class.name}: {values}, for instance_func; better than its defaults")
    tuned = {of_class.name for of_class in classes}
    left = [name for name in recipe.classes if name not in tuned]
    if left:
        names = ", ".join(left)
        texts.append(f"not annotated or without a positive voxel there, left at 0.5: {names}")
    texts.append(
        f"{path}: read by process. "
        "The crops that thresholds are chosen on score better with them than new ones will"
    )
    if any(of_class.by_others is not None for of_class in classes):
        texts.append(
            "by others: the score where each crop has the threshold that other crops choose, which "
            "is nearer to what new crops will have; '-' where there is one crop alone"
        )
    return texts


def everywhere(tuned: Sequence[Tuned]) -> list[str]:
    """Return notes on classes that are positive nearly everywhere, or nowhere."""
    full = []
    empty = []
    for of_class in tuned:
        if of_class.found >= EVERYWHERE and of_class.annotated < FULL:
            full.append(of_class)
        elif not of_class.found:
            empty.append(of_class)
    notes = []
    for classes, where in ((full, "in nearly all voxels"), (empty, "in no voxel")):
        if classes:
            listed = [
                f"{of_class.name} ({of_class.threshold:g}; {of_class.annotated:.1%})"
                for of_class in classes
            ]
            notes.append(
                f"note: positive {where} of these crops at the best threshold (it, and what is "
                f"annotated): {', '.join(listed)}. No threshold tells these from the rest: train "
                "longer before they are used"
            )
    return notes


def at_edges(tuned: Sequence[Tuned], trials: Sequence[Trial], workers: Workers) -> list[str]:
    """Return a note with figures for each class whose threshold lies at the edge of what is tried.

    The score alone can be best where a picture is all foreground or nothing.
    """
    at_edge = {}
    for of_class in tuned:
        if not COARSE[0] < of_class.threshold < COARSE[-1]:
            at_edge[of_class.name] = of_class
    again = []
    for trial in trials:
        if trial.name in at_edge:
            of_class = at_edge[trial.name]
            thresholds = (of_class.threshold, DEFAULT)
            again.append(replace(trial, thresholds=thresholds, options=of_class.options))
    at_threshold: dict[str, list[Evaluation]] = {name: [] for name in at_edge}
    at_default: dict[str, list[Evaluation]] = {name: [] for name in at_edge}
    for trial, evaluations in zip(again, parallel(look, again, workers), strict=True):
        at_threshold[trial.name].append(evaluations[0])
        at_default[trial.name].append(evaluations[1])
    notes = []
    for name, of_class in at_edge.items():
        notes.append(
            f"note: {name}: its threshold of {of_class.threshold:g} lies at the edge of what is "
            f"tried ({middles(COARSE[0])[0]:g} to {middles(COARSE[-1])[1]:g}). There it has "
            f"{_figures(at_threshold[name])}; at {DEFAULT:g} {_figures(at_default[name])}. Look at "
            "its pictures (visualize) before it is used; a threshold of your own goes into "
            "process_config.py, into thresholds"
        )
    return notes


def _figures(evaluations: Sequence[Evaluation]) -> str:
    """Return 'score 0.745, Dice 0.400, PQ 0.000'; PQ only of an instance class."""
    figures = summary.figures(evaluations)
    texts = {"score": figures.score, "Dice": figures.dice}
    if evaluations[0].is_instance:
        texts["PQ"] = figures.pq
    named = [f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in texts.items()]
    return ", ".join(named)

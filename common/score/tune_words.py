"""What `tune` says of the thresholds that it found."""

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


def table(found: Sequence[Tuned]) -> list[str]:
    """Lines for the terminal."""
    width = max(len(one.name) for one in found) + 2
    is_validated = any(one.by_others is not None for one in found)
    head = f"{'class':<{width}}{'threshold':>10}{'score':>9}{'at 0.5':>9}"
    lines = [f"{head}{'by others':>11}" if is_validated else head]
    for one in found:
        line = f"{one.name:<{width}}{one.threshold:>10.4g}{one.score:>9.3f}{one.before:>9.3f}"
        if is_validated:
            line += f"{'-':>11}" if one.by_others is None else f"{one.by_others:>11.3f}"
        lines.append(line)
    return lines


def remarks(path: Path, recipe: Recipe, found: Sequence[Tuned]) -> list[str]:
    """What was left out, and what the file is."""
    texts = []
    for one in found:
        if one.options:
            values = ", ".join(f"{option} = {value}" for option, value in one.options.items())
            texts.append(f"{one.name}: {values}, for instance_func; better than its defaults")
    tuned = {one.name for one in found}
    left = [name for name in recipe.classes if name not in tuned]
    if left:
        names = ", ".join(left)
        texts.append(f"not annotated or without a positive voxel there, left at 0.5: {names}")
    texts.append(
        f"{path}: read by process. "
        "The crops that thresholds are chosen on score better with them than new ones will"
    )
    if any(one.by_others is not None for one in found):
        texts.append(
            "by others: the score where each crop has the threshold that other crops choose, which "
            "is nearer to what new crops will have; '-' where there is one crop alone"
        )
    return texts


def everywhere(found: Sequence[Tuned]) -> list[str]:
    """A note of the classes that their thresholds make positive nearly everywhere, or nowhere."""
    full = [one for one in found if one.found >= EVERYWHERE and one.annotated < FULL]
    empty = [one for one in found if not one.found]
    notes = []
    for classes, where in ((full, "in nearly all voxels"), (empty, "in no voxel")):
        if classes:
            each = [f"{one.name} ({one.threshold:g}; {one.annotated:.1%})" for one in classes]
            notes.append(
                f"note: positive {where} of these crops at the best threshold (it, and what is "
                f"annotated): {', '.join(each)}. No threshold tells these from the rest: train "
                "longer before they are used"
            )
    return notes


def at_edges(found: Sequence[Tuned], trials: Sequence[Trial], workers: Workers) -> list[str]:
    """A note with figures for each class whose threshold lies at the edge of what is tried.

    The score alone can be best where a picture is all foreground or nothing.
    """
    at_edge = {one.name: one for one in found if not COARSE[0] < one.threshold < COARSE[-1]}
    again = []
    for trial in trials:
        if trial.name in at_edge:
            one = at_edge[trial.name]
            thresholds = (one.threshold, DEFAULT)
            again.append(replace(trial, thresholds=thresholds, options=one.options))
    looks = parallel(look, again, workers)
    notes = []
    for name, one in at_edge.items():
        of_class = [look for trial, look in zip(again, looks, strict=True) if trial.name == name]
        chosen, default = (_figures(evaluations) for evaluations in zip(*of_class, strict=True))
        notes.append(
            f"note: {name}: its threshold of {one.threshold:g} lies at the edge of what is tried "
            f"({middles(COARSE[0])[0]:g} to {middles(COARSE[-1])[1]:g}). There it has {chosen}; "
            f"at {DEFAULT:g} {default}. Look at its pictures (visualize) before it is used; a "
            "threshold of your own goes into process_config.py, into thresholds"
        )
    return notes


def _figures(evaluations: Sequence[Evaluation]) -> str:
    """'score 0.745, Dice 0.400, PQ 0.000'; PQ of an instance class alone."""
    figures = summary.figures(evaluations)
    texts = {"score": figures.score, "Dice": figures.dice}
    if evaluations[0].is_instance:
        texts["PQ"] = figures.pq
    named = [f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in texts.items()]
    return ", ".join(named)

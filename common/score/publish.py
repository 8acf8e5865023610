"""Write and print scores, and note what makes them worth less than they seem."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from common.data.volumes import annotation
from common.data.volumes.records import PredictionRecord
from common.infer.processing.prediction import note_older_weights
from common.score import arrays, judge, result, tables
from common.score.judge import Evaluation
from common.score.result import CropScore, Scores
from common.talk import Say, note, some


def publish(scores: Scores, path: Path, say: Say) -> None:
    """Say the tables, write the JSON file, and say the notes on them."""
    # first: of a disk that is full by now they are what is left
    say(tables.terminal(scores))
    result.write(scores, path)
    say(f"\n{path}")
    _note_other_grids(scores, say)
    _note_everywhere(scores, say)
    _note_nowhere(scores, say)


def _note_other_grids(scores: Scores, say: Say) -> None:
    """Say which volumes were resampled, and which do not cover the truth."""
    by_path: dict[str, CropScore] = {}
    for crop, classes in scores.crops.items():
        for name, score in classes.items():
            by_path[f"{crop}/{name}"] = score
    total = len(by_path)
    offsets = {path: score.offset for path, score in by_path.items()}
    other_size = []
    for path, score in by_path.items():
        if score.resampled and not any(score.offset):
            other_size.append(path)
    if other_size:
        say(
            f"note: {len(other_size)} of {total} have voxels of another size than "
            f"the truth and were resampled, {other_size[0]} for one"
        )
    beside = judge.beside_text(offsets, total, "the truth")
    if beside:
        say(f"note: {beside}")
    short = [path for path, score in by_path.items() if not score.covered]
    if short:
        say(
            f"note: {len(short)} of {total} do not reach over all of the truth: "
            f"{some(short, 4)}; what is beyond counts as background, as in the challenge. If that "
            "is not meant, pack them with their own voxel_size and translation"
        )


def _note_everywhere(scores: Scores, say: Say) -> None:
    """Say which classes are predicted nearly everywhere in crops that they do not fill."""
    crops_of: dict[str, list[str]] = {}
    for crop, classes in scores.crops.items():
        for name, score in classes.items():
            if score.voxels and judge.is_everywhere(score.voxels, score.shape):
                crops_of.setdefault(name, []).append(crop)
    if crops_of:
        listed = [f"{name} ({some(crops, 2)})" for name, crops in crops_of.items()]
        say(
            "note: found in nearly all voxels, and annotated in a part of them: "
            f"{', '.join(listed)}; look at the pictures (visualize), and at thresholds"
        )


def _note_nowhere(scores: Scores, say: Say) -> None:
    """Say which classes have no annotated voxel in any crop, and a score all the same."""
    annotated: dict[str, int] = {}
    for classes in scores.crops.values():
        for name, score in classes.items():
            if score.voxels:
                annotated.setdefault(name, 0)
                annotated[name] += score.voxels.tp + score.voxels.fn
    nowhere = [name for name, voxels in annotated.items() if not voxels]
    if nowhere:
        say(
            f"note: no voxel of {some(nowhere)} is annotated in these crops; the score says only "
            "whether something was found there, and is 1 where nothing was"
        )


def note_networks(predictions: Iterable[tuple[str, str, PredictionRecord]]) -> None:
    """Note crops that were trained on, older weights, and classes predicted by several networks.

    predictions: (crop, class, record of the prediction).
    """
    predictions = list(predictions)
    note_older_weights(record for _, _, record in predictions)
    learnt: dict[str, None] = {}
    for crop, _, record in predictions:
        if record.trained_on:
            learnt[crop] = None
    if learnt:
        note(
            f"{some(list(learnt))}: predicted by a network that was trained on it; scores there, "
            "and thresholds chosen there, say nothing of other data"
        )
    several = judge.networks_text((name, record) for _, name, record in predictions)
    if several:
        note(several)


def note_values(evaluations: Sequence[Evaluation]) -> None:
    """Note unusual values of predictions and of the annotation, and what they were taken for."""
    soft = [f"{one.crop}/{one.name}" for one in evaluations if one.is_soft]
    if soft:
        note(f"{some(soft)}: {arrays.SOFT}")
    of_classes = []
    for evaluation in evaluations:
        of_classes += [(evaluation.name, remark) for remark in evaluation.remarks]
    for sentence in annotation.summed_up(of_classes):
        note(sentence)

"""Pool and average the evaluations of single crops to scores of all, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from common.score import challenge, interval, quality
from common.score.interval import CountTable, Interval
from common.score.judge import Evaluation
from common.score.result import OVERALL, ClassScore, CropScore, Figures, Scores
from common.score.versions import CSC, Version, stamp
from common.train import metrics


def summary(evaluations: Sequence[Evaluation], version: Version = CSC) -> Scores:
    """Return the challenge's scores with intervals, the figures of each class, and every crop.

    version: of the challenge's score; the one that the evaluations were counted by.
    """
    official = challenge.combine(_counts(evaluations), version)
    by_class = _group(evaluations, lambda evaluation: evaluation.name)
    by_crop = _group(evaluations, lambda evaluation: evaluation.crop)
    return Scores(
        metric=stamp(version),
        settings={
            "confidence": interval.LEVEL,
            "resamples": interval.DRAWS,
            "seed": interval.SEED,
            "pq_iou": quality.PQ_IOU,
        },
        overall_score=_known(official.overall_score),
        overall_instance_score=_known(official.overall_instance_score),
        overall_semantic_score=_known(official.overall_semantic_score),
        interval_95=_overall_intervals(evaluations),
        total_evals=official.total_evals,
        num_evals_done=official.num_evals_done,
        classes={name: _class_score(part) for name, part in by_class.items()},
        crops={crop: _crop_scores(part) for crop, part in by_crop.items()},
    )


def figures(evaluations: Sequence[Evaluation]) -> Figures:
    """Return the figures of one class: counts are pooled over crops, distances are averaged.

    Means leave out crops whose truth is empty, where a distance says nothing.

    evaluations: of the class, one a crop, at least one.
    """
    score = challenge.combine(_counts(evaluations)).label_scores[evaluations[0].name]
    # pooled as the challenge pools: a crop with little of a class weighs little
    voxels = np.sum([evaluation.voxels for evaluation in evaluations], axis=0)
    of_voxels = {name: _known(value) for name, value in metrics.metrics(*voxels).items()}
    of_objects: dict[str, float | None] = {}
    if isinstance(score, challenge.InstanceScore):
        of_objects = {
            "f1": score.f1,
            "hausdorff": score.normalized_hausdorff_distance,
            **_partition_figures(evaluations),
        }
    return Figures(
        score=score.score,
        tp=int(score.tp),
        fp=int(score.fp),
        fn=int(score.fn),
        **of_voxels,
        **of_objects,
    )


def _partition_figures(evaluations: Sequence[Evaluation]) -> dict[str, float | None]:
    """Return panoptic quality, and mean distances between partitions, of an instance class.

    Partitions of different crops have no ids in common: their distances can only be averaged.
    """
    objects = []
    splits = []
    merges = []
    rand_errors = []
    for evaluation in evaluations:
        if evaluation.objects:
            objects.append(evaluation.objects)
        if evaluation.voi:
            split, merge = evaluation.voi
            splits.append(split)
            merges.append(merge)
        if evaluation.rand_error is not None:
            rand_errors.append(evaluation.rand_error)
    return {
        "pq": _known(quality.panoptic(objects)["pq"]),
        "voi_split": _mean(splits),
        "voi_merge": _mean(merges),
        "rand_error": _mean(rand_errors),
    }


def _class_score(evaluations: Sequence[Evaluation]) -> ClassScore:
    """Return the score of one class over its crops."""
    first = evaluations[0]
    statuses = [evaluation.counts.status for evaluation in evaluations]
    # over the crops that annotate the class: the others say nothing of it
    (reach,) = interval.over_crops(
        _table(evaluations), lambda drawn: [drawn.label_scores[first.name].score]
    )
    return ClassScore(
        kind="instance" if first.is_instance else "semantic",
        crops=len(evaluations),
        left_out=statuses.count(challenge.SKIPPED),
        missing=statuses.count(challenge.MISSING),
        figures=figures(evaluations),
        interval_95=reach,
    )


def _overall_intervals(evaluations: Sequence[Evaluation]) -> dict[str, Interval | None]:
    """Return the intervals of the scores over classes, drawn from all crops."""
    intervals = interval.over_crops(
        _table(evaluations), lambda drawn: [getattr(drawn, key) for key in OVERALL]
    )
    return dict(zip(OVERALL, intervals, strict=True))


def _crop_scores(evaluations: Sequence[Evaluation]) -> dict[str, CropScore]:
    return {evaluation.name: _crop_score(evaluation) for evaluation in evaluations}


def _crop_score(evaluation: Evaluation) -> CropScore:
    return CropScore(
        status=evaluation.counts.status,
        figures=figures([evaluation]),
        counts=evaluation.counts,
        voxels=evaluation.voxels,
        objects=evaluation.objects,
        voxel_size=evaluation.voxel_size,
        shape=evaluation.shape,
        resampled=evaluation.resampled,
        offset=evaluation.offset,
        refused=evaluation.refused,
        covered=evaluation.covered,
    )


def _counts(evaluations: Iterable[Evaluation]) -> list[tuple[str, challenge.Counts]]:
    """(class, counts) of each evaluation, as `challenge.combine` takes them."""
    return [(evaluation.name, evaluation.counts) for evaluation in evaluations]


def _table(evaluations: Iterable[Evaluation]) -> CountTable:
    cells = [(evaluation.crop, evaluation.name, evaluation.counts) for evaluation in evaluations]
    return CountTable.of(cells)


def _group(
    evaluations: Iterable[Evaluation], key: Callable[[Evaluation], str]
) -> dict[str, list[Evaluation]]:
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(key(evaluation), []).append(evaluation)
    return groups


def _mean(values: Iterable[float]) -> float | None:
    """Return the mean of the values that are not NaN; None if all are."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else None


def _known(value: float | np.ndarray) -> float | None:
    """Return a float; None for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)

"""From the evaluations of single crops to the scores of all: pooled, averaged, with intervals."""

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
    """The challenge's scores and intervals, figures of each class, and every crop by itself.

    version: of the challenge's score that the evaluations were counted by.
    """
    official = challenge.combine(((one.name, one.counts) for one in evaluations), version)
    by_class = _group(evaluations, lambda one: one.name)
    by_crop = _group(evaluations, lambda one: one.crop)
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
    """The figures of one class: counts pooled over crops, distances of partitions averaged.

    A mean over crops leaves out those whose truth is empty, of which a distance says nothing.
    """
    first = evaluations[0]
    official = challenge.combine((one.name, one.counts) for one in evaluations)
    score = official.label_scores[first.name]
    # pooled as the challenge pools: a crop with little of a class weighs little
    pooled = metrics.metrics(*np.sum([one.voxels for one in evaluations], axis=0))
    of_voxels = {name: _known(value) for name, value in pooled.items()}
    of_objects: dict[str, float | None] = {}
    if isinstance(score, challenge.InstanceScore):
        # partitions of different crops have no ids in common: their distances can only be averaged
        panoptic = quality.panoptic(one.objects for one in evaluations if one.objects)
        of_objects = {
            "f1": score.f1,
            "hausdorff": score.normalized_hausdorff_distance,
            "pq": _known(panoptic["pq"]),
            "voi_split": _mean(one.voi[0] for one in evaluations if one.voi),
            "voi_merge": _mean(one.voi[1] for one in evaluations if one.voi),
            "rand_error": _mean(
                one.rand_error for one in evaluations if one.rand_error is not None
            ),
        }
    return Figures(
        score=score.score,
        tp=int(score.tp),
        fp=int(score.fp),
        fn=int(score.fn),
        **of_voxels,
        **of_objects,
    )


def _class_score(evaluations: Sequence[Evaluation]) -> ClassScore:
    """One class over its crops."""
    first = evaluations[0]
    statuses = [one.counts.status for one in evaluations]
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
    """Of the scores over classes; over all crops, those without any class of a kind too."""
    intervals = interval.over_crops(
        _table(evaluations), lambda drawn: [getattr(drawn, key) for key in OVERALL]
    )
    return dict(zip(OVERALL, intervals, strict=True))


def _crop_scores(evaluations: Sequence[Evaluation]) -> dict[str, CropScore]:
    return {one.name: _crop_score(one) for one in evaluations}


def _crop_score(one: Evaluation) -> CropScore:
    return CropScore(
        status=one.counts.status,
        figures=figures([one]),
        counts=one.counts,
        voxels=one.voxels,
        objects=one.objects,
        voxel_size=one.voxel_size,
        shape=one.shape,
        resampled=one.resampled,
        offset=one.offset,
        refused=one.refused,
        covered=one.covered,
    )


def _table(evaluations: Iterable[Evaluation]) -> CountTable:
    return CountTable.of((one.crop, one.name, one.counts) for one in evaluations)


def _group(
    evaluations: Iterable[Evaluation], key: Callable[[Evaluation], str]
) -> dict[str, list[Evaluation]]:
    groups: dict[str, list[Evaluation]] = {}
    for one in evaluations:
        groups.setdefault(key(one), []).append(one)
    return groups


def _mean(values: Iterable[float]) -> float | None:
    """Of those that are not NaN; None without one."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else None


def _known(value: float | np.ndarray) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)

"""Scores of many crops: those of the challenge, and made again from what is written of crops."""

from __future__ import annotations

import json

import numpy as np

from common.score import challenge, result
from common.score.judge import Evaluation
from common.score.quality import ObjectCounts, VoxelCounts
from common.score.summary import summary
from common.score.versions import DEFINITION


def random_evaluations(rng, crops=6) -> list[Evaluation]:
    found = []
    for crop in range(crops):
        for name in ("mito", "nuc", "er", "pm"):
            if rng.random() < 0.3:
                continue
            tp, fp, fn = rng.integers(0, 9, 3).tolist()
            voxels = VoxelCounts(tp, fp, fn)
            if name in ("er", "pm"):
                found.append(Evaluation(f"crop{crop}", name, challenge.Counts(tp, fp, fn), voxels))
                continue
            number = tp + fp + fn
            counts = challenge.InstanceCounts(
                tp,
                fp,
                fn,
                hausdorff_norm_sum=float(rng.uniform(0, number)),
                n_hausdorff=number,
            )
            objects = ObjectCounts(tp, fp, fn, 0.7 * tp)
            found.append(
                Evaluation(
                    f"crop{crop}", name, counts, voxels, objects, voi=(0.1, 0.2), rand_error=0.3
                )
            )
    return found


def test_overall_scores_are_those_of_the_challenge():
    found = random_evaluations(np.random.default_rng(4))
    scores = summary(found)
    official = challenge.combine((one.name, one.counts) for one in found)
    for key in result.OVERALL:
        assert scores.overall(key) == getattr(official, key)
    assert scores.metric == "CellMap Segmentation Challenge, csc-2026-06"
    assert summary(found, DEFINITION).metric.endswith(", definition-2026-06")


def test_the_figures_of_classes_can_be_made_again_from_what_is_written_of_crops():
    scores = summary(random_evaluations(np.random.default_rng(2)))
    written = result.from_json(json.loads(json.dumps(scores.as_json())))
    again = []
    for crop, classes in written.crops.items():
        for name, one in classes.items():
            figures = one.figures
            is_instance = one.kind == "instance"
            again.append(
                Evaluation(
                    crop,
                    name,
                    one.counts,
                    one.voxels,
                    one.objects,
                    voi=(figures.voi_split, figures.voi_merge) if is_instance else None,
                    rand_error=figures.rand_error,
                )
            )
    assert summary(again).classes == scores.classes

"""Scores as tables of text: they fit a terminal, and what is unknown or unusual is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from common.classes import INSTANCES, TESTED
from common.score import interval, tables
from common.score.challenge import MISSING, SKIPPED, Counts, InstanceCounts
from common.score.judge import Evaluation
from common.score.quality import ObjectCounts, VoxelCounts
from common.score.result import Scores
from common.score.summary import summary


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(interval, "DRAWS", 50)


def scores_of(*names: str, crops: int = 3) -> Scores:
    rng = np.random.default_rng(0)
    evaluations = []
    for crop in range(crops):
        for name in names:
            tp, fp, fn = rng.integers(100, 10**6, 3).tolist()
            voxels = VoxelCounts(tp, fp, fn)
            if name not in INSTANCES:
                evaluations.append(Evaluation(f"crop{crop}", name, Counts(tp, fp, fn), voxels))
                continue
            counts = InstanceCounts(tp, fp, fn, hausdorff_norm_sum=0.4 * tp, n_hausdorff=tp)
            objects = ObjectCounts(tp, fp, fn, 0.7 * tp)
            evaluations.append(
                Evaluation(
                    f"crop{crop}",
                    name,
                    counts,
                    voxels,
                    objects,
                    voi=(12.5, 10.25),
                    rand_error=0.375,
                )
            )
    return summary(evaluations)


def with_figures(scores: Scores, name: str, **figures: float | None) -> Scores:
    """With other figures of a class."""
    score = scores.classes[name]
    other = replace(score, figures=replace(score.figures, **figures))
    return replace(scores, classes={**scores.classes, name: other})


def of_status(status: str) -> Scores:
    """Three crops with one class, in all but the first of this status."""
    evaluations = []
    for crop in range(3):
        counts = InstanceCounts(status=status if crop else "scored")
        evaluations.append(
            Evaluation(
                f"crop{crop}",
                "mito",
                counts,
                VoxelCounts(1, 1, 1),
                ObjectCounts(0, 0, 1, 0.0),
                voi=(1, 1),
                rand_error=0.1,
            )
        )
    return summary(evaluations)


@pytest.mark.parametrize(
    "names",
    [("er",), ("mito",), ("mito", "er"), TESTED, ("chloroplast_lum", "perox", "plasmodesmata")],
)
@pytest.mark.parametrize("crops", [1, 3, 41])
def test_tables_fit_120_columns(names, crops):
    scores = replace(scores_of(*names, crops=crops), not_annotated=TESTED)
    lines = tables.terminal(scores).splitlines()
    assert max(map(len, lines)) <= tables.WIDTH
    rows = []
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] in names and words[1] == str(crops):
            rows.append(words[0])
    instances = [name for name in names if name in INSTANCES]
    assert rows == instances + [name for name in names if name not in INSTANCES]


def test_columns_stand_below_their_heads():
    lines = tables.terminal(scores_of("mito", "nuc")).splitlines()
    head, *rows = lines[1:4]
    for word in ("score", "F1", "PQ", "recall"):
        end = head.index(word) + len(word)
        for row in rows:
            assert row[end - 1].isdigit()
            assert row[end : end + 1] in ("", " ")


def test_columns_without_a_figure_are_left_out():
    scores = scores_of("mito", "er", crops=1)
    assert "95 % interval" not in tables.terminal(scores)
    scores = with_figures(scores, "mito", rand_error=None)
    scores = with_figures(scores, "er", dice=None, recall=None)
    instance, semantic = tables.tables(scores)
    assert "Rand" not in instance.head
    assert semantic.head == ["class", "crops", "score", "prec"]


def test_a_figure_that_does_not_exist_is_a_dash():
    scores = with_figures(scores_of("mito", "nuc", crops=1), "nuc", pq=None)
    (table,) = tables.tables(scores)
    column = table.head.index("PQ")
    known = f"{scores.classes['mito'].figures.pq:.3f}"
    assert [row[column] for row in table.rows] == [known, "-"]


def test_heads_are_explained_where_they_stand():
    assert "panoptic quality" in tables.terminal(scores_of("mito"))
    assert "panoptic quality" not in tables.terminal(scores_of("er"))


@pytest.mark.parametrize(
    ("status", "words"),
    [(SKIPPED, "Left out by the metric"), (MISSING, "Missing in the submission")],
)
def test_what_was_not_scored_is_said(status, words):
    said = " ".join(tables.remarks(of_status(status)))
    assert words in said and "mito in 2 of 3 crops" in said
    assert words not in " ".join(tables.remarks(scores_of("mito")))

"""The file of scores: what is written is read back, files of an earlier version too."""

from __future__ import annotations

import json
import math

import pytest

from common.errors import UserError
from common.score import result
from common.score.challenge import Counts, InstanceCounts
from common.score.judge import Evaluation
from common.score.quality import ObjectCounts, VoxelCounts
from common.score.result import Asked, Checkpoint, Provenance, Scores
from common.score.summary import summary


def scores_of_two_crops() -> Scores:
    evaluations = []
    for crop in ("d/crop1", "d/crop2"):
        mito = Evaluation(
            crop,
            "mito",
            InstanceCounts(3, 1, 2, hausdorff_norm_sum=4.5, n_hausdorff=6),
            VoxelCounts(30, 10, 20),
            ObjectCounts(2, 2, 3, 1.5),
            voi=(0.25, math.nan),
            rand_error=0.125,
            voxel_size=(8.0, 8.0, 8.0),
            shape=(10, 11, 12),
        )
        er = Evaluation(crop, "er", Counts(5, 5, 0), VoxelCounts(5, 5, 0), resampled=True)
        evaluations += [mito, er]
    return summary(evaluations)


PROVENANCE = Provenance(
    date="2026-11-26T10:00:00+00:00",
    versions={"torch": "2.9", "commit": "abc"},
    experiment="unet8_all",
    model_name="m",
    run_name="r",
    checkpoints=(Checkpoint("best.pt", "d" * 64, 7, "dice 0.5 at epoch 7"),),
    thresholds={"mito": 0.5, "er": None},
)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"asked": Asked("validate", ("er",), ("batch_size=3",)), "not_annotated": ("nuc",)},
        {"provenance": PROVENANCE},
        {"provenance": Provenance("2026", {"torch": "2.9"}, submission="s.zip", truth="t.zarr")},
    ],
)
def test_what_is_written_is_read_back(tmp_path, more):
    scores = Scores(**{**vars(scores_of_two_crops()), **more})
    result.write(scores, tmp_path / "results/scores.json")
    assert result.read(tmp_path / "results/scores.json") == scores


def test_a_changed_digit_is_told(tmp_path, capsys):
    path = tmp_path / "scores.json"
    result.write(Scores(**{**vars(scores_of_two_crops()), "provenance": PROVENANCE}), path)
    content = json.loads(path.read_text())
    result.read(path)
    assert capsys.readouterr().err == ""
    content["classes"]["er"]["iou"] = 0.75
    path.write_text(json.dumps(content))
    assert result.read(path).classes["er"].figures.iou == 0.75
    assert capsys.readouterr().err.startswith(f"note: {path}: no longer as evaluate wrote it")


def test_the_layout_of_the_file():
    content = json.loads(json.dumps(scores_of_two_crops().as_json(), allow_nan=False))
    assert list(content) == [
        *("metric", "settings", *result.OVERALL, "interval_95", "total_evals", "num_evals_done"),
        *("classes", "crops"),
    ]
    assert content["settings"] == {"confidence": 0.95, "resamples": 1000, "seed": 0, "pq_iou": 0.5}
    mito, er = content["classes"]["mito"], content["classes"]["er"]
    assert list(mito) == [
        *("kind", "crops", "left_out", "missing", "score", "dice", "iou", "precision", "recall"),
        *("f1", "hausdorff", "pq", "voi_split", "voi_merge", "rand_error", "tp", "fp", "fn"),
        "interval_95",
    ]
    assert (mito["tp"], mito["voi_split"], mito["voi_merge"]) == (6, 0.25, None)
    assert "f1" not in er and er["kind"] == "semantic"
    one = content["crops"]["d/crop1"]["mito"]
    assert one["counts"] == {
        **{"tp": 3, "fp": 1, "fn": 2, "hausdorff_norm_sum": 4.5, "n_hausdorff": 6}
    }
    assert one["objects"] == {"tp": 2, "fp": 2, "fn": 3, "iou_sum": 1.5}
    assert one["voxels"] == {"tp": 30, "fp": 10, "fn": 20}
    assert (one["status"], one["voxel_size"], one["shape"]) == ("scored", [8, 8, 8], [10, 11, 12])
    assert content["crops"]["d/crop1"]["er"]["objects"] is None


def test_what_an_earlier_version_did_not_write_is_none(tmp_path):
    path = tmp_path / "scores.json"
    cell = {"status": "scored", "score": 0.5}
    content = {
        "overall_score": 0.25,
        "classes": {"er": {"score": 0.5}},
        "crops": {"c": {"er": cell}},
    }
    path.write_text(json.dumps(content))
    scores = result.read(path)
    assert (scores.overall_score, scores.overall_semantic_score) == (0.25, None)
    assert scores.classes["er"].figures.score == 0.5
    assert scores.classes["er"].interval_95 is None
    assert scores.crops["c"]["er"].counts is None and scores.counts() == {}
    assert scores.provenance is None


def test_counts_are_by_crop_and_class():
    counts = scores_of_two_crops().counts()
    assert counts["d/crop2", "er"] == Counts(5, 5, 0)
    assert len(counts) == 4 and counts["d/crop1", "mito"].n_hausdorff == 6


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", '{"classes": {"er": 0.5}}', '{"crops": {"a": 1}}']
)
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(UserError, match=r"scores\.json: no scores of evaluate"):
        result.read(tmp_path / "scores.json")

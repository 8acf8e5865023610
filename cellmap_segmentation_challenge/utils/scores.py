"""The challenge's score, by the functions of the public toolbox: prediction first, then truth."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cellmap_segmentation_challenge._public import names_of
from cellmap_segmentation_challenge.config import under_data
from common.classes import INSTANCES
from common.errors import UserError
from common.score import challenge
from common.score.evaluate import evaluate_submission

__getattr__ = names_of(__name__, {})

Score = dict[str, Any]
"""tp, fp, fn and status; of an instance class hausdorff_norm_sum and n_hausdorff, too."""


def score_semantic(pred_label: np.ndarray, truth_label: np.ndarray) -> Score:
    """Count true positive, false positive and false negative voxels, those above 0.

    Raises UserError if shapes differ.
    """
    return asdict(challenge.semantic(truth_label, pred_label))


# the public toolbox's arguments, in its order
def score_instance(  # noqa: PLR0917
    pred_label: np.ndarray,
    truth_label: np.ndarray,
    voxel_size: Sequence[float],
    hausdorff_distance_max: float | None = None,
    config: Any = None,
) -> Score:
    """Count matched, surplus and missed objects, and sum their normalised distances.

    voxel_size: nm, z, y, x. hausdorff_distance_max and config must be None: the challenge's own are
    taken. Raises UserError for other shapes, and for values that are no ids.
    """
    if hausdorff_distance_max is not None or config is not None:
        raise UserError(
            "score_instance: hausdorff_distance_max and config are those of the challenge here; "
            "leave them out"
        )
    return asdict(challenge.instance(truth_label, pred_label, tuple(voxel_size)))


def combine_scores(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
    """Pool {crop: {class: score}} over crops; return it with label_scores and overall scores."""
    evaluations = []
    for of_crop in scores.values():
        for name, score in of_crop.items():
            evaluations.append((name, _counts(score)))
    combined = asdict(challenge.combine(evaluations))
    return {**scores, **combined}


def score_submission(
    submission_path: str | os.PathLike[str] | None = None,
    result_file: str | os.PathLike[str] | None = None,
    truth_path: str | os.PathLike[str] | None = None,
    instance_classes: Sequence[str] = INSTANCES,
) -> dict[str, Any]:
    """Score a packed submission: {crop: {class: score}}, label_scores and the overall scores.

    Args:
        submission_path: a zip, a folder with one, or a zarr folder; submission.zip of the data root
            unless given.
        result_file: file that gets the scores as `evaluate` writes them.
        truth_path: a store of {crop}/{class}; TRUTH_PATH unless given.
        instance_classes: those that are scored by their objects.

    Raises:
        FileNotFoundError: without a submission or truths.
        UserError: where one of them is not what it should be.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = evaluate_submission(
            Path(submission_path or Path(under_data("SUBMISSION_PATH")).with_suffix(".zip")),
            Path(truth_path or under_data("TRUTH_PATH")),
            result_path=Path(result_file or Path(folder) / "result.json"),
            instance_classes=instance_classes,
        )
    scores: dict[str, dict[str, Score]] = {}
    for (crop, name), counts in result.counts().items():
        score = asdict(counts) | {"is_missing": counts.status == challenge.MISSING}
        scores.setdefault(crop, {})[name] = score
    return combine_scores(scores)


def _counts(score: Score) -> challenge.Counts:
    kind = challenge.InstanceCounts if "n_hausdorff" in score else challenge.Counts
    names = kind.__dataclass_fields__
    return kind(**{name: value for name, value in score.items() if name in names})

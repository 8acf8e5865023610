"""What `evaluate` found, and the JSON file that it stands in: scores.json.

Numbers that do not exist are None here and null in the file. The layout of the file:

    metric       the challenge's score and which definition of it
    settings     confidence level, resamples and seed of the intervals, the IoU from which objects
                 match for PQ
    overall_score, overall_instance_score, overall_semantic_score; interval_95 of each;
    total_evals, num_evals_done
    classes      {class: kind, crops, left_out, missing, figures, interval_95}
    crops        {crop: {class: status, figures, counts, voxels, objects, voxel_size, shape,
                 resampled, offset, covered, refused where it is}}
    asked        crops, classes and overrides of the command
    not_annotated  classes that none of the crops has
    provenance   experiment, run, checkpoints with SHA-256, thresholds, of the crops those that
                 thresholds were chosen on (tuned_on), versions, git commit, date

where figures stand among the other entries, see `Figures`; the dataclasses say what each entry is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from common import typed
from common.errors import UserError
from common.files import write_json
from common.score.challenge import Counts, InstanceCounts
from common.score.interval import Interval
from common.score.quality import ObjectCounts, VoxelCounts

Kind = Literal["instance", "semantic"]

OVERALL = ("overall_score", "overall_instance_score", "overall_semantic_score")
"""The scores over classes: of both kinds, and of each."""

FIGURES: dict[Kind, tuple[str, ...]] = {
    "semantic": ("score", "dice", "iou", "precision", "recall", "tp", "fp", "fn"),
    "instance": (
        *("score", "dice", "iou", "precision", "recall", "f1", "hausdorff", "pq"),
        *("voi_split", "voi_merge", "rand_error", "tp", "fp", "fn"),
    ),
}
"""The figures that a class of each kind has, in the order of the file."""


@dataclass(frozen=True)
class Figures:
    """How good one class is, in one crop or with the counts of several pooled."""

    score: float | None = None
    """The challenge's: IoU of a semantic class, sqrt(f1 x hausdorff) of an instance class.

    1 where there is nothing to find and nothing was found.
    """
    dice: float | None = None
    """Counts voxels, as the next three do; None where there is nothing to find."""
    iou: float | None = None
    precision: float | None = None
    recall: float | None = None
    tp: int | None = None
    """Voxels or objects, those of the score; likewise the next two."""
    fp: int | None = None
    fn: int | None = None
    f1: float | None = None
    """Of objects; this and the following only for an instance class."""
    hausdorff: float | None = None
    """Normalised Hausdorff distance, 1 best."""
    pq: float | None = None
    """Panoptic quality at IoU > 0.5."""
    voi_split: float | None = None
    """Variation of information by splits, bits, 0 best; mean over crops, as the next two are."""
    voi_merge: float | None = None
    rand_error: float | None = None
    """Adapted Rand error, 0 best."""

    def of_kind(self, kind: Kind) -> dict[str, float | int | None]:
        """The figures that a class of this kind has, by name."""
        return {name: getattr(self, name) for name in FIGURES[kind]}


@dataclass(frozen=True)
class ClassScore:
    """One class over all crops that annotate it."""

    kind: Kind = "semantic"
    crops: int = 0
    """How many there are."""
    left_out: int = 0
    """In how many the metric left the class out, for too many predicted objects."""
    missing: int = 0
    """In how many a submission lacks it."""
    figures: Figures = Figures()
    interval_95: Interval | None = None
    """Of the score; None with fewer than two crops."""


@dataclass(frozen=True)
class CropScore:
    """One class in one crop."""

    status: str = ""
    """Of the challenge's score: scored, missing or skipped_too_many_instances."""
    figures: Figures = Figures()
    counts: Counts | None = None
    """Of the challenge's score, InstanceCounts of an instance class; None in files that an earlier
    version wrote."""
    voxels: VoxelCounts | None = None
    objects: ObjectCounts | None = None
    """None of a semantic class."""
    voxel_size: tuple[float, ...] = ()
    """nm, of the annotation."""
    shape: tuple[int, ...] = ()
    """In its voxels."""
    resampled: bool = False
    """Whether what was found had voxels of another size, or between those of the annotation."""
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)
    """nm that voxels of the annotation's size lay beside it, z, y, x."""
    covered: bool = True
    """Whether what was found reaches over all of the annotation; the rest counts as background."""
    refused: str = ""
    """Why what was submitted cannot be scored, and is missing."""

    @property
    def kind(self) -> Kind:
        """How the class is scored."""
        return "semantic" if self.objects is None else "instance"


@dataclass(frozen=True)
class Asked:
    """What `evaluate` was asked for."""

    crops: str
    classes: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """What a processed volume says of the network that it came from; None where it does not say."""

    checkpoint: str | None = None
    sha256: str | None = None
    epoch: int | None = None
    metric: str | None = None
    """The best metric of its run at that epoch, in words."""
    content: str | None = None
    """Of the prediction: probability or logits."""
    dtype: str | None = None
    orientations: int | None = None
    """How many were averaged."""
    planes: int | None = None
    """Axes across which a 2-D network predicted; None for those of its training."""
    networks: int | None = None
    """How many an ensemble is of; None of a single one."""


@dataclass(frozen=True)
class Provenance:
    """What was scored, and by what."""

    date: str = ""
    """ISO 8601, UTC."""
    versions: dict[str, str] = field(default_factory=dict)
    """Packages, machine and git commit; in the file they are entries of their own."""
    experiment: str | None = None
    """Folder. This and the next four are None for a submission, the last two for an experiment."""
    model_name: str | None = None
    run_name: str | None = None
    checkpoints: tuple[Checkpoint, ...] | None = None
    thresholds: dict[str, float | None] | None = None
    """By class; None of a volume that another program wrote."""
    tuned_on: dict[str, list[str]] | None = None
    """By class, those of the crops scored here that its threshold was chosen on, if there are."""
    submission: str | None = None
    truth: str | None = None


@dataclass(frozen=True)
class Scores:
    """The whole result of an evaluation."""

    overall_score: float | None = None
    """Geometric mean of the next two, the means over classes; None without such a class."""
    overall_instance_score: float | None = None
    overall_semantic_score: float | None = None
    interval_95: dict[str, Interval | None] = field(default_factory=dict)
    """Of the overall scores by name, see OVERALL."""
    classes: dict[str, ClassScore] = field(default_factory=dict)
    crops: dict[str, dict[str, CropScore]] = field(default_factory=dict)
    """By crop and class."""
    total_evals: int = 0
    """Classes in crops."""
    num_evals_done: int = 0
    """Those not missing."""
    metric: str = ""
    settings: dict[str, float] = field(default_factory=dict)
    """confidence, resamples and seed of the intervals; pq_iou."""
    asked: Asked | None = None
    """None for a submission, as the next is."""
    not_annotated: tuple[str, ...] | None = None
    provenance: Provenance | None = None

    def overall(self, key: str) -> float | None:
        """One of OVERALL."""
        return {
            "overall_score": self.overall_score,
            "overall_instance_score": self.overall_instance_score,
            "overall_semantic_score": self.overall_semantic_score,
        }[key]

    def counts(self) -> dict[tuple[str, str], Counts]:
        """The counts of the challenge's score by (crop, class), of those that the file has."""
        counts = {}
        for crop, classes in self.crops.items():
            for name, score in classes.items():
                if score.counts is not None:
                    counts[crop, name] = score.counts
        return counts

    def as_json(self) -> dict[str, Any]:
        """The content of the file."""
        content: dict[str, Any] = {
            "metric": self.metric,
            "settings": self.settings,
            **{key: self.overall(key) for key in OVERALL},
            "interval_95": {key: _list(interval) for key, interval in self.interval_95.items()},
            "total_evals": self.total_evals,
            "num_evals_done": self.num_evals_done,
            "classes": {name: _class_json(score) for name, score in self.classes.items()},
            "crops": {crop: _crop_json(classes) for crop, classes in self.crops.items()},
        }
        if self.asked is not None:
            content["asked"] = {
                "crops": self.asked.crops,
                "classes": list(self.asked.classes),
                "overrides": list(self.asked.overrides),
            }
        if self.not_annotated is not None:
            content["not_annotated"] = list(self.not_annotated)
        if self.provenance is not None:
            content["provenance"] = _provenance_json(self.provenance)
        return content


def write(scores: Scores, path: str | Path) -> None:
    """Write scores as JSON, whole or not at all. Raises FileError if it cannot be written."""
    write_json(path, scores.as_json())


def read(path: str | Path) -> Scores:
    """The scores in a file of `evaluate`; what an earlier version did not write is None.

    Raises UserError for another file.
    """
    try:
        content = json.loads(Path(path).read_text(), parse_constant=typed.no_constant)
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}")
        scores = from_json(content)
        typed.check(scores)
        return scores
    except (OSError, RecursionError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: no scores of evaluate ({error}); evaluate again, or remove it"
        ) from error


def from_json(content: Mapping[str, Any]) -> Scores:
    """Scores from the content of a file. Where it is another content: TypeError and the like."""
    classes = {name: _with_figures(entry) for name, entry in content.get("classes", {}).items()}
    crops = {}
    for crop, entries in content.get("crops", {}).items():
        crops[crop] = {name: _of_crop(entry) for name, entry in entries.items()}
    values = {**content, "classes": classes, "crops": crops}
    values["interval_95"] = dict.fromkeys(OVERALL) | content.get("interval_95", {})
    if content.get("provenance"):
        values["provenance"] = _with_versions(content["provenance"])
    return typed.build(Scores, values)


def _with_figures(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with its figures, which stand beside the others in the file."""
    return {**entry, "figures": entry}


def _of_crop(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a class in a crop, with counts of its kind."""
    for name in ("voxel_size", "shape"):
        if len(entry.get(name, ())) not in (0, 3):
            raise ValueError(f"{name} {entry[name]} along three axes")
    counts = entry.get("counts")
    if counts:
        kind = InstanceCounts if "n_hausdorff" in counts else Counts
        counts = kind(**counts, status=entry.get("status", ""))
    return {**_with_figures(entry), "counts": counts}


def _with_versions(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance with its versions, an open list: all that has no name of its own."""
    known = {named.name for named in fields(Provenance)}
    return {**entry, "versions": {name: entry[name] for name in entry if name not in known}}


def _class_json(score: ClassScore) -> dict[str, Any]:
    return {
        "kind": score.kind,
        "crops": score.crops,
        "left_out": score.left_out,
        "missing": score.missing,
        # flat, beside what they are figures of: one look-up less for who reads the file
        **score.figures.of_kind(score.kind),
        "interval_95": _list(score.interval_95),
    }


def _crop_json(classes: Mapping[str, CropScore]) -> dict[str, Any]:
    return {name: _crop_class_json(score) for name, score in classes.items()}


def _crop_class_json(score: CropScore) -> dict[str, Any]:
    entry: dict[str, Any] = {"status": score.status, **score.figures.of_kind(score.kind)}
    if score.counts is not None:
        counts = asdict(score.counts)
        del counts["status"]  # which stands above
        entry["counts"] = counts
    if score.refused:
        entry["refused"] = score.refused
    return {
        **entry,
        "voxels": score.voxels and score.voxels._asdict(),
        "objects": score.objects and score.objects._asdict(),
        "voxel_size": list(score.voxel_size),
        "shape": list(score.shape),
        "resampled": score.resampled,
        "offset": list(score.offset),
        "covered": score.covered,
    }


def _provenance_json(provenance: Provenance) -> dict[str, Any]:
    checkpoints = None
    if provenance.checkpoints is not None:
        checkpoints = [asdict(checkpoint) for checkpoint in provenance.checkpoints]
        for checkpoint in checkpoints:
            for name in ("networks", "planes"):  # files of before have none, either
                if checkpoint[name] is None:
                    del checkpoint[name]
    entry: dict[str, Any] = {
        "submission": provenance.submission,
        "truth": provenance.truth,
        "experiment": provenance.experiment,
        "model_name": provenance.model_name,
        "run_name": provenance.run_name,
        "checkpoints": checkpoints,
        "thresholds": provenance.thresholds,
        "tuned_on": provenance.tuned_on or None,
        **provenance.versions,
        "date": provenance.date,
    }
    # an experiment has no submission, and a submission no experiment
    return {key: value for key, value in entry.items() if value is not None}


def _list(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)

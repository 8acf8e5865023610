"""The result of `evaluate`, and its JSON file, scores.json.

A number that does not exist is None here and null in the file. The layout of the file:

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
    checksum     of all of it, by which a number that was changed is told

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
from common.files import key_of, write_json
from common.score.challenge import Counts, InstanceCounts
from common.score.interval import Interval
from common.score.quality import ObjectCounts, VoxelCounts
from common.talk import note_once

Kind = Literal["instance", "semantic"]

CHECKSUM = "checksum"
"""Key in the file; those of earlier versions have none."""

OVERALL = ("overall_score", "overall_instance_score", "overall_semantic_score")
"""The scores over classes: of both kinds together, and of each kind."""

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
    """How good one class is, in one crop or over several crops."""

    score: float | None = None
    """The challenge's: IoU of a semantic class, sqrt(f1 x hausdorff) of an instance class.

    1 where there is nothing to find and nothing was found.
    """
    dice: float | None = None
    """Of voxels, as are the next three; None if the truth is empty."""
    iou: float | None = None
    precision: float | None = None
    recall: float | None = None
    tp: int | None = None
    """Voxels of a semantic class, objects of an instance class; so are the next two."""
    fp: int | None = None
    fn: int | None = None
    f1: float | None = None
    """Of objects; this and the following are only for an instance class."""
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
        """Return the figures that a class of this kind has, by name."""
        return {name: getattr(self, name) for name in FIGURES[kind]}


@dataclass(frozen=True)
class ClassScore:
    """One class over all crops that annotate it."""

    kind: Kind = "semantic"
    crops: int = 0
    """Number of crops."""
    left_out: int = 0
    """Number of crops where the metric left the class out, for too many predicted objects."""
    missing: int = 0
    """Number of crops where the submission lacks the class."""
    figures: Figures = Figures()
    interval_95: Interval | None = None
    """Interval of the score; None with fewer than two crops."""


@dataclass(frozen=True)
class CropScore:
    """One class in one crop."""

    status: str = ""
    """Status in the challenge's score: scored, missing or skipped_too_many_instances."""
    figures: Figures = Figures()
    counts: Counts | None = None
    """What the challenge's score counts, InstanceCounts for an instance class; None in files of
    earlier versions."""
    voxels: VoxelCounts | None = None
    objects: ObjectCounts | None = None
    """None for a semantic class."""
    voxel_size: tuple[float, ...] = ()
    """Of the annotation, nm."""
    shape: tuple[int, ...] = ()
    """Of the annotation, voxels."""
    resampled: bool = False
    """Whether the prediction had voxels of another size, or between those of the annotation."""
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)
    """How far (nm, z, y, x) a prediction of the same voxel size lay beside the annotation."""
    covered: bool = True
    """Whether the prediction covers the annotation; what it does not cover counts as background."""
    refused: str = ""
    """Why a submitted array cannot be scored and counts as missing; "" if it can."""

    @property
    def kind(self) -> Kind:
        """Whether the class is scored by voxels or by objects."""
        return "semantic" if self.objects is None else "instance"


@dataclass(frozen=True)
class Asked:
    """The options that `evaluate` was called with."""

    crops: str
    classes: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """What a processed volume has on record about its network; None for what is not on record."""

    checkpoint: str | None = None
    sha256: str | None = None
    epoch: int | None = None
    metric: str | None = None
    """The best metric of the run at that epoch, in words."""
    content: str | None = None
    """What was predicted: probability or logits."""
    dtype: str | None = None
    orientations: int | None = None
    """Number of orientations that were averaged."""
    planes: int | None = None
    """Number of axes across which a 2-D network predicted; None for those of its training."""
    networks: int | None = None
    """Number of networks of an ensemble; None for a single network."""


@dataclass(frozen=True)
class Provenance:
    """What was scored, and by which code."""

    date: str = ""
    """ISO 8601, UTC."""
    versions: dict[str, str] = field(default_factory=dict)
    """Packages, machine and git commit; each is an entry of its own in the file."""
    experiment: str | None = None
    """Name of the folder. None for a submission, as are the next five."""
    model_name: str | None = None
    run_name: str | None = None
    checkpoints: tuple[Checkpoint, ...] | None = None
    thresholds: dict[str, float | None] | None = None
    """By class; None for a volume that another program wrote."""
    tuned_on: dict[str, list[str]] | None = None
    """For each class the scored crops that its threshold was chosen on."""
    submission: str | None = None
    """Path. None for an experiment, as is the next."""
    truth: str | None = None


@dataclass(frozen=True)
class Scores:
    """The whole result of an evaluation."""

    overall_score: float | None = None
    """Geometric mean of the next two, each a mean over classes; None without a class of a kind."""
    overall_instance_score: float | None = None
    overall_semantic_score: float | None = None
    interval_95: dict[str, Interval | None] = field(default_factory=dict)
    """Intervals of the overall scores, by the names of OVERALL."""
    classes: dict[str, ClassScore] = field(default_factory=dict)
    crops: dict[str, dict[str, CropScore]] = field(default_factory=dict)
    """Scores by crop and class."""
    total_evals: int = 0
    """Number of scored volumes, each of a class in a crop."""
    num_evals_done: int = 0
    """Number of volumes that are not missing."""
    metric: str = ""
    settings: dict[str, float] = field(default_factory=dict)
    """confidence, resamples and seed of the intervals; pq_iou."""
    asked: Asked | None = None
    """None for a submission, as is the next."""
    not_annotated: tuple[str, ...] | None = None
    provenance: Provenance | None = None

    @property
    def left_out(self) -> int:
        """Number of classes of crops that the metric left out."""
        return sum(score.left_out for score in self.classes.values())

    def overall(self, key: str) -> float | None:
        """Return one of the scores of OVERALL by name."""
        return {
            "overall_score": self.overall_score,
            "overall_instance_score": self.overall_instance_score,
            "overall_semantic_score": self.overall_semantic_score,
        }[key]

    def counts(self) -> dict[tuple[str, str], Counts]:
        """Return the counts of the challenge's score by (crop, class), where the file has them."""
        counts = {}
        for crop, classes in self.crops.items():
            for name, score in classes.items():
                if score.counts is not None:
                    counts[crop, name] = score.counts
        return counts

    def as_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        crops = {}
        for crop, classes in self.crops.items():
            crops[crop] = {name: _crop_class_json(score) for name, score in classes.items()}
        content: dict[str, Any] = {
            "metric": self.metric,
            "settings": self.settings,
            **{key: self.overall(key) for key in OVERALL},
            "interval_95": self.interval_95,
            "total_evals": self.total_evals,
            "num_evals_done": self.num_evals_done,
            "classes": {name: _class_json(score) for name, score in self.classes.items()},
            "crops": crops,
        }
        if self.asked is not None:
            content["asked"] = asdict(self.asked)
        if self.not_annotated is not None:
            content["not_annotated"] = self.not_annotated
        if self.provenance is not None:
            content["provenance"] = _provenance_json(self.provenance)
        return content


def write(scores: Scores, path: str | Path) -> None:
    """Write scores as JSON, whole or not at all. Raises FileError."""
    content = scores.as_json()
    write_json(path, content | {CHECKSUM: key_of(content)})


def read(path: str | Path) -> Scores:
    """Read a file of `evaluate`; what an earlier version did not write is None.

    Notes one whose content is no longer as it was written. Raises UserError for any other file.
    """
    try:
        content = json.loads(Path(path).read_text(), parse_constant=typed.no_constant)
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}")
        checksum = content.pop(CHECKSUM, None)
        if checksum is not None and checksum != key_of(content):
            note_once(f"{path}: no longer as evaluate wrote it, edited or damaged on the disk")
        scores = from_json(content)
        typed.check(scores)
        return scores
    except (OSError, RecursionError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: no scores of evaluate ({error}); evaluate again, or remove it"
        ) from error


def from_json(content: Mapping[str, Any]) -> Scores:
    """Make scores of the content of a file. Raises TypeError, KeyError ... for other content."""
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
    """Return an entry with its figures nested, which stand beside the others in the file."""
    return {**entry, "figures": entry}


def _of_crop(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a `CropScore` from an entry of the file."""
    for name in ("voxel_size", "shape"):
        if len(entry.get(name, ())) not in (0, 3):
            raise ValueError(f"{name} {entry[name]} along three axes")
    counts = entry.get("counts")
    if counts:
        kind = InstanceCounts if "n_hausdorff" in counts else Counts
        counts = kind(**counts, status=entry.get("status", ""))
    return {**_with_figures(entry), "counts": counts}


def _with_versions(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a provenance with all entries that are no field of it gathered as `versions`."""
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
        "interval_95": score.interval_95,
    }


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
        "voxel_size": score.voxel_size,
        "shape": score.shape,
        "resampled": score.resampled,
        "offset": score.offset,
        "covered": score.covered,
    }


def _provenance_json(provenance: Provenance) -> dict[str, Any]:
    entry = asdict(provenance)
    for checkpoint in entry["checkpoints"] or ():
        for name in ("networks", "planes"):  # files of before have none, either
            if checkpoint[name] is None:
                del checkpoint[name]
    versions = entry.pop("versions")
    entry |= versions | {"date": entry.pop("date"), "tuned_on": entry["tuned_on"] or None}
    # an experiment has no submission, and a submission no experiment
    return {key: value for key, value in entry.items() if value is not None}

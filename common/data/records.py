"""What stored volumes say of how they were made: the schema of two attributes of their zarr groups.

A predicted class carries the attribute "prediction", a processed class the attribute "processed".
Both hold a key, made of all that determines the voxels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from common.files import key_of

PREDICTION = "prediction"
PROCESSED = "processed"
"""Attributes of the zarr group that the records stand under."""

DETERMINING = (
    "sha256",
    "precision",
    "content",
    "dtype",
    "orientations",
    "raw",
    "raw_range",
    "voxel_size",
    "translation",
    "shape",
)
"""Fields of a prediction that determine its voxels, in the order in which they go into the key.

Neither names nor order may change: predictions that are finished would be made again.
"""


@dataclass(frozen=True, kw_only=True)
class PredictionRecord:
    """How a class was predicted: the attribute "prediction". None where the volume does not say."""

    experiment: str | None = None
    model_name: str | None = None
    run_name: str | None = None
    checkpoint: str | None = None
    """Path of the file at the time."""
    sha256: str | None = None
    """Of the checkpoint."""
    epoch: int | None = None
    metric: str | None = None
    """Of the checkpoint on the validation crops, in words."""
    precision: str | None = None
    content: str = "probability"
    """"probability" or "logits"."""
    dtype: str | None = None
    orientations: int | None = None
    raw: str | None = None
    """Array that was read."""
    raw_range: list[float] | None = None
    voxel_size: list[float] | None = None
    """nm, z, y, x, as `translation` (of the first voxel's centre); shape in voxels."""
    translation: list[float] | None = None
    shape: list[int] | None = None
    key: str = ""
    """Made of the fields in DETERMINING."""
    largest_block: int | None = None
    """Edge of blocks that it was begun with. Not in the key: it changes chunks and no voxel."""
    made: str | None = None
    """ISO 8601, UTC."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Versions, machine and commit, and what else may stand beside these on disk."""

    def with_key(self) -> PredictionRecord:
        """The same with the key of its fields."""
        return replace(self, key=key_of([getattr(self, name) for name in DETERMINING]))

    def attributes(self) -> dict[str, Any]:
        """As it is stored: what is None is left out."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "environment"}
        # so that a copy of an older record is what that was
        stored = {name: value for name, value in known.items() if value is not None}
        return stored | self.environment

    @classmethod
    def of(cls, stored: dict[str, Any]) -> PredictionRecord:
        """The record that `attributes` made."""
        names = {f.name for f in fields(cls)} - {"environment"}
        known = {name: value for name, value in stored.items() if name in names}
        other = {name: value for name, value in stored.items() if name not in names}
        return cls(**known, environment=other)


@dataclass(frozen=True, kw_only=True)
class ProcessedRecord:
    """How a predicted class became a mask or objects: the attribute "processed"."""

    threshold: float
    """Probability above which a voxel is of the class."""
    process_config: str
    """Hash of process_config.py and of what it imports."""
    instances: bool
    """Whether objects are told apart."""
    prediction: PredictionRecord
    """What it was made of."""
    key: str = ""
    made: str | None = None
    """ISO 8601, UTC."""

    def with_key(self, name: str) -> ProcessedRecord:
        """The same with the key of its fields, of the prediction's key and of the class `name`.

        What goes in, and in which order, may not change: volumes that are finished would be made
        again.
        """
        own = {
            "threshold": self.threshold,
            "process_config": self.process_config,
            "instances": self.instances,
        }
        return replace(self, key=key_of([own, self.prediction.key, name]))

    def attributes(self) -> dict[str, Any]:
        """As it is stored."""
        stored = {f.name: getattr(self, f.name) for f in fields(self)}
        return stored | {"prediction": self.prediction.attributes()}

    @classmethod
    def of(cls, stored: dict[str, Any]) -> ProcessedRecord:
        """The record that `attributes` made."""
        names = {f.name for f in fields(cls)}
        known = {name: value for name, value in stored.items() if name in names}
        known["prediction"] = PredictionRecord.of(stored["prediction"])
        return cls(**known)


def group_attributes(name: str, record: PredictionRecord | ProcessedRecord) -> dict[str, Any]:
    """Attributes of the zarr group of a class that is made as the record says."""
    kind = PREDICTION if isinstance(record, PredictionRecord) else PROCESSED
    attributes = {"class": name, kind: record.attributes()}
    if isinstance(record, ProcessedRecord) and record.instances:
        # by which viewers take voxels for ids: https://ngff.openmicroscopy.org/0.4, "image-label"
        attributes["image-label"] = {"version": "0.4"}
    return attributes


def read_attributes(group: Path) -> dict[str, Any]:
    """Attributes of a zarr group; none where there is no group."""
    path = group / ".zattrs"
    return json.loads(path.read_text()) if path.is_file() else {}


def read_prediction(group: Path) -> PredictionRecord | None:
    """How a class was predicted; None where there is none, or one of another program."""
    stored = read_attributes(group).get(PREDICTION)
    return PredictionRecord.of(stored) if isinstance(stored, dict) and stored else None


def read_processed(group: Path) -> ProcessedRecord | None:
    """How a class was processed; None where there is none, or one of another program."""
    stored = read_attributes(group).get(PROCESSED)
    return ProcessedRecord.of(stored) if stored else None


def is_finished(group: Path) -> bool:
    """Whether all voxels of a class are written: only then is its group an image."""
    return "multiscales" in read_attributes(group)

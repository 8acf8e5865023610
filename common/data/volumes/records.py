"""Records of how stored volumes were made, kept in attributes of their zarr groups.

The group of a predicted class has the attribute "prediction", that of a processed class the
attribute "processed". Both have a key, a hash of everything that determines the voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from common import typed
from common.data.volumes.metadata import STORED_CHUNKS, read_attributes
from common.data.volumes.ngff import count_chunks
from common.errors import UserError
from common.files import key_of

Record = TypeVar("Record")

PREDICTION = "prediction"
PROCESSED = "processed"
"""Names of the attributes of the zarr group that hold the records."""

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


DETERMINING_IF_KNOWN = ("raw_scaling", "planes", "raw_sections", "input_channels", "assumed")
"""Fields that determine voxels and that came later: they go into the key unless they are None."""


@dataclass(frozen=True, kw_only=True)
class PredictionRecord:
    """The attribute "prediction": how a class was predicted. Fields that are unknown are None."""

    experiment: str | None = None
    model_name: str | None = None
    run_name: str | None = None
    checkpoint: str | None = None
    """Path of the checkpoint when it was used; of an ensemble all, with " + " between them."""
    sha256: str | None = None
    """SHA-256 of the checkpoint; of an ensemble of those of all, in whatever order."""
    epoch: int | None = None
    metric: str | None = None
    """Value of best_metric of the checkpoint, as text."""
    precision: str | None = None
    content: str = "probability"
    """"probability" or "logits"."""
    dtype: str | None = None
    orientations: int | None = None
    planes: int | None = None
    """Axes across which a 2-D network predicted, whose logits were averaged; None for its own."""
    raw: str | None = None
    """Path of the array of raw that was read."""
    raw_range: list[float] | None = None
    raw_scaling: dict[str, Any] | None = None
    """How raw was normalised, see `common.data.crops.normalize.Scaling`; None if it was not."""
    raw_sections: int | None = None
    """Sections on each side with which those of raw were averaged; None if they were not."""
    input_channels: dict[str, Any] | None = None
    """What the network got beside raw, by the name of the channel; None if it got raw alone."""
    assumed: dict[str, str] | None = None
    """Of weights without settings, what was taken from the experiment: the order of the classes and
    the like. None where the checkpoint has it on record."""
    voxel_size: list[float] | None = None
    """nm, z, y, x."""
    translation: list[float] | None = None
    """Position of the centre of the first voxel in nm, z, y, x."""
    shape: list[int] | None = None
    """Voxels, z, y, x."""
    key: str = ""
    """Hash of the fields in DETERMINING and DETERMINING_IF_KNOWN."""
    range_nm: list[float] | None = None
    """nm that probability 0 and 1 stand for, of a distance; None of a probability. Not in the key,
    which all channels of a network share."""
    offset_nm: list[float] | None = None
    """nm, z, y, x, from a voxel to the one that an affinity is about. Not in the key, either."""
    raw_sample: str | None = None
    """Hash of a few voxels of the raw of the box, and of the channels beside it: what was replaced
    has others. Not in the key."""
    trained_on: bool | None = None
    """Whether a network was trained on this box; None where nothing tells. Not in the key."""
    largest_block: int | None = None
    """Largest edge of a block in voxels. Not in the key: it changes chunks but no voxel."""
    members: list[dict[str, Any]] | None = None
    """Of an ensemble: experiment, run, checkpoint, sha256, epoch and metric of each network."""
    made: str | None = None
    """Time in UTC, ISO 8601."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Versions, machine and commit, and any other entries found on disk."""

    def with_key(self) -> PredictionRecord:
        """Return a copy with the key of its fields."""
        content = [getattr(self, name) for name in DETERMINING]
        for name in DETERMINING_IF_KNOWN:
            value = getattr(self, name)
            if value is not None:
                content.append({name: value})
        return replace(self, key=key_of(content))

    def attributes(self) -> dict[str, Any]:
        """Return the record as it is stored; fields that are None are left out."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "environment"}
        # so that a copy of an older record is what that was
        stored = {name: value for name, value in known.items() if value is not None}
        return stored | self.environment

    def is_like(self, other: PredictionRecord) -> bool:
        """Return whether `other` would have the same voxels.

        Of a record from before there was `assumed` nothing tells what that was: it stays in force.
        So it is with `raw_sample`.
        """
        if self.has_other_raw(other):
            return False
        if self.assumed is None and other.assumed is not None:
            other = replace(other, assumed=None).with_key()
        return self.key == other.key

    def has_other_raw(self, other: PredictionRecord) -> bool:
        """Return whether the raw of the box had other voxels for `other`, as far as both know."""
        known = self.raw_sample is not None and other.raw_sample is not None
        return known and self.raw_sample != other.raw_sample

    def is_same(self, other: PredictionRecord) -> bool:
        """Return whether `other` is of this very prediction, and of no later one by `--overwrite`.

        That has the same key, and may be of raw of which chunks were missing before. Without a time
        on record the key alone tells.
        """
        known = self.made is not None and other.made is not None
        return self.key == other.key and not (known and self.made != other.made)

    @property
    def networks(self) -> int | None:
        """How many networks an ensemble is of; None of a single one."""
        return len(self.members) if self.members else None

    @property
    def at(self) -> str:
        """Epoch and metric of the checkpoint, or what an ensemble is made of, as text."""
        return at_epoch(self.epoch, self.metric)

    @classmethod
    def of(cls, stored: dict[str, Any]) -> PredictionRecord:
        """Return the record that `attributes` made."""
        names = {f.name for f in fields(cls)} - {"environment"}
        known = {name: value for name, value in stored.items() if name in names}
        other = {name: value for name, value in stored.items() if name not in names}
        return cls(**known, environment=other)


def at_epoch(epoch: int | None, metric: str | None) -> str:
    """Return where in its run a checkpoint stands, as text. An ensemble has no epoch."""
    if epoch is None and metric:
        return metric
    return f"epoch {epoch} ({metric})"


@dataclass(frozen=True, kw_only=True)
class ProcessedRecord:
    """The attribute "processed": how a predicted class became a mask or objects."""

    threshold: float
    """Probability above which a voxel belongs to the class."""
    process_config: str
    """Hash of process_config.py and of what it imports."""
    instances: bool
    """Whether objects are told apart."""
    prediction: PredictionRecord
    """The record of the prediction that it was made from."""
    options: dict[str, Any] | None = None
    """Arguments of instance_func that were tuned; None where it has its own defaults."""
    channels: dict[str, dict[str, Any]] | None = None
    """Key and time of the other predictions that instance_func read, by name; None without any. Not
    in the key: what it reads is known when it has run."""
    engine: str | None = None
    """By which code and libraries it was made, see `common.infer.made_by`; None where nothing
    tells. Not in the key, as the commit: each commit would make finished volumes again."""
    commit: str | None = None
    key: str = ""
    made: str | None = None
    """ISO 8601, UTC."""

    def with_key(self, name: str) -> ProcessedRecord:
        """Return a copy with the key of its fields, the prediction's key and the class `name`.

        What goes in, and in which order, may not change: finished volumes would be made again.
        """
        own: dict[str, Any] = {
            "threshold": self.threshold,
            "process_config": self.process_config,
            "instances": self.instances,
        }
        if self.options:
            own["options"] = self.options
        return replace(self, key=key_of([own, self.prediction.key, name]))

    def attributes(self) -> dict[str, Any]:
        """As it is stored."""
        stored = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("options", "channels", "engine", "commit"):
            if stored[name] is None:
                # as it was stored before there were any
                del stored[name]
        return stored | {"prediction": self.prediction.attributes()}

    @classmethod
    def of(cls, stored: dict[str, Any]) -> ProcessedRecord:
        """Return the record that `attributes` made."""
        names = {f.name for f in fields(cls)}
        known = {name: value for name, value in stored.items() if name in names}
        known["prediction"] = PredictionRecord.of(stored["prediction"])
        return cls(**known)


def group_attributes(name: str, record: PredictionRecord | ProcessedRecord) -> dict[str, Any]:
    """Return the attributes of the zarr group of class `name` with this record."""
    kind = PREDICTION if isinstance(record, PredictionRecord) else PROCESSED
    attributes = {"class": name, kind: record.attributes()}
    if isinstance(record, ProcessedRecord) and record.instances:
        # by which viewers take voxels for ids: https://ngff.openmicroscopy.org/0.4, "image-label"
        attributes["image-label"] = {"version": "0.4"}
    return attributes


def read_prediction(group: Path) -> PredictionRecord | None:
    """Return the record of a predicted class; None if the group does not have one."""
    return _read(group, PREDICTION, PredictionRecord.of)


def read_processed(group: Path) -> ProcessedRecord | None:
    """Return the record of a processed class; None if the group does not have one."""
    return _read(group, PROCESSED, ProcessedRecord.of)


def _read(group: Path, name: str, make: Callable[[Any], Record]) -> Record | None:
    """Return a record as it is stored; None without. Raises UserError if it is damaged."""
    stored = read_attributes(group).get(name)
    if not stored:
        return None
    try:
        record = make(stored)
        typed.check(record)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{group}: '{name}' in .zattrs cannot be read ({error}); make this volume again"
        ) from error
    return record


def refuse_predicted(group: Path) -> None:
    """Raises UserError for what predict wrote where a mask or ids are wanted.

    Of probabilities in 255ths every voxel above 0 would count.
    """
    if read_processed(group) is None and read_prediction(group) is not None:
        raise UserError(
            f"{group}: written by predict, and no mask or ids yet; run process, and give the "
            "folder that it writes"
        )


def is_damaged(group: Path) -> bool:
    """Return whether the .zattrs of a group, or a record in it, cannot be read."""
    try:
        read_prediction(group)
        read_processed(group)
    except UserError:
        return True
    return False


def refuse_unreadable(group: Path, command: str) -> None:
    """Raises UserError where .zattrs is damaged, with the command that makes the class again."""
    try:
        read_attributes(group)
    except UserError as error:
        raise UserError(f"{error}, or run {command} again") from error


def is_finished(group: Path) -> bool:
    """Return whether all voxels of a class are written; only then its group is an image."""
    return "multiscales" in read_attributes(group)


def lost_chunks(group: Path) -> int:
    """Return how many chunks of a finished class are gone since it was written; 0 if unknown."""
    stored = read_attributes(group).get(STORED_CHUNKS)
    if not isinstance(stored, int):
        return 0
    return max(0, stored - count_chunks(group))


def refuse_lost_chunks(group: Path, command: str) -> None:
    """Raises UserError where chunks are gone, with the command that makes the class again."""
    lost = lost_chunks(group)
    if lost:
        raise UserError(
            f"{group}: {lost} of its stored chunks are gone, and would read as 0; copy it again, "
            f"or run {command} again. If it was edited, remove {STORED_CHUNKS!r} from its .zattrs"
        )

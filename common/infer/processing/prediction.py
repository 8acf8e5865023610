"""Predicted classes as they are read: logits, probabilities, and channels by their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.data.volumes import ngff, records
from common.data.volumes.level import Grid, Level
from common.data.volumes.placement import are_same_voxels
from common.data.volumes.records import PredictionRecord
from common.errors import UserError
from common.files import sha256_of_file
from common.infer.objects.volume import Volume
from common.infer.predicting import encode
from common.talk import note_once, some


@dataclass(frozen=True)
class Prediction:
    """One class of one box, as predict wrote it."""

    level: Level
    """The finest."""
    record: PredictionRecord

    @property
    def grid(self) -> Grid:
        """Where the voxels are."""
        return self.level.grid

    @property
    def box_folder(self) -> Path:
        """The folder of the box, in which the other classes lie."""
        return self.level.group.parent

    @property
    def chunks(self) -> tuple[int, ...]:
        """The shape of the chunks in voxels."""
        return self.level.array.chunks

    def logits(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """Return float32 logits (z, y, x) of voxels start..stop-1."""
        return encode.decode(self.level.read(start, stop), self.record.content)

    def logit(self, threshold: float) -> np.float32:
        """Return the logit of a threshold; what is stored equal to the threshold is not above."""
        content = self.record.content
        value: Any = np.float32(np.log(threshold / (1 - threshold)))
        if content == "logits":
            return value
        dtype = self.level.array.dtype
        if dtype.kind == "f":
            # by the way of stored values, so that their rounding is the threshold's too
            value = encode.decode(np.array(threshold, dtype), content)
        # stored 0 and 1 have finite logits; 1 is above any threshold and 0 above none
        stored_as_1 = 255 if dtype == np.uint8 else 1
        lowest, highest = encode.decode(np.array([0, stored_as_1], dtype), content)
        return np.clip(value, lowest, np.nextafter(highest, lowest))


def open_prediction(path: Path) -> Prediction:
    """Open a finished prediction.

    Raise FileNotFoundError, or UserError for one that is half-written, not of `predict`, or whose
    chunks are gone.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no prediction; run predict first")
    records.refuse_unreadable(path, "predict")
    level = ngff.open_levels(path)[0]
    record = records.read_prediction(path)
    if record is None or not record.key:
        raise UserError(
            f"{path}: not written by predict (no 'prediction' in its .zattrs); run predict into "
            "another folder"
        )
    records.refuse_lost_chunks(path, "predict")
    return Prediction(level, record)


class Probability:
    """A prediction as an array of probabilities, or of nm, decoded where it is read."""

    def __init__(self, prediction: Prediction):
        self.prediction = prediction
        self.shape = prediction.grid.shape
        self.dtype = np.dtype(np.float32)

    @property
    def offset_nm(self) -> list[float] | None:
        """nm, z, y, x, that an affinity was learnt over; None for others, and if unknown."""
        return self.prediction.record.offset_nm

    def __getitem__(self, where: Any) -> np.ndarray:
        """Return float32 (z, y, x).

        where: slices along z, y, x, or `...`; axes that are left out are whole.
        """
        if where is ...:
            where = ()
        elif not isinstance(where, tuple):
            where = (where,)
        start = [0, 0, 0]
        stop = list(self.shape)
        for axis, part in enumerate(where):
            start[axis], stop[axis], _ = part.indices(self.shape[axis])
        # of logits below -88 the exponential is infinite, and the probability 0
        with np.errstate(over="ignore"):
            probability = 1 / (1 + np.exp(-self.prediction.logits(start, stop)))
        if self.prediction.record.range_nm is None:
            return probability
        low, high = self.prediction.record.range_nm
        return low + (high - low) * probability


class Channels(Mapping[str, Volume]):
    """The predicted channels of a box by name, opened when they are asked for.

    They are classes and derived channels of the network that predicted this class.
    """

    def __init__(
        self,
        prediction: Prediction,
        like: Volume,
        read: dict[str, PredictionRecord] | None = None,
    ):
        """Find the channels beside a class.

        Args:
            prediction: of the class.
            like: has the voxel size, blocks and scratch folder of the volumes that are given.
            read: takes the records of the channels that are asked for.
        """
        self.prediction = prediction
        self.like = like
        self.read = {} if read is None else read
        self.folder = prediction.box_folder

    def __getitem__(self, name: str) -> Volume:
        """Return a channel. Raise UserError for one that is missing, or of another network."""
        path = self.folder / name
        if not path.is_dir():
            raise UserError(
                f"no channel '{name}' in {self.folder}, which has {some(list(self), 20)}; declare "
                "it in data.py, train and predict"
            )
        channel = open_prediction(path)
        if _network_of(channel.record) != _network_of(self.prediction.record):
            raise UserError(f"{path}: predicted by another checkpoint; run predict --overwrite")
        if not are_same_voxels(channel.grid, self.prediction.grid):
            raise UserError(f"{path}: of other voxels than the class; run predict --overwrite")
        self.read[name] = channel.record
        return replace(self.like, array=Probability(channel))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.parent.name for path in self.folder.glob("*/.zattrs")))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def note_older_weights(records_of: Iterable[PredictionRecord]) -> None:
    """Note predictions by a checkpoint that is another file by now, as when training went on."""
    made_by: set[tuple[str, str]] = set()
    for record in records_of:
        own = {"checkpoint": record.checkpoint, "sha256": record.sha256}
        for network in record.members or [own]:
            path = network.get("checkpoint")
            digest = network.get("sha256")
            if path and digest and Path(path).is_file():
                made_by.add((path, digest))
    now = {path: sha256_of_file(path) for path, _ in made_by}
    replaced = sorted({path for path, digest in made_by if now[path] != digest})
    if replaced:
        note_once(
            f"{some(replaced)}: written anew since it predicted these; predict with --overwrite to "
            "have the weights of now"
        )


def _network_of(record: PredictionRecord) -> tuple:
    """Return what tells networks apart, such as what weights without settings are taken for."""
    return record.sha256, record.assumed, record.raw_range

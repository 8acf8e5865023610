"""Score one class in one crop: bring a volume onto the annotation's voxels, and count.

Voxels are those of the annotation's finest level. One class in one crop takes about 25 bytes for
each of them in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import fastremap
import numpy as np

from common.data.crops import pseudo
from common.data.own.standing import is_imported
from common.data.volumes import regrid
from common.data.volumes.label_reader import LabelReader
from common.data.volumes.level import Grid, Level
from common.data.volumes.placement import is_same_size
from common.data.volumes.records import PredictionRecord
from common.errors import UserError
from common.infer.objects.volume import EVERYWHERE
from common.score import arrays, challenge, quality
from common.score.quality import ObjectCounts, VoxelCounts
from common.score.versions import CSC, Version
from common.talk import count, some

# half a voxel beside the annotation costs a perfect mask 0.1 of its score; from a twentieth on a
# mask is what it was: its voxels are the nearest ones up to a fifth
SAME_PLACE = 0.05
"""Fraction of a voxel below which a volume counts as being on the annotation's voxels."""

FULL = 0.9
"""Fraction of a crop above which a class may be found everywhere without a note."""


@dataclass(frozen=True)
class Evaluation:
    """The score of one class in one crop."""

    crop: str
    name: str
    """The class."""
    counts: challenge.Counts
    """What the challenge's score counts; InstanceCounts for an instance class."""
    voxels: VoxelCounts
    objects: ObjectCounts | None = None
    """Objects matched at IoU > 0.5; None for a semantic class, as are the next two."""
    voi: tuple[float, float] | None = None
    """Variation of information by splits and by merges, bits."""
    rand_error: float | None = None
    voxel_size: tuple[float, ...] = ()
    """Of the annotation, nm."""
    shape: tuple[int, ...] = ()
    """Of the annotation, voxels."""
    resampled: bool = False
    """Whether the prediction had voxels of another size, or between those of the annotation."""
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)
    """How far (nm) a prediction of the same voxel size lay beside the annotation's voxels."""
    covered: bool = True
    """Whether the prediction covers the annotation; what it does not cover counts as background."""
    is_known: bool = True
    """Whether the annotation is known in any voxel; else the score is 1 and says nothing."""
    is_soft: bool = False
    """Whether what is scored as a mask has values as probabilities have."""
    remarks: tuple[str, ...] = ()
    """Sentences about unusual values of the annotation, and what they were taken for."""
    refused: str = ""
    """Why a submitted array cannot be scored and counts as missing; "" if it can."""

    @property
    def is_instance(self) -> bool:
        """Whether objects are counted."""
        return isinstance(self.counts, challenge.InstanceCounts)


@dataclass(frozen=True)
class Truth:
    """The annotation of one class in one crop."""

    crop: str
    name: str
    level: Level
    is_instance: bool
    """Whether the class is scored by its objects."""
    mask: np.ndarray | None = None
    """(z, y, x) on the annotation's voxels, 0 where nothing counts; None if all voxels count."""
    version: Version = CSC
    """Version of the challenge's score."""


def judge(truth: Truth, predicted: Level) -> Evaluation:
    """Score a predicted volume on the voxels of the truth; unknown voxels are left out.

    Raises UserError for wrong ids.
    """
    grid = truth.level.grid
    labels, known, remarks = annotated(truth.level, truth.name, truth.is_instance)
    if known is not None:
        truth = replace(truth, mask=known if truth.mask is None else known & (truth.mask > 0))
    # ids by the nearest voxel, a mean of two objects is none; masks by their share of a voxel
    volume = regrid.ids(predicted, grid) if truth.is_instance else regrid.mask(predicted, grid)
    evaluation = compare(truth, labels, volume)
    covered = regrid.covers(predicted, grid)
    evaluation = replace(
        evaluation,
        covered=covered,
        is_known=truth.mask is None or bool(truth.mask.any()),
        is_soft=not truth.is_instance and arrays.is_soft(arrays.samples_of(predicted)),
        remarks=remarks,
    )
    if not is_same_size(predicted.scale, grid.scale):
        return replace(evaluation, resampled=True)
    offset = beside(predicted, grid)
    return replace(evaluation, resampled=any(offset), offset=offset)


def annotated(
    level: Level, name: str, is_instance: bool
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Return the annotation of a class as it is scored.

    is_instance: whether the class is scored by its objects.

    Returns:
        (z, y, x) ids; a bool mask of the known voxels, None if all are known; and remarks, a
        sentence each.

    Raises UserError for labels that networks completed.
    """
    if pseudo.of_networks(level) is not None:
        raise UserError(
            f"{level.group}: labels that networks completed (joint init), and a network is judged "
            "by what people annotated; write --crops validate, or crops of the annotation's "
            "datasplit"
        )
    reader = LabelReader(level, name)
    labels, known = reader.ids()
    remarks = reader.remarks()
    if is_instance and _is_own_mask(reader):
        labels, pieces = challenge.components(labels)
        remarks.append(f"a mask, whose {count(pieces, 'piece')} were taken for objects")
    elif is_instance and not reader.encoding.is_said_to_be_ids:
        remarks += _of_one_id(labels)
    return labels, known, tuple(remarks)


def _of_one_id(labels: np.ndarray) -> list[str]:
    """Return a sentence about labels that are one object in several pieces; [] for others."""
    highest = labels.max(initial=0)
    if not highest or np.any((labels != 0) & (labels != highest)):
        return []
    _, pieces = challenge.components(labels)
    if pieces < 2:
        return []
    return [
        f"{highest} is the only id, so that its {pieces} pieces were taken for one object; where "
        "it is a mask, give each object an id of its own, or bring it in by import-data, which "
        "takes the pieces of a mask for objects"
    ]


def _is_own_mask(reader: LabelReader) -> bool:
    """Whether labels were imported as a mask, though their class is scored by objects.

    The challenge's labels are taken as they are, also where one object is all of them.
    """
    return not reader.encoding.is_instance and is_imported(reader.level.group)


def beside(level: Level, grid: Grid) -> tuple[float, ...]:
    """Return how far (nm, z, y, x) a volume lies beside the voxels of a grid.

    It is 0 if the volume lies on them, and if its voxels have another size.
    """
    offset = regrid.offset(level, grid)
    is_on_voxels = (np.abs(offset) < SAME_PLACE * grid.scale).all()
    if is_on_voxels or not is_same_size(level.scale, grid.scale):
        return (0.0, 0.0, 0.0)
    return tuple(offset.tolist())


def beside_text(offsets: Mapping[str, Sequence[float]], total: int, reference: str) -> str:
    """Return a sentence about volumes that lie beside the voxels of a reference; "" if none does.

    Args:
        offsets: what `beside` returned for each volume, by the name of the volume.
        total: number of all volumes.
        reference: what they are compared with, in words.
    """
    shifted = {name: offset for name, offset in offsets.items() if any(offset)}
    if not shifted:
        return ""
    farthest = max(shifted, key=lambda name: max(map(abs, shifted[name])))
    # -0.0 is 0
    lengths = ", ".join(f"{length + 0.0:.4g}" for length in shifted[farthest])
    return (
        f"{len(shifted)} of {total} lie beside the voxels of {reference} and were resampled, "
        f"{farthest} by {lengths} nm (z, y, x): scores are lower for it, so check the translation "
        f"of {reference} and of the raw that was predicted"
    )


def networks_text(predictions: Iterable[tuple[str, PredictionRecord]]) -> str:
    """Return a sentence about classes that several networks predicted; "" if there is none.

    predictions: (class, record of the prediction).
    """
    networks: dict[str, set[str]] = {}
    for name, record in predictions:
        if record.sha256:
            networks.setdefault(name, set()).add(record.sha256)
    several = [name for name, of_class in networks.items() if len(of_class) > 1]
    if not several:
        return ""
    return (
        f"{some(several)}: not all crops were predicted by the same checkpoint; if that is not "
        "meant, predict and process them with --overwrite"
    )


def is_everywhere(voxels: VoxelCounts, shape: Sequence[int]) -> bool:
    """Whether a class is predicted nearly everywhere in a crop that it does not fill."""
    size = math.prod(shape)
    is_full = voxels.tp + voxels.fp >= EVERYWHERE * size
    return is_full and voxels.tp + voxels.fn < FULL * size


def compare(truth: Truth, labels: np.ndarray, predicted: np.ndarray) -> Evaluation:
    """Count what two volumes on the voxels of the truth have in common.

    labels: as of `annotated`. predicted: likewise; both hold ids for an instance class.
    """
    # voxels are counted for instance classes too: Dice and IoU say how much of the tissue is found
    voxels = challenge.semantic(labels, predicted, truth.mask)
    evaluation = Evaluation(
        crop=truth.crop,
        name=truth.name,
        counts=voxels,
        voxels=VoxelCounts(voxels.tp, voxels.fp, voxels.fn),
        voxel_size=tuple(float(size) for size in truth.level.scale),
        shape=tuple(int(length) for length in labels.shape),
    )
    if not truth.is_instance:
        return evaluation
    labels = _narrow(labels)
    predicted = _narrow(predicted)
    pairs = challenge.contingency(labels, predicted, truth.mask)
    return replace(
        evaluation,
        counts=challenge.instance(
            labels, predicted, truth.level.scale, truth.mask, version=truth.version
        ),
        objects=quality.count_objects(pairs),
        voi=quality.variation_of_information(pairs),
        rand_error=quality.rand_error(pairs),
    )


def _narrow(ids: np.ndarray) -> np.ndarray:
    """Return ids in the smallest unsigned dtype: uint64 takes twice the time."""
    if ids.dtype.kind != "u":
        return ids
    return fastremap.refit(ids.astype(ids.dtype.newbyteorder("="), copy=False))

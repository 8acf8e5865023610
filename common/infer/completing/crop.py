"""The labels of one crop, completed by networks where they are sure, block by block."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import zarr
from numcodecs import blosc

from common.classes import atoms_of
from common.data.crops import pseudo
from common.data.crops.decode import BlockLabels, encode_known
from common.data.crops.palette import CODE_OF_UNKNOWN, UNKNOWN, Rules, in_uint8
from common.data.splits.split import Row
from common.data.volumes import ngff, regrid
from common.data.volumes.annotation import encoding_of
from common.data.volumes.box import Box, boxes
from common.data.volumes.label_reader import LabelReader
from common.data.volumes.level import Grid, Level
from common.data.volumes.placement import are_same_voxels
from common.data.volumes.sources.excerpt import annotation
from common.errors import UserError
from common.talk import progress

CHUNK = 64
"""Edge of the blocks that are completed at once, and of the chunks that are stored."""

SOURCE = "source"
CONFIDENCE = "confidence"
"""Volumes beside the classes of a crop: whose network was the surest, and how sure."""


@dataclass(frozen=True)
class CropToComplete:
    """A crop, and what completes its labels."""

    row: Row
    classes: Sequence[str]
    """Whose labels are completed."""
    predicted: Sequence[Level]
    """Probability of each class, in 255ths."""
    threshold: float
    """Probability above which a network decides."""
    rules: Rules
    """What labels imply for others."""


@dataclass(frozen=True)
class Completed:
    """What came of a crop: numbers of (voxel, class) pairs."""

    pairs: int = 0
    before: int = 0
    """Pairs that are known by annotation, or follow from it."""
    after: int = 0
    """Pairs that are known with what networks add."""
    positive: int = 0
    """Pairs that are positive, of those of `after`."""
    classes: tuple[str, ...] = ()
    """Classes of which any voxel is known."""

    def __add__(self, other: Completed) -> Completed:
        classes = tuple(dict.fromkeys([*self.classes, *other.classes]))
        return Completed(
            pairs=self.pairs + other.pairs,
            before=self.before + other.before,
            after=self.after + other.after,
            positive=self.positive + other.positive,
            classes=classes,
        )

    def __str__(self) -> str:
        before = self.before / self.pairs
        return f"{before:.1%} of the labels were known, {self.after / self.pairs:.1%} are now"


@contextlib.contextmanager
def _same_bytes() -> Iterator[None]:
    """Have chunks compressed to the same bytes each time.

    Threads of Blosc put the parts of a chunk in the order in which they end.
    """
    before = blosc.use_threads
    blosc.use_threads = False
    try:
        yield
    finally:
        blosc.use_threads = before


@_same_bytes()
def write(crop: CropToComplete, folder: Path) -> Completed:
    """Write the volumes of a crop into a folder; return what came of it.

    Raise UserError where its annotation cannot be completed, or cannot be read.
    """
    readers = _readers(crop.row)
    grid = readers[0].level.grid
    arrays = _Arrays.begin(folder, grid, crop.classes, with_ids=with_ids(crop.row))
    completed = Completed()
    blocks = list(boxes(grid.shape, (CHUNK,) * 3))
    with progress(len(blocks), f"completing {crop.row.name}", unit="block") as bar:
        for start, stop in blocks:
            annotated = []
            for reader in readers:
                ids, positive, unknown = reader.read_ids(start, stop)
                annotated.append(_Annotated(reader.name, ids, BlockLabels(positive, unknown)))
            labels = _known_labels(annotated, crop)
            place = grid.part(Box(start, stop))
            probabilities = np.stack([regrid.ids(level, place) for level in crop.predicted])
            filled = pseudo.fill(
                labels, probabilities, crop.classes, threshold=crop.threshold, rules=crop.rules
            )
            arrays.write(start, stop, filled, {known.name: known.ids for known in annotated})
            completed += _counted(crop, labels, filled)
            bar.update()
    for reader in readers:
        reader.check_whole()
    arrays.finish(grid)
    # in their order, whichever block knew them first
    classes = tuple(name for name in crop.classes if name in completed.classes)
    return replace(completed, classes=classes)


def with_ids(row: Row) -> list[str]:
    """Return the annotated classes of a crop whose objects the annotation tells apart."""
    names = []
    for name in row.annotated:
        encoding = encoding_of(ngff.open_levels(row.class_volume(name))[0], name)
        # the values of an own class are ids unless it is said that they are not
        is_own = not atoms_of(name)
        if encoding.is_instance or (is_own and not encoding.is_said_to_be_mask):
            names.append(name)
    return names


def _readers(row: Row) -> list[LabelReader]:
    """Return the annotated volumes of a crop. Raise UserError unless they share one grid."""
    readers = []
    for name in row.annotated:
        level = ngff.open_levels(row.class_volume(name))[0]
        if pseudo.of_networks(level) is not None:
            raise UserError(
                f"{level.group}: has labels of networks already; write the crops of the "
                "annotation into the datasplit that joint init reads"
            )
        readers.append(LabelReader(level, name))
    first = readers[0].level.grid
    for reader in readers:
        if not are_same_voxels(reader.level.grid, first):
            raise UserError(
                f"{reader.level.group}: not on the grid of '{row.annotated[0]}'; the classes "
                "of a crop share one grid"
            )
    return readers


@dataclass(frozen=True)
class _Annotated:
    """What is annotated of a class in a block."""

    name: str
    ids: np.ndarray
    """(z, y, x) int64, 0 where the class is not."""
    labels: BlockLabels


def _known_labels(annotated: Sequence[_Annotated], crop: CropToComplete) -> np.ndarray:
    """Return (classes, z, y, x) int8: what is annotated in a block, and what follows from it."""
    own = [known.name for known in annotated]
    names = [*own, *(name for name in crop.classes if name not in own)]
    index, combinations = encode_known([known.labels for known in annotated])
    palette = np.full((len(combinations), len(names)), UNKNOWN, np.int8)
    palette[:, : len(own)] = combinations
    palette = crop.rules.complete(palette, names)
    palette = palette[:, [names.index(name) for name in crop.classes]]
    return np.moveaxis(palette[index], -1, 0)


def _counted(crop: CropToComplete, labels: np.ndarray, filled: pseudo.Filled) -> Completed:
    """Return what came of a block. labels: (classes, z, y, x) int8, as they were."""
    is_known = (filled.labels != UNKNOWN).any(axis=(1, 2, 3))
    return Completed(
        pairs=labels.size,
        before=int(np.count_nonzero(labels != UNKNOWN)),
        after=int(np.count_nonzero(filled.labels != UNKNOWN)),
        positive=int(np.count_nonzero(filled.labels == 1)),
        classes=tuple(itertools.compress(crop.classes, is_known)),
    )


MASK = {"absent": 0, "present": 1, "unknown": CODE_OF_UNKNOWN}
IDS = {"absent": 0, "unknown": pseudo.UNKNOWN_ID}
"""Encoding of a class that is stored as ids; of others MASK."""


@dataclass(frozen=True)
class _Arrays:
    """The arrays of a crop that is being written."""

    folder: Path
    labels: Mapping[str, zarr.Array]
    with_ids: Sequence[str]
    """Classes of which ids are stored."""
    of_networks: Mapping[str, zarr.Array]
    """Of each class, 1 where the label is a network's."""
    source: zarr.Array
    """1 + number of the class whose network was the surest."""
    confidence: zarr.Array
    """How sure it was, in 255ths."""

    @classmethod
    def begin(
        cls, folder: Path, grid: Grid, classes: Sequence[str], *, with_ids: Sequence[str]
    ) -> _Arrays:
        """Make empty arrays. with_ids: classes whose ids are kept."""
        chunks = (CHUNK,) * 3
        labels = {}
        of_networks = {}
        for name in classes:
            is_instance = name in with_ids
            labels[name] = ngff.start_multiscale(
                folder / name,
                grid,
                np.uint64 if is_instance else np.uint8,
                chunks,
                attributes=annotation(IDS if is_instance else MASK, is_instance=is_instance),
            )
            of_networks[name] = ngff.add_array(folder / name, pseudo.ARRAY)
        numbers = {str(number): name for number, name in enumerate(classes, 1)}
        return cls(
            folder,
            labels,
            with_ids,
            of_networks,
            source=ngff.start_multiscale(
                folder / SOURCE, grid, np.uint8, chunks, attributes={"networks": numbers}
            ),
            confidence=ngff.start_multiscale(
                folder / CONFIDENCE, grid, np.uint8, chunks, attributes={"unit": "1/255"}
            ),
        )

    def write(
        self,
        start: np.ndarray,
        stop: np.ndarray,
        filled: pseudo.Filled,
        ids: Mapping[str, np.ndarray],
    ) -> None:
        """Write the block of voxels start..stop-1.

        Args:
            start: (3,) first voxel.
            stop: (3,) last voxel + 1.
            filled: the labels.
            ids: (z, y, x) of annotated classes by name, 0 where there is no object.
        """
        where = ngff.slices(start, stop)
        for number, name in enumerate(self.labels):
            labels = filled.labels[number]
            if name in self.with_ids:
                stored = np.where(labels == 1, pseudo.WITHOUT_ID, 0).astype(np.uint64)
                stored[labels == UNKNOWN] = pseudo.UNKNOWN_ID
                # those of the annotation, where it has some
                is_object = ids[name] > 0
                stored[is_object] = ids[name][is_object].astype(np.uint64)
            else:
                stored = in_uint8(labels)
            self.labels[name][where] = stored
            self.of_networks[name][where] = filled.is_pseudo[number].astype(np.uint8)
        self.source[where] = filled.source
        self.confidence[where] = filled.confidence

    def finish(self, grid: Grid) -> None:
        """Make images of the volumes."""
        for name in (*self.labels, SOURCE, CONFIDENCE):
            ngff.finish_multiscale(self.folder / name, grid, [], ngff.pick)

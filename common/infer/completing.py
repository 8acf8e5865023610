"""The labels of one crop, completed by networks where they are sure, block by block."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import zarr

from common.data import ngff, pseudo, regrid
from common.data.annotation import LabelReader
from common.data.box import boxes
from common.data.decode import Labels, encode_known
from common.data.level import Grid, Level
from common.data.palette import CODE_OF_UNKNOWN, UNKNOWN, in_uint8
from common.data.split import Row
from common.errors import UserError
from common.talk import progress

CHUNK = 64
"""Edge of the blocks that are completed at once, and of the chunks that are stored."""

SOURCE = "source"
CONFIDENCE = "confidence"
"""Volumes beside the classes of a crop: whose network was the surest, and how sure."""


@dataclass(frozen=True)
class Crop:
    """A crop, and what completes it."""

    row: Row
    classes: Sequence[str]
    """Those to complete."""
    predicted: Sequence[Level]
    """Probability of each of them, in 255ths."""
    threshold: float
    """Probability above which a network decides."""
    rules: pseudo.Rules
    """What labels imply for others."""


@dataclass(frozen=True)
class Completed:
    """What came of a crop: numbers of (voxel, class) pairs."""

    pairs: int = 0
    before: int = 0
    """Annotated, or following from that."""
    after: int = 0
    """With what networks add."""
    positive: int = 0
    """Those of them that are positive."""
    classes: tuple[str, ...] = ()
    """Those of which anything is known."""

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


def write(crop: Crop, folder: Path) -> Completed:
    """Write the volumes of a crop into a folder.

    Raises UserError where its annotation cannot be completed, or cannot be read.
    """
    readers = _readers(crop.row)
    grid = readers[0].level.grid
    arrays = _Arrays.begin(folder, grid, crop.classes)
    completed = Completed()
    blocks = list(boxes(grid.shape, (CHUNK,) * 3))
    with progress(len(blocks), f"completing {crop.row.name}", unit="block") as bar:
        for start, stop in blocks:
            labels = _known_labels(readers, crop, start, stop)
            place = Grid(grid.origin + start * grid.scale, grid.scale, tuple(stop - start))
            filled = _filled(crop, labels, place)
            arrays.write(start, stop, filled)
            completed += _counted(crop, labels, filled)
            bar.update()
    for reader in readers:
        reader.check_whole()
    arrays.finish(grid)
    # in their order, whichever block knew them first
    classes = tuple(name for name in crop.classes if name in completed.classes)
    return replace(completed, classes=classes)


def _readers(row: Row) -> list[LabelReader]:
    """The annotated volumes of a crop. Raises UserError where they do not share one grid."""
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
        if not _are_equal(reader.level.grid, first):
            raise UserError(
                f"{reader.level.group}: not on the grid of '{row.annotated[0]}'; the classes "
                "of a crop share one grid"
            )
    return readers


def _are_equal(grid: Grid, first: Grid) -> bool:
    if grid.shape != first.shape:
        return False
    # metadata round sizes such as 5.24 nm, which is no other size
    same_size = np.allclose(grid.scale, first.scale, rtol=1e-3)
    return same_size and np.allclose(grid.origin, first.origin, atol=0.5)


def _known_labels(
    readers: Sequence[LabelReader], crop: Crop, start: np.ndarray, stop: np.ndarray
) -> np.ndarray:
    """(classes, z, y, x) int8: what is annotated in a block, and what follows from it."""
    annotated = [reader.name for reader in readers]
    names = [*annotated, *(name for name in crop.classes if name not in annotated)]
    index, combinations = encode_known([Labels(*reader.read(start, stop)) for reader in readers])
    palette = np.full((len(combinations), len(names)), UNKNOWN, np.int8)
    palette[:, : len(annotated)] = combinations
    palette = crop.rules.complete(palette, names)
    of_classes = palette[:, [names.index(name) for name in crop.classes]]
    return np.moveaxis(of_classes[index], -1, 0)


def _filled(crop: Crop, labels: np.ndarray, place: Grid) -> pseudo.Filled:
    """Labels of a block, completed by what is predicted there."""
    probabilities = np.stack([regrid.ids(level, place) for level in crop.predicted])
    return pseudo.fill(
        labels, probabilities, crop.classes, threshold=crop.threshold, rules=crop.rules
    )


def _counted(crop: Crop, labels: np.ndarray, filled: pseudo.Filled) -> Completed:
    """What came of a block. labels: before."""
    is_known = (filled.labels != UNKNOWN).any(axis=(1, 2, 3))
    return Completed(
        pairs=labels.size,
        before=int(np.count_nonzero(labels != UNKNOWN)),
        after=int(np.count_nonzero(filled.labels != UNKNOWN)),
        positive=int(np.count_nonzero(filled.labels == 1)),
        classes=tuple(itertools.compress(crop.classes, is_known)),
    )


@dataclass(frozen=True)
class _Arrays:
    """The arrays of a crop that is being written."""

    folder: Path
    labels: Mapping[str, zarr.Array]
    of_networks: Mapping[str, zarr.Array]
    source: zarr.Array
    confidence: zarr.Array

    @classmethod
    def begin(cls, folder: Path, grid: Grid, classes: Sequence[str]) -> _Arrays:
        chunks = (CHUNK,) * 3
        encoding = {"absent": 0, "present": 1, "unknown": CODE_OF_UNKNOWN}
        about = {"type": "semantic_segmentation", "encoding": encoding}
        attributes = {"cellmap": {"annotation": {"annotation_type": about}}}
        labels = {}
        of_networks = {}
        for name in classes:
            path = folder / name
            labels[name] = ngff.start_multiscale(
                path, grid, np.uint8, chunks, attributes=attributes
            )
            of_networks[name] = ngff.add_array(path, pseudo.ARRAY)
        numbers = {str(number): name for number, name in enumerate(classes, 1)}
        return cls(
            folder,
            labels,
            of_networks,
            source=ngff.start_multiscale(
                folder / SOURCE, grid, np.uint8, chunks, attributes={"networks": numbers}
            ),
            confidence=ngff.start_multiscale(
                folder / CONFIDENCE, grid, np.uint8, chunks, attributes={"unit": "1/255"}
            ),
        )

    def write(self, start: np.ndarray, stop: np.ndarray, filled: pseudo.Filled) -> None:
        """Write a block."""
        where = ngff.slices(start, stop)
        for number, name in enumerate(self.labels):
            of_class = filled.labels[number]
            self.labels[name][where] = in_uint8(of_class)
            self.of_networks[name][where] = filled.is_pseudo[number].astype(np.uint8)
        self.source[where] = filled.source
        self.confidence[where] = filled.confidence

    def finish(self, grid: Grid) -> None:
        """Make images of the volumes."""
        for name in (*self.labels, SOURCE, CONFIDENCE):
            ngff.finish_multiscale(self.folder / name, grid, [], ngff.pick)

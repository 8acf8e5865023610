"""What the objects of a block measure: voxels, place, surface, and which of them touch.

Surfaces and contacts are sums of faces of voxels, which is exact for boxes along the axes, and for
a smooth surface up to 1.7 times its area (1.5 on average over directions).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from common.data.volumes.label_reader import LabelReader
from common.data.volumes.level import Level
from common.data.volumes.objects import objects_of

MOST_ROWS = 2**20
MOST_FRAMES = 5000
"""Rows of blocks, and tables of them, that are kept before they are added up."""

AXES = "zyx"

OBJECT = ["class", "id"]
"""Columns that tell objects apart."""

PAIR = ["class", "id", "other_class", "other_id"]
"""Columns that tell pairs of objects apart."""

OF_OBJECTS = {
    "voxels": "sum",
    "surface_nm2": "sum",
    **{f"sum_{axis}": "sum" for axis in AXES},
    **{f"first_{axis}": "min" for axis in AXES},
    **{f"last_{axis}": "max" for axis in AXES},
}
"""How the rows of one object in several blocks are added up, by column."""

OF_PAIRS = {"area_nm2": "sum", "shared_voxels": "sum"}
"""How the rows of one pair are added up."""


@dataclass(frozen=True)
class MeasuredClass:
    """One class of a box, and what is measured of it."""

    name: str
    level: Level
    is_mask: bool
    """Whether all its voxels are one object, 1."""
    touches: bool
    """Whether contacts of its objects are looked for."""
    volume: str = ""
    """By which workers open it, see `common.data.volumes.sources.place`."""


@dataclass(frozen=True)
class BlockMeasures:
    """What the classes of a block measure."""

    objects: pd.DataFrame
    """A row an object, with the columns of OBJECT and OF_OBJECTS."""
    pairs: pd.DataFrame
    """A row a pair, with the columns of PAIR and OF_PAIRS."""
    known: Mapping[str, int]
    """Voxels of each class of which it is known whether they belong to it."""
    voxels: int
    """Voxels of all classes together."""


class RowSums:
    """Rows added up by their keys; it grows with the number of keys, not of rows."""

    def __init__(self, keys: list[str], how: Mapping[str, str]):
        """keys: columns that tell rows apart. how: "sum", "min" or "max" for each other column."""
        self.keys = keys
        self.how = dict(how)
        self._frames: list[pd.DataFrame] = []
        self._rows = 0
        self._most = MOST_ROWS

    def add(self, frame: pd.DataFrame) -> None:
        """Add rows."""
        self._frames.append(frame)
        self._rows += len(frame)
        if self._rows > self._most or len(self._frames) > MOST_FRAMES:
            self._frames = [self.table()]
            self._rows = len(self._frames[0])
            # where all are different, adding up more often would help nothing
            self._most = max(MOST_ROWS, 2 * self._rows)

    def table(self) -> pd.DataFrame:
        """Return a row for each key, in order."""
        if not self._frames:
            return pd.DataFrame(columns=[*self.keys, *self.how])
        rows = pd.concat(self._frames, ignore_index=True)
        return rows.groupby(self.keys, sort=True).agg(self.how).reset_index()


def measure_block(
    classes: Sequence[MeasuredClass],
    readers: Sequence[LabelReader],
    start: np.ndarray,
    stop: np.ndarray,
) -> BlockMeasures:
    """Return what the block of voxels start..stop-1 measures. readers: of each class."""
    first = classes[0].level
    core = tuple(map(slice, stop - start))
    known = {}
    ids_of_classes = []
    for measured, reader in zip(classes, readers, strict=True):
        ids, unknown = _read(measured, reader, start, np.minimum(stop + 1, first.shape))
        ids_of_classes.append(ids)
        known[measured.name] = math.prod(stop - start) - int(unknown[core].sum())
    block = LabelBlock(classes, ids_of_classes, start, stop - start, first.scale)
    objects = RowSums(OBJECT, OF_OBJECTS)
    pairs = RowSums(PAIR, OF_PAIRS)
    for frame in itertools.chain(block.objects(), block.surfaces()):
        objects.add(frame)
    for frame in itertools.chain(block.contacts(), block.shared()):
        pairs.add(frame)
    voxels = math.prod(stop - start) * len(classes)
    return BlockMeasures(objects.table(), pairs.table(), known, voxels)


def _read(
    measured: MeasuredClass, reader: LabelReader, start: np.ndarray, stop: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids of a box, 0 where there is no object, and where it is unknown, both (z, y, x)."""
    values = measured.level.read(start, stop)
    positive, unknown = reader.meaning(values)
    ids = positive.view(np.uint8) if measured.is_mask else np.where(positive, values, 0)
    if ids.dtype.kind != "u":
        ids = ids.astype(np.uint64)
    return ids, np.zeros(values.shape, bool) if unknown is None else unknown


@dataclass(frozen=True)
class LabelBlock:
    """Ids of some classes in a block of a volume."""

    classes: Sequence[MeasuredClass]
    ids: Sequence[np.ndarray]
    """(z, y, x) of each class, with the first layer of the next block along each axis."""
    start: np.ndarray
    """(3,) first voxel of the block in the volume."""
    core: np.ndarray
    """(3,) voxels of the block itself."""
    scale: np.ndarray
    """(3,) nm."""

    def objects(self) -> Iterator[pd.DataFrame]:
        """Yield voxels and place of the objects of each class."""
        for measured, ids in zip(self.classes, self.ids, strict=True):
            core = ids[tuple(map(slice, self.core))]
            if not core.any():
                continue
            objects = objects_of(core)
            columns: dict[str, Any] = {"class": measured.name, "id": objects.ids}
            columns |= {"voxels": objects.voxels, "surface_nm2": 0.0}
            for axis, name in enumerate(AXES):
                before = int(self.start[axis])
                columns[f"sum_{name}"] = (objects.centres[:, axis] + before) * objects.voxels
                columns[f"first_{name}"] = objects.first[:, axis] + before
                columns[f"last_{name}"] = objects.last[:, axis] + before
            yield pd.DataFrame(columns)

    def surfaces(self) -> Iterator[pd.DataFrame]:
        """Yield the surface of the objects of each class, without the volume's outer faces."""
        for axis in range(3):
            for measured, ids in zip(self.classes, self.ids, strict=True):
                before, behind = self._across(ids, axis)
                ends = before != behind
                own = np.concatenate([before[ends], behind[ends]])
                numbers, counts = np.unique(own[own > 0], return_counts=True)
                columns: dict[str, Any] = {"class": measured.name, "id": numbers.astype(np.uint64)}
                columns |= {"voxels": 0, "surface_nm2": counts * self._face(axis)}
                for name in AXES:
                    # neutral in a minimum and a maximum
                    columns |= {f"sum_{name}": 0.0, f"first_{name}": 2**62, f"last_{name}": -1}
                yield pd.DataFrame(columns)

    def contacts(self) -> Iterator[pd.DataFrame]:
        """Yield the area of faces where an object ends and another one begins."""
        wanted = [number for number, measured in enumerate(self.classes) if measured.touches]
        for axis in range(3):
            across = {number: self._across(self.ids[number], axis) for number in wanted}
            changes = {number: before != behind for number, (before, behind) in across.items()}
            for first, second in itertools.combinations_with_replacement(wanted, 2):
                before, behind = across[first]
                others_before, others_behind = across[second]
                ends = changes[first] & changes[second]
                if not ends.any():
                    continue
                pairs = [(before[ends], others_behind[ends])]
                if first != second:
                    pairs.append((behind[ends], others_before[ends]))
                for ids, others in pairs:
                    frame = self._pairs(first, second, ids, others)
                    yield frame.assign(area_nm2=self._face(axis), shared_voxels=0)

    def shared(self) -> Iterator[pd.DataFrame]:
        """Yield the number of voxels that belong to two objects, of two classes."""
        wanted = [number for number, measured in enumerate(self.classes) if measured.touches]
        core = tuple(map(slice, self.core))
        for first, second in itertools.combinations(wanted, 2):
            ids = self.ids[first][core]
            others = self.ids[second][core]
            both = (ids > 0) & (others > 0)
            if both.any():
                frame = self._pairs(first, second, ids[both], others[both])
                yield frame.assign(area_nm2=0.0, shared_voxels=1)

    def _pairs(self, first: int, second: int, ids: np.ndarray, others: np.ndarray) -> pd.DataFrame:
        """Return a row for each voxel or face that has an object of both classes.

        Args:
            first: number of a class.
            second: number of another class, or of the same one.
            ids: of objects of the first class; 0 is none.
            others: of objects of the second class, one for each of `ids`.
        """
        both = (ids > 0) & (others > 0)
        own = ids[both].astype(np.uint64)
        other = others[both].astype(np.uint64)
        if first == second:
            lower = np.minimum(own, other)
            other = np.maximum(own, other)
            own = lower
        columns = {"class": self.classes[first].name, "id": own}
        columns |= {"other_class": self.classes[second].name, "other_id": other}
        return pd.DataFrame(columns)

    def _across(self, ids: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids before and behind each face across an axis, the block's last face too."""
        index = [slice(int(length)) for length in self.core]
        before = list(index)
        behind = list(index)
        count = min(int(self.core[axis]), ids.shape[axis] - 1)
        before[axis] = slice(count)
        behind[axis] = slice(1, count + 1)
        return ids[tuple(before)], ids[tuple(behind)]

    def _face(self, axis: int) -> float:
        """Return the area in nm^2 of a face across an axis."""
        return float(np.prod(np.delete(self.scale, axis)))

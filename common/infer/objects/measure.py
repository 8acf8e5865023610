"""What objects measure: voxels, place, surface, and which of them touch; block by block.

Surfaces and contacts are sums of faces of voxels, which is exact for boxes along the axes, and for
a smooth surface up to 1.7 times its area (1.5 on average over directions).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from common.data.volumes.annotation import LabelReader
from common.data.volumes.box import block_of_chunks
from common.data.volumes.level import Level
from common.data.volumes.ngff import open_levels
from common.data.volumes.objects import objects_of
from common.errors import FileError
from common.infer.machines import crew as crew_module
from common.infer.machines.crew import Crew, never
from common.infer.made_by import engine_hash, refuse_other_engine

BLOCK = 128
"""Edge in voxels of what is measured at once, in whole chunks."""

MOST_ROWS = 2**20
MOST_FRAMES = 5000
"""Rows of blocks, and tables of them, that are kept before they are added up."""

AXES = "zyx"

OBJECT = ["class", "id"]
PAIR = ["class", "id", "other_class", "other_id"]


@dataclass(frozen=True)
class Labels:
    """One class of a box."""

    name: str
    level: Level
    is_mask: bool
    """Whether all its voxels are one object, 1."""
    touches: bool
    """Whether contacts of its objects are looked for."""
    volume: str = ""
    """By which workers open it, see `common.data.volumes.sources.place`."""


@dataclass(frozen=True)
class Measures:
    """What the classes of a box measure."""

    voxels: Mapping[str, int]
    """Of each class."""
    known: Mapping[str, int]
    """Of each class, the voxels of which it is known whether they belong to it."""
    objects: pd.DataFrame
    """A row an object: class, id, voxels, nm3, surface_nm2, centre and box in nm, at_border."""
    contacts: pd.DataFrame
    """A row a pair: class, id, other_class, other_id, area_nm2, shared_voxels."""


class Tally:
    """Rows added up by their keys; it grows with what is different, not with what is added."""

    def __init__(self, keys: list[str], how: Mapping[str, str]):
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
        """A row for each key, in order."""
        if not self._frames:
            return pd.DataFrame(columns=[*self.keys, *self.how])
        rows = pd.concat(self._frames, ignore_index=True)
        return rows.groupby(self.keys, sort=True).agg(self.how).reset_index()


OF_OBJECTS = {
    "voxels": "sum",
    "surface_nm2": "sum",
    **{f"sum_{axis}": "sum" for axis in AXES},
    **{f"first_{axis}": "min" for axis in AXES},
    **{f"last_{axis}": "max" for axis in AXES},
}
OF_PAIRS = {"area_nm2": "sum", "shared_voxels": "sum"}


@dataclass(frozen=True)
class Part:
    """What the classes of a block measure."""

    objects: pd.DataFrame
    pairs: pd.DataFrame
    known: Mapping[str, int]
    """Voxels of each class of which it is known whether they belong to it."""
    voxels: int
    """Of all classes."""


class Total:
    """The parts of all blocks, added up in their order, in whichever they come."""

    def __init__(self, classes: Sequence[Labels]):
        self.objects = Tally(OBJECT, OF_OBJECTS)
        self.pairs = Tally(PAIR, OF_PAIRS)
        self.known = dict.fromkeys((labels.name for labels in classes), 0)
        self._waiting: dict[int, Part] = {}
        self._next = 0

    def take(self, number: int, part: Part) -> None:
        """Take what came of a block."""
        self._waiting[number] = part
        while self._next in self._waiting:
            part = self._waiting.pop(self._next)
            self._next += 1
            if len(part.objects):
                self.objects.add(part.objects)
            if len(part.pairs):
                self.pairs.add(part.pairs)
            for name, count in part.known.items():
                self.known[name] += count


def measure(
    classes: Sequence[Labels], tell: Callable[[int], None], crew: Crew | None = None
) -> Measures:
    """Measure classes on the same voxels, in the memory of a few blocks of each and of the tables.

    tell: called with the number of voxels of each block. crew: who measures the blocks, this
    process without one. Raises FileError for a block that the crew failed at.
    """
    total = Total(classes)

    def done(number: int, part: Part) -> None:
        tell(part.voxels)
        total.take(number, part)

    numbers = range(math.prod(_blocks_along(classes[0].level)))
    if crew is None:
        for number, part in parts(classes, numbers):
            done(number, part)
    else:
        _by_crew(classes, numbers, crew, done)
    return _measures(classes, total.known, total.objects.table(), total.pairs.table())


def _by_crew(
    classes: Sequence[Labels],
    numbers: Sequence[int],
    crew: Crew,
    done: Callable[[int, Part], None],
) -> None:
    # open files cannot be sent
    sent = [(labels.name, labels.volume, labels.is_mask, labels.touches) for labels in classes]
    failures = crew.run(
        partial(opened_parts, sent, engine_hash()),
        numbers,
        done=done,
        tell=lambda _: None,
        tally=crew_module.Tally(len(numbers), 0),
        stopped=never,
    )
    if failures:
        raise FileError(f"{failures[0].error} (on {failures[0].where})")


def opened_parts(
    sent: Sequence[tuple[str, str, bool, bool]], engine: str, numbers: Sequence[int]
) -> Iterator[tuple[int, Part]]:
    """What some blocks measure, in a worker, which opens the volumes itself.

    engine: as of `engine_hash`, of the caller.
    """
    refuse_other_engine(engine)
    classes = []
    for name, volume, is_mask, touches in sent:
        classes.append(Labels(name, open_levels(volume)[0], is_mask, touches, volume))
    yield from parts(classes, numbers)


def parts(classes: Sequence[Labels], numbers: Sequence[int]) -> Iterator[tuple[int, Part]]:
    """What blocks measure, by their numbers."""
    first = classes[0].level
    readers = [LabelReader(labels.level, labels.name) for labels in classes]
    size = np.array(block_of_chunks(first.array.chunks, BLOCK))
    for number in numbers:
        start = np.array(np.unravel_index(number, _blocks_along(first))) * size
        yield number, _part(classes, readers, start, np.minimum(start + size, first.shape))


def _blocks_along(level: Level) -> tuple[int, ...]:
    size = np.array(block_of_chunks(level.array.chunks, BLOCK))
    return tuple((-(-level.shape // size)).tolist())


def _part(
    classes: Sequence[Labels],
    readers: Sequence[LabelReader],
    start: np.ndarray,
    stop: np.ndarray,
) -> Part:
    """What the block of voxels start..stop-1 measures."""
    first = classes[0].level
    known = {}
    blocks = []
    for labels, reader in zip(classes, readers, strict=True):
        ids, unknown = _read(labels, reader, start, np.minimum(stop + 1, first.shape))
        blocks.append(ids)
        core = tuple(map(slice, stop - start))
        known[labels.name] = math.prod(stop - start) - int(unknown[core].sum())
    block = Block(classes, blocks, start, stop - start, first.scale)
    objects = Tally(OBJECT, OF_OBJECTS)
    pairs = Tally(PAIR, OF_PAIRS)
    for frame in itertools.chain(block.objects(), block.surfaces()):
        objects.add(frame)
    for frame in itertools.chain(block.contacts(), block.shared()):
        pairs.add(frame)
    voxels = math.prod(stop - start) * len(classes)
    return Part(objects.table(), pairs.table(), known, voxels)


def _read(
    labels: Labels, reader: LabelReader, start: np.ndarray, stop: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a box, 0 where there is no object, and where nobody knows."""
    values = labels.level.read(start, stop)
    positive, unknown = reader.meaning(values)
    ids = positive.view(np.uint8) if labels.is_mask else np.where(positive, values, 0)
    if ids.dtype.kind != "u":
        ids = ids.astype(np.uint64)
    return ids, np.zeros(values.shape, bool) if unknown is None else unknown


@dataclass(frozen=True)
class Block:
    """Ids of some classes in a part of a volume."""

    classes: Sequence[Labels]
    ids: Sequence[np.ndarray]
    """Of each class, with the voxels behind the last ones, which belong to the next block."""
    start: np.ndarray
    core: np.ndarray
    """(3,) voxels of its own."""
    scale: np.ndarray

    def objects(self) -> Iterator[pd.DataFrame]:
        """Voxels and place of the objects of each class."""
        for labels, ids in zip(self.classes, self.ids, strict=True):
            core = ids[tuple(map(slice, self.core))]
            if not core.any():
                continue
            objects = objects_of(core)
            columns: dict[str, Any] = {"class": labels.name, "id": objects.ids}
            columns |= {"voxels": objects.voxels, "surface_nm2": 0.0}
            for axis, name in enumerate(AXES):
                before = int(self.start[axis])
                columns[f"sum_{name}"] = (objects.centres[:, axis] + before) * objects.voxels
                columns[f"first_{name}"] = objects.first[:, axis] + before
                columns[f"last_{name}"] = objects.last[:, axis] + before
            yield pd.DataFrame(columns)

    def surfaces(self) -> Iterator[pd.DataFrame]:
        """Surface of the objects of each class, but for the outer faces of the volume."""
        for axis in range(3):
            for labels, ids in zip(self.classes, self.ids, strict=True):
                before, behind = self._across(ids, axis)
                ends = before != behind
                own = np.concatenate([before[ends], behind[ends]])
                numbers, counts = np.unique(own[own > 0], return_counts=True)
                columns: dict[str, Any] = {"class": labels.name, "id": numbers.astype(np.uint64)}
                columns |= {"voxels": 0, "surface_nm2": counts * self._face(axis)}
                for name in AXES:
                    # what minimum and maximum leave as they are
                    columns |= {f"sum_{name}": 0.0, f"first_{name}": 2**62, f"last_{name}": -1}
                yield pd.DataFrame(columns)

    def contacts(self) -> Iterator[pd.DataFrame]:
        """Area of faces where an object ends and another one begins."""
        wanted = [number for number, labels in enumerate(self.classes) if labels.touches]
        for axis in range(3):
            across = {number: self._across(self.ids[number], axis) for number in wanted}
            changes = {number: before != behind for number, (before, behind) in across.items()}
            for one, other in itertools.combinations_with_replacement(wanted, 2):
                before, behind = across[one]
                others_before, others_behind = across[other]
                ends = changes[one] & changes[other]
                if not ends.any():
                    continue
                pairs = [(before[ends], others_behind[ends])]
                if one != other:
                    pairs.append((behind[ends], others_before[ends]))
                for ids, other_ids in pairs:
                    frame = self._pairs(one, other, ids, other_ids)
                    yield frame.assign(area_nm2=self._face(axis), shared_voxels=0)

    def shared(self) -> Iterator[pd.DataFrame]:
        """Voxels that belong to two objects, of two classes."""
        wanted = [number for number, labels in enumerate(self.classes) if labels.touches]
        core = tuple(map(slice, self.core))
        for one, other in itertools.combinations(wanted, 2):
            ids = self.ids[one][core]
            others = self.ids[other][core]
            both = (ids > 0) & (others > 0)
            if both.any():
                frame = self._pairs(one, other, ids[both], others[both])
                yield frame.assign(area_nm2=0.0, shared_voxels=1)

    def _pairs(self, one: int, other: int, ids: np.ndarray, others: np.ndarray) -> pd.DataFrame:
        """A row for each pair of objects that is none with nothing."""
        both = (ids > 0) & (others > 0)
        first = ids[both].astype(np.uint64)
        second = others[both].astype(np.uint64)
        if one == other:
            lower = np.minimum(first, second)
            second = np.maximum(first, second)
            first = lower
        columns = {"class": self.classes[one].name, "id": first}
        columns |= {"other_class": self.classes[other].name, "other_id": second}
        return pd.DataFrame(columns)

    def _across(self, ids: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """The voxels before and behind each face across an axis, the last of the block included."""
        index = [slice(int(length)) for length in self.core]
        before = list(index)
        behind = list(index)
        count = min(int(self.core[axis]), ids.shape[axis] - 1)
        before[axis] = slice(count)
        behind[axis] = slice(1, count + 1)
        return ids[tuple(before)], ids[tuple(behind)]

    def _face(self, axis: int) -> float:
        """Area in nm^2 of a face across an axis."""
        return float(np.prod(np.delete(self.scale, axis)))


def _measures(
    classes: Sequence[Labels],
    known: Mapping[str, int],
    objects: pd.DataFrame,
    contacts: pd.DataFrame,
) -> Measures:
    """The tables with their lengths in nm."""
    grid = classes[0].level.grid
    columns: dict[str, Any] = {name: objects[name] for name in (*OBJECT, "voxels")}
    columns["nm3"] = objects["voxels"] * float(np.prod(grid.scale))
    columns["surface_nm2"] = objects["surface_nm2"]
    at_border = np.zeros(len(objects), bool)
    for axis, name in enumerate(AXES):
        scale = grid.scale[axis]
        lower = grid.box()[0][axis]
        mean = objects[f"sum_{name}"] / objects["voxels"]
        columns[f"centre_{name}_nm"] = grid.origin[axis] + mean * scale
        columns[f"lower_{name}_nm"] = lower + objects[f"first_{name}"] * scale
        columns[f"upper_{name}_nm"] = lower + (objects[f"last_{name}"] + 1) * scale
        at_border |= (objects[f"first_{name}"] == 0).to_numpy(bool)
        at_border |= (objects[f"last_{name}"] == grid.shape[axis] - 1).to_numpy(bool)
    columns["at_border"] = at_border
    totals = objects.groupby("class")["voxels"].sum().to_dict()
    voxels = {labels.name: int(totals.get(labels.name, 0)) for labels in classes}
    return Measures(voxels, known, pd.DataFrame(columns), contacts)

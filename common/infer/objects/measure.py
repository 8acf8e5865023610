"""What the objects of several classes measure over volumes larger than memory, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from common.data.volumes.box import block_of_chunks
from common.data.volumes.label_reader import LabelReader
from common.data.volumes.level import Level
from common.data.volumes.ngff import open_levels
from common.errors import FileError
from common.infer.machines.crew import Crew, Tally
from common.infer.made_by import engine_hash, refuse_other_engine
from common.infer.objects.block_measures import (
    AXES,
    OBJECT,
    OF_OBJECTS,
    OF_PAIRS,
    PAIR,
    BlockMeasures,
    MeasuredClass,
    RowSums,
    measure_block,
)
from common.stopping import never

BLOCK = 128
"""Edge in voxels of what is measured at once, in whole chunks."""


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


class Total:
    """The measures of all blocks, added up in the order of the blocks, in whichever they come."""

    def __init__(self, classes: Sequence[MeasuredClass]):
        self.objects = RowSums(OBJECT, OF_OBJECTS)
        self.pairs = RowSums(PAIR, OF_PAIRS)
        self.known = {measured.name: 0 for measured in classes}
        self._waiting: dict[int, BlockMeasures] = {}
        self._next = 0

    def take(self, number: int, measures: BlockMeasures) -> None:
        """Take what the block of a number measures."""
        self._waiting[number] = measures
        while self._next in self._waiting:
            measures = self._waiting.pop(self._next)
            self._next += 1
            if len(measures.objects):
                self.objects.add(measures.objects)
            if len(measures.pairs):
                self.pairs.add(measures.pairs)
            for name, count in measures.known.items():
                self.known[name] += count


def measure(
    classes: Sequence[MeasuredClass], tell: Callable[[int], None], crew: Crew | None = None
) -> Measures:
    """Measure classes on the same voxels, in the memory of a few blocks of each and of the tables.

    Raise FileError for a block that the crew failed at.

    Args:
        classes: of one box.
        tell: called with the number of voxels of each block.
        crew: measures the blocks; this process without one.
    """
    total = Total(classes)

    def done(number: int, measures: BlockMeasures) -> None:
        tell(measures.voxels)
        total.take(number, measures)

    numbers = range(math.prod(_blocks_along(classes[0].level)))
    if crew is None:
        for number, measures in measured_blocks(classes, numbers):
            done(number, measures)
    else:
        _by_crew(classes, numbers, crew, done)
    return _measures(classes, total.known, total.objects.table(), total.pairs.table())


def _by_crew(
    classes: Sequence[MeasuredClass],
    numbers: Sequence[int],
    crew: Crew,
    done: Callable[[int, BlockMeasures], None],
) -> None:
    """Measure blocks by workers. done: takes the number of each with what it measures."""
    # open files cannot be sent
    sent = []
    for measured in classes:
        sent.append((measured.name, measured.volume, measured.is_mask, measured.touches))
    failures = crew.run(
        partial(opened_blocks, sent, engine_hash()),
        numbers,
        done=done,
        tell=lambda _: None,
        tally=Tally(len(numbers), 0),
        stopped=never,
    )
    if failures:
        raise FileError(f"{failures[0].error} (on {failures[0].where})")


def opened_blocks(
    sent: Sequence[tuple[str, str, bool, bool]], engine: str, numbers: Sequence[int]
) -> Iterator[tuple[int, BlockMeasures]]:
    """Yield what some blocks measure, in a worker, which opens the volumes itself.

    Args:
        sent: name, volume, is_mask and touches of each class.
        engine: `common.infer.made_by.engine_hash` of the caller.
        numbers: of the blocks.
    """
    refuse_other_engine(engine)
    classes = []
    for name, volume, is_mask, touches in sent:
        level = open_levels(volume)[0]
        classes.append(MeasuredClass(name, level, is_mask, touches, volume))
    yield from measured_blocks(classes, numbers)


def measured_blocks(
    classes: Sequence[MeasuredClass], numbers: Sequence[int]
) -> Iterator[tuple[int, BlockMeasures]]:
    """Yield the number of each block with what it measures."""
    first = classes[0].level
    readers = [LabelReader(measured.level, measured.name) for measured in classes]
    size = np.array(block_of_chunks(first.array.chunks, BLOCK))
    for number in numbers:
        start = np.array(np.unravel_index(number, _blocks_along(first))) * size
        stop = np.minimum(start + size, first.shape)
        yield number, measure_block(classes, readers, start, stop)


def _blocks_along(level: Level) -> tuple[int, ...]:
    """Return the number of blocks along each axis."""
    size = np.array(block_of_chunks(level.array.chunks, BLOCK))
    return tuple((-(-level.shape // size)).tolist())


def _measures(
    classes: Sequence[MeasuredClass],
    known: Mapping[str, int],
    objects: pd.DataFrame,
    contacts: pd.DataFrame,
) -> Measures:
    """Return the tables with their lengths in nm."""
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
    voxels = {measured.name: int(totals.get(measured.name, 0)) for measured in classes}
    return Measures(voxels, known, pd.DataFrame(columns), contacts)

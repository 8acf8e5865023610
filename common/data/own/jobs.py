"""The import of one volume: what is taken, where it belongs, and what its labels hold."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from common.data.crops.cache import raw_stamp
from common.data.volumes.annotation import check_counts, encoding_of
from common.data.volumes.label_reader import refuse_raw
from common.data.volumes.level import Level
from common.data.volumes.sources.excerpt import INSTANCE, RAW, SEMANTIC, Excerpt
from common.errors import UserError
from common.talk import note, some

CHUNK = 128
"""Voxels of a chunk of raw along each axis; labels, which pack better, have 64."""

LABEL_CHUNK = 64

STAMP = "stamp"
"""In a record, what tells voxels of the source from those of an edited one."""

MOST_IDS = 1000
"""Different values of a class that is not said to have objects; more look like raw, or like ids."""


@dataclass(frozen=True)
class Import:
    """One volume to be written, or linked to."""

    source: Level
    """The finest level of what it is taken from."""
    excerpt: Excerpt
    group: Path
    """Where it belongs."""
    others: tuple[int, ...] = ()
    """Values of other classes in the same volume."""

    @property
    def level(self) -> Level:
        """What is written."""
        return self.excerpt.of(self.source, self.group)

    @property
    def stored(self) -> Level:
        """The same voxels with the values of the source."""
        return replace(self.excerpt, values=(), unknown=()).of(self.source, self.group)

    @property
    def is_raw(self) -> bool:
        """Whether it is no labels."""
        return self.excerpt.kind == RAW

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """What a volume says of what it was written from, as JSON."""
        first = np.array(self.excerpt.first)
        stamp = raw_stamp(self.source, first, first + self.excerpt.shape)
        return self.excerpt.record | {STAMP: stamp}

    def is_from(self, record: Any) -> bool:
        """Whether a record is of the same part of the same source, edited since or not."""
        if not isinstance(record, dict):
            return False
        return {**record, STAMP: ""} == {**self.excerpt.record, STAMP: ""}

    def is_edited_since(self, record: Any) -> bool:
        """Whether the source was written anew since a record of it; older ones do not say."""
        return record.get(STAMP, self.record[STAMP]) != self.record[STAMP]

    @property
    def chunks(self) -> tuple[int, int, int]:
        """Voxels of a chunk."""
        edge = CHUNK if self.is_raw else LABEL_CHUNK
        depth, height, width = (min(edge, length) for length in self.excerpt.shape)
        return depth, height, width


# What labels hold


@dataclass
class Counts:
    """What a volume of labels holds; in raw nothing is looked at."""

    job: Import
    values: set[int] = field(default_factory=set)
    """Of the source; those of a class of objects are not collected."""
    voxels: int = 0
    absent: int = 0
    unknown: int = 0
    are_several: bool = False
    """Whether a block has several values."""

    def look(self, block: np.ndarray, taken: np.ndarray) -> None:
        """Count a block. Raises UserError for labels that look like raw.

        block: as it is in the source. taken: what is made of it.
        """
        job = self.job
        name = job.group.name
        refuse_raw(block, name, job.source.path)
        self.are_several |= bool((block != block.flat[0]).any())
        if job.excerpt.kind == SEMANTIC:
            self.values.update(np.unique(block).tolist())
        if len(self.values) > MOST_IDS:
            raise UserError(
                f"{job.source.path}: more than {MOST_IDS} different values for class {name}, which "
                f"look like raw or like ids of objects; write --instances {name} if they are ids"
            )
        code = job.excerpt.encoding.get("unknown")
        self.voxels += taken.size
        if code is not None:
            self.unknown += int(np.count_nonzero(taken == code))
        if taken.dtype.kind == "i":
            self.unknown += int(np.count_nonzero((taken < 0) & (taken != code)))
        if code != 0:
            self.absent += int(np.count_nonzero(taken == 0))

    @property
    def positive(self) -> int:
        """Voxels of the class."""
        return self.voxels - self.absent - self.unknown

    def text(self) -> str:
        """Return the part of the volume that is the class, as text behind a comma."""
        if not self.voxels:
            return ""
        name = self.job.group.name
        unknown = f", {self.unknown / self.voxels:.2%} unknown" if self.unknown else ""
        return f", {self.positive / self.voxels:.2%} {name}{unknown}"

    def check_source(self) -> None:
        """Compare what was read of a whole volume with what its own metadata count, which is said.

        Raises UserError for lost chunks, which would be background from now on.
        """
        job = self.job
        is_whole = tuple(job.excerpt.shape) == tuple(job.source.array.shape)
        if not is_whole or job.excerpt.values or job.excerpt.encoding.get("unknown") == 0:
            return
        encoding = encoding_of(job.source, job.group.name)
        remark = check_counts(job.source, encoding, self.voxels, self.absent)
        if remark:
            note(f"{job.source.path}: {remark}")

    def note(self) -> None:
        """Note what is unusual in the labels."""
        job = self.job
        name = job.group.name
        path = job.source.path
        where = f"{job.group.parent.name}/{name}"
        if self.positive <= 0:
            note(f"{where}: no voxel of {name} in it; all of it is known to be something else")
        if job.excerpt.kind == INSTANCE:
            if not self.absent and self.are_several and job.excerpt.encoding.get("unknown") != 0:
                note(
                    f"{where}: several ids and no voxel of 0, so that nothing is known to be no "
                    f"{name}; where one of the ids is the background, write 0 there"
                )
            return
        is_named = {0, *job.excerpt.values, *job.excerpt.unknown, *job.others}
        others = sorted(self.values - is_named)
        absent = sorted(set(job.excerpt.values) - self.values)
        if absent and self.positive > 0:
            note(f"{path}: no voxel of {where} is {some(list(map(str, absent)))}")
        if job.excerpt.values and job.others and others:
            note(
                f"{path}: values {some(list(map(str, others)))} are not in --values, and were "
                "taken for background"
            )
        if not job.excerpt.values and len(others) > 1:
            note(
                f"{path}: {len(others)} values besides 0, all of them taken for {name}; if they "
                f"are ids of objects, write --instances {name}, if they are classes "
                f"{name}={path.name}#value=1 and so on, and if one of them means that nobody knows "
                f"--unknown {others[-1]}"
            )


def count_in_metadata(group: Path, counts: Counts) -> None:
    """Write the counts of voxels, by which chunks that are lost later are noticed."""
    opened = zarr.open_group(str(group), mode="r+")
    about = opened.attrs["cellmap"]
    about["annotation"]["complement_counts"] = {"absent": counts.absent, "unknown": counts.unknown}
    opened.attrs["cellmap"] = about

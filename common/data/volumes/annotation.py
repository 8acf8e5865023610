"""Read what the metadata of label volumes say of their values: positive, absent, or unknown.

They say it as `cellmap.annotation.annotation_type` in the .zattrs of the group or of the array (the
challenge's form, https://github.com/janelia-cellmap/cellmap-schemas):

    {"type": "semantic_segmentation", "encoding": {"absent": 0, "present": 1, "unknown": 255}}

`common.data.volumes.label_reader` reads the values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.classes import INSTANCES
from common.data.volumes.level import Level, chunk_ranges
from common.data.volumes.metadata import read_attributes
from common.data.volumes.sources.excerpt import INSTANCE_TYPE, SEMANTIC_TYPE
from common.errors import UserError
from common.talk import misspelt, some

POSSIBILITIES = ("absent", "present", "unknown")
"""What an encoding may give a value to."""

LOOKED_AT = 27
"""Chunks that are looked at to know whether a writer stores empty ones."""

MOST_LINES = 12
"""Remarks about labels that are said; the rest is counted."""


@dataclass(frozen=True)
class Counted:
    """How many voxels of a label volume are absent, by its metadata."""

    absent: int
    attribute: str
    """What says so: complement_counts of the annotation, or class_counts as cellmap-data writes."""


@dataclass(frozen=True)
class Encoding:
    """What the metadata of a label volume say of its values."""

    is_instance: bool
    """Whether its values are ids of objects."""
    absent: int = 0
    present: int | None = None
    """None where it is not said, as the next one."""
    unknown: int | None = None
    id_of_unknown: int | None = None
    """The value of unknown in a volume of ids whose metadata count no such voxel: there an id."""
    counted: Counted | None = None
    """What the metadata count, where they do."""
    is_said_to_be_mask: bool = False
    """Whether the metadata say that all of its objects have one value."""
    is_said_to_be_ids: bool = False
    """Whether the metadata say that each of its objects has a value of its own."""
    unread: tuple[str, ...] = ()
    """Sentences about names in the metadata that nothing reads."""

    def named(self) -> list[int]:
        """Return the values that have a meaning."""
        values = (self.absent, self.present, self.unknown)
        return [value for value in values if value is not None]


def encoding_of(level: Level, name: str) -> Encoding:
    """Return the encoding of a class; metadata of the array go before those of its group.

    In a volume of ids the value of unknown may be an object's: it is, where `complement_counts`
    counts no unknown voxel. name: of the class, which tells ids from masks where no type is given.

    Raises UserError for an encoding that is not made of whole numbers.
    """
    annotation: dict[str, Any] = {}
    for attributes in (read_attributes(level.group), level.array.attrs.asdict()):
        annotation |= _object(_object(attributes.get("cellmap")).get("annotation"))
    annotation_type = _object(annotation.get("annotation_type"))
    values = _values(level.path, _object(annotation_type.get("encoding")))
    has_type = bool(annotation_type.get("type"))
    is_instance = annotation_type["type"] == INSTANCE_TYPE if has_type else name in INSTANCES
    absent = values.get("absent", 0)
    unknown = values.get("unknown")
    counts = _object(annotation.get("complement_counts"))
    id_of_unknown = None
    if is_instance and counts and not counts.get("unknown"):
        id_of_unknown = unknown
    return Encoding(
        is_instance=is_instance,
        absent=absent,
        present=values.get("present"),
        unknown=unknown if id_of_unknown is None else None,
        id_of_unknown=id_of_unknown,
        counted=_counted(level, name, counts, absent_is_0=absent == 0),
        is_said_to_be_mask=has_type and not is_instance,
        is_said_to_be_ids=has_type and is_instance,
        unread=tuple(_unread(annotation, annotation_type)),
    )


def _unread(annotation: Mapping[str, Any], annotation_type: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each name that nothing reads, and for a type that is none."""
    read_of = {
        "annotation": (annotation, ("annotation_type", "complement_counts")),
        "annotation_type": (annotation_type, ("type", "encoding")),
        "encoding": (_object(annotation_type.get("encoding")), POSSIBILITIES),
        "complement_counts": (_object(annotation.get("complement_counts")), POSSIBILITIES),
    }
    for where, (given, read) in read_of.items():
        meant = misspelt(given, read)
        # these two name values, and nothing else
        others = () if "annotation" in where else [name for name in given if name not in read]
        for name in [*dict.fromkeys([*meant, *others])]:
            hint = f"did you mean '{meant[name]}'?" if name in meant else f"there are {some(read)}"
            yield f"nothing reads '{name}' in {where} of its metadata; {hint}"
    kind = annotation_type.get("type")
    if kind and kind not in (SEMANTIC_TYPE, INSTANCE_TYPE):
        yield (
            f"its metadata call it {kind!r}, which is no type, and it was taken for a mask; write "
            f"{SEMANTIC_TYPE} or {INSTANCE_TYPE}"
        )


def _counted(
    level: Level, name: str, complement: Mapping[str, Any], *, absent_is_0: bool
) -> Counted | None:
    """Return what the metadata count; None if they count nothing, or voxels of another grid."""
    voxels = math.prod(level.array.shape)
    absent = complement.get("absent")
    if isinstance(absent, int) and _is_count(absent):
        others = sum(number for number in complement.values() if _is_count(number))
        return Counted(absent, "complement_counts") if others <= voxels else None
    # number of voxels that are not 0
    positive = _object(level.array.attrs.get("class_counts")).get(name)
    if _is_count(positive) and absent_is_0 and positive <= voxels:
        return Counted(voxels - positive, "class_counts")
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _object(value: Any) -> dict[str, Any]:
    """Return a JSON object; an empty one for anything else, which says nothing."""
    return value if isinstance(value, dict) else {}


def _values(path: Path, encoding: Mapping[str, Any]) -> dict[str, int]:
    values = {}
    for possibility in POSSIBILITIES:
        value = encoding.get(possibility)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise UserError(
                f"{path}: encoding of '{possibility}' is {value!r} in .zattrs; "
                'write a whole number, such as {"absent": 0, "unknown": 255}'
            )
        values[possibility] = int(value)
    return values


def summed_up(remarks: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line for each different sentence of (class, sentence), with the classes it is about.

    Of very many the first ones.
    """
    classes: dict[str, set[str]] = {}
    for name, sentence in remarks:
        classes.setdefault(sentence, set()).add(name)
    lines = [f"labels of {some(sorted(names))}: {text}" for text, names in classes.items()]
    if len(lines) <= MOST_LINES:
        return lines
    return [*lines[:MOST_LINES], f"... and {len(lines) - MOST_LINES} more remarks about labels"]


def check_counts(level: Level, encoding: Encoding, read: int, absent: int) -> str:
    """A remark where a volume is not what its metadata count, or may have lost chunks; else "".

    A chunk that was lost, or not fetched, reads as the fill value: as background, mostly. Where
    nothing is counted that can be known only of a writer that stores empty chunks too.

    Args:
        level: of labels, of which all was read once.
        encoding: what its metadata say.
        read: voxels that were read; a reduction may leave out the last ones.
        absent: those of them that are absent.

    Raises UserError if chunks are missing and the counts say that they held something.
    """
    chunks = level.missing_chunks((0, 0, 0), level.shape)
    crop = level.group.parent.name
    lost = f"{chunks.missing} of {chunks.of} chunks are not there"
    counted = encoding.counted
    if counted is None:
        if not chunks.missing or not _stores_empty_chunks(level):
            return ""
        return (
            f"{lost} in {crop}, and were taken for {level.array.fill_value}; "
            "empty chunks are stored in this array, so they may be lost: copy it again"
        )
    is_less = read == math.prod(level.array.shape) and absent < counted.absent
    if absent <= counted.absent and not is_less:
        return ""
    differ = (
        f"{absent:,} voxels are absent, and {counted.absent:,} by "
        f"{counted.attribute} in the metadata"
    )
    if chunks.missing:
        raise UserError(
            f"{level.path}: {lost}, and what they held is missed: {differ}; fetch or copy this "
            f"array again, or, if its labels were edited, correct {counted.attribute}"
        )
    return f"{differ} of {crop}: they were edited, or are not whole"


def _stores_empty_chunks(level: Level) -> bool:
    """Return whether a stored chunk holds nothing but the fill value.

    The smallest files are looked at: nothing is packed smaller. False for chunks in shards and the
    like, of which that is not known.
    """
    if not level.has_chunk_files:
        return False
    sizes = []
    for index in itertools.product(*chunk_ranges((0, 0, 0), level.shape, level.array.chunks)):
        file = level.chunk_file(index)
        if file.is_file():
            sizes.append((file.stat().st_size, index))
    for _, index in sorted(sizes)[:LOOKED_AT]:
        start = np.array(index) * level.array.chunks
        chunk = level.read(start, np.minimum(start + level.array.chunks, level.shape))
        if (chunk == level.array.fill_value).all():
            return True
    return False

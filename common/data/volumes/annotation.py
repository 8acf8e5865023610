"""Read label volumes, and what their values mean: positive, absent, or unknown.

The metadata of a label say it, `cellmap.annotation.annotation_type` in the .zattrs of its group or
of the array (the challenge's form, https://github.com/janelia-cellmap/cellmap-schemas):

    {"type": "semantic_segmentation", "encoding": {"absent": 0, "present": 1, "unknown": 255}}

What is neither absent nor unknown is positive: the ids of objects too. Negative numbers and NaN are
unknown whatever the metadata say.
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
from common.data.volumes import regrid
from common.data.volumes.box import Vector
from common.data.volumes.level import Grid, Level, chunk_ranges
from common.data.volumes.records import read_attributes
from common.data.volumes.sources.excerpt import INSTANCE_TYPE, SEMANTIC_TYPE
from common.errors import UserError
from common.talk import misspelt, some

POSSIBILITIES = ("absent", "present", "unknown")
"""What an encoding may give a value to."""

UNKNOWN_ID = -1
"""Stands for unknown in `LabelReader.on`."""

LOOKED_AT = 27
"""Chunks that are looked at to know whether a writer stores empty ones."""

SAMPLE_EDGE = 32
MOST_EDGES = 0.5
MOST_VALUES = 100
"""Voxels along an edge of what is looked at, part of neighbours that differ, number of values."""

BRIGHTEST = 255
FEWEST_BETWEEN = 8
"""Different values between 0 and 255 from which a mask of these two has soft edges."""

WIDE = 4
"""Bytes of an id from which nobody numbers objects up to the largest number."""

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


def refuse_raw(values: np.ndarray, name: str, path: Path) -> None:
    """Raises UserError where neighbours differ, in many values: labels are pieces of one.

    values: a block of the class `name`, (z, y, x). path: of its volume.
    """
    part = values[:SAMPLE_EDGE, :SAMPLE_EDGE, :SAMPLE_EDGE]
    along_x = part[..., 1:] != part[..., :-1]
    if not along_x.size or along_x.mean() < MOST_EDGES:
        return
    different = len(np.unique(part))
    if different > MOST_VALUES:
        raise UserError(
            f"{path}: {different} values among {part.size:,} voxels, {along_x.mean():.0%} "
            f"of them unlike their neighbour, for class {name}: this looks like raw, and "
            "not like labels; check which volume is which"
        )


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


class LabelReader:
    """A label volume, read as what is positive and what is unknown; remembers what it met."""

    def __init__(self, level: Level, name: str):
        """Read one level of the class `name`. Raises UserError for metadata that are wrong."""
        self.level = level
        self.name = name
        self.encoding = encoding_of(level, name)
        self.unknown_voxels = 0
        self._voxels = 0
        self._absent_voxels = 0
        self._met: dict[str, None] = dict.fromkeys(self.encoding.unread)
        # a name says little: of classes that the challenge counts, many label masks
        self._may_be_mask = not self.encoding.is_said_to_be_ids
        """Whether nothing but 0, 1 and one number that may mean unknown was met."""
        self._has_one = self.encoding.present == 1
        self._suspect: int | None = None
        self._unnamed: int | None = None
        """A value above 0 of a mask whose metadata say what is present, and do not name it."""
        self._largest: int | None = None
        """The largest number of a wide type, which was met and is not named."""
        self._bytes = np.zeros(BRIGHTEST + 1, np.int64)
        """How often each value was met, in blocks that reach to the largest of a byte."""

    def read(self, start: Vector, stop: Vector) -> tuple[np.ndarray, np.ndarray | None]:
        """Return where the class is in voxels start..stop, and where that is unknown; both bool.

        The second is None where all is known. Raises UserError for values that are those of raw.
        """
        return self.meaning(self.values(start, stop))

    def values(self, start: Vector, stop: Vector) -> np.ndarray:
        """Return voxels start..stop as stored. Raises UserError for what can be no labels."""
        values = self.level.read(start, stop)
        refuse_raw(values, self.name, self.level.path)
        return values

    def meaning(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return where values of the volume are positive, and where unknown; both bool.

        The second is None where all is known. Raises UserError for fractions.
        """
        self._refuse_fractions(values)
        unknown = self._unknown(values)
        positive = values != self.encoding.absent
        self._look(values, values.size - int(np.count_nonzero(positive)))
        if unknown is None:
            return positive, None
        return positive & ~unknown, unknown

    def on(self, grid: Grid) -> np.ndarray:
        """Return (z, y, x) int64: ids of the nearest voxels, 0 where absent, -1 where unknown.

        Outside of the volume all is unknown. int64 ends at 2**63: ids from there on become others.
        """
        result = np.full(grid.shape, UNKNOWN_ID, np.int64)
        for where, values in regrid.nearest(self.level, grid):
            positive, unknown = self.meaning(values)
            ids = _ids_where(positive, values)
            if unknown is not None:
                ids[unknown] = UNKNOWN_ID
            result[where] = ids
        return result

    def read_ids(
        self, start: Vector, stop: Vector
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return ids of voxels start..stop, int64 and 0 where the class is not; and as `read`."""
        values = self.values(start, stop)
        positive, unknown = self.meaning(values)
        return _ids_where(positive, values), positive, unknown

    def ids(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the whole volume as ids, 0 where absent or unknown, and where it is known.

        The second is None where all is known. Raises UserError for values that are no ids, and as
        `check_whole`.
        """
        values = self.level.read((0, 0, 0), self.level.shape)
        unknown = self._unknown(values)
        nothing = values == self.encoding.absent
        self._look(values, int(np.count_nonzero(nothing)))
        if unknown is not None:
            nothing |= unknown
        if unknown is not None or self.encoding.absent:
            # where 0 is said to be positive there are no ids to keep
            values = ~nothing if self.encoding.present == 0 else np.where(nothing, 0, values)
        self.check_whole()
        native = values.astype(values.dtype.newbyteorder("="), copy=False)
        ids = regrid.as_ids(native, self.level.path)
        return ids, None if unknown is None else ~unknown

    def check_whole(self) -> None:
        """Compare what was read of the whole volume, once, with what its metadata count.

        Raises UserError as `check_counts`.
        """
        remark = check_counts(self.level, self.encoding, self._voxels, self._absent_voxels)
        if remark:
            self._met[remark] = None

    def remarks(self) -> list[str]:
        """Return a sentence for each kind of value that was taken for something unusual."""
        remarks = list(self._met)
        between = self._bytes[1:BRIGHTEST]
        is_mask_of_0_and_255 = self._bytes[BRIGHTEST] > between.sum()
        if is_mask_of_0_and_255 and np.count_nonzero(between) >= FEWEST_BETWEEN:
            remarks.append(
                "0 and 255 with others between them, as of a mask that was resampled, drawn with "
                "soft edges or stored as JPEG; all above 0 was taken for positive: write 0 and 1"
            )
        if self._may_be_mask and self._has_one and self._suspect is not None:
            remarks.append(
                f"{self._suspect} stands beside 0 and 1, and was taken for positive; if it means "
                'unknown, write annotation_type.encoding = {"absent": 0, "present": 1, '
                f'"unknown": {self._suspect}}} into its .zattrs'
            )
        elif self._unnamed is not None:
            remarks.append(
                f"{self._unnamed} is none of {sorted(self.encoding.named())}, which its metadata "
                "name, and was taken for positive, as all above 0 is in the challenge's score; if "
                "it means something else, correct the labels or annotation_type.encoding"
            )
        elif self._largest is not None:
            remarks.append(
                f"{self._largest}, the largest number of {self.level.array.dtype}, was taken for "
                "the id of an object; where it means that there is none, as in files of CREMI and "
                'Paintera, write annotation_type.encoding = {"absent": 0, "unknown": '
                f"{self._largest}}} into its .zattrs, or import with --unknown {self._largest}"
            )
        return remarks

    def _refuse_fractions(self, values: np.ndarray) -> None:
        """Raises UserError for probabilities, or a mask that was resampled without a threshold."""
        if values.dtype.kind != "f":
            return
        odd = values[(values > 0) & (values != np.rint(values))]
        if odd.size:
            raise UserError(
                f"{self.level.path}: labels of {values.dtype} with the value {odd[0]:g} for class "
                f"{self.name}; write labels as whole numbers: 0, and 1 or the ids of objects"
            )

    def _unknown(self, values: np.ndarray) -> np.ndarray | None:
        """Return where values are unknown; None where none is."""
        unknown = None
        for what, where in self._unknown_by_kind(values):
            if where.any():
                unknown = where if unknown is None else unknown | where
                self._met[f"{what} was taken for unknown"] = None
        if unknown is not None:
            self.unknown_voxels += int(np.count_nonzero(unknown))
        return unknown

    def _unknown_by_kind(self, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        encoding = self.encoding
        if encoding.unknown is not None:
            yield f"{encoding.unknown} (by its metadata)", values == encoding.unknown
        if encoding.absent and 0 not in (encoding.present, encoding.unknown):
            # a chunk that is not there reads as 0, which is no background here
            yield "0 (which its metadata do not name)", values == 0
        if values.dtype.kind in "if":
            yield "what is below 0", (values < 0) & ~np.isin(values, encoding.named())
        if values.dtype.kind == "f":
            yield "NaN", np.isnan(values)

    def _look(self, values: np.ndarray, absent: int) -> None:
        """Count what is absent, and note what may mean something else than it is taken for."""
        self._voxels += values.size
        self._absent_voxels += absent
        self._look_at_edges(values)
        id_of_unknown = self.encoding.id_of_unknown
        if id_of_unknown is not None and (values == id_of_unknown).any():
            self._met[
                f"{id_of_unknown} was taken for the id of an object: complement_counts in its "
                "metadata counts no unknown voxel"
            ] = None
        if values.dtype.kind == "f":
            values = values[~np.isnan(values)]  # unknown, and not to be compared
        self._look_for_unnamed(values)
        self._look_for_largest(values)
        if not self._may_be_mask or not values.size:
            return
        highest = values.max()
        if highest <= 1:
            self._has_one |= bool(highest == 1)
            return
        # numbers that are often written for unknown, less those that the metadata name
        dtype = self.level.array.dtype
        highest_of_type = np.iinfo(dtype).max if dtype.kind in "ui" else 255
        often_unknown = {255, int(highest_of_type)} - {*self.encoding.named(), id_of_unknown}
        self._may_be_mask = highest in often_unknown and self._suspect in (None, highest)
        if not self._may_be_mask:
            return
        lower = values[values != highest]
        self._suspect = int(highest)
        self._has_one |= bool((lower == 1).any())
        self._may_be_mask = bool((lower <= 1).all())

    def _look_for_unnamed(self, values: np.ndarray) -> None:
        """Find a value of a mask that its metadata do not name."""
        encoding = self.encoding
        says_present = encoding.is_said_to_be_mask and encoding.present is not None
        if not says_present or self._unnamed is not None or not values.size:
            return
        named = encoding.named()
        if values.max() <= 1 and {0, 1} <= {*named}:  # as nearly all are
            return
        unnamed = values[(values > 0) & ~np.isin(values, named)]
        if unnamed.size:
            self._unnamed = int(unnamed[0])

    def _look_for_largest(self, values: np.ndarray) -> None:
        """Find the number that programs with wide ids write where there is no object.

        Paintera writes it for transparent, CREMI for all that is no cleft.
        """
        if values.dtype.kind != "u" or values.dtype.itemsize < WIDE or not values.size:
            return
        largest = int(np.iinfo(values.dtype).max)
        if largest not in (*self.encoding.named(), self.encoding.id_of_unknown):
            self._largest = largest if values.max() == largest else self._largest

    def _look_at_edges(self, values: np.ndarray) -> None:
        """Count the values of what may be a mask of 0 and 255."""
        is_named = BRIGHTEST in self.encoding.named()
        if values.dtype != np.uint8 or is_named or self.encoding.is_said_to_be_ids:
            return
        if values.size and values.max() == BRIGHTEST:
            self._bytes += np.bincount(values.ravel(), minlength=len(self._bytes))


def _ids_where(positive: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the values of a label volume as int64 ids, 0 where it is not positive."""
    # NaN, which is unknown, is no whole number
    ids = np.where(positive, values, 0).astype(np.int64)
    if values.dtype.kind == "u":
        # those from 2**63 on have become negative, and the last one UNKNOWN_ID
        ids &= np.iinfo(np.int64).max
    # 0 may be said to be positive
    ids[positive & (ids == 0)] = 1
    return ids


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

"""Read label volumes as what is positive, absent or unknown, by what their metadata say of values.

What is neither absent nor unknown is positive: the ids of objects too. Negative numbers and NaN are
unknown whatever the metadata say. What may mean something else than it is taken for is remembered,
and said (`LabelReader.remarks`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.data.volumes import regrid
from common.data.volumes.annotation import check_counts, encoding_of
from common.data.volumes.box import Vector
from common.data.volumes.level import Grid, Level
from common.errors import UserError

UNKNOWN_ID = -1
"""Stands for unknown in `LabelReader.on`."""

SAMPLE_EDGE = 32
MOST_EDGES = 0.5
MOST_VALUES = 100
"""Voxels along an edge of what is looked at, part of neighbours that differ, number of values."""

BRIGHTEST = 255
FEWEST_BETWEEN = 8
"""Different values between 0 and 255 from which a mask of these two has soft edges."""

WIDE = 4
"""Bytes of an id from which nobody numbers objects up to the largest number."""

FEWEST_IDS = 3
GAP = 2
"""The largest other number, and times it, from which that of a narrow type is none of a series."""


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


class LabelReader:
    """A label volume, read as what is positive and what is unknown; remembers what it met."""

    def __init__(self, level: Level, name: str):
        """Read one level of the class `name`. Raises UserError for metadata that are wrong."""
        self.level = level
        self.name = name
        self.encoding = encoding_of(level, name)
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
        """The largest number of the type, which was met and is not named."""
        self._next_largest = 0
        """The largest of the other numbers of a narrow type."""
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
        elif self._largest is not None and self._is_apart(self._largest):
            remarks.append(
                f"{self._largest}, the largest number of {self.level.array.dtype}, was taken for "
                "the id of an object; where it means that there is none, as in files of CREMI and "
                'Paintera, or unknown, write annotation_type.encoding = {"absent": 0, "unknown": '
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
        often_unknown = {255, int(highest_of_type)}
        if not self.encoding.is_instance and self.encoding.present is None:
            often_unknown.add(2)  # or another class of a volume of several
        often_unknown -= {*self.encoding.named(), id_of_unknown}
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
        """Find the number that programs write where there is no object, or nobody knows.

        Paintera writes it for transparent, CREMI for all that is no cleft.
        """
        if values.dtype.kind != "u" or not values.size:
            return
        largest = int(np.iinfo(values.dtype).max)
        if largest in (*self.encoding.named(), self.encoding.id_of_unknown):
            return
        highest = int(values.max())
        if highest == largest:
            self._largest = largest
            # one more is 0 for the largest number alone
            highest = int((values + values.dtype.type(1)).max()) - 1
        self._next_largest = max(self._next_largest, highest)

    def _is_apart(self, largest: int) -> bool:
        """Return whether the largest number of the type continues no series of ids, and no mask."""
        if self.level.array.dtype.itemsize >= WIDE:
            return True
        return FEWEST_IDS <= self._next_largest < largest / GAP

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

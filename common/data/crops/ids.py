"""Number and store the objects of a class in a decoded crop, in a file of its own.

Annotations have ids of up to 64 bits. In a decoded crop objects are numbered in the order in which
they are met, so that their numbers fit into the smallest type and are exact in float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.data.volumes.box import cells, slices
from common.errors import UserError

UNKNOWN = 0
BACKGROUND = 1
FIRST = 2
"""What is stored of a voxel: unknown is 0, as of palette rows, since beyond a crop all is 0."""

MOST = 2**24 - FIRST
"""Objects that float32, in which labels are turned on a GPU, tells apart."""


def ids_file(name: str) -> str:
    """Return the name of the file with the ids of a class."""
    return f"ids_{name}.npy"


class IdWriter:
    """Numbers the objects of a class in a crop, block by block, and writes them."""

    def __init__(self, shape: tuple[int, ...], name: str):
        self.name = name
        self.stored = np.zeros(shape, np.uint32)
        self.number_of: dict[int, int] = {}
        """For each id of the annotation what is stored."""

    def write(
        self, start: np.ndarray, ids: np.ndarray, positive: np.ndarray, unknown: np.ndarray | None
    ) -> None:
        """Take the ids of a block, on the voxels that are stored.

        Args:
            start: its first voxel.
            ids: (z, y, x) integers.
            positive: where the class is; elsewhere ids mean nothing.
            unknown: where that is unknown; None for nowhere.
        """
        stored = np.full(ids.shape, BACKGROUND, np.uint32)
        different, index = np.unique(ids[positive], return_inverse=True)
        numbers = []
        for object_id in different.tolist():
            number = self.number_of.setdefault(object_id, len(self.number_of) + FIRST)
            numbers.append(number)
        stored[positive] = np.array(numbers, np.uint32)[index]
        if unknown is not None:
            stored[unknown] = UNKNOWN
        self.stored[slices(start, start + ids.shape)] = stored

    @property
    def is_like_mask(self) -> bool:
        """Whether the only id is 1."""
        return set(self.number_of) <= {1}

    def finish(self, folder: Path, crop: str) -> None:
        """Write the file. Raises UserError for more objects than can be told apart."""
        objects = len(self.number_of)
        if objects > MOST:
            raise UserError(
                f"{crop}: {objects:,} objects of class {self.name}, and at most {MOST:,} can be "
                "told apart; are these ids?"
            )
        dtype = np.min_scalar_type(objects + FIRST)
        np.save(folder / ids_file(self.name), self.stored.astype(dtype))


def reduced(ids: np.ndarray, positive: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return ids reduced by blocks of `factor` voxels: the most frequent one of an object.

    Of equally frequent ones the lowest. Both arguments are (z, y, x); `positive` says where an id
    is of an object. A block without any is 0.
    """
    if (factor == 1).all():
        return ids
    objects = np.where(positive, ids, 0)
    # equal ids stand side by side: how many of them up to each
    candidates = np.sort(cells(objects, factor))
    place = np.arange(candidates.shape[1])
    before_first = candidates[:, :1] - 1
    is_new = np.diff(candidates, axis=1, prepend=before_first) != 0
    first = np.maximum.accumulate(np.where(is_new, place, 0), axis=1)
    length = np.where(candidates == 0, 0, place - first + 1)
    most = length.argmax(axis=1)
    most_frequent = np.take_along_axis(candidates, most[:, None], axis=1)
    return most_frequent.reshape(np.array(ids.shape) // factor)

"""Hausdorff distances between the objects of two volumes, measured in the boxes of the objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from common.score.hausdorff import farthest, surface_points


@dataclass(frozen=True)
class Labelled:
    """A volume of objects 1..n."""

    volume: np.ndarray
    boxes: list[tuple[slice, ...]]
    """Bounding boxes of the objects 1, 2, ..."""

    @classmethod
    def of(cls, volume: np.ndarray) -> Labelled:
        """Find the bounding boxes of the objects of a volume."""
        return cls(volume, ndimage.find_objects(volume))

    def box(self, number: int) -> tuple[slice, ...]:
        """Return the bounding box of an object."""
        return self.boxes[number - 1]

    def corner(self, number: int) -> list[int]:
        """Return the index z, y, x of the first voxel of an object's box."""
        return [side.start for side in self.box(number)]

    def mask(self, number: int) -> np.ndarray:
        """Return the bool mask of an object in its box."""
        return self.volume[self.box(number)] == number

    def surface(self, number: int, sizes: np.ndarray) -> np.ndarray:
        """Return (n, 3) positions in nm of the voxels on an object's surface."""
        return surface_points(self.mask(number), sizes, self.corner(number))


def capped_distances(
    truth: np.ndarray,
    prediction: np.ndarray,
    parts: dict[int, list[int]],
    *,
    sizes: np.ndarray,
    cap: float,
) -> list[float]:
    """Return the Hausdorff distance (nm) of each truth object to what was found of it.

    Args:
        truth: objects 1..n.
        prediction: objects 1..m on the same voxels.
        parts: for each truth object the predicted objects that it was found as.
        sizes: (3,) voxel size in nm.
        cap: nm; larger distances become the cap.
    """
    truth_objects = Labelled.of(truth)
    predicted_objects = Labelled.of(prediction)
    distances = []
    for number, numbers in parts.items():
        distance = _distance(
            truth_objects, number, predicted_objects, numbers, sizes=sizes, cap=cap
        )
        distances.append(min(cap, distance))
    return distances


def _distance(
    truth: Labelled,
    number: int,
    predicted: Labelled,
    parts: Sequence[int],
    *,
    sizes: np.ndarray,
    cap: float,
) -> float:
    """Return the distance (nm) of a truth object to predicted parts; not exact beyond the cap."""
    box = truth.box(number)
    distance = max(_beyond(predicted.box(part), box, sizes) for part in parts)
    if distance > cap:  # as of most parts that only have the object's number
        return distance
    # each object in its own box: one around all of them could be the whole volume
    missed = truth.mask(number)
    for part in parts:
        missed &= predicted.volume[box] != part
    points = np.concatenate([predicted.surface(part, sizes) for part in parts])
    distance = farthest(missed, points, sizes, corner=truth.corner(number), cap=cap)
    points = truth.surface(number, sizes)
    for part in parts:
        surplus = predicted.mask(part)
        surplus &= truth.volume[predicted.box(part)] != number
        reached = farthest(surplus, points, sizes, corner=predicted.corner(part), cap=cap)
        distance = max(distance, reached)
    return distance


def _beyond(a: tuple[slice, ...], b: tuple[slice, ...], sizes: np.ndarray) -> float:
    """Return how far (nm) box a reaches beyond box b: a voxel of a is that far from any in b."""
    reaches = [0.0]
    for outer, inner, size in zip(a, b, sizes.tolist(), strict=True):
        reaches.append((inner.start - outer.start) * size)
        reaches.append((outer.stop - inner.stop) * size)
    return max(reaches)

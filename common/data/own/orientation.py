"""Tell whether imported labels lie mirrored or turned in their raw, by what they explain of it.

Programs differ in where rows begin: what IMOD writes as TIFF has those of its MRC in reverse. Such
labels have the shape of the raw, and only its voxels show it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from common.data.volumes.box import Box
from common.data.volumes.level import Level
from common.data.volumes.placement import is_same_size
from common.data.volumes.sources.excerpt import Excerpt
from common.talk import note_once

PLANES = 4
EDGE = 256
"""So many planes along z are looked at, in each of which four squares of so many voxels."""

LEAST = 500
"""Voxels of either kind below which nothing is said."""

EXPLAINED = 0.03
"""Part of the variance of raw that labels explain at least where they are."""
# of the classes of the two real volumes 0.011 to 0.45, and mirrored 0.000 to 0.016

BETTER = 4
"""Times as much as where they lie, from which they may be meant to lie otherwise."""


def note_turned(label: Level, excerpt: Excerpt, raw: Level) -> None:
    """Note labels that fit their raw far better otherwise than they lie. Arguments as `turned`."""
    way = turned(label, excerpt, raw)
    if way:
        note_once(
            f"{label.path}: these labels fit the raw far better {way}; programs differ in where "
            "rows begin, as IMOD's TIFF and MRC do: look at the picture, and write them again in "
            "the order of the raw if they do not lie on it"
        )


def turned(label: Level, excerpt: Excerpt, raw: Level) -> str:
    """Return how labels fit their raw far better than they lie, such as "mirrored along y"; or "".

    A few squares of both are read, which lie alike from all sides, so that no further ones are.

    Args:
        label: the labels, all of the volume that they are in.
        excerpt: what their values mean.
        raw: the raw; on other voxels nothing is looked at.
    """
    first = np.rint((label.translation - raw.translation) / raw.scale).astype(int)
    is_beyond = (first < 0).any() or (first + label.shape > raw.shape).any()
    is_thin = label.shape[1:].min() < 2
    if is_beyond or is_thin or not is_same_size(label.scale, raw.scale):
        return ""
    squares = list(_squares(label.shape))
    labels = _put_together([excerpt.taken(label.read(*box)) for box in squares])
    values = _put_together([raw.read(box.start + first, box.stop + first) for box in squares])
    unknown = excerpt.encoding.get("unknown")
    known = labels >= 0 if unknown is None else (labels >= 0) & (labels != unknown)
    explained = {}
    for words, moved in _ways(
        values.astype(np.float32), exchanged=label.shape[1] == label.shape[2]
    ):
        explained[words] = _explained(moved[known], labels[known] > 0)
    best = max(explained, key=lambda words: explained[words])
    if explained[best] < max(EXPLAINED, BETTER * explained[""]):
        return ""
    return best


def _squares(shape: np.ndarray) -> Iterator[Box]:
    """Iterate over the squares: of each plane along z, then y, then x; none overlaps another."""
    planes = int(min(PLANES, shape[0]))
    height, width = np.minimum(EDGE, shape[1:] // 2).tolist()
    for number in range(planes):
        # the same from both ends
        z = (2 * number + 1) * shape[0] // (2 * planes)
        if 2 * number + 1 > planes:
            z = shape[0] - 1 - (2 * (planes - 1 - number) + 1) * shape[0] // (2 * planes)
        for y, x in itertools.product(_starts(shape[1], height), _starts(shape[2], width)):
            start = np.array([z, y, x])
            yield Box(start, start + np.array([1, height, width]))


def _starts(length: int, edge: int) -> tuple[int, int]:
    """Return where two pieces of a length begin, which lie alike from both ends."""
    first = (length // 2 - edge) // 2
    return first, length - edge - first


def _put_together(squares: list[np.ndarray]) -> np.ndarray:
    """Return squares side by side as one volume."""
    rows = [np.concatenate(squares[n : n + 2], axis=2) for n in range(0, len(squares), 2)]
    planes = [np.concatenate(rows[n : n + 2], axis=1) for n in range(0, len(rows), 2)]
    return np.concatenate(planes, axis=0)


def _ways(values: np.ndarray, *, exchanged: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Iterate over a volume as it is, mirrored, and with y and x exchanged; each with its words."""
    for is_exchanged in (False, True) if exchanged else (False,):
        whole = values.swapaxes(1, 2) if is_exchanged else values
        for number in range(4):
            for axes in itertools.combinations(range(3), number):
                words = ["with y and x exchanged"] if is_exchanged else []
                if axes:
                    words.append(f"mirrored along {', '.join('zyx'[axis] for axis in axes)}")
                yield " and ".join(words), np.flip(whole, axes)


def _explained(values: np.ndarray, positive: np.ndarray) -> float:
    """Return which part of the variance of raw lies between labelled voxels and others."""
    count = int(np.count_nonzero(positive))
    if min(count, len(values) - count) < LEAST or not values.size:
        return 0.0
    variance = float(values.var())
    apart = float(values[positive].mean() - values[~positive].mean())
    share = count / len(values)
    return share * (1 - share) * apart**2 / variance if variance > 0 else 0.0

"""Choose the boxes of imported labels that become crops: named ones, or blocks with gaps between.

Boxes are voxels of the labels, z, y, x.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from common.data.volumes.box import Box, bounds_of
from common.data.volumes.level import Level
from common.errors import UserError
from common.talk import voxels

GAP = 0.1
"""Of a block: how much of its length lies between it and the next, unless a gap is given.

Voxels next to each other show the same objects, so that a block that validates beside one that
trains looks better than new tissue will.
"""

MOST_BLOCKS = 10_000
"""Of a call; each is a crop."""


def whole(level: Level) -> Box:
    """Return the box of all voxels of a volume."""
    return Box(np.zeros(3, int), level.shape)


def boxes(level: Level, crops: Sequence[str], blocks: str, gap: int | None) -> list[Box]:
    """Return the boxes of labels that become crops.

    Args:
        level: the labels.
        crops: what --crop names, "z0:z1,y0:y1,x0:x1"; all of the labels unless given.
        blocks: into how many blocks each of them is cut: "4" along its longest axis, "1,2,2" along
            z, y, x; "" leaves it whole.
        gap: voxels between blocks; a tenth of a block unless given.

    Raises:
        UserError: for no box, and for more blocks than there is room for.
    """
    named = [box_of(text, level) for text in crops] or [whole(level)]
    if not blocks:
        if gap is not None:
            raise UserError(f"--gap {gap}: between blocks; write --blocks 4, too")
        return named
    cut: list[Box] = []
    for box in named:
        cut += _blocks(box, _counts(blocks, box, level), gap)
    return cut


def box_of(text: str, level: Level) -> Box:
    """Return the voxels that --crop names. Raises UserError for none."""
    bounds = bounds_of(text, whole(level), int)
    if not bounds or (bounds[0] >= np.minimum(bounds[1], level.shape)).any():
        raise UserError(
            f"--crop {text}: no box within {voxels(level.grid.shape)} voxels; write "
            "z0:z1,y0:y1,x0:x1 in voxels of the labels, such as 0:100,0:200,:"
        )
    start, stop = bounds
    return Box(start, np.minimum(stop, level.shape).astype(int))


def _counts(blocks: str, box: Box, level: Level) -> list[int]:
    """Return how many blocks there are along z, y, x. Raises UserError for what is no number."""
    parts = blocks.split(",")
    counts = [int(part) if part.strip().isdecimal() else 0 for part in parts]
    number = math.prod(counts)
    if len(counts) not in (1, 3) or not 2 <= number <= MOST_BLOCKS:
        raise UserError(
            f"--blocks {blocks}; write into how many blocks the labels are cut, from 2 to "
            f"{MOST_BLOCKS}, or how many along z, y, x: 1,2,2"
        )
    if len(counts) == 3:
        return counts
    longest = int(np.argmax(box.shape * level.scale))
    return [counts[0] if axis == longest else 1 for axis in range(3)]


def _blocks(box: Box, counts: Sequence[int], gap: int | None) -> list[Box]:
    """Return a box cut into so many blocks along each axis."""
    ranges = []
    for axis, count in enumerate(counts):
        along = _ranges(int(box.shape[axis]), count, gap)
        if along is None:
            raise UserError(
                f"--blocks {','.join(map(str, counts))}: no room for {count} blocks with gaps "
                f"between in {voxels(box.shape.tolist())} voxels; write fewer, or a smaller --gap"
            )
        ranges.append(along)
    cut = []
    for corner in itertools.product(*ranges):
        start, stop = np.array(corner).T
        cut.append(Box(box.start + start, box.start + stop))
    return cut


def _ranges(length: int, count: int, gap: int | None) -> list[tuple[int, int]] | None:
    """Return the first voxel and the last + 1 of each block along an axis; None without room.

    The blocks have one length, but for a voxel.
    """
    if gap is None:
        gap = max(1, round(GAP * length / count))
    in_blocks = length - gap * (count - 1)
    if in_blocks < count:
        return None
    ranges = []
    for number in range(count):
        first = in_blocks * number // count
        last = in_blocks * (number + 1) // count
        ranges.append((first + gap * number, last + gap * number))
    return ranges

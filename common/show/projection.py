"""A volume of labels seen along an axis: what is met first, or how thick it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.data.annotation import LabelReader
from common.data.level import Level
from common.show import figures

KINDS = ("max", "sum")
"""The first object along the axis in its colour, and the length of the class along it."""

MOST_PIXELS = 1500
"""Along a side of the picture: of a larger volume a coarser level is taken."""

FEWEST_PIXELS = 300
"""Along the longer side: a smaller picture is enlarged."""

SLAB_BYTES = 2**28
"""Of planes that are read at once, at most; one plane at least."""

AXES = "zyx"


def projection(
    levels: Sequence[Level], name: str, *, is_mask: bool, kind: str = "max", axis: int = 0
) -> np.ndarray:
    """A picture (y, x, 3) uint8 of a class, with a scale bar.

    Args:
        levels: of the class, the finest first.
        name: of the class, whose colour it has.
        is_mask: whether all voxels are one object.
        kind: "max" or "sum".
        axis: 0 looks along z, 1 along y, 2 along x.
    """
    sides = [side for side in range(3) if side != axis]
    fitting = [level for level in levels if level.shape[sides].max() <= MOST_PIXELS]
    level = fitting[0] if fitting else levels[-1]
    reader = LabelReader(level, name)
    first, length = _along(level, reader, axis)
    if kind == "sum":
        most = max(float(length.max()), 1.0)
        # black is nothing, also where one voxel is all there is
        grey = np.where(length > 0, 40 + 215 * length / most, 0).astype(np.uint8)
        image = np.repeat(grey[..., None], 3, axis=2)
        text = f"{name}, length along {AXES[axis]}, white: {most * level.scale[axis]:.0f} nm"
    else:
        [colour] = figures.class_colours([name])
        ids = np.minimum(first, 1) if is_mask else first
        image = figures.object_colours(ids, colour) if not is_mask else ids[..., None] * colour
        image = np.where(ids[..., None] > 0, image, 0).astype(np.uint8)
        text = f"{name}, along {AXES[axis]}"
    square, nm_per_pixel = _square(image, level.scale[sides])
    times = max(1, FEWEST_PIXELS // max(square.shape[:2]))
    pictured = figures.scale_bar(figures.enlarged(square, times), nm_per_pixel / times)
    return figures.above([figures.text_line([text], max(pictured.shape[1], 320)), pictured])


def _along(level: Level, reader: LabelReader, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The id that is met first along an axis, and how many voxels of the class there are."""
    sides = tuple(np.delete(level.shape, axis).tolist())
    first = np.zeros(sides, np.int64)
    length = np.zeros(sides, np.int64)
    plane = first.size * level.array.dtype.itemsize
    slab = max(1, min(int(level.array.chunks[axis]), SLAB_BYTES // plane))
    for begin in range(0, int(level.shape[axis]), slab):
        start = np.zeros(3, int)
        stop = level.shape.copy()
        start[axis] = begin
        stop[axis] = min(begin + slab, stop[axis])
        values = level.read(start, stop)
        positive, _ = reader.meaning(values)
        ids = np.moveaxis(np.where(positive, values, 0), axis, 0)
        there = ids != 0
        met = np.take_along_axis(ids, there.argmax(axis=0)[None], axis=0)[0]
        first = np.where(first == 0, met, first)
        length += there.sum(axis=0)
    return first, length


def _square(image: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture with pixels as high as wide, and their nm."""
    smallest = float(scale.min())
    for axis, length in enumerate(scale):
        count = round(image.shape[axis] * float(length) / smallest)
        nearest = (np.arange(count) * image.shape[axis] // count).astype(int)
        image = image.take(nearest, axis=axis)
    return image, smallest

"""Draw a volume of labels along an axis: the object that is met first, or the thickness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.data.volumes.label_reader import LabelReader
from common.data.volumes.level import Level
from common.show import figures
from common.show.figures import Picture

MOST_PIXELS = 1500
"""Longest side of the picture in pixels; of a larger volume a coarser level is drawn."""

FEWEST_PIXELS = 300
"""Least longer side in pixels; a smaller picture is enlarged."""

NARROWEST = 320
"""Least width of the picture in pixels, so that the title can be read."""

SLAB_BYTES = 2**28
"""Most bytes of planes that are read at once; one plane is read in any case."""

AXES = "zyx"


def projection(
    levels: Sequence[Level], name: str, *, is_mask: bool, kind: str = "max", axis: int = 0
) -> Picture:
    """Draw a class, with title and scale bar.

    Args:
        levels: of the class, the finest first.
        name: of the class, which sets the colour.
        is_mask: whether all voxels are one object.
        kind: "max" for the object that is met first, "sum" for the length along the axis.
        axis: 0 looks along z, 1 along y, 2 along x.
    """
    sides = [side for side in range(3) if side != axis]
    fitting = [level for level in levels if level.shape[sides].max() <= MOST_PIXELS]
    level = fitting[0] if fitting else levels[-1]
    reader = LabelReader(level, name)
    first, length = _along(level, reader, axis)
    if kind == "sum":
        most = max(float(length.max()), 1.0)
        shades = 40 + 215 * length / most  # not black where one voxel is all there is
        grey = np.where(length > 0, shades, 0).astype(np.uint8)
        image = np.repeat(grey[..., None], 3, axis=2)
        white_nm = most * level.scale[axis]
        text = f"{name}, length along {AXES[axis]}, white: {white_nm:.0f} nm"
    else:
        [colour] = figures.class_colours([name])
        colours = colour if is_mask else figures.object_colours(first, colour)
        image = np.where(first[..., None] > 0, colours, 0).astype(np.uint8)
        text = f"{name}, along {AXES[axis]}"
    square, nm_per_pixel = _square(image, level.scale[sides])
    times = max(1, FEWEST_PIXELS // max(square.shape[:2]))
    enlarged = figures.enlarged(square, times)
    pictured = figures.scale_bar(enlarged, nm_per_pixel / times)
    title = figures.text_line([text], max(pictured.shape[1], NARROWEST))
    return figures.above([title, pictured])


def _along(level: Level, reader: LabelReader, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each line along an axis the first id, and the number of voxels of the class."""
    sides = tuple(np.delete(level.shape, axis).tolist())
    first = np.zeros(sides, np.int64)
    length = np.zeros(sides, np.int64)
    bytes_of_plane = first.size * level.array.dtype.itemsize
    planes_of_chunk = int(level.array.chunks[axis])
    slab = max(1, min(planes_of_chunk, SLAB_BYTES // bytes_of_plane))
    for begin in range(0, int(level.shape[axis]), slab):
        start = np.zeros(3, int)
        stop = level.shape.copy()
        start[axis] = begin
        stop[axis] = min(begin + slab, stop[axis])
        values = level.read(start, stop)
        positive, _ = reader.meaning(values)
        ids = np.moveaxis(np.where(positive, values, 0), axis, 0)
        is_object = ids != 0
        depth = is_object.argmax(axis=0)
        [met] = np.take_along_axis(ids, depth[None], axis=0)
        first = np.where(first == 0, met, first)
        length += is_object.sum(axis=0)
    return first, length


def _square(image: Picture, scale: np.ndarray) -> tuple[Picture, float]:
    """Return the picture with square pixels, and the size of a pixel in nm."""
    smallest = float(scale.min())
    for axis, length in enumerate(scale):
        pixels = image.shape[axis]
        count = round(pixels * float(length) / smallest)
        nearest = np.arange(count) * pixels // count
        image = image.take(nearest, axis=axis)
    return image, smallest

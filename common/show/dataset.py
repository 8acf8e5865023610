"""Draw a dataset: raw and crops in three planes, with labels in colour over the raw.

It shows at a glance whether axes, voxel size, place and contrast are what they should be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.volumes import layout, ngff
from common.data.volumes.annotation import encoding_of
from common.data.volumes.level import Grid, Level, Voxels, chunk_ranges
from common.show import figures, montage
from common.show.figures import Picture
from common.talk import nm, voxels

PANEL = 320
"""Longest side of a panel in pixels."""

MOST_CROPS = 4
"""Most rows of crops; how many more there are is written below."""

MOST_BYTES = 4e9
"""Most bytes decoded for a panel: a plane across the pages of a linked file needs all of it."""

DEPTHS = (0.5, 0.3, 0.7)
"""Depths of a crop, as fractions; the first one where labels are seen is drawn."""

OPACITY = 0.45
"""Opacity of labels over the raw."""

PLANES = {"y, x": 0, "z, x": 1, "z, y": 2}
"""The planes, and the axis across each."""

BOX_RGB = (255, 200, 0)
"""Colour of the boxes of crops in the raw."""


@dataclass(frozen=True)
class Crop:
    """An annotated box of the dataset."""

    name: str
    labels: Mapping[str, list[Level]]

    @property
    def grid(self) -> Grid:
        """Where its finest voxels are."""
        return next(iter(self.labels.values()))[0].grid


def draw(store: Path) -> Path:
    """Write the picture of a dataset beside its store; return its path. Raises FileError."""
    raw = ngff.open_levels(store / layout.RAW)
    crops = _crops(store)
    finest = raw[0]
    width = 3 * (PANEL + 6) - 6
    size = f"{voxels(finest.grid.shape)} voxels of {nm(finest.scale)} nm"
    rows = [
        figures.text_line([f"{store.stem}   {size}"], width, 18),
        _head(width, "raw"),
        _raw_row(raw, [crop.grid for crop in crops]),
    ]
    for crop in crops[:MOST_CROPS]:
        rows += [_head(width, crop.name), _crop_row(raw, crop)]
    if len(crops) > MOST_CROPS:
        more = f"... and {len(crops) - MOST_CROPS} more crops"
        rows.append(figures.text_line([more], width))
    rows.append(_legend(crops, width))
    path = store.with_suffix(".png")
    figures.write_png(path, figures.above(rows, background=figures.PAPER))
    return path


def _crops(store: Path) -> list[Crop]:
    """Return the crops of a store in the order of their numbers."""
    crops = []
    for folder in sorted((store / layout.LABELS).glob("crop*"), key=_number):
        labels = {path.name: ngff.open_levels(path) for path in sorted(folder.iterdir())}
        if labels:
            crops.append(Crop(folder.name, labels))
    return crops


def _number(folder: Path) -> tuple[int, str]:
    digits = folder.name.removeprefix("crop")
    return (int(digits) if digits.isdecimal() else 0, folder.name)


def _head(width: int, name: str) -> Picture:
    return figures.text_line([f"{name}, plane {plane}" for plane in PLANES], width)


def _legend(crops: Sequence[Crop], width: int) -> Picture:
    """Draw the legend of all classes, and of unknown if metadata name a value for it."""
    names: dict[str, None] = {}
    has_unknown = False
    for crop in crops:
        names |= dict.fromkeys(crop.labels)
        for name, levels in crop.labels.items():
            has_unknown |= encoding_of(levels[0], name).unknown is not None
    colours = [*figures.class_colours(list(names))]
    words = [*names]
    if has_unknown:
        colours.append(figures.UNKNOWN_RGB)
        words.append("unknown")
    return figures.legend(words, colours, width)


# Planes


def _plane(box: Grid, across: int, depth: float, finest: np.ndarray) -> Grid:
    """Return a grid of square pixels, one voxel thick, at a fraction of the depth of a box.

    across: the axis along which it is thin. finest: (3,) nm, the least size of a pixel.
    """
    lower, upper = box.box()
    extent = upper - lower
    along = [axis for axis in range(3) if axis != across]
    smallest = finest[along].max()
    pixel = max(smallest, extent[along].max() / PANEL)
    voxel = np.full(3, pixel)
    voxel[across] = min(finest[across], extent[across])
    shape = np.maximum(1, np.rint(extent / voxel)).astype(int)
    origin = lower + voxel / 2
    # on the centre of a voxel: between two of them labels are on one side or the other
    layers = round(extent[across] / voxel[across])
    last = max(0, layers - 1)
    layer = min(int(depth * layers), last)
    origin[across] += layer * voxel[across]
    shape[across] = 1
    return Grid(origin, voxel, tuple(shape.tolist()))


def _flat(volume: np.ndarray, across: int) -> np.ndarray:
    """Return the plane of a volume that is one voxel thick."""
    return volume.take(0, axis=across + volume.ndim - 3)


def _grey(raw: Sequence[Level], grid: Grid, across: int) -> Picture | None:
    """Draw the raw in a plane; return None if more than MOST_BYTES had to be read."""
    level = ngff.pick_level(raw, grid.scale)
    if _bytes_to_decode(level, grid) > MOST_BYTES:
        return None
    plane = _flat(montage.values("raw", [level], [grid]), across)
    return figures.grey(montage.stretched(plane))


def _bytes_to_decode(level: Level, grid: Grid) -> float:
    """Return the bytes of the chunks, or rows, of a level that a plane lies in."""
    lower, upper = level.grid.in_voxels(np.array(grid.box()))
    start = np.clip(lower, 0, level.shape - 1).astype(int)
    stop = np.clip(upper + 1, start + 1, level.shape).astype(int)
    chunks = list(level.array.chunks)
    if isinstance(level.array, Voxels) and level.array.in_rows:
        chunks = [1, 1, int(level.shape[2])]
    counts = [len(along) for along in chunk_ranges(start, stop, chunks)]
    bytes_of_chunk = math.prod(chunks) * level.array.dtype.itemsize
    return float(math.prod(counts)) * bytes_of_chunk


# Rows


def _raw_row(raw: Sequence[Level], crops: Sequence[Grid]) -> Picture:
    """Draw the raw in three planes through its middle, with the boxes of crops."""
    finest = raw[0]
    panels = []
    for across in PLANES.values():
        grid = _plane(finest.grid, across, 0.5, finest.scale)
        image = _grey(raw, grid, across)
        if image is None:
            height, width = _flat(np.zeros(grid.shape), across).shape
            image = np.full((height, max(width, 200), 3), figures.PAPER, np.uint8)
            line = figures.text_line(["not read: the file is too large"], image.shape[1], 12)
            image[: min(height, len(line))] = line[:height]
            panels.append(image)
            continue
        for crop in crops:
            _frame(image, grid, crop, across)
        panels.append(_finished(image, grid))
    return _in_columns(panels)


def _frame(image: Picture, grid: Grid, crop: Grid, across: int) -> None:
    """Draw the box of a crop into a plane, seen along the axis `across`."""
    lower, upper = grid.in_voxels(np.array(crop.box()))
    along = [axis for axis in range(3) if axis != across]
    spans = []
    for axis, length in zip(along, image.shape, strict=False):
        first = round(lower[axis])
        last = round(upper[axis]) - 1
        spans.append(np.clip([first, last], 0, length - 1).tolist())
    (top, bottom), (left, right) = spans
    image[[top, bottom], left : right + 1] = BOX_RGB
    image[top : bottom + 1, [left, right]] = BOX_RGB


def _crop_row(raw: Sequence[Level], crop: Crop) -> Picture:
    """Draw a crop in three planes, labels over the raw."""
    panels = []
    finest = np.minimum(crop.grid.scale, raw[0].scale)
    for across in PLANES.values():
        grid, labels = _seen(crop, across, finest)
        image = _grey(raw, grid, across)
        if image is None:
            some_class = next(iter(labels.values()))
            image = np.zeros((*some_class.shape, 3), np.uint8)
        panels.append(_finished(_painted(image, labels), grid))
    return _in_columns(panels)


def _seen(crop: Crop, across: int, finest: np.ndarray) -> tuple[Grid, dict[str, np.ndarray]]:
    """Return the first plane in which labels are seen, else the middle one, with ids by class."""
    planes = []
    for depth in DEPTHS:
        grid = _plane(crop.grid, across, depth, finest)
        labels = {}
        for name, levels in crop.labels.items():
            labels[name] = _flat(montage.truth_values(name, levels, [grid]), across)
        planes.append((grid, labels))
        if any((ids > 0).any() for ids in labels.values()):
            return planes[-1]
    return planes[0]


def _painted(image: Picture, labels: Mapping[str, np.ndarray]) -> Picture:
    """Paint labels over the raw: pale, with a line around each object."""
    result = image.astype(np.float32)
    names = list(labels)
    order = figures.largest_first([ids > 0 for ids in labels.values()])
    unknown = montage.any_unknown(labels.values())
    result[unknown] += OPACITY * (figures.UNKNOWN_RGB - result[unknown])
    for number in order:
        name = names[number]
        ids = labels[name]
        inside = ids > 0
        line = inside & _edges(ids)
        colour = figures.class_colours([name])[0]
        if ids.max(initial=0) > 1:
            colours = figures.object_colours(ids, colour).astype(np.float32)
        else:
            colours = np.broadcast_to(colour.astype(np.float32), (*ids.shape, 3))
        result[inside] += OPACITY * (colours[inside] - result[inside])
        result[line] = colours[line]
    return np.rint(result).astype(np.uint8)


def _edges(ids: np.ndarray) -> np.ndarray:
    """Return where a pixel differs from the one before it along either axis."""
    edges = np.zeros(ids.shape, bool)
    edges[1:] = np.diff(ids, axis=0) != 0
    edges[:, 1:] |= np.diff(ids, axis=1) != 0
    return edges


def _finished(image: Picture, grid: Grid) -> Picture:
    """Enlarge a panel to about PANEL pixels, and add a scale bar."""
    times = max(1, PANEL // max(image.shape[:2]))
    side = float(np.median(grid.scale))  # two of the three are the side of a pixel
    return figures.scale_bar(figures.enlarged(image, times), side / times)


def _in_columns(panels: Sequence[Picture]) -> Picture:
    """Put panels side by side, each in the middle of a column."""
    columns = []
    for panel in panels:
        margin = max(0, PANEL - panel.shape[1])
        left = margin // 2
        width = ((0, 0), (left, margin - left), (0, 0))
        columns.append(np.pad(panel, width, constant_values=255))
    return figures.beside(columns, background=figures.PAPER)

"""Draw a box: a row for each of some z slices, a column for each kind of volume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.config.settings import TrainConfig
from common.data.splits.regions import Region
from common.data.volumes import ngff, regrid
from common.data.volumes.box import Box
from common.data.volumes.label_reader import UNKNOWN_ID, LabelReader
from common.data.volumes.level import Grid, Level
from common.show import figures
from common.show.figures import Picture
from common.show.layers import LABELS, Layers, find_layers, predicted_by, probability_of
from common.talk import Say

PANEL = 512
"""Longest side of a panel in pixels; a smaller crop is enlarged by a whole number."""

ENLARGED = 360
"""Longest side that an enlarged panel should have, in pixels."""

NARROWEST = 640
"""Least width of a picture in pixels, so that title and heads of columns can be read."""

DEPTHS = (0.25, 0.5, 0.75)
"""Depths of the shown z slices, as fractions of the depth of a crop."""

CONTRAST = (0.5, 99.5)
"""Percentiles of the raw in a picture that become black and white."""

SHOWN = 0.5
"""Probability above which a class is in the picture's legend."""

EMPTY = {"truth": "nothing", "predictions": f"nothing above {SHOWN}", "processed": "nothing"}
"""Words above a black column, by its kind."""

STRIPES = 5
"""Most objects of a class whose colours are in the legend."""

WHITE = 255

Volumes = dict[str, np.ndarray]
"""For each class (slices, y, x) values."""


def montage(region: Region, layers: Layers, depths: Sequence[float] = DEPTHS) -> Picture:
    """Draw a box: a row for each z slice, a column for each kind.

    Classes are painted over each other, the largest first; each object has a colour. Only these
    slices are read.
    """
    grids = slice_grids(region, layers, depths)
    kinds = [kind for kind, classes in layers.items() if classes]
    classes = {kind: _volumes(kind, layers, grids) for kind in kinds if kind != "raw"}
    order = _painting_order(classes)
    columns = []
    if layers.get("raw"):
        raw = values("raw", layers["raw"][""], grids)
        columns.append([figures.grey(plane) for plane in stretched(raw)])
    for volumes in classes.values():
        painted = {name: volumes[name] for name in order if name in volumes}
        columns.append(_in_colour(painted, any_unknown(volumes.values())))
    picture = _panels(columns, grids[0])
    heads = [_head(kind, classes) for kind in kinds]
    headed = np.concatenate([figures.text_line(heads, picture.shape[1]), picture])
    width = max(picture.shape[1], NARROWEST)
    names = [name for name in _names(classes) if name in order]
    checkpoint = predicted_by(layers.get("predictions", {}))
    depths_nm = ", ".join(f"{grid.origin[0]:g}" for grid in grids)
    title = [
        figures.text_line([f"{region}   {checkpoint}"], width, 18),
        figures.text_line([f"z {depths_nm} nm"], width, 13),
    ]
    legend = _legend(names, layers, classes, width)
    return np.concatenate([*title, legend, _widened(headed, width)])


def write_crops(
    path: Path,
    config: TrainConfig,
    boxes: Sequence[Region],
    classes: Sequence[str] = (),
    *,
    say: Say = print,
) -> None:
    """Write a PNG with the montages of some boxes below each other. Raises FileError.

    Args:
        path: the file.
        config: settings of the experiment.
        boxes: the boxes, at least one.
        classes: those to show; all of the experiment unless given.
        say: takes a line about volumes that are missing.
    """
    rows = [montage(box, find_layers(config, box, classes, say=say)) for box in boxes]
    figures.write_png(path, figures.above(rows, background=WHITE))


def _volumes(kind: str, layers: Layers, grids: Sequence[Grid]) -> Volumes:
    """Read the slices of all classes of a kind that is not raw."""
    volumes: Volumes = {}
    for name, levels in layers[kind].items():
        if kind == "truth":
            volumes[name] = truth_values(name, levels, grids)
        else:
            volumes[name] = values(kind, levels, grids)
    return volumes


def _widened(picture: Picture, width: int) -> Picture:
    """Widen a picture by white on its right."""
    margin = width - picture.shape[1]
    return np.pad(picture, ((0, 0), (0, margin), (0, 0)), constant_values=WHITE)


def _head(kind: str, classes: Mapping[str, Volumes]) -> str:
    """Return the head of a column: the kind, and whether nothing is seen in it."""
    if kind not in classes:
        return kind
    volumes = classes[kind].values()
    if any((volume > SHOWN).any() for volume in volumes):
        return kind
    return f"{kind}: {EMPTY[kind]} in these slices"


def slice_grids(region: Region, layers: Layers, depths: Sequence[float]) -> list[Grid]:
    """Return grids of one voxel in depth and square pixels, at fractions of the depth of a box.

    Pixels are those of the coarser of raw and truth, or larger, so that PANEL of them are enough.
    """
    present = [layers[kind] for kind in ("raw", "truth") if layers.get(kind)]
    if not present:
        present = [classes for classes in layers.values() if classes]
    finest = []
    for classes in present:
        scales = [levels[0].scale for levels in classes.values()]
        finest.append(np.min(scales, axis=0))
    scale = np.max(finest, axis=0)
    extent = region.upper - region.lower
    side = scale[1:].max()
    voxels_along = extent[1:].max() / side
    # less a little, so that rounding of nm does not make a pixel twice as large
    voxels_of_pixel = max(1, np.ceil(voxels_along / PANEL - 1e-6))
    pixel = side * voxels_of_pixel
    voxel = np.array([scale[0], pixel, pixel])
    shape = np.maximum(1, np.rint(extent / voxel)).astype(int)
    layers_of_box, height, width = shape.tolist()
    planes = {min(int(depth * layers_of_box), layers_of_box - 1) for depth in depths}
    first_centre = region.lower + voxel / 2
    grids = []
    for z in sorted(planes):
        offset = np.array([z * voxel[0], 0, 0])
        grids.append(Grid(first_centre + offset, voxel, (1, height, width)))
    return grids


def values(kind: str, levels: Sequence[Level], grids: Sequence[Grid]) -> np.ndarray:
    """Read one volume on some grids: (slices, y, x).

    Labels are integer ids, or 0 and 1. Predictions are float32 probabilities, UNKNOWN_ID where they
    are NaN. Raw has its stored values in float32.
    """
    level = ngff.pick_level(levels, grids[0].scale)
    if kind in LABELS:
        return np.concatenate([regrid.ids(level, grid) for grid in grids])
    change = probability_of(level) if kind == "predictions" else np.positive
    planes = np.concatenate([_resampled(level, grid, change) for grid in grids])
    if kind == "predictions" and level.array.dtype.kind == "f":
        # a network that has come to NaN has not said "no"
        share = np.concatenate([_resampled(level, grid, np.isnan) for grid in grids])
        planes[share > SHOWN] = UNKNOWN_ID
    return planes


def truth_values(name: str, levels: Sequence[Level], grids: Sequence[Grid]) -> np.ndarray:
    """Read a class's truth on some grids: (slices, y, x) ids, UNKNOWN_ID where it is unknown."""
    level = ngff.pick_level(levels, grids[0].scale)
    reader = LabelReader(level, name)
    return np.concatenate([reader.on(grid) for grid in grids])


def contrast(raw: np.ndarray) -> tuple[float, float]:
    """Return the values of raw that become black and white."""
    low, high = np.percentile(raw, CONTRAST)
    return float(low), float(high)


def _resampled(level: Level, grid: Grid, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Read intensities, apply `change`, and resample them to a grid; 0 outside of the volume.

    A larger voxel is the mean of those in it; smaller ones are interpolated linearly.
    """
    lower, upper = level.grid.in_voxels(np.array(grid.box()))
    # one voxel more at each end: a finer grid interpolates with the neighbour
    before = np.floor(lower) - 1
    after = np.ceil(upper) + 1
    start = np.clip(before, 0, level.shape - 1).astype(int)
    stop = np.clip(after, start + 1, level.shape).astype(int)
    window = level.grid.part(Box(start, stop))
    weights = []
    for axis in range(3):
        target = regrid.axis_of(grid, axis)
        weights.append(regrid.axis_weights(target, regrid.axis_of(window, axis)))
    # changed before it is averaged: what lies outside is no logit of 0, which were one half
    changed = change(level.read(start, stop).astype(np.float32))
    block = np.nan_to_num(changed, copy=False)
    return np.einsum("az,by,cx,zyx->abc", *weights, block, optimize=True)


def stretched(raw: np.ndarray) -> np.ndarray:
    """Return raw in [0, 1], stretched and clipped to its `contrast`."""
    low, high = contrast(raw)
    return np.clip((raw - low) / max(high - low, 1e-6), 0, 1)


def _names(classes: Mapping[str, Volumes]) -> list[str]:
    """Return the classes of all kinds, each once."""
    names: dict[str, None] = {}
    for volumes in classes.values():
        names |= dict.fromkeys(volumes)
    return list(names)


def _of_each_kind(classes: Mapping[str, Volumes], name: str) -> list[np.ndarray]:
    """Return the volumes of a class, one for each kind that has it."""
    return [volumes[name] for volumes in classes.values() if name in volumes]


def _painting_order(classes: Mapping[str, Volumes]) -> list[str]:
    """Return the classes that are seen in any kind, the largest first."""
    names = _names(classes)
    masks = []
    for name in names:
        seen = [volume > SHOWN for volume in _of_each_kind(classes, name)]
        masks.append(np.any(seen, axis=0))
    order = figures.largest_first(masks)
    return [names[channel] for channel in order if masks[channel].any()]


def _in_colour(volumes: Volumes, unknown: np.ndarray) -> list[Picture]:
    """Draw each slice, with classes painted in the order given.

    unknown: (slices, y, x) bool.
    """
    images = []
    for z in range(len(unknown)):
        shares = np.zeros((len(volumes), *unknown[z].shape), np.float32)
        colours = list(figures.class_colours(list(volumes)))
        for channel, volume in enumerate(volumes.values()):
            shares[channel] = np.clip(volume[z], 0, 1)  # unknown is below 0
            if _is_of_objects(volume):
                colours[channel] = figures.object_colours(volume[z], colours[channel])
        image = figures.classes_in_colour(shares, range(len(volumes)), colours)
        # where a class is known to be, one sees it, whatever is not known of others
        nowhere = shares.max(0, initial=0) == 0
        image[nowhere & unknown[z]] = figures.UNKNOWN_RGB
        images.append(image)
    return images


def any_unknown(volumes: Iterable[np.ndarray]) -> np.ndarray:
    """Return a bool array, of the volumes' shape, of where any of them is unknown."""
    return np.any([volume == UNKNOWN_ID for volume in volumes], axis=0)


def _panels(columns: Sequence[Sequence[Picture]], grid: Grid) -> Picture:
    """Put columns of slices side by side, enlarged, with a scale bar in the first panel."""
    times = max(1, round(ENLARGED / max(grid.shape)))
    rows = []
    for images in zip(*columns, strict=True):
        rows.append([figures.enlarged(image, times) for image in images])
    first = rows[0]
    first[0] = figures.scale_bar(first[0], grid.scale[2] / times)
    widest = max(first[0].shape[1], NARROWEST // len(columns))
    beside = []
    for row in rows:
        wide = [_widened(image, widest) for image in row]
        beside.append(figures.beside(wide, background=WHITE))
    return figures.above(beside, background=WHITE)


def _legend(
    names: Sequence[str], layers: Layers, classes: Mapping[str, Volumes], width: int
) -> Picture:
    """Draw the names of classes on their colours, or on the colours of their objects."""
    truth = layers.get("truth", {})
    labels = []
    colours = []
    for name, colour in zip(names, figures.class_colours(names), strict=True):
        is_unchecked = truth and name not in truth
        labels.append(f"{name} (no truth)" if is_unchecked else name)
        ids: set[int] = set()
        for volume in _of_each_kind(classes, name):
            if _is_of_objects(volume):
                ids |= set(np.unique(volume[volume > 0]).tolist())
        numbers = sorted(ids)[:STRIPES]
        colours.append(figures.colours_of_objects(numbers, colour) if numbers else colour)
    if any(any_unknown(volumes.values()).any() for volumes in classes.values()):
        labels.append("unknown")
        colours.append(figures.UNKNOWN_RGB)
    return figures.legend(labels, colours, width)


def _is_of_objects(volume: np.ndarray) -> bool:
    """Whether a volume has ids of objects, and is neither a mask nor a probability."""
    return bool(volume.max() > 1)

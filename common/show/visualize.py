"""Look at raw, truth, predictions and processed volumes: as a picture of each crop, or all of it in neuroglancer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from scipy.special import expit

from common import classes as class_table
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data import ngff, regions, regrid
from common.data.ngff import Grid, Level
from common.data.records import read_prediction
from common.data.regions import Region
from common.errors import FileError, UserError
from common.show import figures

KINDS = ("raw", "truth", "predictions", "processed")

PANEL = 512
"""Pixels of the longer side of a panel, at most; a smaller crop is enlarged by a whole number."""

ENLARGED = 360
"""Pixels that an enlarged panel should have."""

DEPTHS = (0.25, 0.5, 0.75)
"""Which z slices of a crop are shown, as fractions of its depth."""

CONTRAST = (0.5, 99.5)
"""Percentiles of the raw in a picture that are black and white in it."""

SHADER = """#uicontrol vec3 color color(default="%s")
#uicontrol float lowest slider(min=0, max=1, default=0)
void main() {
  float value = toNormalized(getDataValue());
  float probability = %s;
  emitRGBA(vec4(color, probability < lowest ? 0.0 : probability));
}"""
LOGISTIC = "1.0 / (1.0 + exp(-value))"

MESHED = 512**3
"""Voxels up to which the objects of a volume are shown in 3D: all of it is read for that."""

Layers = dict[str, dict[str, list[Level]]]
"""For each kind the levels of each class that is there; those of the raw are ["raw"][""]."""


def visualize(
    config_path: str | Path,
    crops: str = "validate",
    *,
    volume: str | Path = "",
    roi: str = "",
    classes: Sequence[str] = (),
    kinds: Sequence[str] = KINDS,
    png: str | Path = "",
    port: int = 0,
    bind: str = "127.0.0.1",
    manifest_path: str = "",
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Write a picture of each crop to `png` (a .png file, or a folder), or show the crops in neuroglancer until Enter is pressed.

    crops, volume, roi, manifest_path: see `common.data.regions.choose`; classes: those of the experiment unless
    given; port: 0 is any free one. What is not there yet is left out and said. Returns the pictures.
    Raises FileNotFoundError, ValueError or OSError with a sentence.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"--kinds {', '.join(unknown)}; write some of {', '.join(KINDS)}")
    config = load_config(config_path, overrides, data)
    boxes = regions.choose(config, crops, volume, roi, manifest_path=manifest_path, say=say)
    known = [
        *config.classes,
        *config.extra_classes,
        *(name for box in boxes for name in box.classes),
    ]
    if problems := class_table.unknown_names(classes, known):
        raise UserError("\n".join(f"--classes: {problem}" for problem in problems))
    shown = [
        (box, layers)
        for box in boxes
        if any((layers := find_layers(config, box, classes, kinds, say)).values())
    ]
    if not shown:
        where = f"--volume {volume}" if volume else f"--crops {crops}"
        raise UserError(
            f"{where}: nothing of {', '.join(kinds)} is there; predict and process first, or write --kinds raw"
        )
    boxes, found = zip(*shown, strict=True)
    if not png:
        show(boxes, found, port, bind, say)
        return []
    paths = _picture_paths(Path(png), boxes)
    for path, box, layers in zip(paths, boxes, found, strict=True):
        figures.write_png(path, montage(box, layers))
    return paths


def find_layers(
    config: TrainConfig,
    region: Region,
    classes: Sequence[str] = (),
    kinds: Sequence[str] = KINDS,
    say: Callable[[str], None] = print,
) -> Layers:
    """What there is to see of a box, of the classes of the experiment unless others are given; what there is not is said."""
    folders = {
        "truth": region.truth,
        "predictions": region.folder(config.path("predictions_path")),
        "processed": region.folder(config.path("processed_path")),
    }
    layers: Layers = {"raw": {"": ngff.open_levels(region.raw)}} if "raw" in kinds else {}
    absent = []
    for kind, folder in folders.items():
        if kind in kinds:
            there = [
                name for name in classes or config.classes if folder and _is_whole(folder / name)
            ]
            left = [name for name in classes or config.classes if name not in there]
            layers[kind] = {name: ngff.open_levels(folder / name) for name in there}
            if not there:
                absent.append(f"no {kind}")
            elif left and kind != "truth":
                absent.append(f"no {kind} of {', '.join(left)}")
    if absent:
        say(f"note: {region}: {', '.join(absent)}")
    return layers


def montage(region: Region, layers: Layers, depths: Sequence[float] = DEPTHS) -> np.ndarray:
    """A picture of a box, (y, x, 3) uint8: a row for each of its z slices at `depths`, a column for each kind that is there.

    Classes lie over each other, the largest lowest; of objects with ids each has a colour. No more is read than these slices.
    """
    grids = _slices(region, layers, depths)
    values = {
        kind: {name: _values(kind, levels, grids) for name, levels in there.items()}
        for kind, there in layers.items()
        if there
    }
    raw = values.pop("raw", {}).get("")
    order, names = _painting_order(values)
    columns = [] if raw is None else [[figures.grey(plane) for plane in _stretched(raw)]]
    for there in values.values():
        columns.append(
            _in_colour(
                {name: there[name] for name in order if name in there},
                len(grids),
                grids[0].shape[1:],
            )
        )
    times = max(1, round(ENLARGED / max(grids[0].shape)))
    rows = [
        [panel.repeat(times, 0).repeat(times, 1) for panel in row]
        for row in zip(*columns, strict=True)
    ]
    rows[0][0] = figures.scale_bar(rows[0][0], grids[0].scale[2] / times)
    picture = figures.above([figures.beside(row, background=255) for row in rows], background=255)
    picture = np.concatenate(
        [
            figures.text_line([kind for kind, there in layers.items() if there], picture.shape[1]),
            picture,
        ]
    )
    width = max(picture.shape[1], 480)
    labels = [
        name if name in layers.get("truth", {}) or not layers.get("truth") else f"{name} (no truth)"
        for name in names
    ]
    head = [
        figures.text_line([f"{region}   {_about(layers.get('predictions', {}))}"], width, 18),
        figures.text_line(
            [f"z {', '.join(f'{grid.origin[0]:g}' for grid in grids)} nm"], width, 13
        ),
        figures.legend(labels, figures.class_colours(names), width),
    ]
    return np.concatenate(
        [
            *head,
            np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255),
        ]
    )


def show(
    boxes: Sequence[Region],
    found: Sequence[Layers],
    port: int = 0,
    bind: str = "127.0.0.1",
    say: Callable[[str], None] = print,
) -> None:
    """Serve boxes to neuroglancer, say the links, and wait for Enter or Ctrl-C."""
    viewers = open_viewers(boxes, found, port, bind)
    links = [viewer.get_viewer_url() for viewer in viewers]
    for box, link in zip(boxes, links, strict=True):
        say(f"{box}: {link}")
    number, here = (
        urlsplit(links[0]).port,
        "localhost" if bind in ("127.0.0.1", "0.0.0.0", "::") else bind,
    )
    say(
        f"from another machine: ssh -L {number}:{here}:{number} {socket.gethostname()}, then the link with localhost:{number}"
    )
    say("Enter or Ctrl-C ends it")
    try:
        with contextlib.suppress(KeyboardInterrupt):
            _wait()
    finally:
        _neuroglancer().stop()


def _wait() -> None:
    """For Enter; where there is no terminal, as in a job of a cluster, for ever."""
    try:
        input()
    except EOFError:
        threading.Event().wait()


def open_viewers(
    boxes: Sequence[Region], found: Sequence[Layers], port: int = 0, bind: str = "127.0.0.1"
) -> list[Any]:
    """A neuroglancer.Viewer of each box, all served on one port until neuroglancer.stop(). Voxels are read when they are looked at.

    Raises ValueError without neuroglancer, OSError for a port that is taken.
    """
    neuroglancer = _neuroglancer()
    neuroglancer.stop()
    try:  # first, since the library leaves a half-started server behind
        socket.create_server(
            (bind, port), family=socket.AF_INET6 if ":" in bind else socket.AF_INET
        ).close()
    except OSError as error:
        raise FileError(
            f"--port {port} --bind {bind}: {error.strerror.split(' (')[0]}; write another port, or 0 for any free one"
        ) from error
    neuroglancer.set_server_bind_address(bind, port)
    viewers = [neuroglancer.Viewer(allow_credentials=False) for _ in boxes]
    for viewer, box, layers in zip(viewers, boxes, found, strict=True):
        viewer.set_state(_state(neuroglancer, box, layers))
    return viewers


class Served:
    """A multiscale volume as neuroglancer.LocalVolume takes an array."""

    def __init__(self, levels: Sequence[Level], labels: bool):
        fine = levels[0]
        self.shape, self.dtype, self.labels = (
            tuple(fine.shape.tolist()),
            _served_dtype(fine.array.dtype, labels),
            labels,
        )
        ratios = [np.rint(level.scale / fine.scale).astype(int) for level in levels]
        self.levels = [
            (level, ratio)
            for level, ratio in zip(levels, ratios, strict=True)
            if np.allclose(level.scale, ratio * fine.scale)
            and (np.abs(level.box()[0] - fine.box()[0]) < fine.scale / 100).all()
        ]
        """Those whose voxels are blocks of the finest, and of how many."""

    def reduced(self, start: np.ndarray, stop: np.ndarray, factor: np.ndarray) -> np.ndarray:
        """Voxels start..stop of the volume with `factor` voxels made one, from the coarsest level that they can be made of."""
        level, ratio = next(
            (level, ratio) for level, ratio in reversed(self.levels) if not (factor % ratio).any()
        )
        rest = factor // ratio
        first, last = start * rest, np.minimum(stop * rest, level.shape)
        result = np.zeros(stop - start, self.dtype)
        if (first < last).all():
            block = level.read(first, last)
            block = np.pad(
                block, [(0, -n % r) for n, r in zip(block.shape, rest, strict=True)], "edge"
            )
            block = (ngff.pick if self.labels else ngff.block_mean)(block, rest)
            result[tuple(map(slice, block.shape))] = block
        return result

    def transpose(self) -> np.ndarray:
        """All of it, x, y, z: asked for to make the meshes of objects. ValueError for more than MESHED voxels."""
        if np.prod(self.shape, dtype=float) > MESHED:
            raise UserError(f"{self.levels[0][0].path}: too large for meshes")
        return self.levels[0][0].array[...].astype(self.dtype).transpose()


def _state(neuroglancer: Any, region: Region, layers: Layers) -> Any:
    """What the viewer shows first: the middle of the box, raw and the first class of each kind."""
    extent, middle = region.upper - region.lower, (region.lower + region.upper) / 2
    scale = next(levels[0].scale for there in layers.values() for levels in there.values())
    state = neuroglancer.ViewerState()
    state.dimensions = neuroglancer.CoordinateSpace(
        names=["x", "y", "z"], units="nm", scales=scale[::-1]
    )
    state.position = (middle / scale)[::-1]
    state.cross_section_scale = float(
        (extent / scale.min()).max() / 400
    )  # each of the four panels has some 400 pixels
    state.projection_scale = float((extent / scale.min()).max() * 1.5)
    for kind, there in layers.items():
        for number, (name, levels) in enumerate(there.items()):
            state.layers.append(
                name=f"{kind}/{name}" if name else kind,
                layer=_layer(neuroglancer, kind, name, levels, region),
                visible=number == 0,
            )
    return state


def _layer(neuroglancer: Any, kind: str, name: str, levels: Sequence[Level], region: Region) -> Any:
    """Raw with its contrast in the box, a prediction as its class's colour where it is probable, labels as segments."""
    source = _source(neuroglancer, levels, kind in ("truth", "processed"))
    colour = "#" + bytes(figures.class_colours([name])[0]).hex()
    if kind == "raw":
        raw = _values("raw", levels, _slices(region, {"raw": {"": list(levels)}}, (0.5,)))
        low, high = map(float, np.percentile(raw, CONTRAST))
        return neuroglancer.ImageLayer(
            source=source, opacity=1.0, shader_controls={"normalized": {"range": [low, high]}}
        )
    if kind == "predictions":
        return neuroglancer.ImageLayer(
            source=source,
            opacity=0.8,
            shader=SHADER % (colour, LOGISTIC if _is_logits(levels[0]) else "value"),
        )
    return neuroglancer.SegmentationLayer(
        source=source, segment_default_color=None if name in class_table.INSTANCES else colour
    )


def _source(neuroglancer: Any, levels: Sequence[Level], labels: bool) -> Any:
    """A volume in its place in the world: a voxel of the viewer covers [i, i + 1), one of ours [i - 1/2, i + 1/2)."""

    class Pyramid(neuroglancer.LocalVolume):
        """The library's own reads the finest level for any view."""

        def get_encoded_subvolume(
            self, data_format: str, start: np.ndarray, end: np.ndarray, scale_key: str
        ) -> tuple[bytes, str]:
            block = self.data.reduced(start, end, np.array(scale_key.split(","), int))
            return neuroglancer.chunks.encode_npz(block), "application/octet-stream"

    fine, served = levels[0], Served(levels, labels)
    space = neuroglancer.CoordinateSpace(names=["z", "y", "x"], units="nm", scales=fine.scale)
    volume = Pyramid(
        served,
        space,
        volume_type="segmentation" if labels else "image",
        max_downsampling=int(served.levels[-1][1].prod())
        * neuroglancer.downsample_scales.DEFAULT_MAX_DOWNSAMPLING,
    )
    place = np.column_stack([np.eye(3), fine.translation / fine.scale - 0.5])
    return neuroglancer.LayerDataSource(
        volume,
        transform=neuroglancer.CoordinateSpaceTransform(output_dimensions=space, matrix=place),
    )


def _served_dtype(stored: np.dtype, labels: bool) -> np.dtype:
    """What the viewer can show: unsigned ids, intensities in up to 32 bits."""
    if labels:
        return np.dtype({"b": np.uint8, "u": stored.newbyteorder("=")}.get(stored.kind, np.uint64))
    return np.dtype(
        stored.newbyteorder("=") if stored.kind in "ui" and stored.itemsize <= 4 else np.float32
    )


def _neuroglancer() -> Any:
    """The package, which is optional."""
    try:
        import neuroglancer
    except ImportError as error:
        raise UserError(
            f"a viewer in the browser needs neuroglancer ({error}); pip install neuroglancer, or write --png FILE"
        ) from error
    return neuroglancer


def _slices(region: Region, layers: Layers, depths: Sequence[float]) -> list[Grid]:
    """Grids of one voxel in depth and square pixels: of the coarser of raw and truth, or coarser, so that PANEL pixels are enough."""
    kinds = [layers[kind] for kind in ("raw", "truth") if layers.get(kind)] or [
        there for there in layers.values() if there
    ]
    scale = np.max(
        [np.min([levels[0].scale for levels in there.values()], axis=0) for there in kinds], axis=0
    )
    extent = region.upper - region.lower
    pixel = scale[1:].max() * max(1, np.ceil(extent[1:].max() / scale[1:].max() / PANEL - 1e-6))
    voxel = np.array([scale[0], pixel, pixel])
    shape = np.maximum(1, np.rint(extent / voxel)).astype(int).tolist()
    numbers = sorted({min(int(depth * shape[0]), shape[0] - 1) for depth in depths})
    return [
        Grid(region.lower + voxel / 2 + (z * voxel[0], 0, 0), voxel, (1, *shape[1:]))
        for z in numbers
    ]


def _values(kind: str, levels: Sequence[Level], grids: Sequence[Grid]) -> np.ndarray:
    """(slices, y, x): integer ids, or 0 and 1, of labels; float32 probabilities of predictions; raw as it is stored, in float32."""
    level = ngff.pick_level(levels, grids[0].scale)
    if kind in ("truth", "processed"):
        return np.concatenate([regrid.ids(level, grid) for grid in grids])
    change = _probability(level) if kind == "predictions" else np.positive
    return np.concatenate([_resampled(level, grid, change) for grid in grids])


def _resampled(level: Level, grid: Grid, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Changed intensities on a grid: means over larger voxels, linear between the centres of smaller ones, 0 outside."""
    corners = (np.array(grid.box()) - level.box()[0]) / level.scale
    start = np.clip(np.floor(corners[0]) - 1, 0, level.shape - 1).astype(int)
    stop = np.clip(np.ceil(corners[1]) + 1, start + 1, level.shape).astype(int)
    window = Grid(level.translation + start * level.scale, level.scale, tuple(stop - start))
    weights = [
        regrid.axis_weights(regrid.axis_of(grid, axis), regrid.axis_of(window, axis))
        for axis in range(3)
    ]
    block = np.nan_to_num(change(level.read(start, stop).astype(np.float32)), copy=False)
    return np.einsum("az,by,cx,zyx->abc", *weights, block, optimize=True)


def _probability(level: Level) -> Callable[[np.ndarray], np.ndarray]:
    """What makes probabilities of a prediction as it is stored."""
    if _is_logits(level):
        return expit
    dtype = level.array.dtype
    return lambda stored: stored / (np.iinfo(dtype).max if dtype.kind == "u" else 1)


def _stretched(raw: np.ndarray) -> np.ndarray:
    """In [0, 1], by the percentiles of CONTRAST."""
    low, high = np.percentile(raw, CONTRAST)
    return np.clip((raw - low) / max(high - low, 1e-6), 0, 1)


def _painting_order(values: dict[str, dict[str, np.ndarray]]) -> tuple[list[str], list[str]]:
    """The classes that are seen in any kind, in the order to paint them and in their own."""
    names = list(dict.fromkeys(name for there in values.values() for name in there))
    seen = [
        np.any([there[name] > 0.5 for there in values.values() if name in there], axis=0)
        for name in names
    ]
    order = [names[channel] for channel in figures.largest_first(seen) if seen[channel].any()]
    return order, [name for name in names if name in order]


def _in_colour(
    there: dict[str, np.ndarray], slices: int, shape: tuple[int, ...]
) -> list[np.ndarray]:
    """An RGB image of each slice, classes painted in the order given."""
    images = []
    for z in range(slices):
        shares, colours = (
            np.zeros((len(there), *shape), np.float32),
            list(figures.class_colours(list(there))),
        )
        for channel, values in enumerate(there.values()):
            shares[channel] = np.minimum(values[z], 1)
            if values.max() > 1:
                colours[channel] = figures.object_colours(values[z], colours[channel])
        images.append(figures.classes_in_colour(shares, range(len(there)), colours))
    return images


def _about(predictions: dict[str, list[Level]]) -> str:
    """Which checkpoint predicted: run, epoch and metric."""
    found = [read_prediction(levels[0].path.parent) for levels in predictions.values()]
    return "; ".join(
        dict.fromkeys(
            f"{a.model_name}/{a.run_name}, epoch {a.epoch} ({a.metric})" for a in found if a
        )
    )


def _is_logits(level: Level) -> bool:
    prediction = read_prediction(level.path.parent)
    return prediction is not None and prediction.content == "logits"


def _is_whole(group: Path) -> bool:
    """Whether an image is there and written to its end."""
    path = group / ".zattrs"
    return path.is_file() and f'"{ngff.UNFINISHED}"' not in path.read_text()


def _picture_paths(png: Path, boxes: Sequence[Region]) -> list[Path]:
    """A file for each box: `png` itself, or one in the folder `png`."""
    if png.suffix.lower() != ".png":
        return [png / f"{box.dataset}_{box.name}.png" for box in boxes]
    if len(boxes) > 1:
        raise UserError(f"--png {png}: one file for {len(boxes)} crops; write a folder")
    return [png]

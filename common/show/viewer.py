"""Boxes in neuroglancer: a layer for each class of each kind, read when it is looked at."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from common import classes as class_table
from common.data import ngff
from common.data.ngff import Level
from common.data.regions import Region
from common.errors import FileError, UserError
from common.show import figures, montage
from common.show.layers import LABELS, Layers, is_logits

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

PANEL_PIXELS = 400
"""About as wide is each of the four panels of the viewer."""

LOOPBACK = "127.0.0.1"

Neuroglancer = Any
"""The package, which is optional."""


def show(
    boxes: Sequence[Region],
    layers: Sequence[Layers],
    *,
    port: int = 0,
    bind: str = LOOPBACK,
    say: Callable[[str], None] = print,
) -> None:
    """Serve boxes to neuroglancer, say the links, and wait for Enter or Ctrl-C.

    Args:
        boxes: what the links are named by.
        layers: of each box.
        port: 0 is any free one.
        bind: the address to serve at.
        say: takes each line.
    """
    viewers = open_viewers(boxes, layers, port, bind)
    links = [viewer.get_viewer_url() for viewer in viewers]
    for box, link in zip(boxes, links, strict=True):
        say(f"{box}: {link}")
    number = urlsplit(links[0]).port
    here = "localhost" if bind in (LOOPBACK, "0.0.0.0", "::") else bind
    tunnel = f"ssh -L {number}:{here}:{number} {socket.gethostname()}"
    say(f"from another machine: {tunnel}, then the link with localhost:{number}")
    say("Enter or Ctrl-C ends it")
    try:
        with contextlib.suppress(KeyboardInterrupt):
            _wait()
    finally:
        import_neuroglancer().stop()


def _wait() -> None:
    """For Enter; where there is no terminal, as in a job of a cluster, for ever."""
    try:
        input()
    except EOFError:
        threading.Event().wait()


def open_viewers(
    boxes: Sequence[Region], layers: Sequence[Layers], port: int = 0, bind: str = LOOPBACK
) -> list[Any]:
    """A neuroglancer.Viewer of each box, all served on one port until neuroglancer.stop().

    Voxels are read when they are looked at. Raises UserError without neuroglancer, FileError for a
    port that is taken.
    """
    neuroglancer = import_neuroglancer()
    neuroglancer.stop()
    _refuse_taken_port(port, bind)
    neuroglancer.set_server_bind_address(bind, port)
    viewers = [neuroglancer.Viewer(allow_credentials=False) for _ in boxes]
    for viewer, box, of_box in zip(viewers, boxes, layers, strict=True):
        viewer.set_state(_state(neuroglancer, box, of_box))
    return viewers


def _refuse_taken_port(port: int, bind: str) -> None:
    """FileError for a port that is taken: the library would leave a half-started server behind."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    try:
        socket.create_server((bind, port), family=family).close()
    except OSError as error:
        reason = (error.strerror or str(error)).split(" (")[0]
        raise FileError(
            f"--port {port} --bind {bind}: {reason}; write another port, or 0 for any free one"
        ) from error


class Served:
    """A multiscale volume as neuroglancer.LocalVolume takes an array."""

    def __init__(self, levels: Sequence[Level], labels: bool):
        """labels: whether voxels are ids, of which coarser ones are picked and not averaged."""
        finest = levels[0]
        self.shape: tuple[int, ...] = tuple(finest.shape.tolist())
        self.dtype = _served_dtype(finest.array.dtype, labels)
        self.labels = labels
        self.levels: list[tuple[Level, np.ndarray]] = []
        """Those whose voxels are blocks of the finest, and of how many."""
        for level in levels:
            ratio = np.rint(level.scale / finest.scale).astype(int)
            is_multiple = np.allclose(level.scale, ratio * finest.scale)
            distance = np.abs(level.box()[0] - finest.box()[0])
            if is_multiple and (distance < finest.scale / 100).all():
                self.levels.append((level, ratio))

    def reduced(self, start: np.ndarray, stop: np.ndarray, factor: np.ndarray) -> np.ndarray:
        """Voxels start..stop of the volume with `factor` voxels made one.

        Read from the coarsest level that they can be made of.
        """
        level, ratio = self._coarsest(factor)
        rest = factor // ratio
        first = start * rest
        last = np.minimum(stop * rest, level.shape)
        result = np.zeros(stop - start, self.dtype)
        if (first < last).all():
            block = level.read(first, last)
            # the volume may end within a block: its mean is that of the voxels that there are
            padding = [(0, -length % r) for length, r in zip(block.shape, rest, strict=True)]
            block = np.pad(block, padding, "edge")
            reduce = ngff.pick if self.labels else ngff.block_mean
            block = reduce(block, rest)
            result[tuple(map(slice, block.shape))] = block
        return result

    def _coarsest(self, factor: np.ndarray) -> tuple[Level, np.ndarray]:
        for level, ratio in reversed(self.levels):
            if not (factor % ratio).any():
                return level, ratio
        return self.levels[0]  # the finest, whose ratio is 1

    def transpose(self) -> np.ndarray:
        """All of it, x, y, z: asked for to make the meshes of objects.

        Raises UserError for more than MESHED voxels.
        """
        finest = self.levels[0][0]
        if np.prod(self.shape, dtype=float) > MESHED:
            raise UserError(f"{finest.path}: too large for meshes")
        return finest.array[...].astype(self.dtype).transpose()


def _state(neuroglancer: Neuroglancer, region: Region, layers: Layers) -> Any:
    """What the viewer shows first: the middle of the box, raw and the first class of each kind."""
    present = [levels for classes in layers.values() for levels in classes.values()]
    scale = present[0][0].scale
    middle = (region.lower + region.upper) / 2
    longest = float(((region.upper - region.lower) / scale.min()).max())
    state = neuroglancer.ViewerState()
    state.dimensions = neuroglancer.CoordinateSpace(
        names=["x", "y", "z"], units="nm", scales=scale[::-1]
    )
    state.position = (middle / scale)[::-1]
    state.cross_section_scale = longest / PANEL_PIXELS
    state.projection_scale = longest * 1.5
    for kind, classes in layers.items():
        for number, (name, levels) in enumerate(classes.items()):
            make = _LAYERS.get(kind, _labels_layer)
            state.layers.append(
                name=f"{kind}/{name}" if name else kind,
                layer=make(neuroglancer, name, levels, region),
                visible=number == 0,
            )
    return state


def _raw_layer(
    neuroglancer: Neuroglancer, name: str, levels: Sequence[Level], region: Region
) -> Any:
    """Raw with its contrast in the middle of the box."""
    grids = montage.slice_grids(region, {"raw": {"": list(levels)}}, (0.5,))
    low, high = montage.contrast(montage.values("raw", levels, grids))
    return neuroglancer.ImageLayer(
        source=_source(neuroglancer, levels, "raw"),
        opacity=1.0,
        shader_controls={"normalized": {"range": [low, high]}},
    )


def _predictions_layer(
    neuroglancer: Neuroglancer, name: str, levels: Sequence[Level], region: Region
) -> Any:
    """A prediction as its class's colour where it is probable."""
    probability = LOGISTIC if is_logits(levels[0]) else "value"
    return neuroglancer.ImageLayer(
        source=_source(neuroglancer, levels, "predictions"),
        opacity=0.8,
        shader=SHADER % (_hexadecimal(name), probability),
    )


def _labels_layer(
    neuroglancer: Neuroglancer, name: str, levels: Sequence[Level], region: Region
) -> Any:
    """Labels as segments: objects in colours of the viewer, other classes in their own."""
    colour = None if name in class_table.INSTANCES else _hexadecimal(name)
    return neuroglancer.SegmentationLayer(
        source=_source(neuroglancer, levels, "truth"), segment_default_color=colour
    )


_LAYERS: dict[str, Callable[..., Any]] = {"raw": _raw_layer, "predictions": _predictions_layer}
"""What makes the layer of a kind; the other kinds are labels."""


def _hexadecimal(name: str) -> str:
    """The colour of a class, '#f59e32'."""
    return "#" + bytes(figures.class_colours([name])[0]).hex()


def _source(neuroglancer: Neuroglancer, levels: Sequence[Level], kind: str) -> Any:
    """A volume in its place in the world.

    A voxel of the viewer covers [i, i + 1), one of ours [i - 1/2, i + 1/2).
    """

    class Pyramid(neuroglancer.LocalVolume):
        """The library's own reads the finest level for any view."""

        def get_encoded_subvolume(
            self, data_format: str, start: np.ndarray, end: np.ndarray, scale_key: str
        ) -> tuple[bytes, str]:
            block = self.data.reduced(start, end, np.array(scale_key.split(","), int))
            return neuroglancer.chunks.encode_npz(block), "application/octet-stream"

    labels = kind in LABELS
    finest = levels[0]
    served = Served(levels, labels)
    space = neuroglancer.CoordinateSpace(names=["z", "y", "x"], units="nm", scales=finest.scale)
    usual = neuroglancer.downsample_scales.DEFAULT_MAX_DOWNSAMPLING
    volume = Pyramid(
        served,
        space,
        volume_type="segmentation" if labels else "image",
        # the library's own limit is for views made of the finest voxels
        max_downsampling=int(served.levels[-1][1].prod()) * usual,
    )
    place = np.column_stack([np.eye(3), finest.translation / finest.scale - 0.5])
    transform = neuroglancer.CoordinateSpaceTransform(output_dimensions=space, matrix=place)
    return neuroglancer.LayerDataSource(volume, transform=transform)


def _served_dtype(stored: np.dtype, labels: bool) -> np.dtype:
    """What the viewer can show: unsigned ids, intensities in up to 32 bits."""
    native = stored.newbyteorder("=")
    if labels:
        if stored.kind == "u":
            return native
        return np.dtype(np.uint8 if stored.kind == "b" else np.uint64)
    if stored.kind in "ui" and stored.itemsize <= 4:
        return native
    return np.dtype(np.float32)


def import_neuroglancer() -> Neuroglancer:
    """The package; UserError where it is not installed."""
    try:
        import neuroglancer
    except ImportError as error:
        raise UserError(
            f"a viewer in the browser needs neuroglancer ({error}); pip install neuroglancer, "
            "or write --png FILE"
        ) from error
    return neuroglancer

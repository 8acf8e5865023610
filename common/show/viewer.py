"""Show boxes in neuroglancer: a layer for each class of each kind, read when looked at."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from common import classes as class_table
from common.data.splits.regions import Region
from common.data.volumes import results
from common.data.volumes.level import Level
from common.errors import FileError, UserError
from common.show import figures, montage
from common.show.layers import LABELS, Layers, is_logits
from common.show.painted import Objects, Painted, Part, bottom_up, on_same_voxels
from common.show.served import Served
from common.talk import Say

SHADER = """#uicontrol vec3 color color(default="%s")
#uicontrol float lowest slider(min=0, max=1, default=0)
void main() {
  float value = toNormalized(getDataValue());
  float probability = %s;
  emitRGBA(vec4(color, probability < lowest ? 0.0 : probability));
}"""

CLASSES_SHADER = """#uicontrol float opacity slider(min=0, max=1, default=0.6)
void main() {
  int number = int(toRaw(getDataValue()));
  vec3 color = vec3(0.0);
%s
  emitRGBA(vec4(color, number == 0 ? 0.0 : opacity));
}"""

LOGISTIC = "1.0 / (1.0 + exp(-value))"

PANEL_PIXELS = 400
"""Approximate width of each of the four panels of the viewer."""

LOOPBACK = "127.0.0.1"


def show(
    boxes: Sequence[Region],
    layers: Sequence[Layers],
    *,
    port: int = 0,
    bind: str = LOOPBACK,
    say: Say = print,
) -> None:
    """Serve boxes to neuroglancer, say the links, and wait for Enter or Ctrl-C.

    Args:
        boxes: their names stand before the links.
        layers: what is shown of each box.
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
    """Wait for Enter; without a terminal, as in a job of a cluster, for ever."""
    try:
        input()
    except EOFError:
        threading.Event().wait()


def open_viewers(
    boxes: Sequence[Region], layers: Sequence[Layers], port: int = 0, bind: str = LOOPBACK
) -> list[Any]:
    """Open a neuroglancer.Viewer for each box, all on one port until neuroglancer.stop().

    Voxels are read when they are looked at. Raises UserError without neuroglancer, FileError for a
    port that is taken.
    """
    neuroglancer = import_neuroglancer()
    neuroglancer.stop()
    _refuse_taken_port(port, bind)
    neuroglancer.set_server_bind_address(bind, port)
    viewers = [neuroglancer.Viewer(allow_credentials=False) for _ in boxes]
    for viewer, box, of_box in zip(viewers, boxes, layers, strict=True):
        viewer.set_state(_state(box, of_box))
    return viewers


def _refuse_taken_port(port: int, bind: str) -> None:
    """Raise FileError for a taken port: the library would leave a half-started server behind."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    try:
        socket.create_server((bind, port), family=family).close()
    except OSError as error:
        reason = (error.strerror or str(error)).split(" (")[0]
        raise FileError(
            f"--port {port} --bind {bind}: {reason}; write another port, or 0 for any free one"
        ) from error


def _state(region: Region, layers: Layers) -> Any:
    """Return the state that the viewer starts in: the middle of the box; raw, objects and masks.

    Layers of single classes are archived: 48 classes of three kinds would be a wall of tabs.
    """
    volumes = itertools.chain.from_iterable(map(dict.values, layers.values()))
    finest = next(volumes)[0]
    scale = finest.scale
    middle = (region.lower + region.upper) / 2
    longest = float(((region.upper - region.lower) / scale.min()).max())
    neuroglancer = import_neuroglancer()
    state = neuroglancer.ViewerState()
    state.dimensions = neuroglancer.CoordinateSpace(
        names=["x", "y", "z"], units="nm", scales=scale[::-1]
    )
    state.position = (middle / scale)[::-1]
    state.cross_section_scale = longest / PANEL_PIXELS
    state.projection_scale = longest * 1.5
    opening = _opening(layers, region)
    first = _first_seen(opening)
    for entry in opening:
        state.layers.append(name=entry.name, layer=entry.layer, visible=entry.name in first)
    named = {entry.name for entry in opening}
    for kind, classes in layers.items():
        for name, levels in classes.items():
            if name and f"{kind}/{name}" not in named:
                layer = _layer(kind, name, levels, region)
                # archived: in the list of layers, and no tab
                state.layers.append(
                    name=f"{kind}/{name}", layer=layer, visible=False, archived=True
                )
    return state


@dataclass(frozen=True)
class _Entry:
    """A layer that has a tab."""

    name: str
    kind: str
    shows: str
    """"raw", "objects" or "masks"."""
    layer: Any


SEEN_FIRST = {
    "raw": ("raw",),
    "objects": ("processed", "truth"),
    "masks": ("processed", "predictions", "truth"),
}
"""For each sort of layer the kinds to show first: results, else what they are compared with."""


def _first_seen(opening: Sequence[_Entry]) -> set[str]:
    """Return the names of the visible layers: raw, one of objects and one of masks."""
    names = set()
    for shows, kinds in SEEN_FIRST.items():
        for kind in kinds:
            fitting = [
                entry.name for entry in opening if (entry.kind, entry.shows) == (kind, shows)
            ]
            if fitting:
                names.add(fitting[0])
                break
    return names


def _opening(layers: Layers, region: Region) -> list[_Entry]:
    """Make layers of raw, and for each kind of all its objects and of all its masks."""
    entries = []
    for kind, classes in layers.items():
        if kind == "raw":
            entries.append(_Entry("raw", kind, "raw", _layer(kind, "", classes[""], region)))
            continue
        parts = [Part(name, levels) for name, levels in classes.items()]
        for shows in ("objects", "masks"):
            of_sort = [part for part in parts if _has_objects(kind, part) == (shows == "objects")]
            for group in on_same_voxels(of_sort):
                entries.append(_together(kind, shows, group=group, region=region))
    return _numbered(entries)


def _has_objects(kind: str, part: Part) -> bool:
    if kind not in LABELS:
        return False
    sort = results.sort_of(part.levels[0], part.name)
    # of labels that say nothing of themselves
    return sort == "objects" if sort != "image" else part.name in class_table.INSTANCES


def _together(kind: str, shows: str, *, group: Sequence[Part], region: Region) -> _Entry:
    """Make one layer of some classes on the same voxels; for one class its own layer."""
    if len(group) == 1:
        [part] = group
        layer = _layer(kind, part.name, part.levels, region)
        return _Entry(f"{kind}/{part.name}", kind, shows, layer)
    neuroglancer = import_neuroglancer()
    parts = bottom_up(group)
    finest = parts[0].levels[0]
    if shows == "objects":
        source = _source(Objects(parts), finest)
        layer = neuroglancer.SegmentationLayer(source=source)
    else:
        source = _source(Painted(parts, kind in LABELS), finest, is_image=True)
        shader = _shader_of_classes([part.name for part in parts])
        layer = neuroglancer.ImageLayer(source=source, opacity=1.0, shader=shader)
    return _Entry(f"{kind} {shows}", kind, shows, layer)


def _numbered(entries: Sequence[_Entry]) -> list[_Entry]:
    """Number entries of one name: classes on other voxels have a layer of their own."""
    names: list[str] = []
    distinct = []
    for entry in entries:
        names.append(entry.name)
        number = names.count(entry.name)
        name = entry.name if number == 1 else f"{entry.name} {number}"
        distinct.append(replace(entry, name=name))
    return distinct


def _shader_of_classes(names: Sequence[str]) -> str:
    """Return a shader that shows numbers of classes, from 1, in their colours; 0 is clear."""
    lines = []
    for number, (name, colour) in enumerate(
        zip(names, figures.class_colours(names) / 255, strict=True), 1
    ):
        red, green, blue = (f"{share:.3f}" for share in colour)
        lines.append(f"  if (number == {number}) color = vec3({red}, {green}, {blue});  // {name}")
    return CLASSES_SHADER % "\n".join(lines)


def _layer(kind: str, name: str, levels: Sequence[Level], region: Region) -> Any:
    """Make the layer of a single class, or of raw."""
    neuroglancer = import_neuroglancer()
    if kind == "raw":
        # its contrast is that in the middle of the box
        grids = montage.slice_grids(region, {"raw": {"": list(levels)}}, (0.5,))
        low, high = montage.contrast(montage.values("raw", levels, grids))
        return neuroglancer.ImageLayer(
            source=_source(Served(levels, False), levels[0], is_image=True),
            opacity=1.0,
            shader_controls={"normalized": {"range": [low, high]}},
        )
    if kind == "predictions":
        # the colour of the class where it is probable
        probability = LOGISTIC if is_logits(levels[0]) else "value"
        return neuroglancer.ImageLayer(
            source=_source(Served(levels, False), levels[0], is_image=True),
            opacity=0.8,
            shader=SHADER % (_hexadecimal(name), probability),
        )
    # segments: objects in colours of the viewer, other classes in their own; unknown is clear
    return neuroglancer.SegmentationLayer(
        source=_source(Objects([Part(name, list(levels))]), levels[0]),
        segment_default_color=None if name in class_table.INSTANCES else _hexadecimal(name),
    )


def _hexadecimal(name: str) -> str:
    """Return the colour of a class as '#f59e32'."""
    return "#" + bytes(figures.class_colours([name])[0]).hex()


def _source(served: Served | Painted, finest: Level, *, is_image: bool = False) -> Any:
    """Return a volume in its place in the world, as ids of segments unless is_image.

    A voxel of the viewer covers [i, i + 1), one of ours [i - 1/2, i + 1/2).
    """
    neuroglancer: Any = import_neuroglancer()

    class Pyramid(neuroglancer.LocalVolume):
        """The library's own reads the finest level for any view."""

        def get_encoded_subvolume(
            self, data_format: str, start: np.ndarray, end: np.ndarray, scale_key: str
        ) -> tuple[bytes, str]:
            block = self.data.reduced(start, end, np.array(scale_key.split(","), int))
            return neuroglancer.chunks.encode_npz(block), "application/octet-stream"

    space = neuroglancer.CoordinateSpace(names=["z", "y", "x"], units="nm", scales=finest.scale)
    usual = neuroglancer.downsample_scales.DEFAULT_MAX_DOWNSAMPLING
    volume = Pyramid(
        served,
        space,
        volume_type="image" if is_image else "segmentation",
        # the library's own limit is for views made of the finest voxels
        max_downsampling=int(served.levels[-1][1].prod()) * usual,
    )
    place = np.column_stack([np.eye(3), finest.translation / finest.scale - 0.5])
    transform = neuroglancer.CoordinateSpaceTransform(output_dimensions=space, matrix=place)
    return neuroglancer.LayerDataSource(volume, transform=transform)


def import_neuroglancer() -> Any:
    """Import neuroglancer, which is optional. Raises UserError if it is not installed."""
    try:
        import neuroglancer
    except ImportError as error:
        raise UserError(
            f"a viewer in the browser needs neuroglancer ({error}); pip install neuroglancer, "
            "or write --png FILE"
        ) from error
    return neuroglancer

"""Find what can be shown of results without the experiment that made them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

from common.data.splits.regions import Region
from common.data.volumes import records, results
from common.data.volumes.box import around
from common.data.volumes.results import Result
from common.data.volumes.sources import n5, precomputed, zarr2, zarr3
from common.data.volumes.sources.place import bare, is_address
from common.errors import UserError
from common.show.layers import Layers

PAGE = "https://neuroglancer-demo.appspot.com/"
"""Address of the Neuroglancer of its authors, which reads volumes from servers itself."""

SOURCES = {
    zarr2.GROUP: "zarr",
    zarr3.MARKER: "zarr",
    precomputed.MARKER: "precomputed",
    n5.MARKER: "n5",
}
"""Neuroglancer's name for a kind of volume, by a file in its folder."""


def boxes_of(source: str, classes: Sequence[str] = ()) -> list[tuple[Region, Layers]]:
    """Return the boxes of results, with the layers of each.

    source: see `common.data.volumes.results.find`. Raises as that does.
    """
    boxes: dict[str, list[Result]] = {}
    for result in results.find(source, classes):
        boxes.setdefault(result.box, []).append(result)
    return [(_region(name, volumes), _layers(volumes)) for name, volumes in boxes.items()]


def _region(name: str, volumes: Sequence[Result]) -> Region:
    """Return the box around all volumes."""
    lower, upper = around([result.finest.box() for result in volumes])
    dataset, _, box = name.rpartition("/")
    return Region(
        dataset or "results",
        box,
        raw=volumes[0].path,
        lower=lower,
        upper=upper,
        truth=None,
        classes=(),
    )


def _layers(volumes: Sequence[Result]) -> Layers:
    layers: Layers = {}
    for result in volumes:
        is_raw = result.sort == "image" and not records.read_prediction(result.finest.group)
        kind = "predictions" if result.sort == "image" else "processed"
        if is_raw:
            layers.setdefault("raw", {})[""] = list(result.levels)
        else:
            layers.setdefault(kind, {})[result.name] = list(result.levels)
    # raw lies below all others
    return dict(sorted(layers.items(), key=lambda item: item[0] != "raw"))


def link(sources: Sequence[str]) -> str:
    """Return a link that opens volumes of servers in Neuroglancer's public page, a layer each.

    Raises UserError for a volume that Neuroglancer cannot read, and as
    `common.data.volumes.results.find` does.
    """
    layers = []
    for source in sources:
        for result in results.find(source):
            path = bare(result.path)
            if not is_address(path):
                raise UserError(
                    f"{path}: on this disk, which a page of the web does not see; leave --link out"
                )
            kinds = [kind for marker, kind in SOURCES.items() if (path / marker).is_file()]
            if not kinds:
                raise UserError(
                    f"{path}: Neuroglancer reads zarr, N5 and precomputed volumes; export it as one"
                )
            layer = {"type": "image" if result.sort == "image" else "segmentation"}
            layers.append({**layer, "source": f"{kinds[0]}://{path}", "name": result.name})
    state = {"layers": layers, "layout": "4panel"}
    return f"{PAGE}#!{quote(json.dumps(state), safe='')}"

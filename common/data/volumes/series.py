"""List the images that a store of crops holds in its root, where viewers look for them.

Source: https://ngff.openmicroscopy.org/0.4, "bioformats2raw.layout": the root says 3, and the group
OME in it has the paths of all images as "series".
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.data.volumes.records import is_finished
from common.files import alone, write_json

LAYOUT = "bioformats2raw.layout"

OME = "OME"
"""The group of the list."""

LOCK = ".series.lock"
"""In the root of a store: processes that write crops of one store add them one after the other."""


def add(images: Sequence[Path]) -> None:
    """Add finished images {store}/{crop}/{class} to the lists of their stores.

    Crops that are not there any more are taken off. Each file is replaced whole. Raises FileError.
    """
    of_store: dict[Path, list[Path]] = {}
    for image in images:
        if is_finished(image):
            of_store.setdefault(image.parents[1], []).append(image)
    for store, added in of_store.items():
        with alone(store / LOCK, wait=True):
            _write(store, [f"{image.parent.name}/{image.name}" for image in added])


def complete(images: Sequence[Path]) -> None:
    """Add images that were there before this call, where a call that ended early did not.

    A disk that takes nothing more is no reason to fail: the images are there.
    """
    missing = []
    for image in images:
        store = image.parents[1]
        is_listed = f"{image.parent.name}/{image.name}" in listed(store)
        if not is_listed or _attributes(store).get(LAYOUT) != 3:
            missing.append(image)
    with contextlib.suppress(OSError):
        add(missing)


def listed(store: Path) -> list[str]:
    """Return the images {crop}/{class} that the root of a store lists."""
    names = _attributes(store / OME).get("series")
    return [str(name) for name in names] if isinstance(names, list) else []


def _write(store: Path, added: Sequence[str]) -> None:
    before = listed(store)
    crops = {folder.name for folder in store.iterdir()}
    kept = [name for name in before if name.split("/")[0] in crops]
    series = sorted({*kept, *added})
    if series != before:
        write_json(store / OME / ".zgroup", {"zarr_format": 2})
        write_json(store / OME / ".zattrs", {"series": series})
    attributes = _attributes(store)
    # last: a root that says so has a list
    if attributes.get(LAYOUT) != 3:
        write_json(store / ".zattrs", {**attributes, LAYOUT: 3})


def _attributes(group: Path) -> dict[str, Any]:
    """Return the attributes of a group; {} if the file, which is written anew, cannot be read."""
    try:
        content = json.loads((group / ".zattrs").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

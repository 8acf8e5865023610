"""Volumes on disk: read whole, and with other attributes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from conftest import CLASSES

from common.data.volumes.ngff import UNFINISHED, open_levels


def voxels_of(path: str | Path) -> np.ndarray:
    """The voxels of the finest level."""
    level = open_levels(path)[0]
    return level.read((0, 0, 0), level.shape)


def values(folder: Path, names: Sequence[str] = CLASSES) -> np.ndarray:
    """(classes, z, y, x): the finest levels of the classes in a folder."""
    return np.stack([voxels_of(folder / name) for name in names])


@contextmanager
def changing(group: Path) -> Iterator[dict]:
    """The attributes of a group, which are written as the block leaves them."""
    path = group / ".zattrs"
    attributes = json.loads(path.read_text())
    yield attributes
    path.write_text(json.dumps(attributes))


def move(group: Path, by: Sequence[float] | float) -> None:
    """Move a volume by so many nm."""
    with changing(group) as attributes:
        transforms = attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        transforms[1]["translation"] = (np.array(transforms[1]["translation"]) + by).tolist()


def begin_anew(group: Path) -> None:
    """Leave a prediction as it is while another one is made in its place."""
    with changing(group) as attributes:
        del attributes["multiscales"]
        attributes[UNFINISHED] = True

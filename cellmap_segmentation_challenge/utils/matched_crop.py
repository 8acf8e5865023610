"""A volume on the grid of a test crop."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cellmap_segmentation_challenge._public import names_of
from common.data.splits.manifest import Entry
from common.score import packing, submitted

__getattr__ = names_of(__name__, {})


# the public toolbox's arguments, in its order
def match_crop_space(  # noqa: PLR0917
    path: str | os.PathLike[str],
    class_label: str,
    voxel_size: Sequence[float],
    shape: Sequence[int],
    translation: Sequence[float],
) -> np.ndarray:
    """A volume on another grid, (z, y, x): as a submission holds it.

    Ids of a class that is scored by objects, from the nearest voxel; of another class 0 and 1,
    where it fills more than half of a voxel. 0 outside of the volume.

    Args:
        path: a multiscale group, of which the finest level is taken, or an array with the
            attributes voxel_size and translation.
        class_label: the class.
        voxel_size: nm, z, y, x.
        shape: voxels.
        translation: position of the centre of the first voxel in nm.

    Raises:
        FileNotFoundError: without a volume.
        UserError: for one without a place in space, and for values that are neither ids nor a mask
            nor probabilities.
    """
    z, y, x = (int(length) for length in shape)
    entry = Entry(
        crop="",
        dataset="",
        name=class_label,
        voxel_size=_three(voxel_size),
        translation=_three(translation),
        shape=(z, y, x),
    )
    return packing.on_grid(entry, submitted.open_volume(Path(path)))


def _three(numbers: Sequence[float]) -> tuple[float, float, float]:
    z, y, x = (float(number) for number in numbers)
    return z, y, x

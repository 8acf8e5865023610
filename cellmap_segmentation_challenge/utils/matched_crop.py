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
    """Resample a volume to another grid, as a submission holds it; return (z, y, x).

    A class that is scored by objects becomes ids of the nearest voxels. Another class becomes 0 and
    1: 1 where it fills more than half of a voxel. Outside of the volume is 0.

    Args:
        path: a multiscale group, of which the finest level is taken, or an array with the
            attributes voxel_size and translation.
        class_label: name of the class.
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

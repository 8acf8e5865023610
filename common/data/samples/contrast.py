"""Find raw whose contrast is inverted beside that of the other volumes of a run.

In EM membranes are dark, or, where the contrast is inverted, bright; which of the two only labels
tell. A network that learns from both learns neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from common.data.crops.opened import Crop
from common.talk import some

MEMBRANES = ("pm", "mito_mem", "er_mem", "ne_mem")
"""Classes that are darker than what is around them in every preparation.

Not those of lysosomes, lipid droplets and the like, which may enclose what is darker.
"""

VOXELS = 128
"""How many are looked at of membranes, and of others, in a crop; at random places."""

CROPS = 4
"""How many are looked at of a volume."""

CLEAR = 0.5
"""Standard deviations of what is around membranes by which these are bright or dark. On the real
volumes at hand pm is darker by 0.6 to 2.2."""


def inverted(volumes: Mapping[str, Sequence[Crop]], classes: Sequence[str]) -> list[str]:
    """Return a sentence about volumes whose membranes are bright, where those of others are dark.

    volumes: the crops of each, by its name. classes: those of the crops' palettes.
    """
    bright = []
    dark = []
    for name, crops in volumes.items():
        seen = [of_crop(crop, classes) for crop in crops[:CROPS]]
        told = [brightness for brightness in seen if brightness is not None]
        if told and min(told) > CLEAR:
            bright.append(name)
        elif told and max(told) < -CLEAR:
            dark.append(name)
    if not bright or not dark:
        return []
    return [
        f"membranes are bright in {some(bright)}, and dark in {some(dark)}: the contrast of the "
        "first looks inverted, and a network that learns from both learns neither; write that raw "
        "again as its largest value less each voxel, or see that its labels lie on it"
    ]


def of_crop(crop: Crop, classes: Sequence[str]) -> float | None:
    """Return the brightness of membranes above that of other voxels, in deviations of the latter.

    None where the crop has too few known voxels of either.
    """
    labels = crop.palette[:, [name in MEMBRANES for name in classes]]
    is_membrane = (labels == 1).any(axis=1)
    is_other = (labels == 0).any(axis=1) & ~is_membrane
    membranes = _values(crop, is_membrane)
    others = _values(crop, is_other)
    if min(len(membranes), len(others)) < VOXELS / 2 or not others.std():
        return None
    return float((membranes.mean() - others.mean()) / others.std())


def _values(crop: Crop, rows: np.ndarray) -> np.ndarray:
    """Return (n,) raw at examples of these palette rows, in proportion to their voxels."""
    counts = np.where(rows, crop.counts, 0)
    if counts.sum() < VOXELS:
        return np.zeros(0)
    wanted = np.rint(VOXELS * counts / counts.sum()).astype(int)
    chosen = [crop.examples[row, :number] for row, number in enumerate(wanted) if number]
    places = crop.label_grid.origin + np.concatenate(chosen) * crop.label_grid.scale
    voxels = np.rint((places - crop.raw_grid.origin) / crop.raw_grid.scale).astype(int)
    z, y, x = np.clip(voxels, 0, np.array(crop.raw_grid.shape) - 1).T
    return np.asarray(crop.raw()[z, y, x], float)

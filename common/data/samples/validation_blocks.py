"""Choose the blocks that every validation of a split looks at, whatever the run's seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from common.data.crops.opened import Crop
from common.data.samples.sampling import Patch, Sample, generator, on_voxels
from common.data.volumes.level import Grid
from common.files import key_of

BLOCK_ORDER = "crop"
"""What the order of validation blocks depends on.

It was the seed of a run once, so that limited validations of two seeds looked at different blocks.
"""


def validation_samples(crops: Sequence[Crop], input: Patch, target: Patch) -> list[Sample]:
    """Return samples whose target patches cover every validation crop once, in a fixed order.

    They are not augmented. The crops alternate, so that a validation that is cut short has seen all
    of them. Within a crop the order is random, and fixed by the name of the crop: all runs on a
    split look at the same blocks, whatever their seed.
    """
    tiles = []
    for index, crop in enumerate(crops):
        centres = _onto_raw(_tile(crop.label_grid, target), input, target, crop.raw_grid)
        seed = int(key_of([crop.name]), 16) % 2**63
        order = generator(seed, 0).permutation(len(centres))
        tiles.append([Sample(0, index, centres[i], np.eye(3)) for i in order])
    # one block of each crop after the other: a validation cut short by its limit saw all crops
    ordered = []
    for number in range(max((len(tile) for tile in tiles), default=0)):
        ordered += [tile[number] for tile in tiles if number < len(tile)]
    return [replace(sample, k=k) for k, sample in enumerate(ordered)]


def key_of_blocks(crops: Sequence[Crop], blocks: Sequence[Sample], target: Patch) -> str:
    """Return a key (24 hex digits) of the blocks that validations look at, in whatever order."""
    # centres are sums of voxel sizes: rounded, so that they are equal on every machine
    places = []
    for block in blocks:
        name = crops[block.crop].name
        places.append([name, *block.centre.round(3).tolist()])
    return key_of([sorted(places), list(target.shape), list(target.scale)])


def _tile(grid: Grid, target: Patch) -> np.ndarray:
    """Return (blocks, 3) nm: the centres of target patches, side by side, that cover a crop.

    The first patch begins at the first voxel of the crop. The last ones reach beyond it, where
    labels are unknown, so that no voxel counts twice. Along an axis where the crop is no larger
    than the patch, the patch is centred on it.
    """
    centres = []
    for lower, upper, extent in zip(*grid.box(), target.extent, strict=True):
        number = int(np.ceil((upper - lower) / extent - 1e-6))
        if number <= 1:
            centres.append(np.array([(lower + upper) / 2]))
        else:
            centres.append(lower + (np.arange(number) + 0.5) * extent)
    along_axes = np.meshgrid(*centres, indexing="ij")
    return np.stack(along_axes, axis=-1).reshape(-1, 3)


def _onto_raw(centres: np.ndarray, input: Patch, target: Patch, raw: Grid) -> np.ndarray:
    """Return the centres (blocks, 3) of a crop, moved by at most half a voxel onto voxels of raw.

    Along an axis all centres move by the same length, so that neighbouring blocks still touch.
    Along an axis whose raw voxels are larger than those of the target no centre moves: half a voxel
    of raw would be a plane of the target, which would be counted twice or not at all.
    """
    moved = on_voxels(centres, np.eye(3), input, raw)
    in_voxels = target.extent / raw.scale
    is_whole = np.abs(in_voxels - np.rint(in_voxels)) < 1e-6
    together = np.where(is_whole, moved, centres + (moved[0] - centres[0]))
    return np.where(raw.scale > np.array(target.scale) * (1 + 1e-6), centres, together)

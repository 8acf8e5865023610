"""Whether process_func, which gets a block at a time, gives another mask where two blocks meet.

A Gaussian, a median or an opening does, unless `halo` gives it the voxels beyond its block.
"""

from __future__ import annotations

import numpy as np
import torch

from common.data.volumes.box import slices
from common.infer.processing import functions
from common.infer.processing.masks import block_shape
from common.infer.processing.prediction import Prediction
from common.infer.processing.recipe import Recipe
from common.talk import note_once

DEPTH = 16
"""Voxels on each side of a plane between two blocks that are tried, if a block has so many."""

WIDTH = 96
"""Voxels that are tried along the other axes, in the middle of the volume."""

PLANES = 3
"""Planes across an axis that are tried at most."""


def note_seams(recipe: Recipe, name: str, prediction: Prediction) -> None:
    """Note that masks will have seams, which `halo` mends; not where there is a halo.

    Tried is a small part of a block, so that it costs next to nothing.
    """
    if any(recipe.settings.halo):
        return
    try:
        shows = _shows_seams(recipe, name, prediction)
    except Exception:  # a function that needs whole blocks raises whatever it likes
        return
    if shows:
        note_once(
            f"{recipe.path}: process_func gives other masks at the edges of blocks than within "
            "them, and no halo is set: there will be seams; write halo = 8, or as many voxels as "
            "it looks away"
        )


def _shows_seams(recipe: Recipe, name: str, prediction: Prediction) -> bool:
    """Return whether the mask differs at one of the planes between blocks."""
    shape = np.array(prediction.grid.shape)
    block = np.minimum(block_shape(recipe, prediction), shape)
    # of each axis: a filter over sections has no seams across z
    for axis in range(3):
        planes = range(int(block[axis]), int(shape[axis]), int(block[axis]))
        for plane in planes[:PLANES]:
            logits = _around(recipe, name, prediction, axis=axis, plane=plane)
            if _differ(recipe, name, logits, axis=axis, depth=min(DEPTH, plane)):
                return True
    return False


def _around(
    recipe: Recipe, name: str, prediction: Prediction, *, axis: int, plane: int
) -> np.ndarray:
    """Return logits (z, y, x) on both sides of a plane across an axis, 0 at the threshold."""
    shape = np.array(prediction.grid.shape)
    low = np.maximum(shape // 2 - WIDTH // 2, 0)
    high = np.minimum(low + WIDTH, shape)
    low[axis] = plane - min(DEPTH, plane)
    high[axis] = min(plane + DEPTH, shape[axis])
    logits = prediction.logits(low.tolist(), high.tolist())
    return logits - prediction.logit(recipe.threshold(name))


def _differ(recipe: Recipe, name: str, logits: np.ndarray, *, axis: int, depth: int) -> bool:
    """Return whether the mask of both sides at once differs from those of each side by itself.

    Only voxels near the plane are compared: those at the far ends have nothing beyond them in
    either.

    Args:
        recipe: has process_func.
        name: of the class.
        logits: (z, y, x) of both sides.
        axis: that the plane is across.
        depth: voxels before the plane.
    """
    start = np.zeros(3, int)
    stop = np.array(logits.shape)
    end = stop.copy()
    end[axis] = depth
    begin = start.copy()
    begin[axis] = depth
    parts = [logits[slices(start, end)], logits[slices(begin, stop)]]
    at_once = _mask(recipe, name, logits)
    side_by_side = np.concatenate([_mask(recipe, name, part) for part in parts], axis=axis)
    near = [slice(None)] * 3
    near[axis] = slice(depth // 2, depth + (stop[axis] - depth + 1) // 2)
    return bool((at_once[tuple(near)] != side_by_side[tuple(near)]).any())


def _mask(recipe: Recipe, name: str, logits: np.ndarray) -> np.ndarray:
    """Return what process_func makes of logits (z, y, x)."""
    batch = torch.from_numpy(np.ascontiguousarray(logits)[None, None])
    return functions.mask(recipe, name, batch)[0, 0]

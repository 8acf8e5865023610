"""process_func over the blocks of a class: how large they are, and the mask of each.

In a worker the recipe and the prediction are opened by what its caller tells of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from common.data.volumes.box import slices
from common.data.volumes.placement import is_same_size
from common.errors import FileError, UserError
from common.infer.made_by import engine_hash, refuse_other_engine
from common.infer.objects.volume import Block, ends
from common.infer.predicting.output import is_within_reach
from common.infer.processing import functions
from common.infer.processing.prediction import Prediction, open_prediction
from common.infer.processing.recipe import Recipe, read_recipe
from common.talk import lengths, nm

# small chunks one by one would spend their time in process_func's overhead and halo
LEAST_BLOCK = 128
"""Edge in voxels that chunks are put together to, where process_config.py has no block shape."""


def block_shape(recipe: Recipe, prediction: Prediction) -> np.ndarray:
    """Return (3,) voxels of a block: what process_config.py says, or whole chunks.

    Raise UserError where the prediction has voxels of another size than process_config.py says.
    """
    info = recipe.settings.input_array_info
    if not info:
        return whole_chunks(prediction)
    if not is_same_size(info["scale"], prediction.grid.scale):
        advice = "write that scale there, or leave input_array_info out"
        # the network's voxels are mostly those of the prediction
        if is_within_reach(info["scale"], prediction.grid.scale):
            advice += f", or predict with --scale {lengths(info['scale'])} --overwrite"
        raise UserError(
            f"{prediction.level.path}: voxels of {nm(prediction.grid.scale)} nm, and "
            f"input_array_info of {recipe.path} says {nm(info['scale'])} nm; {advice}"
        )
    return np.array(info["shape"])


def whole_chunks(prediction: Prediction) -> np.ndarray:
    """Return (3,) voxels of a block of as many chunks as make it LEAST_BLOCK."""
    return np.array([chunk * max(1, LEAST_BLOCK // chunk) for chunk in prediction.chunks])


def masks_of_blocks(
    recipe: Recipe, name: str, prediction: Prediction, blocks: Sequence[Block]
) -> list[np.ndarray]:
    """Return the mask (z, y, x) bool of each block, by one call of process_func.

    process_func gets the halo around a block, too; beyond the volume it repeats the volume's edge.
    """
    shape = np.minimum(block_shape(recipe, prediction), prediction.grid.shape)
    zero = prediction.logit(recipe.threshold(name))
    halo = np.array(recipe.settings.halo)
    logits = []
    for block in blocks:
        start, _ = ends(block.core)
        # process_func has 0 at the threshold
        logits.append(_padded_logits(prediction, start - halo, start + shape + halo) - zero)
    batch = torch.from_numpy(np.stack(logits)[:, None])
    masks = functions.mask(recipe, name, batch)[:, 0]
    cores = []
    for block, mask in zip(blocks, masks, strict=True):
        start, stop = ends(block.core)
        cores.append(mask[slices(halo, halo + stop - start)])
    return cores


def _padded_logits(prediction: Prediction, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return logits of voxels low..high; those beyond the volume repeat its outermost ones."""
    first = np.maximum(low, 0)
    last = np.minimum(high, prediction.grid.shape)
    logits = prediction.logits(first.tolist(), last.tolist())
    beyond = list(zip(first - low, high - last, strict=True))
    return np.pad(logits, beyond, mode="edge")


# In a worker


@dataclass(frozen=True)
class MaskSource:
    """What a worker computes the masks of a class by."""

    config_path: Path
    """process_config.py, or what process_config_path names."""
    code: str
    """Hash of the caller's process_config.py, see `Recipe`."""
    engine: str
    """`common.infer.made_by.engine_hash` of the caller."""
    name: str
    """Of the class."""
    threshold: float
    predicted: Path
    """Multiscale group of the prediction."""


def source_of(recipe: Recipe, name: str, prediction: Prediction) -> MaskSource:
    """Return what workers compute the masks of a class by."""
    return MaskSource(
        recipe.path,
        recipe.code,
        engine_hash(),
        name,
        threshold=recipe.threshold(name),
        predicted=prediction.level.group,
    )


def masks_in_worker(source: MaskSource, blocks: Sequence[Block]) -> list[np.ndarray]:
    """Return the mask (z, y, x) bool of each block, in a worker."""
    return masks_of_blocks(recipe_of(source), source.name, _prediction_of(source), blocks)


@lru_cache(maxsize=1)
def recipe_of(source: MaskSource) -> Recipe:
    """Read the recipe once in a worker, and keep it.

    Raise FileError where the recipe or the engine is another than the caller's.
    """
    refuse_other_engine(source.engine)
    recipe = read_recipe(source.config_path)
    if recipe.code != source.code:
        raise FileError(
            f"{recipe.path}: another one than this worker's caller has; let both see the same files"
        )
    return replace(recipe, thresholds={source.name: source.threshold})


@lru_cache(maxsize=1)
def _prediction_of(source: MaskSource) -> Prediction:
    """Open the prediction once in a worker, and keep it."""
    return open_prediction(source.predicted)

"""The mask and the objects of one class, made of its prediction: by this process or by workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.config.instance_options import takes_channels
from common.data.volumes.box import slices
from common.data.volumes.placement import is_same_size
from common.data.volumes.records import PredictionRecord, ProcessedRecord, read_prediction
from common.errors import FileError, UserError
from common.files import key_of
from common.infer import instances
from common.infer.ledger import state_of
from common.infer.machines.crew import Crew
from common.infer.made_by import engine_hash, refuse_other_engine
from common.infer.objects import volume as volume_module
from common.infer.objects.volume import Block, BlockWork, Box, Volume, ends
from common.infer.processing import functions
from common.infer.processing.prediction import Channels, Prediction, Probability, open_prediction
from common.infer.processing.recipe import Recipe, read_recipe
from common.infer.processing.stages import Place, Stages

# small chunks one by one would spend their time in process_func's overhead and halo
LEAST_BLOCK = 128
"""Edge in voxels that chunks are put together to, where process_config.py has no block shape."""


@dataclass(frozen=True)
class Making:
    """What a class is made of, and by whom."""

    recipe: Recipe
    name: str
    prediction: Prediction
    bar: tqdm | None = None
    """Progress, in voxels."""
    crew: Crew | None = None
    """Workers; None is this process."""
    read: dict[str, PredictionRecord] = field(default_factory=dict)
    """The records of other predictions that `objects` read, by name; it puts them in."""
    scratch: Path | None = None
    """Folder of intermediate volumes; None is the system's temporary one."""
    stages: Stages | None = None
    """What keeps volumes until the class is whole."""

    def tell(self, block: Block) -> None:
        """A block of the mask is there."""
        if self.bar is not None:
            start, stop = ends(block.core)
            self.bar.update(math.prod((stop - start).tolist()))


def objects(making: Making) -> Volume:
    """The ids of an instance class: its mask, then instance_func over the whole volume."""
    is_class = mask(making)
    if making.recipe.settings.instance_func is None:
        return instances.connected_components(is_class)
    probability = replace(is_class, array=Probability(making.prediction))
    channels = Channels(making.prediction, is_class, making.read)
    ids = functions.ids(making.recipe, making.name, is_class, probability, channels)
    return ids if ids.dtype.kind != "b" else instances.connected_components(ids)


def mask(making: Making) -> Volume:
    """The mask of a class: process_func over its blocks."""
    like = _probability(making.recipe, making.prediction)
    like = replace(like, scratch=making.scratch, stages=making.stages)
    function = partial(_masks_of, MaskSource.of(making))
    if making.crew is None:
        function = partial(_masks, making.recipe, making.name, making.prediction)
    together = making.recipe.settings.batch_size
    work = BlockWork(function, (like,), together=together, told=making.tell)
    return volume_module.fill(like, work, np.bool_)


def mask_blocks(
    recipe: Recipe, name: str, prediction: Prediction
) -> Iterator[tuple[Box, np.ndarray]]:
    """Where each block of a class is, and its mask (z, y, x) bool; by this process."""
    like = _probability(recipe, prediction)
    function = partial(_masks, recipe, name, prediction)
    work = BlockWork(function, (like,), together=recipe.settings.batch_size)
    for block, is_class in volume_module.each_result(like, work):
        yield block.core, is_class


def _probability(recipe: Recipe, prediction: Prediction) -> Volume:
    """The probabilities of a class, in the blocks that process_func takes."""
    return Volume(
        Probability(prediction),
        voxel_size=tuple(prediction.grid.scale.tolist()),
        block=tuple(block_shape(recipe, prediction).tolist()),
    )


def _masks(
    recipe: Recipe, name: str, prediction: Prediction, blocks: Sequence[Block]
) -> list[np.ndarray]:
    """process_func over some blocks at once. Halos beyond the volume repeat its edge."""
    shape = np.minimum(block_shape(recipe, prediction), prediction.grid.shape)
    zero = prediction.logit(recipe.threshold(name))
    halo = np.array(recipe.settings.halo)
    logits = []
    for block in blocks:
        start, _ = ends(block.core)
        # process_func has 0 at the threshold
        logits.append(_padded_logits(prediction, start - halo, start + shape + halo) - zero)
    given = torch.from_numpy(np.stack(logits)[:, None])
    masks = functions.mask(recipe, name, given)[:, 0]
    cores = []
    for block, is_class in zip(blocks, masks, strict=True):
        start, stop = ends(block.core)
        cores.append(is_class[slices(halo, halo + stop - start)])
    return cores


def _padded_logits(prediction: Prediction, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Logits of voxels low..high; those beyond the volume are as its outermost ones."""
    first = np.maximum(low, 0)
    last = np.minimum(high, prediction.grid.shape)
    logits = prediction.logits(first.tolist(), last.tolist())
    beyond = list(zip(first - low, high - last, strict=True))
    return np.pad(logits, beyond, mode="edge")


# How large blocks are


def block_shape(recipe: Recipe, prediction: Prediction) -> np.ndarray:
    """(3,) voxels of a block: what process_config.py says, or whole chunks.

    Raises UserError where the prediction has voxels of another size than process_config.py says.
    """
    info = recipe.settings.input_array_info
    if not info:
        return whole_chunks(prediction)
    if not is_same_size(info["scale"], prediction.grid.scale):
        wanted = ",".join(f"{length:g}" for length in info["scale"])
        raise UserError(
            f"{prediction.level.path}: voxels of {prediction.grid.scale.tolist()} nm, and "
            f"input_array_info of {recipe.path} says {list(info['scale'])}; write that scale "
            f"there, or leave input_array_info out, or predict with --scale {wanted} --overwrite"
        )
    return np.array(info["shape"])


def whole_chunks(prediction: Prediction) -> np.ndarray:
    """(3,) voxels of a block of as many chunks as make it LEAST_BLOCK."""
    return np.array([chunk * max(1, LEAST_BLOCK // chunk) for chunk in prediction.chunks])


# Where another call goes on, and other processes help


def stages_of(making: Making, folder: Path, record: ProcessedRecord) -> Stages | None:
    """What keeps the stages of a class; None for one that is quickly made again.

    folder: of the box. record: what the class will say of how it was made.
    """
    grid = making.prediction.grid
    if making.crew is None and math.prod(grid.shape) <= volume_module.IN_MEMORY:
        return None
    made = record.prediction.made
    block = block_shape(making.recipe, making.prediction).tolist()
    content = [record.key, made, block, engine_hash()]
    function = making.recipe.settings.instance_func
    if function is not None and takes_channels(function):
        content.append(_states_beside(making.prediction))
    key = key_of(content)
    place = Place(folder, making.name, grid, key)
    return Stages(place, making.crew, prepare=partial(_recipe_of, MaskSource.of(making)))


def _states_beside(prediction: Prediction) -> dict[str, Any]:
    """Of all predictions of a box; which ones a function reads is known when it has run."""
    states = {}
    for path in sorted(prediction.box_folder.glob("*/.zattrs")):
        record = read_prediction(path.parent)
        if record is not None:
            states[path.parent.name] = state_of(record)
    return states


@dataclass(frozen=True)
class MaskSource:
    """What a worker makes masks by."""

    config_path: Path
    """process_config.py, or what process_config_path names."""
    code: str
    engine: str
    """As of `common.infer.made_by.engine_hash`."""
    name: str
    threshold: float
    predicted: Path

    @classmethod
    def of(cls, making: Making) -> MaskSource:
        """That of a class."""
        recipe = making.recipe
        return cls(
            recipe.path,
            recipe.code,
            engine_hash(),
            making.name,
            threshold=recipe.threshold(making.name),
            predicted=making.prediction.level.group,
        )


@lru_cache(maxsize=1)
def _recipe_of(source: MaskSource) -> Recipe:
    """The recipe in a worker. Raises FileError for another than the caller's, or another engine."""
    refuse_other_engine(source.engine)
    recipe = read_recipe(source.config_path)
    if recipe.code != source.code:
        raise FileError(
            f"{recipe.path}: another one than this worker's caller has; let both see the same files"
        )
    return replace(recipe, thresholds={source.name: source.threshold})


@lru_cache(maxsize=1)
def _prediction_of(source: MaskSource) -> Prediction:
    return open_prediction(source.predicted)


def _masks_of(source: MaskSource, blocks: Sequence[Block]) -> list[np.ndarray]:
    """The masks of some blocks, in a worker."""
    return _masks(_recipe_of(source), source.name, _prediction_of(source), blocks)

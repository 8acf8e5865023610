"""The mask and the objects of one class, made of its prediction: by this process or by workers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.config.instance_options import takes_channels
from common.data.volumes.records import PredictionRecord, ProcessedRecord, read_prediction
from common.files import key_of
from common.infer import instances
from common.infer.ledger import state_of
from common.infer.machines.crew import Crew
from common.infer.made_by import engine_hash
from common.infer.objects import volume as volume_module
from common.infer.objects.volume import Block, BlockWork, Volume, ends
from common.infer.processing import functions
from common.infer.processing.masks import (
    block_shape,
    masks_in_worker,
    masks_of_blocks,
    recipe_of,
    source_of,
)
from common.infer.processing.prediction import Channels, Prediction, Probability
from common.infer.processing.recipe import Recipe
from common.infer.processing.stages import Stages, StagesPlace


@dataclass(frozen=True)
class Making:
    """What a class is made of, and by whom."""

    recipe: Recipe
    name: str
    """Of the class."""
    prediction: Prediction
    bar: tqdm | None = None
    """Progress, in voxels."""
    crew: Crew | None = None
    """The workers; None is this process."""
    read: dict[str, PredictionRecord] = field(default_factory=dict)
    """The records of other predictions that `objects` read, by name; it puts them in."""
    scratch: Path | None = None
    """Folder of intermediate volumes; None is the system's temporary one."""
    stages: Stages | None = None
    """What keeps intermediate volumes until the class is whole."""

    def tell(self, block: Block) -> None:
        """Count a block of the mask as done."""
        if self.bar is not None:
            start, stop = ends(block.core)
            self.bar.update(math.prod((stop - start).tolist()))


def objects(making: Making) -> Volume:
    """Return the ids of an instance class: its mask, then instance_func over the whole volume."""
    is_class = mask(making)
    if making.recipe.settings.instance_func is None:
        return instances.connected_components(is_class)
    probability = replace(is_class, array=Probability(making.prediction))
    channels = Channels(making.prediction, is_class, making.read)
    ids = functions.ids(making.recipe, making.name, is_class, probability, channels)
    return ids if ids.dtype.kind != "b" else instances.connected_components(ids)


def mask(making: Making) -> Volume:
    """Return the mask of a class, bool: process_func over its blocks."""
    recipe = making.recipe
    prediction = making.prediction
    like = Volume(
        Probability(prediction),
        voxel_size=tuple(prediction.grid.scale.tolist()),
        block=tuple(block_shape(recipe, prediction).tolist()),
        scratch=making.scratch,
        stages=making.stages,
    )
    if making.crew is None:
        function = partial(masks_of_blocks, recipe, making.name, prediction)
    else:
        function = partial(masks_in_worker, source_of(recipe, making.name, prediction))
    work = BlockWork(function, (like,), together=recipe.settings.batch_size, told=making.tell)
    return volume_module.fill(like, work, np.bool_)


# Where another call goes on


def stages_of(making: Making, folder: Path, record: ProcessedRecord) -> Stages | None:
    """Return what keeps the stages of a class; None for one that is quickly made again.

    Args:
        making: the class.
        folder: of the box.
        record: what the class will say of how it was made.
    """
    grid = making.prediction.grid
    if making.crew is None and math.prod(grid.shape) <= volume_module.IN_MEMORY:
        return None
    block = block_shape(making.recipe, making.prediction).tolist()
    content = [record.key, record.prediction.made, block, engine_hash()]
    function = making.recipe.settings.instance_func
    if function is not None and takes_channels(function):
        content.append(_states_of_box(making.prediction))
    place = StagesPlace(folder, making.name, grid, key_of(content))
    source = source_of(making.recipe, making.name, making.prediction)
    return Stages(place, making.crew, prepare=partial(recipe_of, source))


def _states_of_box(prediction: Prediction) -> dict[str, Any]:
    """Return the states of all predictions of a box, by class.

    Which of them instance_func reads is known only when it has run.
    """
    states = {}
    for path in sorted(prediction.box_folder.glob("*/.zattrs")):
        record = read_prediction(path.parent)
        if record is not None:
            states[path.parent.name] = state_of(record)
    return states

"""From predictions to masks and objects, from top to bottom.

    read process_config.py -> choose boxes -> find their predictions -> for each class: mask block
    by block, objects over the whole volume, write

A processed volume says in its attribute "processed" what made it (see common.data.records): the
prediction, the threshold, and a hash of process_config.py and of the files that it imports from its
folder and from this repository. What was made by the same is left as it is, so an edited function,
a tuned threshold and a new checkpoint are followed and nothing else is done twice. Until its last
voxel is written a volume is marked as unfinished, and nothing here takes it for whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import zarr
from tqdm import tqdm

from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data import ngff, records, regions, regrid, series
from common.data.ngff import Grid, slices
from common.data.records import PredictionRecord, ProcessedRecord
from common.data.regions import Region
from common.errors import FileError, Incomplete, UserError
from common.files import key_of
from common.infer import cluster, functions, instances, ledger, sharing, status
from common.infer import volume as volume_module
from common.infer.boxes import Box, corners
from common.infer.crew import Crew
from common.infer.engine import IN_THIS_PROCESS, Engine
from common.infer.instances import Volume
from common.infer.prediction import Channels, Prediction, Probability, open_prediction
from common.infer.recipe import Recipe, load_recipe, read_recipe
from common.infer.stages import Place, Stages, clear_stages
from common.infer.volume import EVERYWHERE, Block, BlockWork
from common.infer.writer import writing
from common.talk import count, note, progress, say, some

# small chunks one by one would spend their time in process_func's overhead and halo
LEAST_BLOCK = 128
"""Edge in voxels that chunks are put together to, where process_config.py has no block shape."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def process(  # noqa: PLR0913  # the options of the command
    config_path: str | Path,
    crops: str = "validate",
    *,
    volume: str | Path = "",
    roi: str = "",
    classes: Sequence[str] = (),
    manifest_path: str = "",
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    engine: Engine = IN_THIS_PROCESS,
) -> list[Path]:
    """Turn the predictions of crops, or of a volume, into masks and objects; gives their folders.

    A folder has a multiscale group for each class. What was processed from the same predictions in
    the same way is left as it is, what was processed otherwise is replaced. Raises
    FileNotFoundError or UserError; after all other boxes NotYet where other processes work on some,
    and Incomplete where blocks failed.

    Args:
        config_path: the experiment; with `overrides` and `data` as of `common.config.load`.
        crops: which; or `volume` with `roi`; with `manifest_path` as of `common.data.regions`.
        volume: path of a volume of one's own.
        roi: box of it.
        classes: some of process_config.py's; all that are predicted unless given.
        manifest_path: of test crops.
        overwrite: replace all.
        overrides: "name=value" for settings.
        data: data root.
        engine: where blocks are computed.
    """
    config = load_config(config_path, overrides, data)
    recipe = load_recipe(config, classes)
    boxes = regions.choose(
        config, crops, volume=volume, roi=roi, manifest_path=manifest_path, say=say
    )
    # all of them before anything is written, so that all that is wrong is said at once
    predictions = gather(partial(find_predictions, recipe, config, every=bool(classes)), boxes)
    _note_other_checkpoints(recipe, predictions)
    root = config.path("processed_path")
    call = _call(recipe, boxes, predictions)
    with cluster.opened(engine, root, call) as crew:
        run = partial(process_region, recipe, root=root, overwrite=overwrite, crew=crew)
        return sharing.each(lambda box: run(*box), list(zip(boxes, predictions, strict=True)))


def _call(
    recipe: Recipe, boxes: Sequence[Region], predictions: Sequence[dict[str, Prediction]]
) -> str:
    """Hash of what a call processes, by which the same command is known on another machine."""
    content = []
    for region, of_box in zip(boxes, predictions, strict=True):
        keys = [describe(recipe, name, p.record).key for name, p in of_box.items()]
        content.append([str(region), keys])
    return key_of(["process", content])


def find_predictions(
    recipe: Recipe, config: TrainConfig, region: Region, every: bool = False
) -> dict[str, Prediction]:
    """The predictions of a box by class: those of the recipe's classes that are there.

    every: all of them must be. Raises FileNotFoundError where there is none, or not every one;
    UserError for one that is half-written or does not cover the box.
    """
    folder = region.folder(config.path("predictions_path"))
    wanted = list(recipe.classes)
    if region.truth is None and region.classes:  # a test crop, of which some are scored
        wanted = [name for name in wanted if name in region.classes]
    absent = [name for name in wanted if not (folder / name).is_dir()]
    if absent and (every or len(absent) == len(wanted)):
        raise FileNotFoundError(f"{folder}: no prediction of {some(absent)}; run predict first")
    if absent:
        note(f"{region}: {some(absent)} not predicted, left out")
    present = [name for name in wanted if name not in absent]
    open_class = partial(_open_fitting, recipe, region, folder)
    return dict(zip(present, gather(open_class, present), strict=True))


def _open_fitting(recipe: Recipe, region: Region, folder: Path, name: str) -> Prediction:
    """The prediction of a class, which must cover the box and have the recipe's voxels."""
    prediction = open_prediction(folder / name)
    whole = Grid((region.lower + region.upper) / 2, region.upper - region.lower, (1, 1, 1))
    if not regrid.covers(prediction.level, whole):
        raise UserError(
            f"{folder / name}: {regrid.shortfall(prediction.level, whole)} of {region}; run "
            "predict with --overwrite"
        )
    block_shape(recipe, prediction)  # which refuses other voxels
    return prediction


def process_region(
    recipe: Recipe,
    region: Region,
    predictions: dict[str, Prediction],
    *,
    root: Path,
    overwrite: bool = False,
    crew: Crew | None = None,
) -> Path:
    """Process the classes of one box into its folder under `root`, by workers if there are some.

    What is there as it would be made now is left, unless overwrite. Raises Busy where another
    process works on the box.
    """
    folder = region.folder(root)
    with writing(folder), sharing.sole_worker(folder, "processing"):
        _process_left(recipe, region, predictions, folder=folder, overwrite=overwrite, crew=crew)
    return folder


def _process_left(
    recipe: Recipe,
    region: Region,
    predictions: dict[str, Prediction],
    *,
    folder: Path,
    overwrite: bool,
    crew: Crew | None,
) -> None:
    """Process the classes of one box that are not there as they would be made now."""
    wanted = {name: describe(recipe, name, p.record) for name, p in predictions.items()}
    left = []
    for name, record in wanted.items():
        if overwrite or not ledger.is_processed(folder / name, record):
            left.append(name)
        else:
            # of a call with --overwrite that was killed
            clear_stages(folder, name)
    if not left:
        status.clear(folder)
        series.complete([folder / name for name in wanted])
        say(f"{region}: already there, in {folder}")
        return
    say(f"{region}: {count(len(left), 'class', 'classes')}")
    total = sum(predictions[name].level.array.size for name in left)
    with progress(total, unit="voxel", unit_scale=True) as bar:
        zarr.open_group(str(folder.parent), mode="a").require_group(folder.name)
        incomplete = []
        for name in left:  # in threads side by side they take as long, and more memory
            bar.set_postfix_str(name, refresh=False)
            making = Making(recipe, name, predictions[name], bar, crew)
            try:
                process_class(making, folder=folder, record=wanted[name])
            except Incomplete as error:
                incomplete.append(str(error))
        if incomplete:
            raise Incomplete("\n".join(incomplete))
        series.add([folder / name for name in wanted])
    _note_everywhere(region, folder, {name: wanted[name].threshold for name in left})


def _note_everywhere(region: Region, folder: Path, thresholds: Mapping[str, float]) -> None:
    """Note classes that are positive in nearly all of a box."""
    full = []
    for name, threshold in thresholds.items():
        # the voxels that the coarsest level picks stand for all
        level = ngff.open_levels(folder / name)[-1]
        values = level.read((0, 0, 0), level.shape)
        if np.count_nonzero(values) >= EVERYWHERE * values.size:
            full.append(f"{name} (threshold {threshold:g})")
    if full:
        note(
            f"{region}: positive in nearly all voxels: {some(full)}; look at the pictures "
            "(visualize), and at thresholds unless the box lies within it"
        )


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

    @property
    def block(self) -> np.ndarray:
        """(3,) voxels that are worked on at a time."""
        return block_shape(self.recipe, self.prediction)

    def masks(self) -> Masks:
        """Block by block, by this process."""
        return _told(mask_blocks(self.recipe, self.name, self.prediction), self.bar)

    def tell(self, block: Block) -> None:
        """A block of the mask is there."""
        if self.bar is not None:
            shape = [along.stop - along.start for along in block.core]
            self.bar.update(math.prod(shape))


def process_class(making: Making, *, folder: Path, record: ProcessedRecord) -> None:
    """Write the mask or the objects of a class, whole or marked as unfinished.

    A volume too large to be made again in seconds goes on where an earlier call was killed.

    Args:
        making: what it is made of.
        folder: of the box; the class is in its group of that name.
        record: what it will say of how it was made.
    """
    grid = making.prediction.grid
    path = folder / making.name
    stages = _stages(making, folder, record)
    if making.recipe.makes_objects(making.name):
        volume = _objects(making, scratch=folder, stages=stages)
        # only now: how many objects there are says how many bytes an id takes
        dtype = instances.smallest_dtype(instances.largest(volume))
        _write(volume, path, making.prediction, dtype, record)
    elif stages is not None:
        _write(_mask(making, folder, stages), path, making.prediction, np.uint8, record)
    else:
        array = _opened(path, making.prediction, np.uint8, record, stages=None)
        for where, mask in making.masks():
            array[where] = mask
    ngff.finish_multiscale(path, grid, ngff.pyramid(grid), ngff.pick)
    if stages is not None:
        stages.place.clear()


def _write(  # noqa: PLR0917
    volume: Volume,
    path: Path,
    prediction: Prediction,
    dtype: np.dtype | type,
    record: ProcessedRecord,
) -> None:
    """Write a volume into the array of a class, in whole chunks: no two workers share one."""
    volume = replace(volume, block=tuple(whole_chunks(prediction).tolist()))
    array = _opened(path, prediction, dtype, record, stages=volume.stages)
    instances.copy(volume, array)


def _stages(making: Making, folder: Path, record: ProcessedRecord) -> Stages | None:
    """What keeps the stages of a class; None for one that is quickly made again."""
    grid = making.prediction.grid
    if making.crew is None and math.prod(grid.shape) <= volume_module.IN_MEMORY:
        return None
    key = key_of([record.key, making.block.tolist()])
    place = Place(folder, making.name, grid, key)
    return Stages(place, making.crew, prepare=partial(_recipe_of, Source.of(making)))


def _opened(
    path: Path,
    prediction: Prediction,
    dtype: np.dtype | type,
    record: ProcessedRecord,
    *,
    stages: volume_module.Stages | None,
) -> zarr.Array:
    """The array of a class to write to, as an earlier call left it if that was at this stage."""
    if stages is not None:
        if not stages.begins() and _is_begun(path, record):
            return zarr.open_array(str(path / "s0"), mode="r+", write_empty_chunks=False)
        stages.drop_next()
    record = replace(record, made=datetime.now(UTC).isoformat(timespec="seconds"))
    return ngff.start_multiscale(
        path,
        prediction.grid,
        dtype,
        prediction.chunks,
        attributes=records.group_attributes(path.name, record),
    )


def _is_begun(path: Path, record: ProcessedRecord) -> bool:
    """Whether a class is there as it would be made, unfinished."""
    if records.is_damaged(path) or records.is_finished(path):
        return False
    stored = records.read_processed(path)
    return stored is not None and stored.key == record.key


def _mask(making: Making, scratch: Path | None, stages: Stages | None) -> Volume:
    """The mask of a class."""
    like = Volume(
        Probability(making.prediction),
        voxel_size=tuple(making.prediction.grid.scale.tolist()),
        block=tuple(making.block.tolist()),
        scratch=scratch,
        stages=stages,
    )
    if stages is None:
        mask = instances.zeros(like, np.bool_)
        for where, values in making.masks():
            mask.array[where] = values
        return mask
    function = partial(_masks_of, Source.of(making))
    if making.crew is None:
        function = partial(_masks, making.recipe, making.name, making.prediction)
    together = making.recipe.settings.batch_size
    return volume_module.fill(
        like, BlockWork(function, (like,), together=together, told=making.tell), np.bool_
    )


@dataclass(frozen=True)
class Source:
    """What a worker makes masks by."""

    folder: Path
    """Of the experiment."""
    code: str
    name: str
    threshold: float
    predicted: Path

    @classmethod
    def of(cls, making: Making) -> Source:
        """That of a class."""
        recipe = making.recipe
        return cls(
            recipe.path.parent,
            recipe.code,
            making.name,
            recipe.threshold(making.name),
            predicted=making.prediction.level.path.parent,
        )


@lru_cache(maxsize=1)
def _recipe_of(source: Source) -> Recipe:
    """The recipe in a worker. Raises FileError for another than the caller's."""
    recipe = read_recipe(source.folder)
    if recipe.code != source.code:
        raise FileError(
            f"{recipe.path}: another one than this worker's caller has; let both see the same files"
        )
    return replace(recipe, thresholds={source.name: source.threshold})


@lru_cache(maxsize=1)
def _prediction_of(source: Source) -> Prediction:
    return open_prediction(source.predicted)


def _masks_of(source: Source, blocks: Sequence[Block], _: None) -> list[np.ndarray]:
    """The masks of some blocks, in a worker."""
    return _masks(_recipe_of(source), source.name, _prediction_of(source), blocks, _)


def _masks(  # a partial of it
    recipe: Recipe, name: str, prediction: Prediction, blocks: Sequence[Block], _: None
) -> list[np.ndarray]:
    block = np.minimum(block_shape(recipe, prediction), prediction.grid.shape)
    starts = [np.array([along.start for along in b.core]) for b in blocks]
    found = _batch_of_masks(recipe, name, prediction, starts=starts, block=block)
    return [mask for _, mask in found]


Masks = Iterator[tuple[Box, np.ndarray]]
"""Where a block is, and its mask (z, y, x) bool."""


def mask_blocks(recipe: Recipe, name: str, prediction: Prediction) -> Masks:
    """process_func over the blocks of a class. Halos beyond the volume repeat its edge."""
    shape = np.array(prediction.grid.shape)
    block = np.minimum(block_shape(recipe, prediction), shape)
    starts = [start for _, start in corners(shape, block)]
    at_once = recipe.settings.batch_size
    for first in range(0, len(starts), at_once):
        yield from _batch_of_masks(
            recipe, name, prediction, starts=starts[first : first + at_once], block=block
        )


def _batch_of_masks(
    recipe: Recipe,
    name: str,
    prediction: Prediction,
    *,
    starts: list[np.ndarray],
    block: np.ndarray,
) -> Masks:
    """process_func over some blocks at once."""
    zero = prediction.logit(recipe.threshold(name))
    halo = np.array(recipe.settings.halo)
    logits = []
    for start in starts:
        # process_func has 0 at the threshold
        logits.append(_padded_logits(prediction, start - halo, start + block + halo) - zero)
    given = torch.from_numpy(np.stack(logits)[:, None])
    masks = functions.mask(recipe, name, given)
    for start, mask in zip(starts, masks[:, 0], strict=True):
        stop = np.minimum(start + block, prediction.grid.shape)
        yield slices(start, stop), mask[slices(halo, halo + stop - start)]


def _padded_logits(prediction: Prediction, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Logits of voxels low..high; those beyond the volume are as its outermost ones."""
    first = np.maximum(low, 0)
    last = np.minimum(high, prediction.grid.shape)
    logits = prediction.logits(first.tolist(), last.tolist())
    beyond = list(zip(first - low, high - last, strict=True))
    return np.pad(logits, beyond, mode="edge")


def _told(blocks: Masks, bar: tqdm | None) -> Masks:
    """The same blocks; the bar goes on by the voxels of each."""
    for where, mask in blocks:
        yield where, mask
        if bar is not None:
            bar.update(mask.size)


def objects(recipe: Recipe, name: str, prediction: Prediction) -> Volume:
    """The ids of an instance class: process_func, then instance_func over the whole volume."""
    return _objects(Making(recipe, name, prediction))


def _objects(making: Making, scratch: Path | None = None, stages: Stages | None = None) -> Volume:
    """The same. scratch: folder of intermediate volumes; stages: what keeps them."""
    mask = _mask(making, scratch, stages)
    if making.recipe.settings.instance_func is None:
        return instances.connected_components(mask)
    probability = replace(mask, array=Probability(making.prediction))
    channels = Channels(making.prediction, mask)
    ids = functions.ids(making.recipe, making.name, mask, probability, channels)
    return ids if ids.dtype.kind != "b" else instances.connected_components(ids)


def describe(recipe: Recipe, name: str, prediction: PredictionRecord) -> ProcessedRecord:
    """What a class that is processed now will say of how it was made."""
    record = ProcessedRecord(
        threshold=recipe.threshold(name),
        process_config=recipe.code,
        instances=recipe.makes_objects(name),
        options=recipe.options.get(name),
        prediction=prediction,
    )
    return record.with_key(name)


def check_processed(
    recipe: Recipe, name: str, processed: Path, predicted: Path
) -> ProcessedRecord | None:
    """What a processed volume says of how it was made; None if it is of another program.

    Raises FileNotFoundError without one, UserError if it is half-written, or not what `process`
    would make now.
    """
    if not (processed / ".zattrs").is_file():
        raise FileNotFoundError(f"{processed}: no processed volume; run predict, then process")
    records.refuse_unreadable(processed, "process")
    ngff.open_levels(processed)  # which refuses a half-written one
    stored = records.read_processed(processed)
    if stored is None:
        return None
    records.refuse_lost_chunks(processed, "process")
    wanted = describe(recipe, name, stored.prediction)
    prediction = open_prediction(predicted).record if predicted.is_dir() else None
    ledger.refuse_stale(processed, stored, wanted, prediction)
    return stored


def gather(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Function of each item; what users can mend is collected from all of them, as one error.

    Which is a FileNotFoundError where all of them are.
    """
    results = []
    problems: list[Exception] = []
    for item in items:
        try:
            results.append(function(item))
        except (FileNotFoundError, UserError) as error:
            problems.append(error)
    if not problems:
        return results
    lines = [str(error) for error in problems[:10]]
    if len(problems) > 10:
        lines.append(f"... and {len(problems) - 10} more")
    all_absent = all(isinstance(error, FileNotFoundError) for error in problems)
    kind = FileNotFoundError if all_absent else UserError
    raise kind("\n".join(lines))


def block_shape(recipe: Recipe, prediction: Prediction) -> np.ndarray:
    """(3,) voxels of a block: what process_config.py says, or whole chunks.

    Raises UserError where the prediction has voxels of another size than process_config.py says.
    """
    info = recipe.settings.input_array_info
    if not info:
        return whole_chunks(prediction)
    if not np.allclose(info["scale"], prediction.grid.scale, rtol=1e-3):
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


def _note_other_checkpoints(recipe: Recipe, boxes: Sequence[dict[str, Prediction]]) -> None:
    """A threshold is for the network that it was tuned with."""
    others = []
    for name, tuned in recipe.checkpoints.items():
        predicted = {of_box[name].record.sha256 for of_box in boxes if name in of_box}
        if predicted - {None, tuned}:
            others.append(name)
    if others:
        note(
            f"the thresholds of {some(others)} were tuned with another checkpoint of this run than "
            "predicted; run tune again"
        )

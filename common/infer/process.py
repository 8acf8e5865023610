"""From predictions to masks and objects, from top to bottom.

    read process_config.py -> choose boxes -> find their predictions -> for each class: mask block
    by block, objects over the whole volume, write

A processed volume says in its attribute "processed" what made it (see common.data.volumes.records):
the prediction, the threshold, and a hash of process_config.py and of the files that it imports from
its folder and from this repository. What was made by the same is left as it is, so an edited
function, a tuned threshold and a new checkpoint are followed and nothing else is done twice. Until
its last voxel is written a volume is marked as unfinished, and nothing here takes it for whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import zarr

from common.config.arguments import as_typed
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.splits import regions
from common.data.splits.regions import Region
from common.data.volumes import ngff, regrid, series
from common.data.volumes.level import Grid
from common.data.volumes.records import ProcessedRecord
from common.data.volumes.sources.place import bare
from common.errors import Incomplete, UserError, collect
from common.files import key_of
from common.infer import ledger
from common.infer.machines import cluster, sharing, status
from common.infer.machines.crew import Crew
from common.infer.machines.engine import IN_THIS_PROCESS, Engine
from common.infer.objects.volume import EVERYWHERE
from common.infer.predicting.writer import writing
from common.infer.processing.masks import block_shape
from common.infer.processing.one_class import Making
from common.infer.processing.prediction import Prediction, note_older_weights, open_prediction
from common.infer.processing.recipe import Recipe, load_recipe
from common.infer.processing.record import describe, note_other_engine, refuse_foreign
from common.infer.processing.seams import note_seams
from common.infer.processing.stages import clear_stages
from common.infer.processing.write_class import process_class
from common.talk import count, note, note_once, progress, say, some

Predicted: TypeAlias = tuple[Region, dict[str, Prediction]]
"""A box, and its predictions by class."""


@as_typed()
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
    """Turn predictions of crops, or of a volume, into masks and objects; return their folders.

    A folder has a multiscale group for each class. Raise FileNotFoundError or UserError; after all
    other boxes NotYet where other processes work on some, and Incomplete where blocks failed.

    Args:
        config_path: the experiment.
        crops: which, as of `common.data.splits.regions.choose`, unless `volume` is given.
        volume: path of a volume of one's own.
        roi: box of it.
        classes: some of process_config.py's; all that are predicted unless given.
        manifest_path: of test crops.
        overwrite: make all classes again; else those that would be made alike are kept.
        overrides: "name=value" for settings.
        data: data root.
        engine: where blocks are computed.
    """
    config = load_config(config_path, overrides, data)
    recipe = load_recipe(config, classes)
    boxes = regions.choose(config, crops, volume, roi, manifest_path=manifest_path, say=say)
    predictions = collect(partial(find_predictions, recipe, config, every=bool(classes)), boxes)
    chosen = regions.where_scored(boxes, predictions, recipe.classes, task="process")
    _note_other_checkpoints(recipe, [predictions for _, predictions in chosen])
    root = config.path("processed_path")
    with cluster.opened(engine, root, _call(recipe, chosen)) as crew:
        run = partial(process_region, recipe, root=root, overwrite=overwrite, crew=crew)
        return sharing.for_each_box(lambda box: run(*box), chosen)


def _call(recipe: Recipe, boxes: Sequence[Predicted]) -> str:
    """Return a hash of what a call processes: by it another machine knows the same command."""
    content = []
    for region, predictions in boxes:
        keys = []
        for name, prediction in predictions.items():
            keys.append(describe(recipe, name, prediction.record).key)
        content.append([str(region), keys])
    return key_of(["process", content])


def find_predictions(
    recipe: Recipe, config: TrainConfig, region: Region, every: bool = False
) -> dict[str, Prediction]:
    """Return the predictions of a box by class: of the recipe's classes those that exist.

    Raise FileNotFoundError where there is none; UserError for one that is half-written or does not
    cover the box.

    every: raise FileNotFoundError where any class is missing.
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
    return dict(zip(present, collect(open_class, present), strict=True))


def _open_fitting(recipe: Recipe, region: Region, folder: Path, name: str) -> Prediction:
    """Open the prediction of a class. Raise UserError unless it fits the box and the recipe."""
    prediction = open_prediction(folder / name)
    whole = Grid((region.lower + region.upper) / 2, region.upper - region.lower, (1, 1, 1))
    if not regrid.covers(prediction.level, whole):
        raise UserError(
            f"{folder / name}: {regrid.shortfall(prediction.level, whole)} of {region}; run "
            "predict with --overwrite"
        )
    block_shape(recipe, prediction)  # which refuses other voxels
    predicted_from = prediction.record.raw
    volume = str(bare(region.raw))
    is_own_volume = region.truth is None and not region.classes
    # two volumes of one's own have one folder where their stores have one name
    if is_own_volume and predicted_from and not predicted_from.startswith(volume):
        note_once(
            f"{folder}: predicted from {predicted_from}, and the volume here is {volume}; if that "
            "is another one, set another predictions_path and predict it"
        )
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
    """Process the classes of one box, and return its folder under `root`.

    A class that is on disk as it would be made now is kept, unless overwrite. Raise Busy where
    another process works on the box, and Incomplete where blocks failed.

    Args:
        recipe: how classes are processed.
        region: the box.
        predictions: of the classes, by name.
        root: folder of all boxes.
        overwrite: make all classes again.
        crew: the workers; this process without one.
    """
    folder = region.folder(root)
    records_of = {}
    for name, prediction in predictions.items():
        records_of[name] = describe(recipe, name, prediction.record)
    with writing(folder), sharing.sole_worker(folder, "processing"):
        predicted_in = next(iter(predictions.values())).box_folder
        stale = _stale_classes(folder, records_of, predicted_in, overwrite)
        if not stale:
            status.clear(folder)
            series.complete([folder / name for name in records_of])
            say(f"{region}: already there, in {folder}")
            return folder
        say(f"{region}: {count(len(stale), 'class', 'classes')}")
        zarr.open_group(str(folder.parent), mode="a").require_group(folder.name)
        makings = [Making(recipe, name, predictions[name], crew=crew) for name in stale]
        _process_classes(makings, folder, records_of)
        series.add([folder / name for name in records_of])
        _note_everywhere(region, folder, {name: recipe.threshold(name) for name in stale})
    return folder


def _stale_classes(
    folder: Path, wanted: Mapping[str, ProcessedRecord], predictions: Path, overwrite: bool
) -> list[str]:
    """Return the classes that are not on disk as they would be made now; all if overwrite.

    Raise UserError where something is in the place of a class that process did not write.

    Args:
        folder: of the box.
        wanted: what each class would say of itself now.
        predictions: folder of the predictions of the box.
        overwrite: take every class for stale.
    """
    stale = []
    for name, record in wanted.items():
        refuse_foreign(folder / name)
        if overwrite or not ledger.is_processed(folder / name, record, predictions):
            stale.append(name)
        else:
            # of a call with --overwrite that was killed
            clear_stages(folder, name)
            note_other_engine(folder / name, record)
    return stale


def _process_classes(
    makings: Sequence[Making], folder: Path, records_of: Mapping[str, ProcessedRecord]
) -> None:
    """Process classes of a box. Raise Incomplete after all others where blocks of some failed.

    Args:
        makings: the classes.
        folder: of the box.
        records_of: what each class will say of how it was made.
    """
    total = sum(making.prediction.level.array.size for making in makings)
    incomplete = []
    with progress(total, unit="voxel", unit_scale=True) as bar:
        # in threads side by side they take as long, and more memory
        for making in makings:
            bar.set_postfix_str(making.name, refresh=False)
            note_seams(making.recipe, making.name, making.prediction)
            record = records_of[making.name]
            try:
                process_class(replace(making, bar=bar), folder=folder, record=record)
            except Incomplete as error:
                incomplete.append(str(error))
    if incomplete:
        raise Incomplete("\n".join(incomplete))


def _note_everywhere(region: Region, folder: Path, thresholds: Mapping[str, float]) -> None:
    """Note classes that are positive in nearly all of a box. thresholds: of the classes."""
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


def _note_other_checkpoints(recipe: Recipe, boxes: Sequence[dict[str, Prediction]]) -> None:
    """Note classes whose threshold was tuned with another network, or with other functions.

    Note checkpoints, too, that were written anew since they predicted.

    boxes: the predictions of each box by class.
    """
    processed = set[str]().union(*boxes)
    edited = [name for name in recipe.tuned_otherwise if name in processed]
    if edited:
        note(
            f"the thresholds of {some(edited)} were tuned with other functions of {recipe.path} "
            "than there are now; run tune again"
        )
    others = []
    for name, tuned in recipe.checkpoints.items():
        predicted = {box[name].record.sha256 for box in boxes if name in box}
        if predicted - {None, tuned}:
            others.append(name)
    if others:
        note(
            f"the thresholds of {some(others)} were tuned with another checkpoint of this run than "
            "predicted; run tune again"
        )
    records_of_boxes = []
    for box in boxes:
        records_of_boxes += [prediction.record for prediction in box.values()]
    note_older_weights(records_of_boxes)

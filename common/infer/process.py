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
from common.data.volumes import ngff, records, regrid, series
from common.data.volumes.ngff import Grid
from common.data.volumes.records import PredictionRecord, ProcessedRecord
from common.data.volumes.sources.place import bare
from common.errors import Incomplete, UserError, collect
from common.files import REPOSITORY, key_of
from common.infer import instances, ledger
from common.infer.machines import cluster, sharing, status
from common.infer.machines.crew import Crew
from common.infer.machines.engine import IN_THIS_PROCESS, Engine
from common.infer.made_by import engine_hash
from common.infer.objects.volume import EVERYWHERE
from common.infer.predicting.writer import writing
from common.infer.processing import one_class
from common.infer.processing.one_class import Making
from common.infer.processing.prediction import Prediction, note_older_weights, open_prediction
from common.infer.processing.recipe import Recipe, load_recipe
from common.infer.processing.seams import note_seams
from common.infer.processing.stages import Stages, clear_stages
from common.provenance import now, provenance
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
    """Turn predictions of crops, or of a volume, into masks and objects; gives their folders.

    A folder has a multiscale group for each class. Raises FileNotFoundError or UserError; after all
    other boxes NotYet where other processes work on some, and Incomplete where blocks failed.

    Args:
        config_path: the experiment.
        crops: which, as of `common.data.splits.regions.choose`, unless `volume` is given.
        volume: path of a volume of one's own.
        roi: box of it.
        classes: some of process_config.py's; all that are predicted unless given.
        manifest_path: of test crops.
        overwrite: replace all; else what was made alike is left.
        overrides: "name=value" for settings.
        data: data root.
        engine: where blocks are computed.
    """
    config = load_config(config_path, overrides, data)
    recipe = load_recipe(config, classes)
    boxes = regions.choose(config, crops, volume, roi, manifest_path=manifest_path, say=say)
    predictions = collect(partial(find_predictions, recipe, config, every=bool(classes)), boxes)
    chosen = regions.where_scored(boxes, predictions, recipe.classes, task="process")
    _note_other_checkpoints(recipe, [of_box for _, of_box in chosen])
    root = config.path("processed_path")
    with cluster.opened(engine, root, _call(recipe, chosen)) as crew:
        run = partial(process_region, recipe, root=root, overwrite=overwrite, crew=crew)
        return sharing.each(lambda box: run(*box), chosen)


def _call(recipe: Recipe, boxes: Sequence[Predicted]) -> str:
    """Hash of what a call processes, by which the same command is known on another machine."""
    content = []
    for region, of_box in boxes:
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
    return dict(zip(present, collect(open_class, present), strict=True))


def _open_fitting(recipe: Recipe, region: Region, folder: Path, name: str) -> Prediction:
    """The prediction of a class, which must cover the box and have the recipe's voxels."""
    prediction = open_prediction(folder / name)
    whole = Grid((region.lower + region.upper) / 2, region.upper - region.lower, (1, 1, 1))
    if not regrid.covers(prediction.level, whole):
        raise UserError(
            f"{folder / name}: {regrid.shortfall(prediction.level, whole)} of {region}; run "
            "predict with --overwrite"
        )
    one_class.block_shape(recipe, prediction)  # which refuses other voxels
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
    """Process the classes of one box into its folder under `root`, by workers if there are some.

    What is there as it would be made now is left, unless overwrite. Raises Busy where another
    process works on the box.
    """
    folder = region.folder(root)
    records_of = {name: describe(recipe, name, p.record) for name, p in predictions.items()}
    with writing(folder), sharing.sole_worker(folder, "processing"):
        predicted_in = next(iter(predictions.values())).box_folder
        left = _left(folder, records_of, predicted_in, overwrite)
        if not left:
            status.clear(folder)
            series.complete([folder / name for name in records_of])
            say(f"{region}: already there, in {folder}")
            return folder
        say(f"{region}: {count(len(left), 'class', 'classes')}")
        zarr.open_group(str(folder.parent), mode="a").require_group(folder.name)
        makings = [Making(recipe, name, predictions[name], crew=crew) for name in left]
        _process_classes(makings, folder, records_of)
        series.add([folder / name for name in records_of])
        _note_everywhere(region, folder, {name: recipe.threshold(name) for name in left})
    return folder


def _left(
    folder: Path, wanted: Mapping[str, ProcessedRecord], predictions: Path, overwrite: bool
) -> list[str]:
    """The classes that are not there as they would be made now. predictions: folder of theirs."""
    left = []
    for name, record in wanted.items():
        _refuse_foreign(folder / name)
        if overwrite or not ledger.is_processed(folder / name, record, predictions):
            left.append(name)
        else:
            # of a call with --overwrite that was killed
            clear_stages(folder, name)
            _note_other_engine(folder / name, record)
    return left


def _refuse_foreign(group: Path) -> None:
    """Raises UserError for what process did not write, whatever overwrite says.

    It may be a prediction, where both have one folder, or a user's own work.
    """
    if records.is_damaged(group) or records.read_processed(group) is not None:
        return
    # an empty group is what a call that was killed at once leaves
    if group.is_dir() and any(path.name != ".zgroup" for path in group.iterdir()):
        raise UserError(
            f"{group}: not written by process; set another processed_path, or remove it"
        )


def _note_other_engine(group: Path, wanted: ProcessedRecord) -> None:
    """Say where a class that stays was made by another version of this program."""
    stored = records.read_processed(group)
    if stored is None or stored.engine is None or stored.engine == wanted.engine:
        return
    was = str(stored.commit)[:12]
    now = str(wanted.commit)[:12]
    commits = f"commit {was}, now {now}"
    if was == now:
        commits = f"commit {now} with other changes, or other libraries"
    # without the name of the box, so that it is said once for all
    note_once(
        f"volumes that were made by another version of this program ({commits}) stay as they are; "
        "write --overwrite to make them by this one"
    )


def _process_classes(
    makings: Sequence[Making], folder: Path, records_of: Mapping[str, ProcessedRecord]
) -> None:
    """Process classes of a box; raises Incomplete after all others where blocks of some failed."""
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


def process_class(making: Making, *, folder: Path, record: ProcessedRecord) -> None:
    """Write the mask or the objects of a class, whole or marked as unfinished.

    A volume too large to be made again in seconds goes on where an earlier call was killed.

    folder: of the box; the class is in its group of that name. record: what it will say of how it
    was made.
    """
    prediction = making.prediction
    path = folder / making.name
    stages = one_class.stages_of(making, folder, record)
    making = replace(making, scratch=folder, stages=stages)
    dtype: np.dtype | type = np.uint8
    array = None
    if making.recipe.makes_objects(making.name):
        volume = one_class.objects(making)
        read = {name: ledger.state_of(of_channel) for name, of_channel in making.read.items()}
        record = replace(record, channels=dict(sorted(read.items())) or None)
        # only now: how many objects there are says how many bytes an id takes
        dtype = instances.smallest_dtype(instances.largest(volume))
    else:
        if stages is None:
            # begun first, so that what is interrupted is not taken for whole
            array = _opened(path, prediction, dtype, record, stages=None)
        volume = one_class.mask(making)
    # in whole chunks: no two workers share one
    volume = replace(volume, block=tuple(one_class.whole_chunks(prediction).tolist()))
    if array is None:
        array = _opened(path, prediction, dtype, record, stages=stages)
    instances.copy(volume, array)
    ngff.finish_multiscale(path, prediction.grid, ngff.pyramid(prediction.grid), ngff.pick)
    if stages is not None:
        stages.place.clear()


def _opened(
    path: Path,
    prediction: Prediction,
    dtype: np.dtype | type,
    record: ProcessedRecord,
    *,
    stages: Stages | None,
) -> zarr.Array:
    """The array of a class to write to, as an earlier call left it if that was at this stage."""
    if stages is not None:
        is_begun = not records.is_damaged(path) and not records.is_finished(path)
        stored = records.read_processed(path) if is_begun else None
        is_same = stored is not None and (
            stored.key == record.key and stored.prediction.is_same(record.prediction)
        )
        if is_same and not stages.begins():
            return zarr.open_array(str(path / "s0"), mode="r+", write_empty_chunks=False)
        stages.drop_next()
    record = replace(record, made=now())
    return ngff.start_multiscale(
        path,
        prediction.grid,
        dtype,
        prediction.chunks,
        attributes=records.group_attributes(path.name, record),
    )


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


def describe(recipe: Recipe, name: str, prediction: PredictionRecord) -> ProcessedRecord:
    """What a class that is processed now will say of how it was made."""
    record = ProcessedRecord(
        threshold=recipe.threshold(name),
        process_config=recipe.code,
        instances=recipe.makes_objects(name),
        options=recipe.options.get(name),
        prediction=prediction,
        engine=engine_hash(),
        commit=provenance(REPOSITORY)["commit"],
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
        records.refuse_predicted(processed)
        return None
    records.refuse_lost_chunks(processed, "process")
    wanted = describe(recipe, name, stored.prediction)
    prediction = open_prediction(predicted).record if predicted.is_dir() else None
    ledger.refuse_stale(processed, stored, wanted, prediction, predictions=predicted.parent)
    return stored


def _note_other_checkpoints(recipe: Recipe, boxes: Sequence[dict[str, Prediction]]) -> None:
    """A threshold is for the network, and the functions, that it was tuned with.

    Notes networks that are others by now, too.
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
        predicted = {of_box[name].record.sha256 for of_box in boxes if name in of_box}
        if predicted - {None, tuned}:
            others.append(name)
    if others:
        note(
            f"the thresholds of {some(others)} were tuned with another checkpoint of this run than "
            "predicted; run tune again"
        )
    records_of_boxes = []
    for of_box in boxes:
        records_of_boxes += [prediction.record for prediction in of_box.values()]
    note_older_weights(records_of_boxes)

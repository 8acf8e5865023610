"""From predictions to masks and objects, from top to bottom.

A processed volume says in its attribute "processed" what made it: the prediction, the threshold, and a hash of process_config.py and of
the files that it imports from its folder and from this repository. What was made by the same is left as it is, so an edited function, a
tuned threshold and a new checkpoint are followed and nothing else is done twice. Until its last voxel is written a volume is marked as
unfinished, and nothing here takes it for whole.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from tqdm import tqdm

from common.classes import INSTANCES
from common.config.load import load_config, load_process_config
from common.config.settings import ProcessConfig, TrainConfig
from common.data import ngff, regions, regrid
from common.data.ngff import Grid, Level
from common.data.regions import Region
from common.errors import FileError, UserError
from common.files import REPOSITORY
from common.infer import encode, instances
from common.infer.instances import Volume
from common.train import run

BLOCK = 128
"""Least edge in voxels of the blocks, where process_config.py does not say: chunks are put together up to it."""

THRESHOLDS = "thresholds.json"
"""Beside process_config.py, written by tune: {run: {class: {"threshold": 0.35, "checkpoint": SHA-256, ...}}}."""


def process(
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
) -> list[Path]:
    """Turn the predictions of crops, or of a volume, into masks and objects; gives the folders that were written.

    The arguments are those of `common.infer.predict.predict`. What was processed from the same predictions in the same way is left as
    it is, what was processed otherwise is replaced; overwrite replaces all. Raises FileNotFoundError, ValueError or OSError.
    """
    config = load_config(config_path, overrides, data)
    recipe = load_recipe(config, classes)
    boxes = regions.choose(config, crops, volume, roi, manifest_path=manifest_path, say=run.say)
    found = gather(lambda box: find_predictions(recipe, config, box, every=bool(classes)), boxes)
    _note_other_checkpoints(recipe, found)
    targets = [box.folder(config.path("processed_path")) for box in boxes]
    for box, predictions, target in zip(boxes, found, targets, strict=True):
        process_region(recipe, predictions, box, target, overwrite)
    return targets


@dataclass(frozen=True)
class Recipe:
    """How a class becomes a mask or objects."""

    path: Path
    """process_config.py."""
    settings: ProcessConfig
    classes: tuple[str, ...]
    """Those to process."""
    code: str
    """Hash of process_config.py and what it imports."""
    thresholds: dict[str, float] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the checkpoint that the threshold of a class was tuned with."""

    def threshold(self, name: str) -> float:
        return self.thresholds.get(name, 0.5)

    def makes_objects(self, name: str) -> bool:
        return name in self.settings.instance_classes

    def is_scored_by_objects(self, name: str) -> bool:
        """As the challenge has it; of classes outside its table those that are made into objects."""
        return name in INSTANCES or (
            name in self.settings.extra_classes and self.makes_objects(name)
        )


def read_recipe(folder: Path, classes: Sequence[str] = ()) -> Recipe:
    """The process_config.py of an experiment, without what was tuned. Raises FileNotFoundError or ValueError."""
    path, settings = folder / "process_config.py", load_process_config(folder)
    problems = []
    if unknown := [name for name in classes if name not in settings.classes]:
        problems.append(
            f"no class {', '.join(unknown)} in its classes; write some of {', '.join(settings.classes)}"
        )
    given = {
        "thresholds": settings.thresholds,
        "instance_classes": ()
        if settings.instance_classes == INSTANCES
        else settings.instance_classes,
    }
    for setting, names in given.items():
        if unknown := [name for name in names if name not in settings.classes]:
            problems.append(
                f"{setting} names {', '.join(unknown)}, which {'is' if len(unknown) == 1 else 'are'} not in classes; add or remove it"
            )
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return Recipe(
        path, settings, tuple(classes or settings.classes), _code(path), settings.thresholds
    )


def load_recipe(config: TrainConfig, classes: Sequence[str] = ()) -> Recipe:
    """The process_config.py of a run, with the thresholds that were tuned on it unless it sets its own. Raises FileNotFoundError or ValueError."""
    recipe = read_recipe(config.folder, classes)
    tuned = {} if recipe.thresholds else read_thresholds(config.folder / THRESHOLDS)
    if not tuned:
        return recipe
    if run_of(config) not in tuned:
        raise UserError(
            f"{config.folder / THRESHOLDS}: has thresholds of the run {', '.join(tuned)} and none of {run_of(config)}; run tune for this run, "
            "or remove the file, or set thresholds in process_config.py"
        )
    found = tuned[run_of(config)]
    thresholds, checkpoints = (
        {name: one[key] for name, one in found.items()} for key in ("threshold", "checkpoint")
    )
    return replace(recipe, thresholds=thresholds, checkpoints=checkpoints)


def run_of(config: TrainConfig) -> str:
    return f"{config.model_name}/{config.run}"


def read_thresholds(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """What tune found, by run and class; none without the file. Raises ValueError for another file."""
    if not path.is_file():
        return {}
    try:
        runs = json.loads(path.read_text())
        for one in (one for found in runs.values() for one in found.values()):
            if not (0 < one["threshold"] < 1 and isinstance(one["checkpoint"], str)):
                raise UserError(
                    f"a threshold of {one['threshold']}, which is no probability between 0 and 1"
                )
        return runs
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: not the thresholds that tune writes ({error}); remove it, and run tune again"
        ) from error


@dataclass(frozen=True)
class Prediction:
    """One class of one box, as predict left it."""

    level: Level
    content: str
    """"probability" or "logits"."""
    about: dict[str, Any]

    @property
    def grid(self) -> Grid:
        return self.level.grid

    @property
    def chunks(self) -> tuple[int, ...]:
        return self.level.array.chunks

    def logits(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """Float32 logits of voxels start..stop."""
        return encode.decode(self.level.read(start, stop), self.content)

    def logit(self, threshold: float) -> np.float32:
        """The logit above which is what is above a probability, exactly: a stored probability equal to it is not."""
        dtype, value = self.level.array.dtype, np.float32(np.log(threshold / (1 - threshold)))
        if self.content == "logits":
            return value
        if dtype.kind == "f":
            value = encode.decode(np.array(threshold, dtype), self.content)
        # stored 0 and 1 have finite logits
        lowest, highest = encode.decode(
            np.array([0, 255 if dtype == np.uint8 else 1], dtype), self.content
        )
        return np.clip(value, lowest, np.nextafter(highest, lowest))


def find_predictions(
    recipe: Recipe, config: TrainConfig, region: Region, every: bool = False
) -> dict[str, Prediction]:
    """The predictions of a box by class: those of the recipe's classes that are there, or all of them.

    Raises FileNotFoundError where there is none, or not every one; ValueError for one that is half-written or does not cover the box.
    """
    folder = region.folder(config.path("predictions_path"))
    is_test = region.truth is None and region.classes
    wanted = [name for name in recipe.classes if not is_test or name in region.classes]
    absent = [name for name in wanted if not (folder / name).is_dir()]
    if absent and (every or len(absent) == len(wanted)):
        raise FileNotFoundError(f"{folder}: no prediction of {_some(absent)}; run predict first")
    if absent:
        run.say(f"note: {region}: {_some(absent)} not predicted, left out")
    there = [name for name in wanted if name not in absent]
    return dict(
        zip(there, gather(lambda name: _fitting(recipe, folder / name, region), there), strict=True)
    )


def open_prediction(path: Path) -> Prediction:
    """A finished prediction. Raises FileNotFoundError, or ValueError for one that is half-written or not of `predict`."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no prediction; run predict first")
    level = ngff.open_levels(path)[0]
    about = attributes(path).get("prediction")
    if not isinstance(about, dict) or not {"content", "key"} <= set(about):
        raise UserError(
            f"{path}: not written by predict (no 'prediction' in its .zattrs); run predict into another folder"
        )
    return Prediction(level, about["content"], about)


def _fitting(recipe: Recipe, path: Path, region: Region) -> Prediction:
    """A finished prediction that covers a box and has the voxels that process_config.py asks for."""
    prediction, box = (
        open_prediction(path),
        Grid((region.lower + region.upper) / 2, region.upper - region.lower, (1, 1, 1)),
    )
    if not regrid.covers(prediction.level, box):
        raise UserError(
            f"{path}: {regrid.shortfall(prediction.level, box)} of {region}; run predict with --overwrite"
        )
    _block(recipe, prediction)
    return prediction


def process_region(
    recipe: Recipe,
    predictions: dict[str, Prediction],
    region: Region,
    target: Path,
    overwrite: bool = False,
) -> None:
    """Process the classes of one box into the folder `target`."""
    identities = {
        name: identity(recipe, name, prediction.about) for name, prediction in predictions.items()
    }
    todo = [
        name
        for name in predictions
        if overwrite or _found(target / name) != identities[name]["key"]
    ]
    if not todo:
        run.say(f"{region}: already there, in {target}")
        return
    run.say(f"{region}: {len(todo)} classes")
    voxels = sum(predictions[name].level.array.size for name in todo)
    with (
        _writing(target),
        _notes(),
        tqdm(total=voxels, unit="voxel", unit_scale=True, leave=False, disable=None) as bar,
    ):
        zarr.open_group(str(target.parent), mode="a").require_group(target.name)
        for name in todo:  # in threads side by side they take as long, and more memory
            bar.set_postfix_str(name, refresh=False)
            _process_class(recipe, name, predictions[name], identities[name], target, bar.update)


def mask_blocks(
    recipe: Recipe,
    name: str,
    prediction: Prediction,
    advance: Callable[[int], object] = lambda voxels: None,
) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """process_func over the blocks of a class: where a block is, and its mask (bool). Halos beyond the volume repeat its edge."""
    settings, shape, halo = (
        recipe.settings,
        np.array(prediction.grid.shape),
        np.array(recipe.settings.halo),
    )
    block, zero = (
        np.minimum(_block(recipe, prediction), shape),
        prediction.logit(recipe.threshold(name)),
    )
    corners = [np.array(index) * block for index in np.ndindex(*(-(-shape // block)))]
    for k in range(0, len(corners), settings.batch_size):
        group, logits = corners[k : k + settings.batch_size], []
        for corner in group:
            low, high = corner - halo, corner + block + halo
            first, last = np.maximum(low, 0), np.minimum(high, shape)
            part = prediction.logits(first, last) - zero
            logits.append(
                np.pad(part, list(zip(first - low, high - last, strict=True)), mode="edge")
            )
        given = torch.from_numpy(np.stack(logits)[:, None])
        masks = _as_mask(
            settings.process_func(given),
            tuple(given.shape),
            f"{recipe.path}: process_func gives '{name}'",
        )
        for corner, mask in zip(group, masks[:, 0], strict=True):
            stop = np.minimum(corner + block, shape)
            inner = tuple(
                slice(h, h + n)
                for h, n in zip(halo.tolist(), (stop - corner).tolist(), strict=True)
            )
            yield tuple(map(slice, corner.tolist(), stop.tolist())), mask[inner]
            advance(mask[inner].size)


def objects(
    recipe: Recipe,
    name: str,
    prediction: Prediction,
    scratch: Path | None = None,
    advance: Callable[[int], object] = lambda voxels: None,
) -> Volume:
    """The ids of an instance class: process_func, then instance_func over the whole volume."""
    block = tuple(_block(recipe, prediction).tolist())
    probability = Volume(
        _Probability(prediction), tuple(prediction.grid.scale.tolist()), block, scratch
    )
    mask = instances.zeros(probability, np.bool_)
    for where, values in mask_blocks(recipe, name, prediction, advance):
        mask.array[where] = values
    function = recipe.settings.instance_func or (
        lambda mask, probability, name: instances.connected_components(mask)
    )
    ids = function(mask, probability, name)
    if not isinstance(ids, Volume) or ids.shape != mask.shape or ids.dtype.kind not in "uib":
        raise UserError(
            f"{recipe.path}: instance_func gives {_what(ids)} for '{name}'; give a volume of ids of shape {mask.shape}, by the functions of "
            "common.infer.instances or as dataclasses.replace(mask, array=ids)"
        )
    if (
        ids.dtype.kind == "i"
        and (lowest := min(int(ids.array[z : z + 64].min()) for z in range(0, ids.shape[0], 64)))
        < 0
    ):
        raise UserError(
            f"{recipe.path}: instance_func gives the id {lowest} for '{name}'; give ids from 1, and 0 where there is no object"
        )
    return ids if ids.dtype.kind != "b" else instances.connected_components(ids)


class _Probability:
    """A prediction as an array of probabilities, decoded where it is read."""

    def __init__(self, prediction: Prediction):
        self.prediction, self.shape, self.dtype = (
            prediction,
            prediction.grid.shape,
            np.dtype(np.float32),
        )

    def __getitem__(self, where: Any) -> np.ndarray:
        """Of slices along z, y, x, those left out being whole, or of `...`."""
        where = () if where is ... else where if isinstance(where, tuple) else (where,)
        parts = [
            part.indices(n)[:2]
            for part, n in zip((*where, *[slice(None)] * (3 - len(where))), self.shape, strict=True)
        ]
        return 1 / (1 + np.exp(-self.prediction.logits(*zip(*parts, strict=True))))


def identity(recipe: Recipe, name: str, prediction: dict[str, Any]) -> dict[str, Any]:
    """What determines the voxels of a processed class, and a key made of it; prediction: what is said about that."""
    about = {
        "threshold": recipe.threshold(name),
        "process_config": recipe.code,
        "instances": recipe.makes_objects(name),
    }
    key = json.dumps([about, prediction["key"], name], sort_keys=True)
    return {**about, "key": hashlib.sha256(key.encode()).hexdigest()[:24]}


def check_processed(recipe: Recipe, name: str, processed: Path, predicted: Path) -> dict[str, Any]:
    """What a processed volume says of how it was made; {} if it is of another program.

    Raises FileNotFoundError without one, ValueError if it is half-written, or not what `process` would make now.
    """
    if not (processed / ".zattrs").is_file():
        raise FileNotFoundError(f"{processed}: no processed volume; run predict, then process")
    ngff.open_levels(processed)
    about = attributes(processed).get("processed", {})
    if about and identity(recipe, name, about["prediction"])["key"] != about["key"]:
        raise UserError(
            f"{processed}: made with another threshold or process_config.py than there is now; run process again"
        )
    if (
        about
        and predicted.is_dir()
        and open_prediction(predicted).about["key"] != about["prediction"]["key"]
    ):
        raise UserError(
            f"{processed}: made of another prediction than there is now; run process again"
        )
    return about


def attributes(path: Path) -> dict[str, Any]:
    """Of a zarr group."""
    return zarr.open_group(str(path), mode="r").attrs.asdict()


def gather(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Function of each item. What users can mend is collected from all of them and raised as one error."""
    results, problems = [], []
    for item in items:
        try:
            results.append(function(item))
        except (FileNotFoundError, ValueError) as error:
            problems.append(error)
    if problems:
        kind = (
            FileNotFoundError
            if all(isinstance(error, FileNotFoundError) for error in problems)
            else ValueError
        )
        more = [f"... and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise kind("\n".join([*map(str, problems[:10]), *more]))
    return results


def _process_class(
    recipe: Recipe,
    name: str,
    prediction: Prediction,
    about: dict[str, Any],
    folder: Path,
    advance: Callable[[int], object],
) -> None:
    """Write the mask or the objects of a class, whole or marked as unfinished."""
    grid, path = prediction.grid, folder / name
    about = {
        **about,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "prediction": prediction.about,
    }
    if recipe.makes_objects(name):
        ids = objects(recipe, name, prediction, folder, advance)
        dtype = instances.smallest_dtype(instances.largest(ids))
        instances.copy(
            ids,
            ngff.start_multiscale(
                path, grid, dtype, prediction.chunks, attributes={"class": name, "processed": about}
            ),
        )
    else:
        array = ngff.start_multiscale(
            path, grid, np.uint8, prediction.chunks, attributes={"class": name, "processed": about}
        )
        for where, mask in mask_blocks(recipe, name, prediction, advance):
            array[where] = mask
    ngff.finish_multiscale(path, grid, ngff.pyramid(grid), ngff.pick)


def _block(recipe: Recipe, prediction: Prediction) -> np.ndarray:
    """Voxels of a block: what process_config.py says, or whole chunks."""
    info = recipe.settings.input_array_info
    if not info:
        return np.array([c * max(1, BLOCK // c) for c in prediction.chunks])
    if not np.allclose(info["scale"], prediction.grid.scale, rtol=1e-3):
        raise UserError(
            f"{prediction.level.path}: voxels of {prediction.grid.scale.tolist()} nm, and input_array_info of {recipe.path} says "
            f"{list(info['scale'])}; write that scale there, or leave input_array_info out"
        )
    return np.array(info["shape"])


def _as_mask(result: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """What process_func gave as bool. ValueError for another shape, or for anything but 0 and 1."""
    values = result.numpy(force=True) if isinstance(result, torch.Tensor) else np.asarray(result)
    if values.shape != shape:
        raise UserError(
            f"{what} the shape {values.shape} for logits of shape {shape}; give the same shape"
        )
    mask = values.astype(bool)
    if values.dtype != bool and not (values == mask).all():
        raise UserError(
            f"{what} values like {values[values != mask][0]}; give 1 where the class is and 0 elsewhere (objects are numbered over the "
            "whole volume, by instance_func)"
        )
    return mask


def _code(path: Path) -> str:
    """Hash of a Python file and of all that it imports from its folder and from this repository."""
    files, new = set(), {path.resolve()}
    while new:
        files |= new
        new = {found for file in new for found in _imported(file)} - files
    digests = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _imported(path: Path) -> Iterator[Path]:
    """Files of its folder, by relative import, and of this repository that a Python file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = (path.parents[node.level - 1] if node.level else REPOSITORY).joinpath(
                *(node.module or "").split(".")
            )
            modules = [base, *(base / alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [REPOSITORY.joinpath(*alias.name.split(".")) for alias in node.names]
        else:
            continue
        yield from (
            file.resolve() for module in modules if (file := module.with_suffix(".py")).is_file()
        )


def _found(path: Path) -> str:
    """The key of a finished volume; '' where there is none."""
    if not (path / ".zattrs").is_file():
        return ""
    about = attributes(path)
    return about.get("processed", {}).get("key", "") if "multiscales" in about else ""


def _note_other_checkpoints(recipe: Recipe, found: Sequence[dict[str, Prediction]]) -> None:
    """A threshold is for the network that it was tuned with."""
    other = [
        name
        for name, tuned in recipe.checkpoints.items()
        if any(
            predictions[name].about.get("sha256") not in (None, tuned)
            for predictions in found
            if name in predictions
        )
    ]
    if other:
        run.say(
            f"note: the thresholds of {_some(other)} were tuned with another checkpoint of this run than predicted; run tune again"
        )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What keeps a volume from being written as a sentence."""
    try:
        yield
    except OSError as error:
        raise FileError(
            f"{folder}: could not be written ({error}); mend that and run the same command again, it goes on"
        ) from error


class _Note(logging.Handler):
    """Says what the instance functions log, beside the progress."""

    def emit(self, record: logging.LogRecord) -> None:
        run.say(f"note: {record.getMessage()}")


@contextmanager
def _notes() -> Iterator[None]:
    logger, note = logging.getLogger(instances.__name__), _Note()
    logger.addHandler(note)
    try:
        yield
    finally:
        logger.removeHandler(note)


def _what(value: Any) -> str:
    return (
        f"{value.dtype} of shape {tuple(value.shape)}"
        if hasattr(value, "shape")
        else type(value).__name__
    )


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

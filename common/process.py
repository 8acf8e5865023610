"""From predictions to masks and objects, from top to bottom."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from common import inference, instances, ngff, regions, train
from common.config import ProcessConfig, TrainConfig, load_config, load_process_config
from common.instances import Volume
from common.ngff import Grid, Level
from common.regions import Region

BLOCK = 128
"""Least edge in voxels of the blocks, where process_config.py does not say: chunks are put together up to it."""


def process(
    config_path: str | Path, crops: str = "validate", *, volume: str | Path = "", roi: str = "", classes: Sequence[str] = (),
    manifest_path: str = "", overwrite: bool = False, overrides: Sequence[str] = (), data: str | Path | None = None,
) -> list[Path]:  # fmt: skip
    """Turn the predictions of crops, or of a volume, into masks and objects; gives the folders that were written.

    The arguments are those of `common.predict.predict`. What was processed from the same predictions in the same way is left as
    it is, what was processed otherwise is replaced; overwrite replaces all. Raises FileNotFoundError, ValueError or OSError.
    """
    config = load_config(config_path, overrides, data)
    recipe = load_recipe(config, classes)
    boxes = regions.choose(config, crops, volume, roi, manifest_path, train.say)
    for line in recipe.notices:
        train.say(f"note: {line}")
    return [process_region(recipe, config, box, overwrite) for box in boxes]


@dataclass(frozen=True)
class Recipe:
    """How a class becomes a mask or objects."""

    settings: ProcessConfig
    classes: tuple[str, ...]
    """Those to process."""
    thresholds: dict[str, float]
    text: str
    """Hash of process_config.py: what was processed by another one is processed anew."""
    notices: tuple[str, ...] = ()

    def threshold(self, name: str) -> float:
        return self.thresholds.get(name, 0.5)


def load_recipe(config: TrainConfig, classes: Sequence[str] = ()) -> Recipe:
    """The experiment's process_config.py with its thresholds. Raises FileNotFoundError or ValueError."""
    settings = load_process_config(config.folder)
    if unknown := [name for name in classes if name not in settings.classes]:
        raise ValueError(f"{config.folder / 'process_config.py'}: no class {', '.join(unknown)} in its classes")
    thresholds, notices = settings.thresholds, ()
    if not thresholds:
        thresholds, tuned_on = read_thresholds(config.folder / THRESHOLDS)
        run = f"{config.model_name}/{config.path('model_save_path').name}"
        if thresholds and tuned_on != run:
            notices = (f"{THRESHOLDS} was tuned on the run {tuned_on} and this is {run}; run tune again, or remove the file",)
    text = hashlib.sha256((config.folder / "process_config.py").read_bytes()).hexdigest()
    return Recipe(settings, tuple(classes or settings.classes), thresholds, text, notices)


THRESHOLDS = "thresholds.json"


def read_thresholds(path: Path) -> tuple[dict[str, float], str]:
    """Thresholds by class, and the run that they were tuned on; none without the file."""
    if not path.is_file():
        return {}, ""
    try:
        content = json.loads(path.read_text())
        thresholds = {name: float(value) for name, value in content["thresholds"].items()}
        if not all(0 < value < 1 for value in thresholds.values()):
            raise ValueError("a threshold is not between 0 and 1")
        return thresholds, content["run"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not the thresholds that tune writes ({error}); run tune again, or remove it") from error


def process_region(recipe: Recipe, config: TrainConfig, region: Region, overwrite: bool = False) -> Path:
    """Process the classes of one box that are predicted there."""
    source, target = (region.folder(config.path(name)) for name in ("predictions_path", "processed_path"))
    names = [name for name in recipe.classes if (source / name).is_dir()]
    if not names:
        raise FileNotFoundError(f"{source}: no prediction of {', '.join(recipe.classes[:5])} here; run predict first")
    predictions = {name: open_prediction(source / name) for name in names}
    zarr.open_group(str(target.parent), mode="a").require_group(target.name)
    todo = []
    for name, prediction in predictions.items():
        about = _identity(recipe, name, prediction)
        if overwrite or _found(target / name) != about["key"]:
            todo.append((name, prediction, about))
    if not todo:
        train.say(f"{region}: already there, in {target}")
        return target
    train.say(f"{region}: {len(todo)} classes")
    logging.getLogger(instances.__name__).addFilter(_to_user)
    with ThreadPoolExecutor(min(len(todo), os.cpu_count() or 1)) as pool:
        for done in [pool.submit(_process_class, recipe, *item, target) for item in todo]:
            done.result()
    return target


@dataclass(frozen=True)
class Prediction:
    """One class of one box, as predict left it."""

    level: Level
    content: str
    """"probability" or "logits"."""
    about: dict[str, Any]
    chunks: tuple[int, ...]

    @property
    def grid(self) -> Grid:
        return self.level.grid

    def logits(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """Float32 logits of voxels start..stop."""
        return inference.decode(self.level.read(start, stop), self.content)


def open_prediction(path: Path) -> Prediction:
    """A finished prediction. Raises FileNotFoundError, or ValueError for one that is half-written or not of `predict`."""
    level = ngff.open_levels(path)[0]
    about = zarr.open_group(str(path), mode="r").attrs.asdict().get("prediction")
    if not about:
        raise ValueError(f"{path}: not written by predict (no 'prediction' in its .zattrs); run predict into another folder")
    return Prediction(level, about["content"], about, level.array.chunks)


def mask_blocks(recipe: Recipe, name: str, prediction: Prediction) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """process_func over the blocks of a class: where a block is, and its mask (bool). Halos beyond the volume repeat its edge."""
    settings, shape, halo = recipe.settings, np.array(prediction.grid.shape), np.array(recipe.settings.halo)
    block = np.minimum(_block(settings, prediction), shape)
    shift = math.log(recipe.threshold(name) / (1 - recipe.threshold(name)))
    corners = [np.array(index) * block for index in np.ndindex(*(-(-shape // block)))]
    for k in range(0, len(corners), settings.batch_size):
        group, logits = corners[k : k + settings.batch_size], []
        for corner in group:
            low, high = corner - halo, corner + block + halo
            first, last = np.maximum(low, 0), np.minimum(high, shape)
            part = prediction.logits(first, last) - np.float32(shift)
            logits.append(np.pad(part, list(zip(first - low, high - last, strict=True)), mode="edge"))
        masks = _as_mask(settings.process_func(torch.from_numpy(np.stack(logits)[:, None])), (len(group), 1, *(block + 2 * halo)), name)
        for corner, mask in zip(group, masks[:, 0], strict=True):
            stop = np.minimum(corner + block, shape)
            inner = tuple(slice(h, h + n) for h, n in zip(halo.tolist(), (stop - corner).tolist(), strict=True))
            yield tuple(map(slice, corner.tolist(), stop.tolist())), mask[inner]


def objects(recipe: Recipe, name: str, prediction: Prediction, scratch: Path | None = None) -> Volume:
    """The ids of an instance class: process_func, then instance_func over the whole volume."""
    voxel_size = tuple(prediction.grid.scale.tolist())
    block = tuple(int(n) for n in _block(recipe.settings, prediction))
    probability = Volume(_Probability(prediction), voxel_size, block, scratch)
    mask = instances.zeros(probability, np.bool_)
    for where, values in mask_blocks(recipe, name, prediction):
        mask.array[where] = values
    function = recipe.settings.instance_func
    if function is None:
        return instances.connected_components(mask)
    ids = function(mask, probability, name)
    if not isinstance(ids, Volume) or ids.shape != mask.shape or ids.dtype.kind not in "uib":
        raise ValueError(f"process_config.py: instance_func gives {_what(ids)} for '{name}'; give a volume of ids of shape {mask.shape}, see common.instances")
    return ids if ids.dtype.kind != "b" else instances.connected_components(ids)


class _Probability:
    """A prediction as an array of probabilities, decoded where it is read."""

    def __init__(self, prediction: Prediction):
        self.prediction, self.shape, self.dtype = prediction, prediction.grid.shape, np.dtype(np.float32)

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = zip(*(part.indices(n) for part, n in zip(where, self.shape, strict=True)), strict=True)
        return 1 / (1 + np.exp(-self.prediction.logits(start, stop)))


def _process_class(recipe: Recipe, name: str, prediction: Prediction, about: dict[str, Any], folder: Path) -> None:
    """Write the mask or the objects of a class, whole or marked as unfinished."""
    grid, path = prediction.grid, folder / name
    about = {**about, "made": datetime.now(UTC).isoformat(timespec="seconds"), "prediction": prediction.about}
    attributes = {"class": name, "processed": about}
    if name in recipe.settings.instance_classes:
        ids = objects(recipe, name, prediction, folder)
        array = ngff.start_multiscale(path, grid, instances.smallest_dtype(instances.largest(ids)), prediction.chunks, attributes)
        instances.copy(ids, array)
    else:
        array = ngff.start_multiscale(path, grid, np.uint8, prediction.chunks, attributes)
        for where, mask in mask_blocks(recipe, name, prediction):
            array[where] = mask
    ngff.finish_multiscale(path, grid, ngff.pyramid(grid), ngff.pick)


def _block(settings: ProcessConfig, prediction: Prediction) -> np.ndarray:
    """Voxels of a block: what process_config.py says, or whole chunks."""
    info = settings.input_array_info
    if not info:
        return np.array([c * max(1, BLOCK // c) for c in prediction.chunks])
    if not np.allclose(info["scale"], prediction.grid.scale, rtol=1e-3):
        raise ValueError(
            f"{prediction.level.path}: voxels of {prediction.grid.scale.tolist()} nm, and input_array_info of process_config.py says "
            f"{list(info['scale'])}; write that scale there, or leave input_array_info out"
        )
    return np.array(info["shape"])


def _as_mask(result: Any, shape: Sequence[int], name: str) -> np.ndarray:
    """What process_func gave as bool. ValueError for another shape, or for anything but 0 and 1."""
    values = result.numpy(force=True) if isinstance(result, torch.Tensor) else np.asarray(result)
    if values.shape != tuple(shape):
        raise ValueError(f"process_config.py: process_func gives shape {values.shape} for logits of shape {tuple(shape)}; give the same shape")
    mask = values.astype(bool)
    if values.dtype != bool and not (values == mask).all():
        raise ValueError(
            f"process_config.py: process_func gives values like {values[values != mask][0]} for '{name}'; give 1 where the class is and "
            "0 elsewhere (objects are numbered over the whole volume, by instance_func)"
        )
    return mask


def _identity(recipe: Recipe, name: str, prediction: Prediction) -> dict[str, Any]:
    """What determines the voxels of a processed class, and a key made of it."""
    about = {"threshold": recipe.threshold(name), "process_config": recipe.text, "instances": name in recipe.settings.instance_classes}
    key = json.dumps([about, prediction.about["key"], name], sort_keys=True)
    return {**about, "key": hashlib.sha256(key.encode()).hexdigest()[:24]}


def _found(path: Path) -> str:
    """The key of a finished volume; '' where there is none."""
    if not (path / ".zattrs").is_file():
        return ""
    attributes = zarr.open_group(str(path), mode="r").attrs.asdict()
    return attributes.get("processed", {}).get("key", "") if "multiscales" in attributes else ""


def _to_user(record: logging.LogRecord) -> bool:
    """What the instance functions have to say goes to standard error beside the progress."""
    train.say(f"note: {record.getMessage()}")
    return False


def _what(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__

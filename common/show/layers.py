"""Find what can be shown of a box: raw, truth, predictions and processed volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit

from common.config.settings import TrainConfig
from common.data.splits.regions import Region
from common.data.volumes import ngff
from common.data.volumes.level import Level
from common.data.volumes.records import read_prediction
from common.data.volumes.sources.place import is_address, on_disk
from common.talk import Say

KINDS = ("raw", "truth", "predictions", "processed")

LABELS = ("truth", "processed")
"""The kinds whose voxels are ids, or 0 and 1."""

Layers = dict[str, dict[str, list[Level]]]
"""For each kind the levels of each class that exists; those of the raw are ["raw"][""]."""


def find_layers(
    config: TrainConfig,
    region: Region,
    classes: Sequence[str] = (),
    kinds: Sequence[str] = KINDS,
    *,
    say: Say = print,
) -> Layers:
    """Return the volumes of a box that exist; those that are missing are said.

    Args:
        config: settings of the experiment.
        region: the box.
        classes: those of the experiment unless given.
        kinds: some of KINDS.
        say: takes a line about missing volumes.
    """
    return layers_under(roots_of(config), region, classes or config.classes, kinds, say=say)


def roots_of(config: TrainConfig) -> dict[str, Path]:
    """Return the folders of an experiment's predictions and processed volumes."""
    return {
        "predictions": config.path("predictions_path"),
        "processed": config.path("processed_path"),
    }


def layers_under(
    roots: Mapping[str, Path],
    region: Region,
    classes: Sequence[str],
    kinds: Sequence[str] = KINDS,
    *,
    say: Say = print,
) -> Layers:
    """Return the volumes of a box that exist, see `find_layers`.

    roots: folders of predictions and processed volumes.
    """
    wanted = list(classes)
    layers: Layers = {}
    if "raw" in kinds:
        layers["raw"] = {"": ngff.open_levels(region.raw)}
    absent = []
    for kind in KINDS[1:]:
        if kind not in kinds:
            continue
        if kind == "truth":
            layers[kind] = _truth(region, wanted)
        else:
            folder = region.folder(roots[kind])
            whole = [name for name in wanted if _is_whole(folder / name)]
            layers[kind] = {name: ngff.open_levels(folder / name) for name in whole}
        missing = [name for name in wanted if name not in layers[kind]]
        if not layers[kind]:
            absent.append(f"no {kind}")
        elif missing and kind != "truth":  # a crop annotates few classes, which is nothing to say
            absent.append(f"no {kind} of {', '.join(missing)}")
    if absent:
        say(f"note: {region}: {', '.join(absent)}")
    return layers


def _truth(region: Region, classes: Sequence[str]) -> dict[str, list[Level]]:
    """Return the levels of the truth of each class that a box has."""
    if region.truth is None:
        return {}
    layers = {}
    for name in classes:
        volume = region.truth_of(name)
        # what a server has is not listed, but by the data split
        is_present = name in region.classes if is_address(volume) else _is_on_disk(volume)
        if is_present:
            layers[name] = ngff.open_levels(volume)
    return layers


def _is_on_disk(volume: Path) -> bool:
    """Whether a volume of any kind exists and is complete."""
    place = on_disk(volume)
    if not place.is_dir() or (place / ".zgroup").exists():
        return place.is_file() or _is_whole(place)
    return any(place.iterdir())


def _is_whole(group: Path) -> bool:
    """Whether an image exists and is complete."""
    path = group / ".zattrs"
    return path.is_file() and f'"{ngff.UNFINISHED}"' not in path.read_text()


def probability_of(level: Level) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from stored voxels of a prediction to probabilities."""
    if is_logits(level):
        return expit
    dtype = level.array.dtype
    largest = np.iinfo(dtype).max if dtype.kind == "u" else 1
    return lambda stored: stored / largest


def is_logits(level: Level) -> bool:
    """Whether a prediction holds logits, by its record, and not probabilities."""
    prediction = read_prediction(level.group)
    return prediction is not None and prediction.content == "logits"


def predicted_by(predictions: Mapping[str, Sequence[Level]]) -> str:
    """Return run, epoch and metric of the checkpoints that predicted, as text."""
    checkpoints = []
    for levels in predictions.values():
        prediction = read_prediction(levels[0].group)
        if prediction:
            run = f"{prediction.model_name}/{prediction.run_name}"
            checkpoints.append(f"{run}, {prediction.at}")
    return "; ".join(dict.fromkeys(checkpoints))

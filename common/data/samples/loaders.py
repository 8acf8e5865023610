"""Open the data of a run, the crops of its datasplit, and tell what the user should know of them.

`common.data.samples.batches` makes batches of the crops.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from common.classes import INSTANCES
from common.config.augmentations import read_augmentations
from common.config.input_channels import read_channels
from common.config.settings import TrainConfig
from common.data.crops import normalize, parts
from common.data.crops.cache import CropCache
from common.data.crops.normalize import Scaling
from common.data.crops.opened import Crop, open_crops
from common.data.crops.palette import Rules
from common.data.crops.plan import CropRequest
from common.data.samples import contrast, derive, sampling
from common.data.samples.rows import BegunWith, of_parts, rows_of_run
from common.data.samples.sampling import Augmentation, Patch, Sample, Sampler
from common.data.samples.validation_blocks import validation_samples
from common.data.splits import split
from common.data.splits.split import Row
from common.data.volumes import annotation
from common.data.volumes.box import overlap
from common.data.volumes.sources import place
from common.errors import UserError, refuse
from common.talk import note, some


@dataclass(frozen=True)
class Data:
    """The decoded crops of a run, and which samples are taken from them."""

    train: list[Crop]
    validation: list[Crop]
    sampler: Sampler
    """Draws the training samples."""
    blocks: list[Sample]
    """The validation samples ("validation blocks"), always in this order."""
    foreground: np.ndarray
    """(classes,) float64: positive voxels in the training crops, counted in target voxels."""
    background: np.ndarray
    """(classes,) float64: negative voxels in the training crops, counted in target voxels."""
    split_hash: str
    """SHA-256 of the datasplit, see `common.data.splits.split.split_hash`."""
    rows: list[Row]
    """Rows of the datasplit that annotate a class of the run."""
    scalings: normalize.Scalings = field(default_factory=dict)
    """How raw is normalised, by the name of its volume; {} with raw_normalization = "range"."""


def open_data(
    config: TrainConfig,
    known: Mapping[str, Scaling] | None = None,
    begun_with: BegunWith = str,
) -> Data:
    """Read the datasplit and open its crops, decoding those that are not in the cache.

    known: how the run that is continued normalised its raw volumes, by their names. begun_with: see
        `common.data.samples.rows.that_count`.

    Raises:
        FileNotFoundError: if the datasplit, or data that it names, are missing.
        UserError: with all problems of the crops, or if none to train on has a positive voxel.
        FileError: if the cache cannot be written.
    """
    rows = rows_of_run(config, begun_with)
    parts.note_outdated(rows)
    if config.input_channels:
        split.refuse_of_one_name(rows, "input_channels are found")
    split_hash = split.split_hash(rows)
    decoded = partial(open_crops, request=crop_request(config), cache=crop_cache(config))
    train = decoded(used_for("train", rows))
    train, rows = _selected(config, train, rows)
    validation = decoded(used_for("validate", rows), beside=train)
    _check_pseudo(config, train, validation)
    sampler = _sampler(config, train)
    _refuse_masks(config, train)
    foreground = count_voxels(train, 1, sampler.target.scale)
    _refuse_no_positive(config, foreground)
    return Data(
        train=train,
        validation=validation,
        sampler=sampler,
        blocks=validation_samples(validation, sampler.input, sampler.target),
        foreground=foreground,
        background=count_voxels(train, 0, sampler.target.scale),
        split_hash=split_hash,
        rows=rows,
        scalings=normalize.of_volumes(config, [row.raw for row in rows], known or {}),
    )


def _refuse_masks(config: TrainConfig, crops: Sequence[Crop]) -> None:
    """Raise UserError for classes without ids, of which derived channels cannot be made.

    An instance class of the challenge may have one object in each crop; that is only said.
    """
    for name in with_ids(config):
        having = [crop for crop in crops if name in crop.with_ids]
        if not having:
            raise UserError(
                f"{config.path('datasplit_path')}: derived: no training crop has ids of '{name}'; "
                "add one whose annotation tells its objects apart, or leave out the channels that "
                "are made of them"
            )
        if not all(name in crop.like_masks for crop in having):
            continue
        where = f"class '{name}' is 0 and 1 in {some([crop.name for crop in having])}"
        if name not in INSTANCES:
            raise UserError(
                f"derived: {where}: a mask, without ids that tell objects apart; number its "
                "objects, or leave out the channels that are made of them"
            )
        note(
            f"derived: {where}, one object in each; if these are masks of several, number the "
            "objects, or where they touch there is no boundary"
        )


def _refuse_no_positive(config: TrainConfig, foreground: np.ndarray) -> None:
    """Raise UserError if there is nothing to learn; foreground: (classes,) positive voxels."""
    if not foreground.any():
        raise UserError(
            f"{config.path('datasplit_path')}: no training crop has a positive voxel of "
            f"{', '.join(config.classes)}; add crops that do"
        )


def _selected(
    config: TrainConfig, train: list[Crop], rows: list[Row]
) -> tuple[list[Crop], list[Row]]:
    """Return the training crops with a positive voxel, if only these are to train; and the rows.

    Where no crop has one all stay: every run is told that.
    """
    has_positive = [bool((crop.counts @ (crop.palette == 1)).any()) for crop in train]
    if not config.selective or not any(has_positive):
        return train, rows
    # crops are opened in the order of their rows
    kept_rows = list(itertools.compress(used_for("train", rows), has_positive))
    others = [row for row in rows if row.usage != "train"]
    return list(itertools.compress(train, has_positive)), [*kept_rows, *others]


def _check_pseudo(config: TrainConfig, train: Sequence[Crop], validation: Sequence[Crop]) -> None:
    """Raise UserError where labels of networks validate, or are weighed and no crop has any."""
    path = config.path("datasplit_path")
    judged = [crop.name for crop in validation if crop.pseudo is not None]
    if judged:
        raise UserError(
            f"{path}: labels of networks in validation crops, {some(judged)}; a network is judged "
            "by what people annotated: write the crops of the annotation there"
        )
    if config.pseudo_weight != 1 and all(crop.pseudo is None for crop in train):
        raise UserError(
            f"{config.folder}: pseudo_weight = {config.pseudo_weight:g}, and {path} has no "
            "training crop with labels of networks; write those with joint init, or leave it out"
        )


def used_for(usage: str, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of a usage, "train" or "validate"."""
    return [row for row in rows if row.usage == usage]


def crop_request(config: TrainConfig) -> CropRequest:
    """Return the request of a run: the classes, voxel sizes and margins of raw of its crops."""
    raw = Patch(**config.input_array_info)
    target = Patch(**config.target_array_info)
    return CropRequest(
        classes=config.classes,
        input_scale=raw.scale,
        target_scale=target.scale,
        patch_nm=raw.extent,
        margins_nm=sampling.margins_nm(
            raw, target, config.spatial_transforms, config.augmentations
        ),
        raw_range=config.raw_range,
        raw_sections=config.raw_sections,
        raw_is_stretched=config.raw_normalization in normalize.MEASURED,
        rules=Rules.of(config),
        counter_classes=config.counter_classes,
        with_ids=with_ids(config),
        input_channels=read_channels(config.input_channels),
        folder=config.folder,
    )


def input_channels(config: TrainConfig, data: Data) -> dict[str, dict[str, Any]]:
    """Return, for each further input channel, of which volume it is in each crop."""
    crops = _by_name(data)
    volumes = {}
    for number, name in enumerate(config.input_channels):
        volumes[name] = {of_crop: crop.channels[number].about for of_crop, crop in crops.items()}
    return volumes


def labels_of(data: Data) -> dict[str, str]:
    """Return a key of the labels of each crop, by the name of the crop."""
    return {name: crop.labels_key for name, crop in _by_name(data).items()}


def raws_of(data: Data) -> dict[str, str]:
    """Return a key of the raw of each crop, by the name of the crop."""
    return {name: crop.raw_key for name, crop in _by_name(data).items()}


def _by_name(data: Data) -> dict[str, Crop]:
    """Return the crops of a run by name; of several of one name, the others have a number too."""
    crops = [*data.train, *data.validation]
    left = Counter(crop.name for crop in crops)
    named = {}
    for crop in crops:
        left[crop.name] -= 1
        # the last: checkpoints of before have it alone
        number = left[crop.name] + 1
        named[crop.name if number == 1 else f"{crop.name} ({number} of this name)"] = crop
    return named


def with_ids(config: TrainConfig) -> tuple[str, ...]:
    """Return the classes whose objects derived channels are made of, each once."""
    return tuple(dict.fromkeys(channel.of for channel in config.derived.values()))


def crop_cache(config: TrainConfig) -> CropCache:
    """Return the cache of decoded crops; all runs with the same cache_path share it."""
    return CropCache(config.path("cache_path") / "crops", config.cache_gb)


def _sampler(config: TrainConfig, crops: Sequence[Crop]) -> Sampler:
    return Sampler(
        crops=crops,
        input=Patch(**config.input_array_info),
        target=Patch(**config.target_array_info),
        seed=config.random_seed,
        weighted=config.weighted_sampler,
        positive_centre_fraction=config.positive_centre_fraction,
        augmentation=Augmentation(
            spatial_transforms=config.spatial_transforms,
            intensity_probability=config.intensity_probability,
            gamma_range=config.gamma_range,
            contrast_range=config.contrast_range,
            noise_std=config.noise_std,
            kinds=read_augmentations(config.augmentations),
        ),
        class_weights=_class_weights(config, crops),
        crop_weights=_crop_weights(config, crops),
        elsewhere=bool(config.counter_classes),
        objects=objects_patch(config),
    )


def objects_patch(config: TrainConfig) -> Patch | None:
    """Return the patch of ids that derived channels are made of; None without any."""
    if not config.derived:
        return None
    target = Patch(**config.target_array_info)
    margin = derive.margin_of(list(config.derived.values()), target.scale)
    z, y, x = (n + 2 * m for n, m in zip(target.shape, margin, strict=True))
    return Patch((z, y, x), target.scale)


def _class_weights(config: TrainConfig, crops: Sequence[Crop]) -> np.ndarray | None:
    """Return class_sampling_weights as (classes,); None if it is empty.

    Raises UserError if every class that occurs has weight 0.
    """
    given = config.class_sampling_weights
    if not given:
        return None
    weights = np.array([given.get(name, 1.0) for name in config.classes], float)
    occurs = count_voxels(crops, 1, config.target_array_info["scale"]) > 0
    if occurs.any() and not weights[occurs].any():
        raise UserError(
            f"{config.folder}: class_sampling_weights = {given}: 0 for every class that has a "
            "positive voxel in the training crops; write a number above 0 for one of them"
        )
    return weights


def _crop_weights(config: TrainConfig, crops: Sequence[Crop]) -> np.ndarray | None:
    """Return crop_sampling_weights as (crops,); None if it is empty.

    Raises UserError with the patterns that match no training crop.
    """
    given = config.crop_sampling_weights
    if not given:
        return None
    weights = np.ones(len(crops))
    problems = []
    for pattern, weight in given.items():
        fits = [fnmatch.fnmatchcase(crop.name, pattern) for crop in crops]
        weights[fits] = weight
        if not any(fits):
            problems.append(
                f"crop_sampling_weights['{pattern}']: no training crop has such a name; "
                f"write a pattern that fits names like '{crops[0].name}'"
            )
    refuse(problems, config.folder)
    return weights


def count_voxels(crops: Sequence[Crop], value: int, scale: Sequence[float]) -> np.ndarray:
    """Count the voxels labelled `value` (1 or 0) in all crops, as (classes,) float64.

    The volume is expressed in voxels of size `scale` (nm), so counts need not be whole numbers.
    """
    total = np.zeros(crops[0].palette.shape[1])
    for crop in crops:
        per_target_voxel = crop.label_grid.scale.prod() / np.prod(scale)
        total += crop.counts @ (crop.palette == value) * per_target_voxel
    return total


def notices(data: Data, classes: Sequence[str], counter: Sequence[str] = ()) -> list[str]:
    """Return what the user should know about the data before training, as sentences.

    counter: the setting counter_classes.
    """
    sentences = [
        *_not_learnt(data, classes),
        *split.not_listed(data.rows, [*classes, *counter]),
        *of_parts(data.rows, classes, counter),
        *_not_measured(data, classes),
    ]
    remarks: list[tuple[str, str]] = []
    for crop in (*data.train, *data.validation):
        remarks += crop.remarks
    sentences += annotation.summed_up(remarks)
    sentences += _missing_raw([*data.train, *data.validation])
    sentences += _trained_on(data)
    sentences += contrast.inverted(_by_raw(data), classes)
    at_odds = [crop for crop in (*data.train, *data.validation) if crop.contradictions]
    if at_odds:
        worst = max(at_odds, key=_contradicted)
        voxels = sum(crop.contradictions for crop in at_odds)
        sentences.append(
            f"the annotation contradicts the class table in {voxels:,} voxels of {len(at_odds)} "
            f"crops, most in {worst.name} ({_contradicted(worst):.1%}); "
            "annotated labels are used as they are"
        )
    if not data.validation:
        sentences.append(
            "the datasplit has no validation crop: no metric, and the best checkpoint is the last"
        )
    return sentences


def _missing_raw(crops: Sequence[Crop]) -> list[str]:
    """Return a sentence about crops whose labels lie on raw that is not there."""
    short = [crop for crop in crops if crop.missing_raw.missing]
    if not short:
        return []
    missing = sum(crop.missing_raw.missing for crop in short)
    total = sum(crop.missing_raw.of for crop in short)
    names = some([crop.name for crop in short])
    return [
        f"{missing} of {total} chunks of raw are not there under the labels of {names}, and are of "
        "one value: fetch their EM chunks again, or remove the crops from the datasplit"
    ]


def _trained_on(data: Data) -> list[str]:
    """Return a sentence about validation crops that overlap training crops; [] without any."""
    trained = _by_volume(used_for("train", data.rows), data.train)
    pairs = []
    for volume, crops in _by_volume(used_for("validate", data.rows), data.validation).items():
        for crop, other in itertools.product(crops, trained.get(volume, ())):
            if overlap(crop.label_grid.box(), other.label_grid.box()):
                pairs.append(f"{crop.name} and {other.name}")
    sentences = []
    if pairs:
        sentences.append(
            f"validation crops overlap training crops, so that what was trained on is judged: "
            f"{some(pairs)}; put both on one side"
        )
    copies = [pair for pair in _of_equal_raw(data) if pair not in pairs]
    if copies:
        sentences.append(
            "validation crops have the raw of training crops, voxel by voxel, as copies of a "
            f"dataset under another name do: {some(copies)}; put both on one side"
        )
    return sentences


def _of_equal_raw(data: Data) -> list[str]:
    """Return the pairs of a validation and a training crop whose raw is the same."""
    trained: dict[str, Crop] = {}
    for crop in data.train:
        if np.ptp(crop.raw()[::8, ::8, ::8]):
            trained[crop.raw_key] = crop
    pairs = []
    for crop in data.validation:
        other = trained.get(crop.raw_key)
        if other is not None:
            pairs.append(f"{crop.name} and {other.name}")
    return pairs


def _by_volume(rows: Sequence[Row], crops: Sequence[Crop]) -> dict[str, list[Crop]]:
    """Return the crops of these rows by the raw that they are cut from."""
    of_volume: dict[str, list[Crop]] = {}
    for row, crop in zip(rows, crops, strict=True):
        of_volume.setdefault(place.identity(row.raw), []).append(crop)
    return of_volume


def _by_raw(data: Data) -> dict[str, list[Crop]]:
    """Return the crops of both sides by the name of their raw."""
    of_raw: dict[str, list[Crop]] = {}
    for usage, crops in (("train", data.train), ("validate", data.validation)):
        for row, crop in zip(used_for(usage, data.rows), crops, strict=True):
            of_raw.setdefault(str(row.raw), []).append(crop)
    return of_raw


def _not_learnt(data: Data, classes: Sequence[str]) -> list[str]:
    """Return sentences about classes of which the training crops say too little."""
    annotated = split.annotating(data.rows, "train")
    nowhere: list[str] = []
    without_positive: list[str] = []
    always_positive: list[str] = []
    only_inferred: list[str] = []
    for name, positive, negative in zip(classes, data.foreground, data.background, strict=True):
        if not positive:
            (without_positive if name in annotated else nowhere).append(name)
        elif not negative:
            always_positive.append(name)
        elif name not in annotated:
            only_inferred.append(name)
    sentences = {
        "annotated in no training crop, so not learnt": nowhere,
        "no positive voxel in the training crops, so not learnt": without_positive,
        "positive wherever the training crops know it, never negative, so only learnt to be "
        "everywhere": [_with_origin(name, annotated) for name in always_positive],
        "annotated in no training crop, learnt only where it follows from other classes": (
            only_inferred
        ),
    }
    return [f"{what}: {', '.join(names)}" for what, names in sentences.items() if names]


def _with_origin(name: str, annotated: Collection[str]) -> str:
    """Return the class, with where its labels are from if no training crop annotates it."""
    if name in annotated:
        return name
    return f"{name} (annotated in no training crop: it follows from other classes)"


def _not_measured(data: Data, classes: Sequence[str]) -> list[str]:
    """Return a sentence about classes that the validation crops do not measure; [] without any."""
    if not data.validation:
        return []
    scale = data.sampler.target.scale
    positive = count_voxels(data.validation, 1, scale)
    negative = count_voxels(data.validation, 0, scale)
    without: dict[str, list[str]] = {"positive": [], "negative": []}
    for name, positives, negatives in zip(classes, positive, negative, strict=True):
        if not positives:
            without["positive"].append(name)
        elif not negatives:
            without["negative"].append(name)
    left_out = [f"{', '.join(names)} (no {sign} voxel)" for sign, names in without.items() if names]
    if not left_out:
        return []
    measured = len(classes) - sum(map(len, without.values()))
    return [
        f"means of the validation are over {measured} of {len(classes)} classes; its crops do not "
        f"measure {', '.join(left_out)}"
    ]


def _contradicted(crop: Crop) -> float:
    """Return the fraction of a crop's voxels whose labels contradict the class table."""
    return crop.contradictions / crop.counts.sum()

"""Score a packed submission against a store of truths {crop}/{class}, crop by crop."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from common.classes import INSTANCES
from common.data.volumes.label_reader import LabelReader
from common.data.volumes.level import Level
from common.data.volumes.ngff import open_levels
from common.errors import UserError
from common.score import arrays, challenge, kept, submission
from common.score.judge import Evaluation, Truth, compare, judge
from common.score.versions import CSC, Version


@dataclass(frozen=True)
class SubmittedCrop:
    """One crop of a submission: what a process needs to read and score it."""

    submission: Path
    """A path that `common.score.submission.opened` takes."""
    truths: Path
    """Store of {crop}/{class}, and {class}_mask where only a part is annotated."""
    crop: str
    version: Version = CSC
    """Version of the challenge's score."""
    instances: Collection[str] = INSTANCES
    """The classes that are scored by their objects."""
    kept: Path | None = None
    """Folder of what is scored already, see `common.score.kept`."""


def crops_of(truths: Path) -> list[str]:
    """Return the crops of a store of truths. Raises FileNotFoundError or UserError."""
    return sorted(_open_truths(truths).group_keys())


def open_volume(path: Path) -> Level:
    """Open the finest level of a multiscale group, or an array with its place in attributes.

    Raises FileNotFoundError without a volume, UserError for one without a place in space.
    """
    if not (path / ".zarray").is_file():
        return open_levels(path)[0]
    try:
        folder = zarr.open_group(str(path.parent), mode="r")
    except submission.GROUP_ERRORS as error:
        raise UserError(f"{path.parent}: not a zarr v2 group ({error}); write it again") from error
    return _in_memory(_level(arrays.open_array(folder, path.name, path), path))


def judge_crop(job: SubmittedCrop) -> list[Evaluation]:
    """Score all classes of one crop. An array that is broken or has no place counts as missing.

    Raises UserError for truths that cannot be read.
    """
    return kept.once(job, _judge_crop, [job.submission, job.truths / job.crop])


def _judge_crop(job: SubmittedCrop) -> list[Evaluation]:
    with submission.opened(job.submission) as packed:
        return [_judge_class(job, truth, packed) for truth in _truths(job)]


def refused(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return lines about submitted arrays that could not be scored; [] if there are none.

    Raises UserError if no array could be scored.
    """
    bad = [evaluation for evaluation in evaluations if evaluation.refused]
    if not bad:
        return []
    if not any(evaluation.counts.status != challenge.MISSING for evaluation in evaluations):
        raise UserError("\n".join(evaluation.refused for evaluation in bad))
    lines = [
        f"{len(bad)} of {len(evaluations)} volumes cannot be scored, and count as missing, as what "
        "is not submitted does:"
    ]
    return lines + [f"  {evaluation.refused}" for evaluation in bad]


def _truths(job: SubmittedCrop) -> Iterator[Truth]:
    """Yield the truth of each class that is annotated in a crop."""
    folder = job.truths / job.crop
    group = _open_truths(folder)
    for name in sorted(group.array_keys()):
        if name.endswith("_mask"):
            continue
        array = arrays.open_array(group, name, folder / name)
        level = _level(array, folder / name)
        yield Truth(
            crop=job.crop,
            name=name,
            level=level,
            is_instance=name in job.instances,
            mask=_mask_of(level, group),
            version=job.version,
        )


def _mask_of(truth: Level, group: zarr.Group) -> np.ndarray | None:
    """Return the mask of the voxels of a truth that count; None if all do.

    Raises UserError if the mask is on other voxels than the truth.
    """
    path = truth.path.with_name(f"{truth.path.name}_mask")
    if path.name not in group:
        return None
    array = arrays.open_array(group, path.name, path)
    if tuple(array.shape) != tuple(truth.array.shape):
        raise UserError(
            f"{path}: shape {tuple(array.shape)}, and the truth {truth.path}, of which it says "
            f"where it counts, has {tuple(truth.array.shape)}; write both on the same voxels"
        )
    for name, place in (("voxel_size", truth.scale), ("translation", truth.translation)):
        said = array.attrs.get(name)
        if arrays.is_place(said) and not np.allclose(said, place, rtol=1e-3, atol=1e-3):
            raise UserError(
                f"{path}: {name} {said}, and the truth {truth.path}, of which it says where it "
                f"counts, has {place.tolist()}; write both on the same voxels"
            )
    return arrays.read_array(array, path)


def _judge_class(job: SubmittedCrop, truth: Truth, packed: zarr.Group) -> Evaluation:
    path = f"{truth.crop}/{truth.name}"
    if path not in packed:
        return _missing(truth)
    try:
        array = arrays.open_array(packed, path, job.submission / path)
        return _judge_array(job, truth, array)
    except UserError as error:
        # where the truth is wrong this one fails too
        return replace(_missing(truth), refused=str(error))


def _missing(truth: Truth) -> Evaluation:
    """Return the evaluation of a class that the submission lacks."""
    labels, _ = LabelReader(truth.level, truth.name).ids()
    nothing = compare(truth, labels, np.zeros(labels.shape, np.uint8))
    return replace(nothing, counts=challenge.missing(labels, truth.is_instance))


def _judge_array(job: SubmittedCrop, truth: Truth, array: Any) -> Evaluation:
    """Score an array of the submission; voxels that it does not cover count as background."""
    level = _in_memory(_level(array, job.submission / truth.crop / truth.name))
    try:
        return judge(truth, level)
    except UserError as error:
        if str(error).startswith(f"{level.path}:"):
            raise
        # of ids that are none, which does not know where they stand
        raise UserError(f"{level.path}: {error}") from error


def _level(array: Any, path: Path) -> Level:
    """Return an array with its place, by its attributes voxel_size and translation (nm).

    Raises UserError if they are missing or no places.
    """
    if not isinstance(array, zarr.Array) or array.ndim != 3:
        name = f"{path.parent.name}/{path.name}"
        raise UserError(f"{path}: not an array of three axes; write {name} as one, z, y, x")
    voxel_size = array.attrs.get("voxel_size")
    translation = array.attrs.get("translation")
    is_placed = arrays.is_place(voxel_size) and arrays.is_place(translation)
    if not is_placed or min(voxel_size) <= 0:
        raise UserError(
            f"{path}: no place in space (voxel_size {voxel_size}, translation {translation}); "
            "write the attributes voxel_size and translation, each z, y, x in nm"
        )
    return Level(path, array, np.array(voxel_size, float), np.array(translation, float))


def _in_memory(level: Level) -> Level:
    """Return a level with its voxels in memory: `Level.read` looks for files, which a zip lacks."""
    volume = arrays.read_array(level.array, level.path)
    # a chunk larger than the array would be made whole
    chunks = tuple(min(pair) for pair in zip(level.array.chunks, volume.shape, strict=True))
    return replace(level, array=zarr.array(volume, chunks=chunks, compressor=None))


def _open_truths(path: Path) -> zarr.Group:
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such store of truths; write the folder that holds {{crop}}/{{class}}"
        )
    try:
        return zarr.open_group(str(path), mode="r")
    except submission.GROUP_ERRORS as error:
        raise UserError(
            f"{path}: not a zarr v2 group ({error}); write the folder that holds {{crop}}/{{class}}"
        ) from error

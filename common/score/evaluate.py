"""Score processed crops, or a packed submission, against the annotation, from top to bottom.

The result is written as JSON, numbers that do not exist as null:

    metric                  the challenge's score and which definition of it
    settings                confidence level, resamples and seed of the intervals, the IoU from which objects match for PQ
    overall_score, overall_instance_score, overall_semantic_score; interval_95 of each; total_evals, num_evals_done
    classes     {class: kind (instance, semantic), crops, left_out (by the metric, for too many objects), missing, figures, interval_95}
    crops       {crop: {class: status, figures, counts (of the challenge's score), voxels (tp, fp, fn), objects (tp, fp, fn at IoU > 0.5,
                and the sum of the IoU of the tp), voxel_size (nm), shape, resampled}}
    asked       crops, classes and overrides of the command; not_annotated: classes that none of the crops has
    provenance  experiment, run, checkpoints with SHA-256, thresholds, versions, git commit, date

figures: score is the challenge's, IoU pooled over crops for a semantic class, sqrt(f1 x hausdorff) for an instance class, 1 where there is
nothing to find and nothing was found. dice, iou, precision and recall count voxels, null where there is nothing to find. pq is at
IoU > 0.5; voi_split and voi_merge (bits) and rand_error are means over crops. tp, fp, fn are those of the score.
Both volumes are compared on the annotation's finest voxels. One class in one crop takes about 25 bytes a voxel of them in memory.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fastremap
import numpy as np
import zarr
from tqdm import tqdm

from common.classes import INSTANCES
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data import ngff, regions, regrid
from common.data.ngff import Level
from common.data.regions import Region
from common.errors import FileError, UserError
from common.files import REPOSITORY
from common.infer import process
from common.infer.process import Recipe
from common.provenance import provenance
from common.score import challenge, quality, readme, submission
from common.train import metrics

LEVEL, RESAMPLES, SEED = 0.95, 1000, 0
"""Of the confidence intervals."""

OVERALL = ("overall_score", "overall_instance_score", "overall_semantic_score")


@dataclass(frozen=True)
class Evaluation:
    """One class in one crop."""

    crop: str
    name: str
    counts: challenge.Counts
    """Of the challenge's score; InstanceCounts of an instance class."""
    voxels: tuple[int, int, int]
    """tp, fp, fn voxels."""
    objects: tuple[int, int, int, float] | None = None
    """tp, fp, fn objects at IoU > 0.5 and the sum of the IoU of the tp; None for a semantic class, as the next two are."""
    voi: tuple[float, float] | None = None
    rand_error: float | None = None
    voxel_size: tuple[float, ...] = ()
    """nm, of the annotation; shape in its voxels."""
    shape: tuple[int, ...] = ()
    resampled: bool = False
    """Whether what was found had voxels of another size."""


@dataclass(frozen=True)
class Job:
    """One class in one crop, to be read and scored by any process."""

    crop: str
    name: str
    truth: Path
    processed: Path
    predicted: Path
    is_instance: bool


def evaluate(
    config_path: str | Path,
    crops: str = "validate",
    *,
    classes: Sequence[str] = (),
    manifest_path: str = "",
    write_readme: bool = False,
    workers: int = 1,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Score the processed volumes of annotated crops; writes a JSON under results_path and gives its content, see above.

    It is scores.json for the crops that validate and all classes, and scores_CROPS_CLASSES.json for others. crops: see
    `common.data.regions.find`; classes: some of process_config.py's; write_readme: also into the README of the experiment; workers:
    processes. Raises FileNotFoundError or ValueError, also for a volume that is half-written, does not cover its crop, or was not made of
    the prediction, by the process_config.py and with the thresholds that there are now.
    """
    config = load_config(config_path, overrides, data)
    recipe = process.load_recipe(config, classes)
    if write_readme:
        readme.check(config)
    boxes = [
        box
        for box in regions.choose(config, crops, manifest_path=manifest_path, say=say)
        if box.truth
    ]
    jobs = [
        _job(config, recipe, box, name)
        for name in recipe.classes
        for box in boxes
        if name in box.classes
    ]
    if not jobs:
        raise UserError(
            f"--crops {crops}: no annotated crop has one of these classes; test crops are scored by the organisers"
        )
    made = process.gather(partial(check, recipe), jobs)
    found = parallel(judge, jobs, workers)
    result = summary(found) | {
        "asked": {"crops": crops, "classes": list(classes), "overrides": list(overrides)},
        "not_annotated": [
            name for name in recipe.classes if name not in {job.name for job in jobs}
        ],
        "provenance": _provenance(config, jobs, made),
    }
    path = write(result, config.path("results_path") / result_name(crops, classes))
    say(readme.terminal(result))
    say(f"\n{path}")
    if write_readme:
        say(str(readme.write_scores(config, boxes, result, say)))
    return result


def evaluate_submission(
    path: str | Path,
    truth: str | Path,
    *,
    result_path: str | Path = "result.json",
    workers: int = 1,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Score a packed submission against a store of truths {crop}/{class} (and {class}_mask); writes a JSON and gives its content.

    The arrays of both have the attributes voxel_size and translation (of the centre of the first voxel), nm. A class that the
    submission lacks counts as missing, as in the challenge. Raises FileNotFoundError or ValueError.
    """
    crops = sorted(_store(truth).group_keys())
    with submission.opened(path):
        pass  # so that what is wrong with it is said once, and first
    found = [
        one
        for part in parallel(partial(_judge_submitted, Path(path), Path(truth)), crops, workers)
        for one in part
    ]
    if not found:
        raise UserError(
            f"{truth}: no arrays {{crop}}/{{class}} in it; write the store of the truths"
        )
    result = summary(found) | {
        "provenance": {"submission": str(path), "truth": str(truth), **_versions()}
    }
    say(readme.terminal(result))
    if resampled := [f"{one.crop}/{one.name}" for one in found if one.resampled]:
        say(
            f"note: {len(resampled)} of {len(found)} have voxels of another size than the truth and were resampled, {resampled[0]} for one"
        )
    say(f"\n{write(result, Path(result_path))}")
    return result


def check(recipe: Recipe, job: Job) -> dict[str, Any]:
    """What a processed volume says of how it was made. Raises FileNotFoundError or ValueError where it is not what should be scored."""
    truth = ngff.open_levels(job.truth)[0]
    made = process.check_processed(recipe, job.name, job.processed, job.predicted)
    level = ngff.open_levels(job.processed)[0]
    if not regrid.covers(level, truth.grid):
        raise UserError(
            f"{job.processed}: {regrid.shortfall(level, truth.grid)} of {job.crop}; predict and process the whole crop"
        )
    return made


def parallel(function: Callable[[Any], Any], items: Sequence[Any], workers: int = 1) -> list[Any]:
    """Function of each item, in their order, in as many processes. Raises OSError if one of them was killed."""
    bar = partial(tqdm, total=len(items), leave=False, disable=None)
    if workers <= 1 or len(items) <= 1:
        return [function(item) for item in bar(items)]
    try:
        with ProcessPoolExecutor(min(workers, len(items)), mp_context=get_context("spawn")) as pool:
            return list(bar(pool.map(function, items)))
    except BrokenProcessPool as error:
        raise FileError(
            f"one of {workers} processes was killed, most likely for want of memory; write fewer --workers"
        ) from error


def judge(job: Job) -> Evaluation:
    """Read a class of a crop on the annotation's voxels, and score it."""
    truth = ngff.open_levels(job.truth)[0]
    return _judged(job.crop, job.name, truth, ngff.open_levels(job.processed)[0], job.is_instance)


def compare(
    crop: str,
    name: str,
    truth: np.ndarray,
    found: np.ndarray,
    voxel_size: Sequence[float],
    is_instance: bool,
    mask: np.ndarray | None = None,
) -> Evaluation:
    """Two volumes on one grid; ids for an instance class. Voxels where mask is 0 do not count."""
    voxels = challenge.semantic(truth, found, mask)
    seen = Evaluation(
        crop,
        name,
        voxels,
        (voxels.tp, voxels.fp, voxels.fn),
        voxel_size=tuple(map(float, voxel_size)),
        shape=tuple(map(int, truth.shape)),
    )
    if not is_instance:
        return seen
    truth, found = (
        fastremap.refit(ids) if ids.dtype.kind == "u" else ids for ids in (truth, found)
    )  # ids in uint64 take twice the time
    pairs = challenge.contingency(truth, found, mask)
    return replace(
        seen,
        counts=challenge.instance(truth, found, voxel_size, mask),
        objects=quality.count_objects(pairs),
        voi=quality.variation_of_information(pairs),
        rand_error=quality.rand_error(pairs),
    )


def summary(found: Sequence[Evaluation]) -> dict[str, Any]:
    """The challenge's scores, figures for each class pooled over crops, intervals over crops, and every crop by itself."""
    official = challenge.combine((one.name, one.counts) for one in found)
    by_class, by_crop = (
        {
            key: [one for one in found if getattr(one, of) == key]
            for key in dict.fromkeys(getattr(one, of) for one in found)
        }
        for of in ("name", "crop")
    )
    return {
        "metric": f"CellMap Segmentation Challenge, {challenge.VERSION}",
        "settings": {"confidence": LEVEL, "resamples": RESAMPLES, "seed": SEED, "pq_iou": 0.5},
        **{key: _plain(official[key]) for key in OVERALL},
        "interval_95": {
            key: _interval(found, lambda official, key=key: official[key]) for key in OVERALL
        },
        "total_evals": official["total_evals"],
        "num_evals_done": official["num_evals_done"],
        "classes": {
            name: {
                "kind": "instance" if _is_instance(part) else "semantic",
                "crops": len(part),
                "left_out": sum(one.counts.status == challenge.SKIPPED for one in part),
                "missing": sum(one.counts.status == "missing" for one in part),
                **figures(part),
                "interval_95": _interval(
                    part, lambda official, name=name: _score_of(official["label_scores"][name])
                ),
            }
            for name, part in by_class.items()
        },
        "crops": {
            crop: {one.name: _details(one) for one in part} for crop, part in by_crop.items()
        },
    }


def figures(found: Sequence[Evaluation]) -> dict[str, float | None]:
    """The figures of one class, counts pooled over crops, distances of partitions averaged; None where there is nothing to find."""
    official = challenge.combine((one.name, one.counts) for one in found)["label_scores"][
        found[0].name
    ]
    pooled = metrics.metrics(*np.sum([one.voxels for one in found], axis=0))
    result = {"score": _score_of(official), **pooled}
    if _is_instance(found):
        parts = quality.panoptic(*np.sum([one.objects for one in found], axis=0))
        result |= {
            "f1": official["f1"],
            "hausdorff": official["normalized_hausdorff_distance"],
            "pq": parts["pq"],
        }
        result |= {
            "voi_split": _mean(one.voi[0] for one in found),
            "voi_merge": _mean(one.voi[1] for one in found),
        }
        result["rand_error"] = _mean(one.rand_error for one in found)
    return {name: _plain(value) for name, value in result.items()} | {
        name: int(official[name]) for name in ("tp", "fp", "fn")
    }


def class_score(name: str, counts: Sequence[challenge.Counts]) -> float:
    """The challenge's score of one class from its counts in several crops."""
    return _score_of(challenge.combine((name, one) for one in counts)["label_scores"][name])


def _provenance(
    config: TrainConfig, jobs: Sequence[Job], made: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What was scored: the checkpoints and settings that the processed volumes carry, versions, commit, date."""
    about = [one.get("prediction", {}) for one in made]
    keys = ("checkpoint", "sha256", "epoch", "metric", "content", "dtype", "orientations")
    checkpoints = {json.dumps({key: one.get(key) for key in keys}) for one in about}
    return {
        "experiment": config.folder.name,
        "model_name": config.model_name,
        "run_name": config.run,
        "checkpoints": [json.loads(text) for text in sorted(checkpoints)],
        "thresholds": {job.name: one.get("threshold") for job, one in zip(jobs, made, strict=True)},
        **_versions(),
    }


def result_name(crops: str, classes: Sequence[str] = ()) -> str:
    """The file of a set of crops and classes, so that one does not replace another's."""
    words = "_".join(
        filter(
            None,
            [
                "" if crops == "validate" and not classes else crops.replace(" ", ""),
                ",".join(classes),
            ],
        )
    )
    name = re.sub(r"[^\w,.-]", "-", words.replace("*", "all"))[:80]
    if name != words and words != "*":  # shortened, or changed in a way that another may be too
        name += f"_{zlib.crc32(words.encode()):08x}"
    return f"scores{name and '_'}{name}.json"


def write(result: dict[str, Any], path: Path) -> Path:
    """The result as JSON, whole or not at all. Raises OSError with a sentence."""
    temporary = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(
            json.dumps(result, indent=1, allow_nan=False, default=lambda number: number.item())
            + "\n"
        )
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise FileError(
            f"{path}: could not be written ({error.strerror or error}); mend that, and run the same command again"
        ) from error
    return path


def _job(config: TrainConfig, recipe: Recipe, box: Region, name: str) -> Job:
    processed, predicted = (
        box.folder(config.path(path)) / name for path in ("processed_path", "predictions_path")
    )
    return Job(
        str(box), name, box.truth / name, processed, predicted, recipe.is_scored_by_objects(name)
    )


def _judged(
    crop: str,
    name: str,
    truth: Level,
    level: Level,
    is_instance: bool,
    mask: np.ndarray | None = None,
) -> Evaluation:
    """Both on the truth's voxels."""
    found = (regrid.ids if is_instance else regrid.mask)(level, truth.grid)
    seen = compare(crop, name, regrid.ids(truth, truth.grid), found, truth.scale, is_instance, mask)
    return replace(seen, resampled=not np.allclose(level.scale, truth.scale, rtol=1e-3))


def _judge_submitted(path: Path, truth: Path, crop: str) -> list[Evaluation]:
    """All classes of one crop of a submission."""
    group, found = _store(truth)[crop], []
    with submission.opened(path) as packed:
        for name, array in sorted(group.arrays()):
            if name.endswith("_mask"):
                continue
            wanted, is_instance = _level(array, truth, crop, name), name in INSTANCES
            mask = group[f"{name}_mask"][...] if f"{name}_mask" in group else None
            if f"{crop}/{name}" not in packed:
                nothing = compare(
                    crop,
                    name,
                    array[...],
                    np.zeros(array.shape, np.uint8),
                    wanted.scale,
                    is_instance,
                    mask,
                )
                found.append(replace(nothing, counts=challenge.missing(array[...], is_instance)))
                continue
            given = _in_memory(_level(packed[f"{crop}/{name}"], path, crop, name))
            if not regrid.covers(given, wanted.grid):
                short = regrid.shortfall(given, wanted.grid)
                raise UserError(
                    f"{given.path}: {short} of the truth; pack the crop with its own voxel_size and translation"
                )
            try:
                found.append(_judged(crop, name, wanted, given, is_instance, mask))
            except ValueError as error:
                raise UserError(f"{given.path}: {error}") from error
    return found


def _level(array: Any, store: Path, crop: str, name: str) -> Level:
    """An array {crop}/{class} with its place. Raises ValueError where its attributes do not say it."""
    path = store / crop / name
    if not isinstance(array, zarr.Array) or array.ndim != 3:
        raise UserError(f"{path}: not an array of three axes; write {crop}/{name} as one, z, y, x")
    try:
        scale, translation = (
            np.array(array.attrs[key], float) for key in ("voxel_size", "translation")
        )
        if {scale.shape, translation.shape} != {(3,)} or not (
            np.isfinite([scale, translation]).all() and (scale > 0).all()
        ):
            raise UserError(
                f"voxel_size {array.attrs['voxel_size']}, translation {array.attrs['translation']}"
            )
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: no place in space ({error}); write the attributes voxel_size and translation, each z, y, x in nm"
        ) from error
    return Level(path, array, scale, translation)


def _in_memory(level: Level) -> Level:
    """The same without its store: a zip has no files of chunks for `Level.read` to look at."""
    try:
        volume = level.array[...]
    except (RuntimeError, ValueError, OSError, EOFError) as error:
        raise UserError(f"{level.path}: cannot be read ({error}); pack it again") from error
    return replace(level, array=zarr.array(volume, chunks=level.array.chunks, compressor=None))


def _store(path: str | Path) -> zarr.Group:
    if not Path(path).is_dir():
        raise FileNotFoundError(
            f"{path}: no such store of truths; write the folder that holds {{crop}}/{{class}}"
        )
    try:
        return zarr.open_group(str(path), mode="r")
    except (zarr.errors.GroupNotFoundError, zarr.errors.ContainsArrayError, ValueError) as error:
        raise UserError(
            f"{path}: not a zarr v2 group ({error}); write the folder that holds {{crop}}/{{class}}"
        ) from error


def _interval(found: Sequence[Evaluation], of: Callable[[dict], float]) -> list[float] | None:
    """LEVEL of what a score would be with other crops of the same kind; None with fewer than two.

    Counts are summed over the crops of a draw before they are combined, which gives the same as combining them one by one.
    """
    crops, names = (
        {name: k for k, name in enumerate(dict.fromkeys(names))}
        for names in ((one.crop for one in found), (one.name for one in found))
    )
    kinds = {one.name: type(one.counts) for one in found}
    rows = np.zeros((len(crops), len(names), 6))
    for one in found:
        counts = one.counts
        rest = (
            (counts.hausdorff_norm_sum, counts.n_hausdorff)
            if isinstance(counts, challenge.InstanceCounts)
            else (0, 0)
        )
        rows[crops[one.crop], names[one.name]] += (1, counts.tp, counts.fp, counts.fn, *rest)

    def statistic(drawn: np.ndarray) -> float:
        pairs = []
        for (name, kind), (times, tp, fp, fn, *rest) in zip(
            kinds.items(), drawn.sum(0).tolist(), strict=True
        ):
            if times:
                pairs.append(
                    (
                        name,
                        kind(tp, fp, fn, "scored", *rest)
                        if kind is challenge.InstanceCounts
                        else kind(tp, fp, fn),
                    )
                )
        return of(challenge.combine(pairs))

    low, high = quality.bootstrap(rows, statistic, LEVEL, RESAMPLES, SEED)
    return None if math.isnan(low) else [low, high]


def _details(one: Evaluation) -> dict[str, Any]:
    """All that is known of a class in a crop."""
    counts = asdict(one.counts)
    objects = (
        dict(zip(("tp", "fp", "fn", "iou_sum"), one.objects, strict=True)) if one.objects else None
    )
    return {
        "status": counts.pop("status"),
        **figures([one]),
        "counts": counts,
        "voxels": dict(zip(("tp", "fp", "fn"), one.voxels, strict=True)),
        "objects": objects,
        "voxel_size": one.voxel_size,
        "shape": one.shape,
        "resampled": one.resampled,
    }


def _is_instance(found: Sequence[Evaluation]) -> bool:
    return isinstance(found[0].counts, challenge.InstanceCounts)


def _score_of(label: dict[str, float]) -> float:
    return float(label.get("combined_score", label.get("iou")))


def _versions() -> dict[str, str]:
    return {
        **provenance(REPOSITORY),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _mean(values: Any) -> float:
    """Of those that are not NaN; NaN without one."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _plain(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else float(value)

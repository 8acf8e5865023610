"""Score processed crops, or a packed submission, against the annotation, from top to bottom."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from common import ngff, quality, readme, regions, regrid, runtime, score, submission
from common.classes import INSTANCES
from common.config import REPOSITORY, TrainConfig, load_config
from common.ngff import Grid, Level

FIGURES = ("score", "dice", "iou", "precision", "recall", "f1", "hausdorff", "pq", "voi_split", "voi_merge", "rand_error")
"""Columns of the table: the challenge's score of a class, then what is in general use; the last six are for instance classes."""


@dataclass(frozen=True)
class Evaluation:
    """One class in one crop."""

    crop: str
    name: str
    counts: score.Counts
    """Of the challenge's score."""
    voxels: tuple[int, int, int] = (0, 0, 0)
    """tp, fp, fn voxels."""
    objects: tuple[int, int, int, float] | None = None
    """tp, fp, fn objects at IoU > 0.5 and the sum of the IoU of the tp; None for a semantic class, as the next three are."""
    voi: tuple[float, float] | None = None
    rand_error: float | None = None


@dataclass(frozen=True)
class Job:
    """One class in one crop, to be read and scored by any process."""

    crop: str
    name: str
    truth: Path
    processed: Path
    is_instance: bool


def evaluate(
    config_path: str | Path, crops: str = "validate", *, classes: Sequence[str] = (), manifest_path: str = "", write_readme: bool = False,
    workers: int = 1, overrides: Sequence[str] = (), data: str | Path | None = None, say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Score the processed volumes of annotated crops; writes scores.json under results_path and gives its content.

    crops: see `common.regions.find`; classes: some of the experiment's; write_readme: also into the README of the experiment;
    workers: processes. Raises FileNotFoundError or ValueError, also for a volume that is half-written or does not cover its crop.
    """
    config = load_config(config_path, overrides, data)
    if unknown := [name for name in classes if name not in config.classes]:
        raise ValueError(f"{config.folder}: no class {', '.join(unknown)} in this experiment; it has {', '.join(config.classes)}")
    boxes = [box for box in regions.choose(config, crops, manifest_path=manifest_path) if box.truth]
    jobs = [
        Job(str(box), name, box.truth / name, box.folder(config.path("processed_path")) / name, name in INSTANCES)
        for box in boxes
        for name in (classes or config.classes)
        if name in box.classes
    ]
    if not jobs:
        raise ValueError(f"--crops {crops}: no annotated crop has a class of this experiment; test crops are scored by the organisers")
    check(jobs)
    found = run(jobs, workers)
    result = summary(found) | {"crops_asked_for": crops, "provenance": provenance(config, jobs)}
    path = write(result, config.path("results_path") / "scores.json")
    say(table(result))
    say(f"\n{path}")
    if write_readme:
        say(str(readme.write_scores(config, boxes, result)))
    return result


def evaluate_submission(
    path: str | Path, truth: str | Path, *, result_path: str | Path = "result.json", workers: int = 1, say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Score a packed submission against a store of truths {crop}/{class} (and {class}_mask); writes a JSON and gives its content.

    A class that the submission lacks counts as missing, as in the challenge. Raises FileNotFoundError or ValueError.
    """
    store = _store(truth)
    with submission.opened(path) as packed:
        found = []
        for crop, group in sorted(store.groups()):
            for name, array in sorted(group.arrays()):
                if name.endswith("_mask"):
                    continue
                given = packed.get(f"{crop}/{name}")
                mask = group[f"{name}_mask"][...] if f"{name}_mask" in group else None
                found.append(_submitted(crop, name, array, given, mask, path))
    if not found:
        raise ValueError(f"{truth}: no arrays {{crop}}/{{class}} in it; write the store of the truths")
    result = summary(found) | {"provenance": {"submission": str(path), "truth": str(truth), **_when()}}
    say(table(result))
    say(f"\n{write(result, Path(result_path))}")
    return result


def check(jobs: Iterable[Job]) -> None:
    """See that every volume is whole and covers its crop, before an hour is spent on scoring; all problems in one ValueError."""
    problems = []
    for job in jobs:
        try:
            truth = ngff.open_levels(job.truth)[0]
            if not (job.processed / ".zattrs").is_file():
                raise ValueError(f"{job.processed}: no processed volume; run predict, then process")
            level = ngff.open_levels(job.processed)[0]
            if not regrid.covers(level, truth.grid):
                raise ValueError(f"{job.processed}: {regrid.shortfall(level, truth.grid)} of {job.crop}; predict and process the whole crop")
        except (ValueError, FileNotFoundError) as error:
            problems.append(str(error))
    if problems:
        more = f"\n... and {len(problems) - 10} more volumes" if len(problems) > 10 else ""
        raise ValueError("\n".join(problems[:10]) + more)


def run(jobs: Sequence[Job], workers: int = 1) -> list[Evaluation]:
    """Every job scored, in their order."""
    if workers <= 1 or len(jobs) == 1:
        return [judge(job) for job in jobs]
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        return list(pool.map(judge, jobs))


def judge(job: Job) -> Evaluation:
    """Read a class of a crop on the annotation's voxels, and score it."""
    truth, level = ngff.open_levels(job.truth)[0], ngff.open_levels(job.processed)[0]
    grid = truth.grid
    read = regrid.ids if job.is_instance else regrid.mask
    return compare(job.crop, job.name, regrid.ids(truth, grid), read(level, grid), grid.scale, job.is_instance)


def compare(
    crop: str, name: str, truth: np.ndarray, found: np.ndarray, voxel_size: Sequence[float], is_instance: bool, mask: np.ndarray | None = None
) -> Evaluation:  # fmt: skip
    """Two volumes on one grid; ids for an instance class. Voxels where mask is 0 do not count."""
    voxels = score.semantic(truth, found, mask)
    counts = (voxels.tp, voxels.fp, voxels.fn)
    if not is_instance:
        return Evaluation(crop, name, voxels, counts)
    pairs = score.contingency(truth, found, mask)
    return Evaluation(
        crop, name, score.instance(truth, found, voxel_size, mask), counts,
        quality.count_objects(pairs), quality.variation_of_information(pairs), quality.rand_error(pairs),
    )  # fmt: skip


def summary(found: Sequence[Evaluation]) -> dict[str, Any]:
    """The challenge's scores, figures for each class pooled over crops, intervals over crops, and every crop by itself."""
    official = score.combine((one.name, one.counts) for one in found)
    names = list(dict.fromkeys(one.name for one in found))
    crops = list(dict.fromkeys(one.crop for one in found))
    overall = ("overall_score", "overall_instance_score", "overall_semantic_score")
    return {
        "metric": f"CellMap Segmentation Challenge, {score.VERSION}",
        **{name: _plain(official[name]) for name in overall},
        "interval_95": {name: _interval(found, crops, lambda official, name=name: official[name]) for name in overall},
        "total_evals": official["total_evals"], "num_evals_done": official["num_evals_done"],
        "classes": {
            name: figures([one for one in found if one.name == name])
            | {"interval_95": _interval([one for one in found if one.name == name], crops, lambda official, name=name: _class_score(official, name))}
            for name in names
        },
        "crops": {crop: {one.name: figures([one]) | {"status": one.counts.status} for one in found if one.crop == crop} for crop in crops},
    }  # fmt: skip


def figures(found: Sequence[Evaluation]) -> dict[str, float | None]:
    """The figures of one class, counts pooled over crops, distances of partitions averaged; None where there is nothing to find."""
    official = score.combine((one.name, one.counts) for one in found)["label_scores"][found[0].name]
    pooled = {name: float(value) for name, value in quality.metrics(*np.sum([one.voxels for one in found], axis=0)).items()}
    result = {"score": official.get("combined_score", official.get("iou")), **pooled}
    if found[0].objects is not None:
        parts = quality.panoptic(*np.sum([one.objects for one in found], axis=0))
        result |= {"f1": official["f1"], "hausdorff": official["normalized_hausdorff_distance"], "pq": float(parts["pq"])}
        for name, values in (
            ("voi_split", [one.voi[0] for one in found]), ("voi_merge", [one.voi[1] for one in found]),
            ("rand_error", [one.rand_error for one in found]),
        ):  # fmt: skip
            known = [value for value in values if not math.isnan(value)]
            result[name] = float(np.mean(known)) if known else math.nan
    return {name: _plain(value) for name, value in result.items()} | {name: int(official[name]) for name in ("tp", "fp", "fn")}


def _interval(found: Sequence[Evaluation], crops: Sequence[str], of: Callable[[dict], float]) -> list[float] | None:
    """95 % of what the score would be with other crops of the same kind; None with fewer than two."""
    by_crop = [[(one.name, one.counts) for one in found if one.crop == crop] for crop in crops]
    by_crop = [part for part in by_crop if part]
    low, high = quality.bootstrap(
        np.arange(len(by_crop)), lambda drawn: of(score.combine(pair for i in drawn for pair in by_crop[i])), resamples=1000
    )
    return None if math.isnan(low) else [low, high]


def _class_score(official: dict, name: str) -> float:
    found = official["label_scores"][name]
    return found.get("combined_score", found.get("iou"))


def table(result: dict[str, Any]) -> str:
    """Every class a line, the challenge's scores below."""
    lines = [f"{'class':<12}" + "".join(f"{name:>11}" for name in FIGURES) + f"{'95 % interval':>16}"]
    for name, found in result["classes"].items():
        interval = found["interval_95"]
        between = f"{interval[0]:.3f}-{interval[1]:.3f}" if interval else ""
        lines.append(f"{name:<12}" + "".join(_cell(found.get(figure)) for figure in FIGURES) + f"{between:>16}")
    lines.append("")
    for name in ("overall_score", "overall_instance_score", "overall_semantic_score"):
        value, interval = result[name], result["interval_95"][name]
        between = f"   {interval[0]:.3f}-{interval[1]:.3f} over {len(result['crops'])} crops" if interval else ""
        lines.append(f"{name.replace('_', ' '):<24}{'none of this kind' if value is None else f'{value:.4f}'}{between}")
    return "\n".join([*lines, f"metric: {result['metric']}"])


def _cell(value: float | None) -> str:
    return f"{'-':>11}" if value is None else f"{value:>11.3f}"


def _submitted(crop: str, name: str, truth: zarr.Array, given: zarr.Array | None, mask: np.ndarray | None, path: str | Path) -> Evaluation:
    """One class of a submission, brought to the truth's voxels where its attributes place it elsewhere."""
    is_instance, ids = name in INSTANCES, truth[...]
    if given is None:
        return Evaluation(crop, name, score.missing(ids, is_instance))
    try:
        grid = Grid(np.array(truth.attrs["translation"], float), np.array(truth.attrs["voxel_size"], float), truth.shape)
        place = np.array(given.attrs["voxel_size"], float), np.array(given.attrs["translation"], float)
    except KeyError as error:
        raise ValueError(f"{crop}/{name}: no attribute {error} in the truth or in {path}; pack it again") from None
    level = Level(Path(str(path)) / crop / name, given, *place)
    found = (regrid.ids if is_instance else regrid.mask)(level, grid)
    return compare(crop, name, ids, found, grid.scale, is_instance, mask)


def _store(path: str | Path) -> zarr.Group:
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: no such store of truths; write the folder that holds {{crop}}/{{class}}")
    try:
        return zarr.open_group(str(path), mode="r")
    except (zarr.errors.GroupNotFoundError, zarr.errors.ContainsArrayError) as error:
        raise ValueError(f"{path}: not a zarr v2 group ({error})") from error


def provenance(config: TrainConfig, jobs: Sequence[Job]) -> dict[str, Any]:
    """What was scored: the checkpoints and settings that the processed volumes carry, versions, commit, date."""
    about = [zarr.open_group(str(job.processed), mode="r").attrs.asdict().get("processed", {}) for job in jobs]
    made = {json.dumps({k: one.get("prediction", {}).get(k) for k in ("checkpoint", "sha256", "epoch", "metric")}) for one in about}
    thresholds = {job.name: one.get("threshold") for job, one in zip(jobs, about, strict=True)}
    return {
        "experiment": config.folder.name, "model_name": config.model_name, "run_name": config.path("model_save_path").name,
        "checkpoints": [json.loads(text) for text in sorted(made)], "thresholds": thresholds,
        **runtime.provenance(REPOSITORY), **_when(),
    }  # fmt: skip


def _when() -> dict[str, str]:
    return {"date": datetime.now(UTC).isoformat(timespec="seconds")}


def write(result: dict[str, Any], path: Path) -> Path:
    """The result as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    temporary.replace(path)
    return path


def _plain(value: float) -> float | None:
    """JSON has no NaN."""
    return None if value is None or math.isnan(value) else float(value)

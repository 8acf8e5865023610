"""Which of several runs is better, by how much, whether that is more than chance, and in what they differ.

What is compared is the challenge's score where `evaluate` scored the same crops for all runs, else a metric of the validation at each
run's best epoch. How sure a difference is depends on what it was measured on, which is always said:

    seeds      both sides are several seeds (group_seeds): Welch's t over the seeds
    crops      the same crops scored for both: drawn with replacement, counts pooled anew, both sides on the same crops (paired bootstrap)
    classes    only history.csv is there: classes drawn with replacement, both sides on the same classes

An interval from draws is difference +- t x standard error of the draws x sqrt(n / (n - 1)), t Student's with n - 1 degrees of freedom:
percentiles of the draws are too narrow for a handful of crops (Hesterberg 2015, What teachers should know about the bootstrap).
Of several runs the best is compared with each other one, at a level that holds for all of these together (Bonferroni; that the
comparisons with the best suffice: Hsu 1981, Simultaneous confidence intervals for all distances from the best).
"""

from __future__ import annotations

import ast
import difflib
import io
import itertools
import json
import math
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from common.config.settings import RUN_FOLDERS
from common.errors import UserError
from common.files import REPOSITORY
from common.runs import find
from common.runs import history as history_module
from common.runs.find import Run
from common.score import challenge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = ("dice", "iou", "precision", "recall")
SCORE = "score"
"""The challenge's, of the files of `evaluate`."""
LEVEL, DRAWS, SEED = 0.95, 1000, 0
"""Of the intervals; DRAWS give a standard error to 2 %."""
NAMES = frozenset(
    {
        "base_experiment_path",
        "model_name",
        "run_name",
        "data_path",
        "datasplit_path",
        "cache_path",
        *RUN_FOLDERS,
    }
)
"""Settings that say where things are, not what is done."""
MADE = ("commit", "split_hash", "torch", "device", "precision")
"""Entries of the provenance in which runs may differ."""
COLUMNS = 5
"""Runs in the table of classes."""
ROWS = 40
"""Runs in the list of all."""
CURVES = 20
"""Runs in a picture."""
POINTS = 250
"""Of a curve: longer ones are drawn as means over neighbouring epochs."""
WIDTH = 120
"""Columns of a terminal."""
BLOCKS = (
    "target_array_info",
    "batch_size",
    "validation_batch_limit",
    "validation_time_limit",
    "use_mutual_exclusion",
    "infer_groups",
)
"""Settings that change which voxels a validation looks at, or which of them are known."""


@dataclass(frozen=True)
class Reading:
    """A run as it stands on disk."""

    run: Run
    record: dict[str, Any]
    """run.json, see `common.runs.history.record`."""
    history: pd.DataFrame
    """A row an epoch."""
    scores: dict[str, dict[str, Any]]
    """What `evaluate` wrote, by the name of the file."""

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def settings(self) -> dict[str, str]:
        return self.record.get("settings") or {}

    @property
    def provenance(self) -> dict[str, Any]:
        return self.record.get("provenance") or {}

    @property
    def result(self) -> dict[str, Any]:
        return self.record.get("result") or {}

    @property
    def best_metric(self) -> str:
        """The run's own; "dice" where it is not known. Settings are recorded as Python writes them."""
        return (self.result.get("best_metric") or self.settings.get("best_metric") or "dice").strip(
            "'"
        )

    @cached_property
    def best(self) -> pd.Series | None:
        """The row of the first epoch that was best, which best.pt is of; None without validation."""
        column = f"validation/{self.best_metric}"
        values = self.history[column].dropna() if column in self.history else []
        if not len(values):
            return None
        return self.history.loc[values.idxmin() if self.best_metric == "loss" else values.idxmax()]

    @property
    def best_epoch(self) -> int | None:
        return None if self.best is None or "epoch" not in self.best else int(self.best["epoch"])

    def per_class(self, metric: str) -> dict[str, float]:
        """A metric at the best epoch, of the classes that the validation holds."""
        row = {} if self.best is None else self.best.to_dict()
        start = f"{metric}/"
        return {
            column.removeprefix(start): float(value)
            for column, value in row.items()
            if column.startswith(start) and value == value
        }


@dataclass(frozen=True)
class Side:
    """What is compared: a run, or the seeds of one model."""

    name: str
    members: tuple[Reading, ...]


@dataclass(frozen=True)
class Measure:
    """Column 0 of the arrays is the figure over all classes, the others are `classes`. `groups` has the rows of each side."""

    metric: str
    source: str
    """Where it stands: history.csv, or the name of a file of `evaluate`."""
    unit: str
    classes: tuple[str, ...]
    units: np.ndarray
    """(1 + classes,) how many units a figure is drawn over; 0 where nothing is drawn."""
    values: np.ndarray
    """(runs, 1 + classes)."""
    draws: np.ndarray
    """(draws, runs, 1 + classes) with other units of the same kind; without the classes where they are the units."""
    groups: tuple[np.ndarray, ...]

    def of(self, side: int) -> np.ndarray:
        """(1 + classes,) mean over the seeds."""
        return self.values[self.groups[side]].mean(0)

    def spread(self, side: int) -> float:
        """Standard deviation over the seeds; NaN for one."""
        values = self.values[self.groups[side], 0]
        return float(values.std(ddof=1)) if len(values) > 1 else math.nan

    def basis(self, a: int, b: int) -> str:
        """What a difference of two sides is judged over."""
        sizes = [len(self.groups[side]) for side in (a, b)]
        return (
            f"Welch's t over {sizes[0]} and {sizes[1]} seeds"
            if min(sizes) > 1
            else f"paired bootstrap over {self.units[0]} {self.unit}"
        )

    def interval(
        self, a: int, b: int, column: int = 0, level: float = LEVEL
    ) -> tuple[float, float]:
        """Of a minus b; (NaN, NaN) where it is based on one unit, or none."""
        first, second = (self.values[self.groups[side], column] for side in (a, b))
        if min(len(first), len(second)) > 1:
            return welch(first, second, level)
        if self.units[column] < 2:
            return math.nan, math.nan
        drawn = [self.draws[:, self.groups[side], column].mean(1) for side in (a, b)]
        return student(
            first.mean() - second.mean(), drawn[0] - drawn[1], int(self.units[column]), level
        )


def student(difference: float, draws: np.ndarray, units: int, level: float) -> tuple[float, float]:
    """Interval of a difference from its bootstrap draws over two or more `units`, see above; a NaN draw had nothing to score."""
    reach = (
        stats.t.ppf((1 + level) / 2, units - 1) * np.nanstd(draws) * math.sqrt(units / (units - 1))
    )
    return float(difference - reach), float(difference + reach)


def welch(first: np.ndarray, second: np.ndarray, level: float) -> tuple[float, float]:
    """Of the difference of two means, at least two values each; (NaN, NaN) where none of them varies.

    SciPy's gives the same (a test says so), and warns where values are nearly equal. Source: Welch 1947.
    """
    parts = np.array([values.var(ddof=1) / len(values) for values in (first, second)])
    if not parts.any():
        return math.nan, math.nan
    freedom = parts.sum() ** 2 / (parts**2 / [len(first) - 1, len(second) - 1]).sum()
    reach = stats.t.ppf((1 + level) / 2, freedom) * math.sqrt(parts.sum())
    middle = first.mean() - second.mean()
    return float(middle - reach), float(middle + reach)


def compare(
    names: Sequence[str | Path],
    *,
    root: str | Path = REPOSITORY,
    metric: str = "",
    group_seeds: bool = False,
    png: str | Path = "",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compare two or more runs, the best with each other one; says tables and a verdict, and gives all of it as a dict.

    names: experiment/model/run as in TensorBoard, globs of it, an experiment or experiment/model for all runs in it, or folders.
    metric: score, dice, iou, precision or recall; the score where all runs have it for the same crops, else the runs' best_metric.
    group_seeds: runs that differ in their seed alone are one side. png: file for the curves.
    Raises ValueError or FileNotFoundError: no such run, fewer than two, none that validated, a score that is not there.
    """
    readings, notes = validated([read(run) for run in choose(names, root)])
    asked = " ".join(map(str, names))
    if len(readings) < 2:
        only, why = (
            f"only {readings[0].name}" if readings else "none",
            f": {notes[0]}" if notes else "",
        )
        raise UserError(f"{asked}: {only} of these runs can be compared{why}; give two or more")
    sides = as_sides(readings, group_seeds)
    if len(sides) < 2:
        raise UserError(
            f"{asked}: these are the seeds of one model, {sides[0].name}; give two models, or no --group-seeds"
        )
    measure, why = measured(sides, metric)
    order = np.argsort([-measure.of(number)[0] for number in range(len(sides))], kind="stable")
    sides, measure = (
        [sides[i] for i in order],
        replace(measure, groups=tuple(measure.groups[i] for i in order)),
    )
    result = {
        "metric": measure.metric,
        "source": measure.source,
        "runs": [describe(side, measure, number) for number, side in enumerate(sides)],
        "settings": differing(sides),
        "provenance": differing(sides, MADE, "provenance"),
        "warnings": [*notes, *why, *incomparable(sides, measure)],
        "classes": {
            name: {
                "values": [_plain(measure.of(side)[column]) for side in range(len(sides))],
                **difference(measure, 0, 1, column),
            }
            for column, name in enumerate(measure.classes, 1)
        },
        "differences": [
            {
                "of": sides[0].name,
                "from": side.name,
                **difference(measure, 0, other, 0, len(sides) - 1),
                "basis": measure.basis(0, other),
            }
            for other, side in enumerate(sides[1:], 1)
        ],
    }
    result["verdict"] = verdict(result)
    say(terminal(result))
    if png:
        say(f"\n{write_curves(png, sides, measure.metric)}")
    return result


# Which runs


def choose(names: Sequence[str | Path], root: str | Path = REPOSITORY) -> list[Run]:
    """The runs that names, globs and folders mean, in their order. Raises ValueError for one that means none."""
    known, found = find.find(root), {}
    for name in map(str, names):
        matching = [
            run
            for run in known
            if fnmatchcase(run.name, name) or fnmatchcase(run.name, f"{name.rstrip('/')}/*")
        ]
        folders = [path.resolve() for path in (Path(name), Path(root) / name) if path.is_dir()]
        matching = matching or next(filter(None, (_below(folder, known) for folder in folders)), [])
        if not matching:
            near = difflib.get_close_matches(name, [run.name for run in known], 3, 0.3)
            hint = f"near it: {', '.join(near)}" if near else f"{len(known)} runs are there"
            raise UserError(
                f"{root}: no run '{name}' ({hint}); write experiment/model/run, a glob of it, or its folder in logs"
            )
        found |= {os.path.realpath(run.folder): run for run in matching}
    chosen = list(found.values())
    if len({run.name for run in chosen}) < len(chosen):  # of two roots
        chosen = [replace(run, name=name) for name, run in find.name_runs(chosen).items()]
    return chosen


def _below(folder: Path, known: Sequence[Run]) -> list[Run]:
    """The runs in a folder, or that one itself; also one that is not among the known."""
    logs = next(
        (parent for parent in (folder, *folder.parents) if parent.name in find.LOGS), folder
    )
    inside = [run for run in known if run.folder.resolve().is_relative_to(folder)]
    return inside or [run for run in find.find(logs) if run.folder.resolve().is_relative_to(folder)]


def read(run: Run) -> Reading:
    """A run with its history and scores. Raises ValueError where a file of it is broken."""
    scores = {}
    for path in sorted(
        (run.experiment / "results" / run.folder.relative_to(run.logs)).glob("*.json")
    ):
        try:
            scores[path.name] = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}: no JSON object ({error}); evaluate again, or remove it"
            ) from error
    return Reading(run, history_module.record(run), history_module.history(run), scores)


def validated(readings: Iterable[Reading]) -> tuple[list[Reading], list[str]]:
    """Those that have a validation, and a sentence for each other one."""
    readings = list(readings)
    notes = [
        f"{one.name} has no validation and is left out"
        for one in readings
        if not any(map(one.per_class, METRICS))
    ]
    return [one for one in readings if any(map(one.per_class, METRICS))], notes


def as_sides(readings: Sequence[Reading], group_seeds: bool = False) -> list[Side]:
    """A side a run, or a side for all runs of a model whose settings are equal but for the seed; names without what all share."""
    groups: dict[Any, list[Reading]] = {}
    for one in readings:
        groups.setdefault(_without_seed(one) if group_seeds else one.name, []).append(one)
    names = short_names([_group_name([one.name for one in members]) for members in groups.values()])
    return [
        Side(name, tuple(members)) for name, members in zip(names, groups.values(), strict=True)
    ]


def _without_seed(one: Reading) -> tuple:
    """Equal for two seeds of one model; of runs without settings by their names without the number at the end."""
    settings = tuple(
        sorted(
            (name, value)
            for name, value in one.settings.items()
            if name not in NAMES | {"random_seed"}
        )
    )
    return one.run.experiment, one.name.rsplit("/", 1)[0], settings or re.sub(r"\d+$", "", one.name)


def _group_name(names: Sequence[str]) -> str:
    return (
        names[0]
        if len(names) == 1
        else os.path.commonprefix(list(names)).rstrip("0123456789") + "*"
    )


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the folders that all of them begin with; equal ones numbered."""
    parts = [name.split("/") for name in names]
    shared = (
        min(len(os.path.commonprefix(parts)), min(map(len, parts)) - 1) if len(names) > 1 else 0
    )
    short = ["/".join(part[shared:]) for part in parts]
    return [
        name if short.count(name) == 1 else f"{name} ({short[: i + 1].count(name)})"
        for i, name in enumerate(short)
    ]


# What they have


def measured(sides: Sequence[Side], metric: str = "") -> tuple[Measure, list[str]]:
    """The figures of all runs, and why it is not the score, or what to know about it. ValueError where `metric` cannot be had."""
    if metric not in (SCORE, "", *METRICS):
        raise UserError(f"metric '{metric}'; write one of {', '.join([SCORE, *METRICS])}")
    readings = [one for side in sides for one in side.members]
    file, reason = scored_alike(readings)
    if metric == SCORE and not file:
        raise UserError(
            f"metric '{SCORE}': {reason or 'none of these runs is scored'}; evaluate all of them on the same crops"
        )
    groups, start = [], 0
    for side in sides:
        groups.append(np.arange(start, start := start + len(side.members)))
    if file and metric in ("", SCORE):
        return _of_scores(readings, file, tuple(groups)), _stale(readings, file)
    if not metric:
        wanted = {one.best_metric for one in readings} - {"loss"}
        metric = wanted.pop() if len(wanted) == 1 else "dice"
    return _of_history(readings, metric, tuple(groups)), [
        f"the challenge's score is not compared: {reason}"
    ] if reason else []


def _of_history(
    readings: Sequence[Reading], metric: str, groups: tuple[np.ndarray, ...]
) -> Measure:
    per_class = [one.per_class(metric) for one in readings]
    classes = tuple(name for name in per_class[0] if all(name in found for found in per_class))
    if not classes:
        names = ", ".join(one.name for one in readings)
        raise UserError(
            f"{_cut(names, 200)}: no class has a validation {metric} in all of them; give runs that validate on the same classes"
        )
    values = np.array([[found[name] for name in classes] for found in per_class])
    draws = (redraws(len(classes)) @ values.T / len(classes))[..., None]
    units = np.array([len(classes), *[0] * len(classes)])
    return Measure(
        metric,
        find.HISTORY,
        "classes",
        classes,
        units,
        np.column_stack([values.mean(1), values]),
        draws,
        groups,
    )


def scored_alike(readings: Sequence[Reading]) -> tuple[str, str]:
    """Name of a file of scores that all runs have and that share crops, else "" and why not, "" where none is scored."""
    if not any(one.scores for one in readings):
        return "", ""
    if missing := [one.name for one in readings if not one.scores]:
        return "", f"{missing[0]} is not scored"
    shared = set.intersection(*(set(one.scores) for one in readings))
    for file in sorted(shared, key=lambda name: (name != "scores.json", name)):
        old = [one.name for one in readings if not _cells(one.scores[file])]
        common = set.intersection(*(set(_cells(one.scores[file])) for one in readings))
        if common:
            return file, ""
        if old:
            return "", f"{old[0]} has a {file} without counts, of an older evaluate"
    return "", "the runs are not scored on the same crops"


def _cells(scores: dict[str, Any]) -> dict[tuple[str, str], dict[str, float]]:
    """Counts by crop and class."""
    crops = scores.get("crops") or {}
    return {
        (crop, name): cell["counts"]
        for crop, classes in crops.items()
        for name, cell in classes.items()
        if "counts" in cell
    }


def _of_scores(readings: Sequence[Reading], file: str, groups: tuple[np.ndarray, ...]) -> Measure:
    """The challenge's score, counts pooled over the crops that all runs have it for."""
    cells = [_cells(one.scores[file]) for one in readings]
    common = sorted(set.intersection(*map(set, cells)))
    crops, held = sorted({crop for crop, _ in common}), {name for _, name in common}
    classes = tuple(name for name in readings[0].scores[file]["classes"] if name in held)
    kinds = {
        name: challenge.InstanceCounts
        if "n_hausdorff" in cells[0][crop, name]
        else challenge.Counts
        for crop, name in common
    }
    rows = np.zeros((len(readings), len(crops), len(classes), 6))
    for run, (crop, name) in itertools.product(range(len(readings)), common):
        counts = cells[run][crop, name]
        rows[run, crops.index(crop), classes.index(name)] = [
            1,
            *(counts.get(key, 0) for key in COUNTS),
        ]
    whole = challenge.combine(_pooled(rows[0].sum(0), classes, kinds))
    overall = next(key for key in OVERALL if not math.isnan(getattr(whole, key)))

    def figures(pooled: np.ndarray) -> list[float]:
        official = challenge.combine(_pooled(pooled, classes, kinds))
        scores = {name: label.score for name, label in official.label_scores.items()}
        return [getattr(official, overall), *(scores.get(name, math.nan) for name in classes)]

    drawn = np.einsum("dc,rckn->drkn", redraws(len(crops)), rows, optimize=True)
    draws = np.array([[figures(pooled) for pooled in draw] for draw in drawn])
    units = np.array([len(crops), *rows[0, :, :, 0].sum(0)], int)
    return Measure(
        SCORE,
        file,
        "crops",
        classes,
        units,
        np.array([figures(row.sum(0)) for row in rows]),
        draws,
        groups,
    )


COUNTS = ("tp", "fp", "fn", "hausdorff_norm_sum", "n_hausdorff")
OVERALL = ("overall_score", "overall_instance_score", "overall_semantic_score")
"""The challenge's figure, else that of the kind of classes that there is."""


def _pooled(
    rows: np.ndarray, classes: Sequence[str], kinds: dict[str, type]
) -> list[tuple[str, challenge.Counts]]:
    """Counts for `score.combine` from (classes, 6): in how many crops, COUNTS."""
    pairs = []
    for name, (times, tp, fp, fn, *rest) in zip(classes, rows.tolist(), strict=True):
        if times:
            more = ("scored", *rest) if kinds[name] is challenge.InstanceCounts else ()
            pairs.append((name, kinds[name](tp, fp, fn, *more)))
    return pairs


def redraws(units: int) -> np.ndarray:
    """(DRAWS, units) how often each unit is drawn when as many are drawn with replacement; always the same."""
    return (
        np.random.default_rng(SEED)
        .multinomial(units, np.full(units, 1 / units), DRAWS)
        .astype(float)
    )


def _stale(readings: Sequence[Reading], file: str) -> list[str]:
    """Sentences about scores that are not what they seem."""
    said = []
    for one in readings:
        epochs = [
            made.get("epoch")
            for made in (one.scores[file].get("provenance") or {}).get("checkpoints", ())
        ]
        if epochs and one.best_epoch and set(epochs) != {one.best_epoch}:
            at = ", ".join(map(str, epochs))
            said.append(
                f"{one.name} was scored at epoch {at} and is best at {one.best_epoch}: predict and evaluate it again"
            )
    crops = {frozenset(_cells(one.scores[file])) for one in readings}
    if len(crops) > 1:
        said.append(
            "the runs were not scored on all the same crops and classes: what all have is compared"
        )
    return said


# What is to be said


def describe(side: Side, measure: Measure, number: int) -> dict[str, Any]:
    """A line of the list of sides."""
    return {
        "name": side.name,
        "runs": [one.name for one in side.members],
        "folders": [str(one.run.folder) for one in side.members],
        "value": float(measure.of(number)[0]),
        "spread": _plain(measure.spread(number)),
        "best_epoch": [one.best_epoch for one in side.members],
        **{name: [one.result.get(name) for one in side.members] for name in ("epoch", "finished")},
    }


def difference(
    measure: Measure, a: int, b: int, column: int = 0, comparisons: int = 1
) -> dict[str, Any]:
    """A minus b with its interval; over all classes also in how many a is better."""
    first, second = measure.of(a), measure.of(b)
    low, high = measure.interval(a, b, column, 1 - (1 - LEVEL) / comparisons)
    found = {
        "difference": _plain(first[column] - second[column]),
        "interval": None if math.isnan(low) else [low, high],
    }
    return (
        found
        if column
        else found
        | {"better_in": int((first[1:] > second[1:]).sum()), "classes": len(measure.classes)}
    )


def differing(
    sides: Sequence[Side], names: Sequence[str] = (), of: str = "settings"
) -> dict[str, list[str]]:
    """Settings (or entries of the provenance) in which the sides differ, with the value of each side, "" where it is not known.

    Settings that say where things are count only if asked for by name, the seed only between sides of one run.
    """
    known = [[getattr(one, of) for one in side.members] for side in sides]
    single = all(len(side.members) == 1 for side in sides)
    hidden = NAMES if single else NAMES | {"random_seed"}
    names = names or [
        name
        for name in dict.fromkeys(name for side in known for one in side for name in one)
        if name not in hidden
    ]
    values = {
        name: [
            " | ".join(dict.fromkeys(str(one[name]) for one in side if name in one))
            for side in known
        ]
        for name in names
    }
    return {name: each for name, each in values.items() if len(set(filter(None, each))) > 1}


def incomparable(sides: Sequence[Side], measure: Measure) -> list[str]:
    """A sentence for each reason why figures of these sides may not be compared."""
    said = []
    if differing(sides, ("split_hash",), "provenance"):
        said.append(
            "the runs have other datasplits: they validate on other crops, and one may have trained on what another validates on"
        )
    if "classes" in differing(sides, ("classes",)):
        said.append(
            f"the runs learn other classes: compared over the {len(measure.classes)} that all have"
        )
    if scales := differing(sides, ("target_array_info",)):
        found = [_scale(text) for text in scales["target_array_info"]]
        if len(set(found) - {""}) > 1:
            sizes = ", ".join(dict.fromkeys(found))
            said.append(
                f"the runs have other target voxel sizes ({sizes}): a metric on coarse voxels is not one on fine ones"
            )
    blocks = [
        name
        for name in BLOCKS
        if differing(sides, (name,)) and (name != "batch_size" or _limits(sides))
    ]
    if measure.source == find.HISTORY and blocks:
        said.append(
            f"the runs may have validated on other blocks, or with other labels known: they differ in {', '.join(blocks)}"
        )
    if measure.source == find.HISTORY and any(
        _number(one.settings.get("validation_time_limit")) for side in sides for one in side.members
    ):
        said.append(
            "validation_time_limit is set: how many blocks a run validated on depended on its machine"
        )
    for side in sides:
        for one in side.members:
            if one.result.get("finished") is False:
                said.append(
                    f"{one.name} is not finished (epoch {one.result.get('epoch')} of {one.settings.get('epochs', 'unknown')})"
                )
    return said


def _limits(sides: Sequence[Side]) -> bool:
    """Whether a validation counts batches, so that their size matters."""
    names = ("validation_batch_limit", "validation_time_limit")
    return any(
        _number(one.settings.get(name)) for side in sides for one in side.members for name in names
    )


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _scale(text: str) -> str:
    """The voxel size in the text of an array's settings; "" where it cannot be read, as in foreign runs."""
    try:
        return " x ".join(f"{float(size):g}" for size in ast.literal_eval(text)["scale"]) + " nm"
    except (ValueError, SyntaxError, KeyError, TypeError):
        return ""


def verdict(result: dict[str, Any]) -> str:
    """One line: which is better, by how much, how sure that is, and in what they differ."""
    sides, found, metric, best = (
        result["runs"],
        result["differences"],
        result["metric"],
        result["runs"][0]["name"],
    )
    sure = [one for one in found if one["interval"] and one["interval"][0] > 0]
    unsure = [one for one in found if one not in sure]
    level = "95 %" if len(found) == 1 else f"95 % for all {len(found)} comparisons together"
    basis = _listed(list(dict.fromkeys(one["basis"] for one in found)), 2)
    if len(sides) == 2 and sure:
        line = f"{best} is better than {_by(found[0], metric, level)}, {basis}"
    elif len(sides) == 2:
        line = f"no difference that could be told from chance: {best} is ahead of {_by(found[0], metric, level)}, {basis}"
    elif sure:
        line = f"{best} is best with {sides[0]['value']:.3f} {metric}, better than {_listed([_by(one, metric, '') for one in sure])}"
        line += (
            f"; no difference from {_listed([one['from'] for one in unsure])} that could be told from chance"
            if unsure
            else ""
        )
        line += f" ({level}, {basis})"
    else:
        line = f"no difference that could be told from chance: {best} is ahead with {sides[0]['value']:.3f} {metric} ({level}, {basis})"
    if any(len(side["runs"]) == 1 for side in sides):
        line += "; what another seed would change is not in it"
    line += (
        f"; they differ in {_listed(list(result['settings']), 8)}"
        if result["settings"]
        else "; their settings are equal or not known"
    )
    return line + (f"; mind the {len(result['warnings'])} warnings" if result["warnings"] else "")


def _by(one: dict[str, Any], metric: str, level: str) -> str:
    low, high = one["interval"] or ("", "")
    interval = (
        f"{level} {low:.3f} to {high:.3f}".strip()
        if one["interval"]
        else "no interval: too few to judge by"
    )
    return f"{one['from']} by {one['difference']:.3f} {metric} ({interval}, {one['better_in']} of {one['classes']} classes)"


def _listed(items: Sequence[str], most: int = 4) -> str:
    rest = [f"{len(items) - most} others"] if len(items) > most else []
    items = [*items[:most], *rest]
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else ""


def terminal(result: dict[str, Any]) -> str:
    """The runs, the settings in which they differ, the classes, the warnings, the verdict, in lines of WIDTH."""
    sides, shown = result["runs"], range(min(COLUMNS, len(result["runs"])))
    heads = [str(number + 1) for number in shown]
    grouped = any(side["spread"] is not None for side in sides)
    rows = [["", "run", result["metric"], *["+- seeds"] * grouped, "epoch", "behind", "95 %"]]
    for number, (side, behind) in enumerate(
        zip(sides, [None, *result["differences"]], strict=True), 1
    ):
        cells = (
            [_figure(behind["difference"]), _between(behind["interval"])] if behind else ["", ""]
        )
        epochs = ", ".join(dict.fromkeys(str(epoch) for epoch in side["best_epoch"]))
        rows.append(
            [
                str(number),
                side["name"],
                _figure(side["value"]),
                *[_figure(side["spread"])] * grouped,
                epochs,
                *cells,
            ]
        )
    rest = f"\n{len(sides) - ROWS} runs behind these are not listed" if len(sides) > ROWS else ""
    parts = [_aligned(rows[: 1 + ROWS], left=2) + rest]
    if result["settings"] or result["provenance"]:
        rows = [["", *heads]]
        rows += [
            [name, *(_cut(values[i], 18) for i in shown)]
            for name, values in (result["settings"] | result["provenance"]).items()
        ]
        parts.append("differ in\n" + _aligned(rows))
    rows = [["class", *heads, "1 - 2", "95 %"]]
    for name, one in result["classes"].items():
        rows.append(
            [
                name,
                *(_figure(one["values"][i]) for i in shown),
                _figure(one["difference"]),
                _between(one["interval"]),
            ]
        )
    title = f"{result['metric']} of each class, {'at the best epoch' if result['source'] == find.HISTORY else result['source']}"
    parts.append(
        f"{title}{f'; the best {COLUMNS} runs' if len(sides) > COLUMNS else ''}; intervals for one class alone\n{_aligned(rows)}"
    )
    if result["warnings"]:
        wrapper = textwrap.TextWrapper(WIDTH, subsequent_indent="  ", break_long_words=False)
        parts.append("\n".join(wrapper.fill(f"warning: {text}") for text in result["warnings"]))
    return "\n\n".join([*parts, result["verdict"]])


def _aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns, the first `left` to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [
        [
            cell.ljust(n) if i < left else cell.rjust(n)
            for i, (cell, n) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _between(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "-"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _plain(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else float(value)


# Curves


def curves(sides: Sequence[Side], metric: str, ink: str = "#222222") -> Figure:
    """Training loss, validation loss and the metric over iterations, a colour a side, at most CURVES of them; a dot at each best epoch.

    metric: without one in the validation (score) it is the runs' best_metric. ink: colour of axes and text.
    """
    import matplotlib as mpl  # half a second
    from matplotlib import ticker
    from matplotlib.figure import Figure

    sides = sides[:CURVES]
    readings = [one for side in sides for one in side.members]
    metric = (
        metric
        if metric in METRICS
        else next((one.best_metric for one in readings if one.best_metric != "loss"), "dice")
    )
    inks = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink
    )
    with mpl.rc_context(
        {**inks, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    ):
        colours = mpl.colormaps["tab10" if len(sides) <= 10 else "tab20"].colors
        lines = -(-len(sides) // 2)
        figure = Figure((12, 3.6 + 0.22 * lines), layout="constrained")
        shown = {
            "train/loss": "training loss",
            "validation/loss": "validation loss",
            f"validation/{metric}": metric,
        }
        for panel, (column, title) in zip(figure.subplots(1, 3), shown.items(), strict=True):
            drawn = [
                _draw(panel, one, column, colours[number])
                for number, side in enumerate(sides)
                for one in side.members
            ]
            handles = [panel.plot([], [], color=colours[number])[0] for number in range(len(sides))]
            panel.set(title=title, xlabel="iteration")
            panel.grid(alpha=0.25)
            values = np.concatenate([*drawn, []])
            if "loss" in column and len(values) and values.min() > 0:
                ticks = (
                    ticker.LogLocator(subs=(1, 2, 5))
                    if values.max() > 8 * values.min()
                    else ticker.MaxNLocator(6)
                )
                panel.set_yscale("log")
                panel.yaxis.set(
                    major_locator=ticks, minor_locator=ticker.NullLocator(), major_formatter="{x:g}"
                )
        names = [
            f"{number}  {_cut(side.name, 70)}".replace("$", r"\$")
            for number, side in enumerate(sides, 1)
        ]
        figure.legend(handles, names, loc="outside lower left", ncols=2, frameon=False)
    return figure


def _draw(panel: Any, one: Reading, column: str, colour: Any) -> np.ndarray:
    """One curve; gives its values."""
    across = "iteration" if "iteration" in one.history else "epoch"
    if column not in one.history:
        return np.zeros(0)
    table = one.history[[across, column]].astype(float).dropna()
    if one.best is not None and column == f"validation/{one.best_metric}":
        panel.plot(one.best[across], one.best[column], "o", color=colour, markersize=4)
    if len(table) > POINTS:
        table = table.groupby(np.arange(len(table)) * POINTS // len(table)).mean()
    panel.plot(
        table[across],
        table[column],
        color=colour,
        linewidth=1.2,
        marker="." if len(table) == 1 else None,
    )
    return table[column].to_numpy()


def write_curves(path: str | Path, sides: Sequence[Side], metric: str) -> Path:
    """The picture of `curves` as PNG."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(render(curves(sides, metric), "png"))
    return path


def render(figure: Figure, kind: str) -> bytes:
    """A figure as a "png" or "svg" file, without date; a letter that its font does not have is a box, and not spoken about."""
    import matplotlib as mpl

    with warnings.catch_warnings(), mpl.rc_context({"svg.fonttype": "none"}), io.BytesIO() as file:
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        about = dict.fromkeys(("Date", "Creator", "Format", "Type")) if kind == "svg" else {}
        figure.savefig(file, format=kind, dpi=130, transparent=kind == "svg", metadata=about)
        return file.getvalue()

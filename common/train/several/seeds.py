"""Train one experiment with several seeds, here or through a queue, and report the spread."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.config.load import load_config
from common.errors import FileError, UserError
from common.talk import aligned, command_line, count, say
from common.train.processes.one_process import refuse_shared_folders
from common.train.recording.record import (
    HISTORY,
    RunRecord,
    best_row,
    is_better,
    read_history,
    read_record,
)
from common.train.run import Result, train
from common.train.setup import Score

MOST_SEEDS = 1000
"""Of a call."""


@dataclass(frozen=True)
class Spread:
    """Mean and spread of a metric over runs that differ only in their seed."""

    mean: float
    deviation: float
    """Sample standard deviation; NaN for a single run."""
    runs: int
    """Number of runs with a value."""

    def __str__(self) -> str:
        mean = f"{self.mean:.3f}"
        return f"{mean} +- {self.deviation:.3f}" if math.isfinite(self.deviation) else mean


def train_seeds(
    config_path: str | Path,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    *,
    score: Score | None = None,
) -> list[Result]:
    """Train with each seed, or continue its run, and print how the results spread.

    Stops after a run that is interrupted, and returns the results up to that one.
    """
    refuse_one_run(config_path, seeds, overrides, data)
    results: list[Result] = []
    for seed in seeds:
        result = train(config_path, overrides, data, score=score, random_seed=seed)
        results.append(result)
        if not result.finished:
            return results
    say(table(spread([result.logs for result in results])))
    return results


def best_seed(seeds: Sequence[int], results: Sequence[Result]) -> int:
    """Return the seed whose run has the best value of best_metric; the first where none has one."""
    best = seeds[0]
    value = math.nan
    for seed, result in zip(seeds, results, strict=True):
        record = read_record(result.logs) or RunRecord()
        if is_better(result.best_metric, value, record.best_metric):
            best = seed
            value = result.best_metric
    return best


def submit(
    config_path: str | Path,
    seeds: Sequence[int],
    template: str,
    *,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    time_limit: float = 0.0,
) -> list[list[str]]:
    """Call the command of a queue once for each seed; return the words of each call.

    Args:
        config_path: the experiment, as for `train`.
        seeds: the seeds, one job each.
        template: such as "bsub -n 4 -gpu num=1 {command}" or
            "sbatch --gpus 1 -J seed{seed} --wrap {command}". {command} becomes the whole training
            command as one word, quoted for the shell that the queue starts: quotes around it are
            not needed. No shell reads the template itself.
        overrides: "name=value" strings.
        data: the data root.
        time_limit: seconds, of each job; 0 is no limit.

    Raises:
        UserError: for a template without {command}.
        FileError: if a call fails.
    """
    refuse_one_run(config_path, seeds, overrides, data)
    calls = []
    for seed in seeds:
        command = training_command(config_path, seed, overrides, data, time_limit=time_limit)
        calls.append(_call(template, seed, command))
    for call in calls:
        line = shlex.join(call)
        say(line)
        try:
            subprocess.run(call, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise FileError(f"{line}: did not work ({error}); change --submit") from error
    return calls


def training_command(
    config_path: str | Path,
    seed: int,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    *,
    time_limit: float = 0.0,
) -> str:
    """Return the command line that trains one seed, for a shell in the current folder."""
    settings = [*overrides, f"random_seed={seed}"]
    limit = f"{time_limit:.0f}s" if time_limit else None
    line = command_line("train", config_path, time_limit=limit, set=settings, data=data or None)
    words = shlex.split(line)
    # the shell that a queue starts may know another python, or none
    words[0] = sys.executable
    return shlex.join(words)


def spread(folders: Sequence[Path]) -> dict[str, Spread]:
    """Return the spread of each metric over runs with different seeds, by column of history.csv.

    `folders` are the log folders. Each run counts with the epoch of its best checkpoint, or with
    its last epoch if there is no best one. Values that are NaN, such as those of a class that does
    not occur, and runs without a history are left out.
    """
    columns: dict[str, list[float]] = {}
    for folder in folders:
        for name, value in best_epoch_of(folder).items():
            if "/" not in name or name.startswith("train/"):
                continue
            values = columns.setdefault(name, [])
            if math.isfinite(value):
                values.append(value)
    return {name: _spread_of(values) for name, values in columns.items() if values}


def best_epoch_of(folder: Path) -> dict[str, float]:
    """Return the row of the best epoch in history.csv, or of the last one; {} without a history."""
    if not (folder / HISTORY).is_file():
        return {}
    history = read_history(folder)
    if history.empty:
        return {}
    record = read_record(folder) or RunRecord()
    row = best_row(history, record.best_metric)
    if row is None:
        row = history.index[-1]
    return history.loc[row].to_dict()


def table(spreads: Mapping[str, Spread]) -> str:
    """Return a text table: the means over classes, then one row per class; metrics as columns."""
    if not spreads:
        return "no validation to compare the seeds by"
    metrics = []
    for name in spreads:
        group, _, metric = name.partition("/")
        if group == "validation" and metric != "loss":
            metrics.append(metric)
    rows = [["", *metrics], ["mean", *_cells(spreads, [f"validation/{m}" for m in metrics])]]
    for label in _classes(spreads, metrics):
        rows.append([label, *_cells(spreads, [f"{m}/{label}" for m in metrics])])
    runs = max(value.runs for value in spreads.values())
    head = count(runs, "seed at its best epoch", "seeds at their best epochs")
    head += ", mean +- standard deviation"
    if "validation/loss" in spreads:
        head += f"; validation loss {spreads['validation/loss']}"
    return "\n".join([head, *aligned(rows)])


def parse_seeds(text: str) -> list[int]:
    """Parse the seeds of the option --seeds: "1,2,3" or "1-5". Raises UserError."""
    seeds: list[int] = []
    try:
        for part in text.replace(" ", ",").split(","):
            seeds += _parse_range(part.strip())
    except ValueError:
        seeds = []
    if not 0 < len(seeds) <= MOST_SEEDS or len(set(seeds)) < len(seeds):
        raise UserError(
            f"--seeds {text}; write up to {MOST_SEEDS} different whole numbers, 1,2,3 or 1-3"
        )
    return seeds


def _parse_range(part: str) -> list[int]:
    """Return the numbers of "3" or "3-5"; none for "". Raises ValueError."""
    if not part:
        return []
    first, dash, last = part.partition("-")
    if not dash:
        return [int(first)]
    if int(last) - int(first) >= MOST_SEEDS:
        raise ValueError(part)
    return list(range(int(first), int(last) + 1))


def _spread_of(values: Sequence[float]) -> Spread:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Spread(float(np.mean(values)), deviation, len(values))


def _classes(spreads: Mapping[str, Spread], metrics: Sequence[str]) -> list[str]:
    """Return the classes for which any of the metrics has a value, in their order."""
    classes = []
    for name in spreads:
        metric, _, label = name.partition("/")
        if metric in metrics:
            classes.append(label)
    return list(dict.fromkeys(classes))


def _cells(spreads: Mapping[str, Spread], names: Sequence[str]) -> list[str]:
    return [str(spreads[name]) if name in spreads else "" for name in names]


def _call(template: str, seed: int, command: str) -> list[str]:
    """Return the words of one call of the command of a queue."""
    words = shlex.split(template)
    if not any("{command}" in word for word in words):
        raise UserError(
            f"--submit '{template}': no {{command}} in it; "
            "write such as --submit 'bsub -n 4 {command}'"
        )
    return [word.replace("{seed}", str(seed)).replace("{command}", command) for word in words]


def refuse_one_run(
    config_path: str | Path, seeds: Sequence[int], overrides: Sequence[str], data: str | Path | None
) -> None:
    """Raise UserError if two seeds would write to the same run."""
    runs = [load_config(config_path, overrides, data, random_seed=seed) for seed in seeds]
    if [config.random_seed for config in runs] != list(seeds):
        raise UserError("--seeds beside --set random_seed=...; write one of them")
    refuse_shared_folders(config_path, runs, "seeds")

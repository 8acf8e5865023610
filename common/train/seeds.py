"""One experiment with several seeds: run after one another or handed to a queue, and how much their results differ."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.config.load import load_config
from common.errors import FileError, UserError
from common.talk import say
from common.train import tracking
from common.train.run import Result, train


def train_seeds(
    config_path: str | Path,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
) -> list[Result]:
    """Train with each seed, or go on where its run stopped, and say how the results spread. Ends with the one that is interrupted."""
    _refuse_one_run(config_path, seeds, overrides, data)
    results = []
    for seed in seeds:
        results.append(train(config_path, overrides, data, random_seed=seed))
        if not results[-1].finished:
            return results
    say(table(spread([result.logs for result in results])))
    return results


def submit(
    config_path: str | Path,
    seeds: Sequence[int],
    template: str,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
) -> list[list[str]]:
    """Call a queue's command once for each seed; gives the words of each call.

    template: such as "bsub -n 4 -gpu num=1 {command}" or "sbatch --gpus 1 -J seed{seed} --wrap {command}". {command} becomes
    the whole training command as one word, quoted for the shell that the queue starts: quotes around it are not needed. No
    shell reads the template itself. Raises ValueError for a template without {command}, OSError if a call fails.
    """
    _refuse_one_run(config_path, seeds, overrides, data)
    calls = [
        _call(template, seed, training_command(config_path, seed, overrides, data))
        for seed in seeds
    ]
    for call in calls:
        say(shlex.join(call))
        try:
            subprocess.run(call, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise FileError(
                f"{shlex.join(call)}: did not work ({error}); change --submit"
            ) from error
    return calls


def training_command(
    config_path: str | Path,
    seed: int,
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
) -> str:
    """The command line that trains one seed, for a shell in the same folder."""
    words = [sys.executable, "-m", "cellmap_segmentation_challenge", "train", str(config_path)]
    words += [
        word for override in (*overrides, f"random_seed={seed}") for word in ("--set", override)
    ]
    return shlex.join(words + (["--data", str(data)] if data else []))


def spread(folders: Sequence[Path]) -> dict[str, tuple[float, float, int]]:
    """Mean, sample standard deviation and number of runs of each metric, over the log folders of runs with different seeds.

    Of each run the epoch of its best checkpoint counts, or its last epoch where there is no best. A class that does not occur
    in a run is left out of its mean; the deviation of one run is NaN. Runs without a history are left out.
    """
    rows = [row for folder in folders if (row := best_row(folder))]
    names = dict.fromkeys(
        name for row in rows for name in row if "/" in name and not name.startswith("train/")
    )
    found = {}
    for name in names:
        values = np.array([row[name] for row in rows if math.isfinite(row.get(name, math.nan))])
        if len(values):
            found[name] = (
                float(values.mean()),
                float(values.std(ddof=1)) if len(values) > 1 else math.nan,
                len(values),
            )
    return found


def best_row(folder: Path) -> dict[str, float]:
    """The epoch of the best checkpoint in a run's history, else its last; empty without a history."""
    if not (folder / "history.csv").is_file():
        return {}
    rows = tracking.read_history(folder)
    best = tracking.read_record(folder).get("result", {}).get("best_epoch")
    return next((row for row in rows if row["epoch"] == best), rows[-1] if rows else {})


def table(found: dict[str, tuple[float, float, int]]) -> str:
    """Means over the classes first, then each class in a line: dice, iou, precision, recall as mean +- standard deviation."""
    if not found:
        return "no validation to compare the seeds by"
    metrics = [
        name.split("/")[1]
        for name in found
        if name.startswith("validation/") and name != "validation/loss"
    ]
    classes = dict.fromkeys(
        name.split("/", 1)[1] for name in found if name.split("/")[0] in metrics
    )
    rows = [["", *metrics]]
    for label, tags in (
        ("mean", [f"validation/{m}" for m in metrics]),
        *((c, [f"{m}/{c}" for m in metrics]) for c in classes),
    ):
        rows.append([label, *(_text(found[tag]) if tag in found else "" for tag in tags)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    runs = max(n for _, _, n in found.values())
    loss = (
        f"; validation loss {_text(found['validation/loss'])}" if "validation/loss" in found else ""
    )
    return "\n".join(
        [f"{runs} seeds at their best epochs, mean +- standard deviation{loss}", *lines]
    )


def parse_seeds(text: str) -> list[int]:
    """Seeds of an option: "1,2,3" or "1-5"."""
    seeds: list[int] = []
    try:
        for part in text.replace(" ", ",").split(","):
            first, dash, last = part.strip().partition("-")
            seeds += range(int(first), int(last) + 1) if dash else [int(first)] if first else []
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}; write different whole numbers, 1,2,3 or 1-3")
    return seeds


def _call(template: str, seed: int, command: str) -> list[str]:
    words = shlex.split(template)
    if not any("{command}" in word for word in words):
        raise UserError(
            f"--submit '{template}': no {{command}} in it; write such as --submit 'bsub -n 4 {{command}}'"
        )
    return [word.replace("{seed}", str(seed)).replace("{command}", command) for word in words]


def _refuse_one_run(
    config_path: str | Path, seeds: Sequence[int], overrides: Sequence[str], data: str | Path | None
) -> None:
    """ValueError if two seeds would be one run."""
    folders = set()
    for seed in seeds:
        config = load_config(config_path, overrides, data, random_seed=seed)
        if config.random_seed != seed:
            raise UserError("--seeds beside --set random_seed=...; write one of them")
        folders |= {config.path(name) for name in ("logs_save_path", "model_save_path")}
    if len(folders) < 2 * len(set(seeds)):
        raise UserError(
            f"{config_path}: run_name = '{config.run_name}' is the same for all seeds; write {{random_seed}} in it"
        )


def _text(value: tuple[float, float, int]) -> str:
    mean, deviation, _ = value
    return f"{mean:.3f}" + (f" +- {deviation:.3f}" if math.isfinite(deviation) else "")

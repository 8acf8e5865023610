"""Kill train, predict and process again and again, and see that they end as if nobody had.

    python bench/kills.py [--kills 10] [--workers 2] [--seed 0] [--command train ...]

Half of the kills are kill -9, half SIGTERM, each at a random moment of a call; then the same
command is started again. In the end every file of a prediction must be that of calls that nobody
disturbed, and nothing else may be left; of a run the content of latest.pt and best.pt (weights,
average, optimiser, schedule, random states, counts) and every row of history.csv. Seconds from the
signal to the end of the process are told, too.

The volume is drawn (`bench.drawn`), the experiment is examples/flyem_medulla with a network of
two layers: what is tried is what stands around it. It is trained with dropout, two batches a step
and as many processes as predict and process have workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.drawn import write_tissue
from common.data.volumes import layout
from common.files import REPOSITORY, sha256_of_file
from common.train.recording.record import read_history

PROGRAM = (sys.executable, "-m", "cellmap_segmentation_challenge")

COMMANDS = ("train", "predict", "process")

LONGEST_S = 600.0
"""Seconds that a call may take before it counts as hung."""

MODEL = """
from torch import nn


def build_model(classes, **_):
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Dropout(0.3), nn.Conv3d(8, len(classes), 1)
    )
"""

ROI = "0:640,0:640,0:640"
"""nm: 64 blocks of 16 voxels."""

SHORT = ("epochs=1", "iterations_per_epoch=1", "warmup_iterations=0", "device=cpu")
"""Settings of the run that predicts."""

KILLED = (
    *("epochs=3", "iterations_per_epoch=20", "warmup_iterations=5", "device=cpu"),
    *("precision=fp32", "batch_size=2", "gradient_accumulation_steps=2", "ema_decay=0.9"),
    *("checkpoint_minutes=0.001", "figure_samples=0", "validation_time_limit=0", "run_name=killed"),
)
"""Settings of the run that is killed."""

TIMES = ("samples_per_s", "data_wait")
"""Ends of names of columns of history.csv that are measured by a clock."""

RESTARTS = 3
"""Calls beyond the kills after which a command that does not end counts as stuck."""


@dataclass(frozen=True)
class Kill:
    """One kill."""

    command: str
    signal: str
    after_s: float
    ended_in_s: float
    code: int


def experiment_in(folder: Path) -> Path:
    """Write and train an experiment of one step, with its data."""
    data = write_tissue(folder / "data", crops=6)
    experiment = folder / "kills"
    ignored = shutil.ignore_patterns("checkpoints", "logs", "predictions", "processed")
    shutil.copytree(REPOSITORY / "examples/flyem_medulla", experiment, ignore=ignored)
    (experiment / "model.py").write_text(MODEL)
    run(["train", experiment, "--data", data, *[f"--set={setting}" for setting in SHORT]])
    return experiment


def words_of(command: str, experiment: Path, workers: int) -> list[str]:
    """Return the words of a command, on the whole volume."""
    data = experiment.parent / "data"
    words = [command, experiment, "--data", data]
    if command == "train":
        words += ["--processes", workers, *[f"--set={setting}" for setting in KILLED]]
        return [str(word) for word in words]
    raw = data / layout.store("flyem_medulla") / layout.RAW
    words += ["--volume", raw, "--roi", ROI, "--workers", workers]
    more = ["--block", 16, "--set=device=cpu"] if command == "predict" else []
    return [str(word) for word in (*words, *more)]


@dataclass(frozen=True)
class Result:
    """What a command leaves."""

    folders: tuple[Path, ...]
    read: Callable[[], dict[str, str]]
    """Gives the hash of each part of it."""

    def remove(self) -> None:
        """Let the command begin anew."""
        for folder in self.folders:
            shutil.rmtree(folder)


def result_of(command: str, experiment: Path) -> Result:
    """Return what a command leaves."""
    if command == "train":
        name = experiment.name
        checkpoints, logs = (
            experiment / kind / name / "killed" for kind in ("checkpoints", "logs")
        )
        return Result((checkpoints, logs), partial(state_of_run, checkpoints, logs))
    folder = experiment / ("predictions" if command == "predict" else "processed")
    return Result((folder,), partial(files_of, folder))


def begin(words: list) -> subprocess.Popen:
    """Start a command in a session of its own: what it starts can be waited for."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*PROGRAM, *map(str, words)],
        cwd=REPOSITORY,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run(words: list) -> float:
    """Run a command to its end; return its seconds."""
    start = time.monotonic()
    process = begin(words)
    _, said = process.communicate(timeout=LONGEST_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{said.decode()[-2000:]}")
    return time.monotonic() - start


def kill(process: int, number: int, *, with_descendants: bool) -> None:
    """Send a signal to a process; with_descendants: kill -9 goes to what it started, too.

    The processes of a run would be told by the system that the one that started them is gone, and
    save.
    """
    killed = [process]
    if with_descendants and number == signal.SIGKILL:
        killed += descendants(process)
    for one in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, number)


def descendants(process: int) -> list[int]:
    """Return the processes that a process started, and those that they did."""
    listed = subprocess.run(
        ["pgrep", "-P", str(process)], capture_output=True, text=True, check=False
    )
    found = []
    for child in map(int, listed.stdout.split()):
        found += [child, *descendants(child)]
    return found


def disturbed(words: list, *, after_s: float, number: int) -> Kill | None:
    """Run a command and kill it after some seconds; return None if it ended before.

    SystemExit if it ended otherwise than done.
    """
    process = begin(words)
    try:
        _, said = process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        told = time.monotonic()
        kill(process.pid, number, with_descendants=words[0] == "train")
        process.communicate(timeout=LONGEST_S)
        took = time.monotonic() - told
        name = signal.Signals(number).name
        return Kill(words[0], name, round(after_s, 1), round(took, 1), process.returncode)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}\n{said.decode()[-2000:]}")
    return None


def files_of(folder: Path) -> dict[str, str]:
    """Return the hash of every file; of .zattrs the content without times."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            hashes[name] = _content(path) if path.name == ".zattrs" else sha256_of_file(path)
    return hashes


def state_of_run(checkpoints: Path, logs: Path) -> dict[str, str]:
    """Return the hash of each part of the checkpoints and the rows of history.csv, without times.

    And the names of files that should not be there.
    """
    hashes = {}
    for which in ("latest", "best"):
        saved = torch.load(checkpoints / f"{which}.pt", weights_only=True)
        del saved["settings"], saved["provenance"]
        for name, value in saved.items():
            hashes[f"{which} {name}"] = hashlib.sha256(_bytes_of(value)).hexdigest()
    history = read_history(logs)
    columns = [name for name in history if not name.endswith(TIMES)]
    hashes["history"] = history[columns].to_csv()
    for folder in (checkpoints, logs):
        hashes |= {str(path): "" for path in folder.glob(".*")}
    return hashes


def _bytes_of(value: object) -> bytes:
    """Return bytes that tell contents of checkpoints apart."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype).encode() + value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return b"".join(repr(key).encode() + _bytes_of(value[key]) for key in value)
    if isinstance(value, list | tuple):
        return b"".join(map(_bytes_of, value))
    return repr(value).encode()


def _content(path: Path) -> str:
    content = json.loads(path.read_text())
    processed = content.get("processed") or {}
    for record in (content.get("prediction"), processed, processed.get("prediction")):
        (record or {}).pop("made", None)
    return json.dumps(content, sort_keys=True)


def kill_often(
    command: str, experiment: Path, *, kills: int, workers: int, chance: random.Random
) -> list[Kill]:
    """Kill a command at random moments, then let it end, and compare. SystemExit if it differs."""
    words = words_of(command, experiment, workers)
    result = result_of(command, experiment)
    seconds = run(words)
    expected = result.read()
    result.remove()
    done: list[Kill] = []
    for number in range(kills + RESTARTS):
        if len(done) == kills:
            break
        kind = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        done_to_it = disturbed(words, after_s=chance.uniform(0, seconds), number=kind)
        if done_to_it is None:
            # it came to its end: what is there is compared, and all begins again
            _compare(command, expected, result.read())
            result.remove()
        else:
            done.append(done_to_it)
            print(json.dumps(asdict(done_to_it)), flush=True)
    run(words)
    _compare(command, expected, result.read())
    print(f"{command}: {len(expected)} parts as of an undisturbed call of {seconds:.1f} s")
    return done


def _compare(command: str, expected: dict[str, str], written: dict[str, str]) -> None:
    differing = [name for name in {*expected, *written} if expected.get(name) != written.get(name)]
    if differing:
        raise SystemExit(f"{command}: {len(differing)} files differ: {sorted(differing)[:10]}")


@click.command()
@click.option("--kills", default=10, show_default=True, help="Of each command.")
@click.option("--workers", default=2, show_default=True, help="Of each call.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--command", "commands", multiple=True, default=COMMANDS, show_default=True)
def main(kills: int, workers: int, seed: int, commands: tuple[str, ...]) -> None:
    """Kill train, predict and process, and see that their end is the same."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CELLMAP_CACHE"] = str(Path(folder) / "cache")
        experiment = experiment_in(Path(folder))
        for command in commands:
            kill_often(command, experiment, kills=kills, workers=workers, chance=chance)


if __name__ == "__main__":
    main()

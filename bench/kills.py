"""Kill predict and process again and again, and see that they end as if nobody had.

    python bench/kills.py [--kills 20] [--workers 2] [--seed 0]

Half of the kills are kill -9, half SIGTERM, each at a random moment of a call, half of them in
predict and half in process; then the same command is started again. In the end every file of the
result must be that of calls that nobody disturbed, and nothing else may be left. Seconds from
SIGTERM to the end of the process are told, too.

The volume is drawn (`bench.drawn`), the experiment is examples/flyem_medulla with a network of
two layers after one step: what is tried is what stands around it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.drawn import write_tissue
from common.data.volumes import layout
from common.files import REPOSITORY, sha256_of_file

PROGRAM = (sys.executable, "-m", "cellmap_segmentation_challenge")

LONGEST_S = 600.0
"""Seconds that a call may take before it counts as hung."""

MODEL = """
from torch import nn


def build_model(classes, **_):
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, len(classes), 1)
    )
"""

ROI = "0:640,0:640,0:640"
"""nm: 64 blocks of 16 voxels."""

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
    settings = ["epochs=1", "iterations_per_epoch=1", "warmup_iterations=0", "device=cpu"]
    run(["train", experiment, "--data", data, *[f"--set={setting}" for setting in settings]])
    return experiment


def words_of(command: str, experiment: Path, workers: int) -> list[str]:
    """Return the words of a command on the whole volume."""
    data = experiment.parent / "data"
    raw = data / layout.store("flyem_medulla") / layout.RAW
    words = [
        command,
        experiment,
        "--data",
        data,
        "--volume",
        raw,
        "--roi",
        ROI,
        "--workers",
        workers,
    ]
    more = ["--block", 16, "--set=device=cpu"] if command == "predict" else []
    return [str(word) for word in (*words, *more)]


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


def disturbed(words: list, *, after_s: float, number: int) -> Kill | None:
    """Run a command and kill it after some seconds; return None if it ended before.

    SystemExit if it ended otherwise than done.
    """
    process = begin(words)
    try:
        _, said = process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        told = time.monotonic()
        process.send_signal(number)
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
    folder = experiment / ("predictions" if command == "predict" else "processed")
    seconds = run(words)
    expected = files_of(folder)
    shutil.rmtree(folder)
    done: list[Kill] = []
    for number in range(kills + RESTARTS):
        if len(done) == kills:
            break
        kind = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        kill = disturbed(words, after_s=chance.uniform(0, seconds), number=kind)
        if kill is None:
            # it came to its end: what is there is compared, and all begins again
            _compare(command, expected, files_of(folder))
            shutil.rmtree(folder)
        else:
            done.append(kill)
            print(json.dumps(asdict(kill)), flush=True)
    run(words)
    _compare(command, expected, files_of(folder))
    print(f"{command}: {len(expected)} files as of an undisturbed call of {seconds:.1f} s")
    return done


def _compare(command: str, expected: dict[str, str], written: dict[str, str]) -> None:
    differing = [name for name in {*expected, *written} if expected.get(name) != written.get(name)]
    if differing:
        raise SystemExit(f"{command}: {len(differing)} files differ: {sorted(differing)[:10]}")


@click.command()
@click.option("--kills", default=20, show_default=True, help="Half in each command.")
@click.option("--workers", default=2, show_default=True, help="Of each call.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
def main(kills: int, workers: int, seed: int) -> None:
    """Kill predict and process, and see that their end is the same."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CELLMAP_CACHE"] = str(Path(folder) / "cache")
        experiment = experiment_in(Path(folder))
        for command in ("predict", "process"):
            kill_often(command, experiment, kills=kills // 2, workers=workers, chance=chance)


if __name__ == "__main__":
    main()

"""Batches per second: ours as the loss takes them, and cellmap-data's loader, on the same crops.

    python bench/loader.py [--seconds 10] [--data FOLDER]

One core: no workers, one thread. Both give raw float32 and the target of all 48 classes, with
mirror and transpose, with and without rotation about all axes: ours as a palette image, which the
loss looks up by itself, the reference as a dense tensor. Each case runs in a process of its own,
ours and the reference in turn, so that both see the same machine. Ours counts everything up to the
loss: drawing, copying blocks, geometry.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SCALE = (8.0, 8.0, 8.0)
BATCH_SIZE = 2
LOADERS = ("reference", "ours")


@dataclass(frozen=True)
class Case:
    """Edges (voxels) of a raw and a target patch, and whether they are rotated."""

    input_size: int
    target_size: int
    rotate: bool


CASES = [Case(132, 92, True), Case(68, 28, True), Case(132, 92, False), Case(68, 28, False)]


@dataclass(frozen=True)
class Speed:
    """What one process measured."""

    rate: float
    """Samples per second."""
    memory: float
    """Peak memory of the process, GB."""


def ours(csv: Path, case: Case) -> Iterator:
    """Endless batches of our loader on this machine's CPU."""
    from common import runtime
    from common.classes import TESTED
    from common.config.settings import TrainConfig
    from common.data.loaders import open_data, training_batches

    transforms: dict = {
        "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
        "transpose": {"axes": ["x", "y", "z"]},
    }
    if case.rotate:
        transforms["rotate"] = {"axes": {axis: [-180, 180] for axis in "xyz"}}
    config = TrainConfig(
        build_model=lambda classes: None,
        classes=TESTED,
        input_array_info={"shape": (case.input_size,) * 3, "scale": SCALE},
        target_array_info={"shape": (case.target_size,) * 3, "scale": SCALE},
        base_experiment_path=str(csv.parent),
        data_path=str(csv.parent),
        datasplit_path=str(csv),
        cache_path=str(csv.parent / "cache"),
        spatial_transforms=transforms,
        batch_size=BATCH_SIZE,
        num_workers=0,
    )
    batches = training_batches(config, open_data(config), runtime.pick_device("cpu"))
    return batches.between(0, 10**9)


def reference(csv: Path, case: Case) -> Iterator:
    """Endless batches of cellmap-data's loader."""
    from bench.reference import cellmap_data_loader
    from common.classes import TESTED

    while True:
        yield from cellmap_data_loader(
            csv,
            classes=TESTED,
            input_shape=(case.input_size,) * 3,
            target_shape=(case.target_size,) * 3,
            scale=SCALE,
            rotate=case.rotate,
            batch_size=BATCH_SIZE,
            iterations=10**4,
        )


def measure(which: str, csv: Path, case: Case, seconds: float) -> Speed:
    """The speed of a loader, after one batch to warm up."""
    import torch

    torch.set_num_threads(1)
    batches = ours(csv, case) if which == "ours" else reference(csv, case)
    next(batches)
    samples = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(batches)
        samples += BATCH_SIZE
    return Speed(samples / (time.perf_counter() - start), peak_memory_gb())


def peak_memory_gb() -> float:
    """Most resident memory of this process since it began to run this program."""
    # not getrusage, which counts what its parent had before
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1e6
    return float("nan")


def in_process(which: str, csv: Path, case: Case, seconds: float) -> Speed:
    """The same as `measure`, in a process of its own."""
    arguments = [which, csv, *astuple(case), seconds]
    done = subprocess.run(
        [sys.executable, __file__, "--measure", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return Speed(*json.loads(done.stdout.strip().splitlines()[-1]))


def compare(csv: Path, case: Case, seconds: float, rounds: int) -> str:
    """A row of the table: the best of several rounds, the two loaders in turn."""
    speeds: dict[str, list[Speed]] = {which: [] for which in LOADERS}
    for _ in range(rounds):
        for which in LOADERS:
            speeds[which].append(in_process(which, csv, case, seconds))
    rate = {which: max(speed.rate for speed in found) for which, found in speeds.items()}
    memory = {which: max(speed.memory for speed in found) for which, found in speeds.items()}
    patch = f"{case.input_size}->{case.target_size}"
    rotation = "yes" if case.rotate else "no"
    ratio = rate["ours"] / rate["reference"]
    return (
        f"{patch:<12}{rotation:<10}{rate['reference']:>14.2f}{rate['ours']:>12.1f}"
        f"{ratio:>7.0f}x{memory['reference']:>8.2f}{memory['ours']:>9.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--measure", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        which, csv, input_size, target_size, rotate, seconds = options.measure
        case = Case(int(input_size), int(target_size), rotate == "True")
        print(json.dumps(astuple(measure(which, Path(csv), case, float(seconds)))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        from bench.reference import write_crops

        csv = write_crops(options.data or scratch)
        head = f"{'patch':<12}{'rotation':<10}{'cellmap-data':>14}{'ours':>12}{'ratio':>8}"
        head += f"{'GB':>8}{'GB ours':>9}"
        print(f"{head}   (samples/s, best of {options.rounds})")
        for case in CASES:
            print(compare(csv, case, options.seconds, options.rounds))


if __name__ == "__main__":
    main()

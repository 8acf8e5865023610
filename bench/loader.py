"""Batches per second: ours in the form that the loss consumes, against cellmap-data's loader, on the same crops.

    python bench/loader.py [--seconds 10] [--data FOLDER]

One core: no workers, one thread. Both give raw float32 and the target of all 48 classes, with mirror and transpose, with and
without rotation about all axes; each case runs in a process of its own, ours and the reference in turn, so that both see the
same machine. Ours counts everything up to the loss: drawing, copying blocks, geometry, and the palette lookup.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CASES = [(132, 92, True), (68, 28, True), (132, 92, False), (68, 28, False)]
SCALE = (8.0, 8.0, 8.0)


def ours(csv: Path, input_size: int, target_size: int, rotate: bool):
    """Endless batches of two of our loader on this machine's CPU."""
    from common import runtime
    from common.classes import TESTED
    from common.config.settings import TrainConfig
    from common.data.loaders import open_data, training_batches

    transforms = {
        "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
        "transpose": {"axes": ["x", "y", "z"]},
    }
    if rotate:
        transforms["rotate"] = {"axes": {axis: [-180, 180] for axis in "xyz"}}
    config = TrainConfig(
        build_model=None,
        classes=TESTED,
        input_array_info={"shape": (input_size,) * 3, "scale": SCALE},
        target_array_info={"shape": (target_size,) * 3, "scale": SCALE},
        base_experiment_path=str(csv.parent),
        data_path=str(csv.parent),
        datasplit_path=str(csv),
        cache_path=str(csv.parent / "cache"),
        spatial_transforms=transforms,
        batch_size=2,
        num_workers=0,
    )
    return training_batches(config, open_data(config), runtime.pick_device("cpu")).between(0, 10**9)


def reference(csv: Path, input_size: int, target_size: int, rotate: bool):
    """Endless batches of two of cellmap-data's loader."""
    from bench.reference import cellmap_data_loader
    from common.classes import TESTED

    while True:
        yield from cellmap_data_loader(
            csv,
            classes=TESTED,
            input_shape=(input_size,) * 3,
            target_shape=(target_size,) * 3,
            scale=SCALE,
            rotate=rotate,
            batch_size=2,
            iterations=10**4,
        )


def measure(
    which: str, csv: Path, input_size: int, target_size: int, rotate: bool, seconds: float
) -> dict[str, float]:
    """Samples per second after one batch to warm up, and peak memory of the process in GB."""
    import torch

    torch.set_num_threads(1)
    batches = iter(
        {"ours": ours, "reference": reference}[which](csv, input_size, target_size, rotate)
    )
    next(batches)
    start, samples = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        samples += 2
    rate = samples / (time.perf_counter() - start)
    return {"rate": rate, "memory": peak_memory_gb()}


def peak_memory_gb() -> float:
    """Most resident memory of this process since it began to run this program; getrusage would count its parent's too."""
    status = Path("/proc/self/status").read_text()
    return (
        next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1e6
    )


def in_process(*arguments: object) -> dict[str, float]:
    words = [sys.executable, __file__, "--measure", *map(str, arguments)]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--measure", nargs=6)
    options = parser.parse_args()
    if options.measure:
        which, csv, input_size, target_size, rotate, seconds = options.measure
        print(
            json.dumps(
                measure(
                    which,
                    Path(csv),
                    int(input_size),
                    int(target_size),
                    rotate == "True",
                    float(seconds),
                )
            )
        )
        return
    with tempfile.TemporaryDirectory() as scratch:
        from bench.reference import write_crops

        csv = write_crops(options.data or scratch)
        print(
            f"{'patch':<12}{'rotation':<10}{'cellmap-data':>14}{'ours':>12}{'ratio':>8}{'GB':>8}{'GB ours':>9}   (samples/s, best of {options.rounds})"
        )
        for input_size, target_size, rotate in CASES:
            runs = {"reference": [], "ours": []}
            for _ in range(options.rounds):
                for which, results in runs.items():
                    results.append(
                        in_process(which, csv, input_size, target_size, rotate, options.seconds)
                    )
            best = {
                which: max(result["rate"] for result in results) for which, results in runs.items()
            }
            memory = {
                which: max(result["memory"] for result in results)
                for which, results in runs.items()
            }
            print(
                f"{input_size}->{target_size:<8}{'yes' if rotate else 'no':<10}{best['reference']:>14.2f}{best['ours']:>12.1f}"
                f"{best['ours'] / best['reference']:>7.0f}x{memory['reference']:>8.2f}{memory['ours']:>9.2f}"
            )


if __name__ == "__main__":
    main()

"""Training throughput on a CPU or GPU: ours end to end, the bare model, and the plain loop of the public toolbox.

    python bench/train.py [--seconds 20] [--device cpu]

unet8, 48 classes, rotation, mirror and transpose on, batch 2 (68 -> 28) and 1 (116 -> 76). "bare model" takes the same steps
(forward, loss, backward, optimiser) on one batch that is in memory already; "plain loop" is cellmap-data and LeibNetz in fp32.
All three alternate in one run, in processes of their own; the best of the rounds is shown, since other load only slows down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CASES = {
    "cpu": [(68, 2, 0), (116, 1, 0)],
    "cuda": [(68, 16, 4), (116, 4, 4), (164, 4, 4), (212, 4, 4)],
}
"""Input size, batch size, workers."""


def start(csv: Path, size: int, batch_size: int, workers: int, device_name: str):
    """State, method and batches of a run of unet8 on the benchmark's crops."""
    from common.config.load import load_config
    from common.files import REPOSITORY
    from common.train import run as run_module

    scale = (8, 8, 8)
    config = load_config(
        REPOSITORY / "unet8_all",
        data_path=str(csv.parent),
        datasplit_path=str(csv),
        cache_path=str(csv.parent / "cache"),
        batch_size=batch_size,
        input_array_info={"shape": (size,) * 3, "scale": scale},
        target_array_info={"shape": (size - 40,) * 3, "scale": scale},
        num_workers=workers,
        device=device_name,
    )
    device, data, state, method = run_module.prepare(config)
    return state, method, run_module.training_batches(config, data, device).between(0, 10**9)


def ours(
    csv: Path, size: int, batch_size: int, workers: int, device: str, seconds: float
) -> dict[str, float]:
    """Samples/s and data-wait fraction of the trainer's own epoch."""
    from tqdm import tqdm

    from common.train import steps

    state, method, batches = start(csv, size, batch_size, workers, device)
    steps.train_epoch(
        state, method, batches, 2, 1, lambda *_: None, lambda: False, tqdm(disable=True)
    )
    begun = time.perf_counter()
    found = steps.train_epoch(
        state,
        method,
        batches,
        10**9,
        1,
        lambda *_: None,
        lambda: time.perf_counter() - begun > seconds,
        tqdm(disable=True),
    )
    return {"rate": found["samples_per_s"], "wait": found["data_wait"]}


def bare(
    csv: Path, size: int, batch_size: int, workers: int, device: str, seconds: float
) -> dict[str, float]:
    """Samples/s of the same steps on one batch."""
    from common.train import steps

    state, method, batches = start(csv, size, batch_size, 0, device)
    batch = next(batches)
    steps.step(state, method, [batch])
    steps.step(state, method, [batch])
    begun, samples = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        steps.step(state, method, [batch])
        samples += batch_size
    return {"rate": samples / (time.perf_counter() - begun)}


def plain(
    csv: Path, size: int, batch_size: int, workers: int, device: str, seconds: float
) -> dict[str, float]:
    """Samples/s of a plain loop over cellmap-data and LeibNetz."""
    from bench.reference import plain_training_samples_per_s

    return {
        "rate": plain_training_samples_per_s(
            csv, input_shape=(size,) * 3, batch_size=batch_size, seconds=seconds
        )
    }


def in_process(*arguments: object) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--measure", nargs=7)
    options = parser.parse_args()
    if options.measure:
        which, csv, size, batch_size, workers, device, seconds = options.measure
        run = {"ours": ours, "bare": bare, "plain": plain}[which]
        print(
            json.dumps(
                run(Path(csv), int(size), int(batch_size), int(workers), device, float(seconds))
            )
        )
        return
    with tempfile.TemporaryDirectory() as scratch:
        from bench.reference import write_crops

        csv = write_crops(scratch)
        sides = ("ours", "bare", "plain") if options.device == "cpu" else ("ours", "bare")
        print(
            f"{'patch':<12}{'batch':>6}{'ours':>9}{'bare model':>12}{'ratio':>7}{'data wait':>11}{'plain loop':>12}{'ratio':>7}   (samples/s)"
        )
        for size, batch_size, workers in CASES[options.device]:
            runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for _ in range(options.rounds):
                for side in sides:
                    runs[side].append(
                        in_process(
                            side, csv, size, batch_size, workers, options.device, options.seconds
                        )
                    )
            best = {side: max(results, key=lambda r: r["rate"]) for side, results in runs.items()}
            rate = {side: result["rate"] for side, result in best.items()}
            reference = (
                f"{rate['plain']:>12.2f}{rate['ours'] / rate['plain']:>6.1f}x"
                if "plain" in rate
                else ""
            )
            print(
                f"{size}->{size - 40:<8}{batch_size:>6}{rate['ours']:>9.2f}{rate['bare']:>12.2f}{rate['ours'] / rate['bare']:>7.2f}"
                f"{best['ours']['wait']:>10.1%}{reference}"
            )


if __name__ == "__main__":
    main()

"""Seconds and memory of finding, uniting, reading and exporting runs.

    python bench/unite.py [--quick]

Generated: 300 runs in 30 experiments, 10^6 scalars in all (--quick: 30 runs, 10^5), each run two event files that overlap. Two thirds
say from which step they were resumed, as ours do, and are linked; one third do not, and are rewritten. And one run with 1 GB of images
(--quick: 100 MB). Each line is a process of its own, on one core, on the same files; memory is the most that it held, of which 0.09 GB
are imports.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

import unite_tensorboards
from common.runs import events, find

TAGS = [
    "mean/dice",
    *(f"{metric}/class{number}" for metric in ("dice", "iou") for number in range(20)),
]
IMAGE = 1_000_000
"""Bytes of an image."""


def write_events(folder: Path, number: int, steps: range, purge: bool) -> None:
    """One event file: each of TAGS at each step."""
    folder.mkdir(parents=True, exist_ok=True)
    began = 1.7e9 + 1e5 * number
    with open(folder / f"events.out.tfevents.{began:.0f}.host.1.{number}", "wb") as file:
        file.write(events.frame(Event(wall_time=began, file_version="brain.Event:2")))
        if purge:
            file.write(
                events.frame(
                    Event(
                        wall_time=began,
                        step=steps[0],
                        session_log=SessionLog(status=SessionLog.START),
                    )
                )
            )
        for step in steps:
            for tag in TAGS:
                value = Summary.Value(tag=tag, simple_value=step / 100)
                file.write(
                    events.frame(
                        Event(wall_time=began + step, step=step, summary=Summary(value=[value]))
                    )
                )


def write_runs(root: Path, count: int, scalars: int) -> None:
    """`count` runs with so many scalars in all."""
    steps = scalars // count // len(TAGS)
    for number in range(count):
        folder = root / f"experiment{number % 30}/logs/model/seed{number}"
        ours = number % 3 > 0
        write_events(folder, 0, range(steps * 3 // 4), ours)
        write_events(folder, 1, range(steps // 2, steps * 3 // 4), ours)
        if ours:
            (folder / "history.csv").write_text("epoch,iteration,validation/dice\n1,100,0.5\n")
            record = {
                "settings": {"random_seed": str(number)},
                "result": {"epoch": 1, "best": 0.5, "best_metric": "dice"},
            }
            (folder / "run.json").write_text(json.dumps(record))


def write_images(root: Path, size: int) -> None:
    """One run with so many bytes of images, and ten scalars beside each."""
    folder = root / "images/logs/model/seed1"
    write_events(folder, 0, range(1), True)
    with open(next(folder.iterdir()), "ab") as file:
        for step in range(size // IMAGE):
            image = Summary.Value(
                tag="image",
                image=Summary.Image(
                    height=1, width=1, colorspace=3, encoded_image_string=os.urandom(IMAGE)
                ),
            )
            file.write(events.frame(Event(step=step, summary=Summary(value=[image]))))
            for tag in TAGS[:10]:
                file.write(
                    events.frame(
                        Event(
                            step=step,
                            summary=Summary(value=[Summary.Value(tag=tag, simple_value=1)]),
                        )
                    )
                )


def grow(root: Path) -> None:
    """Add a step to the last event file of each run."""
    for run in find.find(root):
        with open(run.events[-1], "ab") as file:
            for tag in TAGS:
                file.write(
                    events.frame(
                        Event(
                            step=10**6,
                            summary=Summary(value=[Summary.Value(tag=tag, simple_value=1)]),
                        )
                    )
                )


def unite(root: Path, *options: str) -> None:
    unite_tensorboards.main([str(root), "--no-serve", *options], standalone_mode=False)


def serve(root: Path) -> None:
    """Until TensorBoard names all runs; it may not have read them to the end."""
    address = unite_tensorboards.start_tensorboard(root / "tensorboards", 0)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    wanted = len(find.find(root)) + 1
    while len(json.load(opener.open(f"{address}data/runs"))) < wanted:
        time.sleep(0.05)


def read_by_tensorboard(root: Path) -> None:
    """Its reader in Python: events one by one, superseded ones too, nothing kept."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for run in find.find(root):
        for file in run.events:
            for _ in EventFileLoader(str(file)).Load():
                pass


def accumulate_by_tensorboard(root: Path) -> None:
    """As it keeps them in memory, run by run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for run in find.find(root):
        EventAccumulator(str(run.folder), {"tensors": 0, "scalars": 0}).Reload()


def read(root: Path) -> None:
    for run in find.find(root):
        for _ in events.scalars(run):
            pass


CASES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "find the runs": ("scalars", find.find),
    "unite them the first time": ("scalars", unite),
    "again, nothing new": ("scalars", unite),
    "again, each has a further step": ("scalars", lambda root: (grow(root), unite(root))),
    "TensorBoard names all": ("scalars", serve),
    "--export runs.csv": ("scalars", lambda root: unite(root, "--export", str(root / "runs.csv"))),
    "--export-scalars scalars.csv": (
        "scalars",
        lambda root: unite(root, "--export-scalars", str(root / "scalars.csv")),
    ),
    "read all scalars, runs.scalars": ("scalars", read),
    "TensorBoard's EventFileLoader": ("scalars", read_by_tensorboard),
    "TensorBoard's EventAccumulator": ("scalars", accumulate_by_tensorboard),
    "scalars beside images": ("images", read),
    "rewrite for --map": ("images", lambda root: unite(root, "--map", f"{TAGS[0]}=renamed")),
}


def measure(name: str, root: Path) -> dict[str, float]:
    start, started = time.perf_counter(), time.process_time()
    CASES[name][1](root)
    seconds, cpu = time.perf_counter() - start, time.process_time() - started
    return {
        "seconds": seconds,
        "cpu": cpu,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def in_process(name: str, root: Path) -> dict[str, float]:
    words = [sys.executable, __file__, "--measure", name, str(root)]
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
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the runs, scalars and images"
    )
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))), flush=True)
        os._exit(0)  # TensorBoard's server does not end by itself
    part = 10 if options.quick else 1
    with tempfile.TemporaryDirectory() as scratch:
        roots = {"scalars": Path(scratch, "scalars"), "images": Path(scratch, "images")}
        write_runs(roots["scalars"], 300 // part, 10**6 // part)
        write_images(roots["images"], 10**9 // part)
        print(f"{'':<34}{'seconds':>9}{'CPU s':>9}{'GB':>7}")
        for name, (kind, _) in CASES.items():
            found = in_process(name, roots[kind])
            print(
                f"{name:<34}{found['seconds']:>9.2f}{found['cpu']:>9.2f}{found['memory']:>7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

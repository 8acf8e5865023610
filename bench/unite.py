"""Seconds and memory of finding, uniting, reading and exporting runs.

    python bench/unite.py [--quick]

Generated: 300 runs in 30 experiments, 10^6 scalars in all (--quick: 30 runs, 10^5), each run two
event files that overlap. Two thirds say from which step they were resumed, as ours do; one third do
not. And one run with 1 GB of images (--quick: 100 MB). Each line is a process of its own, on one
core, on the same files; memory is the most that it held, of which about 0.1 GB are imports.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from common.runs import serve as server
from common.runs.events import scalars
from common.runs.find import find
from common.runs.unite import main as unite_command

CLASSES = [f"class{number}" for number in range(20)]

TAGS = ["mean/dice", *(f"dice/{name}" for name in CLASSES), *(f"iou/{name}" for name in CLASSES)]

IMAGE = 1_000_000
"""Bytes of an image."""


def records(events: Iterable[Event]) -> bytes:
    """Events as they stand in a file."""
    content = io.BytesIO()
    writer = RecordWriter(content)
    for event in events:
        writer.write(event.SerializeToString())
    return content.getvalue()


def scalar(tag: str, step: int, began: float = 0.0) -> Event:
    """A number under a tag."""
    value = Summary.Value(tag=tag, simple_value=step / 100)
    return Event(wall_time=began + step, step=step, summary=Summary(value=[value]))


def write_events(folder: Path, number: int, steps: range, purge: bool) -> None:
    """One event file: each of TAGS at each step."""
    folder.mkdir(parents=True, exist_ok=True)
    began = 1.7e9 + 1e5 * number
    events = [Event(wall_time=began, file_version="brain.Event:2")]
    if purge:
        restart = SessionLog(status=SessionLog.START)
        events.append(Event(wall_time=began, step=steps[0], session_log=restart))
    for step in steps:
        events += [scalar(tag, step, began) for tag in TAGS]
    path = folder / f"events.out.tfevents.{began:.0f}.host.1.{number}"
    path.write_bytes(records(events))


def write_runs(root: Path, count: int, total: int) -> None:
    """`count` runs with so many scalars in all."""
    steps = total // count // len(TAGS)
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
    write_events(folder, 0, range(1), purge=True)
    image = Summary.Image(height=1, width=1, colorspace=3, encoded_image_string=os.urandom(IMAGE))
    value = Summary.Value(tag="image", image=image)
    # one image many times: the checksum that the writer makes in Python takes 0.15 s
    content = records([Event(step=1, summary=Summary(value=[value]))])
    with next(folder.iterdir()).open("ab") as file:
        for step in range(size // IMAGE):
            file.write(content)
            file.write(records(scalar(tag, step) for tag in TAGS[:10]))


def grow(root: Path) -> None:
    """Add a step to the last event file of each run."""
    content = records(scalar(tag, 10**6) for tag in TAGS)
    for run in find(root):
        with run.events[-1].open("ab") as file:
            file.write(content)


def unite(root: Path, *options: str) -> None:
    """The command, which starts no TensorBoard."""
    unite_command([str(root), "--no-serve", *options], standalone_mode=False)


def unite_grown(root: Path) -> None:
    """The command on runs that have a further step."""
    grow(root)
    unite(root)


def export_runs(root: Path) -> None:
    """A row a run."""
    unite(root, "--export", str(root / "runs.csv"))


def export_scalars(root: Path) -> None:
    """All scalars in long form."""
    unite(root, "--export-scalars", str(root / "scalars.csv"))


def serve(root: Path) -> None:
    """Until TensorBoard names all runs; it may not have read them to the end."""
    address = server.start(root / "tensorboards", 0)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    wanted = len(find(root)) + 1
    while len(json.load(opener.open(f"{address}data/runs"))) < wanted:
        time.sleep(0.05)


def read(root: Path) -> None:
    """All scalars, a run after the other."""
    for run in find(root):
        scalars(run)


def read_by_tensorboard(root: Path) -> None:
    """Its reader in Python: events one by one, superseded ones too, nothing kept."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for run in find(root):
        for file in run.events:
            for _ in EventFileLoader(str(file)).Load():
                pass


def accumulate_by_tensorboard(root: Path) -> None:
    """As it keeps them in memory, run by run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for run in find(root):
        EventAccumulator(str(run.folder), {"tensors": 0, "scalars": 0}).Reload()


CASES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "find the runs": ("scalars", find),
    "unite them the first time": ("scalars", unite),
    "again, nothing new": ("scalars", unite),
    "again, each has a further step": ("scalars", unite_grown),
    "TensorBoard names all": ("scalars", serve),
    "--export runs.csv": ("scalars", export_runs),
    "--export-scalars scalars.csv": ("scalars", export_scalars),
    "read all scalars": ("scalars", read),
    "TensorBoard's EventFileLoader": ("scalars", read_by_tensorboard),
    "TensorBoard's EventAccumulator": ("scalars", accumulate_by_tensorboard),
    "scalars beside images": ("images", read),
}


def measure(name: str, root: Path) -> dict[str, float]:
    """Run one case."""
    start = time.perf_counter()
    cpu_start = time.process_time()
    CASES[name][1](root)
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu_start,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def in_process(name: str, root: Path) -> dict[str, float]:
    """Run one case in a process of its own, on one core."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", name, str(root)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Print a line a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the runs, scalars and images"
    )
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, folder = options.measure
        print(json.dumps(measure(name, Path(folder))), flush=True)
        os._exit(0)  # TensorBoard's server does not end by itself
    part = 10 if options.quick else 1
    with tempfile.TemporaryDirectory() as scratch:
        roots = {kind: Path(scratch, kind) for kind in ("scalars", "images")}
        write_runs(roots["scalars"], 300 // part, 10**6 // part)
        write_images(roots["images"], 10**9 // part)
        print(f"{'':<34}{'seconds':>9}{'CPU s':>9}{'GB':>7}")
        for name, (kind, _) in CASES.items():
            took = in_process(name, roots[kind])
            figures = f"{took['seconds']:>9.2f}{took['cpu']:>9.2f}{took['memory']:>7.2f}"
            print(f"{name:<34}{figures}", flush=True)


if __name__ == "__main__":
    main()

"""Measure training throughput: ours end to end, the bare model, the public toolbox's loop.

    python bench/train.py [--seconds 20] [--device cpu]
    python bench/train.py --experiment examples/flyem_medulla

unet8, 48 classes, rotation, mirror and transpose on, batch 2 (68 -> 28) and 1 (116 -> 76). "bare
model" takes the same steps (forward, loss, backward, optimiser) on one batch that is in memory
already; "plain loop" is cellmap-data and LeibNetz in fp32. All three alternate in one run, in
processes of their own; the best of the rounds is shown, since other load only slows down. With
--experiment it is another one, with its own patch, batch, recipe and workers, without a plain loop.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.data.samples.batches import Batch
    from common.train.state import Method, State

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.side_by_side import in_own_process


@dataclass(frozen=True)
class Case:
    """A measurement, and how long it takes."""

    csv: str
    size: int
    """Edge of the raw patch in voxels."""
    target_size: int
    """Edge of the target patch in voxels."""
    batch_size: int
    workers: int
    device: str
    seconds: float
    experiment: str = "unet8_all"
    """Folder in the repository."""


CASES = {
    "cpu": [(68, 2, 0), (116, 1, 0)],
    "cuda": [(68, 16, 4), (116, 4, 4), (164, 4, 4), (212, 4, 4)],
}
"""Input size, batch size, workers; of unet8, whose target is MARGIN smaller."""

MARGIN = 40


def start(case: Case):
    """State, method and batches of a run on the benchmark's crops."""
    from common.config.load import load_config
    from common.files import REPOSITORY
    from common.train.setup import prepare

    folder = Path(case.csv).parent
    scale = (8, 8, 8)
    config = load_config(
        REPOSITORY / case.experiment,
        data_path=str(folder),
        datasplit_path=case.csv,
        cache_path=str(folder / "cache"),
        batch_size=case.batch_size,
        input_array_info={"shape": (case.size,) * 3, "scale": scale},
        target_array_info={"shape": (case.target_size,) * 3, "scale": scale},
        num_workers=case.workers,
        device=case.device,
    )
    setup, state = prepare(config)
    return state, setup.method, setup.training.between(0, 10**9)


def ours(case: Case) -> dict[str, float]:
    """Samples/s and data-wait fraction of the trainer's own epoch."""
    return of_trainer(*start(case), case.seconds)


def bare(case: Case) -> dict[str, float]:
    """Samples/s of the same steps on one batch."""
    return of_bare_model(*start(replace(case, workers=0)), case.seconds)


def of_trainer(
    state: State, method: Method, batches: Iterator[Batch], seconds: float
) -> dict[str, float]:
    """Samples/s of an epoch, and the fraction of it that waited for data; two steps warm up."""
    from tqdm import tqdm

    from common.train import steps

    def train_until(last_iteration: int, stop: Callable[[], bool]) -> steps.TrainedEpoch:
        return steps.train_epoch(
            state,
            method,
            batches,
            last_iteration,
            log=lambda *_: None,
            stop=stop,
            bar=tqdm(disable=True),
        )

    train_until(state.iteration + 2, lambda: False)
    begun = time.perf_counter()
    trained = train_until(10**9, lambda: time.perf_counter() - begun > seconds)
    return {"rate": trained.samples_per_s, "wait": trained.data_wait}


def of_bare_model(
    state: State, method: Method, batches: Iterator[Batch], seconds: float
) -> dict[str, float]:
    """Samples/s of steps on one batch that is in memory already; two steps warm up."""
    from common.train import steps

    batch = next(batches)
    steps.step(state, method, [batch])
    steps.step(state, method, [batch])
    begun = time.perf_counter()
    samples = 0
    while time.perf_counter() - begun < seconds:
        steps.step(state, method, [batch])  # it reads the loss, so that it ends when the GPU does
        samples += len(batch.raw)
    return {"rate": samples / (time.perf_counter() - begun)}


def plain(case: Case) -> dict[str, float]:
    """Samples/s of a plain loop over cellmap-data and LeibNetz."""
    from bench.reference import plain_training_samples_per_s

    rate = plain_training_samples_per_s(
        Path(case.csv),
        input_shape=(case.size,) * 3,
        batch_size=case.batch_size,
        seconds=case.seconds,
    )
    return {"rate": rate}


SIDES = {"ours": ours, "bare": bare, "plain": plain}


def in_process(side: str, case: Case) -> dict[str, float]:
    """Run the measurement of a side in a process of its own."""
    return in_own_process(__file__, "--measure", side, json.dumps(asdict(case)))


def best_of_rounds(case: Case, sides: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """The fastest measurement of each side; the sides take turns."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for side in sides:
            measured = in_process(side, case)
            if side not in best or measured["rate"] > best[side]["rate"]:
                best[side] = measured
    return best


def row(case: Case, best: dict[str, dict[str, float]]) -> str:
    """A line of the table."""
    rate = {side: measured["rate"] for side, measured in best.items()}
    patch = f"{case.size}->{case.target_size}"
    text = f"{patch:<12}{case.batch_size:>6}{rate['ours']:>9.2f}{rate['bare']:>12.2f}"
    text += f"{rate['ours'] / rate['bare']:>7.2f}{best['ours']['wait']:>11.1%}"
    if "plain" in rate:
        text += f"{rate['plain']:>12.2f}{rate['ours'] / rate['plain']:>6.1f}x"
    return text


def cases(csv: str, options: argparse.Namespace) -> list[Case]:
    """What is measured on the crops of a datasplit."""
    sizes = [(size, size - MARGIN, *others) for size, *others in CASES[options.device]]
    if options.experiment:
        sizes = [sizes_of(options.experiment)]
    every = []
    for size, target_size, batch_size, workers in sizes:
        case = Case(
            csv=csv,
            size=size,
            target_size=target_size,
            batch_size=batch_size,
            workers=workers,
            device=options.device,
            seconds=options.seconds,
            experiment=options.experiment or "unet8_all",
        )
        every.append(case)
    return every


def sizes_of(experiment: str) -> tuple[int, int, int, int]:
    """Edges of raw and target, batch size and workers of an experiment."""
    from common.config.load import load_config
    from common.files import REPOSITORY

    config = load_config(REPOSITORY / experiment)
    size = config.input_array_info["shape"][0]
    target_size = config.target_array_info["shape"][0]
    return size, target_size, config.batch_size, config.num_workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--experiment", help="folder; its patches have to be cubes")
    parser.add_argument("--measure", nargs=2)
    options = parser.parse_args()
    if options.measure:
        side, case = options.measure
        print(json.dumps(SIDES[side](Case(**json.loads(case)))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        from bench.reference import write_crops

        csv = str(write_crops(scratch))
        has_peer = options.device == "cpu" and not options.experiment
        sides = list(SIDES) if has_peer else ["ours", "bare"]
        print(
            f"{'patch':<12}{'batch':>6}{'ours':>9}{'bare model':>12}{'ratio':>7}{'data wait':>11}"
            f"{'plain loop':>12}{'ratio':>7}   (samples/s)"
        )
        for case in cases(csv, options):
            print(row(case, best_of_rounds(case, sides, options.rounds)))


if __name__ == "__main__":
    main()

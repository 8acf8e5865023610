"""Batches per second: ours as the loss takes them, and cellmap-data's loader, on the same crops.

    python bench/loader.py [--seconds 10] [--data FOLDER] [--device cuda]
    python bench/loader.py --augmentations: what each kind of the setting `augmentations` costs

One core: no workers, one thread. Both give raw float32 and the target of all 48 classes, with
mirror and transpose, with and without rotation about all axes: ours as a palette image, which the
loss looks up by itself, the reference as a dense tensor. Each case runs in a process of its own,
ours and the reference in turn, so that both see the same machine. Ours counts everything up to the
loss: drawing, copying blocks, geometry. With --device cuda the batches of both end on that device.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.side_by_side import in_own_process

if TYPE_CHECKING:
    from common.config.settings import TrainConfig

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
    """The measurement of one process."""

    rate: float
    """Samples per second."""
    memory: float
    """Peak memory of the process, GB."""


def ours(csv: Path, case: Case, device: str = "cpu") -> Iterator:
    """Return endless batches of our loader on a device."""
    from common import runtime
    from common.data.samples.batches import training_batches
    from common.data.samples.loaders import open_data

    config = config_of(csv, case)
    batches = training_batches(config, open_data(config), runtime.pick_device(device))
    return batches.between(0, 10**9)


def config_of(csv: Path, case: Case, **settings: Any) -> TrainConfig:
    """Return settings of a training of all classes on this split."""
    from common.classes import TESTED
    from common.config.settings import TrainConfig

    transforms: dict = {
        "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
        "transpose": {"axes": ["x", "y", "z"]},
    }
    if case.rotate:
        transforms["rotate"] = {"axes": {axis: [-180, 180] for axis in "xyz"}}
    return TrainConfig(
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
        **settings,
    )


def reference(csv: Path, case: Case, device: str = "cpu") -> Iterator:
    """Yield batches of cellmap-data's loader without end, moved to a device as its users do."""
    from bench.reference import cellmap_data_loader
    from common.classes import TESTED

    while True:
        batches = cellmap_data_loader(
            csv,
            classes=TESTED,
            input_shape=(case.input_size,) * 3,
            target_shape=(case.target_size,) * 3,
            scale=SCALE,
            rotate=case.rotate,
            batch_size=BATCH_SIZE,
            iterations=10**4,
        )
        for batch in batches:
            yield {name: batch[name].to(device) for name in ("input", "output")}


def measure(loader: str, csv: Path, case: Case, *, device: str, seconds: float) -> Speed:
    """Measure the speed of one of LOADERS, after one batch to warm up."""
    import torch

    torch.set_num_threads(1)
    batches_of = ours if loader == "ours" else reference
    batches = batches_of(csv, case, device)
    return Speed(rate_of(batches, device, seconds), peak_memory_gb())


def cost_of_augmentations(csv: Path, case: Case, seconds: float, rounds: int) -> list[str]:
    """Return rows of a table: time for a sample with one kind of augmentation, and ratio to none.

    In one process and in turn; each kind happens to every sample. The least of several rounds.
    """
    import torch

    from bench.show_augmentations import STRONG
    from common.config.augmentations import read_augmentations
    from common.data.samples.batches import Batches
    from common.data.samples.blocks import Blocks
    from common.data.samples.loaders import open_data

    torch.set_num_threads(1)
    # one cache for all: raw is kept as far as any kind reaches
    data = open_data(config_of(csv, case, augmentations=STRONG))
    streams = {}
    for name in ("none", *STRONG):
        kinds = read_augmentations({name: STRONG[name]} if name in STRONG else {})
        augmentation = replace(data.sampler.augmentation, kinds=kinds)
        sampler = replace(data.sampler, augmentation=augmentation)
        blocks = Blocks(data.train, sampler, sampler.input, sampler.target)
        batches = Batches(blocks, BATCH_SIZE, 0, torch.device("cpu"))
        streams[name] = batches.between(0, 10**9)
    least = dict.fromkeys(streams, float("inf"))
    for _ in range(rounds):
        for name, stream in streams.items():
            least[name] = min(least[name], cpu_time_of(stream, seconds))
    rows = []
    for name, taken in least.items():
        ratio = taken / least["none"]
        rows.append(f"{name:<20}{taken * 1000:>12.1f}{ratio:>8.2f}")
    return rows


def cpu_time_of(batches: Iterator, seconds: float) -> float:
    """Return the processor seconds of a sample, which other load changes little."""
    next(batches)
    samples = 0
    start = time.process_time()
    while time.process_time() - start < seconds:
        next(batches)
        samples += BATCH_SIZE
    return (time.process_time() - start) / samples


def rate_of(batches: Iterator, device: str, seconds: float) -> float:
    """Return samples per second, after one batch to warm up."""
    next(batches)
    finish(device)
    samples = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(batches)
        samples += BATCH_SIZE
    finish(device)
    return samples / (time.perf_counter() - start)


def finish(device: str) -> None:
    """Wait until a GPU has done its work, so that the work is timed and not its launch."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory_gb() -> float:
    """Return the peak resident memory of this process since it began to run this program."""
    # not getrusage, which counts what its parent had before
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1e6
    return float("nan")


def in_process(loader: str, csv: Path, case: Case, *, device: str, seconds: float) -> Speed:
    """Run `measure` in a process of its own."""
    words = [loader, csv, json.dumps(asdict(case)), device, seconds]
    return Speed(**in_own_process(__file__, "--measure", *words, OMP_NUM_THREADS="1"))


def compare(csv: Path, case: Case, options: argparse.Namespace) -> str:
    """Return a row of the table: the best of several rounds, the two loaders in turn."""
    rate = dict.fromkeys(LOADERS, 0.0)
    memory = dict.fromkeys(LOADERS, 0.0)
    for _ in range(options.rounds):
        for loader in LOADERS:
            speed = in_process(loader, csv, case, device=options.device, seconds=options.seconds)
            rate[loader] = max(rate[loader], speed.rate)
            memory[loader] = max(memory[loader], speed.memory)
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
    parser.add_argument("--augmentations", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        loader, csv, words, device, seconds = options.measure
        case = Case(**json.loads(words))
        speed = measure(loader, Path(csv), case, device=device, seconds=float(seconds))
        print(json.dumps(asdict(speed)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        from bench.reference import write_crops

        csv = write_crops(options.data or scratch)
        if options.augmentations:
            for case in CASES:
                print(f"{case}\n{'kind':<20}{'ms a sample':>12}{'ratio':>8}")
                rows = cost_of_augmentations(csv, case, options.seconds, options.rounds)
                print("\n".join(rows))
            return
        head = f"{'patch':<12}{'rotation':<10}{'cellmap-data':>14}{'ours':>12}{'ratio':>8}"
        head += f"{'GB':>8}{'GB ours':>9}"
        print(f"{head}   (samples/s, best of {options.rounds})")
        for case in CASES:
            print(compare(csv, case, options))


if __name__ == "__main__":
    main()

"""Reading a volume: zarr 2, by which zarr v2 on this disk is read, against tensorstore.

    python bench/io.py [--volume GROUP] [--edge 512] [--rounds 3]
    python bench/io.py --crop RAW CROP [--rounds 3]

Two ways of reading: blocks of a prediction (160^3 voxels of raw, of which the outer 16 are context,
so that neighbours share them), and a crop being decoded (blocks of 128^3 of labels, side by side).
Each is read cold (the system was told to forget the files) and warm, by both in turn, in one
process; tensorstore without a cache of chunks and with one of 256 MB. Without --volume a drawn
volume is written, in chunks of 64^3 and 128^3, zstd. Ratios are medians over rounds of pairs; both
read the same voxels, which is checked.

With --crop a crop of the challenge's layout is decoded as training does it, and its labels are read
alone by both, in turn: which part of decoding is reading, and so what a faster reader could save.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CONTEXT = 16
BLOCK = 160
CROP_BLOCK = 128
CACHE_BYTES = 2**28

Box = tuple[slice, ...]
Read = Callable[[Box], np.ndarray]


@dataclass(frozen=True)
class Cost:
    """Time for reading all boxes once, s."""

    wall: float
    cpu: float


def boxes(shape: tuple[int, ...], edge: int, step: int) -> Iterator[Box]:
    """Yield boxes of an edge, a step apart, cut off at the ends of the volume."""
    for corner in itertools.product(*(range(0, n, step) for n in shape)):
        ends = [min(a + edge, n) for a, n in zip(corner, shape, strict=True)]
        yield tuple(slice(a, b) for a, b in zip(corner, ends, strict=True))


def forget(folder: Path) -> None:
    """Make the system drop its cache of the files of a folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def by_zarr(folder: Path) -> Read:
    import zarr

    array = zarr.open_array(str(folder), mode="r")
    return lambda box: array[box]


def by_tensorstore(folder: Path, cache: int) -> Read:
    import tensorstore

    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(folder)},
        "recheck_cached_data": "open",
    }
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": cache}})
    array = tensorstore.open(spec, open=True, read=True, context=context).result()
    return lambda box: array[box].read().result()


def cost_of(read: Read, wanted: list[Box]) -> Cost:
    wall = time.perf_counter()
    cpu = time.process_time()
    for box in wanted:
        read(box)
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


WAYS: dict[str, Callable[[Path], Read]] = {
    "zarr": by_zarr,
    "tensorstore": lambda folder: by_tensorstore(folder, 0),
    "tensorstore, cache": lambda folder: by_tensorstore(folder, CACHE_BYTES),
}


def compare(name: str, folder: Path, wanted: list[Box], rounds: int) -> None:
    """Print a line for each way and state."""
    reads = [make(folder)(wanted[0]) for make in WAYS.values()]
    assert all((read == reads[0]).all() for read in reads)
    for state in ("cold", "warm"):
        costs: dict[str, list[Cost]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, make in WAYS.items():
                read = make(folder)  # anew, so that no cache is full
                if state == "cold":
                    forget(folder)
                costs[way].append(cost_of(read, wanted))
        for way, of_way in costs.items():
            if way == "zarr":
                continue
            pairs = list(zip(costs["zarr"], of_way, strict=True))
            wall = statistics.median(cost.wall / other.wall for cost, other in pairs)
            cpu = statistics.median(cost.cpu / other.cpu for cost, other in pairs)
            print(f"| {name} | {state} | {way} | {wall:.2f} | {cpu:.2f} |", flush=True)


def drawn(folder: Path, edge: int, chunk: int, labels: bool) -> Path:
    """Write a volume that packs about as well as EM, or as labels; returns its array."""
    from common.data.volumes.ngff import write_multiscale

    random = np.random.default_rng(0)
    coarse = random.normal(128, 40, (edge // 8 + 1,) * 3)
    smooth = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)[:edge, :edge, :edge]
    if labels:
        volume = (smooth > 150).astype(np.uint8)
    else:
        noise = random.normal(0, 12, (edge,) * 3).astype(np.float32)
        volume = (smooth + noise).clip(1, 255).astype(np.uint8)
    write_multiscale(folder, volume, (8, 8, 8), chunk=chunk)
    return folder / "s0"


def decoding(raw: Path, crop: Path) -> Callable[[Path], None]:
    """Return a function that decodes all classes of a crop, with little raw around them."""
    from common.data.crops.cache import CropCache
    from common.data.crops.decode import decode
    from common.data.crops.plan import CropRequest, plan_decoding
    from common.data.splits.split import Row
    from common.data.volumes.ngff import open_levels

    names = tuple(sorted(folder.name for folder in crop.iterdir() if folder.name[0] != "."))
    scale = open_levels(crop / names[0])[0].scale
    request = CropRequest(
        classes=names,
        input_scale=scale,
        target_scale=scale,
        patch_nm=8 * scale,
        margins_nm={"train": 8 * scale},
    )
    row = Row("train", raw, crop, names)
    return lambda folder: decode(plan_decoding(row, request), CropCache(folder, 16))


def share(raw: Path, crop: Path, rounds: int) -> None:
    """Print how much CPU time decoding a crop takes, and reading its labels alone."""
    decode = decoding(raw, crop)
    arrays = sorted(crop.glob("*/s0"))
    shape = by_zarr(arrays[0])(()).shape
    wanted = list(boxes(shape, CROP_BLOCK, CROP_BLOCK))
    ways = {way: WAYS[way] for way in ("zarr", "tensorstore")}
    seconds: dict[str, list[float]] = {"decode": [], **{way: [] for way in ways}}
    for _ in range(rounds + 1):  # the first one warms up
        with tempfile.TemporaryDirectory() as scratch:
            start = time.process_time()
            decode(Path(scratch) / "crops")
            seconds["decode"].append(time.process_time() - start)
        for way, make in ways.items():
            costs = [cost_of(make(array), wanted) for array in arrays]
            seconds[way].append(sum(cost.cpu for cost in costs))
    print(f"{crop}: {len(arrays)} classes, {' x '.join(map(str, shape))} voxels")
    medians = {task: statistics.median(times[1:]) for task, times in seconds.items()}
    for task, median in medians.items():
        print(f"| {task} | {median:.2f} s of CPU | {median / medians['decode']:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volume", type=Path, help="A group of zarr v2 instead of drawn ones.")
    parser.add_argument("--crop", type=Path, nargs=2, metavar=("RAW", "CROP"))
    parser.add_argument("--edge", type=int, default=512, help="Of what is read, voxels.")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.crop:
        share(*options.crop, options.rounds)
        return
    print("times that zarr takes, of what tensorstore takes (above 1: tensorstore is faster)")
    print("| what | files | way | wall | CPU |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        cases = {}
        if options.volume:
            from common.data.volumes.ngff import open_levels

            cases["predict"] = open_levels(options.volume)[0].path
        else:
            for chunk in (64, 128):
                name = f"predict, chunks of {chunk}"
                cases[name] = drawn(Path(scratch) / f"raw{chunk}", options.edge, chunk, False)
            cases["decode labels"] = drawn(Path(scratch) / "labels", options.edge, 64, True)
        for name, folder in cases.items():
            shape = (options.edge,) * 3
            if name.startswith("predict"):
                wanted = list(boxes(shape, BLOCK, BLOCK - 2 * CONTEXT))
            else:
                wanted = list(boxes(shape, CROP_BLOCK, CROP_BLOCK))
            compare(name, folder, wanted, options.rounds)


if __name__ == "__main__":
    main()

"""Measure what writing a prediction costs a class in processor time, without the network.

    python bench/write.py [--edges 128 256] [--classes 8]
    python bench/write.py --crop 64 [--classes 48]

A block of unet8 with random weights is computed once for both kinds of output of
`bench/predict.py`; a larger block is that one again and again. Then it is written, by the clock of
all threads of this process. A chunk of 128^3 voxels takes: "encode" its codec alone, "zarr" an
assignment to the array, "ours" what `predict` does instead, "halves" the next coarser level, halved
and written. All in turn, medians over classes and rounds. "begin" and "finish" are what a class of
eight such blocks costs at its beginning and its end; with --crop only these, of a class of one
block.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import zarr
from numcodecs import blosc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.predict import OUTPUTS, Case, prepare, write_checkpoints
from common.data.volumes.ngff import slices
from common.infer.predict import Output
from common.infer.predicting import sizes, work, writer

EDGE = 128
"""Edge of the computed block, and of a chunk, in voxels."""

ORIGIN = np.zeros(3, int)


def milliseconds(function: Callable[[], object]) -> float:
    """Return the milliseconds of all threads for a call."""
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start)


def begin(case: Case, folder: Path) -> tuple[work.Work, float]:
    """Begin a prediction; return it, and the milliseconds that its files took."""
    config, network, region = prepare(case)
    output = Output(block=case.block)
    plan = sizes.make_plan(network, config, region, output)
    assert plan.block_shape == (case.block,) * 3
    start = time.process_time()
    job = work.begin(network, region, plan, output, folder=folder, classes=config.classes)
    return job, 1e3 * (time.process_time() - start)


def one_block(case: Case) -> np.ndarray:
    """Return (classes, z, y, x) uint8: what is stored of the first block."""
    with tempfile.TemporaryDirectory() as folder:
        job, _ = begin(case, Path(folder) / "box")
        return next(iter(work._computed(job))).values


def of_block(volume: writer.ClassVolume, block: np.ndarray) -> dict[str, float]:
    """Return milliseconds for a chunk of 128^3 voxels by way of writing."""
    ours = volume.levels[0]
    array = zarr.open_array(str(ours.folder), mode="r+", write_empty_chunks=False)
    corners = [np.array(corner) * EDGE for corner in np.ndindex(*(np.array(block.shape) // EDGE))]
    chunks = [np.ascontiguousarray(block[slices(at, at + EDGE)]) for at in corners]

    def encode() -> None:
        for chunk in chunks:
            array.compressor.encode(chunk)

    def by_zarr() -> None:
        array[slices(ORIGIN, block.shape)] = block

    def halves() -> None:
        volume.levels[1].put(ORIGIN, writer._reduced(block, (2, 2, 2)))

    milliseconds_of = {
        "encode": milliseconds(encode),
        "zarr": milliseconds(by_zarr),
        "ours": milliseconds(lambda: ours.put(ORIGIN, block)),
        "halves": milliseconds(halves),
    }
    return {name: took / len(chunks) for name, took in milliseconds_of.items()}


def measure(case: Case, block: np.ndarray, rounds: int) -> dict[str, float]:
    """Return milliseconds by part of the work. block: (classes, z, y, x) of the case's edge."""
    with tempfile.TemporaryDirectory() as folder:
        job, begun = begin(case, Path(folder) / "box")
        volumes = job.volumes
        rows = []
        for _ in range(rounds):
            for volume, values in zip(volumes, block, strict=True):
                rows.append(of_block(volume, values))
        medians = {}
        for name in rows[0]:
            medians[name] = float(np.median([row[name] for row in rows]))
        medians["begin"] = begun / len(volumes)
        for volume, values in zip(volumes, block, strict=True):
            for number in job.plan.blocks:
                volume.write(number, job.plan.output_box(number)[0], values)
        medians["finish"] = float(np.median([milliseconds(volume.finish) for volume in volumes]))
    return medians


def of_crop(case: Case) -> dict[str, float]:
    """Return the milliseconds a class at the beginning and at the end of a box of one block."""
    with tempfile.TemporaryDirectory() as folder:
        job, begun = begin(case, Path(folder) / "box")
        values = np.random.default_rng(0).integers(0, 256, (case.side,) * 3, np.uint8)
        for volume in job.volumes:
            volume.write(job.plan.blocks[0], ORIGIN, values)
        finished = milliseconds(lambda: work.finish(job))
    return {"begin": begun / len(job.volumes), "finish": finished / len(job.volumes)}


def print_crop(case: Case) -> None:
    """Print the medians of the rounds, without a first one."""
    rows = [of_crop(case) for _ in range(1 + case.rounds)][1:]
    for name in rows[0]:
        print(f"{name:<8}{np.median([row[name] for row in rows]):>6.2f} ms a class")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each kind of output and edge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edges", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--crop", type=int, help="edge of a small box in voxels")
    options = parser.parse_args(arguments)
    # as it is in the threads of `predict`
    blosc.use_threads = False
    heads: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoints(Path(folder), options.classes)
        others = {"rounds": options.rounds, "classes": options.classes}
        if options.crop:
            print_crop(Case(folder, options.crop, "cpu", options.crop, OUTPUTS[0], **others))
            return
        for output in OUTPUTS:
            block = one_block(Case(folder, EDGE, "cpu", EDGE, output, **others))
            for edge in options.edges:
                case = Case(folder, 2 * edge, "cpu", edge, output, **others)
                repeated = np.tile(block, (1, *3 * [edge // EDGE]))
                row = measure(case, repeated, options.rounds)
                if not heads:
                    heads = [f"{name:>15}" for name in row]
                    print(f"{'output':<12}{'block':>6}" + "".join(heads))
                figures = "".join(f"{took:>15.2f}" for took in row.values())
                print(f"{output:<12}{edge:>6}{figures}", flush=True)


if __name__ == "__main__":
    main()

"""Measure what a patch shape costs an experiment: computation, memory, and annotated fraction.

    python bench/patch.py unet8_all [--shapes 68,92,116] [--time fp32,bf16]

A target patch that is larger than a crop is unknown outside of it, and a small one is mostly
border. So what counts is computation for each *known* voxel: forward and backward pass over the
voxels of a target patch, divided by the part of them that lies in a crop of the experiment's
split, at random places and orientations as training draws them. Extents of crops are those of the
challenge's table; nothing is downloaded.

"GB" is what a step takes for one patch in float32, see `common.model.shapes.Shapes`. `--time` also
takes steps of one patch on a CPU, and gives seconds for a million target voxels and the peak memory
of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.side_by_side import in_own_process
from common.config.load import load_config
from common.config.settings import TrainConfig
from common.data.samples.sampling import draw_orientation, generator
from common.data.splits import catalogue, split
from common.model.build import build_model
from common.model.forward import ForwardPass
from common.model.shapes import OnMeta, Shapes
from common.runtime import pick_precision, seed_everything

POINTS = 2000
"""Number of random points of a target patch that are looked up."""

PLACES = 4
"""Number of random places and orientations of a patch in each crop."""


def crop_extents(config: TrainConfig) -> list[np.ndarray]:
    """Return the extent (3,) in nm of each training crop."""
    table = {crop.key: crop for crop in catalogue.read_crop_table()}
    extents = []
    for row in split.read_datasplit(config.path("datasplit_path"), config.path("data_path")):
        if row.usage == "train":
            crop = table[row.key]
            extents.append(np.multiply(crop.voxel_size, crop.shape))
    return extents


def known_fraction(config: TrainConfig, shape: Sequence[int], extents: list[np.ndarray]) -> float:
    """Return the fraction of a target patch that lies in its crop, the mean over crops."""
    patch = np.multiply(shape, config.target_array_info["scale"])
    fractions = []
    for number, extent in enumerate(extents):
        random = generator(0, number)
        # as common.data.samples.sampling.Sampler places patches anywhere in a crop
        first = np.minimum(patch / 2, extent - patch / 2)
        last = np.maximum(patch / 2, extent - patch / 2)
        lower = np.maximum(0, first)
        upper = np.minimum(extent, last)
        for _ in range(PLACES):
            orientation, _ = draw_orientation(random, config.spatial_transforms)
            centre = lower + random.random(3) * (upper - lower)
            offsets = (random.random((POINTS, 3)) - 0.5) * patch
            points = centre + offsets @ orientation.T
            fractions.append(((points >= 0) & (points < extent)).all(axis=1).mean())
    return float(np.mean(fractions))


def flop(model: torch.nn.Module, shape: Sequence[int]) -> int:
    """Return the floating-point operations of a forward and a backward pass over one patch."""
    on_meta = OnMeta(model)
    with FlopCounterMode(display=False) as counter:
        on_meta(torch.empty(1, 1, *shape, device="meta")).sum().backward()
    return counter.get_total_flops()


def timed(config: TrainConfig, shape: Sequence[int], precision: str) -> tuple[float, float]:
    """Return seconds of a forward and a backward pass over one patch, and peak memory in GB."""
    seed_everything(0)
    device = torch.device("cpu")
    model = build_model(config, device)
    forward = ForwardPass(pick_precision(precision, device), config.channels_last)
    raw = torch.rand(1, 1, *shape)
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        forward(model, raw).float().square().mean().backward()
        seconds.append(time.perf_counter() - begun)
    # KiB on Linux
    return min(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def in_process(args: argparse.Namespace, size: int, precision: str) -> tuple[float, float]:
    """`timed` in a process of its own, whose peak memory is its own."""
    words = [args.experiment, "--set", *args.set, "--measure", size, precision]
    return in_own_process(__file__, *words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment")
    parser.add_argument("--shapes", default="", help="edges of the raw patch, such as 68,92")
    parser.add_argument("--time", default="", help="precisions to time, such as fp32,bf16")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = load_config(args.experiment, args.set)
    if args.measure:
        size, precision = args.measure
        print(json.dumps(timed(config, (int(size),) * 3, precision)))
        return
    sizes = [int(size) for size in args.shapes.split(",") if size]
    table(args, config, sizes or [config.input_array_info["shape"][0]])


def table(args: argparse.Namespace, config: TrainConfig, sizes: list[int]) -> None:
    """Print a row for each edge of the raw patch."""
    model = build_model(config, torch.device("cpu"))
    forward = ForwardPass(pick_precision("fp32", torch.device("cpu")), config.channels_last)
    shapes = Shapes(model, forward)
    extents = crop_extents(config)
    heads = ["raw", "target", "GFLOP", "border", "known", "MFLOP/target", "MFLOP/known", "GB"]
    precisions = [name for name in args.time.split(",") if name]
    for name in precisions:
        heads += [f"s/M {name}", f"peak GB {name}"]
    print("".join(f"{head:>14}" for head in heads))
    for size in sizes:
        target = shapes.output((size,) * 3)
        voxels = float(np.prod(target))
        operations = flop(model, (size,) * 3)
        known = known_fraction(config, target, extents)
        cells = [
            f"{size}",
            f"{target[0]}",
            f"{operations / 1e9:.1f}",
            f"{1 - voxels / size**3:.0%}",
        ]
        cells += [f"{known:.0%}", f"{operations / 1e6 / voxels:.2f}"]
        cells.append(f"{operations / 1e6 / voxels / known:.2f}")
        cells.append(f"{shapes.training_bytes((size,) * 3, 1) / 1e9:.2f}")
        for name in precisions:
            seconds, gigabytes = in_process(args, size, name)
            cells += [f"{seconds / voxels * 1e6:.1f}", f"{gigabytes:.2f}"]
        print("".join(f"{cell:>14}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()

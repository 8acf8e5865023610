"""Prediction end to end (read, compute, encode, compress, write, pyramid) against the bare network, and its memory.

    python bench/predict.py [--device cpu] [--quick]

unet8 with 48 classes and random weights on a volume of noise, in the precision of the config; uint8 probabilities. "bare" are forward
passes on the very blocks of the volume, in memory already. Both alternate in one process; the ratio is that of the medians, beside the
load that other work made. What output costs depends on how it compresses: once the output layer is as random as the rest, once it
gives the classes frequencies between 0.2 % and 27 %. Memory is the most that a fresh process held, for two volumes of which one has
8 times the voxels of the other, both larger than a block.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SIDES = {"cpu": 256, "cuda": 1024}
"""Voxels of the volume that speed is measured on, each axis."""


OUTPUTS = ("random", "background")
"""Of the network: of its random weights, or such that most of it is background."""


def settings(scratch: Path, device: str):
    """unet8_all, everything it writes in a scratch folder."""
    from common.config.load import load_config
    from common.files import REPOSITORY

    folders = {
        f"{name}_path": str(scratch / name)
        for name in ("model_save", "predictions", "cache", "data")
    }
    return load_config(REPOSITORY / "unet8_all", **folders, device=device)


def write_checkpoints(scratch: Path) -> None:
    """{output}.pt for both of OUTPUTS, as the trainer saves them."""
    from common import runtime
    from common.model import build
    from common.train import checkpoint, optim
    from common.train.steps import State

    config = settings(scratch, "cpu")
    runtime.seed_everything(0)
    model = build.build_model(config, torch.device("cpu"))
    state = State(
        model,
        optim.build_optimizer(model, 1e-4, 0.0, None),
        None,
        runtime.Precision("fp32", "cpu").scaler(),
    )
    for output in OUTPUTS:
        if output == "background":
            optim.start_output_at(model, np.linspace(-6, -1, len(config.classes)))
            with torch.no_grad():
                for module in model.modules():
                    if isinstance(module, torch.nn.Conv3d) and module.out_channels == len(
                        config.classes
                    ):
                        module.weight.mul_(30)
        checkpoint.save_state(config, state, "none", output)


def write_volume(path: Path, side: int) -> None:
    """uint8 noise at 8 nm."""
    from common.data import ngff
    from common.data.ngff import Grid

    grid = Grid(np.zeros(3), np.full(3, 8.0), (side,) * 3)
    array, random = (
        ngff.start_multiscale(path, grid, np.uint8, (128,) * 3),
        np.random.default_rng(0),
    )
    for z in range(0, side, 128):
        array[z : z + 128] = random.integers(1, 256, array[z : z + 128].shape, np.uint8)
    ngff.finish_multiscale(path, grid, (), ngff.block_mean)


def prepare(scratch: Path, side: int, device: str, output: str):
    """Config, network and region."""
    from common.data import regions
    from common.infer import predict

    config = settings(scratch, device)
    path = scratch / f"noise{side}.zarr"
    if not path.is_dir():
        write_volume(path, side)
    return (
        config,
        predict.load_network(config, str(scratch / "model_save" / f"{output}.pt")),
        regions.of_volume(path),
    )


def predicted(config, network, region, block: int) -> float:
    """Seconds that a whole prediction takes."""
    from common.infer import predict

    shutil.rmtree(config.path("predictions_path"), ignore_errors=True)
    begun = time.perf_counter()
    output = predict.Output(block=block)
    predict.predict_region(network, config, region, config.classes, output=output)
    return time.perf_counter() - begun


def bare(network, blocks: list[torch.Tensor]) -> float:
    """Seconds of the forward passes alone."""
    begun = time.perf_counter()
    with torch.inference_mode():
        for block in blocks:
            network.forward(block)
    if network.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def speed(scratch: Path, side: int, device: str, block: int, output: str, rounds: int) -> dict:
    """Voxels/s, end to end and bare, of alternating rounds after one that warms up and keeps the blocks."""
    config, network, region = prepare(scratch, side, device, output)
    blocks: list[torch.Tensor] = []

    def keep(raw: torch.Tensor) -> torch.Tensor:
        blocks.append(raw.clone())
        return network.forward(raw)

    predicted(config, replace(network, forward=keep), region, block)
    bare(network, blocks)
    times = [
        (predicted(config, network, region, block), bare(network, blocks)) for _ in range(rounds)
    ]
    ours, alone = (side**3 / np.median(seconds) for seconds in zip(*times, strict=True))
    stored = sum(path.stat().st_size for path in config.path("predictions_path").rglob("s0/*/*/*"))
    name = (
        torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    )
    return {
        "ours": ours,
        "bare": alone,
        "compressed": side**3 * len(config.classes) / stored,
        "load": os.getloadavg()[0],
        "windows": f"{len(blocks)} of {' x '.join(map(str, blocks[0].shape[2:]))}",
        "about": f"{name}, {network.record.precision}",
    }


def memory(scratch: Path, side: int, device: str, block: int, output: str) -> dict:
    """Peak of a process, GB."""
    from bench.loader import peak_memory_gb
    from common import runtime

    config, network, region = prepare(scratch, side, device, output)
    predicted(config, network, region, block)
    return {
        "host": peak_memory_gb(),
        "device": runtime.peak_memory_gb(network.device) if device == "cuda" else 0.0,
    }


def in_process(*arguments: object) -> dict:
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
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="a small volume, and memory with small blocks"
    )
    parser.add_argument("--measure", nargs=7)
    options = parser.parse_args()
    if options.measure:
        which, scratch, side, device, block, output, rounds = options.measure
        arguments = (Path(scratch), int(side), device, int(block), output)
        print(
            json.dumps(speed(*arguments, int(rounds)) if which == "speed" else memory(*arguments))
        )
        return
    side, rounds = (192, 2) if options.quick else (SIDES[options.device], options.rounds)
    small, block = (128, 64) if options.quick else (side, 0)
    with tempfile.TemporaryDirectory() as scratch:
        write_checkpoints(Path(scratch))
        found = {
            output: in_process("speed", scratch, side, options.device, 0, output, rounds)
            for output in OUTPUTS
        }
        held = [
            in_process("memory", scratch, n, options.device, block, "random", 1)
            for n in (small, 2 * small)
        ]
    about = found["random"]
    print(f"unet8, 48 classes, {side}^3 voxels in {about['windows']}, {about['about']}")
    print(f"{'output':<12}{'compressed':>11}{'Mvoxel/s':>10}{'bare':>8}{'ratio':>7}{'load':>7}")
    for output, row in found.items():
        rates = (
            f"{row['ours'] / 1e6:>10.3f}{row['bare'] / 1e6:>8.3f}{row['ours'] / row['bare']:>7.2f}"
        )
        print(f"{output:<12}{row['compressed']:>10.1f}x{rates}{row['load']:>7.1f}")
    for n, peak in zip((small, 2 * small), held, strict=True):
        device = f", of the device {peak['device']:.2f} GB" if options.device == "cuda" else ""
        print(f"peak memory for {n}^3 voxels: {peak['host']:.2f} GB{device}")


if __name__ == "__main__":
    main()

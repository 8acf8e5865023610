"""Prediction end to end against the bare network, and its memory.

    python bench/predict.py [--device cpu] [--classes 48] [--quick]

unet8 with random weights on a volume of noise, in the precision of the config; uint8
probabilities. End to end is read, compute, encode, compress, write and pyramid. "bare" are forward
passes on the very blocks of the volume, in memory already. Both alternate in one process; the ratio
is the median of the rounds', beside the load that other work made and the ratio of processor time,
which other work changes less. What output costs depends on how it
compresses: once the output layer is as random as the rest, once it gives the classes frequencies
between 0.2 % and 27 %. Memory is the most that a fresh process held, for two volumes that are both
larger than a block. Then where the time goes, by stage: in a prediction more, with clocks in it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.side_by_side import in_own_process
from bench.spent import clocks, table

SIDES = {"cpu": (256, 512), "cuda": (512, 768)}
"""Voxels along an edge of the volumes: of that for speed, and of a larger one for memory."""

BLOCKS = {"cpu": 128, "cuda": 256}
"""Edges of blocks in voxels: the largest that `predict` takes of itself."""

OUTPUTS = ("random", "background")
"""Outputs of the network: of random weights, or mostly background."""


@dataclass(frozen=True)
class Case:
    """The task of a measuring process."""

    scratch: str
    """Folder of whatever is written."""
    side: int
    """Voxels of the volume along each axis."""
    device: str
    block: int
    """Largest edge of a block; 0 is what the device takes."""
    output: str
    """One of OUTPUTS."""
    rounds: int
    classes: int
    """Number of classes, the first of unet8's."""
    codec: str = "zstd"
    """Setting predictions_codec."""


@dataclass(frozen=True)
class Cost:
    """Time that a part of the work took."""

    wall: float
    """Seconds."""
    processor: float
    """Seconds of all threads of this process."""


class Clock:
    """Measures time from its construction on."""

    def __init__(self) -> None:
        self.wall = time.perf_counter()
        self.processor = time.process_time()

    def cost(self) -> Cost:
        """Return the time so far."""
        return Cost(time.perf_counter() - self.wall, time.process_time() - self.processor)


def settings(scratch: Path, device: str, classes: int, codec: str = "zstd"):
    """unet8_all with its first classes, everything it writes in a scratch folder."""
    from common.config.load import load_config
    from common.files import REPOSITORY

    folders = {
        f"{name}_path": str(scratch / name)
        for name in ("model_save", "predictions", "cache", "data")
    }
    others = {"device": device, "predictions_codec": codec}
    config = load_config(REPOSITORY / "unet8_all", **folders, **others)
    return replace(config, classes=config.classes[:classes])


def write_checkpoints(scratch: Path, classes: int) -> None:
    """{output}.pt for both of OUTPUTS, as the trainer saves them."""
    from common import runtime
    from common.model import build
    from common.model.output_layers import start_output_at
    from common.train.checkpointing import checkpoint
    from common.train.optimising import optim
    from common.train.state import State

    config = settings(scratch, "cpu", classes)
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
            start_output_at(model, np.linspace(-6, -1, len(config.classes)))
            with torch.no_grad():
                for module in model.modules():
                    if isinstance(module, torch.nn.Conv3d) and module.out_channels == len(
                        config.classes
                    ):
                        module.weight.mul_(30)
        checkpoint.save_state(config, state, "none", output)


def write_volume(path: Path, side: int, voxel_size: float = 8) -> None:
    """uint8 noise, voxel size in nm."""
    from common.data.volumes import ngff
    from common.data.volumes.ngff import Grid

    grid = Grid(np.zeros(3), np.full(3, float(voxel_size)), (side,) * 3)
    array = ngff.start_multiscale(path, grid, np.uint8, (128,) * 3)
    random = np.random.default_rng(0)
    for z in range(0, side, 128):
        array[z : z + 128] = random.integers(1, 256, array[z : z + 128].shape, np.uint8)
    ngff.finish_multiscale(path, grid, (), ngff.block_mean)


def prepare(case: Case):
    """Config, network and region."""
    from common.data.splits import regions
    from common.infer.networks.ensemble import load_network

    scratch = Path(case.scratch)
    config = settings(scratch, case.device, case.classes, case.codec)
    path = scratch / f"noise{case.side}.zarr"
    if not path.is_dir():
        write_volume(path, case.side)
    network = load_network(config, str(scratch / "model_save" / f"{case.output}.pt"))
    return config, network, regions.of_volume(path)


def empty_files(folder: Path) -> None:
    """Give the space of all files of a folder back, and leave them there.

    ext4 without a journal, which virtual machines often have, looks at every file that was removed
    in the last minutes before it makes a new one: after a removal the next prediction would pay.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


def predicted(config, network, region, block: int) -> Cost:
    """Run a whole prediction in a new folder; return its time."""
    from common.infer import predict

    folder = config.path("predictions_path")
    folder.mkdir(exist_ok=True)
    empty_files(folder)
    of_round = replace(config, predictions_path=tempfile.mkdtemp(dir=folder))
    clock = Clock()
    call = predict.PredictCall(network, of_round, predict.Output(block=block))
    predict.predict_region(call, region, config.classes)
    return clock.cost()


def blocks_of(config, network, region, block: int) -> list[torch.Tensor]:
    """Predict once, and return the blocks of raw that went through the network."""
    blocks: list[torch.Tensor] = []

    def keep(raw: torch.Tensor) -> torch.Tensor:
        blocks.append(raw.clone())
        return network.forward(raw)

    predicted(config, replace(network, forward=keep), region, block)
    return blocks


def bare(network, blocks: list[torch.Tensor]) -> Cost:
    """Run the forward passes alone; return their time."""
    clock = Clock()
    with torch.inference_mode():
        for block in blocks:
            network.forward(block)
    if network.device.type == "cuda":
        torch.cuda.synchronize()
    return clock.cost()


def speed(case: Case) -> dict:
    """Measure voxels/s, end to end and of bare passes, in alternating rounds.

    A round before them warms up and keeps the blocks.
    """
    config, network, region = prepare(case)
    blocks = blocks_of(config, network, region, case.block)
    bare(network, blocks)
    whole = []
    passes = []
    for _ in range(case.rounds):
        whole.append(predicted(config, network, region, case.block))
        passes.append(bare(network, blocks))
    voxels = case.side**3
    with clocks(case.device) as spent:
        clocked = predicted(config, network, region, case.block)
    chunks = config.path("predictions_path").rglob("s0/*/*/*")
    stored = sum(path.stat().st_size for path in chunks)
    name = f"{torch.get_num_threads()} threads"
    if case.device == "cuda":
        name = torch.cuda.get_device_name()
    wall_of_passes = np.array([cost.wall for cost in passes])
    wall_of_all = np.array([cost.wall for cost in whole])
    processor_of_passes = np.array([cost.processor for cost in passes])
    processor_of_all = np.array([cost.processor for cost in whole])
    return {
        "ours": voxels / np.median(wall_of_all),
        "bare": voxels / np.median(wall_of_passes),
        "ratio": np.median(wall_of_passes / wall_of_all),
        "processor": np.median(processor_of_passes / processor_of_all),
        "compressed": voxels * len(config.classes) / stored,
        "load": os.getloadavg()[0],
        "windows": f"{len(blocks)} of {' x '.join(map(str, blocks[0].shape[2:]))}",
        "about": f"{name}, {network.record.precision}",
        "spent": spent.seconds,
        "wall": clocked.wall,
    }


def memory(case: Case) -> dict:
    """Return the peak memory of a prediction, GB."""
    from bench.loader import peak_memory_gb
    from common import runtime

    config, network, region = prepare(case)
    predicted(config, network, region, case.block)
    on_device = runtime.peak_memory_gb(network.device) if case.device == "cuda" else 0.0
    return {"host": peak_memory_gb(), "device": on_device}


def in_process(figures: str, case: Case) -> dict:
    """`speed` or `memory` of a case, in a process of its own."""
    return in_own_process(__file__, "--measure", figures, json.dumps(asdict(case)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--classes", type=int, default=48)
    parser.add_argument("--codec", choices=["zstd", "lz4"], default="zstd")
    parser.add_argument(
        "--quick", action="store_true", help="a small volume, and memory with small blocks"
    )
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print a line for each kind of output, and one for each peak of memory."""
    options = parse()
    if options.measure:
        figures, case = options.measure
        measure = speed if figures == "speed" else memory
        print(json.dumps(measure(Case(**json.loads(case)))))
        return
    sides = SIDES[options.device]
    block_of_memory = 0  # that of predict
    rounds = options.rounds
    if options.quick:
        sides = (192, 256)
        block_of_memory = 64
        rounds = 2
    side, larger = sides
    with tempfile.TemporaryDirectory() as scratch:
        write_checkpoints(Path(scratch), options.classes)
        case = Case(
            scratch,
            side,
            options.device,
            block=0,
            output="random",
            rounds=rounds,
            classes=options.classes,
            codec=options.codec,
        )
        speeds = {name: in_process("speed", replace(case, output=name)) for name in OUTPUTS}
        peaks = {}
        for edge in (128 if options.quick else side, larger):
            of_edge = replace(case, side=edge, block=block_of_memory, codec="zstd")
            peaks[edge] = in_process("memory", of_edge)
    print_speeds(speeds, f"unet8, {options.classes} classes, {side}^3 voxels")
    print()
    for edge, peak in peaks.items():
        device = f", of the device {peak['device']:.2f} GB" if options.device == "cuda" else ""
        print(f"peak memory for {edge}^3 voxels: {peak['host']:.2f} GB{device}")


def print_speeds(speeds: dict[str, dict], title: str) -> None:
    """The table of both kinds of output, and where the time of each goes, by stage."""
    about = speeds["random"]
    print(f"{title} in {about['windows']}, {about['about']}")
    heads = f"{'output':<12}{'compressed':>11}{'Mvoxel/s':>10}{'bare':>8}{'ratio':>7}"
    print(f"{heads}{'processor':>11}{'load':>7}")
    for output, row in speeds.items():
        rates = (
            f"{row['ours'] / 1e6:>10.3f}{row['bare'] / 1e6:>8.3f}{row['ratio']:>7.2f}"
            f"{row['processor']:>11.2f}"
        )
        print(f"{output:<12}{row['compressed']:>10.1f}x{rates}{row['load']:>7.1f}")
    for output, row in speeds.items():
        print(f"\nwhere the time goes, {output}:\n{table(row['spent'], row['wall'])}")


if __name__ == "__main__":
    main()

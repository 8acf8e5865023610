"""Test and measure this repository on a GPU, in one command of less than eight minutes.

    python bench/cuda.py [--json cuda.json]
    python bench/cuda.py --device cpu --quick [--experiments unet32_all]

First the tests marked `cuda`. Then each experiment, in a process of its own, with the network,
patch and batch of its folder and random weights, on drawn crops:

- training: samples/s of the trainer's epoch, of the same steps on one batch that is in memory
  already ("bare"), and the share of the time that it waits for data;
- prediction: voxels/s of a whole prediction with 48 classes, of the forward passes alone ("bare"),
  and below the table where the time of one goes, by stage (`bench/spent.py`);
- the most memory of the device that either took;
- the mean loss of the last tenth of some iterations from one start, in fp32 and in bf16, and the
  largest difference of one iteration.

`--quick` takes the smallest patches that the networks allow, and shows that all of this runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.side_by_side import REPOSITORY, in_own_process

EXPERIMENTS = ("unet8_all", "unet32_all", "unet128_all", "resenc8_all", "setup_04_all")

SMALLEST_PATCH = {
    "setup_04_all": (198, 12),
    "unet8_all": (44, 4),
    "unet32_all": (44, 4),
    "unet128_all": (44, 4),
    "resenc8_all": (32, 32),
}
"""Voxels of raw and of target along an edge, the least that a network takes."""

CLASSES = 48


@dataclass(frozen=True)
class Case:
    """The measurements of one experiment."""

    experiment: str
    device: str
    data: str
    """Folder of the drawn crops, at the experiment's voxel size."""
    seconds: float
    """Seconds of each measurement of training."""
    iterations: int
    """Iterations in each precision that is compared."""
    side: int
    """Voxels along an edge of the volume that is predicted."""
    quick: bool


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.child:
        print(json.dumps(measured(Case(**json.loads(options.child)))))
        return
    if options.device == "cuda":
        refuse_without_gpu()
    tests = run_tests()
    print(tests, flush=True)
    about = about_machine(options.device)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for experiment in options.experiments:
            figures = in_process(case_of(experiment, options, Path(scratch)))
            rows[experiment] = figures
            print(figures.get("problem", row(experiment, figures)), file=sys.stderr, flush=True)
            # after each: a lent GPU may be gone before the last
            if options.json:
                measured_so_far = {"about": about, "tests": tests, "experiments": rows}
                options.json.write_text(json.dumps(measured_so_far, indent=2) + "\n")
    print(table(rows, about))
    for experiment, figures in rows.items():
        if "predict" in figures:
            print(f"\n{experiment}, a prediction:\n{where_time_goes(figures['predict'])}")
    failed = [name for name, figures in rows.items() if "problem" in figures]
    if failed:
        raise SystemExit(f"failed, for the reasons above: {', '.join(failed)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each training measurement")
    parser.add_argument("--iterations", type=int, default=50, help="in fp32 and in bf16")
    parser.add_argument("--side", type=int, default=384, help="of the predicted volume, voxels")
    parser.add_argument("--json", type=Path, help="file that gets all figures")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds = min(options.seconds, 0.5)
        options.iterations = min(options.iterations, 3)
        options.side = min(options.side, 48)
    return options


def refuse_without_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here; write --device cpu --quick to try this")


def run_tests() -> str:
    """Last line of `pytest -m cuda`, where they pass or are skipped; stops otherwise.

    Of the files that have such tests: others may need packages that only `make test` installs.
    """
    files = [str(path) for path in sorted((REPOSITORY / "tests").rglob("test_*.py"))]
    files = [path for path in files if "mark.cuda" in Path(path).read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout[-4000:] + done.stderr[-2000:])
    return f"pytest -m cuda: {done.stdout.strip().splitlines()[-1]}"


def case_of(experiment: str, options: argparse.Namespace, scratch: Path) -> Case:
    """The case of an experiment; draws crops of its voxel size where there are none yet."""
    from bench.reference import write_crops
    from common.config.load import load_config

    config = load_config(REPOSITORY / experiment)
    voxel_size = config.target_array_info["scale"][0]
    patch = SMALLEST_PATCH[experiment][0] if options.quick else config.input_array_info["shape"][0]
    # as much raw as a patch takes around a crop of a few target patches
    raw_extent = patch + (16 if options.quick else 84)
    data = scratch / f"{raw_extent} of {voxel_size:g} nm"
    if not data.is_dir():
        extent = 36 if options.quick else 96
        write_crops(data, crops=1, extent=extent, raw_extent=raw_extent, voxel_size=voxel_size)
    # setup_04's network is tens of times as slow
    side = options.side // 2 if experiment == "setup_04_all" and not options.quick else options.side
    return Case(
        experiment=experiment,
        device=options.device,
        data=str(data),
        seconds=options.seconds,
        iterations=options.iterations,
        side=side,
        quick=options.quick,
    )


def in_process(case: Case) -> dict[str, Any]:
    """`measured`, in a process of its own; {"problem": its last words} if it fails."""
    try:
        return in_own_process(__file__, "--child", json.dumps(asdict(case)))
    except SystemExit as failed:
        return {"problem": str(failed)[-3000:]}


# In the process of one experiment


def measured(case: Case) -> dict[str, Any]:
    """Measure all figures of an experiment."""
    return {
        "train": training(case),
        "loss": {name: losses(case, name) for name in ("fp32", "bf16")},
        "predict": prediction(case),
    }


def settings(case: Case, **others: Any):
    """The experiment's configuration on the drawn crops, with random weights."""
    from common.config.load import load_config

    data = Path(case.data)
    written = {
        f"{name}_path": str(data / case.experiment / name) for name in ("model_save", "predictions")
    }
    if case.experiment == "setup_04_all":
        others["model_kwargs"] = {"freeze_backbone": True, "weights": "random"}
    if case.quick:
        raw, target = SMALLEST_PATCH[case.experiment]
        scale = load_config(REPOSITORY / case.experiment).target_array_info["scale"]
        others["input_array_info"] = {"shape": (raw,) * 3, "scale": scale}
        others["target_array_info"] = {"shape": (target,) * 3, "scale": scale}
        others["batch_size"] = 2
    return load_config(
        REPOSITORY / case.experiment,
        data_path=str(data),
        datasplit_path=str(data / "datasplit.csv"),
        cache_path=str(data / "cache"),
        num_workers=0 if case.device == "cpu" else 4,
        device=case.device,
        **written,
        **others,
    )


def training(case: Case) -> dict[str, float]:
    """Samples/s of the trainer and of the bare model, wait for data, GB of the device."""
    from bench.train import of_bare_model, of_trainer
    from common.train.setup import prepare

    setup, state = prepare(settings(case))
    ours = of_trainer(state, setup.method, setup.training_from(0), case.seconds)
    bare = of_bare_model(state, setup.method, setup.training_from(0), case.seconds)
    return {
        "samples": setup.config.batch_size,
        "ours": ours["rate"],
        "bare": bare["rate"],
        "wait": ours["wait"],
        "memory": most_memory_gb(setup.device),
    }


def losses(case: Case, precision: str) -> list[float]:
    """Return the loss of each iteration; start and batches are the same for each precision."""
    from common.train import steps
    from common.train.setup import prepare

    setup, state = prepare(settings(case, precision=precision))
    batches = setup.training_from(0)
    of_steps = []
    for _ in range(case.iterations):
        result = steps.step(state, setup.method, [next(batches)])
        of_steps.append(result.numbers.loss)
    return of_steps


def prediction(case: Case) -> dict[str, Any]:
    """Voxels/s end to end and of the forward passes, GB of the device, seconds by stage."""
    import torch

    from bench.predict import bare, blocks_of, predicted, write_volume
    from bench.spent import clocks
    from common.data.splits import regions
    from common.infer.networks.ensemble import load_network
    from common.train.checkpointing import checkpoint
    from common.train.setup import prepare

    config = settings(case)
    setup, state = prepare(config)
    checkpoint.save_state(config, state, setup.data.split_hash, "latest")
    del state
    if setup.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    network = load_network(config, "latest")
    volume = Path(case.data) / f"noise{case.side}.zarr"
    if not volume.is_dir():
        write_volume(volume, case.side, config.input_array_info["scale"][0])
    region = regions.of_volume(volume)
    blocks = blocks_of(config, network, region, 0)
    memory = most_memory_gb(setup.device)
    bare(network, blocks[:1])
    with clocks(setup.device.type) as spent:
        clocked = predicted(config, network, region, 0)
    voxels = case.side**3
    return {
        "voxels": voxels,
        "spent": spent.seconds,
        "wall": clocked.wall,
        "ours": voxels / predicted(config, network, region, 0).wall,
        "bare": voxels / bare(network, blocks).wall,
        "window": blocks[0].shape[-1],
        "memory": memory,
    }


def most_memory_gb(device) -> float:
    """Return peak memory in GB: of a GPU since the last reset, else of this process."""
    from bench.loader import peak_memory_gb
    from common import runtime

    return runtime.peak_memory_gb(device) if device.type == "cuda" else peak_memory_gb()


# The table


def about_machine(device: str) -> dict[str, str]:
    """Return device, torch version, commit and date."""
    import torch

    from common.provenance import provenance

    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    return {
        "device": name,
        "torch": torch.__version__,
        "commit": provenance(REPOSITORY).get("commit", "unknown"),
        "date": datetime.now(UTC).date().isoformat(),
    }


def where_time_goes(figures: dict[str, Any]) -> str:
    """Return the seconds of a prediction by stage. figures: what `prediction` returned."""
    from bench.spent import table as table_of_stages

    return table_of_stages(figures["spent"], figures["wall"])


HEADS = (
    "| experiment | train, samples/s | bare | ratio | data wait | GB "
    "| loss fp32 | bf16 | largest difference | predict, Mvoxel/s | bare | ratio | GB |"
)


def table(rows: dict[str, dict[str, Any]], about: dict[str, str]) -> str:
    """Return the table of all experiments in Markdown."""
    columns = HEADS.count("|") - 1
    lines = [", ".join(about.values()), HEADS, "|---" * columns + "|"]
    lines += [row(name, figures) for name, figures in rows.items()]
    return "\n".join(lines)


def row(name: str, figures: dict[str, Any]) -> str:
    """Return the line of one experiment in Markdown."""
    if "problem" in figures:
        return f"| {name} | failed |"
    train = figures["train"]
    fp32 = figures["loss"]["fp32"]
    bf16 = figures["loss"]["bf16"]
    predict = figures["predict"]
    difference = max(abs(a - b) for a, b in zip(fp32, bf16, strict=True))
    cells = [
        name,
        f"{train['ours']:.1f}",
        f"{train['bare']:.1f}",
        f"{train['ours'] / train['bare']:.2f}",
        f"{train['wait']:.1%}",
        f"{train['memory']:.1f}",
        f"{end_of(fp32):.4f}",
        f"{end_of(bf16):.4f}",
        f"{difference:.4f}",
        f"{predict['ours'] / 1e6:.2f}",
        f"{predict['bare'] / 1e6:.2f}",
        f"{predict['ours'] / predict['bare']:.2f}",
        f"{predict['memory']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def end_of(losses_of_steps: Sequence[float]) -> float:
    """Return the mean of the last tenth."""
    last = losses_of_steps[-max(1, len(losses_of_steps) // 10) :]
    return sum(last) / len(last)


if __name__ == "__main__":
    main()

"""Measure how well networks learn at equal wall time: ours, and five others, on the same crops.

    python bench/quality.py --data FOLDER [--dataset drosophila_vnc] [--minutes 2 5 10 15]
                            [--seeds 42 43 44] [--contestants new monai] [--isa avx2]
                            [--device cuda] [--json quality.json] [--plot quality.png]
    python bench/quality.py --quick

Prints IoU at probability 0.5 on the whole of the crops that validate, after each number of minutes
of training, and what was trained. Each contestant (see `bench/contestants.py`, `bench/peers.py`) is
a process of its own; on a CPU it has one core to itself, and as many run at once as there are
cores, the rest after them. On a GPU one runs at a time. The clock counts training alone: neither
imports, decoding and building, nor what is predicted and scored for the table. Where a learning
rate follows a schedule, it ends with the last minute. `--quick` takes some minutes, on tissue that
is drawn: it shows whether all of this works, not how good anything is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import side_by_side
from bench.side_by_side import REPOSITORY, Job, Outcome

CONTESTANTS = ("committed", "new", "monai", "cellmap", "nnunet", "nnunetv2", "sections")
ABOUT = {
    "committed": "the example as it was: LeibNetz, 92^3 -> 52^3 or alike, batch 1, RAdam",
    "new": "the example as it is",
    "sections": "the example with a 2-D network over three sections, the centre one as target",
    "monai": "BasicUNet, instance norm, Dice + BCE, two patches of 64^3 or as many voxels, AdamW",
    "cellmap": "cellmap-data and LeibNetz by the public toolbox's defaults, batch 1",
    "nnunet": "residual encoder, deep supervision, SGD with polynomial decay, Dice + BCE",
    "nnunetv2": "nnU-Net's own planner, trainer and augmentation; on a CPU a plan for 0.9 GB",
}
EXTRA = "pip install -e '.[bench,peers]'"

Runs = dict[str, list[dict[str, Any]]]
"""For each contestant the results of its seeds: {"seed": 42, "marks": [...], "objects": {...}}."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.child:
        side_by_side.child(options.child, measured)
        return
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            from bench.drawn import write_tissue

            options.data = str(write_tissue(Path(scratch) / "data"))
        report(options, compare(options, Path(scratch)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of_options()
    options = parser.parse_args(arguments)
    if not (options.data or options.quick or options.child):
        parser.error("--data: write the folder that holds the dataset, or --quick")
    if options.quick and options.dataset != "flyem_medulla":
        parser.error("--quick draws its own data; leave --dataset out")
    if "sections" in options.contestants and options.dataset != "drosophila_vnc":
        parser.error("--contestants sections is of --dataset drosophila_vnc; leave it out")
    usual_minutes = [0.1, 0.2] if options.quick else [2, 5, 10, 15]
    usual_seeds = [42] if options.quick else [42, 43, 44]
    options.minutes = sorted(options.minutes or usual_minutes)
    options.seeds = options.seeds or usual_seeds
    # now: the commit may be another one hours later
    options.machine = "" if options.child else machine()
    return options


def parser_of_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder that holds DATASET/DATASET.zarr")
    parser.add_argument(
        "--dataset", choices=["flyem_medulla", "drosophila_vnc"], default="flyem_medulla"
    )
    parser.add_argument("--minutes", type=float, nargs="+", help="default 2 5 10 15")
    parser.add_argument("--seeds", type=int, nargs="+", help="default 42 43 44")
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        default=CONTESTANTS[:-1],
        help="all but sections, which is of drosophila_vnc, unless given",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--isa", choices=["avx2"], default="", help="no newer instructions")
    parser.add_argument(
        "--at-once", type=int, default=0, help="processes; default: CPU cores, or 1"
    )
    parser.add_argument("--workers", type=int, default=0, help="of our trainer, that read patches")
    parser.add_argument("--json", type=Path, help="file that gets all figures")
    parser.add_argument("--plot", type=Path, help="PNG that gets the curves")
    parser.add_argument("--logs", type=Path, help="folder that keeps what each process wrote")
    parser.add_argument("--quick", action="store_true", help="seconds on drawn tissue")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


# In the parent


def compare(options: argparse.Namespace, scratch: Path) -> list[Outcome]:
    """Train and score every contestant with every seed."""
    jobs = []
    contestants = able(options)
    for seed in options.seeds:
        jobs += [job(options, scratch, name, seed) for name in contestants]
    return side_by_side.run_all(
        jobs, slots(options), isa=options.isa, logs=options.logs or scratch / "logs", tell=tell
    )


def slots(options: argparse.Namespace) -> list[side_by_side.Cores]:
    """Return the cores of each of the processes that run at once."""
    if options.device == "cpu":
        return side_by_side.share_cores(options.at_once, cores_of_job=1)
    return side_by_side.share_cores(options.at_once or 1)


def able(options: argparse.Namespace) -> list[str]:
    """Return the contestants whose packages are installed; print a line about the others."""
    from bench.contestants import NEEDS

    present = []
    for name in options.contestants:
        package = NEEDS.get(name)
        if package and importlib.util.find_spec(package) is None:
            print(f"{name} is left out: {package} is not installed; {EXTRA}")
        else:
            present.append(name)
    return present


def job(options: argparse.Namespace, scratch: Path, contestant: str, seed: int) -> Job:
    from bench.case import Case

    case = Case(
        contestant=contestant,
        dataset=options.dataset,
        data=str(Path(options.data).expanduser().absolute()),
        seed=seed,
        minutes=tuple(options.minutes),
        device=options.device,
        precision=options.precision,
        workers=options.workers,
        scratch=str(scratch),
        quick=options.quick,
    )
    return Job(f"{contestant}/seed{seed}", "bench/quality.py", asdict(case))


def tell(name: str, event: dict[str, Any]) -> None:
    """Print a line about an event of a running job."""
    if "iou" not in event:
        return
    figures = ", ".join(f"{name_of_class} {iou:.3f}" for name_of_class, iou in event["iou"].items())
    at = f"{event['seconds'] / 60:.1f} min, {event['steps']} steps"
    print(f"  {name}: {at}: IoU {figures}", file=sys.stderr, flush=True)


# In the child


def measured(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the scores of one contestant and seed at each mark, and those of objects at the end."""
    import torch

    from bench.case import Case
    from bench.contestants import CONTESTANTS as functions
    from bench.whole_crop import of_experiment, predict_crops, thresholded

    case = Case(**task | {"minutes": tuple(task["minutes"])})
    for minutes, snapshot in zip(
        sorted(case.minutes), functions[case.contestant](case), strict=True
    ):
        predicted = predict_crops(snapshot.config, snapshot.weights)
        yield {
            "minutes": minutes,
            "seconds": snapshot.seconds,
            "steps": snapshot.steps,
            "voxels": snapshot.voxels,
            "iou": predicted.iou(),
        }
    recipes = {
        "connected components": thresholded(snapshot.config),
        "process_config.py": of_experiment(REPOSITORY / "examples" / case.dataset),
    }
    yield {
        "objects": {how: predicted.objects(recipe) for how, recipe in recipes.items()},
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


# The tables


def report(options: argparse.Namespace, outcomes: Sequence[Outcome]) -> None:
    """Print the tables; write JSON and picture where they are wanted."""
    runs = by_contestant(outcomes)
    about = {
        "dataset": "drawn tissue" if options.quick else options.dataset,
        "minutes": options.minutes,
        "seeds": options.seeds,
        "conditions": conditions(options),
        "machine": options.machine,
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(f"\n{about['dataset']}: {about['conditions']}; {about['machine']}, {about['date']}\n")
    print("\n".join(curves_table(runs, options.minutes)))
    objects = objects_table(runs)
    if objects:
        print("\n" + "\n".join(objects))
    print()
    for name in runs:
        print(f"{name}: {ABOUT[name]}")
    print("\n".join(ended_early(runs)))
    failed = [outcome for outcome in outcomes if outcome.problem]
    problems = [f"{outcome.job.name} failed: {outcome.problem}" for outcome in failed]
    print("\n".join(problems))
    if options.json:
        content = about | {"contestants": runs, "problems": problems}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.plot and runs:
        from bench.curves import draw

        draw(runs, about, options.plot)
    if problems and not runs:
        raise SystemExit(1)


def by_contestant(outcomes: Sequence[Outcome]) -> Runs:
    """Group the results by contestant; seeds that failed are left out."""
    runs: Runs = {}
    for outcome in outcomes:
        if outcome.problem:
            continue
        *marks, last = outcome.events
        task = outcome.job.task
        measurement = {"seed": task["seed"], "marks": marks, **last}
        runs.setdefault(task["contestant"], []).append(measurement)
    return runs


def conditions(options: argparse.Namespace) -> str:
    """Return the conditions of the runs in words."""
    at_once = len(slots(options))
    words = [f"{options.device}, {options.precision}"]
    if options.device == "cpu":
        words.append(f"one core and thread each, {at_once} at once, the rest after them")
    else:
        words.append(f"{at_once} at once")
    if options.isa:
        words.append("AVX2 only (ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2)")
    return "; ".join(words)


def machine() -> str:
    """Return processor, torch version and commit in words."""
    from common.provenance import provenance

    versions = provenance(REPOSITORY)
    names = [platform.processor() or platform.machine()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    changed = " with changes" if versions.get("uncommitted_changes") == "True" else ""
    return f"{names[0]}, torch {versions['torch']}, commit {versions['commit'][:10]}{changed}"


def curves_table(runs: Runs, minutes: Sequence[float]) -> list[str]:
    """Return the lines of a Markdown table: one for each contestant and class."""
    heads = [f"{mark:g} min" for mark in minutes]
    lines = [
        f"| contestant | IoU of | {' | '.join(heads)} | steps | voxels of target |",
        "|---" * (4 + len(heads)) + "|",
    ]
    for contestant, seeds in runs.items():
        last = [seed["marks"][-1] for seed in seeds]
        steps = spread([mark["steps"] for mark in last], "{:.0f}")
        voxels = spread([mark["voxels"] / 1e6 for mark in last], "{:.1f}")
        for name in seeds[0]["marks"][0]["iou"]:
            cells = []
            for number in range(len(minutes)):
                values = [seed["marks"][number]["iou"][name] for seed in seeds]
                cells.append(spread(values, "{:.2f}"))
            lines.append(
                f"| {contestant} | {name} | {' | '.join(cells)} | {steps} | {voxels} million |"
            )
    return lines


def ended_early(runs: Runs) -> list[str]:
    """Return a sentence about each run that ended early, its steps faster than timed before."""
    lines = []
    for contestant, seeds in runs.items():
        for seed in seeds:
            last = seed["marks"][-1]
            trained = last["seconds"] / 60
            if trained < 0.97 * last["minutes"]:
                lines.append(
                    f"{contestant}/seed{seed['seed']}: trained for {trained:.1f} of "
                    f"{last['minutes']:g} min; its steps were timed as slower before"
                )
    return lines


def spread(values: Sequence[float], digits: str) -> str:
    """Return the mean, with the lowest and highest value if they differ, as text."""
    low, mean, high = (digits.format(f(values)) for f in (min, np.mean, max))
    return mean if low == high else f"{mean} ({low}-{high})"


def objects_table(runs: Runs) -> list[str]:
    """Return the lines of a Markdown table: a line for each contestant, class and way."""
    lines = []
    for contestant, seeds in runs.items():
        for how, classes in seeds[0]["objects"].items():
            for name in classes:
                cells = []
                for figure in ("score", "pq", "voi_split", "voi_merge"):
                    values = [seed["objects"][how][name][figure] for seed in seeds]
                    known = [value for value in values if value is not None]
                    cells.append(spread(known, "{:.2f}") if known else "-")
                lines.append(f"| {contestant} | {name} | {how} | {' | '.join(cells)} |")
    if not lines:
        return []
    head = "| contestant | objects of | made by | challenge score | PQ | VOI split | VOI merge |"
    return [head, "|---" * 7 + "|", *lines]


if __name__ == "__main__":
    main()

"""Measure what each setting gives: train an experiment as it is, and with each of some changes.

    python bench/ablate.py examples/flyem_medulla --data FOLDER --steps 200
        --set-each init_output_to_prior=False learning_rate=3e-3 "batch_size=2; learning_rate=4e-3"
        [--set optimizer=@torch.optim.AdamW] [--minutes 10] [--seeds 42 43] [--device cuda --jobs 4]

Prints IoU at probability 0.5 on the whole of the crops that validate, seconds a step, steps and
target voxels, for the experiment as it is ("as it is") and for each variant. A variant is a setting
as `--set` takes it, or several with ";" between them; "name=@package.module.thing" stands for a
Python object, such as a loss, an optimiser or a build_model. `--set` is for all variants alike.

Every run is as long in steps, in whole epochs, and its schedule with it; `--minutes` makes all as
long in time instead, by timing their steps before. Each is a process of its own on cores of its
own, `--jobs` at once; on a GPU they share it, so that seconds a step are for comparison alone. A
variant that fails has its reason in its row.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import side_by_side
from bench.quality import machine, spread
from bench.side_by_side import Job, Outcome

AS_IT_IS = "as it is"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.child:
        side_by_side.child(options.child, measured)
        return
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = side_by_side.run_all(
            jobs_of(options, Path(scratch)),
            side_by_side.share_cores(options.jobs, cores_of_job=options.threads),
            isa=options.isa,
            logs=options.logs or Path(scratch) / "logs",
            tell=tell,
        )
        report(options, outcomes)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", nargs="?", help="folder, or its train_config.py")
    parser.add_argument("--data", help="folder that holds the datasets")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=200, help="of every run; default 200")
    length.add_argument("--minutes", type=float, help="of training of every run, instead of steps")
    parser.add_argument("--set-each", nargs="+", default=[], metavar="VARIANT")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once; default 1")
    parser.add_argument("--threads", type=int, default=0, help="cores of each; default: all shared")
    parser.add_argument("--workers", type=int, default=0, help="of each, that read patches")
    parser.add_argument("--isa", choices=["avx2"], default="", help="no newer instructions")
    parser.add_argument("--json", type=Path, help="file that gets all figures")
    parser.add_argument("--logs", type=Path, help="folder that keeps what each run wrote")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not (options.experiment and options.data) and not options.child:
        parser.error("write the experiment's folder, and --data with that of the datasets")
    # now: the commit may be another one hours later
    options.machine = "" if options.child else machine()
    return options


# In the parent


def jobs_of(options: argparse.Namespace, scratch: Path) -> list[Job]:
    """A job for each variant and seed; all variants of a seed before the next seed."""
    jobs = []
    for seed in options.seeds:
        for number, variant in enumerate(variants(options)):
            task = {
                "experiment": str(Path(options.experiment).absolute()),
                "data": str(Path(options.data).expanduser().absolute()),
                "variant": variant,
                "overrides": options.set + settings_in(variant),
                "seed": seed,
                "steps": options.steps,
                "minutes": options.minutes,
                "device": options.device,
                "precision": options.precision,
                "workers": options.workers,
                "cache": str(scratch / "cache"),
                "folder": str(scratch / f"variant{number}-{seed}"),
            }
            jobs.append(Job(f"variant{number}-seed{seed}", "bench/ablate.py", task))
    return jobs


def variants(options: argparse.Namespace) -> list[str]:
    return [AS_IT_IS, *options.set_each]


def settings_in(variant: str) -> list[str]:
    """The settings that a variant changes, as `--set` takes them."""
    if variant == AS_IT_IS:
        return []
    return [part.strip() for part in variant.split(";")]


def tell(name: str, event: dict[str, Any]) -> None:
    """A line when a run is done."""
    figures = ", ".join(f"{label} {iou:.3f}" for label, iou in event.get("iou", {}).items())
    print(f"  {name}: {event.get('problem', figures)}", file=sys.stderr, flush=True)


def report(options: argparse.Namespace, outcomes: Sequence[Outcome]) -> None:
    """Print the table; write the JSON where it is wanted."""
    length = f"{options.minutes:g} min" if options.minutes else f"{options.steps} steps"
    about = {
        "experiment": options.experiment,
        "set": options.set,
        "length": length,
        "seeds": options.seeds,
        "device": f"{options.device}, {options.precision}, {options.jobs} at once",
        "machine": options.machine,
        "date": datetime.now(UTC).date().isoformat(),
    }
    common = f" with {'; '.join(options.set)}" if options.set else ""
    print(
        f"\n{options.experiment}{common}: {length}; {about['device']}; {about['machine']}, "
        f"{about['date']}\n"
    )
    print("\n".join(table(options, outcomes)))
    if options.json:
        runs = []
        for outcome in outcomes:
            result = {"problem": outcome.problem, "events": outcome.events}
            runs.append(outcome.job.task | result)
        options.json.write_text(json.dumps(about | {"runs": runs}, indent=1) + "\n")
    if all(outcome.problem for outcome in outcomes):
        raise SystemExit(1)


def table(options: argparse.Namespace, outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each variant, in Markdown: the mean over seeds, and the range."""
    done = [outcome.events[-1] for outcome in outcomes if not outcome.problem]
    classes = list(done[0]["iou"]) if done else []
    heads = [*(f"{name} IoU" for name in classes), "mean IoU", "s/step", "steps", "voxels"]
    lines = [f"| variant | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for variant in variants(options):
        of_variant = [outcome for outcome in outcomes if outcome.job.task["variant"] == variant]
        runs = [outcome.events[-1] for outcome in of_variant if not outcome.problem]
        problems = [outcome.problem for outcome in of_variant if outcome.problem]
        cells = figures_of(runs, classes) if runs else [""] * len(heads)
        # what failed is said in the row: of a table of twenty variants others are still worth it
        failed = f" failed: {'; '.join(dict.fromkeys(problems))}" if problems else ""
        name = f"`{variant}`" if variant != AS_IT_IS else variant
        lines.append(f"| {name}{failed.replace('|', '/')} | {' | '.join(cells)} |")
    return lines


def figures_of(runs: Sequence[dict[str, Any]], classes: Sequence[str]) -> list[str]:
    """Return the cells of a variant."""
    cells = []
    for name in classes:
        cells.append(spread([run["iou"][name] for run in runs], "{:.3f}"))
    means = [sum(run["iou"].values()) / len(run["iou"]) for run in runs]
    cells.append(spread(means, "{:.3f}"))
    cells.append(spread([run["seconds"] / max(run["steps"], 1) for run in runs], "{:.3f}"))
    cells.append(spread([run["steps"] for run in runs], "{:.0f}"))
    cells.append(spread([run["voxels"] / 1e6 for run in runs], "{:.1f} million"))
    return cells


# In the child


def measured(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The one event of a run: what it came to."""
    from bench import contestants
    from bench.case import settings_of_run
    from bench.whole_crop import predict_crops

    path = Path(task["experiment"])
    overrides, objects = with_objects(task["overrides"])
    settings = settings_of_run(
        Path(task["folder"]),
        data_path=task["data"],
        cache_path=task["cache"],
        random_seed=task["seed"],
        device=task["device"],
        precision=task["precision"],
        num_workers=task["workers"],
        **objects,
    )
    if task["minutes"]:
        seconds = 60 * task["minutes"]
        [snapshot] = contestants.ours(path, settings, [seconds], overrides)
    else:
        [snapshot] = contestants.for_steps(path, settings, task["steps"], overrides)
    yield {
        "iou": predict_crops(snapshot.config, snapshot.weights).iou(),
        "seconds": snapshot.seconds,
        "steps": snapshot.steps,
        "voxels": snapshot.voxels,
    }


def with_objects(overrides: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the overrides that are text, and the objects of "name=@package.module.object"."""
    from common.errors import UserError

    texts = []
    objects = {}
    for override in overrides:
        name, _, value = override.partition("=")
        if not value.startswith("@"):
            texts.append(override)
            continue
        module, _, attribute = value[1:].rpartition(".")
        try:
            objects[name] = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"{override}: {error}; write {name}=@package.module.thing of what can be imported"
            ) from error
    return texts, objects


if __name__ == "__main__":
    main()

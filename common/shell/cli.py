"""Arguments in, one sentence out when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from common.errors import UserError


def _dashes(name: str) -> str:
    """Commands and options are found with - and with _."""
    return name.replace("_", "-")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _dashes}
)
def cli() -> None:
    """Baselines of the CellMap Segmentation Challenge."""


@cli.command()
@click.argument("config_path")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Override a setting; NAME.KEY=VALUE inside a dict. Repeatable.",
)
@click.option(
    "--overrides",
    "override_file",
    metavar="FILE",
    help="NAME=VALUE lines, such as best_settings.txt of a search.",
)
@click.option("--data", metavar="FOLDER", help="Data root that the datasplit's paths start from.")
@click.option(
    "--seeds",
    metavar="LIST",
    help="Train one run for each seed, one after the other: 1,2,3 or 1-3.",
)
@click.option(
    "--submit",
    metavar="TEMPLATE",
    help="With --seeds: run this command for each instead, {command} and {seed} filled in, such as 'bsub -gpu num=1 {command}'.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Dry run: read everything, take a few steps, report shapes, memory and time, keep nothing.",
)
def train(
    config_path: str,
    overrides: tuple[str, ...],
    override_file: str | None,
    data: str | None,
    seeds: str | None,
    submit: str | None,
    check: bool,
) -> None:
    """Train the experiment of CONFIG_PATH (train_config.py or its folder), or go on where it stopped."""
    import common.train.check
    import common.train.run
    from common.config import load
    from common.train import seeds as several

    if override_file:
        overrides = (*load.read_overrides(override_file), *overrides)
    if submit and not seeds:
        raise UserError("--submit is for several runs; write --seeds 1,2,3 too")
    if check:
        click.echo(common.train.check.check(config_path, overrides, data))
    elif submit:
        several.submit(
            config_path, several.parse_seeds(seeds), submit, overrides=overrides, data=data
        )
    elif seeds:
        results = several.train_seeds(config_path, several.parse_seeds(seeds), overrides, data)
        if not all(result.finished for result in results):
            sys.exit(130)
    elif not common.train.run.train(config_path, overrides, data).finished:
        sys.exit(130)


@cli.command()
@click.argument("config_path")
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="In all, those of earlier calls and other processes included.",
)
@click.option(
    "--prune-after", type=int, default=4, show_default=True, help="Trials that are never pruned."
)
@click.option(
    "--prune-epochs",
    type=int,
    default=1,
    show_default=True,
    help="Epochs of a trial before it can be pruned.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Override a setting of train_config.py.",
)
@click.option("--data", metavar="FOLDER", help="Data root that the datasplit's paths start from.")
def search(config_path: str, **options: Any) -> None:
    """Search the space that search_space.py of CONFIG_PATH declares; each trial is an ordinary run."""
    import common.train.search

    if common.train.search.search(config_path, **_given(options)) is None:
        sys.exit(130)


@cli.command()
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--metric",
    type=click.Choice(["score", "dice", "iou", "precision", "recall"]),
    help="The score where all runs have it, else their best_metric.",
)
@click.option(
    "--group-seeds",
    is_flag=True,
    help="Runs that differ in their seed alone are one: mean and spread.",
)
@click.option("--png", metavar="FILE", help="Write the curves.")
@click.option(
    "--root", metavar="FOLDER", help="Where the experiments are; this repository unless given."
)
def compare(names: tuple[str, ...], **options: Any) -> None:
    """Which of these runs is better, by how much, and is it more than chance? NAMES as in TensorBoard, or folders."""
    import common.runs.compare

    common.runs.compare.compare(names, **_given(options), say=click.echo)


@cli.command()
@click.argument("experiments", nargs=-1)
@click.option("--output", "-o", default="report.html", show_default=True, metavar="FILE")
@click.option(
    "--root", metavar="FOLDER", help="Where the experiments are; this repository unless given."
)
def report(experiments: tuple[str, ...], **options: Any) -> None:
    """One HTML page of all runs of EXPERIMENTS, or of all experiments: results, curves, pictures, settings."""
    import common.runs.report

    click.echo(common.runs.report.report(experiments, **_given(options), say=click.echo))


@cli.command()
@click.argument("name")
@click.option(
    "--from", "source", required=True, metavar="EXPERIMENT", help="The experiment to copy."
)
def new(name: str, source: str) -> None:
    """Copy an experiment to NAME, ready to train."""
    import common.shell.new

    folder = common.shell.new.new(name, source)
    click.echo(f"{folder}\n{common.shell.new.next_command(folder)}")


@cli.command()
@click.argument("config_path", required=False)
@click.option("--data", metavar="FOLDER", help="Data root to look at.")
def doctor(config_path: str | None, data: str | None) -> None:
    """What this machine has, what is missing, and the command that mends it. Exit code 1 if training would not start."""
    import common.shell.doctor

    findings = common.shell.doctor.doctor(config_path, data)
    click.echo(common.shell.doctor.report(findings))
    sys.exit(0 if common.shell.doctor.is_well(findings) else 1)


def _boxes(command: Callable) -> Callable:
    """The options of the commands that work on boxes of volumes."""
    options = (
        click.argument("config_path"),
        click.option(
            "--crops",
            "-c",
            default="validate",
            show_default=True,
            help="Comma-separated: validate, train, test, * or crops such as 28, crop28, jrc_hela-2/crop28.",
        ),
        click.option("--volume", metavar="GROUP", help="An OME-NGFF group instead of crops."),
        click.option(
            "--roi",
            metavar="Z0:Z1,Y0:Y1,X0:X1",
            help="A box of --volume, in nm; a bound left out is the volume's.",
        ),
        click.option("--classes", help="Comma-separated; all of the experiment unless given."),
        click.option(
            "--manifest",
            "manifest_path",
            metavar="FILE",
            help="Table of test crops; downloaded unless given.",
        ),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="NAME=VALUE",
            help="Override a setting of train_config.py.",
        ),
        click.option(
            "--data", metavar="FOLDER", help="Data root that the datasplit's paths start from."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@_boxes
@click.option(
    "--checkpoint", "weights", metavar="best|latest|FILE", help="The best of the run unless given."
)
@click.option(
    "--dtype",
    type=click.Choice(["uint8", "float16", "float32"]),
    default="uint8",
    show_default=True,
)
@click.option("--logits", is_flag=True, help="Store logits instead of probabilities.")
@click.option(
    "--scale", help="Voxel size in nm to store at: 16 or 16,16,16; the network's unless given."
)
@click.option(
    "--orientations",
    type=click.Choice(["1", "8", "16"]),
    default="1",
    show_default=True,
    help="Test-time augmentation: average over mirrored (8) and transposed (16) copies.",
)
@click.option(
    "--block",
    type=int,
    default=0,
    help="Largest edge of a block in voxels; chosen for the device unless given.",
)
@click.option(
    "--overwrite",
    "-O",
    is_flag=True,
    help="Replace predictions made with other weights or settings.",
)
def predict(
    config_path: str, logits: bool, scale: str | None, orientations: str, **options: Any
) -> None:
    """Predict crops or a volume with the trained network of CONFIG_PATH; goes on where it stopped."""
    import common.infer.predict

    content = "logits" if logits else "probability"
    options |= {"scale": _numbers(scale) if scale else (), "orientations": int(orientations)}
    for folder in common.infer.predict.predict(config_path, content=content, **_given(options)):
        click.echo(folder)


@cli.command()
@_boxes
@click.option("--overwrite", "-O", is_flag=True, help="Process again what is there already.")
def process(config_path: str, **options: Any) -> None:
    """Turn predictions into masks and objects, by the process_config.py of CONFIG_PATH."""
    import common.infer.process

    for folder in common.infer.process.process(config_path, **_given(options)):
        click.echo(folder)


@cli.command()
@click.argument("config_path")
@click.option(
    "--crops",
    "-c",
    default="validate",
    show_default=True,
    help="Annotated crops to choose on, as in predict.",
)
@click.option("--classes", help="Comma-separated; all of the experiment unless given.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Override a setting of train_config.py.",
)
@click.option("--data", metavar="FOLDER", help="Data root that the datasplit's paths start from.")
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that score."
)
def tune(config_path: str, **options: Any) -> None:
    """Choose the threshold of each class on annotated crops that are predicted; writes thresholds.json, which process reads."""
    import common.score.tune

    common.score.tune.tune(config_path, **_given(options), say=click.echo)


@cli.command()
@click.argument("config_path", required=False)
@click.option(
    "--crops", "-c", default="validate", show_default=True, help="Annotated crops, as in predict."
)
@click.option("--classes", help="Comma-separated; all of the experiment unless given.")
@click.option(
    "--write-readme",
    is_flag=True,
    help="Write the scores and a picture into the README of the experiment.",
)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that score."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Override a setting of train_config.py.",
)
@click.option("--data", metavar="FOLDER", help="Data root that the datasplit's paths start from.")
@click.option(
    "--submission", metavar="ZIP", help="Score a packed submission instead, against --truth."
)
@click.option("--truth", metavar="ZARR", help="Store of truths, {crop}/{class}, for --submission.")
@click.option(
    "--result",
    "result_path",
    metavar="FILE",
    default="result.json",
    show_default=True,
    help="Of --submission.",
)
def evaluate(
    config_path: str | None,
    submission: str | None,
    truth: str | None,
    result_path: str,
    workers: int,
    **options: Any,
) -> None:
    """Score the processed crops of CONFIG_PATH, by the challenge's metric and by others; or a packed submission."""
    import common.score.evaluate

    if bool(config_path) == bool(submission) or bool(submission) != bool(truth):
        raise UserError(
            "evaluate: write the path of an experiment, or --submission ZIP with --truth ZARR"
        )
    if submission:
        common.score.evaluate.evaluate_submission(
            submission, truth, result_path=result_path, workers=workers, say=click.echo
        )
    else:
        common.score.evaluate.evaluate(
            config_path, **_given(options), workers=workers, say=click.echo
        )


@cli.command()
@_boxes
@click.option(
    "--kinds",
    default="raw,truth,predictions,processed",
    show_default=True,
    help="What to show, comma-separated.",
)
@click.option(
    "--png", metavar="FILE|FOLDER", help="Write a picture of each crop instead of opening a viewer."
)
@click.option("--port", type=int, default=0, help="Of the viewer; 0 is any free one.")
@click.option(
    "--bind",
    default="127.0.0.1",
    show_default=True,
    help="Address of the viewer; 0.0.0.0 lets other machines in.",
)
def visualize(config_path: str, kinds: str, **options: Any) -> None:
    """Look at raw, truth, predictions and processed volumes, in neuroglancer or as pictures."""
    import common.show.visualize

    chosen = tuple(part.strip() for part in kinds.split(",") if part.strip())
    for path in common.show.visualize.visualize(
        config_path, kinds=chosen, **_given(options), say=click.echo
    ):
        click.echo(path)


@cli.command("pack-results")
@click.argument("config_path")
@click.option("--output", "-o", default="submission.zip", show_default=True, metavar="ZIP")
@click.option(
    "--manifest",
    "manifest_path",
    metavar="FILE",
    help="Table of test crops; downloaded unless given.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Override a setting of train_config.py.",
)
def pack_results(
    config_path: str, output: str, manifest_path: str | None, overrides: tuple[str, ...]
) -> None:
    """Pack the processed test crops of CONFIG_PATH into a zip that is exactly what the manifest asks for."""
    from common.config import load
    from common.data import manifest
    from common.score import packing

    settings = load.load_config(config_path, overrides)
    entries = manifest.read(
        manifest_path or manifest.fetch(settings.path("cache_path"), say=click.echo)
    )
    root = settings.path("processed_path")
    click.echo(
        packing.pack(
            entries, lambda entry: root / f"{entry.dataset}.zarr" / entry.path, output, click.echo
        )
    )


@cli.command("check-submission")
@click.argument("path")
@click.option(
    "--manifest", "manifest_path", metavar="FILE", required=True, help="Table of test crops."
)
def check_submission(path: str, manifest_path: str) -> None:
    """List what is wrong with a packed submission."""
    from common.data import manifest
    from common.score import submission

    if problems := submission.check(path, manifest.read(manifest_path)):
        raise UserError("\n".join(problems))
    click.echo(f"{path}: all volumes of the manifest, none other")


@cli.command("fetch-data")
@click.option(
    "--crops",
    "-c",
    default="*",
    show_default=True,
    help="Comma-separated crops or datasets/crops, test, or * for the 289.",
)
@click.option("--classes", help="Comma-separated; every annotated one unless given.")
@click.option(
    "--for",
    "for_experiment",
    metavar="CONFIG",
    help="What this experiment trains on: its crops, classes, level and margin.",
)
@click.option(
    "--scale",
    multiple=True,
    help="Voxel size in nm to fetch for: 8 or 8,8,8. Repeatable; 8, 32 and 128 unless given.",
)
@click.option(
    "--padding",
    help="Raw around the crops in nm: one number or z,y,x; what the baselines reach unless given.",
)
@click.option("--all-resolutions", is_flag=True, help="Every level of raw and labels.")
@click.option("--data", metavar="FOLDER", help="Data root to fetch to.")
@click.option("--url", help="Another server with the bucket's layout.")
@click.option(
    "--workers",
    "-w",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Downloads at a time.",
)
@click.option("--dry-run", is_flag=True, help="Say the sizes, fetch nothing.")
@click.option("--verify", is_flag=True, help="List anew and check what is there already.")
@click.option(
    "--manifest",
    "manifest_path",
    metavar="FILE",
    help="Table of test crops; downloaded unless given.",
)
@click.option("--table", metavar="FILE", help="Another table of training crops.")
def fetch_data(scale: tuple[str, ...], padding: str | None, crops: str, **options: Any) -> None:
    """Fetch crops and the raw around them from the challenge's public bucket; goes on where it stopped."""
    import common.data.fetch

    options |= {"scale": tuple(_numbers(text) for text in scale)} if scale else {}
    options |= {"padding_nm": _numbers(padding, "--padding", 0)} if padding else {}
    common.data.fetch.fetch("*" if crops == "all" else crops, **_given(options), say=click.echo)


@cli.command("make-datasplit")
@click.argument("csv_path", default="datasplit.csv")
@click.option(
    "--manifest",
    metavar="FILE|challenge",
    help="Table of crops to split, instead of the data root; 'challenge' is the public 289.",
)
@click.option("--data", metavar="FOLDER", help="Data root to scan for crops.")
@click.option(
    "--classes",
    default="tested",
    show_default=True,
    help="Comma-separated, or 'tested' for the 48 that are scored.",
)
@click.option(
    "--scale",
    required=True,
    help="Voxel size in nm that the crops are for: 8 or 8,8,8. Crops with coarser labels are left out.",
)
@click.option(
    "--validation-fraction",
    type=click.FloatRange(0, 1),
    help="Wanted fraction of crops that validate.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--group-by",
    "--by",
    "by",
    type=click.Choice(["specimen", "dataset", "crop"]),
    default="specimen",
    show_default=True,
    help="What never stands on both sides.",
)
@click.option(
    "--method",
    type=click.Choice(["balanced", "hash"]),
    default="balanced",
    show_default=True,
    help="Search for a side of each group that suits all classes, or let a hash decide: then a new crop moves no other.",
)
@click.option(
    "--hold-out",
    metavar="NAMES",
    help="Comma-separated datasets or crops, by exact name, that validate.",
)
@click.option(
    "--folds",
    type=int,
    default=0,
    help="Write so many splits; every group validates in one of them.",
)
@click.option(
    "--force-classes",
    type=click.Choice(["all", "train", "validate"]),
    help="Only crops that annotate every class, on both sides or one.",
)
@click.option(
    "--min-extent",
    type=float,
    default=1,
    show_default=True,
    help="Voxels of that size that a crop must have along every axis.",
)
@click.option(
    "--datasets", default="*", show_default=True, help="Comma-separated names; * and ? match."
)
@click.option(
    "--crops", default="*", show_default=True, help="Comma-separated names; * and ? match."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def make_datasplit(csv_path: str, data: str | None, **options: Any) -> None:
    """Write CSV_PATH: which crops train and which validate."""
    from common.config import load
    from common.data import make_split

    options = {name: value for name, value in options.items() if value is not None}
    for name in {"classes", "datasets", "crops", "hold_out"} & set(options):
        options[name] = tuple(part.strip() for part in options[name].split(","))
    if options["classes"] == ("tested",):
        del options["classes"]
    options["scale"] = _numbers(options["scale"])
    if data or "manifest" not in options:
        options["data_root"] = load.data_root(data)
    click.echo(make_split.make(csv_path, **options))


@cli.command()
@click.argument("config_path")
@click.option("--json", "json_path", metavar="FILE", help="Write it there too.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Override a setting of train_config.py.",
)
@click.option("--data", metavar="FOLDER", help="Data root that the datasplit's paths start from.")
def fingerprint(config_path: str, **options: Any) -> None:
    """What the crops of CONFIG_PATH hold, what stands out, and which patch, batch and workers suit this machine."""
    from common.train import suggest

    suggest.fingerprint(config_path, **_given(options), say=click.echo)


@cli.command()
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.1),
    default=6.0,
    show_default=True,
    help="How long to train.",
)
@click.option(
    "--output",
    default="demo",
    show_default=True,
    metavar="FOLDER",
    help="Where data, logs and the picture go.",
)
def demo(minutes: float, output: str) -> None:
    """Make a phantom cell, train a U-Net on it on this machine, and show what it learnt."""
    from common.shell.demo import demo as run

    run(output, minutes)


def main() -> None:
    """Run the command line. What a user can mend ends with a sentence and exit code 2."""
    try:
        cli(prog_name="python -m cellmap_segmentation_challenge")
    except (ValueError, FloatingPointError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Options that were given, lists of names taken apart."""
    options = {name: value for name, value in options.items() if value is not None}
    if "classes" in options:
        options["classes"] = tuple(
            part.strip() for part in options["classes"].split(",") if part.strip()
        )
    return options


def _numbers(text: str, option: str = "--scale", least: float = 1e-9) -> tuple[float, ...]:
    """One length in nm or three, z, y, x, as three."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or min(values) < least:
        raise UserError(f"{option} {text}; write one length in nm or three, z,y,x: 8 or 8,8,8")
    return values * 3 if len(values) == 1 else values

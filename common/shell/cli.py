"""The commands: arguments in, the engine's function called, what it gives written out.

What a command needs is imported when it runs: torch takes seconds, and `--help` must not.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common import stopping, talk
from common.errors import UserError
from common.shell import options, public
from common.shell.group import Commands
from common.shell.options import Lengths, Names, Scale

if TYPE_CHECKING:
    from common.infer.engine import Engine
    from common.score.workers import Workers
    from common.shell.jobs import Job, Resources
    from common.train.run import Result

START = "Start"
DATA = "Data"
TRAIN = "Train"
PREDICT = "Predict and score"
LOOK = "Look and compare"
SUBMIT = "Submit to the challenge"


def _dashes(name: str) -> str:
    """Commands and options are found with - and with _: the public toolbox mixes them."""
    return name.replace("_", "-")


@click.group(
    cls=Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": _dashes,
        "max_content_width": 80,
    },
)
def cli() -> None:
    """Train networks that segment organelles in volume electron microscopy.

    Baselines of the CellMap Segmentation Challenge. Most commands take CONFIG_PATH, the folder of
    an experiment or its train_config.py.
    """


def main(public_defaults: bool = False) -> None:
    """Run the command line under the name that it was started by.

    public_defaults: see `common.shell.public.DEFAULTS`.
    """
    defaults = public.DEFAULTS if public_defaults else None
    cli(prog_name=talk.program(), default_map=defaults)


# Start


@cli.command(heading=START)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.1),
    help="End training early, with the epoch after so many minutes.",
)
@click.option(
    "--output",
    default="demo",
    show_default=True,
    metavar="FOLDER",
    help="Where data, logs and the picture go.",
)
def demo(minutes: float | None, output: str) -> None:
    """Make a phantom cell, train a U-Net on it on this machine, and show what it learnt."""
    from common.shell.demo import demo as run

    if run(output, minutes or 0.0) is None:
        sys.exit(stopping.INTERRUPTED)


@cli.command(heading=START)
@options.optional_config_path
@options.data("Data root to look at.")
def doctor(config_path: str | None, data: str | None) -> None:
    """Say what this machine has, what is missing, and the command that mends it.

    With CONFIG_PATH also what that experiment asks for. Exit code 1 if training would not start.
    """
    from common.shell import doctor as module

    findings = module.doctor(config_path, data)
    click.echo(module.report(findings))
    sys.exit(0 if module.is_well(findings) else 1)


@cli.command(heading=START)
@click.argument("name")
@click.option(
    "--from", "source", required=True, metavar="EXPERIMENT", help="The experiment to copy."
)
def new(name: str, source: str) -> None:
    """Copy an experiment to NAME, ready to train."""
    from common.shell import new as module

    folder = module.new(name, source)
    click.echo(f"{folder}\n{module.next_command(folder)}")


# Data


@cli.command("fetch-data", heading=DATA)
@options.crops("Comma-separated crops or datasets/crops, test, or * for the 289.", default="*")
@options.classes("Comma-separated; every annotated one unless given.")
@click.option(
    "--for",
    "for_experiment",
    metavar="CONFIG",
    help="What this experiment trains on: its crops, classes, level and margin.",
)
@click.option(
    "--scale",
    type=Lengths(),
    multiple=True,
    help="Voxel size in nm to fetch for: 8 or 8,8,8. Repeatable; 8, 32 and 128 unless given.",
)
@click.option(
    "--padding",
    "padding_nm",
    type=Lengths(least=0),
    help="Raw around the crops in nm: one number or z,y,x; what the baselines reach unless given.",
)
@click.option(
    "--padding-voxels",
    type=click.IntRange(0),
    help="The same in voxels of each size that is fetched.",
)
@click.option("--all-resolutions", is_flag=True, help="Every level of raw and labels.")
@options.data("Data root to fetch to.")
@click.option("--url", metavar="URL", help="Another server with the bucket's layout.")
@options.workers("Downloads at a time.", default=16)
@click.option("--dry-run", is_flag=True, help="Say the sizes, fetch nothing.")
@click.option("--verify", is_flag=True, help="List anew and check what is there already.")
@options.manifest
@click.option("--table", metavar="FILE", help="Another table of training crops.")
def fetch_data(crops: str, scale: tuple[tuple[float, ...], ...], **given: Any) -> None:
    """Fetch crops and the raw around them from the challenge's public bucket.

    Goes on where an earlier call stopped.
    """
    from common.data import fetch

    chosen = options.given(given)
    if scale:
        chosen["scale"] = scale
    if crops == "all":  # the public toolbox's word
        crops = "*"
    fetch.fetch(crops, **chosen, say=click.echo)


@cli.command("import-data", heading=DATA)
@click.argument("raw", metavar="RAW")
@click.option("--dataset", required=True, help="Its name in the data root.")
@click.option(
    "--voxel-size",
    type=Lengths(),
    help="Size of a voxel in nm, z, y, x, of volumes that do not say theirs: 8 or 40,4,4.",
)
@click.option(
    "--labels",
    metavar="CLASS=FILE,...",
    default="",
    help="The volume of each class: mito=mito.tif,er=er.tif; of one that holds several its value, "
    "too: mito=all.tif#value=1,er=all.tif#value=2.",
)
@click.option(
    "--unknown", type=int, help="The value of voxels of which nobody knows what they are."
)
@click.option("--instances", type=Names(), help="Those of them whose values are ids of objects.")
@click.option(
    "--crop",
    "crops",
    multiple=True,
    metavar="Z0:Z1,Y0:Y1,X0:X1",
    help="A box of the labels, in their voxels, as a crop. Repeatable; all of them unless given.",
)
@options.data("Data root to write to.")
@click.option("--overwrite", "-O", is_flag=True, help="Replace what is there.")
def import_data(raw: str, labels: str, voxel_size: Any, **given: Any) -> None:
    """Write your own volumes, of any kind, as a dataset of the data root.

    Goes on where an earlier call stopped.
    """
    from common.data import import_volumes

    pairs = options.pairs("--labels", labels)
    import_volumes.import_data(
        raw, labels=pairs, voxel_size=voxel_size, **options.given(given), say=click.echo
    )


@cli.command("make-datasplit", heading=DATA)
@click.argument("csv_path", default="datasplit.csv")
@click.option(
    "--manifest",
    metavar="FILE|challenge",
    help="Table of crops to split, instead of the data root; 'challenge' is the public 289.",
)
@options.data("Data root to scan for crops.")
@options.classes(
    "Comma-separated, or 'tested' for the 48 that are scored.", default="tested", show_default=True
)
@click.option(
    "--scale",
    type=Scale(),
    required=True,
    help="Voxel size in nm that the crops are for: 8 or 8,8,8. "
    "Crops with coarser labels are left out; of 'any' none is.",
)
@click.option(
    "--validation-fraction",
    type=click.FloatRange(0, 1),
    help="Wanted fraction of crops that validate.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the search for sides.")
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
    help="Search for a side of each group that suits all classes, or let a hash decide: "
    "then a new crop moves no other.",
)
@click.option(
    "--hold-out",
    type=Names(),
    help="Comma-separated datasets or crops, by exact name, that validate.",
)
@click.option(
    "--folds",
    type=int,
    default=0,
    help="Write so many splits; every group validates in one of them. Train each with --set "
    "datasplit_path=, predict with --checkpoint of each.",
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
    "--datasets",
    type=Names(),
    default="*",
    show_default=True,
    help="Comma-separated names; * and ? match.",
)
@click.option(
    "--crops",
    type=Names(),
    default="*",
    show_default=True,
    help="Comma-separated names; * and ? match.",
)
@click.option(
    "--absolute",
    is_flag=True,
    help="Write the data root before each store, for programs that have none, such as the public "
    "toolbox.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def make_datasplit(csv_path: str, data: str | None, **given: Any) -> None:
    """Write CSV_PATH: which crops train and which validate."""
    from common.config import load
    from common.data import make_split

    chosen = options.given(given)
    if chosen["classes"] == ("tested",):  # the function's own default
        del chosen["classes"]
    chosen["scale"] = chosen["scale"] or None
    if data or "manifest" not in chosen:
        chosen["data_root"] = load.data_root(data)
    click.echo(make_split.make(csv_path, **chosen))


@cli.command("get-counts", heading=DATA)
@options.classes(
    "Comma-separated, or 'tested' for the 48 that are scored.", default="tested", show_default=True
)
@options.data("Data root to scan for crops.")
def get_counts(classes: tuple[str, ...], data: str | None) -> None:
    """Say how many crops of each dataset annotate each class."""
    from common.classes import TESTED, unknown_names
    from common.config import load
    from common.data import catalogue

    root = load.data_root(data)
    crops, broken = catalogue.scan(root)
    names = TESTED if classes == ("tested",) else classes
    problems = unknown_names(names, set().union(*(crop.classes for crop in crops)))
    if problems:
        raise UserError("\n".join(f"{root}: {problem}" for problem in problems))
    click.echo("\n".join([*catalogue.table_of_counts(crops, names), *broken]))


@cli.command(heading=DATA)
@options.config_path
@click.option("--json", "json_path", metavar="FILE", help="Write it there too.")
@options.overrides
@options.data()
def fingerprint(config_path: str, **given: Any) -> None:
    """Say what an experiment's crops hold, and which patch and batch suit this machine."""
    from common.train import suggest

    suggest.fingerprint(config_path, **options.given(given), say=click.echo)


# Train


@cli.command(heading=TRAIN)
@options.config_path
@options.time_limit
@options.overrides
@click.option(
    "--overrides",
    "override_file",
    metavar="FILE",
    help="NAME=VALUE lines, such as best_settings.txt of a search.",
)
@options.data()
@click.option(
    "--seeds",
    metavar="LIST",
    help="Train one run for each seed, one after the other: 1,2,3 or 1-3.",
)
@click.option(
    "--submit",
    metavar="TEMPLATE",
    help="With --seeds: run this command for each instead, {command} and {seed} filled in, "
    "such as 'bsub -gpu num=1 {command}'.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Dry run: read everything, take a few steps, report shapes, memory and time, "
    "keep nothing.",
)
@click.option(
    "--gpus",
    metavar="all|LIST",
    help="Train one run on several GPUs of this machine, by torchrun: all, or numbers such as 0,1.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="The same on the CPU, by so many processes.",
)
def train(
    config_path: str,
    *,
    time_limit: float,
    overrides: tuple[str, ...],
    override_file: str | None,
    data: str | None,
    seeds: str | None,
    submit: str | None,
    check: bool,
    **several: Any,
) -> None:
    """Train an experiment, or go on where it stopped."""
    from common.config import load
    from common.shell import launch
    from common.train import ranks

    if launch.is_asked(**several):
        if check or submit:
            raise UserError("--check and --submit are one process's; leave --gpus, --processes out")
        sys.exit(launch.launch(several["processes"]))
    result = None
    with ranks.joined():
        if (check or submit) and ranks.are_joined():
            raise UserError("--check and --submit are one process's; start them without torchrun")
        if override_file:  # --set goes before the file
            overrides = (*load.read_overrides(override_file), *overrides)
        if check:
            _check(config_path, overrides, data, time_limit)
        elif submit:
            _submit(config_path, submit, seeds, overrides=overrides, data=data, limit=time_limit)
        else:
            with stopping.time_limit(time_limit):
                result = _train(config_path, seeds, overrides, data)
    if result:
        _end(result)


def _check(
    config_path: str, overrides: tuple[str, ...], data: str | None, time_limit: float
) -> None:
    import common.train.check
    from common.score.whole_crops import of_run

    if time_limit:
        raise UserError("--check takes a few steps; leave --time-limit out")
    click.echo(common.train.check.check(config_path, overrides, data, score=of_run))


def _submit(
    config_path: str,
    template: str,
    seeds: str | None,
    *,
    overrides: tuple[str, ...],
    data: str | None,
    limit: float,
) -> None:
    import common.train.seeds as several

    if not seeds:
        raise UserError("--submit is for several runs; write --seeds 1,2,3 too")
    chosen = several.parse_seeds(seeds)
    several.submit(config_path, chosen, template, overrides=overrides, data=data, time_limit=limit)


def _train(
    config_path: str, seeds: str | None, overrides: tuple[str, ...], data: str | None
) -> Result:
    """Train one run, or one for each seed; return the result of the last."""
    import common.train.run
    import common.train.seeds as several
    from common.score.whole_crops import of_run

    if not seeds:
        return common.train.run.train(config_path, overrides, data, score=of_run)
    chosen = several.parse_seeds(seeds)
    return several.train_seeds(config_path, chosen, overrides, data, score=of_run)[-1]


def _end(result: Result) -> None:
    """End as a shell, or a scheduler, expects it of a run that was interrupted."""
    if not result.finished:
        sys.exit(stopping.NOT_FINISHED if result.requeue else stopping.INTERRUPTED)


@cli.command(heading=TRAIN, context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@click.option(
    "--cluster", type=click.Choice(["lsf", "slurm"]), required=True, help="The batch system."
)
@click.option("--seeds", metavar="LIST", help="A job for each seed of `train`: 1,2,3 or 1-3.")
@click.option(
    "--walltime",
    type=options.Duration(),
    default=0.0,
    metavar="DURATION",
    help="Of a job, 12h or 1d; the command saves before it is over. The queue's unless given.",
)
@click.option("--gpus", type=click.IntRange(0), default=1, show_default=True, help="Of each node.")
@click.option("--cores", type=click.IntRange(1), default=8, show_default=True, help="Of each node.")
@click.option("--memory", default="", metavar="SIZE", help="Of each node, such as 60GB.")
@click.option(
    "--nodes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="That train one run together.",
)
@click.option("--queue", default="", help="In SLURM the partition.")
@click.option("--account", default="", help="Who pays; in LSF the project.")
@click.option(
    "--setup",
    multiple=True,
    metavar="LINE",
    help="A line of shell before the command, such as 'module load cuda'. Repeatable.",
)
@click.option(
    "--directive",
    "directives",
    multiple=True,
    metavar="TEXT",
    help="What else the batch system is told, such as '--constraint=a100'. Repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Print the scripts, hand in nothing.")
@click.pass_context
def submit(
    context: click.Context, words: tuple[str, ...], seeds: str | None, dry_run: bool, **given: Any
) -> None:
    """Hand a command to a batch system as a job that goes on in the next one until it is done.

    COMMAND is CONFIG_PATH, which is trained, or a command with what it takes, such as
    `predict CONFIG_PATH --crops test`. Options that are not listed here are the command's; behind
    `--` all are.
    """
    from common.shell import jobs

    resources = jobs.Resources(**given)
    resources.check()
    wanted = _jobs(context, words, seeds, resources)
    if dry_run:
        for job in wanted:
            click.echo(jobs.script(job, resources))
        return
    jobs.submit(wanted, resources, say=click.echo)


def _jobs(
    context: click.Context, words: Sequence[str], seeds: str | None, resources: Resources
) -> list[Job]:
    """The jobs of what `submit` was given: one, or one for each seed.

    The command is read as if it were typed, so that what is wrong with it is said now.
    """
    import common.train.seeds as several
    from common.shell import jobs

    name, *rest = words
    if _dashes(name) not in cli.commands:
        name = "train"
        rest = list(words)
    command = cli.commands[_dashes(name)]
    if command is context.command:
        raise UserError("submit submit: a job cannot hand in jobs here; leave one out")
    typed = command.make_context(_dashes(name), list(rest), parent=context).params
    takes = {param.name for param in command.params}
    if "time_limit" in takes and resources.walltime and not typed.get("time_limit"):
        rest += ["--time-limit", jobs.commands_time_limit(resources)]
    if name == "train" and resources.gpus > 1 and not typed["gpus"]:
        rest += ["--gpus", "all"]
    if not seeds:
        return [jobs.job_of(name, rest, typed)]
    if name != "train":
        raise UserError(f"--seeds {seeds}: {name} has none; leave --seeds out")
    numbers = several.parse_seeds(seeds)
    settings = jobs.settings_of(typed)
    several.refuse_one_run(typed["config_path"], numbers, settings, typed["data"])
    return [jobs.job_of(name, rest, typed, seed=number) for number in numbers]


@cli.command(heading=TRAIN)
@options.config_path
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
@options.time_limit
@options.overrides
@options.data()
def search(config_path: str, time_limit: float, **given: Any) -> None:
    """Search the space of settings that an experiment's search_space.py declares.

    Each trial is an ordinary run.
    """
    import common.train.search
    from common.score.whole_crops import of_run
    from common.train import ranks

    if ranks.are_started():
        raise UserError(
            "search trains each trial by one process; start it without torchrun, several times for "
            "several GPUs (CUDA_VISIBLE_DEVICES=0, 1, ...): the calls share one study"
        )
    with stopping.time_limit(time_limit):
        best = common.train.search.search(config_path, **options.given(given), score=of_run)
    if best is None:
        sys.exit(stopping.INTERRUPTED)


@cli.command(heading=TRAIN)
@options.config_path
@click.argument("file", required=False)
@click.option(
    "--iteration",
    type=click.IntRange(1),
    help="The step to replay; the last ones of FILE unless given.",
)
@click.option(
    "--checkpoint", "weights", metavar="FILE", help="The weights; the run's latest unless given."
)
@click.option("--png", metavar="FILE", help="Write a picture of the samples.")
@options.overrides
@options.data()
def replay(config_path: str, file: str | None, **given: Any) -> None:
    """Compute steps that training skipped again: which samples, which layer, in fp32 too.

    FILE is the skipped.json of a run, by default that of the experiment's. Nothing is changed.
    """
    from common.train import replay as module

    module.replay(config_path, file, **options.given(given), say=click.echo)


# Predict and score


@cli.command(heading=PREDICT)
@options.boxes
@click.option(
    "--checkpoint",
    "weights",
    metavar="best|latest|FILE",
    multiple=True,
    help="The best of the run unless given. Several are averaged: folds, seeds, other experiments.",
)
@click.option(
    "--dtype",
    type=click.Choice(["uint8", "float16", "float32"]),
    default="uint8",
    show_default=True,
    help="Number type to store.",
)
@click.option("--logits", is_flag=True, help="Store logits instead of probabilities.")
@click.option(
    "--scale",
    type=Lengths(),
    help="Voxel size in nm to store at: 16 or 16,16,16; the network's unless given, or that which "
    "a test crop is scored at if it is coarser.",
)
@click.option(
    "--orientations",
    type=click.Choice(["1", "8", "16"]),
    default="1",
    show_default=True,
    help="Test-time augmentation: average over mirrored (8) and transposed (16) copies.",
)
@click.option(
    "--planes",
    type=click.Choice(["own", "all", "auto"]),
    default="own",
    show_default=True,
    help="Of a 2-D network: slices as in training (own), or the mean over slices across all three "
    "axes (all); auto is all for a 2-D network.",
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
    help="Predict again what is there already, also with other weights or settings.",
)
@options.engine
@options.time_limit
def predict(
    config_path: str, *, logits: bool, orientations: str, time_limit: float, **given: Any
) -> None:
    """Predict crops or a volume with an experiment's trained network.

    Goes on where an earlier call stopped.
    """
    import common.infer.predict

    engine = options.engine_of(given)
    if _is_dry_run(engine):
        return
    with stopping.time_limit(time_limit):
        folders = common.infer.predict.predict(
            config_path,
            content="logits" if logits else "probability",
            orientations=int(orientations),
            engine=engine,
            **options.given(options.without_engine(given)),
        )
    for folder in folders:
        click.echo(folder)


def _is_dry_run(engine: Engine) -> bool:
    """Print what would be handed to a batch system, if that is all that was asked for."""
    engine.check()
    if not engine.dry_run:
        return False
    from common.infer import cluster

    click.echo(cluster.job_script(engine))
    return True


@cli.command(heading=LOOK)
@click.argument("out")
def status(out: str) -> None:
    """Say how far the boxes under OUT are: done, running, left, what failed, and where.

    OUT is a folder that predict or process writes: of a run, a dataset or a crop.
    """
    from common.infer import status as module

    for line in module.status(out):
        click.echo(line)


@cli.command(heading=PREDICT)
@options.boxes
@click.option("--overwrite", "-O", is_flag=True, help="Process again what is there already.")
@options.engine
@options.time_limit
def process(config_path: str, *, time_limit: float, **given: Any) -> None:
    """Turn predictions into masks and objects, by an experiment's process_config.py.

    Goes on where an earlier call stopped.
    """
    import common.infer.process

    engine = options.engine_of(given)
    if _is_dry_run(engine):
        return
    with stopping.time_limit(time_limit):
        folders = common.infer.process.process(
            config_path, engine=engine, **options.given(options.without_engine(given))
        )
    for folder in folders:
        click.echo(folder)


@cli.command(heading=PREDICT)
@options.config_path
@options.crops("Annotated crops to choose on, as in predict.")
@options.classes()
@options.overrides
@options.data()
@options.workers()
@options.elsewhere
@options.metric_version
@click.option(
    "--folds",
    type=click.IntRange(2),
    help="Also score each crop with the threshold that other crops choose, in so many parts; "
    "as many as there are crops leave one out each.",
)
def tune(config_path: str, *, workers: int, **given: Any) -> None:
    """Choose the threshold of each class on annotated crops that are predicted.

    Writes thresholds.json, which process reads.
    """
    import common.score.tune

    engine = options.engine_of({"workers": None, **given})
    given = options.without_engine(given)
    if _is_dry_run(engine):
        return
    with _scorers(config_path, workers, engine) as hands:
        common.score.tune.tune(config_path, **options.given(given), workers=hands, say=click.echo)


@contextlib.contextmanager
def _scorers(near: str | Path, workers: int, engine: Engine) -> Iterator[Workers]:
    """Processes of this machine, or workers elsewhere. near: what they work on."""
    if not engine.is_used:
        yield workers
        return
    from common.files import key_of
    from common.infer import cluster

    if engine.cluster:
        engine = replace(engine, workers=workers)
    path = Path(near).absolute()
    folder = path if path.is_dir() else path.parent
    with cluster.opened(engine, folder, key_of(sys.argv[1:])) as crew:
        assert crew is not None
        yield crew


@cli.command(heading=PREDICT)
@options.optional_config_path
@options.crops("Annotated crops, as in predict.")
@options.classes()
@click.option(
    "--write-readme",
    is_flag=True,
    help="Write the scores and a picture into the README of the experiment.",
)
@options.workers()
@options.elsewhere
@options.overrides
@options.data()
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
@click.option(
    "--instance-classes",
    type=Names(),
    help="Comma-separated; of --submission, the classes that are scored by their objects instead "
    "of the challenge's.",
)
@options.metric_version
def evaluate(
    config_path: str | None,
    *,
    submission: str | None,
    truth: str | None,
    result_path: str,
    instance_classes: tuple[str, ...] | None,
    workers: int,
    metric_version: str,
    **given: Any,
) -> None:
    """Score an experiment's processed crops, or a packed submission.

    By the challenge's metric and by others. Without CONFIG_PATH, submission.zip and
    ground_truth.zarr of the data root unless others are given.
    """
    from common.classes import INSTANCES
    from common.score import evaluate as module

    if config_path and (submission or truth or instance_classes):
        raise UserError(EVALUATE)
    engine = options.engine_of({"workers": None, **given})
    given = options.without_engine(given)
    if _is_dry_run(engine):
        return
    if config_path:
        with _scorers(config_path, workers, engine) as hands:
            module.evaluate(
                config_path,
                **options.given(given),
                metric_version=metric_version,
                workers=hands,
                say=click.echo,
            )
        return
    archive = submission or _of_data_root("submission.zip", EVALUATE)
    with _scorers(archive, workers, engine) as hands:
        module.evaluate_submission(
            archive,
            truth or _of_data_root("ground_truth.zarr", EVALUATE),
            result_path=result_path,
            instance_classes=instance_classes or INSTANCES,
            metric_version=metric_version,
            workers=hands,
            say=click.echo,
        )


EVALUATE = "evaluate: write the path of an experiment, or --submission ZIP with --truth ZARR"


def _of_data_root(name: str, advice: str) -> Path:
    """A file where the public toolbox has it. Raises UserError, with the advice, otherwise."""
    from common.config import load

    path = load.data_root() / name
    if not path.exists():
        raise UserError(f"{advice} (left out, it would be {path}, which is not there)")
    return path


# Look and compare


@cli.command(heading=LOOK)
@options.optional_config_path
@options.boxes_of_experiment
@click.option(
    "--datasets",
    type=Names(),
    help="Comma-separated: only crops of these datasets. With names of crops in --crops.",
)
@click.option(
    "--kinds",
    type=Names(),
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
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Address of the viewer; 0.0.0.0 lets other machines in.",
)
def visualize(
    config_path: str | None, *, crops: str, datasets: tuple[str, ...] | None, **given: Any
) -> None:
    """Look at raw, truth, predictions and processed volumes, in a browser or as pictures.

    Of the annotated crops of the data root without CONFIG_PATH.
    """
    from common.show import visualize as module

    if datasets and datasets != ("*",):
        crops = _within(datasets, crops)
    if not config_path and crops == "validate":  # of no experiment
        crops = "*"
    given["crops"] = crops
    for path in module.visualize(config_path, **options.given(given), say=click.echo):
        click.echo(path)


def _within(datasets: Sequence[str], crops: str) -> str:
    """The crops of some datasets, as --crops takes them."""
    names = [name.strip() for name in crops.split(",")]
    several = [name for name in names if name in ("train", "validate", "test")]
    if several:
        raise UserError(f"--datasets with --crops {','.join(several)}; write names of crops, or *")
    return ",".join(f"{dataset}/{name}" for dataset in datasets for name in names)


@cli.command(heading=LOOK)
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
@options.root
def compare(names: tuple[str, ...], **given: Any) -> None:
    """Say which of several runs is better, by how much, and whether it is more than chance.

    NAMES are those of TensorBoard, or folders.
    """
    from common.runs import compare as module

    module.compare(names, **options.given(given), say=click.echo)


@cli.command(heading=LOOK)
@click.argument("experiments", nargs=-1)
@click.option(
    "--output", "-o", default="report.html", show_default=True, metavar="FILE", help="The page."
)
@options.root
def report(experiments: tuple[str, ...], **given: Any) -> None:
    """Write one HTML page of all runs: results, curves, pictures, settings.

    Of EXPERIMENTS, or of all that there are.
    """
    from common.runs import report as module

    click.echo(module.report(experiments, **options.given(given), say=click.echo))


@cli.command(
    heading=LOOK,
    # its options stand where it is, so that `python unite_tensorboards.py` has them too
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS] [ROOT]...")
def unite(words: tuple[str, ...]) -> None:
    """Gather the runs of all experiments in one TensorBoard.

    The same as `python unite_tensorboards.py`; its options: `unite --help`.
    """
    from common.runs import unite as module

    module.main(list(words), prog_name=f"{talk.program()} unite")


# Submit to the challenge


@cli.command("pack-results", heading=SUBMIT)
@options.optional_config_path
@click.option(
    "--volumes",
    metavar="FOLDER",
    help="Where the processed volumes are, {dataset}.zarr/{crop}/{class}; the experiment's, or "
    "processed/ of the data root unless given.",
)
@click.option(
    "--output",
    "-o",
    default="submission.zip",
    show_default=True,
    metavar="ZIP",
    help="The submission.",
)
@click.option(
    "--partial",
    is_flag=True,
    help="Pack the volumes that are there; the score counts the others as missing.",
)
@options.manifest
@options.overrides
def pack_results(
    config_path: str | None,
    *,
    volumes: str | None,
    output: str,
    partial: bool,
    manifest_path: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Pack processed test crops into a zip that the challenge takes."""
    from common import files
    from common.config import load
    from common.data import manifest
    from common.score import packing

    if config_path and volumes:
        raise UserError("--volumes with the path of an experiment; write one of them")
    cache = files.cache_folder()
    root = Path(volumes) if volumes else load.data_root() / "processed"
    if config_path:
        settings = load.load_config(config_path, overrides)
        cache = settings.path("cache_path")
        root = settings.path("processed_path")
    elif overrides:
        raise UserError("--set is for an experiment; write its path")
    if Path(output).suffix == ".zarr":  # as the public toolbox calls what it zips
        output = str(Path(output).with_suffix(".zip"))
        talk.note(f"{output}: the zip alone is written, no store beside it")
    if not manifest_path:
        manifest_path = str(manifest.fetch(cache, say=click.echo))
    entries = manifest.read(manifest_path)
    packed = packing.pack(
        entries,
        lambda entry: root / f"{entry.dataset}.zarr" / entry.path,
        output,
        click.echo,
        partial=partial,
    )
    click.echo(packed)


@cli.command("check-submission", heading=SUBMIT)
@click.argument("path")
@click.option(
    "--manifest", "manifest_path", metavar="FILE", required=True, help="Table of test crops."
)
@click.option("--partial", is_flag=True, help="Volumes may be missing; they are listed.")
def check_submission(path: str, *, manifest_path: str, partial: bool) -> None:
    """List what is wrong with a packed submission."""
    from common.data import manifest
    from common.score import gaps, submission

    entries = manifest.read(manifest_path)
    problems = submission.check(path, entries, partial=partial)
    if problems:
        raise UserError("\n".join(problems))
    lacking = submission.lacking(path, entries)
    if not lacking:
        click.echo(f"{path}: all volumes of the manifest, none other")
        return
    click.echo(f"{path}: valid; missing are {len(lacking)} of {len(entries)} volumes:")
    for line in gaps.table(lacking, entries) + gaps.consequences(lacking, entries):
        click.echo(line)


@cli.command("batch-eval", heading=SUBMIT)
@click.option(
    "--csv-path",
    metavar="FILE",
    required=True,
    help="Table with the columns data_path and evaluation_id.",
)
@click.option(
    "--truth",
    metavar="ZARR",
    help="Store of truths, {crop}/{class}; ground_truth.zarr of the data root unless given.",
)
@click.option(
    "--cluster", is_flag=True, help="Write the command of each as a job for LSF, and run none."
)
@options.workers()
def batch_eval(csv_path: str, truth: str | None, *, cluster: bool, workers: int) -> None:
    """Score every packed submission of a table.

    Writes eval_ID.results of each into this folder.
    """
    from common.score import batch

    place = truth or str(_of_data_root("ground_truth.zarr", "batch-eval: write --truth ZARR"))
    if cluster:
        click.echo("\n".join(batch.commands(csv_path, place, workers)))
        return
    batch.evaluate_all(csv_path, place, workers=workers, say=click.echo)

"""Commands from a checkpoint to a score."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common import stopping
from common.errors import UserError
from common.shell import options
from common.shell.group import Command
from common.shell.next_step import PICTURES, say_after_predictions, say_after_processing, say_next
from common.shell.options import Lengths, Names

if TYPE_CHECKING:
    from common.infer.machines.engine import Engine
    from common.score.workers import Workers

command = partial(click.command, cls=Command, heading="Predict and score")

ORTHO = "ortho"
"""Value of --orientations that stands for --planes all, as other programs call it."""


@command()
@options.optional_config_path
@click.option(
    "--model",
    metavar="PACKAGE",
    help="A package of bioimage.io in place of CONFIG_PATH: export-model writes them.",
)
@options.boxes_of_experiment
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
    type=click.Choice(["1", "8", "16", ORTHO]),
    default="1",
    show_default=True,
    help="Test-time augmentation: average over mirrored (8) and transposed (16) copies; ortho is "
    "--planes all.",
)
@click.option(
    "--planes",
    type=click.Choice(["own", "all", "auto"]),
    default="own",
    show_default=True,
    help="Of a 2-D network, or one of sections: slices as in training (own), or the mean over "
    "slices across all three axes (all); auto is all for such a network.",
)
@click.option(
    "--block",
    type=int,
    default=0,
    help="Largest edge of a block in voxels; chosen for the device unless given.",
)
@click.option(
    "--margin",
    type=float,
    default=0.0,
    help="Nm around each box that are predicted, too, as far as its raw goes: where the prediction "
    "is to be an input channel of another network, which sees the surroundings of a crop.",
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
    config_path: str | None,
    *,
    model: str | None,
    logits: bool,
    orientations: str,
    time_limit: float,
    **given: Any,
) -> None:
    """Predict crops or a volume with an experiment's trained network, or that of a package.

    Goes on where an earlier call stopped.
    """
    if bool(config_path) == bool(model):
        raise UserError("predict by which network? write CONFIG_PATH, or --model PACKAGE")
    if model and Path(model).suffix == ".py":
        raise UserError(f"--model {model}: no package; write it without --model")
    if model and given["weights"]:
        raise UserError("--checkpoint with --model: a package has its weights; leave it out")
    if config_path:
        options.refuse_missing(config_path, given["overrides"])
    import common.infer.predict

    if orientations == ORTHO:
        if given["planes"] != "all" and options.typed(["planes"]):
            raise UserError("--orientations ortho is --planes all; leave one of them out")
        given["planes"] = "all"
    engine = options.take_engine(given)
    with stopping.time_limit(time_limit):
        folders = common.infer.predict.predict(
            str(model or config_path),
            content="logits" if logits else "probability",
            orientations=1 if orientations == ORTHO else int(orientations),
            engine=engine,
            **options.given(given),
        )
    for folder in folders:
        click.echo(folder)
    if config_path:  # a package is no experiment
        say_after_predictions()


@command()
@options.boxes
@click.option("--overwrite", "-O", is_flag=True, help="Process again what is there already.")
@options.engine
@options.time_limit
def process(config_path: str, *, time_limit: float, **given: Any) -> None:
    """Turn predictions into masks and objects, by an experiment's process_config.py.

    Goes on where an earlier call stopped.
    """
    options.refuse_missing(config_path, given["overrides"])
    import common.infer.process

    engine = options.take_engine(given)
    with stopping.time_limit(time_limit):
        folders = common.infer.process.process(config_path, engine=engine, **options.given(given))
    for folder in folders:
        click.echo(folder)
    say_after_processing(folders)


@command()
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
@options.time_limit
def tune(config_path: str, *, workers: int, time_limit: float, **given: Any) -> None:
    """Choose the threshold of each class on annotated crops that are predicted.

    Writes thresholds.json, which process reads. Goes on where an earlier call stopped.
    """
    options.refuse_missing(config_path, given["overrides"])
    import common.score.tune

    engine = _take_scorers(given)
    with stopping.time_limit(time_limit), _scorers(config_path, workers, engine) as hands:
        common.score.tune.tune(config_path, **options.given(given), workers=hands, say=click.echo)
    say_next("process")


def _take_scorers(given: dict[str, Any]) -> Engine:
    """Take the options of `elsewhere`. Raises UserError for --workers beside a scheduler's own."""
    if given["scheduler"] and options.typed(["workers"]):
        raise UserError("--scheduler has workers of its own; leave --workers out")
    return options.take_engine(given)


@contextlib.contextmanager
def _scorers(near: str | Path, workers: int, engine: Engine) -> Iterator[Workers]:
    """Processes of this machine, or workers elsewhere. near: what they work on."""
    if not engine.is_used:
        yield workers
        return
    from common.files import key_of
    from common.infer.machines import cluster

    if engine.cluster:
        engine = replace(engine, workers=workers)
    path = Path(near).absolute()
    folder = path if path.is_dir() else path.parent
    with cluster.opened(engine, folder, key_of(sys.argv[1:])) as crew:
        assert crew is not None
        yield crew


@command()
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
@options.time_limit
def evaluate(
    config_path: str | None,
    *,
    submission: str | None,
    truth: str | None,
    result_path: str,
    instance_classes: tuple[str, ...] | None,
    workers: int,
    metric_version: str,
    time_limit: float,
    **given: Any,
) -> None:
    """Score an experiment's processed crops, or a packed submission.

    By the challenge's metric and by others. Without CONFIG_PATH, submission.zip and
    ground_truth.zarr of the data root unless others are given. Goes on where an earlier call
    stopped.
    """
    _refuse_of_other(bool(config_path), any((submission, truth, instance_classes)))
    if config_path:
        options.refuse_missing(config_path, given["overrides"])
    from common.classes import INSTANCES
    from common.score import evaluate as module

    engine = _take_scorers(given)
    of_root = partial(options.of_data_root, advice=EVALUATE, data=given["data"])
    archive = config_path or submission or of_root("submission.zip")
    with stopping.time_limit(time_limit), _scorers(archive, workers, engine) as hands:
        how: Any = {"workers": hands, "metric_version": metric_version, "say": click.echo}
        if config_path:
            module.evaluate(config_path, **options.given(given), **how)
        else:
            module.evaluate_submission(
                archive,
                truth or of_root("ground_truth.zarr"),
                result_path=result_path,
                instance_classes=instance_classes or INSTANCES,
                **how,
            )
    if config_path:
        say_next("visualize", png=PICTURES)


def _refuse_of_other(of_experiment: bool, names_submission: bool) -> None:
    """Raise UserError for options of evaluate that say nothing of what is scored."""
    if of_experiment and names_submission:
        raise UserError(EVALUATE)
    strange = options.typed(["result_path"] if of_experiment else OF_EXPERIMENT)
    if strange:
        which = "a submission" if of_experiment else "an experiment"
        raise UserError(f"{', '.join(strange)}: for {which}; leave it out. {EVALUATE}")


OF_EXPERIMENT = ("crops", "classes", "write_readme", "overrides")
"""Parameters of evaluate that say nothing of a submission."""

EVALUATE = "evaluate: write the path of an experiment, or --submission ZIP with --truth ZARR"

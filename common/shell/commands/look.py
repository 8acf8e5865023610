"""Commands that show what is there, and compare runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from common import talk
from common.data.volumes.sources.place import is_address, on_disk
from common.errors import UserError
from common.shell import options
from common.shell.group import Command
from common.shell.options import Names

command = partial(click.command, cls=Command, heading="Look and compare")


@command()
@click.argument("out")
def status(out: str) -> None:
    """Say how far the boxes under OUT are: done, running, left, what failed, and where.

    OUT is a folder that predict or process writes: of a run, a dataset or a crop.
    """
    from common.infer.machines import status as module

    for line in module.status(out):
        click.echo(line)


@command()
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
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Of the viewer; 0 is any free one."
)
@click.option(
    "--bind",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Address of the viewer; 0.0.0.0 lets other machines in.",
)
@click.option(
    "--link",
    is_flag=True,
    help="Print a link to Neuroglancer's public page instead: for results on a server.",
)
def visualize(
    config_path: str | None,
    *,
    crops: str,
    datasets: tuple[str, ...] | None,
    link: bool,
    **given: Any,
) -> None:
    """Look at raw, truth, predictions and processed volumes, in a browser or as pictures.

    CONFIG_PATH may be results by themselves: a volume of any kind, or a folder of them. Of the
    annotated crops of the data root without it.
    """
    _refuse_of_other(link, given["png"])
    _refuse_missing(config_path, given["overrides"])
    from common.show import visualize as module

    if link:
        from common.show import of_results

        if not config_path:
            raise UserError("--link: of what? write the address of a volume")
        click.echo(of_results.link([config_path]))
        return

    if datasets and datasets != ("*",):
        crops = _within(datasets, crops)
    if not config_path and crops == "validate":  # of no experiment
        crops = "*"
    given["crops"] = crops
    for path in module.visualize(config_path, **options.given(given), say=click.echo):
        click.echo(path)


def _refuse_of_other(link: bool, png: str | None) -> None:
    """Raise UserError for options that have no effect beside --link or --png."""
    if link:
        names = [param.name or "" for param in click.get_current_context().command.params]
        strange = options.typed([name for name in names if name not in ("config_path", "link")])
        if strange:
            raise UserError(f"{', '.join(strange)}: --link takes no other option; leave it out")
    strange = options.typed(["port", "bind"]) if png else []
    if strange:
        raise UserError(f"{', '.join(strange)}: of the viewer, and --png opens none; leave it out")


def _refuse_missing(path: str | None, overrides: Sequence[str]) -> None:
    """Raise what is wrong with an experiment; results by themselves are looked at later."""
    if path is None or is_address(path):
        return
    place = on_disk(Path(path))
    holds_experiment = place.is_dir() and any(place.glob("*.py"))
    if place.suffix == ".py" or holds_experiment or not place.exists():
        options.refuse_missing(path, overrides)


def _within(datasets: Sequence[str], crops: str) -> str:
    """The crops of some datasets, as --crops takes them."""
    names = [name.strip() for name in crops.split(",")]
    several = [name for name in names if name in ("train", "validate", "held-out", "test")]
    if several:
        raise UserError(f"--datasets with --crops {','.join(several)}; write names of crops, or *")
    return ",".join("/".join(pair) for pair in itertools.product(datasets, names))


@command()
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


@command()
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

    click.echo(module.report(experiments, **options.given(given), say=talk.say))


@command()
@click.argument("roots", nargs=-1, metavar="[ROOT]...")
@click.option(
    "--output", metavar="FOLDER", help="Folder of the links [default: tensorboards in ROOT]."
)
@click.option(
    "--filter", "pattern", metavar="GLOB", help="Only runs whose experiment/model/run matches."
)
@click.option(
    "--export", "runs_file", metavar="FILE", help="Write a row a run, to .csv or .parquet."
)
@click.option(
    "--export-scalars", "scalars_file", metavar="FILE", help="Write all scalars in long form."
)
@click.option("--watch", is_flag=True, help="Keep up with new runs until Ctrl-C.")
@click.option(
    "--port",
    default=6006,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0 takes any free port.",
)
@click.option(
    "--no-serve", is_flag=True, help="Make and print the links, but start no TensorBoard."
)
def unite(roots: tuple[str, ...], **given: Any) -> None:
    """Gather the runs of all experiments in one TensorBoard, on loopback only.

    Of those below ROOT, which is this repository unless given. `python unite_tensorboards.py` is
    the same.
    """
    if given["no_serve"] and options.typed(["port"]):
        raise UserError(
            "--port with --no-serve, which starts no TensorBoard; leave one of them out"
        )
    from common.runs import unite as module

    module.gather(roots, **options.given(given))

"""Commands to begin with."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import click

from common import stopping
from common.errors import UserError
from common.shell import options
from common.shell.group import Command
from common.shell.next_step import say_next
from common.shell.options import Lengths, Names

command = partial(click.command, cls=Command, heading="Start")


@command()
@click.argument("experiment", required=False)
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
@options.overrides
def demo(
    experiment: str | None, minutes: float | None, output: str, overrides: tuple[str, ...]
) -> None:
    """Make a phantom cell, train a U-Net on it on this machine, and show what it learnt.

    EXPERIMENT is examples/phantom_cell, or another folder of examples/ that names the phantom.
    """
    from common.shell.demo import demo as run

    if run(output, minutes or 0.0, experiment, overrides) is None:
        sys.exit(stopping.INTERRUPTED)


@command()
@options.optional_config_path
@options.data("Data root to look at.")
def doctor(config_path: str | None, data: str | None) -> None:
    """Say what this machine has, what is missing, and the command that mends it.

    With CONFIG_PATH also what that experiment asks for. Exit code 1 if training would not start.
    """
    from common.shell import doctor as module

    findings = module.doctor(config_path, data)
    click.echo(module.report(findings))
    if config_path and module.is_well(findings):
        say_next("train")
    sys.exit(0 if module.is_well(findings) else 1)


@command()
@click.argument("name")
@click.option("--from", "source", metavar="EXPERIMENT", help="The experiment to copy.")
@click.option(
    "--own",
    type=Names(),
    metavar="DATASET,...",
    help="Instead of --from: your datasets in the data root, which import-data writes.",
)
@options.classes("With --own: those to learn, comma-separated; all that are labelled unless given.")
@click.option(
    "--voxel-size",
    "size",
    type=Lengths(),
    help="With --own: nm that is learnt at, 8 or 40,8,8; that of the labels unless given.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="With --own: what it is to train on; the GPU of this machine if it has one unless given.",
)
@options.data("With --own: data root that holds the datasets.")
def new(
    name: str,
    source: str | None,
    own: tuple[str, ...] | None,
    size: tuple[float, float, float] | None,
    **given: Any,
) -> None:
    """Write an experiment NAME, ready to train: a copy, or one for your own data."""
    from common.shell import new as module

    # of `given` it would be the size of a --volume
    chosen = options.given(given) | ({"voxel_size": size} if size else {})
    if bool(source) == bool(own):
        raise UserError(
            "new: write --own DATASET for your own data, or --from EXPERIMENT for a copy"
        )
    if source:
        if chosen:
            option = next(iter(chosen)).replace("_", "-")
            raise UserError(f"--{option}: is for --own; a copy has the settings of {source}")
        folder = module.new(name, source)
        click.echo(f"{folder}\nnext: {module.next_command(folder)}")
        return
    from common.shell import new_own

    assert own
    folder = new_own.new_own(name, own, **chosen, say=click.echo)
    click.echo(f"{folder}\nnext: {new_own.next_command(folder)}")

"""Commands to begin with."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from common import stopping
from common.shell import options
from common.shell.group import Command

if TYPE_CHECKING:
    pass

command = partial(click.command, cls=Command, heading="Start")


@command()
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
    sys.exit(0 if module.is_well(findings) else 1)


@command()
@click.argument("name")
@click.option(
    "--from", "source", required=True, metavar="EXPERIMENT", help="The experiment to copy."
)
def new(name: str, source: str) -> None:
    """Copy an experiment to NAME, ready to train."""
    from common.shell import new as module

    folder = module.new(name, source)
    click.echo(f"{folder}\n{module.next_command(folder)}")

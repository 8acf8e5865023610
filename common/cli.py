"""Arguments in, one sentence out when something is wrong."""

from __future__ import annotations

import sys
from typing import Any

import click


def _dashes(name: str) -> str:
    """Commands and options are found with - and with _."""
    return name.replace("_", "-")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _dashes})
def cli() -> None:
    """Baselines of the CellMap Segmentation Challenge."""


@cli.command()
@click.argument("config_path")
@click.option(
    "--set", "overrides", multiple=True, metavar="NAME=VALUE",
    help="Override a setting; NAME.KEY=VALUE inside a dict. Repeatable.",
)  # fmt: skip
@click.option("--data", metavar="FOLDER", help="Data root that the datasplit's paths start from.")
@click.option(
    "--check", is_flag=True,
    help="Dry run: read everything, take a few steps, report shapes, memory and time, keep nothing.",
)  # fmt: skip
def train(config_path: str, overrides: tuple[str, ...], data: str | None, check: bool) -> None:
    """Train the experiment of CONFIG_PATH (train_config.py or its folder), or go on where it stopped."""
    import common.train

    if check:
        click.echo(common.train.check(config_path, overrides, data))
    elif not common.train.train(config_path, overrides, data).finished:
        sys.exit(130)


@cli.command("make-datasplit")
@click.argument("csv_path", default="datasplit.csv")
@click.option(
    "--manifest", metavar="FILE|challenge",
    help="Table of crops to split, instead of the data root; 'challenge' is the public 289.",
)  # fmt: skip
@click.option("--data", metavar="FOLDER", help="Data root to scan for crops.")
@click.option(
    "--classes", default="tested", show_default=True,
    help="Comma-separated, or 'tested' for the 48 that are scored.",
)  # fmt: skip
@click.option(
    "--scale", required=True,
    help="Voxel size in nm that the crops are for: 8 or 8,8,8. Crops with coarser labels are left out.",
)  # fmt: skip
@click.option("--validation-fraction", type=click.FloatRange(0, 1), help="Wanted fraction of crops that validate.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--by", type=click.Choice(["specimen", "crop"]), default="specimen", show_default=True,
    help="What never stands on both sides.",
)  # fmt: skip
@click.option(
    "--min-extent", type=float, default=1, show_default=True,
    help="Voxels of that size that a crop must have along every axis.",
)  # fmt: skip
@click.option("--datasets", default="*", show_default=True, help="Comma-separated names; * and ? match.")
@click.option("--crops", default="*", show_default=True, help="Comma-separated names; * and ? match.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def make_datasplit(csv_path: str, data: str | None, **options: Any) -> None:
    """Write CSV_PATH: which crops train and which validate."""
    from common import config, datasplit

    options = {name: value for name, value in options.items() if value is not None}
    for name in ("classes", "datasets", "crops"):
        options[name] = tuple(part.strip() for part in options[name].split(","))
    if options["classes"] == ("tested",):
        del options["classes"]
    options["scale"] = _numbers(options["scale"])
    if data or "manifest" not in options:
        options["data_root"] = config.data_root(data)
    click.echo(datasplit.make(csv_path, **options))


@cli.command()
@click.option(
    "--minutes", type=click.FloatRange(min=0.1), default=6.0, show_default=True, help="How long to train."
)
@click.option(
    "--output", default="demo", show_default=True, metavar="FOLDER", help="Where data, logs and the picture go."
)
def demo(minutes: float, output: str) -> None:
    """Make a phantom cell, train a U-Net on it on this machine, and show what it learnt."""
    from common.demo import demo as run

    run(output, minutes)


def main() -> None:
    """Run the command line. What a user can mend ends with a sentence and exit code 2."""
    try:
        cli(prog_name="python -m cellmap_segmentation_challenge")
    except (ValueError, FloatingPointError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or min(values) <= 0:
        raise ValueError(f"--scale {text}; write one voxel size in nm or three, z,y,x: 8 or 8,8,8")
    return values * 3 if len(values) == 1 else values

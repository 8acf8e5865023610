"""Commands for the challenge's submission."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from common import talk
from common.errors import UserError, refuse
from common.shell import options
from common.shell.group import Command

command = partial(click.command, cls=Command, heading="Submit to the challenge")


@command("pack-results")
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
    from common.data.splits import manifest
    from common.score import packing

    _refuse_arguments(config_path, volumes, overrides)
    cache = files.cache_folder()
    root = Path(volumes) if volumes else load.data_root() / "processed"
    fresh = None
    if config_path:
        settings = load.load_config(config_path, overrides)
        cache = settings.path("cache_path")
        root = settings.path("processed_path")
        # with torch, which packing does without
        from common.score.fresh import Fresh

        fresh = Fresh(settings)
    table = manifest_path or str(manifest.fetch(cache, say=click.echo))
    packed = packing.pack(
        manifest.read(table),
        lambda entry: root / f"{entry.dataset}.zarr" / entry.path,
        _as_zip(output),
        click.echo,
        partial=partial,
        check=fresh.refuse if fresh else packing.take,
    )
    if fresh:
        fresh.note()
    click.echo(packed)
    _say_check(packed, table, partial=partial)


def _say_check(packed: Path, manifest_path: str, *, partial: bool) -> None:
    """Say the command that looks at what was packed."""
    line = talk.command_line("check-submission", packed, manifest=manifest_path, partial=partial)
    talk.say(f"next: {line}")


def _refuse_arguments(
    config_path: str | None, volumes: str | None, overrides: Sequence[str]
) -> None:
    """Raises UserError for what does not go together, or is wrong with the experiment."""
    if config_path and volumes:
        raise UserError("--volumes with the path of an experiment; write one of them")
    if overrides and not config_path:
        raise UserError("--set is for an experiment; write its path")
    if config_path:
        options.refuse_missing(config_path, overrides)


def _as_zip(output: str) -> str:
    """The path of the zip; the public toolbox calls by .zarr what it zips."""
    if Path(output).suffix != ".zarr":
        return output
    path = str(Path(output).with_suffix(".zip"))
    talk.note(f"{path}: the zip alone is written, no store beside it")
    return path


@command("check-submission")
@click.argument("path")
@options.manifest
@click.option("--partial", is_flag=True, help="Volumes may be missing; they are listed.")
def check_submission(path: str, *, manifest_path: str | None, partial: bool) -> None:
    """List what is wrong with a packed submission."""
    from common import files
    from common.data.splits import manifest
    from common.score import gaps, submission

    table = manifest_path or manifest.fetch(files.cache_folder(), say=click.echo)
    entries = manifest.read(table)
    problems = submission.check(path, entries, partial=partial)
    refuse(problems)
    lacking = submission.lacking(path, entries)
    if not lacking:
        click.echo(f"{path}: all volumes of the manifest, none other")
        return
    click.echo(f"{path}: valid; missing are {len(lacking)} of {len(entries)} volumes:")
    for line in gaps.table(lacking, entries) + gaps.consequences(lacking, entries):
        click.echo(line)


@command("batch-eval")
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

    place = truth or str(
        options.of_data_root("ground_truth.zarr", "batch-eval: write --truth ZARR")
    )
    if cluster:
        click.echo("\n".join(batch.commands(csv_path, place, workers)))
        return
    batch.evaluate_all(csv_path, place, workers=workers, say=click.echo)

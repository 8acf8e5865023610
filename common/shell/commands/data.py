"""Commands that bring data, split it and look into it."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from common.errors import UserError, refuse
from common.shell import options
from common.shell.group import Command
from common.shell.options import Lengths, Names, PerAxis, ScaleOrAny

command = partial(click.command, cls=Command, heading="Data")


@command("fetch-data")
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
    "-s",
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
    if given["for_experiment"] and given["table"]:
        raise UserError("--for with --table: an experiment has crops of its own; write one of them")
    from common.data.download import fetch

    chosen = options.given(given)
    if scale:
        chosen["scale"] = scale
    if crops == "all":  # the public toolbox's word
        crops = "*"
    fetch.fetch(crops, **chosen, say=click.echo)


LABELLING = ("instances", "unknown", "crops", "blocks", "gap")
"""Options of import-data that are of labels."""


@command("import-data")
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
    "too: mito=all.tif#value=1,er=all.tif#value=2,3. With --values one volume of all of them.",
)
@click.option(
    "--values",
    metavar="VALUE=CLASS,...|FILE",
    help="The classes of one volume of labels: 1=mito,2=er,0=background,255=unknown, or a file of "
    "two columns, value and class. Other values are background.",
)
@click.option(
    "--unknown", type=int, help="The value of voxels of which nobody knows what they are."
)
@click.option("--instances", type=Names(), help="Those of them whose values are ids of objects.")
@click.option(
    "--crop",
    "crops",
    type=PerAxis(),
    multiple=True,
    metavar="Z0:Z1,Y0:Y1,X0:X1",
    help="A box of the labels, in their voxels, as a crop. Repeatable; all of them unless given.",
)
@click.option(
    "--blocks",
    type=PerAxis(),
    metavar="N|NZ,NY,NX",
    help="Cut the labels into so many crops, along their longest axis or along z, y, x, with gaps "
    "between, so that some can validate.",
)
@click.option(
    "--gap",
    type=click.IntRange(min=0),
    help="Voxels of the labels between blocks; a tenth of a block unless given.",
)
@click.option(
    "--link",
    is_flag=True,
    help="Refer to the volumes where they are, instead of copying them.",
)
@options.data("Data root to write to.")
@click.option("--overwrite", "-O", is_flag=True, help="Replace what is there.")
def import_data(raw: str, labels: str, values: str | None, voxel_size: Any, **given: Any) -> None:
    """Write your own volumes, of any kind, as a dataset of the data root.

    Goes on where an earlier call stopped. A picture of the dataset, for a look at where raw and
    labels lie, is put beside its store.
    """
    from common.data.own import importing
    from common.data.own import labels as own_labels
    from common.show import dataset

    if values and not labels:
        raise UserError("--values: of which volume? write --labels FILE, too")
    if labels and not values and "=" not in labels.partition("#")[0]:
        raise UserError(
            f"--labels {labels}: of which class? write mito={labels}, or, for one volume of "
            "several classes, --values 1=mito,2=er"
        )
    of_class: Any = (
        own_labels.by_table(labels, values) if values else options.pairs("--labels", labels)
    )
    said = options.given(given)
    name = said.pop("dataset")
    labelling = {key: said.pop(key) for key in LABELLING if key in said}
    manner = {key: said.pop(key) for key in ("link", "overwrite") if key in said}
    store = importing.import_data(
        raw,
        name,
        importing.Labelling(of_class, **labelling),
        importing.Manner(voxel_size, **manner),
        **said,
        say=click.echo,
    )
    click.echo(f"{dataset.draw(store)}: a picture of it")
    if labels:
        importing.say_next(name, store, said.get("data"), say=click.echo)


@command("make-datasplit")
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
    type=ScaleOrAny(),
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
    type=click.Choice(["specimen", "dataset", "crop", "auto"]),
    default="auto",
    show_default=True,
    help="What never stands on both sides; auto is specimen, or crop, said aloud, where all are of "
    "one.",
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
    "--test",
    type=Names(),
    help="The same for test: crops that no training, validation, tune or search opens; predict, "
    "process and evaluate do for --crops held-out.",
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
    """Write CSV_PATH: which crops train, which validate and which are held out for test."""
    from common.config import load
    from common.data.splits import make_split

    chosen = options.given(given)
    if chosen["classes"] == ("tested",):  # the function's own default
        del chosen["classes"]
    chosen["scale"] = chosen["scale"] or None
    if data or "manifest" not in chosen:
        chosen["data_root"] = load.data_root(data)
    click.echo(make_split.make(csv_path, **chosen))


@command("get-counts")
@options.classes(
    "Comma-separated, or 'tested' for the 48 that are scored.", default="tested", show_default=True
)
@options.data("Data root to scan for crops.")
def get_counts(classes: tuple[str, ...], data: str | None) -> None:
    """Say how many crops of each dataset annotate each class."""
    from common.classes import IN_NO_CROP, TESTED, unknown_names
    from common.config import load
    from common.data.splits import catalogue

    root = load.data_root(data)
    crops, broken = catalogue.scan(root)
    names = TESTED if classes == ("tested",) else classes
    annotated = set().union(*(crop.classes for crop in crops))
    problems = unknown_names(names, annotated, IN_NO_CROP)
    refuse(problems, root)
    click.echo("\n".join([*catalogue.table_of_counts(crops, names), *broken]))


@command()
@options.config_path
@click.option("--json", "json_path", metavar="FILE", help="Write it there too.")
@options.overrides
@options.data()
def fingerprint(config_path: str, **given: Any) -> None:
    """Say what an experiment's crops hold, and which patch and batch suit this machine."""
    options.refuse_missing(config_path, given["overrides"])
    from common.shell import suggest

    suggest.fingerprint(config_path, **options.given(given), say=click.echo)

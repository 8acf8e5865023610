"""Commands that bring results into other programs."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from common.data.volumes.sources.place import with_voxel_size
from common.errors import UserError
from common.shell import options
from common.shell.group import Command
from common.shell.options import Lengths, Names, PerAxis

command = partial(click.command, cls=Command, heading="Results")

voxel_size = click.option(
    "--voxel-size",
    type=Lengths(),
    help="Size of a voxel in nm, z, y, x, where SOURCE does not say it: 8 or 40,4,4.",
)


@command()
@click.argument("source")
@click.argument("out")
@click.option(
    "--format",
    type=click.Choice(
        ["tiff", "hdf5", "mrc", "nifti", "nrrd", "precomputed", "ngff", "ply", "obj"]
    ),
    help="What the end of OUT says unless given: .tif, .h5, .mrc, .nii.gz, .nrrd, .precomputed, "
    ".zarr (OME-NGFF 0.5). ply and obj: surfaces, a file an object. Of several volumes OUT is a "
    "folder.",
)
@options.classes("Comma-separated; all that SOURCE has unless given.")
@click.option(
    "--roi",
    type=PerAxis(),
    metavar="Z0:Z1,Y0:Y1,X0:X1",
    help="A box of it, in nm; a bound left out is the volume's.",
)
@click.option(
    "--scale",
    type=Lengths(),
    help="Voxel size in nm of the level to write; the finest unless given.",
)
@voxel_size
@click.option(
    "--values",
    type=click.Choice(["image", "mask", "objects"]),
    help="What values are, where SOURCE does not say it: intensities, 0 and 1, or ids.",
)
@click.option(
    "--meshes", "with_meshes", is_flag=True, help="Of objects, in a precomputed volume, too."
)
@click.option("--overwrite", "-O", is_flag=True, help="Replace what is there.")
def export(source: str, out: str, *, voxel_size: Any, **given: Any) -> None:
    """Write predictions, masks and objects for other programs.

    SOURCE is a folder that predict or process writes (of a run, a dataset or a crop), or a volume
    of any kind. What is there already is left; a volume is written whole or not at all.
    """
    from common.data import export_volumes as module

    source = with_voxel_size(source, voxel_size)
    module.export(source, out, **options.given(given), say=click.echo)


@command()
@click.argument("source")
@click.argument("out")
@options.classes("Comma-separated; all that SOURCE has unless given.")
@click.option(
    "--contacts",
    type=Names(),
    metavar="LIST|none",
    help="Classes whose objects are looked at for contacts, a mask being one object; those of "
    "objects unless given.",
)
@click.option(
    "--projection",
    type=click.Choice(["max", "sum", "none"]),
    default="max",
    show_default=True,
    help="Pictures: the first object along the axis in its colour, or the length along it.",
)
@click.option(
    "--axis",
    type=click.Choice(["z", "y", "x"]),
    default="z",
    show_default=True,
    help="Along which pictures look.",
)
@voxel_size
@options.engine
@click.option("--overwrite", "-O", is_flag=True, help="Replace what is there.")
def summarize(source: str, out: str, *, voxel_size: Any, overwrite: bool, **given: Any) -> None:
    """Measure masks and objects: volume, size, place, surface, contacts, as tables and pictures.

    SOURCE is a folder that process writes (of a run, a dataset or a crop), or a volume of labels;
    OUT is a folder.
    """
    from common.infer import summarize as module

    if given["projection"] == "none" and options.typed(["axis"]):
        raise UserError("--axis is of pictures, and --projection none draws none; leave one out")
    source = with_voxel_size(source, voxel_size)
    engine = options.take_engine(given)
    wanted = module.Wanted(**options.given(given))
    module.summarize(source, out, wanted, engine=engine, overwrite=overwrite, say=click.echo)

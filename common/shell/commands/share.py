"""Commands that take networks out."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from common.errors import UserError
from common.shell import options
from common.shell.group import Command

command = partial(click.command, cls=Command, heading="Predict and score")

FORMS = ("bioimage", "torchscript", "pt2", "onnx")
"""Forms of an exported network, see `common.runs.export_model`."""


OF_A_PACKAGE = ("authors", "name", "description", "licence", "cite", "onnx")
"""Parameters of export-model that no other form has a place for."""


@command("export-model")
@options.config_path
@click.option(
    "--to",
    type=click.Choice(FORMS),
    default="bioimage",
    show_default=True,
    help="A package of bioimage.io with a model card, or the network alone: TorchScript, "
    "torch.export or ONNX.",
)
@click.option(
    "--checkpoint",
    "weights",
    metavar="best|latest|FILE",
    help="The best of the run unless given.",
)
@click.option("--output", "-o", metavar="FILE", help="In the run's results folder unless given.")
@click.option(
    "--author", "authors", multiple=True, metavar="NAME", help="Of a package. Repeatable."
)
@click.option("--name", metavar="TEXT", help="Of a package; made of the run's unless given.")
@click.option("--description", metavar="TEXT", help="Of a package; likewise.")
@click.option(
    "--license",
    "licence",
    default="CC-BY-4.0",
    show_default=True,
    metavar="SPDX",
    help="Of a package; the default is that of the challenge's data.",
)
@click.option(
    "--cite",
    multiple=True,
    metavar="TEXT",
    help="A work that users of a package are to cite, such as 'Doe 2026, doi:10.1000/182'. "
    "Repeatable; that of the challenge's data is named too.",
)
@click.option("--onnx", is_flag=True, help="A package has the network as ONNX, too.")
@options.overrides
@options.data("Data root, from which a package takes its example.")
def export_model(
    config_path: str,
    *,
    authors: tuple[str, ...],
    name: str | None,
    description: str | None,
    licence: str,
    cite: tuple[str, ...],
    **given: Any,
) -> None:
    """Write an experiment's trained network as a file for other programs.

    The file gives what the network gives, or is not written. `predict --model` runs packages.
    """
    strange = options.typed(OF_A_PACKAGE) if given["to"] != "bioimage" else []
    if strange:
        raise UserError(
            f"{', '.join(strange)} with --to {given['to']}, which holds the network alone; leave "
            "it out, or take --to bioimage"
        )
    options.refuse_missing(config_path, given["overrides"])
    from common.runs import export_model as module
    from common.runs.model_card import Said, citations

    said = Said(name or "", description or "", authors, licence, citations(cite))
    click.echo(module.export_model(config_path, said=said, **options.given(given)))

"""The command line: its commands, in the order of `--help`."""

from __future__ import annotations

import click

from common import talk
from common.shell import public
from common.shell.commands import data, look, predict, results, share, start, submit, train
from common.shell.group import Commands


def _dashes(name: str) -> str:
    """Return a name of a command or option with -: the public toolbox mixes - and _."""
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


COMMANDS = (
    start.demo,
    start.doctor,
    start.new,
    data.fetch_data,
    data.import_data,
    data.make_datasplit,
    data.get_counts,
    data.fingerprint,
    train.train,
    train.submit,
    train.search,
    train.joint,
    train.replay,
    predict.predict,
    share.export_model,
    predict.process,
    predict.tune,
    predict.evaluate,
    results.export,
    results.summarize,
    look.status,
    look.visualize,
    look.compare,
    look.report,
    look.unite,
    submit.pack_results,
    submit.check_submission,
    submit.batch_eval,
)

for _command in COMMANDS:
    cli.add_command(_command)


def main(public_defaults: bool = False) -> None:
    """Run the command line under the name that it was started by.

    public_defaults: see `common.shell.public.DEFAULTS`.
    """
    defaults = public.DEFAULTS if public_defaults else None
    cli(prog_name=talk.program(), default_map=defaults)

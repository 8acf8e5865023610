"""The public toolbox's commands as Python objects: the group `run`, and one `..._cli` for each.

They are our own commands. `predict_cli.callback("train.py", crops="test")`, as scripts of this
field call them, is `csc predict train.py --crops test`; arguments have the public names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import click

from cellmap_segmentation_challenge import _names
from cellmap_segmentation_challenge._public import names_of
from common.shell import public
from common.shell.cli import cli as run

__getattr__ = names_of(__name__, _names.CLI)

OPTIONS = {"use_zip": "--zip"}
"""Options for parameters of callbacks that have another name."""


def _public(name: str, *positional: str) -> click.Command:
    """Return a command of ours whose callback takes the public arguments.

    positional: public names of the arguments that callers give by position. config_path is also an
        argument on the command line.
    """
    command = run.commands[name]
    shown = copy.copy(command)
    # by click it runs as it is; its callback alone has the public arguments
    shown.invoke = command.invoke  # type: ignore[method-assign]
    shown.callback = _callback(name, positional)
    return shown


def _callback(name: str, positional: tuple[str, ...]) -> Callable[..., Any]:
    def callback(*values: Any, **given: Any) -> Any:
        arguments = dict(zip(positional, values, strict=False)) | given
        words = [name]
        if "config_path" in arguments:
            words.append(str(arguments.pop("config_path")))
        for parameter, value in arguments.items():
            words += _option(parameter, value)
        return run.main(words, standalone_mode=False, default_map=public.DEFAULTS)

    return callback


def _option(parameter: str, value: Any) -> list[str]:
    """Return an argument as it is typed; [] for None and False."""
    if value is None or value is False:
        return []
    option = OPTIONS.get(parameter, f"--{parameter.replace('_', '-')}")
    return [option] if value is True else [option, str(value)]


train_cli = _public("train", "config_path")
predict_cli = _public("predict", "config_path", "crops", "output_path", "skip_orthoplanes")
process_cli = _public("process", "config_path", "crops", "overwrite", "input_path", "output_path")
fetch_data_cli = _public("fetch-data", "crops", "raw_padding", "dest", "access_mode")
evaluate_cli = _public("evaluate", "submission_path", "result_file", "truth_path")
package_submission_cli = _public("pack-results", "input_search_path", "output_path", "overwrite")
make_datasplit_csv_cli = _public("make-datasplit")
get_dataset_counts_cli = _public("get-counts")
visualize_cli = _public("visualize", "datasets", "crops", "classes", "kinds")
batch_evaluate_cli = _public("batch-eval", "csv_path")

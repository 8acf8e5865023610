"""Say which command to type after one that is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from common.shell import public
from common.shell.options import Duration
from common.talk import command_line, note, say, short_path

if TYPE_CHECKING:
    from common.config.settings import TrainConfig
    from common.data.splits.manifest import Entry

PICTURES = "pictures"
"""A folder, since a viewer in the browser takes the extra `viewer`."""


def say_next(
    command: str, settings: Sequence[str] = (), *, words: Sequence[str] = (), **more: Any
) -> None:
    """Say which command follows the one that runs, for the same experiment, boxes and data.

    Options that are not at their defaults are repeated if the next command takes them.

    Args:
        command: name of the next command.
        settings: further "name=value" for its `--set`.
        words: arguments of it before the experiment.
        more: further options of it, which go before those that are repeated.
    """
    from common.config.groups import OF_TRAINING
    from common.config.overrides import taken_apart, with_file

    context = click.get_current_context()
    assert context.parent is not None
    assert isinstance(context.parent.command, click.Group)
    following = context.parent.command.commands[command]
    taken = {param.name for param in following.params}
    options: dict[str, Any] = {}
    for param in context.command.params:
        value = context.params.get(param.name or "")
        is_default = value in (None, (), False, param.default) or _is_public_default(param, command)
        if isinstance(param, click.Option) and param.name in taken and not is_default:
            options[param.opts[0].lstrip("-")] = _typed(param, value)
    overrides = [*options.get("set", ()), *settings]
    if "override_file" not in taken:
        overrides = [*with_file(overrides, context.params.get("override_file"))]
    if command != "train":
        overrides = [text for text in overrides if taken_apart(text).name not in OF_TRAINING]
    options["set"] = [*overrides, *_seed_beside(overrides)]
    line = command_line(command, *words, context.params["config_path"], **(options | more))
    say(f"next: {line}")


def _seed_beside(overrides: Sequence[str]) -> list[str]:
    """Return SEED of the environment, which may be there for one command alone, as a setting."""
    from common.config.overrides import taken_apart

    seed = os.environ.get("SEED")
    written = {taken_apart(text).name for text in overrides}
    if not seed or "random_seed" in written or click.get_current_context().params.get("seeds"):
        return []
    return [f"random_seed={seed}"]


def _is_public_default(param: click.Parameter, command: str) -> bool:
    """Whether the next command has, or does not ask for, the value that `csc` gave an option."""
    context = click.get_current_context()
    name = param.name or ""
    if context.get_parameter_source(name) is not ParameterSource.DEFAULT_MAP:
        return False
    if name == "crops" and context.params.get("volume"):
        return True  # a volume is a box of its own
    return public.DEFAULTS.get(command, {}).get(name) == context.params[name]


def say_after_predictions() -> None:
    """Say what follows predictions: process, or a look where an experiment does not say how."""
    path = _config().path("process_config_path")
    if path.is_file():
        say_next("process")
        return
    note(f"{short_path(path)} is not there; write it, and process makes masks and objects by it")
    say_next("visualize", png=PICTURES)


def say_after_processing(folders: Sequence[Path]) -> None:
    """Say what follows processed volumes: of a volume export, of test crops packing, else scores.

    folders: of the boxes that were processed.
    """
    if _given("volume") and folders:
        say(f"next: {command_line('export', folders[0], 'results', format='tiff')}")
        return
    config = _config()
    root = config.path("processed_path")
    entries = _test_entries(config)
    of_crop = {root / f"{entry.dataset}.zarr" / entry.crop for entry in entries}
    if of_crop.isdisjoint(folders):
        say_next("evaluate")
        return
    volumes = [root / f"{entry.dataset}.zarr" / entry.path for entry in entries]
    say_next("pack-results", partial=not all(volume.is_dir() for volume in volumes))


def _test_entries(config: TrainConfig) -> list[Entry]:
    """Return the volumes of a submission, if test crops were asked for."""
    from common.data.splits import catalogue, manifest

    table = _given("manifest_path")
    if not table and "test" in catalogue.words_of(_given("crops")):
        table = manifest.fetch(config.path("cache_path"), say=say)
    return manifest.read(table) if table else []


def _config() -> TrainConfig:
    """Return the settings of the command that runs."""
    from common.config.load import load_config

    return load_config(_given("config_path"), _given("overrides"), _given("data"))


def _given(name: str) -> Any:
    """Return the value of a parameter of the command that runs."""
    return click.get_current_context().params[name]


def _typed(param: click.Option, value: Any) -> Any:
    """Return the value of an option as it is typed: a tuple of one option with commas."""
    if isinstance(param.type, Duration):
        return f"{value:.0f}s"
    if param.multiple or not isinstance(value, tuple):
        return value
    # all digits: the size of voxels is a part of the name of a volume
    texts = [str(item).removesuffix(".0") for item in value]
    # one length for cubes
    return texts[0] if isinstance(value[0], float) and len(set(texts)) == 1 else ",".join(texts)

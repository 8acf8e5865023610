"""Say which command to type after one that is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from common.talk import command_line, say


def say_next(command: str, settings: Sequence[str] = (), **more: Any) -> None:
    """Say which command follows the one that runs, for the same experiment, boxes and data.

    Options that are not at their defaults are repeated if the next command takes them.

    Args:
        command: name of the next command.
        settings: further "name=value" for its `--set`.
        more: further options of it.
    """
    from common.config.groups import OF_TRAINING
    from common.config.overrides import taken_apart

    context = click.get_current_context()
    assert context.parent is not None
    assert isinstance(context.parent.command, click.Group)
    following = context.parent.command.commands[command]
    taken = {param.name for param in following.params}
    options: dict[str, Any] = {}
    for param in context.command.params:
        value = context.params.get(param.name or "")
        is_default = value in (None, (), False, param.default)
        if isinstance(param, click.Option) and param.name in taken and not is_default:
            options[param.opts[0].lstrip("-")] = _typed(param, value)
    overrides = [*options.get("set", ()), *settings]
    if command != "train":
        overrides = [text for text in overrides if taken_apart(text).name not in OF_TRAINING]
    options["set"] = overrides
    line = command_line(command, context.params["config_path"], **options, **more)
    say(f"next: {line}")


def _typed(param: click.Option, value: Any) -> Any:
    """Return the value of an option as it is typed: a tuple of one option with commas."""
    if param.multiple or not isinstance(value, tuple):
        return value
    texts = [f"{item:g}" if isinstance(item, float) else str(item) for item in value]
    # one length for cubes
    return texts[0] if isinstance(value[0], float) and len(set(texts)) == 1 else ",".join(texts)

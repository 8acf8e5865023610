"""Arguments of commands as scripts and notebooks write them, in the words of the command line."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from common.config.kinds import plain
from common.config.settings import TrainConfig
from common.errors import UserError

Returned = TypeVar("Returned")

PLAIN = (str, bool, int, float, list, tuple, dict, type(None))
"""What `--set` can say."""


def as_typed(*more: str) -> Callable[[Callable[..., Returned]], Callable[..., Returned]]:
    """Decorator of a command, which then takes settings by their names, and lists and texts alike.

        predict("unet8_all", crops=["crop1", "crop3"], classes="mito,er", run_name="fold1")

    It raises TypeError for a name that is neither an argument nor a setting.

    more: arguments that the command takes as **keywords.
    """

    def decorate(command: Callable[..., Returned]) -> Callable[..., Returned]:
        signature = inspect.signature(command)
        takes = {*signature.parameters, *more}

        @functools.wraps(command)
        def call(*arguments: Any, **given: Any) -> Returned:
            own = {name: value for name, value in given.items() if name in takes}
            settings = {name: value for name, value in given.items() if name not in takes}
            _refuse_unknown(command.__name__, settings, takes)
            values = signature.bind(*arguments, **own)
            _translate(values.arguments, settings)
            return command(*values.args, **values.kwargs)

        return call

    return decorate


def overrides_of(value: Any) -> tuple[str, ...]:
    """Overrides "name=value" of a text, of several, or of a dict of settings."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping):
        return tuple(_override(name, content) for name, content in value.items())
    return tuple(value)


def _translate(arguments: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Put the arguments of a command into the words of the command line."""
    if arguments.get("crops", "") is None:  # as if it were left out
        del arguments["crops"]
    if "crops" in arguments:
        arguments["crops"] = as_words(arguments["crops"])
    if "classes" in arguments:
        arguments["classes"] = as_names(arguments["classes"])
    if hasattr(arguments.get("volume"), "shape"):
        raise UserError("volume: an array; write it to a file, zarr or TIFF, and give the path")
    if settings or "overrides" in arguments:
        given = overrides_of(arguments.get("overrides", ()))
        arguments["overrides"] = (*given, *overrides_of(settings))


def as_words(crops: str | int | Iterable[str | int]) -> str:
    """Crops as --crops takes them: a text, or one, or several, by name or number."""
    several = [crops] if isinstance(crops, str | int) else crops
    return ",".join(map(str, several))


def as_names(names: str | Sequence[str]) -> Sequence[str]:
    """Names of classes and the like that may be given as a text with commas."""
    if isinstance(names, str):
        return tuple(name.strip() for name in names.split(","))
    return names


def _override(name: str, value: Any) -> str:
    value = plain(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, PLAIN):
        raise UserError(
            f"{name} = {value!r}: a setting of one call is a number, a text, or a list or dict of "
            "them; write another kind into train_config.py"
        )
    return f"{name}={value if isinstance(value, str) else repr(value)}"


def _refuse_unknown(command: str, names: Iterable[str], takes: Collection[str]) -> None:
    settings = [field.name for field in dataclasses.fields(TrainConfig)]
    for name in names:
        if name in settings:
            continue
        near = difflib.get_close_matches(name, [*takes, *settings], 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise TypeError(f"{command} has no argument '{name}', and no setting is called so{hint}")

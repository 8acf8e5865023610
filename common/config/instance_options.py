"""What an instance_func of process_config.py takes beside a class: other channels, and options."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from common.talk import some

BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

CHANNELS = "channels"
"""Name of the argument that takes the predicted channels of the box by name."""


def takes_channels(function: Callable) -> bool:
    """Return whether a function has an argument for the other channels."""
    return CHANNELS in _parameters(function)


def defaults(function: Callable) -> dict[str, Any]:
    """Return the options of a function: its arguments with a default, after those it is given."""
    parameters = _parameters(function)
    by_place = [name for name, parameter in parameters.items() if parameter.kind in BY_PLACE]
    # the mask, the probability and the name, which may have defaults too
    given = [*by_place[:3], CHANNELS]
    found = {}
    for name, parameter in parameters.items():
        # it is called with options by their names
        has_name = parameter.kind is not inspect.Parameter.POSITIONAL_ONLY
        if has_name and name not in given and parameter.default is not inspect.Parameter.empty:
            found[name] = parameter.default
    return found


def option_problems(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the setting instance_options, as sentences."""
    tried = values.get("instance_options", {})
    function = values.get("instance_func")
    if not tried:
        return []
    if function is None:
        return ["instance_options without instance_func, whose options they are; write one"]
    problems = []
    options = defaults(function)
    for name, candidates in tried.items():
        if name not in options:
            known = some(list(options)) if options else "none"
            problems.append(
                f"instance_options['{name}']: no argument of instance_func with a default (there "
                f"are: {known}); give it one"
            )
        elif not isinstance(candidates, list | tuple) or not candidates:
            problems.append(
                f"instance_options['{name}'] = {candidates!r}; write a list of the values to try"
            )
        elif not all(_is_plain(value) for value in candidates):
            problems.append(
                f"instance_options['{name}'] = {candidates!r}; write finite numbers, words, or "
                "lists of numbers"
            )
    return problems


def _is_plain(value: Any) -> bool:
    """Whether a value is the same after it was written as JSON, but for tuples and lists."""
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, float):  # JSON has neither infinity nor NaN
        return math.isfinite(value)
    return isinstance(value, bool | int | str)


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # of a function that is not of Python
        return {}

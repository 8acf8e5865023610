"""Settings as text, for logs and checkpoints: equal settings have equal texts, in every run."""

from __future__ import annotations

import ast
import functools
from typing import Any


def as_text(value: Any) -> str:
    """Return a setting as text that is the same in every run.

    It has no addresses of objects, and not the package that a configuration is imported in.
    """
    if isinstance(value, dict):
        items = [f"{key!r}: {as_text(item)}" for key, item in value.items()]
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return _sequence_as_text(value)
    if isinstance(value, functools.partial):
        arguments = [as_text(item) for item in value.args]
        arguments += [f"{name}={as_text(item)}" for name, item in value.keywords.items()]
        return f"{as_text(value.func)}({', '.join(arguments)})"
    if hasattr(value, "__qualname__"):
        # some functions written in C, and generators, name no module
        module = getattr(value, "__module__", None) or type(value).__module__
        return f"{module.split('.')[-1]}.{value.__qualname__}"
    # the text of an object without one of its own would give an address
    if type(value).__repr__ is object.__repr__ or hasattr(value, "named_buffers"):
        return _object_as_text(value)
    return repr(value)


def from_text(text: str) -> Any:
    """Return the setting whose text this is.

    Raises ValueError for what is no literal, as a function is none.
    """
    try:
        return ast.literal_eval(text)
    # all that it refuses a text with, besides
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text}: no literal") from error


def _object_as_text(value: Any) -> str:
    """An object by its class; a torch.nn.Module, such as a loss, with its numbers and texts.

    A module's own text leaves out most of them: two losses that differ would look like one.
    """
    arguments: dict[str, Any] = {}
    if hasattr(value, "named_buffers"):
        for name, attribute in vars(value).items():
            is_private = name[0] == "_" or name == "training"
            if not is_private and isinstance(attribute, bool | int | float | str):
                arguments[name] = attribute
        for name, tensor in value.state_dict().items():
            arguments[name] = tensor.tolist()
    text = ", ".join(f"{name}={arguments[name]!r}" for name in sorted(arguments))
    return f"{as_text(type(value))}({text})"


def _sequence_as_text(value: list | tuple) -> str:
    text = ", ".join(as_text(item) for item in value)
    if isinstance(value, list):
        return f"[{text}]"
    return f"({text},)" if len(value) == 1 else f"({text})"

"""Whether what was read from a file has the types that a dataclass says."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any


def check(record: Any) -> None:
    """Raises TypeError, with name and value, unless every field has its type.

    record: a dataclass or a NamedTuple.
    """
    for name, hint in _hints(record.__class__).items():
        value = getattr(record, name)
        if not fits(hint, value):
            text = repr(value)
            raise TypeError(f"{name} is {text if len(text) < 80 else text[:77] + '...'}")


def no_constant(name: str) -> float:
    """For json.loads(parse_constant=...): NaN and Infinity are no JSON, and none of ours."""
    raise ValueError(f"{name}, which is no number")


def is_number(text: str) -> bool:
    """Whether a word or a cell of a table is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def build(hint: Any, value: Any) -> Any:
    """A value of JSON as an annotation says it: dataclasses, named tuples, tuples, lists, dicts.

    Of a dataclass, entries that it has no field for are left out, and fields without an entry keep
    their default. What is built already stays, and so does what is of another type, which `check`
    tells. Raises TypeError for a field that has neither an entry nor a default.
    """
    parts = typing.get_args(hint)
    kind = typing.get_origin(hint)
    if kind in (types.UnionType, typing.Union):
        return None if value is None else build(parts[0], value)
    if kind is list and isinstance(value, list):
        return [build(parts[0], item) for item in value]
    if kind is dict and isinstance(value, dict):
        return {key: build(parts[1], item) for key, item in value.items()}
    if kind is tuple:
        kinds = parts[:1] * len(value) if Ellipsis in parts else parts
        return tuple(build(part, item) for part, item in zip(kinds, value, strict=True))
    is_record = dataclasses.is_dataclass(hint) or hasattr(hint, "_fields")
    if not is_record or not isinstance(value, Mapping):
        return value
    hints = _hints(hint)
    return hint(**{name: build(hints[name], value[name]) for name in hints if name in value})


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is what an annotation says; whole numbers are numbers, True is none."""
    parts = typing.get_args(hint)
    kind = typing.get_origin(hint)
    if kind in (types.UnionType, typing.Union):
        return any(fits(part, value) for part in parts)
    if kind is typing.Literal:
        return value in parts
    if kind is not None:
        return isinstance(value, kind) and _items_fit(kind, parts, value)
    return hint is Any or _is_a(hint, value)


def _is_a(kind: type, value: Any) -> bool:
    if isinstance(value, bool) and kind in (int, float):
        return False
    if kind is float:
        return isinstance(value, int | float)
    if not isinstance(value, kind):
        return False
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        check(value)
    return True


def _items_fit(kind: type, parts: tuple[Any, ...], value: Any) -> bool:
    """Whether the items of a dict, list or tuple are of the kinds in its annotation."""
    if kind is dict:
        keys_fit = all(fits(parts[0], key) for key in value)
        return keys_fit and all(fits(parts[1], item) for item in value.values())
    if len(parts) == 2 and parts[1] is not Ellipsis:
        return len(value) == 2 and all(map(fits, parts, value))
    return all(fits(parts[0], item) for item in value)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """The annotations of the fields of a dataclass or NamedTuple."""
    hints = typing.get_type_hints(kind)
    if hasattr(kind, "_fields"):
        return {name: hints[name] for name in kind._fields}
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}

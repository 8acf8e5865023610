"""Types of settings: what a value must be like, and what to write instead."""

from __future__ import annotations

import math
import os
import string
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """A test that a value must pass, and what to write instead."""

    passes: Callable[[Any], bool]
    wanted: str


def one_of(*choices: str) -> Check:
    """The value is one of `choices`."""
    wanted = ", ".join(repr(choice) for choice in choices)
    return Check(lambda value: value in choices, f"one of {wanted}")


def whole(least: int, most: int) -> Check:
    """The value is a whole number between two."""
    return Check(lambda value: least <= value <= most, f"a whole number from {least} to {most}")


def up_to(most: float) -> Check:
    """The value is a number between 0 and another one."""
    return Check(lambda value: 0 <= value <= most, f"a number from 0 to {most:g}")


def _is_interval(value: Sequence[float]) -> bool:
    # of factors and exponents, so that 90 to 110 is of percent
    return len(value) == 2 and 0 <= value[0] <= value[1] <= 10


def _is_raw_range(value: Sequence[float]) -> bool:
    if not value:  # not set
        return True
    return len(value) == 2 and -math.inf < value[0] < value[1] < math.inf


def _are_sinks(value: Sequence[str | Callable]) -> bool:
    known = [callable(item) or item in ("tensorboard", "mlflow") for item in value]
    return bool(known) and all(known)


# a comparison with NaN is False, so that none of these lets one pass
Positive = Check(lambda value: 0 < value < math.inf, "a number above 0")
NotNegative = Check(lambda value: 0 <= value < math.inf, "0 or more")
Fraction = Check(lambda value: 0 <= value <= 1, "a number between 0 and 1")
WorkerCount = whole(0, 1024)
# each of them is read, whether there is a section or not
SectionsBeside = whole(0, 100)
# more epochs or steps than any run has: a number with zeros too many
Count = whole(1, 10**9)
CountOrNone = whole(0, 10**9)
# of one optimiser step, which is neither saved nor stopped within
Passes = whole(1, 10_000)
# a picture each
Shown = whole(0, 1000)
# 30 years; the waiting of the system goes not much farther
Time = up_to(1e9)
# raw is in [0, 1], so that more is meant for raw from 0 to 255
OfRaw = up_to(1)
BelowOne = Check(lambda value: 0 <= value < 1, "0 or a number below 1")
# torch takes more, NumPy's Philox no negative ones
Seed = Check(lambda value: 0 <= value < 2**63, "a whole number from 0 to 2**63 - 1")
LowHigh = Check(_is_interval, "two numbers (low, high) from 0 to 10, in order")
RawRange = Check(_is_raw_range, "two numbers (low, high), low first")
Sinks = Check(
    _are_sinks,
    "'tensorboard', 'mlflow', or a class of your own like common.train.recording.tracking.Sink",
)
Halo = Check(
    lambda value: len(value) == 3 and all(0 <= voxels <= 10_000 for voxels in value),
    "a number of voxels from 0 to 10000, or three, z, y, x",
)

LIMIT = 2**63
"""NumPy and torch do not count as far."""

_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
    dict: "a dict",
    Callable: "a function or a class",
}


def fit(hint: Any, value: Any) -> tuple[Any, str]:
    """The value in the type of a setting, and what to write instead; "" if it fits.

    hint: the annotation of the setting. `Callable | None` and the like take None as it is, a list
    may be written as a tuple or as text with commas, a whole number where a number is wanted.
    """
    value = plain(value)
    checks = getattr(hint, "__metadata__", ())
    kind = typing.get_args(hint)[0] if checks else hint
    if isinstance(kind, types.UnionType):
        if value is None:
            return None, ""
        kind = typing.get_args(kind)[0]
    if Halo in checks and is_a(int, value):  # the same along every axis
        value = (value,) * 3
    if typing.get_origin(kind) is tuple:
        value, wanted = _fit_list(typing.get_args(kind)[0], value)
    else:
        value, wanted = _fit_single(kind, value)
    if wanted:
        return value, wanted
    for check in checks:
        if not check.passes(value):
            return value, f"write {check.wanted}"
    if is_a(int, value) and abs(value) >= LIMIT:
        return value, "write a number below 2**63"
    return value, ""


def plain(value: Any) -> Any:
    """The value with Python's own numbers and texts for NumPy's, also within lists and dicts.

    By its text, np.float64(0.001) on record is another setting than 0.001. An np.str_ among the
    classes would be an object in checkpoints, which are read without objects.
    """
    # told by its name, since reading a configuration needs no NumPy
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    if type(value) is dict:
        return {plain(key): plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return value


def _fit_single(kind: Any, value: Any) -> tuple[Any, str]:
    if kind is float and is_a(int, value) and abs(value) < LIMIT:
        value = float(value)
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if kind is str and is_a(str, value) and "\0" in value:  # no path takes it
        return value, "write text without a zero byte"
    if is_a(kind, value):
        return value, ""
    return value, f"write {_WORDS[kind]}"


def _fit_list(item: Any, value: Any) -> tuple[Any, str]:
    """The value as a tuple of items of one kind."""
    if isinstance(value, str):  # as --set gives it: mito,er
        parts = [part.strip() for part in value.strip("[]() ").split(",")]
        value = tuple(part for part in parts if part)
    is_list = isinstance(value, list | tuple)
    if is_list and all(is_a(item, part) for part in value):
        return tuple(value), ""
    return value, f"write a flat list of {'numbers' if item in (int, float) else 'names'}"


def is_a(kind: Any, value: Any) -> bool:
    """Whether a value is of a kind: True is no number, a whole number is a number."""
    if isinstance(value, bool) and kind in (int, float):
        return False
    if kind is float:
        # no float is as large as a whole number can be
        return isinstance(value, float) or (isinstance(value, int) and abs(value) < LIMIT)
    return isinstance(value, kind)


def wrong_fields(text: str, fields: Sequence[str]) -> str:
    """What to write if braces hold anything but these names; "" if they do not.

    An attribute, an index, a conversion or a width is refused: `format` would look inside the
    object.
    """
    wanted = f"in braces write only {', '.join(f'{{{field}}}' for field in fields)}"
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError:
        return wanted
    for _, field, width, conversion in parsed:
        if field is not None and (field not in fields or width or conversion):
            return wanted
    return ""

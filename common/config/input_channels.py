"""How further input channels are declared: their volumes, values, and what lies beyond them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from common.config.as_text import from_text
from common.config.kinds import is_a, wrong_fields

RAW = "raw"
"""The first channel, which is not declared: raw of input_array_info."""

FIELDS = ("dataset", "crop")
"""What may stand in braces in the path of a channel."""

WANTED = (
    'write {"mito": "PATH"} or {"mito": {"path": "PATH", "range": (0, 255), "outside": 0.0}}, of '
    "which range and outside may be left out"
)

READ_ONCE = (
    "raw is read at one shape and scale: leave out its other ones; of another volume, as a further "
    "channel"
)


@dataclass(frozen=True)
class InputChannel:
    """One further channel of the network's input."""

    name: str
    path: str
    """Of its volume, with {dataset} and {crop}; a relative one starts from the experiment."""
    range: tuple[float, ...] = ()
    """Stored values that become 0 and 1; by default those of what the volume says that it is."""
    outside: float | None = None
    """Value, 0 to 1, beyond the volume; None where it must not end."""


def read_channels(declared: Mapping[str, Any]) -> tuple[InputChannel, ...]:
    """Return the channels of the setting input_channels, which was checked, in its order."""
    channels = []
    for name, given in declared.items():
        said = {"path": given} if isinstance(given, str) else dict(given)
        if "range" in said:
            said["range"] = tuple(said["range"])
        channels.append(InputChannel(name, **said))
    return tuple(channels)


def values_of(recorded: str) -> list[InputChannel]:
    """Return the channels of the setting as it is on record, without where they lie."""
    channels = read_channels(from_text(recorded))
    return [replace(channel, path="") for channel in channels]


def apart_from_raw(info: Any) -> tuple[Any, dict[str, Any]]:
    """Return raw's part of an input_array_info that names raw and other arrays, and the others.

    Of one that names none the whole, and {}.
    """
    is_named = isinstance(info, dict) and isinstance(info.get(RAW), dict) and len(info) > 1
    if not is_named:
        return info, {}
    others = {name: given for name, given in info.items() if name != RAW}
    return info[RAW], others


def channel_problems(declared: Mapping[str, Any], written_in: str) -> list[str]:
    """Return what is wrong with the setting input_channels; written_in: that, or the other one."""
    problems = []
    for name, given in declared.items():
        problem = _problem_of_name(name) or _problem(given)
        if problem:
            problems.append(f"{written_in}[{name!r}] = {given!r}; {problem}")
    return problems


def _problem_of_name(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        return "give it a name of letters, digits and _"
    if name == RAW:
        return "raw is the first channel in any case; give it another name"
    return ""


def _problem(given: Any) -> str:
    said = {"path": given} if isinstance(given, str) else given
    if not isinstance(said, dict) or not isinstance(said.get("path"), str):
        is_raw_again = isinstance(said, dict) and {"shape", "scale"} <= set(said)
        return f"{READ_ONCE}, {WANTED}" if is_raw_again else WANTED
    if {"shape", "scale"} & set(said):
        return f"all channels have the shape and scale of raw: leave them out, and {WANTED}"
    if set(said) - {"path", "range", "outside"} or not said["path"]:
        return WANTED
    outside = said.get("outside", 0)
    if outside is not None and not (is_a(float, outside) and 0 <= outside <= 1):
        return "outside is the value beyond the volume: write a number between 0 and 1"
    return _problem_of_range(said.get("range", ())) or wrong_fields(said["path"], FIELDS)


def _problem_of_range(given: Any) -> str:
    wanted = "range is the stored values that become 0 and 1: write two numbers, low first"
    if not isinstance(given, list | tuple):
        return wanted
    if not given:
        return ""
    if len(given) != 2 or not all(is_a(float, value) for value in given):
        return wanted
    return "" if given[0] < given[1] else wanted

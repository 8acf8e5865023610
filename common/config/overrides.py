"""Settings as text, "name=value" or "name.key=value", of `--set` and of files of `--overrides`."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.as_text import from_text
from common.config.other_names import unknown_setting
from common.config.settings import TrainConfig
from common.errors import refuse
from common.files import is_file
from common.talk import short_path


@dataclass(frozen=True)
class Override:
    """One "name=value" or "name.key=value", taken apart."""

    name: str
    """Of the setting, spelled as in a configuration: `-` is `_`."""
    keys: tuple[str, ...]
    """Within the dict that the setting is, as written: crop_sampling_weights.jrc_hela-2/*."""
    written: str | None
    """The value as text; None where there is no `=`."""

    @property
    def path(self) -> str:
        """Name and keys, with dots between."""
        return ".".join((self.name, *self.keys))


def taken_apart(text: str) -> Override:
    """Return the parts of an override, whether there is such a setting or not."""
    path, equals, written = text.partition("=")
    name, *keys = path.strip().split(".")
    return Override(name.replace("-", "_"), tuple(keys), written if equals else None)


def read_overrides(path: str | Path) -> tuple[str, ...]:
    """Return the "name=value" lines of a file, as `apply_overrides` takes them.

    Empty lines and those that begin with # are left out. Raises FileNotFoundError, or UserError
    for lines without '='.
    """
    path = Path(path)
    if not is_file(path):
        raise FileNotFoundError(
            f"{path}: no such file of overrides; write one with a line name=value for each setting"
        )
    overrides = []
    problems = []
    lines = path.read_text("utf-8-sig", errors="replace").splitlines()
    for number, text in enumerate(lines, 1):
        line = text.strip()
        if not line or line.startswith("#"):
            continue
        overrides.append(line)
        if "=" not in line:
            problems.append(f"{path}, line {number}: '{line}' has no '='; write name=value")
    refuse(problems)
    return tuple(overrides)


def with_file(overrides: Sequence[str], path: str | Path | None) -> tuple[str, ...]:
    """Return overrides of the command line after those of a file, if one is given."""
    return (*read_overrides(path), *overrides) if path else tuple(overrides)


def refuse_unknown(file: Path, overrides: Sequence[str]) -> None:
    """Raise UserError for overrides of settings that there are not, before the file is run."""
    problems = [_unknown(taken_apart(text), text) for text in overrides]
    refuse([problem for problem in problems if problem], short_path(file))


def _unknown(override: Override, text: str) -> str:
    """Return what is wrong with an override whatever its value is, or ""."""
    hints = typing.get_type_hints(TrainConfig)
    if override.written is None:
        return f"--set {text}: no '='; write --set name=value"
    if override.name not in hints:
        return f"--set {text}: {unknown_setting(override.name, hints)}"
    return ""


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Set values of a training configuration, one after the other; return what is wrong."""
    problems = [_apply(values, text) for text in overrides]
    return [problem for problem in problems if problem]


def _apply(values: dict[str, Any], text: str) -> str:
    """Set one value; return what is wrong with the override, or ""."""
    override = taken_apart(text)
    name = override.name
    problem = _unknown(override, text)
    if problem:
        return problem
    assert override.written is not None
    value = literal(override.written)
    if override.keys:
        if not _set_within(values, [name, *override.keys], value):
            return f"--set {text}: {name} has no parts with names; write --set {name}=value"
        return ""
    hints = typing.get_type_hints(TrainConfig)
    if hints[name] is str and not isinstance(value, str):  # a run may be named 7
        value = override.written.strip()
    values[name] = value
    return ""


def _set_within(values: dict[str, Any], keys: Sequence[str], value: Any) -> bool:
    """Set a value in nested dicts; False where there is another thing than a dict."""
    *parents, last = keys
    for key in parents:
        below = values.get(key, {})
        if not isinstance(below, dict):
            return False
        values[key] = dict(below)  # the file's own dict stays as it is
        values = values[key]
    values[last] = value
    return True


def literal(text: str) -> Any:
    """The Python value that a text is; `true`, `false` and `none` as shells write them; or text."""
    text = text.strip()
    try:
        return from_text(text)
    except ValueError:
        words = {"true": True, "false": False, "none": None}
        return words.get(text.lower(), text)

"""Reads a configuration file, with the overrides of the command line and the environment."""

from __future__ import annotations

import ast
import dataclasses
import os
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config.check import _unknown, check_settings
from common.config.module import _short, load_module
from common.config.settings import ProcessConfig, TrainConfig
from common.errors import UserError
from common.files import REPOSITORY


def load_config(
    path: str | Path, overrides: Sequence[str] = (), data: str | Path | None = None, **settings: Any
) -> TrainConfig:
    """The checked settings of a training configuration file (or of the experiment folder that holds train_config.py).

    overrides: "name=value" or "name.key=value", as `--set` takes them; settings: the same as Python values; data: the
    data root. They go before the environment (SEED, CELLMAP_DATA, CELLMAP_CACHE), and that before the file.
    Raises FileNotFoundError, or ValueError with everything that is wrong in one message.
    """
    path = _config_file(path, "train_config.py")
    values = _read_settings(path, TrainConfig)
    given, problems = environment()
    values |= {**given, **settings}
    if data:
        values["data_path"] = str(data_root(data))
    problems += [problem for override in overrides if (problem := _override(values, override))]
    root = data_root(data)
    if values.get("data_path") == str(root) and not root.is_dir():
        problems.append(f"the data root {root} is no folder; write the one that holds the datasets")
    config = check_settings(_short(path), values, problems)
    folder, name = path.parent / config.base_experiment_path, config.model_name or path.parent.name
    return dataclasses.replace(config, base_experiment_path=str(folder), model_name=name)


def read_overrides(path: str | Path) -> tuple[str, ...]:
    """The "name=value" lines of a file, as `load_config` takes them; empty lines and lines that begin with # are left out.

    Raises FileNotFoundError, or ValueError for a line without '='.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file of overrides; write one with a line name=value for each setting"
        )
    lines = [(number, line.strip()) for number, line in enumerate(path.read_text().splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if wrong := [
        f"{path}, line {number}: '{line}' has no '='; write name=value"
        for number, line in lines
        if "=" not in line
    ]:
        raise UserError("\n".join(wrong))
    return tuple(line for _, line in lines)


def load_process_config(path: str | Path) -> ProcessConfig:
    """The checked settings of a process_config.py (or of the experiment folder that holds it)."""
    path = _config_file(path, "process_config.py")
    return check_settings(_short(path), _read_settings(path, ProcessConfig), table=ProcessConfig)


def data_root(given: str | Path | None = None) -> Path:
    """The data root, absolute: the given one, else CELLMAP_DATA, else data/ in the repository."""
    return (
        Path(given or os.environ.get("CELLMAP_DATA") or REPOSITORY / "data").expanduser().absolute()
    )


def _config_file(path: str | Path, name: str) -> Path:
    path = Path(path)
    path = path / name if path.is_dir() else path
    if not path.is_file() or path.suffix != ".py":
        raise FileNotFoundError(
            f"{path}: no such configuration; write the path of an experiment's {name}"
        )
    return path.resolve()


def _read_settings(path: Path, table: type) -> dict[str, Any]:
    """The names that a configuration file gives and that are settings; what it works with is left out.

    That is: imports, definitions, CONSTANTS, _private names, and configurations that it reads its settings from.
    """
    known = {f.name for f in dataclasses.fields(table)}
    values = {}
    for name, value in vars(load_module(path)).items():
        is_tool = (
            isinstance(value, types.ModuleType | types.SimpleNamespace)
            or getattr(value, "__name__", None) == name
            or (name.isupper() and name.lower() not in known)
            or name.startswith("_")
            or name in ("annotations", "config_path")
        )
        if name in known or not is_tool:
            values[name] = value
    return values


def environment() -> tuple[dict[str, Any], list[str]]:
    """The settings that SEED, CELLMAP_DATA and CELLMAP_CACHE give, and what is wrong with them."""
    values: dict[str, Any] = {}
    if os.environ.get("CELLMAP_CACHE"):
        values["cache_path"] = str(Path(os.environ["CELLMAP_CACHE"]).expanduser().absolute())
    if os.environ.get("CELLMAP_DATA"):
        values["data_path"] = str(data_root())
    if "SEED" not in os.environ:
        return values, []
    try:
        return values | {"random_seed": int(os.environ["SEED"])}, []
    except ValueError:
        return values, [
            f"SEED is '{os.environ['SEED']}' in the environment; write a whole number, or unset it"
        ]


def _override(values: dict[str, Any], text: str) -> str | None:
    """Apply one "name=value" or "name.key=value"; returns what is wrong with it."""
    name, equals, value = text.partition("=")
    name, *keys = name.strip().replace("-", "_").split(".")
    hints = typing.get_type_hints(TrainConfig)
    if not equals:
        return f"--set {text}: no '='; write --set name=value"
    if name not in hints:
        return f"--set {text}: {_unknown(name, hints)}"
    for place in (name, *keys[:-1]) if keys else ():
        below = values.get(place, {})
        if not isinstance(below, dict):
            return f"--set {text}: {name} has no parts with names; write --set {name}=value"
        values[place] = values = dict(below)
    literal = _literal(value)
    is_text = not keys and hints[name] is str and not isinstance(literal, str)
    values[keys[-1] if keys else name] = value.strip() if is_text else literal
    return None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.strip().lower(), text.strip())

"""Reads a configuration file, with the overrides of the command line and the environment."""

from __future__ import annotations

import ast
import dataclasses
import os
import sys
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config import horizon
from common.config.check import check_settings
from common.config.kinds import is_a, plain
from common.config.module import is_tool, load_module
from common.config.overrides import apply_overrides, literal, taken_apart
from common.config.settings import ProcessConfig, TrainConfig
from common.config.written import lost_settings
from common.errors import UserError, refuse
from common.files import REPOSITORY, is_file, refuse_remote
from common.talk import short_path, some

if typing.TYPE_CHECKING:
    from common.config.public.configs import Translation

PACKAGE = "cellmap_segmentation_challenge"
"""What every configuration of the public toolbox imports, and ours need not."""


def load_config(
    path: str | Path, overrides: Sequence[str] = (), data: str | Path | None = None, **settings: Any
) -> TrainConfig:
    """The checked settings of a training configuration.

    What is given here goes before the environment (SEED, CELLMAP_DATA, CELLMAP_CACHE), and that
    before the file. Raises FileNotFoundError, or UserError with everything that is wrong.

    Args:
        path: a Python file, or the experiment's folder that holds train_config.py.
        overrides: "name=value" or "name.key=value", as `--set` takes them.
        data: the data root.
        settings: the same as overrides, as Python values.
    """
    path = config_file(path, "train_config.py")
    from_environment, problems = environment()
    seed = _seed_from_outside(from_environment, overrides, settings)
    path, values, translation = _read_training(path, seed, str(data_root(data)) if data else "")
    problems += translation.problems if translation else []
    values = plain(values)
    written = _length(values)
    values |= from_environment
    values |= plain(settings)
    if data:
        values["data_path"] = str(data_root(data))
    problems += apply_overrides(values, overrides)
    own_lengths = horizon.named_in(overrides, settings)
    _lengthen_schedule(values, written, own_lengths)
    problems += _root_problems(values, data_root(data))
    config = check_settings(short_path(path), values, problems, TrainConfig)
    if translation:
        missing_split = {"classes": config.classes} | translation.split
        config = dataclasses.replace(
            config, translated=translation.notes, missing_split=missing_split
        )
    return dataclasses.replace(
        config,
        base_experiment_path=str(path.parent / config.base_experiment_path),
        model_name=config.model_name or path.parent.name,
    )


def _root_problems(values: Mapping[str, Any], root: Path) -> list[str]:
    """What is wrong with a data root that was asked for; reading a configuration needs no data."""
    if values.get("data_path") != str(root) or root.is_dir():
        return []
    return [f"the data root {root} is no folder; write the one that holds the datasets"]


def _seed_from_outside(
    from_environment: Mapping[str, Any], overrides: Sequence[str], settings: Mapping[str, Any]
) -> int | None:
    """The random_seed that goes before the file's; None where there is none, or no seed."""
    seed = from_environment.get("random_seed")
    seed = settings.get("random_seed", seed)
    for override in map(taken_apart, overrides):
        if override.path == "random_seed":
            seed = literal(override.written or "")
    return seed if is_a(int, seed) and 0 <= seed < 2**63 else None


def _read_training(
    path: Path, seed: int | None, data: str
) -> tuple[Path, dict[str, Any], Translation | None]:
    """The names that a training configuration gives, and how they were translated if they were.

    Its path comes first: the public toolbox's process files name that of training.

    seed: of the weights of a network that the file makes. data: the data root that was asked for.
    """
    if not _is_public(path):
        return path, _read_settings(path, TrainConfig), None
    # it imports torch
    from common.config.public import configs

    names = configs.run(path, seed, data)
    training = None if "model" in names else configs.training_file(path, names)
    if training is None:
        translation = configs.translate(path, names)
        return path, translation.settings, translation
    path_of_training, values, translated = _read_training(training, seed, data)
    if "process_func" in names:
        values["process_config_path"] = os.path.relpath(path, training.parent)
    return path_of_training, values, translated


def _length(values: Mapping[str, Any]) -> horizon.Length | None:
    """How long a run with these settings is; None if they are not what they should be."""
    settings = {}
    for name in horizon.Length._fields:
        settings[name] = values.get(name, getattr(TrainConfig, name))
    numbers = (settings["epochs"], settings["iterations_per_epoch"])
    return horizon.Length(**settings) if all(is_a(int, number) for number in numbers) else None


def _lengthen_schedule(
    values: dict[str, Any], written: horizon.Length | None, own_lengths: Collection[str]
) -> None:
    """Make the schedule of the scheduler as long as the run, see `common.config.horizon`.

    written: what the file says. own_lengths: names that the command line gave a value of their
    own, which stays.
    """
    kwargs = values.get("scheduler_kwargs", {})
    length = _length(values)
    # anything else is told by the checks
    if not callable(values.get("scheduler")) or not isinstance(kwargs, dict):
        return
    if length is None:
        return
    filled = horizon.with_horizon(values["scheduler"], kwargs, length, written or length)
    for name in own_lengths:
        if name in kwargs:
            filled[name] = kwargs[name]
    values["scheduler_kwargs"] = filled


def _is_public(path: Path) -> bool:
    """Whether a file is written for the public toolbox: it imports it and names no build_model.

    Or it names a model, too, which no experiment of ours does.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, ValueError, SyntaxError):  # running it will tell
        return False
    imported: set[str] = set()
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named |= {alias.asname or alias.name for alias in node.names} & {"build_model"}
            imported.add((node.module or "").partition(".")[0] if not node.level else "")
        elif isinstance(node, ast.FunctionDef):
            named.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            named.add(node.id)
    return PACKAGE in imported and ("build_model" not in named or "model" in named)


def load_process_config(path: str | Path) -> ProcessConfig:
    """The checked settings of a process_config.py, or of the experiment's folder that holds it."""
    path = config_file(path, "process_config.py")
    if _is_public(path):
        from common.config.public import configs

        values = configs.translate_process(path, configs.run(path))
    else:
        values = _read_settings(path, ProcessConfig)
    return check_settings(short_path(path), values, [], ProcessConfig)


def data_root(given: str | Path | None = None) -> Path:
    """The data root, absolute: the given one, else CELLMAP_DATA, else data/ in the repository.

    Raises UserError for an address.
    """
    chosen = given or os.environ.get("CELLMAP_DATA") or REPOSITORY / "data"
    refuse_remote(chosen)
    return Path(chosen).expanduser().absolute()


def environment() -> tuple[dict[str, Any], list[str]]:
    """The settings that SEED, CELLMAP_DATA and CELLMAP_CACHE give, and what is wrong with them."""
    values: dict[str, Any] = {}
    problems = []
    # an empty variable is how a shell script unsets one
    if os.environ.get("CELLMAP_CACHE"):
        values["cache_path"] = str(Path(os.environ["CELLMAP_CACHE"]).expanduser().absolute())
    if os.environ.get("CELLMAP_DATA"):
        values["data_path"] = str(data_root())
    seed = os.environ.get("SEED")
    if seed is not None:
        try:
            values["random_seed"] = int(seed)
        except ValueError:
            problems.append(
                f"SEED is '{seed}' in the environment; write a whole number, or unset it"
            )
    return values, problems


def config_file(path: str | Path, name: str) -> Path:
    """The configuration file of a path that may be its folder, absolute."""
    path = Path(path)
    # a folder of that name stands where the file is meant
    if path.is_dir() and path.name != name:
        path = path / name
    if not is_file(path) or path.suffix != ".py":
        raise FileNotFoundError(
            f"{path}: no such configuration; write the path of an experiment's {name}"
        )
    return path.resolve()


def _read_settings(path: Path, table: type) -> dict[str, Any]:
    """The names that a configuration file gives, those left out that it only works with."""
    known = {field.name for field in dataclasses.fields(table)}
    values = {}
    module = load_module(path)
    for name, value in vars(module).items():
        if name in known or not _is_tool(name, value, known):
            values[name] = value
    refuse(lost_settings(path, vars(module), table), short_path(path))
    _refuse_left_behind(path, module, _alone_in(table) - values.keys())
    return values


def _alone_in(table: type) -> set[str]:
    """The settings of a table; of process those that training has, too, are left out."""
    names = {field.name for field in dataclasses.fields(table)}
    if table is TrainConfig:
        return names
    return names - {field.name for field in dataclasses.fields(TrainConfig)}


def _refuse_left_behind(path: Path, module: types.ModuleType, absent: set[str]) -> None:
    """Raise UserError where data.py has settings that the configuration does not import.

    They would have no effect, and nothing would tell. absent: those that the configuration lacks.
    """
    beside = sys.modules.get(f"{module.__name__.rpartition('.')[0]}.data")
    left = sorted(absent & vars(beside).keys()) if beside else []
    if left:
        raise UserError(
            f"{short_path(path)}: data.py has {some(left)}, and this file does not take it from "
            f"there; write `from .data import {', '.join(left)}`, or remove it from data.py"
        )


def _is_tool(name: str, value: Any, known: set[str]) -> bool:
    """Whether a name is no attempt at a setting.

    True for modules, functions and classes, CONSTANTS, _private names, and configurations that the
    file reads its settings from.
    """
    # BATCH_SIZE is a misspelt setting, and no constant
    if name.isupper() and name.lower() not in known:
        return True
    return is_tool(name, value)

"""Checks settings one by one and against each other; everything wrong in one message."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from common import classes as class_table
from common.config.settings import (
    RUN_FOLDERS,
    TOOLBOX_NAMES,
    ProcessConfig,
    TrainConfig,
    _as_text,
    describe,
)
from common.errors import UserError


def check_settings(
    where: str, values: dict[str, Any], problems: Sequence[str] = (), table: type = TrainConfig
) -> Any:
    """The values as a `table`. ValueError with these problems and all that are found, `where` before each."""
    fields = {f.name: f for f in dataclasses.fields(table)}
    hints = typing.get_type_hints(table, include_extras=True)
    problems, fitting = [*problems], {}
    for name, value in values.items():
        if name not in fields:
            problems.append(_unknown(name, fields))
            continue
        value, wrong = _fit(hints[name], value)
        if wrong:
            problems.append(f"{name} = {_as_text(value)}; {wrong}")
        else:
            fitting[name] = value
    meanings = {name: meaning for name, _, meaning in describe(table)}
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            problems.append(f"'{name}' is missing; {meanings[name]}")
    problems += _problems_within(fitting) + _problems_between(fitting)
    if problems:
        raise UserError("\n".join(f"{where}: {problem}" for problem in problems))
    return table(**fitting)


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, 1, 0.6)
    hint = (
        f"did you mean '{near[0]}'?"
        if near
        else "remove it, or begin its name with _ if it is not a setting"
    )
    return f"unknown setting '{name}'; {TOOLBOX_NAMES.get(name, hint)}"


def _fit(hint: Any, value: Any) -> tuple[Any, str | None]:
    """`value` in the type of a setting, and what is wrong with it if it cannot be."""
    checks = getattr(hint, "__metadata__", ())
    hint = typing.get_args(hint)[0] if checks else hint
    if isinstance(hint, types.UnionType):
        if value is None:
            return None, None
        hint = typing.get_args(hint)[0]
    if hint is float and _is(int, value):
        value = float(value)
    if hint is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(value, str):
            value = tuple(part.strip() for part in value.strip("[]() ").split(",") if part.strip())
        if not isinstance(value, list | tuple) or not all(_is(item, v) for v in value):
            return value, f"write a flat list of {'names' if item is str else 'numbers'}"
        value = tuple(value)
    elif not _is(hint, value):
        return value, f"write {KINDS[hint]}"
    return value, next(
        (f"write {check.wanted}" for check in checks if not check.passes(value)), None
    )


KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
    dict: "a dict",
    Callable: "a function or a class",
}


def _is(kind: type, value: Any) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if kind is float else kind)


def _problems_within(values: dict[str, Any]) -> list[str]:
    """What is wrong inside settings that have parts. Array infos are put into one form."""
    problems = []
    for name in ("input_array_info", "target_array_info"):
        if name in values:
            values[name], wrong = _array_info(values[name])
            problems += [f"{name} = {values[name]}; {wrong}"] if wrong else []
    names = values.get("classes", ("",))
    problems += [] if names else ["classes is empty; name at least one class"]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    problems += [
        f"class '{name}' stands {names.count(name)} times in classes; write it once"
        for name in repeated
    ]
    for name, value in values.get("thresholds", {}).items():
        if not (_is(float, value) and 0 < value < 1):
            problems.append(f"thresholds['{name}'] = {value}; write a probability between 0 and 1")
    if "classes" in values:
        problems += class_table.unknown_names(dict.fromkeys(names), values.get("extra_classes", ()))
    return (
        problems + _spatial_problems(values.get("spatial_transforms", {})) + _field_problems(values)
    )


def _problems_between(values: dict[str, Any]) -> list[str]:
    """What is wrong between settings that fit each by itself: functions that do not take what they will be given."""
    problems = []
    given: dict[str, tuple[int, dict]] = {
        "build_model": (1, values.get("model_kwargs", {})),
        "optimizer": (1, {"lr": 0.0, "weight_decay": 0.0}),
        "scheduler": (1, values.get("scheduler_kwargs", {})),
        "criterion": (3, {}),
        "process_func": (1, {}),
        "instance_func": (3, {}),
    }
    meanings = {
        name: meaning
        for table in (TrainConfig, ProcessConfig)
        for name, _, meaning in describe(table)
    }
    for name, (arguments, keywords) in given.items():
        if values.get(name) and (wrong := _refuses(values[name], arguments, keywords)):
            problems.append(f"{name} = {_as_text(values[name])}: {wrong}; {meanings[name]}")
    if values.get("scheduler_kwargs") and not values.get("scheduler"):
        problems.append(
            f"scheduler_kwargs = {values['scheduler_kwargs']} without a scheduler; set scheduler too"
        )
    return problems


def _refuses(function: Callable, arguments: int, keywords: dict[str, Any]) -> str | None:
    """Why a function cannot be called with so many arguments and these keywords."""
    try:
        inspect.signature(function).bind(*[None] * arguments, **keywords)
    except TypeError as error:
        return str(error)
    except ValueError:  # one written in C need not say what it takes
        return None
    return None


def _field_problems(values: dict[str, Any]) -> list[str]:
    problems = []
    for name, fields in (("run_name", ()), *((folder, ("run_name",)) for folder in RUN_FOLDERS)):
        fields = ("model_name", "random_seed", *fields)
        try:
            values.get(name, "").format(**dict.fromkeys(fields, ""))
        except (KeyError, IndexError, ValueError, AttributeError):
            text = ", ".join(f"{{{field}}}" for field in fields)
            problems.append(f"{name} = {values[name]!r}; in braces write only {text}")
    return problems


def _array_info(info: dict) -> tuple[dict, str | None]:
    wanted = 'write {"shape": (z, y, x) in voxels, "scale": (z, y, x) in nm}'
    if any(isinstance(value, dict) for value in info.values()):
        return info, f"{wanted}, of one array; several are not supported, and the one has no name"
    try:
        shape, scale = tuple(map(operator.index, info["shape"])), tuple(map(float, info["scale"]))
    except (KeyError, TypeError, ValueError):
        return info, wanted
    if len(shape) == 2:  # a 2-D patch is one voxel thick
        shape, scale = (1, *shape), (scale[0], *scale) if len(scale) == 2 else scale
    fits = (
        len(info) == 2
        and len(shape) == len(scale) == 3
        and min(shape) >= 1
        and all(0 < s < math.inf for s in scale)
    )
    return ({"shape": shape, "scale": scale}, None) if fits else (info, wanted)


def _spatial_problems(transforms: dict) -> list[str]:
    wanted = {
        "mirror": (
            '{"axes": {"x": 0.5}}, a probability for each axis',
            lambda p: _is(float, p) and 0 <= p <= 1,
        ),
        "rotate": (
            '{"axes": {"x": [-180, 180]}}, low and high in degrees for each axis',
            _is_angle_range,
        ),
        "transpose": ('{"axes": ["x", "y"]}, axes to permute', None),
    }
    problems = []
    for kind, spec in transforms.items():
        if kind not in wanted:
            problems.append(
                f"spatial_transforms: '{kind}' is none; mirror, transpose and rotate are"
            )
            continue
        form, fits = wanted[kind]
        axes = spec.get("axes") if isinstance(spec, dict) and set(spec) == {"axes"} else None
        named = isinstance(axes, dict if fits else (list, tuple)) and all(
            axis in ("x", "y", "z") for axis in axes
        )
        if not named or len(set(axes)) < len(axes) or (fits and not all(map(fits, axes.values()))):
            problems.append(f"spatial_transforms['{kind}'] = {spec}; write {form}")
    return problems


def _is_angle_range(angles: Any) -> bool:
    return (
        isinstance(angles, list | tuple)
        and len(angles) == 2
        and all(_is(float, angle) and math.isfinite(angle) for angle in angles)
        and angles[0] <= angles[1]
    )

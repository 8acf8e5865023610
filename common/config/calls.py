"""Whether functions of a configuration can be called as they will be, told by their signatures."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from common.config.as_text import as_text
from common.config.instance_options import CHANNELS, takes_channels
from common.config.settings import ProcessConfig, TrainConfig, describe


def call_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with functions that do not take what they will be called with."""
    calls: dict[str, tuple[int, dict[str, Any]]] = {
        "build_model": (1, _model_keywords(values)),
        "optimizer": (1, {"lr": 0.0, "weight_decay": 0.0}),
        "scheduler": (1, values.get("scheduler_kwargs", {})),
        "criterion": (
            _loss_arguments(values.get("criterion"), values.get("criterion_kwargs", {})),
            values.get("criterion_kwargs", {}),
        ),
        "augment": (2, {}),
        "process_func": (1, {}),
        "instance_func": (3, _channels(values.get("instance_func"))),
    }
    rows = [*describe(TrainConfig), *describe(ProcessConfig)]
    meanings = {row.name: row.meaning for row in rows}
    problems = []
    for name, (arguments, keywords) in calls.items():
        function = values.get(name)
        refusal = refuses(function, arguments, keywords) if function else ""
        if refusal:
            problems.append(f"{name} = {as_text(function)}: {refusal}; {meanings[name]}")
    for tracker in values.get("trackers", ()):
        refusal = refuses(tracker, 3, {}) if callable(tracker) else ""
        if refusal:
            problems.append(
                f"trackers: {as_text(tracker)}: {refusal}; it is called with "
                "(folder, run_name, settings), see common.train.recording.tracking.Sink"
            )
    return problems


def _model_keywords(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that build_model is called with."""
    keywords = dict(values.get("model_kwargs", {}))
    if values.get("input_channels"):
        keywords["in_channels"] = 1 + len(values["input_channels"])
    return keywords


def _channels(instance_func: Any) -> dict[str, Any]:
    """The keywords that a function of a class is called with."""
    wanted = callable(instance_func) and takes_channels(instance_func)
    return {CHANNELS: {}} if wanted else {}


def _loss_arguments(criterion: Any, keywords: dict[str, Any]) -> int:
    """With how many arguments a criterion is called: a class with none, others with 3 or 2."""
    made = criterion.func if isinstance(criterion, functools.partial) else criterion
    if inspect.isclass(made):
        return 0
    return 2 if criterion and refuses(criterion, 3, keywords) else 3


def refuses(function: Callable, arguments: int, keywords: Mapping[str, Any]) -> str:
    """Why a function cannot be called with so many arguments and these keywords; "" if it can.

    Only the signature is looked at: an error inside the function is a bug of its own.
    """
    try:
        signature = inspect.signature(function)
    except ValueError as error:
        # one written in C need not say what it takes; a partial may hold what its function does not
        is_partial = isinstance(function, functools.partial)
        return str(error) if is_partial and "incorrect arguments" in str(error) else ""
    try:
        signature.bind(*[None] * arguments, **keywords)
    except TypeError as error:
        return str(error)
    return ""

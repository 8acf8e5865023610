"""The heads of a network: which of its channels have a loss together, and what a logit means."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from common.config.as_text import as_text
from common.config.derived import SIGMOID, SIGNED, SOFTMAX, Affinities, Distance, channel_names
from common.config.kinds import is_a
from common.config.settings import TrainConfig

CLASSES = "classes"
EXCLUSIVE = "softmax"
"""Names of the heads that hold channels of several declarations."""


@dataclass(frozen=True)
class Head:
    """Some channels of a network that have one activation and one loss."""

    name: str
    """CLASSES, EXCLUSIVE, or the name of a derived channel."""
    channels: tuple[int, ...]
    """Their numbers among all channels."""
    activation: str
    """`common.config.derived` has them."""
    weight: float = 1.0
    """Of its loss in the sum of all."""


def heads_of(config: TrainConfig) -> tuple[Head, ...]:
    """Return the heads of a network.

    They are the channels that have the setting `criterion` together, those that are exclusive, and
    the derived channels that have a loss of their own.
    """
    names = {CLASSES: SIGMOID, EXCLUSIVE: SOFTMAX}
    for name, channel in config.derived.items():
        names[name] = channel.activation
    weights = config.loss_weights
    heads = []
    for name, numbers in _channels_of_heads(vars(config)).items():
        heads.append(Head(name, numbers, names[name], float(weights.get(name, 1.0))))
    return tuple(heads)


def main_head(config: TrainConfig) -> str:
    """Return the name of the head that the setting `criterion` is the loss of; "" of none."""
    return _main_head(_channels_of_heads(vars(config)), config.criteria)


def _main_head(heads: Collection[str], criteria: Mapping[str, Any]) -> str:
    if CLASSES in heads:
        return CLASSES
    return EXCLUSIVE if EXCLUSIVE in heads and EXCLUSIVE not in criteria else ""


def _channels_of_heads(values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The numbers of the channels of each head. values: the settings, each right by itself."""
    derived = values.get("derived", {})
    channels = channel_names(values.get("classes", ()), derived)
    exclusive = [channels.index(name) for name in values.get("softmax", ())]
    left = [number for number in range(len(channels)) if number not in exclusive]
    own = {}
    for name, channel in derived.items():
        numbers = [channels.index(part) for part in channel.names(name)]
        is_asked = name in values.get("criteria", {}) or name in values.get("loss_weights", {})
        if set(numbers) <= set(left) and (is_asked or channel.activation == SIGNED):
            left = [number for number in left if number not in numbers]
            own[name] = tuple(numbers)
    heads = {}
    if left:
        heads[CLASSES] = tuple(left)
    if exclusive:
        heads[EXCLUSIVE] = tuple(exclusive)
    return heads | own


def range_nm(config: TrainConfig, channel: str) -> list[float] | None:
    """Return the nm that probability 0 and 1 of a channel stand for; None of a probability."""
    declared = config.derived.get(channel)
    if not isinstance(declared, Distance):
        return None
    return [-float(declared.clip), float(declared.clip)]


def offset_nm(config: TrainConfig, channel: str) -> list[float] | None:
    """Return nm, z, y, x, to the voxel that an affinity is about; None of another channel."""
    for name, declared in config.derived.items():
        names = declared.names(name)
        if isinstance(declared, Affinities) and channel in names:
            offset = declared.offsets[names.index(channel)]
            return [float(length) for length in offset]
    return None


def exclusive_channels(config: TrainConfig) -> tuple[int, ...]:
    """Return the numbers of the channels of a softmax, in the order of the setting."""
    return tuple(config.channels.index(name) for name in config.softmax)


def head_problems(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the settings `criteria` and `loss_weights`, as sentences.

    values: all settings, of which `classes`, `derived` and `softmax` are right.
    """
    heads = _channels_of_heads(values)
    problems = []
    for name, loss in values.get("criteria", {}).items():
        where = f"criteria['{name}']"
        if name == CLASSES:
            problems.append(f"{where}: write it as criterion, which is the loss of these channels")
        elif name not in heads:
            problems.append(f"{where}: {_no_head(heads, values)}")
        elif not callable(loss):
            problems.append(f"{where} = {as_text(loss)}; write a function or a class")
    weights = values.get("loss_weights", {})
    for name, weight in weights.items():
        where = f"loss_weights['{name}']"
        if name not in heads:
            problems.append(f"{where}: {_no_head(heads, values)}")
        elif not (is_a(float, weight) and 0 <= weight < math.inf):
            problems.append(f"{where} = {weight!r}; write a number, 0 or more")
    if weights and not problems and not any(weights.get(name, 1) for name in heads):
        problems.append(
            f"loss_weights = {weights}: nothing is left to learn; write a number above 0"
        )
    if values.get("criterion") and heads and not _main_head(heads, values.get("criteria", {})):
        problems.append(
            "criterion has no effect, since every channel is of a head with a loss of its own; "
            f"leave it out, or write it into criteria, for {' or '.join(heads)}"
        )
    return problems


def _no_head(heads: Collection[str], values: Mapping[str, Any]) -> str:
    names = [name for name in (*heads, *values.get("derived", {})) if name != CLASSES]
    if not names:
        return "there are no channels beside those of classes; declare them in derived or softmax"
    return f"no head is called so; write one of {', '.join(dict.fromkeys(names))}"

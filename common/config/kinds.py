"""What the value of a setting must be like, and what to write instead."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """A test that a value must pass, and what to write instead."""

    passes: Callable[[Any], bool]
    wanted: str


Positive = Check(lambda value: 0 < value < math.inf, "a number above 0")


NotNegative = Check(lambda value: 0 <= value < math.inf, "0 or more")


Fraction = Check(lambda value: 0 <= value <= 1, "a number between 0 and 1")


Seed = Check(lambda value: 0 <= value < 2**63, "a whole number from 0 to 2**63 - 1")


Interval = Check(
    lambda value: len(value) == 2 and 0 <= value[0] <= value[1] < math.inf,
    "two numbers (low, high), not negative, in order",
)


RawRange = Check(
    lambda value: len(value) == 0 or (len(value) == 2 and value[0] < value[1]),
    "two numbers (low, high), low first",
)


Sinks = Check(
    lambda value: value and set(value) <= {"tensorboard", "mlflow"},
    "one or both of 'tensorboard' and 'mlflow'",
)


Halo = Check(lambda value: len(value) == 3 and min(value) >= 0, "three numbers of voxels, z, y, x")


NotAClass = Check(
    lambda value: not inspect.isclass(value),
    "a function such as common.train.losses.bce_dice, not a class",
)


def one_of(*choices: str) -> Check:
    """The value is one of `choices`."""
    return Check(lambda value: value in choices, "one of " + ", ".join(map(repr, choices)))

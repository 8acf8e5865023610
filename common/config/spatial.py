"""Checks of spatial_transforms: probabilities of mirrors, axes to permute, angles in degrees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.config.kinds import is_a

FORMS = {
    "mirror": '{"axes": {"x": 0.5}}, a probability for each axis',
    "rotate": '{"axes": {"x": [-180, 180]}}, low and high in degrees for each axis',
    "transpose": '{"axes": ["x", "y"]}, axes to permute',
}


def spatial_problems(transforms: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the setting spatial_transforms, as sentences."""
    problems = []
    for kind, spec in transforms.items():
        if kind not in FORMS:
            problems.append(
                f"spatial_transforms: '{kind}' is none; mirror, transpose and rotate are"
            )
        elif not _is_transform(kind, spec):
            form = FORMS[kind]
            problems.append(f"spatial_transforms['{kind}'] = {spec}; write {form}")
    return problems


def _is_transform(kind: str, spec: Any) -> bool:
    if not isinstance(spec, dict) or set(spec) != {"axes"}:
        return False
    axes = spec["axes"]
    if kind == "transpose":
        return isinstance(axes, list | tuple) and _are_axes(axes)
    if not isinstance(axes, dict) or not _are_axes(list(axes)):
        return False
    is_right = _is_probability if kind == "mirror" else _is_angle_range
    return all(is_right(value) for value in axes.values())


def _are_axes(names: Sequence[Any]) -> bool:
    # one by one before the set: what stands in a list need not have a hash
    are_known = all(isinstance(name, str) and name in ("x", "y", "z") for name in names)
    return are_known and len(set(names)) == len(names)


def _is_probability(value: Any) -> bool:
    return is_a(float, value) and 0 <= value <= 1


def _is_angle_range(angles: Any) -> bool:
    if not isinstance(angles, list | tuple) or len(angles) != 2:
        return False
    if not all(is_a(float, angle) and abs(angle) <= 360 for angle in angles):
        return False
    return angles[0] <= angles[1] and not any(map(_is_of_radians, angles))


def _is_of_radians(angle: float) -> bool:
    """Whether an angle is an eighth of a turn, or several, up to a whole one, in radians."""
    eighths = abs(angle) / (math.pi / 4)
    return 0.5 < eighths < 8.5 and abs(eighths - round(eighths)) < 0.001

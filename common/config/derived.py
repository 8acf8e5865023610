"""Channels made of the objects of a class: what can be declared, and what the channels are called.

A line of data.py declares one or several channels, which the network learns beside its classes:

    derived = {
        "cell_boundary": boundary("cell", inside=20, outside=20),
        "cell_affinity": affinities("cell", offsets=[(8, 0, 0), (0, 8, 0), (0, 0, 8)]),
        "cell_distance": distance("cell", clip=100),
    }

All lengths are in nm of the target patch, between the centres of voxels: a voxel at the edge of an
object is one voxel away from what is beyond the edge. How a target is made of ids is known by
`common.data.samples.derive`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from common import classes as class_table
from common.config.kinds import is_a
from common.talk import nm

SIGMOID = "sigmoid"
SOFTMAX = "softmax"
SIGNED = "signed"
"""Activations: a probability, one of several that sum to 1, and a number from -1 to 1.

The number is 2 sigmoid(logit) - 1, so that it is stored as a probability is."""

OFF_THE_GRID = 0.02
"""Part of a voxel by which an offset may differ from whole voxels: sizes such as 5.24 are rounded.
"""

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Derived:
    """One or several channels made of the objects of a class."""

    of: str
    """The class, whose ids tell objects apart."""

    @property
    def activation(self) -> str:
        """What makes a probability, or a number, of a logit of the network."""
        return SIGMOID

    def names(self, name: str) -> tuple[str, ...]:
        """Return the names of its channels, where it is declared as `name`."""
        return (name,)

    @property
    def lengths(self) -> dict[str, float]:
        """Its lengths in nm by the name of their argument."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "of"}

    @property
    def reach_nm(self) -> Vector:
        """How far from a voxel, along z, y, x in nm, what decides about it may lie."""
        reach = float(max(self.lengths.values(), default=0.0))
        return (reach, reach, reach)

    def problems(self, voxel_nm: Sequence[float], seen_nm: Sequence[float]) -> list[str]:
        """Return what is wrong with it in a patch of such voxels, as sentences.

        seen_nm: size of the raw patch, all that the network sees.
        """
        problems = []
        for argument, length in self.lengths.items():
            if not _is_length(length):
                problems.append(f"{argument} = {length!r}; write nm, 0 or more")
            elif 0 < length < min(voxel_nm):
                problems.append(
                    f"{argument} = {length:g} nm, less than a voxel of {nm(voxel_nm)} nm, so that "
                    "no voxel is so near; write more"
                )
            elif length > max(seen_nm):
                problems.append(
                    f"{argument} = {length:g} nm, and a raw patch is {nm(seen_nm)} nm: a network "
                    "cannot tell what it does not see; write less, or a larger input_array_info"
                )
        if not problems and self.lengths and not any(self.lengths.values()):
            problems.append(f"{' and '.join(self.lengths)} = 0; write a length in nm")
        return problems


@dataclass(frozen=True)
class Background(Derived):
    """Where there is no object."""


@dataclass(frozen=True)
class Boundary(Derived):
    """Voxels of an object near its own edge, and background near an object."""

    inside: float
    outside: float


@dataclass(frozen=True)
class Border(Derived):
    """Where two objects touch, or come near each other."""

    gap: float


@dataclass(frozen=True)
class Inner(Derived):
    """Objects without the voxels near their own edge."""

    from_edge: float


@dataclass(frozen=True)
class Distance(Derived):
    """The distance to the edge, positive in objects and negative outside, divided by `clip`."""

    clip: float

    @property
    def activation(self) -> str:
        """A number from -1 to 1."""
        return SIGNED


@dataclass(frozen=True)
class Affinities(Derived):
    """Whether a voxel and the one at an offset are of one object, a channel for each offset."""

    offsets: tuple[Vector, ...]

    def names(self, name: str) -> tuple[str, ...]:
        """Return `name`_0, `name`_1, ..., in the order of the offsets."""
        return tuple(f"{name}_{number}" for number in range(len(self.offsets)))

    @property
    def lengths(self) -> dict[str, float]:
        """None: an offset has a direction."""
        return {}

    @property
    def reach_nm(self) -> Vector:
        """The longest part of an offset along each axis."""
        z, y, x = (max(map(abs, along)) for along in zip(*self.offsets, strict=True))
        return (z, y, x)

    def voxels(self, voxel_nm: Sequence[float]) -> list[tuple[int, int, int]]:
        """Return the offsets in voxels."""
        offsets = []
        for offset in self.offsets:
            z, y, x = (round(a / b) for a, b in zip(offset, voxel_nm, strict=True))
            offsets.append((z, y, x))
        return offsets

    def problems(self, voxel_nm: Sequence[float], seen_nm: Sequence[float]) -> list[str]:
        """Return what is wrong with the offsets, as sentences."""
        are_vectors = isinstance(self.offsets, tuple) and all(map(_is_vector, self.offsets))
        if not self.offsets or not are_vectors:
            return [f"offsets = {self.offsets!r}; write a list of (z, y, x) in nm"]
        problems = []
        for offset, steps in zip(self.offsets, self.voxels(voxel_nm), strict=True):
            on_grid = tuple(float(n * size) for n, size in zip(steps, voxel_nm, strict=True))
            off = [abs(a - b) for a, b in zip(offset, on_grid, strict=True)]
            if any(d > OFF_THE_GRID * size for d, size in zip(off, voxel_nm, strict=True)):
                problems.append(
                    f"offset {_text(offset)} nm is not whole voxels of {nm(voxel_nm)} nm; write "
                    f"{_text(_nearest(offset, voxel_nm))}"
                )
            elif not any(steps):
                problems.append(f"offset {_text(offset)} leads nowhere; leave it out")
            elif any(abs(a) >= b for a, b in zip(offset, seen_nm, strict=True)):
                problems.append(
                    f"offset {_text(offset)} nm is larger than the raw patch, {nm(seen_nm)} nm; "
                    "write a shorter one, or a larger input_array_info"
                )
        if len(set(self.voxels(voxel_nm))) < len(self.offsets):
            problems.append("two offsets are the same; write each once")
        return problems


# How they are declared


def background(of: str) -> Background:
    """Return a channel that is positive where there is no object of a class."""
    return Background(of)


def boundary(of: str, *, inside: float, outside: float) -> Boundary:
    """Return a channel that is positive near the edge of each object, whatever touches it there.

    Args:
        of: the class.
        inside: nm from the edge into the object. 0 leaves objects whole, and together where they
            touch.
        outside: nm from the edge into the background.
    """
    return Boundary(of, inside, outside)


def border(of: str, *, gap: float) -> Border:
    """Return a channel that is positive between objects.

    It is where the distances to the two nearest objects sum up to at most `gap` nm, as in the
    weights of Ronneberger et al. 2015; a voxel of an object has no distance to that one.
    """
    return Border(of, gap)


def inner(of: str, *, from_edge: float) -> Inner:
    """Return a channel that is positive in objects, more than `from_edge` nm from their edge."""
    return Inner(of, from_edge)


def distance(of: str, *, clip: float) -> Distance:
    """Return a channel that is the distance in nm to the edge, from -clip to clip, inside positive.

    The network learns it divided by `clip`.
    """
    return Distance(of, clip)


def affinities(of: str, *, offsets: Sequence[Sequence[float]]) -> Affinities:
    """Return a channel for each offset (z, y, x) in nm.

    It is positive where a voxel and the one at the offset from it are of one object, and negative
    where they are of two or one of them is background.
    """
    listed = offsets.tolist() if hasattr(offsets, "tolist") else offsets  # an array of NumPy
    try:
        as_tuples: Any = tuple(tuple(offset) for offset in listed)
    except TypeError:  # told with the settings
        as_tuples = offsets
    return Affinities(of, as_tuples)


# What is wrong with them


def derived_problems(values: Mapping[str, Any], wrong_name: Callable[[str], str]) -> list[str]:
    """Return what is wrong with the settings `derived` and `softmax`, as sentences.

    Args:
        values: settings that are each of the right type, the array infos in one form.
        wrong_name: says what to write where a name cannot be that of a folder.
    """
    declared = values.get("derived", {})
    learnt = values.get("classes", ())
    problems = []
    for name, channel in declared.items():
        where = f"derived['{name}']"
        if not isinstance(name, str) or wrong_name(name):
            problems.append(f"{where}: {name!r} names a folder of the prediction; write another")
        elif not isinstance(channel, Derived) or type(channel) is Derived:
            problems.append(f"{where} = {channel!r}; write boundary('cell', inside=20, outside=20)")
        else:
            problems += [f"{where}: {problem}" for problem in _class_problems(channel, learnt)]
            problems += [f"{where}: {problem}" for problem in _length_problems(channel, values)]
    if not problems:
        problems += _name_problems(declared, learnt)
    return problems + _exclusive_problems(values, problems)


def _class_problems(channel: Derived, learnt: Sequence[str]) -> list[str]:
    name = channel.of
    if name not in learnt:
        return [f"is of '{name}', which is not one of classes; add it there"]
    if class_table.atoms_of(name) and name not in class_table.INSTANCES:
        return [
            f"class '{name}' has no ids that tell objects apart; "
            f"{', '.join(class_table.INSTANCES)} have, and extra_classes whose labels do"
        ]
    return []


def _length_problems(channel: Derived, values: Mapping[str, Any]) -> list[str]:
    infos = [values.get(name) for name in ("target_array_info", "input_array_info")]
    if not all(isinstance(info, dict) and {"shape", "scale"} <= set(info) for info in infos):
        return []  # told by their own checks
    target, raw = infos
    assert target is not None and raw is not None
    seen = [size * scale for size, scale in zip(raw["shape"], raw["scale"], strict=True)]
    return channel.problems(target["scale"], seen)


def _name_problems(declared: Mapping[str, Derived], learnt: Sequence[str]) -> list[str]:
    """What is wrong with the names of channels, of declarations that are right by themselves."""
    problems = []
    taken = set(learnt)
    for name, channel in declared.items():
        for own in channel.names(name):
            if own in taken or class_table.atoms_of(own):
                problems.append(
                    f"derived['{name}']: '{own}' is the name of another channel or of a class; "
                    "write another"
                )
            taken.add(own)
    return problems


def _exclusive_problems(values: Mapping[str, Any], problems: Sequence[str]) -> list[str]:
    exclusive = values.get("softmax", ())
    if not exclusive or problems:
        return []
    found = []
    channels = channel_names(values.get("classes", ()), values.get("derived", {}))
    signed = [name for name, channel in values.get("derived", {}).items() if _is_signed(channel)]
    for name in exclusive:
        if name not in channels:
            found.append(f"softmax: '{name}' is no channel; there are {', '.join(channels)}")
        elif name in signed:
            found.append(f"softmax: '{name}' is a distance, and no probability; leave it out")
    if len(set(exclusive)) < len(exclusive) or len(exclusive) < 2:
        found.append(f"softmax = {exclusive}; name two channels or more, each once")
    for number, name in enumerate(exclusive):
        found += [
            f"softmax: a voxel may be both '{name}' and '{other}', as their parts in the class "
            "table say; leave one out"
            for other in exclusive[number + 1 :]
            if _overlap(name, other)
        ]
    return found


def _overlap(name: str, other: str) -> bool:
    """Whether two classes of the table share an atom."""
    atoms = class_table.atoms_of(name) or frozenset()
    return bool(atoms & (class_table.atoms_of(other) or frozenset()))


def _is_signed(channel: Any) -> bool:
    return isinstance(channel, Derived) and channel.activation == SIGNED


def channel_names(classes: Sequence[str], derived: Mapping[str, Derived]) -> tuple[str, ...]:
    """Return the names of all channels of a network: its classes, then those that are derived."""
    names = list(classes)
    for name, channel in derived.items():
        names += channel.names(name)
    return tuple(names)


def channel_classes(classes: Sequence[str], derived: Mapping[str, Derived]) -> dict[str, str]:
    """Return for each channel the class that it is, or is derived from."""
    made_of = {name: name for name in classes}
    for name, channel in derived.items():
        for own in channel.names(name):
            made_of[own] = channel.of
    return made_of


def with_derived(names: Sequence[str], derived: Mapping[str, Derived]) -> list[str]:
    """Return names of channels, with all channels of a declaration in the place of its name."""
    every: list[str] = []
    for name in names:
        every += derived[name].names(name) if name in derived else (name,)
    return every


def _is_length(value: Any) -> bool:
    return is_a(float, value) and 0 <= value < math.inf


def _is_vector(offset: Any) -> bool:
    if not isinstance(offset, tuple) or len(offset) != 3:
        return False
    return all(is_a(float, part) and math.isfinite(part) for part in offset)


def _nearest(offset: Vector, voxel_nm: Sequence[float]) -> Vector:
    """The shortest offset of whole voxels near one, no axis that is there left out."""
    z, y, x = (
        math.copysign(max(1, round(abs(a) / b)) * b, a) if a else 0.0
        for a, b in zip(offset, voxel_nm, strict=True)
    )
    return (z, y, x)


def _text(offset: Vector) -> str:
    return "(" + ", ".join(f"{n:g}" for n in offset) + ")"

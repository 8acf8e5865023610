"""The setting `augmentations`: every kind of augmentation, its sentence, values and checks, once.

Lengths are in nm, so that one line means the same at every voxel size. Each kind happens to a
sample with its `probability`, independently of the others.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from common.config.kinds import Check, Fraction, LowHigh, Positive, fit, is_a, one_of
from common.talk import nm

FOLDS_BEYOND = 0.4
"""Displacement, as a fraction of the spacing of control points, up to which tissue cannot fold.

A deformation by cubic B-splines is one to one in three dimensions where no control point moves by
more than spacing / 2.48 along an axis: Choi and Lee, Injectivity conditions of 2D and 3D uniform
cubic B-spline functions, Graphical Models 62 (2000).
"""


def _is_range(value: Sequence[float]) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1] < math.inf


def _is_per_axis(value: Sequence[float]) -> bool:
    return len(value) == 3 and all(0 <= length < math.inf for length in value) and any(value)


def _is_spacing(value: Sequence[float]) -> bool:
    return len(value) == 3 and all(0 < length < math.inf for length in value)


def _is_factor(value: Sequence[float]) -> bool:
    return _is_range(value) and value[0] >= 0.1 and value[1] <= 10


def _is_number_of(value: Sequence[int]) -> bool:
    return _is_range(value) and value[1] <= 100


PositiveRange = Check(_is_range, "a number above 0, or a range of such numbers (low, high)")
Amplitude = Check(
    _is_per_axis, "a number of nm above 0, or three (z, y, x), of which some may be 0"
)
Spacing = Check(_is_spacing, "a number of nm above 0, or three (z, y, x)")
# a patch reads as much more of the raw as its structures are smaller
Factor = Check(_is_factor, "a number from 0.1 to 10, or a range of such numbers (low, high)")
NumberOf = Check(_is_number_of, "a whole number from 1 to 100, or a range of such numbers")


@dataclass(frozen=True)
class Scale:
    """Structures are larger or smaller than they are, raw and labels alike."""

    probability: Annotated[float, Fraction]
    """Probability that a sample is scaled."""
    factor: Annotated[tuple[float, ...], Factor] = (0.8, 1.25)
    """Range of the factor on all lengths; above 1 structures look larger."""
    isotropic: bool = True
    """False draws a factor for each axis of the patch."""


@dataclass(frozen=True)
class Elastic:
    """Raw and labels are deformed smoothly, by cubic B-splines between control points."""

    probability: Annotated[float, Fraction]
    """Probability that a sample is deformed."""
    amplitude_nm: Annotated[tuple[float, ...], Amplitude]
    """Largest displacement of a control point along each axis of the volume (nm), one number or z,
    y, x; at most 0.4 of spacing_nm, beyond which tissue folds."""
    spacing_nm: Annotated[tuple[float, ...], Spacing]
    """Distance of the control points (nm) along each axis of the patch, one number or z, y, x."""


@dataclass(frozen=True)
class Blur:
    """Raw is blurred by a Gaussian."""

    probability: Annotated[float, Fraction]
    """Probability that a sample is blurred."""
    sigma_nm: Annotated[tuple[float, ...], PositiveRange]
    """Range of the standard deviation (nm), the same along all axes: sections of 50 nm are blurred
    in their plane alone."""


@dataclass(frozen=True)
class Sharpen:
    """Raw is sharpened: its difference from a blurred copy is added (unsharp mask)."""

    probability: Annotated[float, Fraction]
    """Probability that a sample is sharpened."""
    sigma_nm: Annotated[tuple[float, ...], PositiveRange]
    """Range of the standard deviation (nm) of the blurred copy."""
    amount: Annotated[tuple[float, ...], PositiveRange] = (0.5, 1.5)
    """Range of the factor on the difference."""


@dataclass(frozen=True)
class LowResolution:
    """Raw is averaged to larger voxels, and brought back by linear interpolation."""

    probability: Annotated[float, Fraction]
    """Probability that a sample loses resolution."""
    voxel_nm: Annotated[tuple[float, ...], PositiveRange]
    """Range of the edge of the larger voxels (nm); an axis whose voxels are as large already stays
    as it is."""
    axes: Annotated[str, one_of("all", "one")] = "all"
    """"all", or "one": an axis of the patch that is drawn, as if the volume were not isotropic."""


@dataclass(frozen=True)
class Gradient:
    """Raw brightens from one side of the patch to the other, in any direction."""

    probability: Annotated[float, Fraction]
    """Probability that a sample has a gradient."""
    strength: Annotated[tuple[float, ...], PositiveRange] = (0.05, 0.2)
    """Range of what is added at the brightest corner and taken away at the darkest, to raw in
    [0, 1]."""


@dataclass(frozen=True)
class Cutout:
    """Boxes of raw are set to the mean of the patch; labels stay known there."""

    probability: Annotated[float, Fraction]
    """Probability that a sample has boxes."""
    edge_nm: Annotated[tuple[float, ...], PositiveRange]
    """Range of the edges of a box (nm); each edge is drawn."""
    number: Annotated[tuple[int, ...], NumberOf] = (1, 3)
    """Range of the number of boxes."""


@dataclass(frozen=True)
class MissingSections:
    """Sections (z planes of the raw volume, whichever way the patch is turned) are lost.

    Labels stay known: the network learns to bridge them (Funke et al., gunpowder's DefectAugment;
    Lee et al. 2017).
    """

    probability: Annotated[float, Fraction]
    """Probability that a sample misses sections."""
    number: Annotated[tuple[int, ...], NumberOf] = (1, 1)
    """Range of how many."""
    fill: Annotated[str, one_of("black", "mean")] = "black"
    """What stands there instead: "black", or "mean" for the mean of the raw around."""


@dataclass(frozen=True)
class SectionContrast:
    """Every section (z plane of the raw volume) has a contrast and a brightness of its own."""

    probability: Annotated[float, Fraction]
    """Probability that the sections of a sample differ."""
    contrast: Annotated[tuple[float, ...], PositiveRange] = (0.8, 1.25)
    """Range of the factor on the distance of raw from the mean of its section."""
    brightness: Annotated[tuple[float, ...], LowHigh] = (0.0, 0.05)
    """Range of what is added or taken away, to raw in [0, 1]."""


@dataclass(frozen=True)
class SectionShift:
    """All sections beyond a z plane of the volume are shifted in x and y, raw and labels alike.

    As prob_shift of gunpowder's ElasticAugment and the translation of Lee et al. 2017.
    """

    probability: Annotated[float, Fraction]
    """Probability that a sample has such a plane."""
    max_nm: Annotated[float, Positive]
    """Largest shift along y and along x (nm); it is rounded to whole voxels of the raw."""


@dataclass(frozen=True)
class SectionSlip:
    """One section of the raw is shifted in x and y; the labels stay.

    What the network should give is the tissue as it was, so that it goes by the sections around
    (the slip of Lee et al. 2017, of raw alone; gunpowder's prob_slip moves labels as well).
    """

    probability: Annotated[float, Fraction]
    """Probability that a sample has such a section."""
    max_nm: Annotated[float, Positive]
    """Largest shift along y and along x (nm); it is rounded to whole voxels of the raw."""


@dataclass(frozen=True)
class Augmentations:
    """The kinds of the setting `augmentations`; None is off."""

    scale: Scale | None = None
    elastic: Elastic | None = None
    section_shift: SectionShift | None = None
    section_slip: SectionSlip | None = None
    missing_sections: MissingSections | None = None
    section_contrast: SectionContrast | None = None
    low_resolution: LowResolution | None = None
    blur: Blur | None = None
    sharpen: Sharpen | None = None
    gradient: Gradient | None = None
    cutout: Cutout | None = None


KINDS: dict[str, type] = {
    name: typing.get_args(kind)[0] for name, kind in typing.get_type_hints(Augmentations).items()
}
"""The dataclass of each kind, by its name in the setting."""

OF_SECTIONS = ("section_shift", "section_slip", "missing_sections")
"""Kinds that need sections around the one that they spoil."""

Checked = tuple[dict[str, Any], list[str]]
"""Values in their types, and sentences about what is wrong with the others."""


def read_augmentations(setting: Mapping[str, Any]) -> Augmentations:
    """Return the setting `augmentations`, which was checked, with its defaults filled in.

    A kind of probability 0 is off.
    """
    kinds = {}
    for name, given in setting.items():
        values, problems = _fitting(name, given)
        assert not problems, problems
        kind = KINDS[name](**values)
        if kind.probability > 0:
            kinds[name] = kind
    return Augmentations(**kinds)


def augmentation_problems(setting: Mapping[str, Any], input_info: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the setting `augmentations`, a sentence each.

    input_info: the setting input_array_info as shape and scale; empty if that is wrong itself.
    """
    problems = []
    for name, given in setting.items():
        if name not in KINDS:
            near = difflib.get_close_matches(str(name), KINDS, 1, 0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(KINDS)}"
            problems.append(f"augmentations: '{name}' is none; {hint}")
            continue
        values, misfits = _fitting(name, given)
        problems += misfits
        if not misfits and input_info and values["probability"]:
            problems += _without_effect(name, values, input_info)
            problems += _beyond_the_patch(name, values, input_info)
    return problems


def _fitting(name: str, given: Any) -> Checked:
    """The values of one kind in their types, and what is wrong with them."""
    where = f"augmentations['{name}']"
    fields = {field.name: field for field in dataclasses.fields(KINDS[name])}
    if not isinstance(given, Mapping):
        return {}, [f"{where} = {given!r}; write a dict of {', '.join(fields)}"]
    hints = typing.get_type_hints(KINDS[name], include_extras=True)
    values = {}
    problems = []
    for key, value in given.items():
        if key not in fields:
            problems.append(f"{where}: '{key}' is none of {', '.join(fields)}")
            continue
        values[key], wanted = fit(hints[key], _spread(hints[key], value))
        if wanted:
            problems.append(f"{where}['{key}'] = {value!r}; {wanted}")
    for key, field in fields.items():
        if field.default is dataclasses.MISSING and key not in given:
            problems.append(f"{where}: '{key}' is missing; write a value for it")
    if not problems and name == "elastic":
        problems = _folding(values)
    return values, problems


def _spread(hint: Any, value: Any) -> Any:
    """A number where a range or one number for each axis is wanted, as these."""
    checks = set(getattr(hint, "__metadata__", ()))
    if is_a(float, value) and checks & {Amplitude, Spacing}:
        return (value,) * 3
    if is_a(float, value) and checks & {PositiveRange, Factor, NumberOf, LowHigh}:
        return (value,) * 2
    return value


def _folding(values: Mapping[str, Any]) -> list[str]:
    amplitude = max(values["amplitude_nm"])
    most = FOLDS_BEYOND * min(values["spacing_nm"])
    if amplitude <= most:
        return []
    return [
        f"augmentations['elastic']['amplitude_nm'] = {amplitude:g} folds tissue between control "
        f"points {min(values['spacing_nm']):g} nm apart; write at most {most:g}, or a larger "
        "spacing_nm"
    ]


def _without_effect(
    name: str, values: Mapping[str, Any], input_info: Mapping[str, Any]
) -> list[str]:
    """What is wrong with a kind that cannot act on patches of this shape and voxel size."""
    where = f"augmentations['{name}']"
    scale = input_info["scale"]
    sections = input_info["shape"][0]
    if name in OF_SECTIONS:
        fewest = 2 + max(values.get("number", (1,)))
        if sections < fewest:
            return [
                f"{where} needs an input of {fewest} z planes or more, and input_array_info has "
                f"{sections}; leave it out"
            ]
    if "max_nm" in values and values["max_nm"] < min(scale[1:]):
        return [
            f"{where}['max_nm'] = {values['max_nm']:g} is less than a voxel of "
            f"{min(scale[1:]):g} nm, so that nothing moves; write more"
        ]
    if name == "low_resolution" and values["voxel_nm"][1] <= min(scale):
        return [
            f"{where}['voxel_nm'] = {values['voxel_nm'][1]:g} at most, and the input's voxels have "
            f"{min(scale):g} nm, so that nothing is lost; write more"
        ]
    return []


def _beyond_the_patch(
    name: str, values: Mapping[str, Any], input_info: Mapping[str, Any]
) -> list[str]:
    """What is wrong with lengths that are larger than a patch, or smaller than its voxels."""
    where = f"augmentations['{name}']"
    scale = input_info["scale"]
    extent = [size * length for size, length in zip(input_info["shape"], scale, strict=True)]
    problems = []
    for key in ("sigma_nm", "max_nm"):
        length = values.get(key, 0.0)
        most = length if is_a(float, length) else max(length)
        if most > max(extent):
            problems.append(
                f"{where}['{key}'] = {most:g}, and input_array_info covers {nm(extent)} nm; write "
                "less"
            )
    # as many control points as that would take all memory
    if "spacing_nm" in values and min(values["spacing_nm"]) < min(scale):
        problems.append(
            f"{where}['spacing_nm'] = {min(values['spacing_nm']):g} is less than a voxel of "
            f"{min(scale):g} nm; write more"
        )
    return problems

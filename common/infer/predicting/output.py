"""How predictions are stored: what a call asks for, and what of that is refused.

What cannot be done is refused here, before a network is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from common.config.derived import Affinities
from common.config.kinds import is_a, plain
from common.config.settings import TrainConfig
from common.data.splits.regions import Region
from common.data.volumes.box import Vector
from common.errors import refuse
from common.infer.networks import planes
from common.talk import nm

FARTHEST_SCALE = 64
"""Largest ratio, along an axis, of the voxels of a network and those that are written.

A written voxel is made of up to the cube of it, all of which are in memory.
"""

FARTHEST = 1e9
"""Largest margin around a box in nm, a metre, up to which its voxels can be counted."""


@dataclass(frozen=True)
class Output:
    """How predictions are stored."""

    content: str = "probability"
    """"probability" or "logits"."""
    dtype: str = "uint8"
    """"uint8" (probabilities in 255ths), "float16" or "float32"."""
    scale: tuple[float, ...] = ()
    """Voxel size in nm, z, y, x; unless given the network's, or that of a test crop if coarser."""
    orientations: int = 1
    """Mirrored and transposed copies whose logits are averaged: 1, 8 or 16."""
    planes: str = planes.OWN
    """Planes that a 2-D network predicts, whose logits are averaged; one of `planes.CHOICES`."""
    block: int = 0
    """Largest edge of a block in voxels; chosen for the device unless given."""
    margin: float = 0.0
    """Width in nm of a rim around a box that is predicted too, as far as the raw goes."""


def at_asked_scale(output: Output, region: Region, config: TrainConfig) -> Output:
    """Return how a box is stored: a test crop in no finer voxels than its classes are scored at.

    Crops of 16 and 32 nm would take most of the disk at a network's 8 nm. The voxel size is one for
    all classes that the network has, whichever are asked for, so that classes that are predicted
    later stand beside the others.
    """
    scales = [region.asked_scales[name] for name in config.classes if name in region.asked_scales]
    if output.scale or not scales:
        return output
    network_scale = np.array(config.target_array_info["scale"], float)
    asked = np.min(scales, axis=0)
    if (asked <= network_scale).all():
        return output
    return replace(output, scale=tuple(np.maximum(asked, network_scale).tolist()))


def check_output(output: Output, config: TrainConfig) -> Output:
    """Return the output with three numbers as its scale. Raise UserError with all that is wrong."""
    output = replace(output, scale=_three(output.scale))
    problems = []
    if output.content not in ("probability", "logits"):
        problems.append(f"content '{output.content}'; write probability or logits")
    if output.dtype not in ("uint8", "float16", "float32"):
        problems.append(f"dtype '{output.dtype}'; write uint8, float16 or float32")
    if output.content == "logits" and output.dtype == "uint8":
        problems.append("logits do not fit into uint8; write --dtype float16 or float32")
    if output.planes not in planes.CHOICES:
        problems.append(f"planes '{output.planes}'; write {', '.join(planes.CHOICES)}")
    if output.orientations not in (1, 8, 16):
        problems.append(
            f"{output.orientations!r} orientations; write 1, 8 (mirrored) or 16 (with y and x "
            "exchanged)"
        )
    scales = (config.input_array_info["scale"], config.target_array_info["scale"])
    if output.orientations == 16 and any(y != x for _, y, x in scales):
        problems.append("16 orientations exchange y and x, whose voxel sizes differ here; write 8")
    has_pairs = any(isinstance(channel, Affinities) for channel in config.derived.values())
    if has_pairs and output.planes != planes.OWN:
        problems.append(
            "affinities are of pairs along a direction, which other planes have along another one; "
            "leave --planes out"
        )
    problems += _problems_of_lengths(output, config.target_array_info["scale"])
    refuse(problems)
    return output


def _three(scale: Any) -> tuple[Any, ...]:
    """Return a voxel size as a tuple; one number stands for three."""
    is_listed = isinstance(scale, Iterable) and not isinstance(scale, str)
    numbers = tuple(scale) if is_listed else (scale,) * 3
    return tuple(plain(number) for number in numbers)


def is_within_reach(scale: Vector, network_scale: Vector) -> bool:
    """Return whether voxels of one size (nm, z, y, x) can be made of a network's of another."""
    ratios = [size / given for size, given in zip(scale, network_scale, strict=True)]
    return all(1 / FARTHEST_SCALE <= ratio <= FARTHEST_SCALE for ratio in ratios)


def _problems_of_lengths(output: Output, network_scale: Sequence[float]) -> list[str]:
    """Return what is wrong with the voxel size, margin and block edge of an output.

    network_scale: nm, z, y, x, of the voxels that the network gives.
    """
    problems = []
    are_sizes = all(is_a(float, size) and 0 < size < math.inf for size in output.scale)
    if output.scale and not (len(output.scale) == 3 and are_sizes):
        problems.append(f"scale {output.scale}; write three voxel sizes in nm, z, y, x")
    elif output.scale and not is_within_reach(output.scale, network_scale):
        problems.append(
            f"scale {nm(output.scale)}: the network gives {nm(network_scale)} nm; write sizes up "
            f"to {FARTHEST_SCALE} times larger or smaller"
        )
    if not (is_a(float, plain(output.margin)) and 0 <= output.margin <= FARTHEST):
        problems.append(f"margin {output.margin}; write a length in nm, such as 500")
    if not (is_a(int, plain(output.block)) and output.block >= 0):
        problems.append(f"block {output.block}; write a number of voxels, such as 128")
    return problems

"""Choose the settings of an experiment for the user's own data, by rules.

The rules follow what docs/explanation/recipe.md measured on two real volumes and the phantom:
patches of about 32^3 voxels, flat where voxels are long; in a step as many voxels as 8 patches of
32^3; a small network for a CPU, a larger one and more steps for a GPU.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common import runtime
from common.classes import INSTANCES, atoms_of
from common.data.crops import normalize
from common.data.own.crops import OwnCrop, labels_by_class
from common.data.own.facts import LabelFacts, are_opposite, contrast
from common.data.volumes import layout
from common.data.volumes.level import Level
from common.data.volumes.ngff import open_levels
from common.errors import UserError
from common.model.resenc import plan_resenc
from common.talk import note_once

PATCH = 32
"""Edge in voxels of a patch whose voxels are cubes."""

STEP = 8 * PATCH**3
"""Number of voxels of all patches of a step."""

MOST_PATCHES = 32

LARGEST_EDGE = 128

SMALLEST_EDGE = 16
"""Least edge of a patch in voxels, even if a crop is smaller: it gives context."""

LONG = 2.0
"""An axis counts as long if its voxels are so many times as long as the shortest."""

FLAT = 4
"""A crop with fewer voxels along an axis is a few slices, which are learnt one by one."""

FAR_APART = 16.0
"""Length, in shortest voxels, of a voxel across slices that are learnt one by one."""

THICK = 96
"""Thickness of the thinnest class, in voxels, from which voxels are taken twice as large."""
# three patches: what fills whole patches can be told from their grey alone

LEAST_BOX = 64
"""Least voxels of a crop along an axis after voxels are taken larger."""

LEAST_SPECK = 20
SPECK = 50
"""Objects below LEAST_SPECK voxels, or below the median size divided by SPECK, are left out."""

SAMPLES = 3
SAMPLE = 48
"""For the range of raw, SAMPLES blocks of SAMPLE voxels are read along each axis."""

BEYOND = 1000
"""Times the distance of its quartiles from the median of raw from which values are none of it."""

Three = tuple[float, float, float]

Labels = Mapping[str, Sequence[LabelFacts]]
"""Facts about the labels of all crops, by class."""


@dataclass(frozen=True)
class MachineSettings:
    """Settings that depend on the machine."""

    device: str
    """"cuda" or "cpu"."""
    width: int
    """Channels of the network at the voxels of raw."""
    epochs: int
    iterations_per_epoch: int
    num_workers: int


MACHINES = {
    # ten minutes of one core (examples/flyem_medulla, whose 12 epochs are twenty)
    "cpu": MachineSettings("cpu", width=8, epochs=6, iterations_per_epoch=100, num_workers=0),
    "cuda": MachineSettings("cuda", width=16, epochs=30, iterations_per_epoch=200, num_workers=2),
}


@dataclass(frozen=True)
class OwnPlan:
    """The settings that are written into the files of an experiment."""

    classes: tuple[str, ...]
    scale: Three
    """Voxel size in nm of raw and target, z, y, x."""
    network_scale: Three
    """Voxel size (nm) that the network is planned for: single slices lie far apart in it."""
    patch: tuple[int, ...]
    batch_size: int
    model_kwargs: Mapping[str, Any]
    machine: MachineSettings
    transposed: tuple[str, ...]
    """Axes whose voxels are equally long, which can be exchanged."""
    raw_range: tuple[float, ...] = ()
    """Black and white of raw, if it is not uint8."""
    specks: Mapping[str, int] = field(default_factory=dict)
    """For each class of objects the number of voxels below which an object is left out."""
    crowded: tuple[str, ...] = ()
    """Classes of objects whose objects touch."""
    inverted: tuple[str, ...] = ()
    """Classes that are bright in one volume and dark in another."""

    @property
    def extra_classes(self) -> tuple[str, ...]:
        """Classes outside the challenge's table."""
        return tuple(name for name in self.classes if atoms_of(name) is None)

    @property
    def is_sliced(self) -> bool:
        """Whether slices are learnt one by one."""
        return self.scale != self.network_scale

    @property
    def multiples(self) -> tuple[int, ...]:
        """Numbers of voxels z, y, x of whose multiples the network takes patches."""
        kwargs = {"stem_stride": self.model_kwargs["stem_stride"]}
        return plan_resenc(self.network_scale, self.patch, **kwargs).step


def make_plan(
    crops: Sequence[OwnCrop], root: Path, device: str, voxel_size: Three | None = None
) -> OwnPlan:
    """Choose the settings for crops.

    Args:
        crops: all crops of the experiment.
        root: the data root.
        device: "auto", "cpu" or "cuda", which it will be trained on.
        voxel_size: nm z, y, x; chosen by the labels unless given.

    Raises UserError for raw without contrast.
    """
    if device == "auto":
        device = "cuda" if runtime.pick_device("auto").type == "cuda" else "cpu"
    machine = MACHINES[device]
    datasets = dict.fromkeys(crop.info.dataset for crop in crops)
    raws = {name: open_levels(root / layout.raw(name)) for name in datasets}
    finest = [levels[0] for levels in raws.values()]
    labels = labels_by_class(crops)
    scale = voxel_size or _scale(crops, labels, finest)
    patch, network_scale = _patch(crops, finest, scale)
    voxels = math.prod(patch)
    specks = _specks(labels)
    return OwnPlan(
        classes=tuple(labels),
        scale=scale,
        network_scale=network_scale,
        patch=patch,
        batch_size=int(np.clip(STEP // voxels, PATCH // 4, MOST_PATCHES)),
        model_kwargs=_model_kwargs(network_scale, patch, machine),
        machine=machine,
        transposed=_alike(scale, patch),
        raw_range=_raw_range(finest),
        specks=specks,
        crowded=tuple(name for name in specks if _are_crowded(labels[name])),
        inverted=_inverted(crops, raws),
    )


# Voxels


def _scale(crops: Sequence[OwnCrop], labels: Labels, raws: Sequence[Level]) -> Three:
    """Return the voxel size of the coarsest labels or raw; coarser if all classes are thick."""
    every = [*itertools.chain(*labels.values())]
    levels = [*raws, *(facts.level for facts in every)]
    scale = np.max([level.scale for level in levels], axis=0)
    thinnest = min(facts.thickness_nm() for facts in every if facts.positives)
    extent = np.min([crop.info.extent for crop in crops], axis=0)
    while np.isfinite(thinnest) and not _are_crowded(every):
        coarser = scale * _shorter(scale)
        is_reduced = coarser > scale
        too_thin = thinnest < THICK * scale[is_reduced].max()
        too_small = (extent / coarser)[is_reduced].min() < LEAST_BOX
        if too_thin or too_small:
            break
        scale = coarser
    z, y, x = (float(f"{size:.6g}") for size in scale)
    return z, y, x


def _shorter(scale: np.ndarray) -> np.ndarray:
    """Return factors: 2 along axes with short voxels, or along all if none is short, else 1."""
    short = LONG * scale <= scale.max()
    return np.where(short, 2, 1) if short.any() else np.full(3, 2)


# Patches


def _patch(
    crops: Sequence[OwnCrop], raws: Sequence[Level], scale: Three
) -> tuple[tuple[int, ...], Three]:
    """Return the shape of a patch, and the voxel size (nm) that the network is planned for."""
    size = np.array(scale)
    crop_voxels = np.median([crop.info.extent for crop in crops], axis=0) / size
    raw_voxels = np.min([raw.scale * raw.shape for raw in raws], axis=0) / size
    network = np.where(crop_voxels < FLAT - 0.5, FAR_APART * size.min(), size)
    edge = math.prod((PATCH * network).tolist()) ** (1 / 3)
    patch = []
    for axis in range(3):
        wanted = math.log2(edge / network[axis])
        is_long = network[axis] >= LONG * network.min()
        # of long voxels rather fewer: sections differ more than what lies within them
        power = math.floor(wanted + 1e-6) if is_long else round(wanted)
        most = max(_power_below(crop_voxels[axis]), SMALLEST_EDGE)
        most = min(most, _power_below(raw_voxels[axis]), LARGEST_EDGE)
        one_slice = network[axis] > size[axis]
        patch.append(1 if one_slice else min(2 ** max(power, 0), most))
    z, y, x = network.tolist()
    return tuple(patch), (z, y, x)


def _power_below(number: float) -> int:
    return 2 ** max(math.floor(math.log2(max(number, 1)) + 1e-6), 0)


def _alike(scale: Three, patch: Sequence[int]) -> tuple[str, ...]:
    """Return the largest set of axes with equal voxels and edges; () if all differ."""
    names: dict[tuple[float, int], list[str]] = {}
    for axis, size, edge in zip("zyx", scale, patch, strict=True):
        names.setdefault((round(size, 2), edge), []).append(axis)
    most = max(names.values(), key=len)
    return tuple(sorted(most)) if len(most) > 1 else ()


# The network


def _model_kwargs(scale: Three, patch: Sequence[int], machine: MachineSettings) -> dict[str, Any]:
    is_anisotropic = max(scale) >= LONG * min(scale)
    is_halved_twice = len(plan_resenc(scale, patch).pools) > 1
    return {
        "width": machine.width,
        # as in examples/drosophila_vnc: in the plane of sections there is detail to spare
        "stem_stride": 2 if is_anisotropic and is_halved_twice else 1,
        "norm": "batch",
        # ahead in the first minutes, as the examples have it: docs/explanation/recipe.md
        "deep_supervision": True,
    }


# Raw


def _raw_range(raws: Sequence[Level]) -> tuple[float, ...]:
    """Return black and white for raw that is not uint8; () if all of it is.

    The range of the sampled values is widened by half of it on both sides, since few are sampled:
    percentiles set the contrast afterwards. It does not begin below 0 for unsigned raw.
    """
    if all(raw.array.dtype == np.uint8 for raw in raws):
        return ()
    lows = []
    highs = []
    for raw in raws:
        low, high = _seen(raw)
        lows.append(low - (high - low) / 2)
        highs.append(high + (high - low) / 2)
    if all(raw.array.dtype.kind == "u" for raw in raws):
        lows = [max(low, 0.0) for low in lows]
    return float(f"{min(lows):.4g}"), float(f"{max(highs):.4g}")


def _seen(raw: Level) -> tuple[float, float]:
    """Return the smallest and the largest value in blocks spread evenly over a volume.

    What lies far beyond, as what fills up a volume may, is left out, which is said: float32 would
    have few numbers left for the rest.
    """
    edge = np.minimum(SAMPLE, raw.shape)
    blocks = []
    for number in np.ndindex(SAMPLES, SAMPLES, SAMPLES):
        start = np.floor((raw.shape - edge) * (np.array(number) / (SAMPLES - 1))).astype(int)
        blocks.append(raw.read(start, start + edge).astype(np.float64))
    seen = np.concatenate([block[np.isfinite(block)] for block in blocks])
    if not len(seen) or seen.min() == seen.max():
        raise UserError(
            f"{raw.path}: {'no number' if not len(seen) else f'nothing but {seen[0]:g}'} in "
            f"{len(blocks)} places spread over the raw; look at the file that was imported"
        )
    usual = _of_image(seen, blocks)
    if len(usual) < len(seen):
        part = len(usual) / len(seen)
        note_once(
            f"{raw.path}: values from {seen.min():g} to {seen.max():g}, {part:.2%} of them from "
            f"{usual.min():g} to {usual.max():g}; what is beyond becomes black or white"
        )
    return float(usual.min()), float(usual.max())


def _of_image(seen: np.ndarray, blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the values that are not far beyond those of raw; all where these are not known.

    seen: (n,) the finite ones of the blocks. blocks: (z, y, x) float64. What is constant in them is
    no measure of raw, but padding.
    """
    values = np.concatenate([normalize.varying(block) for block in blocks])
    if not len(values):
        return seen
    lower, median, upper = np.nanquantile(values, (0.25, 0.5, 0.75))
    usual = seen[np.abs(seen - median) <= BEYOND * (upper - lower)]
    return usual if len(usual) else seen


def _inverted(crops: Sequence[OwnCrop], raws: Mapping[str, Sequence[Level]]) -> tuple[str, ...]:
    """Return the classes that are bright in one volume and dark in another."""
    if len(raws) < 2:
        return ()
    contrasts: dict[str, list[float]] = {}
    for crop in crops:
        for facts in crop.labels:
            if facts.positives:
                contrast_of_crop = contrast(facts, raws[crop.info.dataset])
                contrasts.setdefault(facts.name, []).append(contrast_of_crop)
    return tuple(name for name, of_crops in contrasts.items() if are_opposite(of_crops))


# Objects


def _specks(labels: Labels) -> dict[str, int]:
    """Return for each class of objects the number of voxels below which one is left out."""
    specks = {}
    for name, of_class in labels.items():
        # the challenge scores its instance classes by objects, whatever the labels say
        if not any(facts.is_instance for facts in of_class) and name not in INSTANCES:
            continue
        sizes: list[int] = []
        for facts in of_class:
            sizes += facts.objects.values()
        part = int(np.median(sizes)) // SPECK if sizes else 0
        specks[name] = max(part, LEAST_SPECK)
    return specks


def _are_crowded(labels: Sequence[LabelFacts]) -> bool:
    return any(facts.is_crowded for facts in labels)

"""Spoil raw as microscopes and sections do: optics, light, lost and uneven sections, blank boxes.

Numbers are drawn with the sample (`draw`). On the device, sections are spoilt in the block, before
it is turned, so that a section stays a z plane of the volume (`spoil_sections`); optics and light
are changed in the patch, in nm (`spoil_optics`); boxes are cut out last (`cut_out`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from common.config.augmentations import (
    Augmentations,
    Blur,
    Cutout,
    Gradient,
    LowResolution,
    MissingSections,
    SectionContrast,
    Sharpen,
)
from common.data.samples.separable import along_axes, coarser, gaussian

Draw = Callable[[str], "np.random.Generator | None"]
"""Generator of a kind of augmentation by its name; None if it does not happen to the sample."""


@dataclass(frozen=True)
class UnevenSections:
    """How contrast and brightness differ between sections."""

    contrast: tuple[float, ...]
    """Range of the factor on the distance from the mean of the section."""
    brightness: tuple[float, ...]
    """Range of what is added or taken away, to raw in [0, 1]."""
    seed: int


@dataclass(frozen=True)
class MissingPlanes:
    """How many sections are missing, and what stands there."""

    number: int
    fill: str
    seed: int


@dataclass(frozen=True)
class Defects:
    """How the raw of one sample is spoilt; the defaults spoil nothing."""

    uneven: UnevenSections | None = None
    missing: MissingPlanes | None = None
    coarse_nm: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Edges (nm) of the larger voxels along the axes of the patch."""
    blur_nm: float = 0.0
    """Standard deviation of the Gaussian."""
    sharpen_nm: float = 0.0
    """Standard deviation of the Gaussian of the unsharp mask."""
    sharpen_amount: float = 0.0
    gradient: tuple[float, ...] = (0.0, 0.0, 0.0)
    """What is added at the far end of each axis of the patch and taken away at the near end."""
    boxes: tuple[tuple[tuple[float, float], ...], ...] = field(default=())
    """For each box, for each axis of the patch: its middle, as a fraction, and its edge (nm)."""


# Drawing


def draw(kinds: Augmentations, stream: Draw) -> Defects | None:
    """Draw how the raw of a sample is spoilt; return None if it is not."""
    drawn: dict = {}
    for name, drawing in DRAWINGS.items():
        kind = getattr(kinds, name)
        random = stream(name) if kind is not None else None
        if random is not None:
            drawn |= drawing(random, kind)
    return Defects(**drawn) if drawn else None


def uniform(random: np.random.Generator, interval: Sequence[float]) -> float:
    """Draw a number of an interval (low, high)."""
    low, high = interval
    return random.uniform(low, high)


def _draw_uneven(random: np.random.Generator, kind: SectionContrast) -> dict:
    seed = int(random.integers(2**62))
    return {"uneven": UnevenSections(kind.contrast, kind.brightness, seed)}


def _draw_missing(random: np.random.Generator, kind: MissingSections) -> dict:
    low, high = kind.number
    number = int(random.integers(low, high, endpoint=True))
    return {"missing": MissingPlanes(number, kind.fill, int(random.integers(2**62)))}


def _draw_coarse(random: np.random.Generator, kind: LowResolution) -> dict:
    edges = np.full(3, uniform(random, kind.voxel_nm))
    if kind.axes == "one":
        edges *= np.arange(3) == random.integers(3)
    return {"coarse_nm": tuple(edges.tolist())}


def _draw_blur(random: np.random.Generator, kind: Blur) -> dict:
    return {"blur_nm": uniform(random, kind.sigma_nm)}


def _draw_sharpen(random: np.random.Generator, kind: Sharpen) -> dict:
    sigma = uniform(random, kind.sigma_nm)
    return {"sharpen_nm": sigma, "sharpen_amount": uniform(random, kind.amount)}


def _draw_gradient(random: np.random.Generator, kind: Gradient) -> dict:
    direction = random.standard_normal(3)
    # in the brightest corner the three axes add up
    direction /= np.abs(direction).sum()
    return {"gradient": tuple((direction * uniform(random, kind.strength)).tolist())}


def _draw_boxes(random: np.random.Generator, kind: Cutout) -> dict:
    low, high = kind.number
    shortest, longest = kind.edge_nm
    boxes = []
    for _ in range(random.integers(low, high, endpoint=True)):
        middle = random.random(3).tolist()
        edges = random.uniform(shortest, longest, 3).tolist()
        boxes.append(tuple(zip(middle, edges, strict=True)))
    return {"boxes": tuple(boxes)}


DRAWINGS: dict[str, Callable[..., dict]] = {
    "missing_sections": _draw_missing,
    "section_contrast": _draw_uneven,
    "low_resolution": _draw_coarse,
    "blur": _draw_blur,
    "sharpen": _draw_sharpen,
    "gradient": _draw_gradient,
    "cutout": _draw_boxes,
}
"""What each kind draws, as fields of `Defects`."""


# Sections, in the block


def spoil_sections(block: Tensor, defects: Defects, unit: float) -> Tensor:
    """Return a block of raw (z, y, x) with uneven and missing sections, in its number type.

    block: uint8, or float in [0, 1]. unit: the difference between those of its values that the
    network sees as 0 and 1.
    """
    if defects.uneven is not None:
        block = _uneven(block, defects.uneven, unit)
    if defects.missing is not None:
        block = _without_sections(block, defects.missing)
    return block


def _uneven(block: Tensor, uneven: UnevenSections, unit: float) -> Tensor:
    """Change contrast and brightness of each section."""
    random = _generator(uneven.seed)
    sections = len(block)
    values = block.float()
    factors = random.uniform(uneven.contrast[0], uneven.contrast[1], sections)
    added = random.uniform(uneven.brightness[0], uneven.brightness[1], sections) * unit
    added *= random.choice([-1, 1], sections)
    means = values.mean((1, 2), keepdim=True)
    contrast = _column(factors, values)
    # about the mean of the section
    values = values.mul_(contrast) if values is not block else values * contrast
    values.add_(means * (1 - contrast) + _column(added, values))
    if block.dtype == torch.uint8:
        # half a grey value more or less is a tenth of the noise of EM
        return values.round_().clamp_(0, 255).to(torch.uint8)
    return values.clamp_(0, 1)


def _without_sections(block: Tensor, missing: MissingPlanes) -> Tensor:
    """Set sections to black or to the mean of the block."""
    sections = len(block)
    number = min(missing.number, sections)
    lost = _generator(missing.seed).choice(sections, number, replace=False)
    fill = 0.0
    if missing.fill == "mean":
        fill = float(block.float().mean())
        fill = round(fill) if block.dtype == torch.uint8 else fill
    block = block.clone()
    for z in lost.tolist():
        block[z] = fill
    return block


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def _column(numbers: np.ndarray, like: Tensor) -> Tensor:
    """Return numbers (sections,) as a tensor (sections, 1, 1), of the type and device of `like`."""
    return torch.from_numpy(numbers).to(like.device, like.dtype)[:, None, None]


# Optics and light, in the patch


def spoil_optics(raw: Tensor, defects: Defects, voxel_nm: Sequence[float]) -> Tensor:
    """Return raw (1, z, y, x) in [0, 1] at less resolution, blurred, sharpened and unevenly lit.

    In this order, and clipped to [0, 1]. voxel_nm: voxel size of the patch.
    """
    shape = raw.shape[1:]
    axes = list(zip(shape, voxel_nm, strict=True))
    changed = raw
    if any(defects.coarse_nm):
        factors = np.array(defects.coarse_nm) / voxel_nm
        matrices = [coarser(n, max(f, 1)) for n, f in zip(shape, factors, strict=True)]
        changed = along_axes(changed, matrices)
    if defects.blur_nm:
        changed = along_axes(changed, [gaussian(n, defects.blur_nm / nm) for n, nm in axes])
    if defects.sharpen_nm:
        blurred = along_axes(changed, [gaussian(n, defects.sharpen_nm / nm) for n, nm in axes])
        changed = changed + (changed - blurred) * defects.sharpen_amount
    if any(defects.gradient):
        changed = changed + _ramp(shape, defects.gradient, raw.device)
    return changed if changed is raw else changed.clamp(0, 1)


def _ramp(shape: Sequence[int], slopes: Sequence[float], device: torch.device) -> Tensor:
    """Return (z, y, x): for each axis from minus its slope to plus its slope, added up."""
    ramps = []
    for n, slope in zip(shape, slopes, strict=True):
        end = slope if n > 1 else 0.0
        ramps.append(torch.linspace(-end, end, n, device=device))
    z, y, x = ramps
    return z[:, None, None] + y[:, None] + x


def cut_out(raw: Tensor, defects: Defects, voxel_nm: Sequence[float]) -> Tensor:
    """Return raw (1, z, y, x), its boxes set to the mean of the patch; changed in place."""
    mean = float(raw.mean()) if defects.boxes else 0.0
    for box in defects.boxes:
        slices = []
        for (middle, edge), n, nm in zip(box, raw.shape[1:], voxel_nm, strict=True):
            voxels = min(max(round(edge / nm), 1), n)
            first = round(middle * (n - voxels))
            slices.append(slice(first, first + voxels))
        raw[0][tuple(slices)] = mean
    return raw

"""Read displaced patches: elastic deformation, shifted and slipped sections.

A sample that is only mirrored, transposed, rotated and scaled is an affine, see
`common.data.samples.augment`. This module alone knows samples that are more than that: to the
position that the affine gives, in nm, it adds a smooth field and the shift of whole sections. Raw
and labels are read at the same positions, each on its own grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.config.augmentations import Augmentations, Elastic, SectionShift, SectionSlip
from common.data.samples.separable import along_axes

DISTORTIONS = ("elastic", "section_shift", "section_slip")
"""The kinds of augmentation that this module is about."""

OF_LABELS = ("elastic", "section_shift")
"""Kinds of augmentation that displace labels, too."""


@dataclass(frozen=True)
class ElasticField:
    """A smooth displacement: uniform cubic B-splines, their lattice centred on the patch."""

    control: np.ndarray
    """(3, a, b, c) nm: for each control point along the axes of the patch, its displacement along
    the axes of the volume."""
    spacing: np.ndarray
    """(3,) nm between control points along the axes of the patch."""


@dataclass(frozen=True)
class SectionMove:
    """Sections of the volume that are read at another place."""

    first_nm: float
    """Where they begin along z of the volume, from the centre of the patch."""
    last_nm: float
    """Where they end; infinity for all that follow."""
    move_nm: np.ndarray
    """(3,) what is added to the position, along the axes of the volume."""


@dataclass(frozen=True)
class Distortion:
    """What one sample adds to the positions of its affine."""

    field: ElasticField | None = None
    shift: SectionMove | None = None
    slip: SectionMove | None = None
    """Of raw alone."""

    @property
    def reach_nm(self) -> np.ndarray:
        """(3,) nm: how far beyond its affine, at most, the sample reads along the volume's axes."""
        reach = np.zeros(3)
        if self.field is not None:
            # the weights of a B-spline are positive and sum to 1
            reach += np.abs(self.field.control).max(axis=(1, 2, 3))
        for sections in (self.shift, self.slip):
            if sections is not None:
                reach += np.abs(sections.move_nm)
        return reach

    @property
    def of_labels(self) -> Distortion:
        """The part of the distortion that displaces labels, too."""
        return Distortion(self.field, self.shift)


# Drawing


def draw_field(random: np.random.Generator, elastic: Elastic, extent: np.ndarray) -> ElasticField:
    """Draw the deformation of a patch of `extent` (3,) nm.

    Each control point moves by up to the amplitude, evenly distributed. Where splines overlap the
    moves average out: the field itself has a standard deviation of a fifth of the amplitude.
    """
    spacing = np.array(elastic.spacing_nm)
    # a cubic spline reaches two points beyond its own
    shape = np.ceil(extent / spacing).astype(int) + 4
    amplitude = np.array(elastic.amplitude_nm)[:, None, None, None]
    return ElasticField(random.uniform(-1, 1, (3, *shape)) * amplitude, spacing)


def draw_sections(
    random: np.random.Generator,
    sections: SectionShift | SectionSlip,
    reach_z: float,
    raw_nm: np.ndarray,
) -> SectionMove:
    """Draw which sections move, and how far.

    Args:
        random: generator of the sample.
        sections: the kind: one section slips, a shift takes all that follow along.
        reach_z: nm along the volume's z from the centre of the patch to its end.
        raw_nm: (3,) voxel size of the raw. Moves are whole voxels: others would blur what moved,
            which no section is.
    """
    first = random.uniform(-reach_z, reach_z)
    thickness = raw_nm[0] if isinstance(sections, SectionSlip) else np.inf
    # 13.8 nm are three voxels of 4.6 nm, whatever the rounding error
    most = np.floor(sections.max_nm / raw_nm[1:] + 1e-6).astype(int)
    voxels = random.integers(-most, most, endpoint=True)
    return SectionMove(first, first + thickness, np.array([0.0, *(voxels * raw_nm[1:])]))


def bound_nm(kinds: Augmentations, names: Sequence[str] = DISTORTIONS) -> np.ndarray:
    """Return (3,) nm: how far, at most, these kinds read beyond an affine."""
    bound = np.zeros(3)
    for name in names:
        kind = getattr(kinds, name)
        if isinstance(kind, Elastic):
            bound += kind.amplitude_nm
        elif kind is not None:
            bound += (0, kind.max_nm, kind.max_nm)
    return bound


# Reading


@dataclass(frozen=True)
class PatchDistortion:
    """The distortion of one sample, and the voxel sizes (nm) of its patch and of its block."""

    distortion: Distortion
    patch_nm: Sequence[float]
    block_nm: np.ndarray

    def positions(self, affine: np.ndarray, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return (3, *shape) float32: where each patch voxel is read, in voxels of the block."""
        places = _affine_positions(affine, shape, device)
        if self.distortion.field is not None:
            places += field_voxels(
                self.distortion.field, shape, self.patch_nm, self.block_nm, device=device
            )
        middle = affine @ [*(np.array(shape) - 1) / 2, 1]
        for sections in (self.distortion.shift, self.distortion.slip):
            if sections is not None:
                first = middle[0] + sections.first_nm / self.block_nm[0]
                last = middle[0] + sections.last_nm / self.block_nm[0]
                moved = (places[0] >= first) & (places[0] < last)
                for axis in (1, 2):
                    move = float(sections.move_nm[axis] / self.block_nm[axis])
                    places[axis].add_(moved, alpha=move)
        return places


def field_voxels(
    field: ElasticField,
    shape: Sequence[int],
    patch_nm: Sequence[float],
    block_nm: np.ndarray,
    *,
    device: torch.device,
) -> Tensor:
    """Return (3, *shape) float32: the displacement at the voxels of a patch, in block voxels."""
    matrices = []
    for axis, n in enumerate(shape):
        points = field.control.shape[1 + axis]
        offsets = (np.arange(n) - (n - 1) / 2) * patch_nm[axis]
        matrices.append(_spline(offsets / field.spacing[axis] + (points - 1) / 2, points))
    # divided before it is interpolated, of a hundred points instead of a million voxels
    control = torch.from_numpy(field.control / block_nm[:, None, None, None])
    return along_axes(control.to(device, torch.float32), matrices)


def _spline(at: np.ndarray, points: int) -> np.ndarray:
    """Return (len(at), points): the weights of uniform cubic B-splines, points at 0, 1, 2, ..."""
    distance = np.abs(at[:, None] - np.arange(points))
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, inner, outer)


def _affine_positions(affine: np.ndarray, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return (3, *shape) float32: what an affine (3, 4) makes of the indices of a patch."""
    columns = torch.from_numpy(affine).to(device, torch.float32).T[:, :, None, None, None]
    z = torch.arange(shape[0], device=device)[:, None, None] * columns[0]
    y = torch.arange(shape[1], device=device)[:, None] * columns[1]
    x = torch.arange(shape[2], device=device) * columns[2]
    return z + columns[3] + (y + x)

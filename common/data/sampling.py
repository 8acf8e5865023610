"""Sample k of a run, as a pure function of (seed, k), and the blocks that it needs.

Crop, centre, orientation and intensity come from a counter-based generator (NumPy's Philox) keyed by seed and k: the batches
are the same for any number of workers, and a run that continues needs no sampler state.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.data.crops import Crop
from common.data.ngff import Grid

AXES = {"z": 0, "y": 1, "x": 2}


@dataclass(frozen=True)
class Patch:
    """Shape (voxels) and scale (nm) of the raw or target patch."""

    shape: tuple[int, int, int]
    scale: tuple[float, float, float]

    @property
    def extent(self) -> np.ndarray:
        """(3,) nm."""
        return np.array(self.shape) * self.scale


@dataclass(frozen=True)
class Sample:
    """What sample k is: where it lies, how it is turned, how its intensities change."""

    k: int
    crop: int
    centre: np.ndarray
    """(3,) nm, of raw and target patch alike."""
    orientation: np.ndarray
    """(3, 3): takes an offset within the patch (nm) to an offset in the world (nm); rotation x permutation x mirror."""
    gamma: float = 1.0
    contrast: float = 1.0
    noise_std: float = 0.0
    noise_seed: int = 0


@dataclass(frozen=True)
class Sampler:
    """Draws training samples from crops."""

    crops: Sequence[Crop]
    input: Patch
    target: Patch
    seed: int
    weighted: bool = True
    positive_centre_fraction: float = 0.5
    spatial_transforms: dict | None = None
    intensity_probability: float = 0.0
    gamma_range: tuple[float, float] = (1.0, 1.0)
    contrast_range: tuple[float, float] = (1.0, 1.0)
    noise_std: float = 0.0

    def draw(self, k: int) -> Sample:
        """Sample k: the same on every call, whatever else was drawn."""
        random = generator(self.seed, k)
        orientation, turned = draw_orientation(random, self.spatial_transforms or {})
        crop, centre = self._place(random, k, orientation)
        if not turned:
            centre = on_voxels(centre, orientation, self.input, self.crops[crop].raw_grid)
        change = random.random(3) < self.intensity_probability
        gamma, contrast = random.uniform(*self.gamma_range), random.uniform(*self.contrast_range)
        return Sample(
            k,
            crop,
            centre,
            orientation,
            gamma if change[0] else 1.0,
            contrast if change[1] else 1.0,
            self.noise_std if change[2] else 0.0,
            int(random.integers(2**62)),
        )

    def _place(
        self, random: np.random.Generator, k: int, orientation: np.ndarray
    ) -> tuple[int, np.ndarray]:
        """Crop and centre. Weighted: the classes take turns in an order drawn anew each round; then a crop that has the class."""
        if not self.weighted or not self._classes:
            crop = int(random.choice(len(self.crops), p=self._volumes))
            return crop, self._anywhere(random, crop)
        turn, place = divmod(k, len(self._classes))
        order = generator(self.seed, 2**63 + turn).permutation(len(self._classes))
        candidates, rows = self._classes[order[place]]
        choice = int(random.integers(len(candidates)))
        crop = candidates[choice]
        if random.random() >= self.positive_centre_fraction:
            return crop, self._anywhere(random, crop)
        row = rows[choice]
        counts = self.crops[crop].counts[row]
        example = self.crops[crop].examples[
            row[random.choice(len(row), p=counts / counts.sum())], random.integers(self._n_examples)
        ]
        grid = self.crops[crop].label_grid
        within = orientation @ ((random.random(3) - 0.5) * (self.target.extent - self.target.scale))
        lower, upper = self._centres(crop)
        return crop, np.clip(grid.origin + example * grid.scale + within, lower, upper)

    def _anywhere(self, random: np.random.Generator, crop: int) -> np.ndarray:
        lower, upper = self._centres(crop)
        return lower + random.random(3) * (upper - lower)

    def _centres(self, crop: int) -> tuple[np.ndarray, np.ndarray]:
        """Where a centre may lie: the target patch within the crop, or where the crop is smaller, the crop within the patch.

        Never outside of the crop: raw is kept as far around it as a patch reaches.
        """
        lower, upper = self.crops[crop].label_grid.box()
        a, b = lower + self.target.extent / 2, upper - self.target.extent / 2
        return np.maximum(lower, np.minimum(a, b)), np.minimum(upper, np.maximum(a, b))

    @functools.cached_property
    def _n_examples(self) -> int:
        return self.crops[0].examples.shape[1]

    @functools.cached_property
    def _volumes(self) -> np.ndarray:
        volumes = np.array(
            [np.prod(np.subtract(*crop.label_grid.box()[::-1])) for crop in self.crops]
        )
        return volumes / volumes.sum()

    @functools.cached_property
    def _classes(self) -> list[tuple[list[int], list[np.ndarray]]]:
        """For each class with a positive voxel: the crops that have one, and the palette rows in them that are positive."""
        found = []
        for channel in range(self.crops[0].palette.shape[1]):
            rows = [
                np.flatnonzero((crop.palette[:, channel] == 1) & (crop.counts > 0))
                for crop in self.crops
            ]
            crops = [i for i, row in enumerate(rows) if len(row)]
            if crops:
                found.append((crops, [rows[i] for i in crops]))
        return found


def generator(seed: int, number: int) -> np.random.Generator:
    """Philox keyed by two numbers below 2**64; as a list NumPy would round them to float64 where one is above 2**63."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))


def draw_orientation(random: np.random.Generator, transforms: dict) -> tuple[np.ndarray, bool]:
    """An orientation (3, 3) and whether it turns by other than whole axes.

    Mirrors each axis with its probability, permutes the named axes only, then rotates about x, y and z by angles (degrees)
    drawn from their ranges. In nm, so that nothing is sheared where voxels are not cubes.
    """
    mirror = transforms.get("mirror", {}).get("axes", {})
    signs = np.array([-1.0 if random.random() < mirror.get(axis, 0) else 1.0 for axis in "zyx"])
    axes = [AXES[axis] for axis in transforms.get("transpose", {}).get("axes", ())]
    order = np.arange(3)
    order[sorted(axes)] = random.permutation(sorted(axes))
    orientation = np.eye(3)[order] * signs
    turned = False
    for axis, (low, high) in transforms.get("rotate", {}).get("axes", {}).items():
        angle = np.deg2rad(random.uniform(low, high))
        turned |= angle != 0
        orientation = rotation(axis, angle) @ orientation
    return orientation, turned


def rotation(axis: str, angle: float) -> np.ndarray:
    """Rotation (3, 3) of z, y, x coordinates about an axis, by `angle` radians; right-handed in x, y, z (about z: x to y)."""
    a, b = (AXES[axis] - 1) % 3, (AXES[axis] - 2) % 3
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def margins_nm(input: Patch, target: Patch, spatial_transforms: dict) -> dict[str, np.ndarray]:
    """For each usage of a crop, "train" and "validate", how far around its labels raw is read: (3,) nm.

    Whoever keeps raw (training, fingerprint, fetch-data) asks here; whole voxels beyond a margin
    are `common.data.crops.raw_voxels`.
    """
    return {
        # centres of training patches lie within the crop, in every orientation
        "train": reach_nm(input, spatial_transforms),
        # validation blocks are not turned, and the last ones stick out by up to a target patch
        "validate": (input.extent + target.extent) / 2,
    }


def reach_nm(patch: Patch, transforms: dict) -> np.ndarray:
    """(3,) nm: half of the box that holds the patch in every orientation that `transforms` can give."""
    half = patch.extent / 2
    swapped = [AXES[axis] for axis in transforms.get("transpose", {}).get("axes", ())]
    if swapped:
        half[swapped] = half[swapped].max()
    for axis, angles in transforms.get("rotate", {}).get("axes", {}).items():
        if any(angles):
            plane = [i for i in range(3) if i != AXES[axis]]
            half[plane] = np.hypot(*half[plane])
    return (
        np.minimum(half, np.linalg.norm(patch.extent / 2))
        if swapped or transforms.get("rotate")
        else half
    )


def on_voxels(centre: np.ndarray, orientation: np.ndarray, patch: Patch, grid: Grid) -> np.ndarray:
    """The centre moved by at most half a voxel so that patch voxels lie on voxels of the grid and need no interpolation.

    Only along axes where the voxels have the grid's size. Halves go down, as nearest neighbours at halves go up: the two
    together leave a patch on the label voxels where it was.
    """
    shape, scale = (
        np.abs(orientation) @ np.array([patch.shape, patch.scale]).T
    ).T  # along the world's axes
    first = (centre - grid.origin) / grid.scale - (shape - 1) / 2
    move = (np.ceil(first - 0.5 - 1e-6) - first) * grid.scale
    return centre + np.where(np.isclose(scale, grid.scale, rtol=1e-6), move, 0)


def cut(
    volume: np.ndarray, grid: Grid, sample: Sample, patch: Patch
) -> tuple[np.ndarray, np.ndarray]:
    """The part of `volume` that a patch reads, and the affine (3, 4) float64 from patch voxels to voxels of that part.

    Outside of the volume it is 0.
    """
    linear = sample.orientation * patch.scale / grid.scale[:, None]
    last_voxel = np.array(patch.shape) - 1
    corner = (sample.centre - grid.origin) / grid.scale - linear @ last_voxel / 2
    ends = linear * last_voxel
    start = np.floor(corner + np.minimum(ends, 0).sum(1) - 0.01).astype(int)
    stop = np.ceil(corner + np.maximum(ends, 0).sum(1) + 0.01).astype(int) + 1
    affine = np.concatenate([linear, (corner - start)[:, None]], axis=1)
    first, last = np.maximum(start, 0), np.minimum(stop, volume.shape)
    if (first == start).all() and (last == stop).all():
        return np.array(volume[_slices(first, last)]), affine
    block = np.zeros(stop - start, volume.dtype)
    if (last > first).all():
        block[_slices(first - start, last - start)] = volume[_slices(first, last)]
    return block, affine


def _slices(first: np.ndarray, last: np.ndarray) -> tuple[slice, ...]:
    return tuple(map(slice, first.tolist(), last.tolist()))


def validation_samples(
    crops: Sequence[Crop], input: Patch, target: Patch, seed: int
) -> list[Sample]:
    """Blocks that cover every validation crop once, in a fixed order that visits all crops early.

    Blocks start at the crop's first voxel; the last ones stick out, where nothing is known, so that no voxel counts twice.
    A crop smaller than the patch is in the middle of one block.
    """
    tiles: list[list[Sample]] = []
    for index, crop in enumerate(crops):
        lower, upper = crop.label_grid.box()
        centres = []
        for a, b, extent in zip(lower, upper, target.extent, strict=True):
            n = max(1, int(np.ceil((b - a) / extent - 1e-6)))
            centres.append([(a + b) / 2] if n == 1 else a + (np.arange(n) + 0.5) * extent)
        mesh = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 3)
        order = generator(seed, index).permutation(len(mesh))
        on_grid = [on_voxels(mesh[i], np.eye(3), input, crop.raw_grid) for i in order]
        tiles.append([Sample(0, index, centre, np.eye(3)) for centre in on_grid])
    rounds = max(len(tile) for tile in tiles)
    ordered = [tile[i] for i in range(rounds) for tile in tiles if i < len(tile)]
    return [replace(sample, k=k) for k, sample in enumerate(ordered)]

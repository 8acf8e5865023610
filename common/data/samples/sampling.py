"""Draw sample k as a pure function of (seed, k), and cut the blocks that it reads.

The crop, centre, orientation and intensity change of a sample come from a counter-based generator
(NumPy's Philox) keyed by seed and k. So the batches are the same for any number of workers, and a
continued run needs no sampler state.

Three words for boxes of voxels: a *crop* is an annotated part of a dataset with the raw around it;
a *patch* is what goes through the network in one sample; a *block* is the part of a crop's volume
that a patch reads, before it is rotated and resampled. Positions and sizes are in nm in the world
frame of the dataset, z, y, x, unless stated otherwise.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from common.config.augmentations import Augmentations, Scale, read_augmentations
from common.data.crops.opened import Crop
from common.data.samples import defects, distort
from common.data.samples.augment import IntensityChange
from common.data.samples.defects import Defects
from common.data.samples.distort import Distortion
from common.data.volumes.box import slices
from common.data.volumes.level import Grid

AXES = {"z": 0, "y": 1, "x": 2}

MORE_THAN_ONE = 1.9
"""Voxels of raw along an axis of a label voxel from which it has several of them."""


@dataclass(frozen=True)
class Patch:
    """Shape and voxel size of the raw patch or of the target patch."""

    shape: tuple[int, int, int]
    """Voxels, z, y, x."""
    scale: tuple[float, float, float]
    """Voxel size in nm, z, y, x."""

    @property
    def extent(self) -> np.ndarray:
        """(3,) size of the patch in nm."""
        return np.array(self.shape) * self.scale


@dataclass(frozen=True)
class Sample:
    """One sample: where it lies, how it is oriented, and how its intensities change."""

    k: int
    """Number of the sample, counted from 0 over the whole run."""
    crop: int
    """Index of its crop in `Sampler.crops`."""
    centre: np.ndarray
    """(3,) world position in nm of the centre, which raw and target patch share."""
    orientation: np.ndarray
    """(3, 3) matrix from offsets in the patch to offsets in the world, both in nm. It is the
    product rotation @ permutation @ mirror @ scaling, orthogonal but for the last."""
    intensity: IntensityChange = field(default_factory=IntensityChange)
    distortion: Distortion | None = None
    """What is added to the positions that the orientation gives."""
    defects: Defects | None = None
    """How the raw is spoilt."""


# Drawing training samples


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training samples; none by default.

    The first fields are the settings of the same names.
    """

    spatial_transforms: dict = field(default_factory=dict)
    intensity_probability: float = 0.0
    """Probability of each of the three changes below."""
    gamma_range: tuple[float, ...] = (1.0, 1.0)
    contrast_range: tuple[float, ...] = (1.0, 1.0)
    noise_std: float = 0.0
    kinds: Augmentations = field(default_factory=Augmentations)
    """The setting `augmentations`, read."""

    def draw_intensity(self, random: np.random.Generator) -> IntensityChange:
        """Draw the intensity change of one sample."""
        # all numbers are drawn, used or not: what follows does not depend on what was used
        happens = random.random(3) < self.intensity_probability
        gamma = defects.uniform(random, self.gamma_range)
        contrast = defects.uniform(random, self.contrast_range)
        return IntensityChange(
            gamma=gamma if happens[0] else 1.0,
            contrast=contrast if happens[1] else 1.0,
            noise_std=self.noise_std if happens[2] else 0.0,
            noise_seed=int(random.integers(2**62)),
        )


@dataclass(frozen=True)
class Occurrence:
    """Where one class is positive."""

    crops: list[int]
    """Indices of the crops with a positive voxel of the class."""
    rows: list[np.ndarray]
    """For each crop of `crops`, the palette rows in which the class is positive."""


@dataclass(frozen=True)
class Sampler:
    """Draws training samples from crops."""

    crops: Sequence[Crop]
    input: Patch
    target: Patch
    seed: int
    weighted: bool = True
    """True draws a class first, then a crop that has it; False draws crops by their volume."""
    positive_centre_fraction: float = 0.5
    """If weighted, the fraction of samples whose target patch contains a voxel of the class."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    class_weights: np.ndarray | None = None
    """(classes,) relative frequencies of the classes; None draws all equally often."""
    crop_weights: np.ndarray | None = None
    """(crops,) relative frequencies of the crops among those that could be drawn instead; None
    weighs all alike."""
    elsewhere: bool = False
    """If weighted, whether samples that are not placed on a positive voxel lie in any crop."""
    objects: Patch | None = None
    """The patch of ids, with the same centre as the target; None where objects are not read."""

    def draw(self, k: int) -> Sample:
        """Return sample k: the same on every call, independent of other calls."""
        random = generator(self.seed, k)
        kinds = self.augmentation.kinds
        orientation, turned = draw_orientation(random, self.augmentation.spatial_transforms)
        scaling = self.stream(k, "scale")
        if scaling is not None and kinds.scale is not None:
            # one that is scaled needs interpolation, as one that is turned
            turned = True
            orientation = orientation / draw_factors(scaling, kinds.scale)
        crop, centre = self._place(random, k, orientation)
        if not turned:
            centre = self._on_voxels(centre, orientation, self.crops[crop])
        return Sample(
            k=k,
            crop=crop,
            centre=centre,
            orientation=orientation,
            intensity=self.augmentation.draw_intensity(random),
            distortion=self._distortion(k, orientation, self.crops[crop].raw_grid),
            defects=defects.draw(kinds, functools.partial(self.stream, k)),
        )

    def _on_voxels(self, centre: np.ndarray, orientation: np.ndarray, crop: Crop) -> np.ndarray:
        """Return the centre (nm) moved onto the voxels of raw, of which labels may take several.

        Then it is moved onto the labels first: on another voxel of raw each label would be taken
        for a place up to half of its voxel beside its own.
        """
        labels = crop.label_grid
        are_larger = labels.scale > MORE_THAN_ONE * crop.raw_grid.scale
        if are_larger.any():
            moved = on_voxels(centre, orientation, self.target, labels)
            lower, upper = labels.box()
            # where raw is kept
            is_inside = (lower <= moved) & (moved <= upper)
            centre = np.where(are_larger & is_inside, moved, centre)
        return on_voxels(centre, orientation, self.input, crop.raw_grid)

    def stream(self, k: int, name: str) -> np.random.Generator | None:
        """Return the random numbers of a kind of `augmentations` for sample k.

        None if it does not happen to the sample. Each kind has numbers of its own: turning it on
        leaves everything else of the sample as it was, so that runs with and without can be
        compared.
        """
        kind = getattr(self.augmentation.kinds, name)
        if kind is None:
            return None
        random = generator(self.seed, k, zlib.crc32(name.encode()))
        return random if random.random() < kind.probability else None

    def _distortion(self, k: int, orientation: np.ndarray, raw: Grid) -> Distortion | None:
        kinds = self.augmentation.kinds
        parts: dict = {}
        for name, part in (("section_shift", "shift"), ("section_slip", "slip")):
            random = self.stream(k, name)
            if random is not None:
                # in the target patch, where the loss sees it
                reach_z = np.abs(orientation[0]) @ self.target.extent / 2
                kind = getattr(kinds, name)
                parts[part] = distort.draw_sections(random, kind, reach_z, raw.scale)
        random = self.stream(k, "elastic")
        if random is not None and kinds.elastic is not None:
            extent = np.maximum(self.input.extent, (self.objects or self.target).extent)
            parts["field"] = distort.draw_field(random, kinds.elastic, extent)
        return Distortion(**parts) if parts else None

    def _place(
        self, random: np.random.Generator, k: int, orientation: np.ndarray
    ) -> tuple[int, np.ndarray]:
        """Return crop and centre (nm) of sample k; if weighted, for the class whose turn it is."""
        if not self.weighted or not self._occurrences:
            crop = int(random.choice(len(self.crops), p=self._volumes))
            return crop, self._anywhere(random, crop)
        occurrence = self._occurrences[self._turn(k)]
        choice = self._draw_crop(random, occurrence)
        crop = occurrence.crops[choice]
        if random.random() >= self.positive_centre_fraction:
            if self.elsewhere:
                crop = int(random.choice(len(self.crops), p=self._volumes))
            return crop, self._anywhere(random, crop)
        positive = self._positive_voxel(random, crop, occurrence.rows[choice])
        # the voxel lies anywhere in the patch, so that the centre tells the network nothing
        room = self.target.extent - self.target.scale
        moving = [name for name in distort.OF_LABELS if self.stream(k, name) is not None]
        if moving:
            # and stays in it, wherever the sample is displaced to
            displaced = distort.bound_nm(self.augmentation.kinds, moving)
            along_patch = np.abs(np.linalg.inv(orientation)) @ displaced
            room = np.maximum(room - 2 * along_patch, 0)
        from_centre = (random.random(3) - 0.5) * room
        within = orientation @ from_centre
        lower, upper = self._centres(crop)
        return crop, np.clip(positive + within, lower, upper)

    def _turn(self, k: int) -> int:
        """Return the class that sample k is drawn for, as an index into `_channels`.

        The classes that occur take turns: each round of as many samples as there are classes has an
        order of its own. With class weights, a class gets its share of the turns of a round,
        rounded up or down at random (systematic sampling).
        """
        number = len(self._occurrences)
        round_number, place = divmod(k, number)
        # above 2**63: no sample has this number
        random = generator(self.seed, 2**63 + round_number)
        turn = random.permutation(number)[place]
        if self._shares is None:
            return int(turn)
        point = (turn + random.random()) / number
        ends = np.cumsum(self._shares)[:-1]
        return int(np.searchsorted(ends, point, side="right"))

    def _draw_crop(self, random: np.random.Generator, occurrence: Occurrence) -> int:
        """Draw a crop that has the class; return its position in `occurrence.crops`."""
        number = len(occurrence.crops)
        if self.crop_weights is None:
            return int(random.integers(number))
        weights = self.crop_weights[occurrence.crops]
        return int(random.choice(number, p=weights / weights.sum()))

    def _positive_voxel(
        self, random: np.random.Generator, crop: int, rows: np.ndarray
    ) -> np.ndarray:
        """Draw a voxel of these palette rows, all equally likely; return its centre, (3,) nm."""
        of_crop = self.crops[crop]
        counts = of_crop.counts[rows]
        row = rows[random.choice(len(rows), p=counts / counts.sum())]
        example = of_crop.examples[row, random.integers(of_crop.examples.shape[1])]
        return of_crop.label_grid.origin + example * of_crop.label_grid.scale

    def _anywhere(self, random: np.random.Generator, crop: int) -> np.ndarray:
        lower, upper = self._centres(crop)
        return lower + random.random(3) * (upper - lower)

    def _centres(self, crop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and highest centre (nm) of a target patch in a crop.

        Along each axis the patch lies within the crop, or a smaller crop within the patch. A centre
        is never outside of the crop: raw is kept as far around the crop as a patch reaches.
        """
        lower, upper = self.crops[crop].label_grid.box()
        first = lower + self.target.extent / 2
        last = upper - self.target.extent / 2
        return (
            np.maximum(lower, np.minimum(first, last)),
            np.minimum(upper, np.maximum(first, last)),
        )

    @functools.cached_property
    def _volumes(self) -> np.ndarray:
        """(crops,) probability of each crop if samples are not drawn by class."""
        boxes = [crop.label_grid.box() for crop in self.crops]
        volumes = np.array([np.prod(upper - lower) for lower, upper in boxes])
        if self.crop_weights is not None:
            volumes = volumes * self.crop_weights
        return volumes / volumes.sum()

    @functools.cached_property
    def _channels(self) -> list[int]:
        """Indices of the classes that take turns: a positive voxel in a crop, weight above 0."""
        positive = np.any([_positive_rows(crop).any(axis=0) for crop in self.crops], axis=0)
        if self.class_weights is not None:
            positive = positive & (self.class_weights > 0)
        return np.flatnonzero(positive).tolist()

    @functools.cached_property
    def _occurrences(self) -> list[Occurrence]:
        """For each class of `_channels`, where it is positive."""
        occurrences = []
        positive = [_positive_rows(crop) for crop in self.crops]
        for channel in self._channels:
            rows = [np.flatnonzero(of_crop[:, channel]) for of_crop in positive]
            crops = [i for i, of_crop in enumerate(rows) if len(of_crop)]
            occurrences.append(Occurrence(crops, [rows[i] for i in crops]))
        return occurrences

    @functools.cached_property
    def _shares(self) -> np.ndarray | None:
        """For each class of `_channels`, its share of the samples; None if all are equal."""
        if self.class_weights is None:
            return None
        weights = self.class_weights[self._channels]
        return None if (weights == weights[0]).all() else weights / weights.sum()


def _positive_rows(crop: Crop) -> np.ndarray:
    """Return (rows, classes) bool: rows that occur in the crop and in which a class is positive."""
    return (crop.palette == 1) & (crop.counts > 0)[:, None]


def generator(seed: int, number: int, stream: int = 0) -> np.random.Generator:
    """Return a Philox generator keyed by two integers from 0 to 2**64 - 1.

    stream: likewise; streams of one key never overlap, since each begins 2**192 blocks after the
    one before.
    """
    # an array: of a list NumPy makes float64 where one number is above 2**63, and rounds both
    key = np.array([seed, number], np.uint64)
    counter = np.array([0, 0, 0, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


# Orientation


def draw_orientation(random: np.random.Generator, transforms: dict) -> tuple[np.ndarray, bool]:
    """Draw an orientation (3, 3); also return whether it rotates by any angle.

    Each axis is mirrored with its probability, then the axes listed under "transpose" are permuted
    at random, then the patch is rotated about each axis listed under "rotate", in that order, by an
    angle in degrees drawn from its range. The matrix acts on offsets in nm, so that nothing is
    sheared where voxels are not cubes.

    Args:
        random: generator of the sample.
        transforms: the setting `spatial_transforms`.

    Returns:
        The orientation, see `Sample.orientation`, and False if it only mirrors and permutes axes.
    """
    mirror = transforms.get("mirror", {}).get("axes", {})
    signs = np.ones(3)
    for number, axis in enumerate("zyx"):
        if random.random() < mirror.get(axis, 0):
            signs[number] = -1
    axes = sorted(_swapped_axes(transforms))
    order = np.arange(3)
    order[axes] = random.permutation(axes)
    orientation = np.eye(3)[order] * signs
    turned = False
    ranges = transforms.get("rotate", {}).get("axes", {})
    for axis, (low, high) in ranges.items():
        angle = np.deg2rad(random.uniform(low, high))
        turned |= angle != 0
        orientation = rotation(axis, angle) @ orientation
    return orientation, turned


def draw_factors(random: np.random.Generator, scale: Scale) -> np.ndarray:
    """Draw the factors by which a patch is enlarged along its axes, (3,)."""
    low, high = scale.factor
    # in logarithms: half as large is as likely as twice as large
    logarithms = random.uniform(np.log(low), np.log(high), 3)
    factors = np.exp(logarithms)
    return np.full(3, factors[0]) if scale.isotropic else factors


def _swapped_axes(transforms: dict) -> list[int]:
    return [AXES[axis] for axis in transforms.get("transpose", {}).get("axes", ())]


def rotation(axis: str, angle: float) -> np.ndarray:
    """Return the rotation (3, 3) of z, y, x coordinates about an axis by `angle` radians.

    It is right-handed in x, y, z: a rotation about z by 90 degrees takes x to y.
    """
    a = (AXES[axis] - 1) % 3
    b = (AXES[axis] - 2) % 3
    matrix = np.eye(3)
    matrix[a, a] = np.cos(angle)
    matrix[b, b] = np.cos(angle)
    matrix[a, b] = -np.sin(angle)
    matrix[b, a] = np.sin(angle)
    return matrix


# How far a patch reaches


def margins_nm(
    input: Patch, target: Patch, spatial_transforms: dict, augmentations: dict | None = None
) -> dict[str, np.ndarray]:
    """Return how far around the labels of a crop raw is read, (3,) nm, by usage of the crop.

    The keys are "train" and "validate". Training, fingerprint and fetch-data all take the margin
    from here; `common.data.crops.plan.raw_voxels` rounds it up to whole voxels.
    """
    kinds = read_augmentations(augmentations or {})
    smallest = kinds.scale.factor[0] if kinds.scale else 1.0
    return {
        # centres of training patches lie within the crop, in every orientation
        "train": reach_nm(input, spatial_transforms) / min(smallest, 1) + distort.bound_nm(kinds),
        # validation blocks are not turned, and the last ones stick out by up to a target patch
        "validate": (input.extent + target.extent) / 2,
    }


def reach_nm(patch: Patch, transforms: dict) -> np.ndarray:
    """Return (3,) nm: half the size of a box that holds the patch in every orientation.

    `transforms` is the setting `spatial_transforms`.
    """
    half = patch.extent / 2
    swapped = _swapped_axes(transforms)
    if swapped:
        half[swapped] = half[swapped].max()
    for axis, angles in transforms.get("rotate", {}).get("axes", {}).items():
        if any(angles):
            plane = [i for i in range(3) if i != AXES[axis]]
            half[plane] = np.hypot(*half[plane])
    if not swapped and not transforms.get("rotate"):
        return half
    # several rotations one after the other: no corner gets further than half the diagonal
    return np.minimum(half, np.linalg.norm(patch.extent / 2))


# Placing and cutting


def on_voxels(centre: np.ndarray, orientation: np.ndarray, patch: Patch, grid: Grid) -> np.ndarray:
    """Return the centre (nm) moved by at most half a voxel, so that patch and grid voxels coincide.

    Such a patch is copied without interpolation. The centre is moved only along axes where patch
    and grid have the same voxel size. The orientation must not rotate. centre: (3,), or (n, 3).
    """
    # shape and voxel size of the patch along the world's axes
    along_world = np.abs(orientation) @ np.array([patch.shape, patch.scale]).T
    shape, scale = along_world.T
    first = (centre - grid.origin) / grid.scale - (shape - 1) / 2
    # halves go down, as nearest neighbours at halves go up: together they leave a patch on the
    # label voxels where it was
    move = (np.ceil(first - 0.5 - 1e-6) - first) * grid.scale
    return centre + np.where(np.isclose(scale, grid.scale, rtol=1e-6), move, 0)


def cut(
    volume: np.ndarray, grid: Grid, sample: Sample, patch: Patch
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the block of a volume that a patch reads.

    Args:
        volume: (z, y, x), raw or palette rows.
        grid: where the voxels of `volume` are.
        sample: centre and orientation of the patch.
        patch: its shape and voxel size.

    Returns:
        The block (z, y, x), 0 outside of the volume, and the affine (3, 4) float64 that takes a
        voxel index of the patch to fractional voxel indices of the block.
    """
    linear = sample.orientation * patch.scale / grid.scale[:, None]
    last_voxel = np.array(patch.shape) - 1
    corner = (sample.centre - grid.origin) / grid.scale - linear @ last_voxel / 2
    ends = linear * last_voxel
    # 0.01 voxel more, so that rounding does not put a patch's own corner outside
    beyond = np.full(3, 0.01)
    if sample.distortion is not None:
        beyond += sample.distortion.reach_nm / grid.scale
    lowest = corner + np.minimum(ends, 0).sum(1)
    highest = corner + np.maximum(ends, 0).sum(1)
    start = np.floor(lowest - beyond).astype(int)
    stop = np.ceil(highest + beyond).astype(int) + 1
    affine = np.concatenate([linear, (corner - start)[:, None]], axis=1)
    first = np.maximum(start, 0)
    last = np.minimum(stop, volume.shape)
    if (first == start).all() and (last == stop).all():
        return np.array(volume[slices(first, last)]), affine
    block = np.zeros(stop - start, volume.dtype)
    if (last > first).all():
        inside = slices(first - start, last - start)
        block[inside] = volume[slices(first, last)]
    return block, affine

"""Samples as a pure function of seed and k: place, orientation, what is cut out for them."""

from __future__ import annotations

import itertools
from dataclasses import astuple, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from common.config.augmentations import Scale, read_augmentations
from common.data.crops.opened import Crop
from common.data.samples.augment import IntensityChange
from common.data.samples.defects import Defects
from common.data.samples.distort import Distortion, PatchDistortion
from common.data.samples.sampling import (
    Augmentation,
    Patch,
    Sample,
    Sampler,
    cut,
    draw_factors,
    draw_orientation,
    margins_nm,
    on_voxels,
    reach_nm,
    rotation,
)
from common.data.samples.validation_blocks import key_of_blocks, validation_samples
from common.data.volumes.ngff import Grid

ALL_AXES = {
    "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.5}},
    "transpose": {"axes": ["x", "y", "z"]},
    "rotate": {"axes": {"x": [-180, 180], "y": [-180, 180], "z": [-180, 180]}},
}


def palette_index(labels: np.ndarray, classes: int = 3) -> np.ndarray:
    """The palette rows of `made_crop`: 0 is unknown, the last row is of no class."""
    return np.where(labels == 0, classes + 1, labels).astype(np.uint8)


def made_crop(
    labels: np.ndarray, classes: int = 3, scale: float = 8, seed: int = 0, origin: float = 1000
) -> Crop:
    """A crop whose voxels are positive for class `label - 1` only; 0 is of no class."""
    random = np.random.default_rng(seed)
    palette = np.concatenate(
        [np.full((1, classes), -1), np.eye(classes, dtype=int), np.zeros((1, classes))]
    ).astype(np.int8)
    index = palette_index(labels, classes)
    counts = np.bincount(index.ravel(), minlength=len(palette))
    examples = np.zeros((len(palette), 128, 3), np.int32)
    for row in np.flatnonzero(counts):
        examples[row] = random.choice(np.argwhere(index == row), 128)
    grid = Grid(np.full(3, float(origin)), np.full(3, float(scale)), labels.shape)
    return Crop(f"crop{seed}", Path(), grid, grid, palette, counts, examples, 0)


def sampler(crops: list[Crop], target: int = 8, **settings) -> Sampler:
    """Patches of 16 voxels in, `target` voxels out, at 8 nm."""
    drawn = {f.name: settings.pop(f.name) for f in fields(Augmentation) if f.name in settings}
    values = {"seed": 1, "positive_centre_fraction": 1.0, "augmentation": Augmentation(**drawn)}
    values |= settings
    return Sampler(crops, Patch((16, 16, 16), (8, 8, 8)), Patch((target,) * 3, (8, 8, 8)), **values)


@pytest.fixture(scope="module")
def crops() -> list[Crop]:
    """Three crops: all classes; the first only; the first and a single voxel of the third."""
    random = np.random.default_rng(0)
    every = random.integers(0, 4, (20, 21, 22))
    first = random.integers(0, 2, (18, 18, 18))
    rare = random.integers(0, 2, (19, 19, 19))
    rare[3, 0, 18] = 3
    return [made_crop(labels, seed=i) for i, labels in enumerate((every, first, rare))]


def as_numbers(sample: Sample) -> tuple:
    return (
        sample.k,
        sample.crop,
        *sample.centre,
        *sample.orientation.ravel(),
        *astuple(sample.intensity),
    )


EVERYTHING = {
    "spatial_transforms": ALL_AXES,
    "intensity_probability": 0.5,
    "gamma_range": (0.8, 1.2),
    "contrast_range": (0.8, 1.2),
    "noise_std": 0.1,
    "positive_centre_fraction": 0.5,
}


# What a sample depends on


def test_a_sample_is_the_same_in_any_order_and_from_any_sampler(crops):
    forward = [as_numbers(sampler(crops, **EVERYTHING).draw(k)) for k in range(40)]
    other = sampler(crops, **EVERYTHING)
    backward = [as_numbers(other.draw(k)) for k in reversed(range(40))]
    assert forward == backward[::-1]


def test_samples_differ_from_each_other(crops):
    drawn = [as_numbers(sampler(crops, **EVERYTHING).draw(k))[2:] for k in range(200)]
    assert len(set(drawn)) == 200


def test_another_seed_gives_other_samples(crops):
    a, b = (sampler(crops, **EVERYTHING | {"seed": seed}) for seed in (1, 2))
    assert all(as_numbers(a.draw(k)) != as_numbers(b.draw(k)) for k in range(20))


def test_a_large_seed_and_a_late_sample_are_not_rounded(crops):
    large = sampler(crops, seed=2**63 + 1, **EVERYTHING)
    neighbour = sampler(crops, seed=2**63 + 2, **EVERYTHING)
    assert as_numbers(large.draw(2**60)) != as_numbers(neighbour.draw(2**60))
    assert as_numbers(large.draw(2**60))[2:] != as_numbers(large.draw(2**60 + 1))[2:]


# Classes and crops


def positive_classes(crop: Crop, labels: np.ndarray, sample: Sample, target: int = 8) -> np.ndarray:
    """(classes,) bool: classes with a positive voxel in the target of an axis-aligned sample."""
    patch = Patch((target,) * 3, (8, 8, 8))
    index, affine = cut(palette_index(labels), crop.label_grid, sample, patch)
    at = np.floor(
        affine[:, :3] @ np.indices(patch.shape).reshape(3, -1) + affine[:, 3:] + 0.5 + 1e-6
    ).astype(int)
    return (crop.palette[index[tuple(at)]] == 1).any(axis=0)


def test_every_class_is_drawn_equally_often_however_rare_it_is():
    """Three crops of one class each, of which the last has a single voxel."""
    labels = [np.full((12, 12, 12), 1), np.full((30, 30, 30), 2), np.zeros((20, 20, 20), int)]
    labels[2][5, 5, 5] = 3
    drawer = sampler([made_crop(volume, seed=i) for i, volume in enumerate(labels)])
    for start in range(0, 90, 3):
        assert sorted(drawer.draw(k).crop for k in range(start, start + 3)) == [0, 1, 2]


def test_the_order_of_the_classes_is_drawn_anew_each_round():
    labels = [np.full((12, 12, 12), i + 1) for i in range(3)]
    drawer = sampler([made_crop(volume, seed=i) for i, volume in enumerate(labels)])
    crops = [drawer.draw(k).crop for k in range(300)]
    orders = {tuple(crops[start : start + 3]) for start in range(0, 300, 3)}
    assert orders == set(itertools.permutations(range(3)))


def test_a_class_without_positive_voxel_takes_no_turn():
    """Of three classes the first does not occur: a round of the others has two samples."""
    drawer = sampler([made_crop(np.full((12, 12, 12), i), seed=i) for i in (2, 3)])
    for start in range(0, 40, 2):
        assert sorted(drawer.draw(k).crop for k in (start, start + 1)) == [0, 1]


@pytest.mark.parametrize(
    "transforms",
    [
        {},
        {"mirror": ALL_AXES["mirror"]},
        {"transpose": ALL_AXES["transpose"], "mirror": ALL_AXES["mirror"]},
    ],
)
@pytest.mark.parametrize("target", [1, 5, 8, 30])
def test_a_patch_drawn_for_a_class_contains_it(transforms, target):
    """A class of one voxel in a corner, one in the middle, one that fills the rest."""
    labels = np.ones((20, 21, 22), int)
    labels[0, 20, 21] = 2
    labels[10, 10, 10] = 3
    crop = made_crop(labels)
    drawer = sampler([crop], target, spatial_transforms=transforms)
    for start in range(0, 120, 3):
        found = [
            positive_classes(crop, labels, drawer.draw(k), target) for k in range(start, start + 3)
        ]
        assert np.any(found, axis=0).all()


def test_every_positive_voxel_of_a_class_is_drawn_equally_often():
    """A class in two palette rows, of 900 and of 100 voxels."""
    labels = np.zeros((20, 20, 20), int)
    for z in range(3):
        labels[z].flat[:300] = 1
    labels[10].flat[:100] = 2
    crop = made_crop(labels)
    palette = crop.palette.copy()
    palette[1:3] = (1, -1, -1), (1, -1, 0)
    drawer = sampler([replace(crop, palette=palette)], target=1)
    rare = sum(drawer.draw(k).centre[0] > crop.label_grid.origin[0] + 40 for k in range(0, 1000))
    assert abs(rare - 100) < 4 * np.sqrt(1000 * 0.1 * 0.9)


def test_the_positive_voxel_lies_anywhere_in_the_patch():
    """One positive voxel in the middle of a large crop: its place in the patch is uniform."""
    labels = np.zeros((41, 41, 41), int)
    labels[20, 20, 20] = 1
    crop = made_crop(labels)
    centres = np.array([sampler([crop]).draw(k).centre for k in range(1000)])
    places = (crop.label_grid.origin + 160 - centres) / 8
    assert np.abs(places).max() <= 4
    np.testing.assert_allclose(places.mean(axis=0), 0, atol=4 * np.sqrt(64 / 12 / 1000))
    np.testing.assert_allclose(places.std(axis=0), np.sqrt(49 / 12), atol=0.2)


def test_a_fraction_of_the_patches_is_placed_on_the_class():
    """A class of one voxel in a large crop: patches that lie anywhere hardly ever contain it."""
    labels = np.zeros((60, 60, 60), int)
    labels[30, 30, 30] = 1
    crop = made_crop(labels)
    drawer = sampler([crop], positive_centre_fraction=0.7)
    hits = sum(positive_classes(crop, labels, drawer.draw(k))[0] for k in range(400))
    chance = 0.7 + 0.3 * (8 / 53) ** 3
    assert abs(hits - 400 * chance) < 4 * np.sqrt(400 * chance * (1 - chance))


def test_samples_that_are_not_placed_on_a_class_lie_in_any_crop_if_asked_to():
    having = made_crop(np.ones((10, 10, 10), int))
    without = made_crop(np.zeros((10, 10, 30), int), seed=1)
    drawer = sampler([having, without], positive_centre_fraction=0.5)
    assert {drawer.draw(k).crop for k in range(50)} == {0}
    anywhere = replace(drawer, elsewhere=True)
    n = sum(anywhere.draw(k).crop for k in range(800))
    chance = 0.5 * 0.75
    assert abs(n - 800 * chance) < 4 * np.sqrt(800 * chance * (1 - chance))


def test_unweighted_crops_are_drawn_by_their_volume():
    small = made_crop(np.ones((10, 10, 10), int))
    large = made_crop(np.ones((10, 10, 30), int), seed=1)
    drawer = sampler([small, large], weighted=False)
    n = sum(drawer.draw(k).crop for k in range(800))
    assert abs(n - 600) < 4 * np.sqrt(800 * 0.75 * 0.25)


@pytest.mark.parametrize("settings", [{"weighted": False}, {"positive_centre_fraction": 0.0}, {}])
def test_target_patches_lie_within_the_crop(crops, settings):
    drawer = sampler(crops, **settings)
    for k in range(100):
        sample = drawer.draw(k)
        lower, upper = crops[sample.crop].label_grid.box()
        assert (sample.centre - 32 >= lower - 1e-6).all()
        assert (sample.centre + 32 <= upper + 1e-6).all()


def test_patches_reach_every_part_of_a_crop():
    crop = made_crop(np.ones((20, 20, 20), int))
    centres = np.array(
        [sampler([crop], positive_centre_fraction=0.0).draw(k).centre for k in range(300)]
    )
    lower, upper = crop.label_grid.box()
    np.testing.assert_allclose(centres.min(axis=0), lower + 32, atol=1e-6)
    np.testing.assert_allclose(centres.max(axis=0), upper - 32, atol=1e-6)


@pytest.mark.parametrize("settings", [{"weighted": False}, {"positive_centre_fraction": 0.0}, {}])
@pytest.mark.parametrize("size", [1, 3, 10])
def test_a_crop_smaller_than_the_patch_lies_within_the_patch_and_its_centre_within_the_crop(
    settings, size
):
    """Raw is kept as far around a crop as a patch reaches from a centre within the crop."""
    crop = made_crop(np.ones((size,) * 3, int))
    lower, upper = crop.label_grid.box()
    for k in range(60):
        centre = sampler([crop], 24, **settings).draw(k).centre
        moved = 4 + 1e-6  # by on_voxels
        assert (centre - 96 <= lower + moved).all() and (centre + 96 >= upper - moved).all()
        assert (centre >= lower - moved).all() and (centre <= upper + moved).all()


# Orientations


def orientations(transforms: dict, n: int = 2000) -> np.ndarray:
    return np.array([draw_orientation(np.random.default_rng(k), transforms)[0] for k in range(n)])


@pytest.mark.parametrize("axis", "zyx")
@pytest.mark.parametrize("degrees", [0, 30, 90, -135])
def test_a_rotation_is_right_handed_about_the_named_axis(axis, degrees):
    """SciPy rotates x, y, z."""
    expected = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    np.testing.assert_allclose(
        rotation(axis, np.deg2rad(degrees))[::-1, ::-1], expected, atol=1e-12
    )


@pytest.mark.parametrize("axis", "zyx")
def test_a_rotation_keeps_its_axis(axis):
    unit = np.eye(3)["zyx".index(axis)]
    np.testing.assert_allclose(rotation(axis, 1.0) @ unit, unit)


def test_rotations_about_several_axes_come_one_after_the_other():
    """About x, then y, then z of the world, as they are listed."""
    transforms = {"rotate": {"axes": {"x": [20, 20], "y": [-30, -30], "z": [40, 40]}}}
    expected = Rotation.from_euler("xyz", [20, -30, 40], degrees=True).as_matrix()
    np.testing.assert_allclose(orientations(transforms, 1)[0, ::-1, ::-1], expected, atol=1e-12)


def test_angles_are_uniform_within_their_range():
    found = orientations({"rotate": {"axes": {"z": [-10, 50]}}})
    angles = np.rad2deg(np.arctan2(found[:, 1, 2], found[:, 1, 1]))  # about z: x to y
    assert angles.min() >= -10 and angles.max() <= 50
    assert abs(angles.mean() - 20) < 4 * 60 / np.sqrt(12 * 2000)
    assert abs(angles.std() - 60 / np.sqrt(12)) < 1


def test_axes_are_mirrored_with_their_probability():
    found = orientations({"mirror": {"axes": {"z": 0.1, "x": 0.5}}})
    mirrored = (np.diagonal(found, axis1=1, axis2=2) == -1).sum(axis=0)
    assert abs(mirrored[0] - 200) < 4 * np.sqrt(2000 * 0.1 * 0.9)
    assert mirrored[1] == 0
    assert abs(mirrored[2] - 1000) < 4 * np.sqrt(2000 * 0.25)


def test_axes_are_mirrored_independently():
    signs = np.diagonal(orientations({"mirror": {"axes": {"y": 0.5, "x": 0.5}}}), axis1=1, axis2=2)
    both = ((signs[:, 1] == -1) & (signs[:, 2] == -1)).sum()
    assert abs(both - 500) < 4 * np.sqrt(2000 * 0.25 * 0.75)


@pytest.mark.parametrize("named", ["yx", "zx", "zyx", "xyz"])
def test_transpose_permutes_the_named_axes_only_and_each_way_equally_often(named):
    found = orientations({"transpose": {"axes": list(named)}})
    fixed = [i for i, axis in enumerate("zyx") if axis not in named]
    orders = found.argmax(axis=2)
    np.testing.assert_array_equal(found.sum(axis=(1, 2)), 3)
    assert all((orders[:, i] == i).all() for i in fixed)
    ways, counts = np.unique(orders, axis=0, return_counts=True)
    n = [1, 1, 2, 6][len(named)]
    assert len(ways) == n
    assert np.abs(counts - 2000 / n).max() < 4 * np.sqrt(2000 / n)


def test_every_orientation_keeps_lengths_and_angles():
    found = orientations(ALL_AXES, 200)
    np.testing.assert_allclose(
        found @ found.transpose(0, 2, 1), np.broadcast_to(np.eye(3), found.shape), atol=1e-12
    )
    assert {round(float(d)) for d in np.linalg.det(found)} == {-1, 1}


@pytest.mark.parametrize(
    ("transforms", "turned"),
    [
        ({}, False),
        ({"mirror": ALL_AXES["mirror"], "transpose": ALL_AXES["transpose"]}, False),
        ({"rotate": ALL_AXES["rotate"]}, True),
        ({"rotate": {"axes": {"z": [0, 0]}}}, False),
    ],
)
def test_only_a_rotation_counts_as_turned(transforms, turned):
    assert draw_orientation(np.random.default_rng(0), transforms)[1] == turned


@pytest.mark.parametrize(
    "patch",
    [
        Patch((8, 8, 8), (8, 8, 8)),
        Patch((1, 68, 40), (50, 4.6, 4.6)),
        Patch((10, 30, 20), (2.62, 2, 2)),
    ],
)
@pytest.mark.parametrize(
    "kinds",
    [
        (),
        ("mirror",),
        ("transpose",),
        ("rotate",),
        ("mirror", "transpose", "rotate"),
        ("z only",),
        ("y and x",),
    ],
)
def test_reach_holds_every_corner_of_the_patch_in_every_orientation(patch, kinds):
    transforms = {kind: ALL_AXES[kind] for kind in kinds if kind in ALL_AXES}
    if kinds == ("z only",):
        transforms = {"rotate": {"axes": {"z": [-180, 180]}}, "transpose": {"axes": ["y", "x"]}}
    if kinds == ("y and x",):
        transforms = {"rotate": {"axes": {"y": [-30, 90], "x": [-5, 5]}}}
    corners = np.array(list(itertools.product((-0.5, 0.5), repeat=3))) * patch.extent
    furthest = np.abs(orientations(transforms, 500) @ corners.T).max(axis=(0, 2))
    reach = reach_nm(patch, transforms)
    assert (furthest <= reach + 1e-9).all()
    if "rotate" not in transforms:
        np.testing.assert_allclose(furthest, reach)  # and no further than needed


def test_raw_is_kept_as_far_as_patches_and_blocks_reach():
    raw = Patch((16, 16, 16), (8, 8, 8))
    margins = margins_nm(raw, Patch((4, 6, 8), (8, 8, 8)), ALL_AXES)
    np.testing.assert_allclose(margins["train"], reach_nm(raw, ALL_AXES))
    # the centre of the last block is up to half a target patch outside of the crop
    np.testing.assert_allclose(margins["validate"], [64 + 16, 64 + 24, 64 + 32])


def test_reach_is_never_more_than_half_the_diagonal():
    patch = Patch((10, 30, 20), (8, 8, 8))
    assert (reach_nm(patch, ALL_AXES) <= np.linalg.norm(patch.extent) / 2).all()


# Kinds of augmentation

KINDS = {
    "scale": {"probability": 0.5, "factor": (0.5, 1.5)},
    "elastic": {"probability": 0.5, "amplitude_nm": 20, "spacing_nm": 60},
    "section_shift": {"probability": 0.5, "max_nm": 24},
    "section_slip": {"probability": 0.5, "max_nm": 24},
    "blur": {"probability": 0.5, "sigma_nm": 8},
    "missing_sections": {"probability": 0.5},
}


def with_kinds(crops: list[Crop], *names: str) -> Sampler:
    chosen = read_augmentations({name: KINDS[name] for name in names})
    return sampler(crops, **EVERYTHING, kinds=chosen)


def test_a_kind_that_is_turned_on_leaves_everything_else_of_a_sample(crops):
    """So that two runs differ by the kind alone."""
    plain = [sampler(crops, **EVERYTHING).draw(k) for k in range(40)]
    blurred = [with_kinds(crops, "blur", "section_slip").draw(k) for k in range(40)]
    assert [as_numbers(sample) for sample in plain] == [as_numbers(sample) for sample in blurred]
    alone = [with_kinds(crops, "blur").draw(k) for k in range(40)]
    assert [sample.defects for sample in alone] == [sample.defects for sample in blurred]
    happened = np.mean([sample.defects is not None for sample in alone])
    assert 0.25 < happened < 0.75


def test_kinds_happen_independently_of_each_other(crops):
    drawn = [with_kinds(crops, *KINDS).draw(k) for k in range(400)]
    happened = []
    for sample in drawn:
        distortion = sample.distortion or Distortion()
        defects = sample.defects or Defects()
        parts = (distortion.field, distortion.shift, distortion.slip, defects.missing)
        one = [part is not None for part in parts]
        happened.append([*one, defects.blur_nm > 0, abs(np.linalg.det(sample.orientation)) != 1])
    happened = np.array(happened)[:, :5]
    assert np.abs(happened.mean(0) - 0.5).max() < 0.1
    assert np.abs(np.corrcoef(happened.T) - np.eye(5)).max() < 0.2


def test_scaled_samples_are_enlarged_by_the_factors_that_were_drawn(crops):
    scaled = with_kinds(crops, "scale")
    plain = sampler(crops, **EVERYTHING)
    factors = []
    for k in range(200):
        stretch = np.linalg.inv(scaled.draw(k).orientation) @ plain.draw(k).orientation
        np.testing.assert_allclose(stretch, np.eye(3) * stretch[0, 0], atol=1e-9)
        factors.append(stretch[0, 0])
    assert 0.5 <= min(factors) < 0.55 and 1.4 < max(factors) <= 1.5
    assert 0.35 < np.mean(np.isclose(factors, 1)) < 0.65


def test_factors_of_each_axis_are_drawn_if_asked_for():
    random = np.random.default_rng(0)
    drawn = [draw_factors(random, Scale(1.0, (0.5, 2.0), False)) for _ in range(300)]
    drawn = np.log2(drawn)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.2
    assert abs(drawn.mean()) < 0.1 and np.abs(drawn).max() <= 1


DISPLACED = {
    "elastic": {"probability": 1, "amplitude_nm": 48, "spacing_nm": 120},
    "section_shift": {"probability": 1, "max_nm": 48},
}


@pytest.mark.parametrize("names", [["elastic"], ["section_shift"], ["elastic", "section_shift"]])
def test_the_positive_voxel_stays_in_a_target_patch_that_is_displaced(names):
    """Every place within the patch less the displacement is reached, whatever the field."""
    labels = np.zeros((40, 40, 40), int)
    labels[19, 21, 20] = 1
    crop = made_crop(labels)
    voxel = crop.label_grid.origin + np.array([19, 21, 20]) * 8
    kinds = read_augmentations({name: DISPLACED[name] for name in names})
    drawer = sampler([crop], 16, spatial_transforms=ALL_AXES, kinds=kinds)
    seen = []
    for k in range(100):
        sample = drawer.draw(k)
        of_patch = PatchDistortion(
            sample.distortion.of_labels, drawer.target.scale, crop.label_grid.scale
        )
        _, affine = cut(np.zeros(labels.shape), crop.label_grid, sample, drawer.target)
        places = of_patch.positions(affine, drawer.target.shape, torch.device("cpu")).numpy()
        middle = affine @ [7.5, 7.5, 7.5, 1]
        offset = (voxel - sample.centre) / 8
        distance = np.linalg.norm(places.reshape(3, -1).T - (middle[:3] + offset), axis=1)
        seen.append(distance.min())
    assert max(seen) < 1.2  # voxels: half a diagonal, more where the field stretches


def test_raw_is_kept_as_far_as_distorted_patches_reach():
    raw = Patch((16, 16, 16), (8, 8, 8))
    plain = margins_nm(raw, raw, ALL_AXES)
    kinds = {name: values | {"probability": 0.1} for name, values in KINDS.items()}
    found = margins_nm(raw, raw, ALL_AXES, kinds)
    expected = plain["train"] / 0.5 + np.array([20, 20 + 24 + 24, 20 + 24 + 24])
    np.testing.assert_allclose(found["train"], expected)
    np.testing.assert_allclose(found["validate"], plain["validate"])


def test_blocks_hold_all_that_distorted_patches_read(crops):
    """Also those of a scale far from 1: no position lies beyond the block."""
    drawer = with_kinds(crops, *KINDS)
    volume = np.zeros((90, 90, 90), np.uint8)
    grid = Grid(np.full(3, 800.0), np.full(3, 8.0), volume.shape)
    for k in range(60):
        sample = drawer.draw(k)
        block, affine = cut(volume, grid, sample, drawer.input)
        of_patch = PatchDistortion(
            sample.distortion or Distortion(), drawer.input.scale, grid.scale
        )
        places = of_patch.positions(affine, drawer.input.shape, torch.device("cpu")).numpy()
        assert (places >= 0).all()
        assert (places.max(axis=(1, 2, 3)) <= np.array(block.shape) - 1).all()


# Intensity


def test_intensity_changes_come_with_their_probability_and_within_their_range(crops):
    drawer = sampler(
        crops,
        intensity_probability=0.3,
        gamma_range=(0.5, 0.9),
        contrast_range=(1.5, 2),
        noise_std=0.2,
    )
    drawn = [drawer.draw(k) for k in range(1000)]
    for values, low, high, unchanged in (
        ([s.intensity.gamma for s in drawn], 0.5, 0.9, 1),
        ([s.intensity.contrast for s in drawn], 1.5, 2, 1),
        ([s.intensity.noise_std for s in drawn], 0.2, 0.2, 0),
    ):
        changed = [v for v in values if v != unchanged]
        assert abs(len(changed) - 300) < 4 * np.sqrt(1000 * 0.3 * 0.7)
        assert low <= min(changed) and max(changed) <= high


def test_every_sample_has_noise_of_its_own(crops):
    assert len({sampler(crops).draw(k).intensity.noise_seed for k in range(100)}) == 100


# Blocks


def test_a_centre_is_moved_onto_voxels_by_less_than_one():
    grid = Grid(np.array([3.0, 5, 7]), np.array([8.0, 4, 4]), (99, 99, 99))
    for seed in range(50):
        random = np.random.default_rng(seed)
        shape = tuple(int(n) for n in random.integers(1, 9, 3))
        orientation, _ = draw_orientation(
            random, {"mirror": ALL_AXES["mirror"], "transpose": {"axes": ["y", "x"]}}
        )
        centre = random.random(3) * 300
        moved = on_voxels(centre, orientation, Patch(shape, (8, 4, 4)), grid)
        assert (np.abs(moved - centre) <= grid.scale / 2 + 1e-4).all()
        for corner in itertools.product((-0.5, 0.5), repeat=3):
            offset = orientation @ (np.array(corner) * (np.array(shape) - 1) * (8, 4, 4))
            place = (moved + offset - grid.origin) / grid.scale
            np.testing.assert_allclose(place, np.rint(place), atol=1e-9)


def test_a_centre_is_not_moved_along_axes_where_voxels_differ_in_size():
    grid = Grid(np.zeros(3), np.array([5.24, 8, 8]), (99, 99, 99))
    moved = on_voxels(np.array([101.0, 101, 101]), np.eye(3), Patch((4, 4, 4), (8, 8, 8)), grid)
    assert moved.tolist() == [101, 100, 100]


@pytest.mark.parametrize("raw_scale", [8, 16 / 3, 4])
@pytest.mark.parametrize("target", [7, 8])
def test_a_patch_lies_on_labels_of_several_raw_voxels(raw_scale, target):
    """On every voxel of raw labels would be taken for a place beside their own."""
    crop = made_crop(np.random.default_rng(0).integers(0, 4, (20, 9, 8)), scale=16)
    labels = crop.label_grid
    shape = tuple(np.rint(np.array(labels.shape) * 16 / raw_scale).astype(int).tolist())
    raw = Grid(labels.origin - 8 + raw_scale / 2, np.full(3, raw_scale), shape)
    several = round(16 / raw_scale)
    input = Patch((target * several,) * 3, (raw_scale,) * 3)
    patch = Patch((target,) * 3, (16, 16, 16))
    turns = {"mirror": ALL_AXES["mirror"], "transpose": ALL_AXES["transpose"]}
    drawn = Sampler(
        [replace(crop, raw_grid=raw)], input, patch, 1, augmentation=Augmentation(turns)
    )
    for k in range(60):
        sample = drawn.draw(k)
        for grid, of in ((raw, input), (labels, patch)):
            _, affine = cut(np.zeros(grid.shape, np.uint8), grid, sample, of)
            np.testing.assert_allclose(affine, np.rint(affine), atol=1e-6)


def test_cut_takes_the_block_around_the_sample_and_its_affine_leads_to_the_same_place():
    """A volume that holds its own coordinates, read back through the affine."""
    grid = Grid(np.array([100.0, -50, 30]), np.array([50, 4.6, 4.6]), (30, 40, 50))
    coordinates = np.indices(grid.shape).astype(np.float64)
    patch = Patch((3, 7, 9), (50, 4.6, 4.6))
    for seed in range(20):
        random = np.random.default_rng(seed)
        orientation, _ = draw_orientation(random, {"rotate": {"axes": {"z": [-180, 180]}}})
        centre = grid.origin + (np.array([12, 18, 20]) + random.random(3) * 5) * grid.scale
        sample = Sample(0, 0, centre, orientation)
        found = [cut(coordinates[axis], grid, sample, patch) for axis in range(3)]
        for voxel in ((0, 0, 0), (2, 6, 8), (1, 3, 0)):
            from_middle = np.array(voxel) - (np.array(patch.shape) - 1) / 2
            world = centre + orientation @ (from_middle * patch.scale)
            for axis, (block, affine) in enumerate(found):
                at = affine[:, :3] @ voxel + affine[:, 3]
                assert (at >= 0).all() and (at <= np.array(block.shape) - 1).all()
                value = block[0, 0, 0] + at[axis]  # the volume is a ramp of slope 1
                place = grid.origin[axis] + value * grid.scale[axis]
                np.testing.assert_allclose(place, world[axis], atol=1e-9)


@pytest.mark.parametrize(
    ("centre", "first"),
    [((-4, 12, 12), (-2, 0, 0)), ((20, 40, 12), (1, 3, 0)), ((500, 12, 12), (61, 0, 0))],
)
def test_a_block_is_zero_outside_of_the_volume(centre, first):
    """Patches of 4 voxels in a volume of 4: partly outside below, above, and altogether outside."""
    volume = np.random.default_rng(0).integers(1, 9, (4, 4, 4), np.uint8)
    grid = Grid(np.zeros(3), np.full(3, 8.0), (4, 4, 4))
    patch = Patch((4, 4, 4), (8, 8, 8))
    sample = Sample(0, 0, on_voxels(np.array(centre, float), np.eye(3), patch, grid), np.eye(3))
    block, affine = cut(volume, grid, sample, patch)
    at = np.rint(affine[:, 3]).astype(int)
    found = block[tuple(slice(a, a + 4) for a in at)]
    around = np.pad(volume, 80)[tuple(slice(80 + a, 84 + a) for a in first)]
    np.testing.assert_array_equal(found, around)


def test_a_block_is_a_copy():
    volume = np.ones((9, 9, 9), np.uint8)
    grid = Grid(np.zeros(3), np.full(3, 8.0), (9, 9, 9))
    patch = Patch((2, 2, 2), (8, 8, 8))
    block, _ = cut(volume, grid, Sample(0, 0, np.full(3, 32.0), np.eye(3)), patch)
    block[:] = 0
    assert volume.all()


@pytest.mark.parametrize("transforms", [{}, ALL_AXES])
@pytest.mark.parametrize("scale", [(8, 4, 6), (5, 5, 5), (3, 7, 4)])
def test_a_block_holds_every_voxel_that_interpolation_reads_and_hardly_more(transforms, scale):
    patch = Patch((5, 12, 9), (8, 4, 6))
    grid = Grid(np.zeros(3), np.array(scale, float), (400, 400, 400))
    for seed in range(100):
        random = np.random.default_rng(seed)
        orientation, _ = draw_orientation(random, transforms)
        sample = Sample(0, 0, 500 + random.random(3) * 9, orientation)
        block, affine = cut(np.zeros(grid.shape, np.uint8), grid, sample, patch)
        corners = np.array(list(itertools.product(*[(0, n - 1) for n in patch.shape]))).T
        at = affine[:, :3] @ corners + affine[:, 3:]
        last = np.array(block.shape) - 1
        assert (np.floor(at) >= 0).all() and (np.ceil(at) <= last[:, None]).all()
        assert (at.min(axis=1) < 2).all() and (at.max(axis=1) > last - 2).all()


# Validation


def covered(crop: Crop, samples: list[Sample], target: Patch) -> np.ndarray:
    """How often each voxel of the crop is a voxel of a target patch."""
    times = np.zeros(crop.label_grid.shape, int)
    for sample in samples:
        centre = (sample.centre - crop.label_grid.origin) / crop.label_grid.scale
        inside = []
        for axis, n in enumerate(target.shape):
            place = centre[axis] + np.arange(n) - (n - 1) / 2
            voxels = np.floor(place + 0.5 + 1e-6).astype(int)
            inside.append(voxels[(voxels >= 0) & (voxels < times.shape[axis])])
        times[np.ix_(*inside)] += 1
    return times


@pytest.mark.parametrize("shape", [(23, 17, 31), (8, 8, 8), (9, 1, 40), (7, 7, 7), (24, 16, 8)])
@pytest.mark.parametrize("target", [7, 8])
@pytest.mark.parametrize("raw_offset", [0, 4, 3])
def test_validation_covers_every_voxel_once(shape, target, raw_offset):
    """Also where raw voxels lie half a voxel beside label voxels."""
    crop = made_crop(np.ones(shape, int))
    raw_grid = Grid(crop.label_grid.origin - 400 + raw_offset, crop.raw_grid.scale, (200, 200, 200))
    crop = replace(crop, raw_grid=raw_grid)
    patch = Patch((target,) * 3, (8, 8, 8))
    samples = validation_samples([crop], Patch((16, 16, 16), (8, 8, 8)), patch)
    np.testing.assert_array_equal(covered(crop, samples, patch), 1)
    assert len(samples) == np.prod([-(-n // target) for n in shape])


@pytest.mark.parametrize("target", [7, 8])
@pytest.mark.parametrize("raw_scale", [16, 12, 6])
@pytest.mark.parametrize("raw_offset", [0, 4, 8])
def test_validation_covers_every_voxel_once_of_raw_of_another_voxel_size(
    target, raw_scale, raw_offset
):
    """Also where a target patch is no whole number of raw voxels, which it was moved onto."""
    crop = made_crop(np.ones((24, 17, 31), int))
    scale = np.full(3, float(raw_scale))
    raw_grid = Grid(crop.label_grid.origin - 480 + raw_offset, scale, (200, 200, 200))
    crop = replace(crop, raw_grid=raw_grid)
    patch = Patch((target,) * 3, (8, 8, 8))
    samples = validation_samples([crop], Patch((16, 16, 16), (raw_scale,) * 3), patch)
    np.testing.assert_array_equal(covered(crop, samples, patch), 1)


def test_a_small_crop_is_in_the_middle_of_its_block():
    crop = made_crop(np.ones((6, 4, 8), int))
    (sample,) = validation_samples(
        [crop], Patch((16, 16, 16), (8, 8, 8)), Patch((8, 8, 8), (8, 8, 8))
    )
    np.testing.assert_allclose(sample.centre, np.mean(crop.label_grid.box(), axis=0))


def test_validation_blocks_come_in_one_order_that_visits_all_crops_early(crops):
    patches = Patch((16, 16, 16), (8, 8, 8)), Patch((8, 8, 8), (8, 8, 8))
    first, second = (validation_samples(crops, *patches) for _ in range(2))
    assert [as_numbers(sample) for sample in first] == [as_numbers(sample) for sample in second]
    assert [sample.crop for sample in first[:6]] == [0, 1, 2, 0, 1, 2]


def test_the_key_of_blocks_is_that_of_the_same_voxels_in_any_order(crops):
    target = Patch((8, 8, 8), (8, 8, 8))
    blocks = validation_samples(crops, Patch((16, 16, 16), (8, 8, 8)), target)
    key = key_of_blocks(crops, blocks, target)
    assert key_of_blocks(crops, blocks[::-1], target) == key
    assert key_of_blocks(crops, blocks[1:], target) != key
    assert key_of_blocks(crops, blocks, Patch((8, 8, 8), (16, 16, 16))) != key


def test_validation_blocks_are_neither_turned_nor_changed(crops):
    for sample in validation_samples(crops, Patch((16,) * 3, (8,) * 3), Patch((8,) * 3, (8,) * 3)):
        np.testing.assert_array_equal(sample.orientation, np.eye(3))
        assert sample.intensity == IntensityChange()


# A user's own weights


def one_class_each() -> list[Crop]:
    """Three crops that are all of one class, another each."""
    return [made_crop(np.full((12, 12, 12), i + 1), seed=i) for i in range(3)]


@pytest.mark.parametrize("weights", [(1, 1, 4), (0.5, 2, 0.5), (1, 0, 2)])
def test_a_round_gives_each_class_its_share_rounded_up_or_down(weights):
    drawer = sampler(one_class_each(), class_weights=np.array(weights, float))
    turns = np.count_nonzero(weights)
    shares = turns * np.array(weights) / np.sum(weights)
    total = np.zeros(3)
    for start in range(0, 600 * turns, turns):
        crops = [drawer.draw(k).crop for k in range(start, start + turns)]
        drawn = np.bincount(crops, minlength=3)
        assert (np.floor(shares) <= drawn).all() and (drawn <= np.ceil(shares)).all()
        total += drawn
    np.testing.assert_allclose(total / 600, shares, atol=4 * 0.5 / np.sqrt(600))


def test_equal_weights_of_classes_draw_what_no_weights_draw(crops):
    plain = sampler(crops, **EVERYTHING)
    equal = sampler(crops, class_weights=np.full(3, 2.0), **EVERYTHING)
    for k in range(60):
        assert as_numbers(plain.draw(k)) == as_numbers(equal.draw(k))


def test_a_class_is_looked_for_in_crops_by_their_weight():
    crops = [made_crop(np.full((12, 12, 12), 1), seed=i) for i in range(3)]
    drawer = sampler(crops, crop_weights=np.array([1.0, 2.0, 5.0]))
    drawn = np.bincount([drawer.draw(k).crop for k in range(2000)], minlength=3) / 2000
    np.testing.assert_allclose(drawn, [1 / 8, 2 / 8, 5 / 8], atol=4 * 0.5 / np.sqrt(2000))


def test_weights_of_crops_leave_the_share_of_classes_as_it_is():
    """The second class is in one crop only, whose weight is small."""
    labels = [np.full((12, 12, 12), 1), np.full((12, 12, 12), 2)]
    crops = [made_crop(volume, seed=i) for i, volume in enumerate(labels)]
    drawer = sampler(crops, crop_weights=np.array([1.0, 0.01]))
    for start in range(0, 60, 2):
        assert sorted(drawer.draw(k).crop for k in (start, start + 1)) == [0, 1]


def test_without_classes_crops_are_drawn_by_volume_times_weight():
    small = made_crop(np.ones((10, 10, 10), int))
    large = made_crop(np.ones((10, 10, 30), int), seed=1)
    drawer = sampler([small, large], weighted=False, crop_weights=np.array([3.0, 1.0]))
    of_large = sum(drawer.draw(k).crop for k in range(800))
    assert abs(of_large - 400) < 4 * np.sqrt(800 * 0.5 * 0.5)

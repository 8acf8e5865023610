"""Orientation and resampling against SciPy, intensity changes against their formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from common.data.samples import augment
from common.data.samples.augment import (
    IntensityChange,
    change_intensity,
    resample_linear,
    resample_nearest,
)
from common.data.samples.sampling import rotation
from common.data.volumes.ngff import slices
from common.errors import UserError

BLOCK = np.random.default_rng(0).integers(0, 256, (14, 15, 16), np.uint8)


def affine_about_centre(
    linear: np.ndarray, shape: tuple[int, ...], block: tuple[int, ...] = BLOCK.shape
) -> np.ndarray:
    """(3, 4): takes the centre of the patch to the centre of the block."""
    centre = (np.array(block) - 1) / 2
    middle = (np.array(shape) - 1) / 2
    return np.concatenate([linear, (centre - linear @ middle)[:, None]], axis=1)


def turned(seed: int, shape: tuple[int, ...], anisotropy: float = 1) -> np.ndarray:
    """A rotation about all axes, a mirror and a small shift; voxels are longer along z."""
    random = np.random.default_rng(seed)
    stretch = np.diag([anisotropy, 1, 1])
    matrix = np.diag([1, -1, 1])
    for axis in "zyx":
        matrix = rotation(axis, random.uniform(-np.pi, np.pi)) @ matrix
    affine = affine_about_centre(np.linalg.inv(stretch) @ matrix @ stretch, shape)
    affine[:, 3] += random.uniform(-0.5, 0.5, 3)
    return affine


def batch(
    *affines: np.ndarray, block: np.ndarray = BLOCK
) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    return [torch.from_numpy(np.ascontiguousarray(block))] * len(affines), list(affines)


def scipy_linear(
    affine: np.ndarray, shape: tuple[int, ...], block: np.ndarray = BLOCK
) -> np.ndarray:
    return ndimage.affine_transform(
        block.astype(float), affine[:, :3], affine[:, 3], shape, order=1, mode="nearest"
    )


# Raw


@pytest.mark.parametrize("shape", [(6, 6, 6), (5, 7, 4), (1, 8, 8), (1, 1, 1)])
@pytest.mark.parametrize("anisotropy", [1, 3])
def test_linear_equals_scipy(shape, anisotropy):
    affines = [turned(seed, shape, anisotropy) for seed in range(4)]
    found = resample_linear(*batch(*affines), shape)
    assert found.shape == (4, *shape) and found.dtype == torch.float32
    expected = [scipy_linear(affine, shape) for affine in affines]
    np.testing.assert_allclose(found, expected, atol=0.02)  # of 255


def test_linear_at_another_scale_equals_scipy():
    shape = (9, 5, 7)
    affine = affine_about_centre(np.diag([0.7, 2.2, 1.3]), shape)
    np.testing.assert_allclose(
        resample_linear(*batch(affine), shape)[0], scipy_linear(affine, shape), atol=0.02
    )


def test_linear_repeats_the_border_beyond_the_block():
    shape = (20, 20, 20)
    affine = turned(3, shape)
    np.testing.assert_allclose(
        resample_linear(*batch(affine), shape)[0], scipy_linear(affine, shape), atol=0.02
    )


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_whole_axes_are_copied_without_interpolation(order, signs):
    """out[i] = block[orientation @ (i - middle) + centre], drawn with transpose and flip."""
    linear = np.eye(3)[list(order)] * signs
    shape = (6, 7, 8)
    affine = affine_about_centre(linear, shape)
    affine[:, 3] = np.floor(affine[:, 3])
    first = affine[:, 3].astype(int)
    last = (affine[:, :3] @ (np.array(shape) - 1) + affine[:, 3]).astype(int)
    part = BLOCK[slices(np.minimum(first, last), np.maximum(first, last) + 1)]
    mirrored = [axis for axis in range(3) if signs[axis] < 0]
    expected = np.flip(part.transpose(np.argsort(order)), mirrored)
    np.testing.assert_array_equal(resample_linear(*batch(affine), shape)[0], expected)
    np.testing.assert_array_equal(resample_nearest(*batch(affine), shape)[0], expected)


def test_the_path_for_whole_axes_equals_the_general_one(monkeypatch):
    shape = (6, 7, 5)
    linear = np.eye(3)[[2, 0, 1]] * (1, -1, 1)
    affine = affine_about_centre(linear, shape)
    affine[:, 3] = np.floor(affine[:, 3])
    fast = resample_linear(*batch(affine), shape), resample_nearest(*batch(affine), shape)
    monkeypatch.setattr(augment, "_axis_steps", lambda _: None)
    np.testing.assert_allclose(resample_linear(*batch(affine), shape), fast[0], atol=0.02)
    np.testing.assert_array_equal(resample_nearest(*batch(affine), shape), fast[1])


def test_a_quarter_turn_about_z_turns_in_the_plane_of_y_and_x():
    """A row along +x of the patch is read along +y of the world: right-handed, x to y."""
    block = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    affine = affine_about_centre(rotation("z", np.pi / 2), (3, 3, 3), (3, 3, 3))
    found = resample_linear(*batch(affine, block=block), (3, 3, 3))[0]
    expected = [
        [[2, 5, 8], [1, 4, 7], [0, 3, 6]],
        [[11, 14, 17], [10, 13, 16], [9, 12, 15]],
        [[20, 23, 26], [19, 22, 25], [18, 21, 24]],
    ]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, np.rot90(block, 1, axes=(1, 2)))


@pytest.mark.parametrize(("axis", "plane"), {"z": (1, 2), "y": (2, 0), "x": (0, 1)}.items())
def test_a_quarter_turn_about_each_axis_equals_rot90(axis, plane):
    """z: y to -x as rows go down; the three planes follow from each other by z -> y -> x -> z."""
    block = np.random.default_rng(0).integers(0, 256, (5, 5, 5), np.uint8)
    affine = affine_about_centre(rotation(axis, np.pi / 2), block.shape, block.shape)
    np.testing.assert_array_equal(
        resample_linear(*batch(affine, block=block), block.shape)[0], np.rot90(block, 1, axes=plane)
    )


def test_a_sample_does_not_depend_on_the_others_in_its_batch():
    """One that needs no interpolation, alone and beside one that is turned."""
    shape = (6, 6, 6)
    straight = affine_about_centre(np.eye(3), shape)
    straight[:, 3] = np.floor(straight[:, 3])
    tie = straight + np.eye(3, 4, 3) * 0.5
    for affine in (straight, tie):
        alone = resample_linear(*batch(affine), shape), resample_nearest(*batch(affine), shape)
        beside = (
            resample_linear(*batch(affine, turned(0, shape)), shape),
            resample_nearest(*batch(affine, turned(0, shape)), shape),
        )
        assert torch.equal(alone[0][0], beside[0][0])
        assert torch.equal(alone[1][0], beside[1][0])


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_nothing(threads):
    shape = (6, 7, 5)
    found = {}
    before = torch.get_num_threads()
    for n in (1, threads):
        torch.set_num_threads(n)
        found[n] = (
            resample_linear(*batch(turned(0, shape)), shape),
            resample_nearest(*batch(turned(0, shape)), shape),
        )
    torch.set_num_threads(before)
    assert torch.equal(found[1][0], found[threads][0]) and torch.equal(
        found[1][1], found[threads][1]
    )


def test_values_are_taken_times_a_scale():
    shape = (6, 6, 6)
    plain, scaled = (
        resample_linear(*batch(turned(0, shape)), shape, *scale) for scale in ((), (1 / 255,))
    )
    torch.testing.assert_close(scaled, plain / 255)


# Labels


@pytest.mark.parametrize("shape", [(6, 6, 6), (20, 20, 20), (1, 9, 9)])
@pytest.mark.parametrize("anisotropy", [1, 3])
def test_nearest_equals_scipy_away_from_ties(shape, anisotropy):
    compared = 0
    for seed in range(4):
        affine = turned(seed, shape, anisotropy)
        found = resample_nearest(*batch(affine), shape)[0].numpy()
        expected = ndimage.affine_transform(
            BLOCK.astype(float), affine[:, :3], affine[:, 3], shape, order=0, mode="grid-constant"
        )
        at = np.tensordot(affine[:, :3], np.indices(shape), 1) + affine[:, 3].reshape(3, 1, 1, 1)
        clear = (np.abs(at - np.floor(at) - 0.5) > 1e-3).all(axis=0)
        np.testing.assert_array_equal(found[clear], expected[clear])
        compared += clear.mean() / 4
    assert compared > 0.98


def test_nearest_at_another_scale_takes_the_nearest_voxel():
    """A line of eight voxels read every 1.6 voxels from 0.4: 0.4 2.0 3.6 5.2 6.8."""
    block = np.arange(8, dtype=np.uint8).reshape(1, 1, 8)
    affine = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1.6, 0.4]])
    assert resample_nearest(*batch(affine, block=block), (1, 1, 5)).tolist() == [
        [[[0, 2, 4, 5, 7]]]
    ]


@pytest.mark.parametrize("linear", [np.eye(3), np.diag([1, 1, -1])])
def test_nearest_is_0_outside_of_the_block(linear):
    block = np.full((3, 3, 3), 7, np.uint8)
    found = resample_nearest(
        *batch(affine_about_centre(linear, (5, 5, 5), (3, 3, 3)), block=block), (5, 5, 5)
    )[0]
    np.testing.assert_array_equal(found, np.pad(block, 1))


@pytest.mark.parametrize("sign", [1, -1])
def test_labels_between_two_voxels_are_shifted_also_where_a_patch_reaches_beyond_them(sign):
    """No voxel is taken twice, and none is lost, of labels half a voxel beside raw."""
    block = np.arange(1, 8, dtype=np.uint8).reshape(1, 1, 7)
    first = -1.5 if sign > 0 else 8.5
    affine = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, sign, first]])
    found = resample_nearest(*batch(affine, block=block), (1, 1, 11))[0, 0, 0].tolist()
    shifted = [0, *range(1, 8), 0, 0, 0] if sign > 0 else [0, 0, 0, *range(7, 0, -1), 0]
    assert found == shifted


@pytest.mark.parametrize("path", ["whole axes", "turned"])
def test_large_palette_rows_keep_their_number(path):
    block = np.arange(2**24 - 1000, 2**24, dtype=np.int32).reshape(10, 10, 10)
    shape = (4, 4, 4)
    affine = (
        affine_about_centre(np.eye(3), shape, block.shape)
        if path == "whole axes"
        else turned(1, shape) - np.eye(3, 4, 3) * 2
    )
    found = resample_nearest(*batch(affine, block=block), shape)
    assert found.dtype == torch.int32
    known = found[found != 0]
    assert len(known) > 10 and known.min() >= 2**24 - 1000 and known.max() < 2**24


# Intensities


def raw(n: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, 5, 6, 7, generator=torch.Generator().manual_seed(seed))


def changed(
    patches: torch.Tensor,
    gamma: float = 1,
    contrast: float = 1,
    noise_std: float = 0,
    seed: int = 5,
) -> torch.Tensor:
    results = []
    for number, patch in enumerate(patches.clone()):
        change = IntensityChange(gamma, contrast, noise_std, seed + number)
        results.append(change_intensity(patch, change))
    return torch.stack(results)


def test_gamma_is_a_power():
    torch.testing.assert_close(changed(raw(), gamma=0.8), raw() ** 0.8)


def test_contrast_stretches_about_the_mean_of_the_sample():
    patches = raw()
    mean = patches.mean((1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(
        changed(patches, contrast=1.4), ((patches - mean) * 1.4 + mean).clamp(0, 1)
    )


def test_contrast_comes_after_gamma():
    patches = raw() ** 0.8
    mean = patches.mean((1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(
        changed(raw(), gamma=0.8, contrast=1.4), ((patches - mean) * 1.4 + mean).clamp(0, 1)
    )


def test_noise_is_gaussian_with_its_standard_deviation():
    flat = torch.full((1, 1, 40, 40, 40), 0.5)
    noise = (changed(flat, noise_std=0.05) - 0.5).flatten().double()
    assert abs(noise.mean()) < 4 * 0.05 / len(noise) ** 0.5
    assert abs(noise.std() - 0.05) < 0.001
    assert abs((noise**4).mean() / noise.var() ** 2 - 3) < 0.1  # kurtosis of a normal distribution


@pytest.mark.parametrize(
    "settings",
    [
        {"gamma": 0.5},
        {"gamma": 2},
        {"contrast": 3},
        {"noise_std": 0.5},
        {"gamma": 0.9, "contrast": 1.1, "noise_std": 0.01},
    ],
)
def test_raw_stays_in_0_to_1_and_does_not_become_constant(settings):
    """The public loader gave 0 to 255 to gamma and contrast: every patch became constant 1."""
    found = changed(raw(), **settings)
    assert found.min() >= 0 and found.max() <= 1
    assert (found.std(dim=(1, 2, 3, 4)) > 0.1).all()


def test_settings_that_change_nothing_leave_raw_as_it_is():
    assert torch.equal(changed(raw()), raw())


def test_the_noise_of_a_sample_depends_on_its_seed_only():
    together = changed(raw(3), noise_std=0.1, seed=5)
    alone = changed(raw(3)[2:], noise_std=0.1, seed=7)
    assert torch.equal(together[2], alone[0])
    assert not torch.equal(together[2], changed(raw(3)[2:], noise_std=0.1, seed=8)[0])


def test_noise_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    changed(raw(), noise_std=0.1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("seed", [0, 2**62 - 1])
def test_seeds_of_62_bits_are_accepted(seed):
    assert changed(raw(1), noise_std=0.1, seed=seed).isfinite().all()


# A user's own augmentation, tried before training


def add_noise(patch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return patch + 0.1 * torch.rand(patch.shape, generator=generator, device=patch.device)


def darken_in_place(patch: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    return patch.mul_(0.5)


@pytest.mark.parametrize("good", [add_noise, darken_in_place])
def test_own_augmentation_that_can_be_repeated_is_taken(good):
    augment.check_own(good, (4, 5, 6), torch.device("cpu"))


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (lambda patch, _: patch[0], r"\(4, 5, 6\) float32"),
        (lambda patch, _: patch[:, 1:], r"\(1, 3, 5, 6\) float32"),
        (lambda patch, _: patch.double(), "float64"),
        (lambda patch, _: patch / 0, "not finite"),
        (lambda patch, _: patch.numpy(), "ndarray"),
        (lambda patch, _: None, "NoneType"),
        (lambda patch, _: patch + torch.rand(()), "generator=generator"),
    ],
    ids=["no channel", "shape", "type", "infinite", "array", "nothing", "global generator"],
)
def test_own_augmentation_that_gives_something_else_is_refused_in_a_sentence(bad, what):
    with pytest.raises(UserError, match=f"augment = .*: gave.*{what}"):
        augment.check_own(bad, (4, 5, 6), torch.device("cpu"))


def test_what_own_augmentation_raises_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        augment.check_own(lambda patch, _: 1 / 0, (4, 5, 6), torch.device("cpu"))


def test_own_random_numbers_are_not_those_of_the_noise():
    change = IntensityChange(noise_std=0.1, noise_seed=5)
    patch = torch.full((1, 5, 5, 5), 0.5)
    noise = (change_intensity(patch.clone(), change) - 0.5) / 0.1
    own = augment.apply_own(
        lambda patch, generator: torch.randn(patch.shape, generator=generator),
        patch.clone(),
        change,
    )
    assert abs(torch.corrcoef(torch.stack([noise.flatten(), own.flatten()]))[0, 1]) < 0.3

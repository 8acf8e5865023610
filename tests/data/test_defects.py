"""What spoils raw, against loops over sections and SciPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from common.config.augmentations import read_augmentations
from common.data.samples import defects
from common.data.samples.defects import Defects, MissingPlanes, UnevenSections

BLOCK = torch.from_numpy(np.random.default_rng(0).integers(40, 216, (12, 9, 10), np.uint8))
RAW = torch.rand((1, 9, 10, 11), generator=torch.Generator().manual_seed(0))
PATCH_NM = (16.0, 8.0, 8.0)


def drawn(seed: int = 0, **setting: dict) -> Defects:
    """What these kinds draw when they happen."""
    kinds = {name: {"probability": 1} | values for name, values in setting.items()}
    found = defects.draw(read_augmentations(kinds), lambda _: np.random.default_rng(seed))
    assert found is not None
    return found


# Drawing


def test_what_does_not_happen_spoils_nothing():
    setting = read_augmentations({"blur": {"probability": 0.5, "sigma_nm": 8}})
    assert defects.draw(setting, lambda _: None) is None
    assert defects.draw(read_augmentations({}), lambda _: np.random.default_rng(0)) is None


def test_numbers_are_drawn_from_their_whole_range():
    found = [
        drawn(
            seed,
            blur={"sigma_nm": (4, 12)},
            sharpen={"sigma_nm": 8, "amount": (1, 3)},
            low_resolution={"voxel_nm": (16, 64)},
            missing_sections={"number": (1, 3)},
            cutout={"edge_nm": (40, 80), "number": (1, 2)},
            gradient={"strength": (0.1, 0.3)},
        )
        for seed in range(200)
    ]
    for low, high, values in (
        (4, 12, [one.blur_nm for one in found]),
        (8, 8, [one.sharpen_nm for one in found]),
        (1, 3, [one.sharpen_amount for one in found]),
        (16, 64, [one.coarse_nm[0] for one in found]),
        (1, 3, [one.missing.number for one in found]),
        (1, 2, [len(one.boxes) for one in found]),
        (40, 80, [one.boxes[0][2][1] for one in found]),
        (0, 1, [one.boxes[0][1][0] for one in found]),
        (0.1, 0.3, [np.abs(one.gradient).sum() for one in found]),
    ):
        assert low - 1e-9 <= min(values) <= low + (high - low) / 20
        assert high - (high - low) / 20 <= max(values) <= high + 1e-9
    assert all(len(set(one.coarse_nm)) == 1 for one in found)


def test_one_axis_that_is_drawn_loses_resolution():
    seen = [drawn(s, low_resolution={"voxel_nm": 32, "axes": "one"}).coarse_nm for s in range(20)]
    assert set(seen) == {(32.0, 0.0, 0.0), (0.0, 32.0, 0.0), (0.0, 0.0, 32.0)}


# Sections


@pytest.mark.parametrize(("fill", "value"), [("black", 0), ("mean", float(BLOCK.float().mean()))])
@pytest.mark.parametrize("number", [1, 3])
def test_missing_sections_are_whole_planes_of_the_volume(number, fill, value):
    found = defects.spoil_sections(BLOCK, Defects(missing=MissingPlanes(number, fill, 5)), 255)
    lost = [z for z in range(12) if not torch.equal(found[z], BLOCK[z])]
    assert len(lost) == number and found.dtype == torch.uint8
    for z in lost:
        assert (found[z] == round(value)).all()


def test_every_section_may_be_the_one_that_is_missing():
    lost = set()
    for seed in range(200):
        found = defects.spoil_sections(BLOCK, Defects(missing=MissingPlanes(1, "black", seed)), 255)
        lost |= {z for z in range(12) if not found[z].any()}
    assert lost == set(range(12))


def test_uneven_sections_have_factors_and_offsets_of_their_own():
    """Each section is an affine function of what it was, about its mean, within the ranges."""
    uneven = UnevenSections((0.8, 1.25), (0.02, 0.05), 7)
    found = defects.spoil_sections(BLOCK, Defects(uneven=uneven), 255)
    factors = []
    added = []
    for before, after in zip(BLOCK.double(), found.double(), strict=True):
        factor, _ = np.polyfit(before.flatten(), after.flatten(), 1)
        factors.append(factor)
        added.append(float(after.mean() - before.mean()) / 255)
        line = (before - before.mean()) * factor + after.mean()
        assert (line - after).abs().max() < 1.0  # grey values
    assert 0.79 < min(factors) < 0.9 < 1.1 < max(factors) < 1.26
    assert all(0.018 < abs(one) < 0.052 for one in added)
    assert min(added) < 0 < max(added)


@pytest.mark.parametrize("unit", [255, 150])
def test_brightness_is_that_of_raw_in_0_to_1(unit):
    flat = torch.full((12, 5, 5), 120, dtype=torch.uint8)
    uneven = UnevenSections((1.0, 1.0), (0.1, 0.1), 7)
    found = defects.spoil_sections(flat, Defects(uneven=uneven), unit)
    grey = unit * 0.1
    assert set(found.unique().tolist()) <= {round(120 - grey), round(120 + grey)}


def test_float_blocks_are_spoilt_alike_and_stay_in_0_to_1():
    both = Defects(
        uneven=UnevenSections((2.0, 3.0), (0.2, 0.3), 7), missing=MissingPlanes(2, "mean", 3)
    )
    grey = defects.spoil_sections(BLOCK, both, 255)
    found = defects.spoil_sections(BLOCK / 255, both, 1)
    assert found.dtype == torch.float32 and found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close(found * 255, grey.float(), atol=0.51, rtol=0)


def test_a_block_without_defects_of_sections_is_left_alone():
    assert defects.spoil_sections(BLOCK, Defects(blur_nm=8), 255) is BLOCK


# Optics and light


def optics(raw: torch.Tensor = RAW, **numbers) -> np.ndarray:
    return defects.spoil_optics(raw, Defects(**numbers), PATCH_NM)[0].numpy()


def scipy_blur(sigma_nm: float) -> np.ndarray:
    sigmas = sigma_nm / np.array(PATCH_NM)
    return ndimage.gaussian_filter(RAW[0].numpy(), sigmas, mode="nearest")


def test_blur_is_a_gaussian_in_nm():
    np.testing.assert_allclose(optics(blur_nm=12), scipy_blur(12), atol=1e-5)


def test_thick_sections_are_blurred_in_their_plane_alone():
    raw = torch.rand((1, 5, 16, 16))
    found = defects.spoil_optics(raw, Defects(blur_nm=5), (50.0, 4.6, 4.6))[0]
    expected = [ndimage.gaussian_filter(plane, 5 / 4.6, mode="nearest") for plane in raw[0].numpy()]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_sharpening_adds_the_difference_from_a_blurred_copy():
    raw = RAW[0].numpy()
    expected = np.clip(raw + 0.7 * (raw - scipy_blur(10)), 0, 1)
    found = optics(sharpen_nm=10, sharpen_amount=0.7)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_low_resolution_takes_means_and_leaves_axes_of_larger_voxels():
    """Voxels of 16 x 8 x 8 nm brought to 16: z stays, y and x are means of two."""
    found = defects.spoil_optics(RAW[..., :10], Defects(coarse_nm=(16, 16, 16)), PATCH_NM)[0]
    means = RAW[0, :, :, :10].reshape(9, 5, 2, 5, 2).mean((2, 4)).numpy()
    at = np.clip((np.arange(10) + 0.5) / 2 - 0.5, 0, 4)
    grid = np.stack(np.meshgrid(np.arange(9), at, at, indexing="ij"))
    np.testing.assert_allclose(found, ndimage.map_coordinates(means, grid, order=1), atol=1e-5)


def test_a_gradient_adds_its_slopes_at_the_ends_and_nothing_in_the_middle():
    raw = torch.full((1, 5, 7, 3), 0.5)
    found = optics(raw, gradient=(0.1, -0.05, 0.02))
    for at, value in (
        ((2, 3, 1), 0.5),
        ((4, 3, 1), 0.6),
        ((2, 6, 1), 0.45),
        ((2, 3, 0), 0.48),
        ((4, 0, 2), 0.67),
        ((0, 6, 0), 0.33),
        ((3, 3, 1), 0.55),
    ):
        assert found[at] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    "numbers",
    [
        {"blur_nm": 9.0},
        {"sharpen_nm": 9.0, "sharpen_amount": 5.0},
        {"gradient": (0.5, 0.5, 0.5)},
        {"coarse_nm": (40.0, 40.0, 40.0)},
    ],
)
def test_raw_stays_in_0_to_1(numbers):
    black_and_white = (RAW > 0.5).float()
    found = optics(black_and_white, **numbers)
    assert found.min() >= 0 and found.max() <= 1 and found.std() > 0.01


def test_blur_comes_before_sharpening_and_light():
    numbers = {"gradient": (0.1, 0.1, 0.1), "sharpen_nm": 9.0, "sharpen_amount": 1.0}
    blurred = torch.from_numpy(optics(blur_nm=7))[None]
    np.testing.assert_allclose(optics(blur_nm=7, **numbers), optics(blurred, **numbers), atol=1e-6)


def test_nothing_is_computed_where_nothing_is_spoilt():
    assert defects.spoil_optics(RAW, Defects(), PATCH_NM) is RAW


# Boxes


def test_boxes_are_set_to_the_mean_of_the_patch():
    """An edge of 33 nm is two voxels of 16 nm and four of 8 nm; 0 and 1 are the patch's ends."""
    box = ((0.0, 33.0), (1.0, 33.0), (0.5, 24.0))
    found = defects.cut_out(RAW.clone(), Defects(boxes=(box,)), PATCH_NM)
    expected = RAW.clone()
    expected[0, 0:2, 6:10, 4:7] = RAW.mean()
    torch.testing.assert_close(found, expected)


def test_a_box_larger_than_the_patch_ends_with_it():
    box = ((0.3, 8.0), (0.3, 1e6), (0.3, 1e6))
    found = defects.cut_out(RAW.clone(), Defects(boxes=(box,)), PATCH_NM)
    changed = (found != RAW)[0].flatten(1).any(1)
    assert changed.sum() == 1 and (found[0][changed] == RAW.mean()).all()


def test_boxes_are_all_of_one_mean():
    boxes = drawn(cutout={"edge_nm": (24, 40), "number": 3}).boxes
    found = defects.cut_out(RAW.clone(), replace(Defects(), boxes=boxes), PATCH_NM)
    assert set(found[found != RAW].tolist()) == {float(RAW.mean())}

"""Displaced positions against SciPy's splines and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.interpolate import BSpline

from common.config.augmentations import FOLDS_BEYOND, Elastic, SectionShift, SectionSlip
from common.data.samples import augment, distort
from common.data.samples.distort import Distortion, ElasticField, PatchDistortion, SectionMove

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)
BLOCK = RANDOM.integers(0, 256, (24, 25, 26), np.uint8)
SHAPE = (9, 10, 11)
PATCH_NM = (8.0, 8.0, 8.0)
AFFINE = np.array([[0.9, 0.2, 0, 5.3], [-0.2, 0.9, 0, 8.1], [0, 0, 1, 6.6]])
TAKEN = np.array([8.0, 8.0, 8.0])


def elastic(amplitude=30.0, spacing=80.0) -> Elastic:
    return Elastic(1.0, (amplitude,) * 3, (spacing,) * 3)


def drawn(seed: int = 0, kind: Elastic | None = None) -> ElasticField:
    extent = np.array(SHAPE) * PATCH_NM
    return distort.draw_field(np.random.default_rng(seed), kind or elastic(), extent)


def splines(field: ElasticField) -> np.ndarray:
    """(3, *SHAPE) nm, by SciPy's B-splines along one axis after the other."""
    values = field.control
    for axis, n in enumerate(SHAPE):
        points = values.shape[1 + axis]
        at = (np.arange(n) - (n - 1) / 2) * PATCH_NM[axis] / field.spacing[axis]
        # a uniform cubic spline has its point j in the middle of knots j - 2 to j + 2
        knots = np.arange(points + 4) - 2.0 - (points - 1) / 2
        curve = BSpline(knots, np.moveaxis(values, 1 + axis, 0), 3)
        values = np.moveaxis(curve(at), 0, 1 + axis)
    return values


def field_nm(field: ElasticField) -> torch.Tensor:
    return distort.field_voxels(field, SHAPE, PATCH_NM, np.ones(3), device=CPU)


def places(affine: np.ndarray, field: ElasticField) -> np.ndarray:
    at = np.tensordot(affine[:, :3], np.indices(SHAPE), 1) + affine[:, 3].reshape(3, 1, 1, 1)
    return at + splines(field) / TAKEN.reshape(3, 1, 1, 1)


# The field


@pytest.mark.parametrize("spacing", [30.0, 80.0, 1000.0])
def test_the_field_is_made_of_cubic_b_splines(spacing):
    field = drawn(kind=elastic(10, spacing))
    found = field_nm(field)
    np.testing.assert_allclose(found, splines(field), atol=1e-3)


def test_a_constant_lattice_moves_everything_alike():
    """Also at the corners: the lattice reaches far enough for the weights to sum to 1."""
    for spacing in (8.0, 29.0, 90.0):
        field = drawn(kind=elastic(3, spacing))
        constant = ElasticField(np.full_like(field.control, 7), field.spacing)
        found = field_nm(constant)
        torch.testing.assert_close(found, torch.full_like(found, 7))


def test_the_largest_amplitude_that_is_taken_does_not_fold():
    """Neighbouring voxels keep their order: the determinant of the map's derivative is positive."""
    spacing = 80.0
    kind = elastic(FOLDS_BEYOND * spacing, spacing)
    smallest = []
    for seed in range(20):
        field = drawn(seed, kind)
        field.control[:] = np.sign(field.control) * FOLDS_BEYOND * spacing
        moved = splines(field) + np.indices(SHAPE) * 8.0
        jacobian = np.stack([np.stack(np.gradient(part, 8.0)) for part in moved])
        smallest.append(np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))).min())
    assert 0 < min(smallest) < 0.5


def test_moves_average_out_to_a_fifth_of_the_amplitude():
    fields = [field_nm(drawn(seed)) for seed in range(100)]
    assert 0.17 < float(torch.stack(fields).std()) / 30 < 0.22


def test_an_axis_of_amplitude_0_stays():
    kind = Elastic(1.0, (0.0, 20.0, 20.0), (80.0,) * 3)
    found = field_nm(drawn(kind=kind))
    assert not found[0].any() and found[1].any() and found[2].any()


# Reading


@pytest.mark.parametrize("seed", range(3))
def test_elastic_raw_and_labels_equal_scipy(seed):
    field = drawn(seed)
    distortions = [PatchDistortion(Distortion(field), PATCH_NM, TAKEN)]
    at = places(AFFINE, field)
    block = [torch.from_numpy(BLOCK)]
    raw = augment.resample_linear(block, [AFFINE], SHAPE, 0.5, distortions=distortions)[0]
    expected = ndimage.map_coordinates(BLOCK.astype(float), at, order=1, mode="nearest")
    np.testing.assert_allclose(raw, expected * 0.5, atol=0.05)
    rows = augment.resample_nearest(block, [AFFINE], SHAPE, distortions=distortions)[0]
    expected = ndimage.map_coordinates(BLOCK, at, order=0, mode="grid-constant")
    clear = (np.abs(at - np.floor(at) - 0.5) > 1e-3).all(axis=0)
    assert clear.mean() > 0.95 and rows.dtype == torch.int32
    np.testing.assert_array_equal(rows[clear], expected[clear])


def test_beyond_the_block_raw_repeats_its_edge_and_labels_are_unknown():
    far = np.eye(3, 4)
    far[:, 3] = (-4, 0, 0)
    distortions = [PatchDistortion(Distortion(), PATCH_NM, TAKEN)]
    raw = augment.resample_linear([torch.from_numpy(BLOCK)], [far], SHAPE, distortions=distortions)[
        0
    ]
    rows = augment.resample_nearest(
        [torch.from_numpy(BLOCK)], [far], SHAPE, distortions=distortions
    )[0]
    np.testing.assert_allclose(raw[:4], np.broadcast_to(BLOCK[0, :10, :11], (4, 10, 11)), atol=0.02)
    assert not rows[:4].any()
    np.testing.assert_array_equal(rows[4:], BLOCK[:5, :10, :11])


def test_large_rows_keep_their_number():
    block = torch.arange(2**24 - 1000, 2**24, dtype=torch.int32).reshape(10, 10, 10)
    distortions = [PatchDistortion(Distortion(), PATCH_NM, TAKEN)]
    rows = augment.resample_nearest([block], [np.eye(3, 4)], (10, 10, 10), distortions=distortions)[
        0
    ]
    assert torch.equal(rows, block)


def straight() -> np.ndarray:
    affine = np.eye(3, 4)
    affine[:, 3] = 7
    return affine


def read_raw(distortion: Distortion, affine: np.ndarray | None = None) -> np.ndarray:
    distortions = [PatchDistortion(distortion, PATCH_NM, TAKEN)]
    taken = straight() if affine is None else affine
    return augment.resample_linear(
        [torch.from_numpy(BLOCK)], [taken], SHAPE, distortions=distortions
    ).numpy()[0]


def test_a_shift_moves_all_planes_that_follow():
    move = SectionMove(-4.0, np.inf, np.array([0.0, 16.0, -24.0]))
    expected = BLOCK[7:16, 7:17, 7:18].copy()
    for z in range(9):
        if (z - 4) * 8 >= -4:
            expected[z] = BLOCK[7 + z, 9:19, 4:15]
    assert (expected[3] == BLOCK[10, 7:17, 7:18]).all()
    np.testing.assert_allclose(read_raw(Distortion(shift=move)), expected, atol=0.02)


def test_a_slip_moves_one_plane_of_raw_and_no_labels():
    move = SectionMove(11.0, 19.0, np.array([0.0, 8.0, 8.0]))
    expected = BLOCK[7:16, 7:17, 7:18].copy()
    expected[6] = BLOCK[13, 8:18, 8:19]
    slip = Distortion(slip=move)
    np.testing.assert_allclose(read_raw(slip), expected, atol=0.02)
    assert slip.of_labels == Distortion()


def test_sections_are_those_of_the_volume_whichever_way_the_patch_lies():
    """Patch axes x, z, y: what moves is a plane of the volume's z, the last axis of the patch."""
    affine = np.array([[0, 0, 1, 7], [1, 0, 0, 7], [0, 1, 0, 7]], float)
    move = SectionMove(-4.0, 4.0, np.array([0.0, 16.0, 0.0]))
    expected = BLOCK[7:18, 7:16, 7:17].transpose(1, 2, 0).copy()
    expected[:, :, 5] = BLOCK[12, 9:18, 7:17]
    np.testing.assert_allclose(read_raw(Distortion(slip=move), affine), expected, atol=0.02)


def test_samples_that_are_not_distorted_are_read_as_ever():
    blocks = [torch.from_numpy(BLOCK)] * 2
    affines = [AFFINE, straight()]
    distortions = [None, PatchDistortion(Distortion(drawn()), PATCH_NM, TAKEN)]
    mixed = augment.resample_linear(blocks, affines, SHAPE, 0.1, distortions=distortions)
    plain = augment.resample_linear(blocks[:1], affines[:1], SHAPE, 0.1)
    assert torch.equal(mixed[0], plain[0])
    alone = augment.resample_linear(
        blocks[1:], affines[1:], SHAPE, 0.1, distortions=distortions[1:]
    )
    assert torch.equal(mixed[1], alone[0])
    rows = augment.resample_nearest(blocks, affines, SHAPE, distortions=distortions)
    assert torch.equal(rows[0], augment.resample_nearest(blocks[:1], affines[:1], SHAPE)[0])


# How far


def test_reach_bounds_every_displacement_and_is_bounded_by_the_settings():
    shift = SectionShift(1.0, 25.0)
    slip = SectionSlip(1.0, 13.8)
    raw_nm = np.array([50.0, 4.6, 4.6])
    moves = []
    for seed in range(50):
        random = np.random.default_rng(seed)
        distortion = Distortion(
            field=drawn(seed),
            shift=distort.draw_sections(random, shift, 100.0, raw_nm),
            slip=distort.draw_sections(random, slip, 100.0, raw_nm),
        )
        of_patch = PatchDistortion(distortion, PATCH_NM, TAKEN)
        moved = of_patch.positions(AFFINE, SHAPE, CPU)
        plain = PatchDistortion(Distortion(), PATCH_NM, TAKEN).positions(AFFINE, SHAPE, CPU)
        found = ((moved - plain).abs().amax((1, 2, 3)).numpy()) * 8
        assert (found <= distortion.reach_nm + 1e-3).all()
        assert (distortion.reach_nm <= (30, 30 + 25 + 13.8, 30 + 25 + 13.8)).all()
        moves.append([distortion.shift.move_nm, distortion.slip.move_nm])
    moves = np.array(moves)[..., 1:] / 4.6
    np.testing.assert_allclose(moves, moves.round())
    assert np.abs(moves).max(axis=(0, 2)).round().tolist() == [5, 3]


def test_a_slip_is_one_section_thick_and_a_shift_never_ends():
    raw_nm = np.array([50.0, 4.0, 4.0])
    slip = distort.draw_sections(RANDOM, SectionSlip(1.0, 20.0), 100.0, raw_nm)
    assert slip.last_nm - slip.first_nm == pytest.approx(50)
    shift = distort.draw_sections(RANDOM, SectionShift(1.0, 20.0), 100.0, raw_nm)
    assert shift.last_nm == np.inf and -100 <= shift.first_nm <= 100

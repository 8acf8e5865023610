"""Objects from masks: blockwise as in one piece, and as SciPy, cc3d and drawn shapes have it."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Sequence

import cc3d
import numpy as np
import pytest
import zarr
from scipy import ndimage

from common.errors import UserError
from common.infer.instances import (
    Volume,
    connected_components,
    copy,
    fill_holes,
    largest,
    remove_small,
    smallest_dtype,
    threshold,
    watershed,
    zeros,
)
from common.infer.objects import components
from common.infer.objects import volume as volume_module

ISOTROPIC = (8, 8, 8)
SECTIONS = (50, 4.6, 4.6)


def volume(
    array: np.ndarray, block: Sequence[int] | None = None, voxel_size: Sequence[float] = ISOTROPIC
) -> Volume:
    return Volume(array, voxel_size, block or array.shape)


def case(seed: int) -> tuple[np.ndarray, tuple[int, ...], int]:
    """Labels or a mask of random shape and density, a random block of it, a connectivity."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 16, 3)
    labels = (rng.random(shape) < rng.choice([0.02, 0.1, 0.3, 0.6, 0.95])) * rng.integers(
        1, rng.choice([2, 3, 6]), shape
    )
    array = labels > 0 if seed % 3 == 0 else labels.astype(rng.choice(["u1", "u2", "i4", "u8"]))
    return array, tuple(int(rng.integers(1, n + 1)) for n in shape), int(rng.choice([6, 18, 26]))


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal up to renaming."""
    pairs = np.unique([a.ravel(), b.ravel()], axis=1)
    one_to_one = len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
    return one_to_one and bool(((pairs[0] == 0) == (pairs[1] == 0)).all())


def ball(
    shape: Sequence[int],
    centre: Sequence[float],
    radius: float,
    voxel_size: Sequence[float] = ISOTROPIC,
) -> np.ndarray:
    """Centre in voxels, radius in nm."""
    grid = np.ogrid[tuple(map(slice, shape))]
    return (
        sum(((at - c) * size) ** 2 for at, c, size in zip(grid, centre, voxel_size, strict=True))
        <= radius**2
    )


# connected_components


@pytest.mark.parametrize("seed", range(60))
def test_components_are_those_of_cc3d_whatever_the_block(seed):
    array, block, connectivity = case(seed)
    blockwise = connected_components(volume(array, block), connectivity).array
    assert same_partition(blockwise, cc3d.connected_components(array, connectivity=connectivity))
    whole = connected_components(volume(array), connectivity).array
    assert whole.dtype == blockwise.dtype
    np.testing.assert_array_equal(whole, blockwise)


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_components_of_a_mask_are_those_of_scipy(seed):
    mask, block, connectivity = case(seed)
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    assert same_partition(
        connected_components(volume(mask, block), connectivity).array,
        ndimage.label(mask, structure)[0],
    )


@pytest.mark.parametrize("seed", range(20))
def test_ids_are_numbered_by_their_first_voxel(seed):
    array, block, connectivity = case(seed)
    ids = connected_components(volume(array, block), connectivity).array
    found, first = np.unique(ids[ids > 0], return_index=True)
    np.testing.assert_array_equal(found, np.arange(1, len(found) + 1))
    assert (np.diff(first) > 0).all()


def test_touching_ids_stay_apart_and_equal_ones_join_across_blocks():
    labels = np.array([[[5, 5, 7, 7, 7, 0, 5]]], np.uint16)
    np.testing.assert_array_equal(
        connected_components(volume(labels, (1, 1, 3))).array, [[[1, 1, 2, 2, 2, 0, 3]]]
    )


@pytest.mark.parametrize(("connectivity", "n"), [(6, 2), (18, 2), (26, 1)])
def test_two_voxels_over_the_corner_of_eight_blocks(connectivity, n):
    mask = np.zeros((4, 4, 4), bool)
    mask[1, 1, 2] = mask[2, 2, 1] = True
    assert connected_components(volume(mask, (2, 2, 2)), connectivity).array.max() == n


def test_an_object_across_eight_blocks_is_one():
    mask = ball((20, 20, 20), (9.5, 9.5, 9.5), 50)
    np.testing.assert_array_equal(connected_components(volume(mask, (10, 10, 10))).array, mask)


def test_a_snake_through_all_blocks_is_one():
    """It goes along x there and back, row by row, on every second plane."""
    mask = np.zeros((11, 12, 13), bool)
    mask[::2, ::2] = True
    mask[::2, 1::4, -1] = mask[::2, 3::4, 0] = True
    mask[:, -1] = False
    mask[1::4, -2, -1] = mask[3::4, 0, 0] = True
    assert ndimage.label(mask)[1] == 1
    np.testing.assert_array_equal(connected_components(volume(mask, (3, 2, 4)), 6).array, mask)


@pytest.mark.parametrize(("side", "dtype"), [(6, np.uint8), (12, np.uint16), (52, np.uint32)])
def test_many_objects_keep_apart(side, dtype):
    """A checkerboard, where no two voxels share a face: 108, 864 and 70304 objects."""
    mask = np.indices((side, side, side)).sum(0) % 2 == 0
    ids = connected_components(volume(mask, (20, 17, 5)), 6).array
    assert ids.dtype == dtype
    np.testing.assert_array_equal(ids[mask], np.arange(1, side**3 // 2 + 1))


def test_a_volume_without_objects_has_none():
    assert not connected_components(volume(np.zeros((5, 6, 7), bool), (2, 2, 2))).array.any()
    assert connected_components(volume(np.zeros((0, 6, 7), bool), (2, 2, 2))).array.shape == (
        0,
        6,
        7,
    )


def test_too_many_components_are_refused_before_their_numbers_wrap(monkeypatch):
    monkeypatch.setattr(components, "MAX_PIECES", 100)
    mask = np.indices((6, 6, 6)).sum(0) % 2 == 0
    with pytest.raises(UserError, match="more than 100"):
        connected_components(volume(mask, (3, 3, 3)), 6)


@pytest.mark.parametrize("dtype", ["|b1", "|u1", "<u8", ">u2"])
def test_zarr_arrays_are_read(dtype):
    labels = (np.random.default_rng(0).random((20, 21, 22)) < 0.1).astype(dtype)
    stored = zarr.array(labels, chunks=(8, 8, 8))
    np.testing.assert_array_equal(
        connected_components(volume(stored, (8, 16, 8))).array,
        connected_components(volume(labels.astype("u1"))).array,
    )


# fill_holes


@pytest.mark.parametrize("seed", range(40))
def test_filled_masks_are_those_of_scipy_whatever_the_block(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(3, 14, 3)
    mask = rng.random(shape) < rng.choice([0.6, 0.75, 0.9])
    filled = fill_holes(volume(mask, [int(rng.integers(1, n + 1)) for n in shape])).array
    assert filled.dtype == bool
    np.testing.assert_array_equal(filled, ndimage.binary_fill_holes(mask))


def test_a_hole_across_eight_blocks_is_filled_with_the_id_around_it():
    outer = ball((20, 20, 20), (9.5, 9.5, 9.5), 70)
    inner = ball((20, 20, 20), (9.5, 9.5, 9.5), 40)
    ids = (300 * (outer & ~inner)).astype(np.uint16)
    filled = fill_holes(volume(ids, (10, 10, 10))).array
    assert filled.dtype == np.uint16
    np.testing.assert_array_equal(filled, 300 * outer)


def test_of_ids_only_a_hole_in_one_object_is_filled():
    """Object 3 around a hole; a hole between 3 and 7; and a hole of 3 in which a 7 swims."""
    ids = np.full((3, 5, 17), 3, np.uint8)
    ids[1, 1:4, 1:4] = 0
    ids[1, 1:4, 6:9] = 0
    ids[:, :, 9] = 7
    ids[1, 1:4, 12:15] = 0
    ids[1, 2, 13] = 7
    expected = ids.copy()
    expected[1, 1:4, 1:4] = 3
    for block in [(3, 5, 17), (1, 1, 1), (2, 3, 4)]:
        np.testing.assert_array_equal(fill_holes(volume(ids, block)).array, expected)


@pytest.mark.parametrize("seed", range(20))
def test_filled_ids_do_not_depend_on_the_block_and_are_those_of_each_hole_alone(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(4, 13, 3)
    ids = ((rng.random(shape) < 0.85) * np.where(np.arange(shape[2]) < shape[2] // 2, 4, 9)).astype(
        np.uint8
    )
    expected = ids.copy()
    gaps, n = ndimage.label(ids == 0)
    for gap in range(1, n + 1):
        inside = gaps == gap
        around = set(ids[ndimage.binary_dilation(inside) & ~inside])
        if len(around) == 1 and ndimage.binary_fill_holes(~inside)[inside].all():
            expected[inside] = around.pop()
    block = [int(rng.integers(1, n + 1)) for n in shape]
    np.testing.assert_array_equal(fill_holes(volume(ids, block)).array, expected)


def test_holes_above_the_size_stay():
    mask = np.ones((5, 5, 12), bool)
    mask[2, 2, 2:5] = mask[2, 2, 7:11] = False
    filled = fill_holes(volume(mask, (2, 2, 2), SECTIONS), max_nm3=3 * 50 * 4.6 * 4.6).array
    assert filled[2, 2, 2:5].all() and not filled[2, 2, 7:11].any()


# remove_small


@pytest.mark.parametrize("seed", range(30))
def test_small_objects_go_by_their_nm3_as_in_scipy(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(5, 20, 3)
    mask = rng.random(shape) < 0.12
    block = [int(rng.integers(1, n + 1)) for n in shape]
    ids, n = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = ndimage.sum_labels(mask, ids, np.arange(n + 1))
    large = np.flatnonzero(sizes >= 3)
    expected = np.searchsorted(large, ids) * np.isin(ids, large) + np.isin(ids, large)
    limit = 2.2 * 50 * 4.6 * 4.6
    left = remove_small(volume(ids.astype("u8"), block, SECTIONS), limit).array
    assert left.dtype == np.uint8
    np.testing.assert_array_equal(left, expected)
    left = remove_small(volume(mask, block, SECTIONS), limit).array
    assert left.dtype == bool
    np.testing.assert_array_equal(left, expected > 0)


def test_an_object_of_just_the_size_is_left_whatever_the_rounding():
    size = 5 * 50 * 4.6 * 4.6
    assert size > 5 * math.prod(SECTIONS)
    mask = np.zeros((3, 3, 7), bool)
    mask[1, 1, 1:6] = True
    assert remove_small(volume(mask, voxel_size=SECTIONS), size).array.any()
    assert not remove_small(volume(mask, voxel_size=SECTIONS), 1.001 * size).array.any()


def test_more_than_255_objects_left_take_two_bytes():
    ids = np.arange(1000, dtype=np.uint32).reshape(10, 10, 10)
    np.testing.assert_array_equal(remove_small(volume(ids, (3, 3, 3)), 0).array, ids)


def test_ids_left_are_numbered_without_gaps():
    ids = np.array([[[0, 9, 9, 4, 700, 700, 0, 9]]], np.uint16)
    np.testing.assert_array_equal(
        remove_small(volume(ids, (1, 1, 3)), 2 * 8**3).array, [[[0, 1, 1, 0, 2, 2, 0, 1]]]
    )


# watershed


def two_balls(voxel_size: Sequence[float]) -> np.ndarray:
    """Of 160 nm, 1.7 radii apart: their contact is half as wide as they are."""
    shape = np.ceil(np.divide((400, 400, 700), voxel_size)).astype(int)
    centres = [np.divide(at, voxel_size) for at in ((200, 200, 190), (200, 230, 460))]
    return ball(shape, centres[0], 160, voxel_size) | ball(shape, centres[1], 160, voxel_size)


@pytest.mark.parametrize("voxel_size", [ISOTROPIC, SECTIONS])
def test_two_balls_with_a_neck_are_split_where_they_touch(voxel_size):
    mask = two_balls(voxel_size)
    ids = watershed(volume(mask, (9, 20, 20), voxel_size)).array
    assert ids.max() == 2
    np.testing.assert_array_equal(ids > 0, mask)
    grid = np.stack(np.indices(mask.shape), -1) * voxel_size
    nearer = np.linalg.norm(grid - (200, 200, 190), axis=-1) < np.linalg.norm(
        grid - (200, 230, 460), axis=-1
    )
    assert (ids == np.where(nearer, 1, 2))[mask].mean() > 0.99


def test_in_thick_sections_it_is_the_neck_in_the_plane_that_counts():
    """Two upright cylinders of 350 nm, 70 nm in radius, joined by a wall of half their width."""
    disc = ball((1, 40, 80), (0, 20, 20), 70, SECTIONS) | ball(
        (1, 40, 80), (0, 20, 56), 70, SECTIONS
    )
    disc[0, 13:28, 20:56] = True
    mask = np.zeros((9, 40, 80), bool)
    mask[1:8] = disc
    ids = watershed(volume(mask, voxel_size=SECTIONS)).array
    assert ids.max() == 2 and ids[4, 20, 20] == 1 and ids[4, 20, 56] == 2


def test_beads_no_thicker_than_the_grain_of_the_surface_are_one():
    """A wire one voxel wide (depth 1 voxel) with beads three wide (depth 2)."""
    mask = np.zeros((7, 7, 40), bool)
    mask[3, 3, 3:37] = True
    for at in (8, 18, 28):
        mask[2:5, 2:5, at : at + 3] = True
    assert watershed(volume(mask)).array.max() == 1


@pytest.mark.parametrize("voxel_size", [ISOTROPIC, SECTIONS])
@pytest.mark.parametrize(
    "semi_axes", [(160, 160, 160), (100, 100, 320), (110, 320, 190), (60, 60, 340)]
)
def test_a_ball_and_ellipsoids_stay_one(voxel_size, semi_axes):
    shape = np.ceil(np.divide((400, 700, 700), voxel_size)).astype(int)
    centre = np.divide((200, 350, 350), voxel_size)
    rng = np.random.default_rng(0)
    for _ in range(3):
        sizes = np.divide(voxel_size, semi_axes) * 100
        mask = ball(shape, centre + rng.uniform(-0.5, 0.5, 3), 100, sizes)
        assert watershed(volume(mask, voxel_size=voxel_size)).array.max() == 1


@pytest.mark.parametrize("voxel_size", [ISOTROPIC, SECTIONS])
@pytest.mark.parametrize("direction", [(0, 0, 1), (0, 1, 2), (1, 1, 1), (1, 3, 2)])
def test_a_rod_with_a_rough_surface_stays_one(voxel_size, direction):
    """Of 80 nm, its surface moved by about a voxel."""
    shape = np.ceil(np.divide((500, 500, 500), voxel_size)).astype(int)
    grid = np.stack(np.indices(shape), -1) * voxel_size - (250, 250, 250)
    direction = np.array(direction) / np.linalg.norm(direction)
    along = np.clip(grid @ direction, -160, 160)
    rough = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(shape), 1.5)
    radius = 80 + min(voxel_size) * rough / rough.std()
    mask = np.linalg.norm(grid - along[..., None] * direction, axis=-1) < radius
    ids, _ = ndimage.label(mask)
    mask = ids == np.bincount(ids[mask]).argmax()
    assert watershed(volume(mask, voxel_size=voxel_size)).array.max() == 1


def test_centres_nearer_than_the_minimum_distance_are_one_object():
    mask = two_balls(ISOTROPIC)
    assert watershed(volume(mask), min_distance_nm=200).array.max() == 2
    assert watershed(volume(mask), min_distance_nm=300).array.max() == 1


def test_the_neck_says_how_thin_a_contact_has_to_be():
    mask = two_balls(ISOTROPIC)
    assert watershed(volume(mask), neck=0.4).array.max() == 1
    assert watershed(volume(mask), neck=0.7).array.max() == 2


def blobs(noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A box whose probability has two summits with a pass of 0.6 between them, and the box."""
    z, y, x = np.ogrid[:20, :20, :40]
    at = [np.exp(-((z - 10) ** 2 + (y - 10) ** 2 + (x - c) ** 2) / 2 / 6.5**2) for c in (11, 29)]
    mask = np.zeros((20, 20, 40), bool)
    mask[3:17, 3:17, 3:37] = True
    return mask, np.clip(
        np.maximum(*at) + noise * np.random.default_rng(0).standard_normal(mask.shape), 0, 1
    )


@pytest.mark.parametrize("noise", [0, 0.2])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_a_probability_splits_where_the_shape_does_not(noise, dtype):
    mask, probability = blobs(noise)
    probability = (
        probability.astype(np.float32)
        if dtype == np.float32
        else np.rint(255 * probability).astype(np.uint8)
    )
    assert watershed(volume(mask)).array.max() == 1
    ids = watershed(volume(mask), volume(probability)).array
    assert ids.max() == 2
    halves = np.where(np.arange(40) <= 20, 1, 2) * mask
    assert (ids == halves)[mask].mean() > (0.97 if noise == 0 else 0.9)


def test_an_unknown_probability_is_none():
    mask, probability = blobs()
    unknown = probability.copy()
    cut = probability.copy()
    middle = mask.shape[2] // 2
    unknown[:, :, middle] = np.nan
    cut[:, :, middle] = 0
    wanted = watershed(volume(mask), volume(cut)).array
    assert wanted.max() > 1
    np.testing.assert_array_equal(watershed(volume(mask), volume(unknown)).array, wanted)


def test_a_probability_of_zero_throughout_an_object_leaves_it_whole():
    mask, _ = blobs()
    np.testing.assert_array_equal(
        watershed(volume(mask), volume(np.zeros(mask.shape, np.uint8))).array, mask
    )


def test_what_is_split_does_not_depend_on_the_block():
    rng = np.random.default_rng(2)
    field = ndimage.gaussian_filter(rng.standard_normal((40, 44, 48)), 2.5)
    mask = field > 0.8 * field.std()
    whole = watershed(volume(mask)).array
    assert whole.max() > cc3d.connected_components(mask).max() > 5
    for block in [(7, 11, 48), (16, 16, 16), (40, 1, 20)]:
        np.testing.assert_array_equal(watershed(volume(mask, block)).array, whole)
        np.testing.assert_array_equal(
            watershed(volume(mask, block), volume(field)).array,
            watershed(volume(mask), volume(field)).array,
        )


def test_parts_are_numbered_by_their_first_voxel_in_the_smallest_dtype():
    """Beside two joined balls, a third object that begins before the second ball."""
    mask = two_balls(ISOTROPIC)
    first = np.argwhere(mask)[0]
    mask[first[0], first[1], -1] = True
    ids = watershed(volume(mask)).array
    found, first = np.unique(ids[mask], return_index=True)
    assert found.tolist() == [1, 2, 3] and (np.diff(first) > 0).all() and (ids == 2).sum() == 1
    assert ids.dtype == np.uint8


def test_a_string_of_voxels_that_share_corners_only_is_dealt_out():
    mask = np.zeros((21, 21, 21), bool)
    mask[range(21), range(21), range(21)] = True
    mask[1:8, 1:8, 1:8] = mask[13:20, 13:20, 13:20] = True
    ids = watershed(volume(mask, (5, 5, 5))).array
    np.testing.assert_array_equal(ids > 0, mask)
    assert ids.max() == 2 and ids[8, 8, 8] == 1 and ids[12, 12, 12] == 2


def test_basins_that_share_corners_only_join_over_a_shallow_pass():
    mask = np.zeros((21, 21, 21), bool)
    mask[range(21), range(21), range(21)] = True
    probability = np.where(np.indices(mask.shape)[0] // 3 % 2 == 0, 0.9, 0.8)
    np.testing.assert_array_equal(watershed(volume(mask), volume(probability)).array, mask)


def test_basins_join_over_the_highest_pass_first():
    """The middle summit of .6 goes to the left, over .55, and not to the right, over .5."""
    mask = np.zeros((5, 5, 54), bool)
    mask[1:4, 1:4, 2:52] = True
    probability = np.repeat([1, 0.55, 0.6, 0.5, 1], [12, 10, 10, 10, 12]) * np.ones((5, 5, 1))
    ids = watershed(volume(mask), volume(probability)).array
    assert ids.max() == 2 and ids[2, 2, 27] == 1 and ids[2, 2, 46] == 2


def test_a_mask_that_fills_its_volume_is_one_object():
    assert (watershed(volume(np.ones((5, 6, 7), bool), (2, 3, 4))).array == 1).all()


def test_touching_ids_are_split_each_alone():
    """Two joined balls are cast into a block of another id."""
    mask = two_balls(ISOTROPIC)
    ids = watershed(volume(np.where(mask, 1, 2).astype(np.uint8), (20, 20, 20))).array
    assert same_partition(ids * mask, watershed(volume(mask)).array)


def test_an_object_too_large_for_memory_stays_whole_and_is_named(capsys):
    mask = two_balls(ISOTROPIC)
    assert watershed(volume(mask), max_voxels=1000).array.max() == 1
    assert "41 x 45 x 76 voxels stays whole; max_voxels is 1000" in capsys.readouterr().err


# threshold, copy, volumes


def test_a_threshold_is_a_probability_however_it_is_stored():
    stored = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    expected = stored.astype(np.float64) / 255 > 0.6  # 153 is 0.6
    assert expected.sum() == 102
    for array in (stored, (stored / 255).astype(np.float32), stored.astype(np.uint16) * 257):
        mask = threshold(volume(array, (3, 3, 3)), 0.6).array
        assert mask.dtype == bool
        if array.dtype == np.float32:
            np.testing.assert_array_equal(mask[stored != 153], expected[stored != 153])
        else:
            np.testing.assert_array_equal(mask, expected)


def test_nan_is_background():
    assert threshold(volume(np.array([[[np.nan, -1, 2]]], np.float32)), -3).array.tolist() == [
        [[False, True, True]]
    ]


def test_a_copy_refuses_what_would_wrap():
    ids = volume(np.arange(512, dtype=np.uint16).reshape(8, 8, 8), (2, 8, 8))
    destination = zarr.zeros((8, 8, 8), chunks=(2, 8, 8), dtype=np.uint16)
    copy(ids, destination)
    np.testing.assert_array_equal(destination[:], ids.array)
    with pytest.raises(UserError, match=r"256 to 383 .* uint8"):
        copy(ids, np.zeros((8, 8, 8), np.uint8))
    small = np.zeros((8, 8, 8), np.uint8)
    copy(volume(ids.array % 256), small)
    np.testing.assert_array_equal(small, ids.array % 256)
    with pytest.raises(UserError, match="array of bool"):
        copy(ids, np.zeros((8, 8, 8), bool))
    with pytest.raises(UserError, match="shape"):
        copy(ids, np.zeros((8, 8, 9), np.uint16))


def test_the_largest_value_is_found_in_any_block():
    ids = np.zeros((5, 6, 7), np.uint16)
    ids[4, 5, 6] = 700
    assert largest(volume(ids, (2, 2, 2))) == 700
    assert largest(volume(ids[:0], (2, 2, 2))) == 0


@pytest.mark.parametrize(
    ("n", "dtype"), [(255, np.uint8), (256, np.uint16), (65536, np.uint32), (2**32, np.uint64)]
)
def test_ids_take_the_smallest_dtype(n, dtype):
    assert smallest_dtype(n) is dtype


def test_large_volumes_are_mapped_and_nothing_is_left_in_scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(volume_module, "IN_MEMORY", 0)
    mask = np.random.default_rng(0).random((30, 30, 30)) < 0.3
    made = remove_small(
        connected_components(fill_holes(Volume(mask, ISOTROPIC, (16, 16, 16), tmp_path)), 6), 4096
    )
    assert (
        isinstance(made.array, np.memmap)
        and made.block == (16, 16, 16)
        and made.scratch == tmp_path
    )
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    np.testing.assert_array_equal(
        made.array, remove_small(connected_components(fill_holes(volume(mask)), 6), 4096).array
    )
    assert made.array.max() > 5


def test_a_disk_without_room_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(volume_module, "IN_MEMORY", 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=f"{tmp_path}: no room for 0.1 GB .*; free space there, or"):
        zeros(
            Volume(np.broadcast_to(np.uint8(0), (400, 500, 500)), ISOTROPIC, scratch=tmp_path), bool
        )


SMALL = volume(np.zeros((4, 4, 4), np.uint8))
REAL = volume(np.zeros((4, 4, 4), np.float32))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: volume(np.zeros((4, 4))), r"shape \(4, 4\)"),
        (lambda: volume(np.zeros((4, 4, 4)), voxel_size=(8, 8, 0)), r"voxel_size \(8, 8, 0\)"),
        (lambda: volume(np.zeros((4, 4, 4)), (0, 4, 4)), r"block \(0, 4, 4\)"),
        (lambda: connected_components(REAL), "float32 has no objects"),
        (lambda: connected_components(SMALL, 8), "connectivity 8"),
        (lambda: threshold(SMALL, 128), "threshold 128.0"),
        (lambda: threshold(volume(np.zeros((4, 4, 4), bool)), 0.5), "probability of bool"),
        (lambda: remove_small(SMALL, -1), "min_nm3 -1"),
        (lambda: remove_small(REAL, 1), "float32 has no ids"),
        (
            lambda: remove_small(volume(np.full((4, 4, 4), -1)), 1),
            "ids from -1 to -1",
        ),
        (
            lambda: remove_small(volume(np.full((4, 4, 4), 2**40)), 1),
            "number them",
        ),
        (lambda: fill_holes(SMALL, np.nan), "max_nm3 nan"),
        (
            lambda: watershed(SMALL, volume(np.zeros((4, 4, 5)))),
            r"probability of shape \(4, 4, 5\)",
        ),
        (lambda: watershed(SMALL, neck=2), "neck 2"),
        (lambda: watershed(SMALL, min_distance_nm=-1), "min_distance_nm -1"),
    ],
)
def test_wrong_values_are_refused_with_a_sentence(wrong, words):
    with pytest.raises(UserError, match=words):
        wrong()


def test_a_missing_scratch_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Volume(np.zeros((4, 4, 4)), ISOTROPIC, scratch=tmp_path / "nowhere")

"""Volumes on other grids, against SciPy, block means and cases drawn by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage.transform import downscale_local_mean

from common.data.volumes.ngff import Grid, Level, open_levels, slices, write_multiscale
from common.data.volumes.regrid import Axis, axis_weights, covers, ids, mask, shortfall
from common.errors import UserError

RNG = np.random.default_rng(7)


@pytest.fixture
def source(tmp_path: Path):
    """Writes a volume and opens it; `chunk` is small, so that there are many layers."""

    def write(volume, scale=(8, 8, 8), translation=(0, 0, 0), chunk: int = 4) -> Level:
        write_multiscale(tmp_path / "image", np.asarray(volume), scale, translation, chunk=chunk)
        return open_levels(tmp_path / "image")[0]

    return write


def grid(origin, scale, shape) -> Grid:
    return Grid(np.array(origin, float), np.array(scale, float), tuple(shape))


def positions(level: Level, target: Grid) -> np.ndarray:
    """(3, z, y, x) centres of the target voxels in source voxels."""
    start = (target.origin - level.translation) / level.scale
    step = target.scale / level.scale
    axes = [a + s * np.arange(n) for a, s, n in zip(start, step, target.shape, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def overlap_by_hand(out_origin, out_scale, n_out, in_origin, in_scale, n_in) -> np.ndarray:
    """Share of each target voxel that each source voxel covers, interval by interval."""
    weights = np.zeros((n_out, n_in))
    for i in range(n_out):
        for j in range(n_in):
            low = max(out_origin + (i - 0.5) * out_scale, in_origin + (j - 0.5) * in_scale)
            high = min(out_origin + (i + 0.5) * out_scale, in_origin + (j + 0.5) * in_scale)
            weights[i, j] = max(high - low, 0) / out_scale
    return weights


def probabilities(shape, seed: int = 0) -> np.ndarray:
    """Probabilities that vary from voxel to voxel."""
    return np.random.default_rng(seed).random(shape).astype(np.float32)


# ids


def test_ids_on_their_own_grid_are_copied(source):
    volume = RNG.integers(0, 300, (9, 10, 11), np.uint16)
    level = source(volume, (4, 5, 6), (1, 2, 3))
    found = ids(level, grid((1, 2, 3), (4, 5, 6), volume.shape))
    np.testing.assert_array_equal(found, volume)
    assert found.dtype == np.uint16


def test_ids_of_a_drawn_row_at_half_the_voxel_size(source):
    """8 nm voxels at 0 and 8 nm; 4 nm voxels at -2, 2, 6, 10: two in each."""
    level = source([[[3, 9]]], (8, 8, 8))
    np.testing.assert_array_equal(
        ids(level, grid((0, 0, -2), (8, 8, 4), (1, 1, 4))), [[[3, 3, 9, 9]]]
    )


def test_ids_at_double_the_voxel_size_are_ids_that_were_there(source):
    """Two cubes 3 and 9 in floats, downsampled, stay 3 and 9 and keep their size."""
    volume = np.zeros((16, 16, 16), np.float32)
    volume[:8, :8, :8], volume[8:, 8:, 8:] = 3, 9
    found = ids(source(volume), grid((4, 4, 4), (16, 16, 16), (8, 8, 8)))
    np.testing.assert_array_equal(found, volume[::2, ::2, ::2])
    assert (found == 3).sum() == (found == 9).sum() == 4**3


def test_of_two_voxels_equally_near_the_lower_is_taken(source):
    level = source([[[1, 2, 3, 4]]], (8, 8, 8.1), (0, 0, 1e5))
    np.testing.assert_array_equal(
        ids(level, grid((0, 0, 1e5 + 4.05), (8, 8, 16.2), (1, 1, 2))), [[[1, 3]]]
    )


def test_outside_of_the_source_there_are_no_ids(source):
    level = source([[[5, 6]]])
    np.testing.assert_array_equal(
        ids(level, grid((0, 0, -16), (8, 8, 8), (1, 1, 6))), [[[0, 0, 5, 6, 0, 0]]]
    )
    np.testing.assert_array_equal(
        ids(level, grid((0, 99, 0), (8, 8, 8), (2, 1, 2))), np.zeros((2, 1, 2))
    )


@pytest.mark.parametrize("seed", range(12))
def test_ids_on_random_grids_are_scipys_nearest(source, seed):
    rng = np.random.default_rng(seed)
    level = source(
        rng.integers(1, 2**31, rng.integers(1, 14, 3), np.uint32),
        rng.uniform(2, 20, 3),
        rng.uniform(-99, 99, 3),
    )
    low, high = level.box()
    target = grid(rng.uniform(low - 10, high), rng.uniform(2, 30, 3), rng.integers(1, 20, 3))
    where = positions(level, target)
    expected = map_coordinates(level.array[:].astype(float), where, order=0, mode="grid-constant")
    inside = ((where >= -0.5) & (where <= level.shape.reshape(3, 1, 1, 1) - 0.5)).all(0)
    np.testing.assert_array_equal(ids(level, target), np.where(inside, expected, 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int16, np.int64])
def test_ids_keep_their_dtype_and_their_largest_value(source, dtype):
    largest = np.iinfo(dtype).max
    found = ids(source(np.array([[[0, largest]]], dtype)), grid((0, 0, 0), (8, 8, 4), (1, 1, 3)))
    assert found.dtype == dtype and found.max() == largest


@pytest.mark.parametrize(
    ("largest", "dtype"), [(255, np.uint8), (256, np.uint16), (70_000, np.uint32), (0, np.uint8)]
)
def test_whole_floats_are_ids_in_the_smallest_dtype(source, largest, dtype):
    """512 objects in floats are 512 objects. The large ids come in a late layer of chunks."""
    volume = np.zeros((12, 3, 3), np.float32)
    volume[1], volume[-1] = min(largest, 200), largest
    found = ids(source(volume), grid((0, 0, 0), (8, 8, 8), volume.shape))
    np.testing.assert_array_equal(found, volume.astype(np.int64))
    assert found.dtype == dtype


@pytest.mark.parametrize("wrong", [0.9, -1.0, np.nan, np.inf, 3.5])
def test_floats_that_are_no_ids_are_refused(source, wrong):
    volume = np.ones((2, 2, 2))
    volume[1, 0, 1] = wrong
    with pytest.raises(UserError, match=r"s0: (.* is no id of an object|id inf in float64)"):
        ids(source(volume), grid((0, 0, 0), (8, 8, 8), (2, 2, 2)))


def test_float_ids_beyond_the_last_whole_number_are_refused(source):
    """2^24 + 1 and 2^24 are one number in float32."""
    assert np.float32(2**24 + 1) == np.float32(2**24)
    with pytest.raises(
        UserError, match="id 16777218 in float32, which skips numbers beyond 16777216"
    ):
        ids(
            source(np.full((1, 1, 1), 2**24 + 2, np.float32)), grid((0, 0, 0), (8, 8, 8), (1, 1, 1))
        )


def test_a_bool_volume_has_the_id_one(source):
    found = ids(source(np.array([[[True, False]]])), grid((0, 0, 0), (8, 8, 8), (1, 1, 2)))
    np.testing.assert_array_equal(found, [[[1, 0]]])
    assert found.dtype == np.uint8


# masks


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, bool])
def test_an_integer_above_zero_is_the_class(source, dtype):
    volume = RNG.integers(0, 2 if dtype is bool else 4, (6, 7, 8)).astype(dtype)
    np.testing.assert_array_equal(
        mask(source(volume), grid((0, 0, 0), (8, 8, 8), volume.shape)), volume > 0
    )


def test_a_probability_on_its_own_grid_is_thresholded(source):
    """A probability of 0.9 is the class, not 0; one of a half is not."""
    level = source(np.array([[[0.9, 0.5, 0.51, 0.0, 1.0]]], np.float32))
    np.testing.assert_array_equal(
        mask(level, grid((0, 0, 0), (8, 8, 8), (1, 1, 5))), [[[1, 0, 1, 0, 1]]]
    )


@pytest.mark.parametrize("origin", [(0, 0, 0), (-16, 8, 40), (24, -24, -160)])
def test_a_grid_of_the_same_voxels_is_cut_out_and_padded(source, origin):
    volume = RNG.integers(0, 2, (9, 10, 11), np.uint8)
    padded = np.pad(volume, 20)
    start = [20 + o // 8 for o in origin]
    expected = padded[tuple(slice(a, a + 7) for a in start)]
    np.testing.assert_array_equal(
        mask(source(volume), grid(origin, (8, 8, 8), (7, 7, 7))), expected
    )


def test_rounding_of_nm_does_not_make_another_grid(source):
    volume = RNG.integers(0, 2, (8, 8, 8), np.uint8)
    level = source(volume, (1.74, 2, 2), (23837.1, 7599, 35999))
    np.testing.assert_array_equal(
        mask(level, grid((23837.1 + 1e-9, 7599, 35999), (0.58 * 3, 2, 2), volume.shape)), volume
    )


def test_a_difference_in_scale_that_adds_up_is_resampled(source):
    """Voxels of 8.004 nm are one voxel of 8 nm behind after 2000.

    The mean over each is a difference of the running sum.
    """
    volume = np.random.default_rng(0).random(2000).round()
    edges = -4.002 + 8.004 * np.arange(2000)
    running = np.interp(edges, -4 + 8 * np.arange(2001), np.cumsum([0, *volume]))
    share = np.diff(running) / 1.0005
    found = mask(
        source(volume[None, None].astype(np.uint8), chunk=500),
        grid((0, 0, 0), (8, 8, 8.004), (1, 1, 1999)),
    )[0, 0]
    clear = np.abs(share - 0.5) > 1e-4
    np.testing.assert_array_equal(found[clear], (share > 0.5)[clear])


def test_half_of_a_coarse_voxel_is_not_more_than_half(source):
    """Pairs of 4 nm voxels in voxels of 8 nm: 0, 1, 2 of two."""
    level = source([[[0, 0, 0, 1, 1, 1]]], (4, 4, 4), (0, 0, -2))
    np.testing.assert_array_equal(mask(level, grid((0, 0, 0), (4, 4, 8), (1, 1, 3))), [[[0, 0, 1]]])


@pytest.mark.parametrize("ratio", range(2, 13, 2))
def test_a_tie_is_no_member_whatever_the_ratio(source, ratio):
    """Every voxel is exactly half full, at voxel sizes that binary numbers do not hold."""
    volume = np.indices((ratio, ratio, 24))[2] % 2
    level = source(volume.astype(np.uint8), (1.74, 2.1, 1.7), (1234.56, 0, 99.9))
    centre = level.translation + (ratio - 1) / 2 * level.scale
    assert not mask(level, grid(centre, level.scale * ratio, (1, 1, 24 // ratio))).any()


@pytest.mark.parametrize("factors", [(2, 2, 2), (4, 4, 4), (1, 3, 2)])
def test_a_coarser_mask_is_the_majority_of_the_block(source, factors):
    volume = RNG.integers(0, 2, (12, 12, 12), np.uint8)
    level = source(volume, (4, 5, 6), (10, 20, 30), chunk=5)
    scale = level.scale * factors
    origin = level.translation + (scale - level.scale) / 2
    expected = downscale_local_mean(volume.astype(float), factors) > 0.5 + 1e-9
    np.testing.assert_array_equal(mask(level, grid(origin, scale, expected.shape)), expected)


def test_probabilities_are_averaged_before_the_threshold(source):
    """0.9 and 0.3 are more than a half together; thresholded first they would tie."""
    level = source(np.array([[[0.9, 0.3, 0.6, 0.1]]], np.float32), (4, 4, 4), (0, 0, -2))
    np.testing.assert_array_equal(mask(level, grid((0, 0, 0), (4, 4, 8), (1, 1, 2))), [[[1, 0]]])


@pytest.mark.parametrize("seed", range(12))
def test_coarser_masks_on_random_grids_are_means_over_the_extent(source, seed):
    rng = np.random.default_rng(seed)
    volume = probabilities(rng.integers(6, 14, 3), seed)
    level = source(volume, rng.uniform(2, 9, 3), rng.uniform(-99, 99, 3))
    low, _ = level.box()
    target = grid(
        rng.uniform(low - 5, low + 20), level.scale * rng.uniform(1, 4, 3), rng.integers(1, 9, 3)
    )
    axes = zip(
        target.origin,
        target.scale,
        target.shape,
        level.translation,
        level.scale,
        volume.shape,
        strict=True,
    )
    share = np.einsum("zi,yj,xk,ijk->zyx", *(overlap_by_hand(*axis) for axis in axes), volume)
    clear = np.abs(share - 0.5) > 1e-4
    np.testing.assert_array_equal(mask(level, target)[clear], (share > 0.5)[clear])


@pytest.mark.parametrize("seed", range(12))
def test_finer_masks_on_random_grids_are_scipys_linear_interpolation(source, seed):
    rng = np.random.default_rng(seed)
    volume = probabilities(rng.integers(4, 10, 3), seed)
    level = source(volume, rng.uniform(4, 9, 3), rng.uniform(-99, 99, 3))
    scale = level.scale * rng.uniform(0.2, 1, 3)
    low, high = level.box()
    start = rng.uniform(low, (low + high) / 2)
    target = grid(start + scale / 2, scale, ((high - start) / scale).astype(int))
    share = map_coordinates(volume, positions(level, target), order=1, mode="nearest")
    clear = np.abs(share - 0.5) > 1e-4
    np.testing.assert_array_equal(mask(level, target)[clear], (share > 0.5)[clear])


def test_a_mask_at_half_the_voxel_size_is_every_voxel_twice(source):
    """The step between two centres is crossed half way: nothing moves, no seams between chunks."""
    volume = RNG.integers(0, 2, (9, 10, 11), np.uint8)
    found = mask(source(volume), grid((0, 0, -2), (8, 8, 4), (9, 10, 22)))
    np.testing.assert_array_equal(found, volume.repeat(2, 2))


def test_every_chunk_size_gives_the_same_mask(source):
    volume = probabilities((20, 9, 9))
    target = grid((-1, 3, 2), (13, 5, 11), (14, 9, 6))
    results = [mask(source(volume, chunk=chunk), target) for chunk in (1, 3, 7, 64)]
    assert all((result == results[0]).all() for result in results) and 0.2 < results[0].mean() < 0.8


def test_axes_that_get_coarser_and_finer_at_once(source):
    volume = RNG.integers(0, 2, (8, 6, 6), np.uint8)
    target = grid((2, 0, -2), (8, 4, 4), (4, 6, 12))
    found = mask(source(volume, (4, 4, 8)), target)
    means = volume.reshape(4, 2, 6, 6).mean(1)
    x = np.arange(-0.25, 5.5, 0.5)
    share = map_coordinates(
        means, np.stack(np.meshgrid(range(4), range(6), x, indexing="ij")), order=1, mode="nearest"
    )
    np.testing.assert_array_equal(found, share > 0.5)


def test_outside_of_the_source_a_mask_is_false(source):
    level = source(np.ones((4, 4, 4), np.uint8))
    found = mask(
        level, grid((-12, 2, 2), (4, 4, 4), (16, 6, 6))
    )  # the source begins in the middle of voxel 2, ends in that of 10
    np.testing.assert_array_equal(found[:, 3, 3], [z in range(3, 10) for z in range(16)])
    assert not mask(level, grid((500, 1, 1), (5, 5, 5), (3, 3, 3))).any()
    assert not mask(level, grid((1, -500, 1), (5, 5, 5), (3, 3, 3))).any()


@pytest.mark.parametrize(("low", "high"), [(-4.2, 3.1), (0, 255), (np.nan, 0.5)])
def test_floats_that_are_no_probabilities_are_refused(source, low, high):
    level = source(np.array([[[low, high]]], np.float32))
    for target in (grid((0, 0, 0), (8, 8, 8), (1, 1, 2)), grid((1, 0, 0), (4, 8, 8), (1, 1, 2))):
        with pytest.raises(
            UserError, match=r"s0: values from .*; write a mask .* probabilities in \[0, 1\]"
        ):
            mask(level, target)


# memory


@pytest.mark.parametrize("resample", [ids, mask])
@pytest.mark.parametrize(
    ("origin", "scale", "more"),
    [
        ((56, 8, 8), (8, 8, 8), 0),
        ((57, 8, 8), (4, 4, 4), 1),
        ((60, 8, 8), (16, 8, 8), 1),
    ],
)
def test_one_layer_of_chunks_under_the_grid_is_read_at_a_time(
    source, monkeypatch, resample, origin, scale, more
):
    """With the planes beyond it that the last target voxels need; no layer begins two reads."""
    level = source(np.ones((40, 12, 12), np.uint8))
    reads = []

    def read(self, start, stop):
        reads.append((start, stop))
        return self.array[slices(start, stop)]

    monkeypatch.setattr(Level, "read", read)
    assert resample(level, grid(origin, scale, (12, 4, 4))).all()
    assert all(stop[0] <= (start[0] // 4 + 1) * 4 + more for start, stop in reads)
    assert all(max(stop[1:]) <= 7 for start, stop in reads)
    assert len({start[0] // 4 for start, _ in reads}) == len(reads) > 1


# weights


def test_weights_of_a_drawn_case():
    """Two source voxels of 2 under a target of 3 that begins at the same corner."""
    np.testing.assert_allclose(
        axis_weights(Axis(1.5, 3, 1), Axis(1, 2, 2)), [[2 / 3, 1 / 3]], rtol=1e-6
    )


def test_weights_of_a_finer_grid_interpolate():
    np.testing.assert_allclose(
        axis_weights(Axis(-2, 4, 4), Axis(0, 8, 2)),
        [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]],
        rtol=1e-6,
    )


def test_weights_of_the_same_grid_are_the_identity():
    weights = axis_weights(Axis(23837.0, 1.74, 600), Axis(23837.0, 1.74, 600))
    np.testing.assert_array_equal(weights, np.eye(600))
    assert weights.dtype == np.float32


@pytest.mark.parametrize("repeat_edge", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_rows_sum_to_what_the_source_covers(seed, repeat_edge):
    rng = np.random.default_rng(seed)
    out_scale, in_scale = rng.uniform(1, 9, 2)
    out = (rng.uniform(-30, 10), out_scale, 25)
    weights = axis_weights(Axis(*out), Axis(0.0, in_scale, 7), repeat_edge=repeat_edge)
    covered = overlap_by_hand(*out, 0.0, in_scale, 7).sum(1)
    assert 0 < covered.mean() < 1
    np.testing.assert_allclose(weights.sum(1), np.ones(25) if repeat_edge else covered, atol=2e-6)
    assert weights.min() >= 0


@pytest.mark.parametrize("out_scale", [3.0, 4.0, 11.0])
def test_a_repeated_edge_is_an_edge_padded_source(out_scale):
    """As of a source that goes on for 20 voxels on both sides with its outermost values."""
    values = RNG.random(6)
    padded = np.pad(values, 20, "edge")
    out = (-50.0, out_scale, 12)
    expected = axis_weights(Axis(*out), Axis(-20 * 4.0, 4.0, 46)) @ padded
    np.testing.assert_allclose(
        axis_weights(Axis(*out), Axis(0.0, 4.0, 6), repeat_edge=True) @ values, expected, rtol=1e-5
    )


# coverage


@pytest.mark.parametrize(
    ("origin", "shape", "covered"),
    [
        ((0, 0, 0), (4, 4, 4), True),
        ((8, 0, 0), (3, 4, 4), True),
        ((-4, 0, 0), (4, 4, 4), True),  # half a source voxel short
        ((-4.1, 0, 0), (4, 4, 4), False),
        ((0, 4, 0), (4, 4, 4), True),
        ((0, 0, 8), (4, 4, 4), False),
        ((0, 0, 0), (5, 4, 4), False),
    ],
)
def test_a_source_may_end_half_a_voxel_short(source, origin, shape, covered):
    level = source(np.ones((4, 4, 4), np.uint8))
    assert covers(level, grid(origin, (8, 8, 8), shape)) is covered


def test_what_is_covered_is_said_in_nm(source):
    level = source(np.ones((4, 4, 2), np.uint8))
    assert shortfall(level, grid((0, 0, 0), (4, 4, 4), (8, 8, 8))) == (
        "covers z, y, x -4 to 28, -4 to 28, -4 to 12 nm of z, y, x -2 to 30, -2 to 30, -2 to 30 nm"
    )

"""Matrices along axes against SciPy and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from common.data.samples.separable import along_axes, coarser, gaussian

VOLUME = np.random.default_rng(0).random((5, 9, 12), np.float32)


def test_each_matrix_acts_on_its_axis():
    random = np.random.default_rng(1)
    matrices = [random.random((3, 5)), random.random((4, 9)), random.random((13, 12))]
    expected = np.einsum("zyx,az,by,cx->abc", VOLUME, *matrices)
    found = along_axes(torch.from_numpy(VOLUME)[None], matrices)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    alone = along_axes(torch.from_numpy(VOLUME), [None, matrices[1], None])
    np.testing.assert_allclose(alone, np.einsum("zyx,by->zbx", VOLUME, matrices[1]), rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.2, 0.7, 2.5, 30.0])
def test_a_gaussian_equals_scipy(sigma):
    matrices = [gaussian(n, sigma) for n in VOLUME.shape]
    found = along_axes(torch.from_numpy(VOLUME), matrices)
    expected = ndimage.gaussian_filter(VOLUME, sigma, mode="nearest")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_gaussian_much_narrower_than_a_voxel_is_none():
    assert gaussian(9, 0.1) is None


def test_coarser_is_the_mean_of_whole_voxels_and_a_line_between_their_centres():
    """Six voxels as two of three: means 1 and 4, whose centres are voxels 1 and 4."""
    found = coarser(6, 3.0) @ np.arange(6)
    np.testing.assert_allclose(found, [1, 1, 2, 3, 4, 4])


@pytest.mark.parametrize(("n", "factor"), [(7, 2.0), (10, 1.6), (9, 100.0)])
def test_coarser_equals_a_loop_over_parts_of_voxels(n, factor):
    fine = 1000
    line = np.random.default_rng(2).random(n)
    count = max(round(n / factor), 1)
    means = np.repeat(line, fine * count).reshape(count, -1).mean(1)
    centres = (np.arange(count) + 0.5) * n / count - 0.5
    expected = np.interp(np.arange(n), centres, means)
    np.testing.assert_allclose(coarser(n, factor) @ line, expected)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.05])
def test_nothing_is_lost_where_voxels_stay_as_large(factor):
    assert coarser(9, factor) is None


@pytest.mark.parametrize("matrix", [gaussian(11, 1.3), coarser(11, 2.4)])
def test_matrices_move_nothing(matrix):
    """A mirrored line gives the mirrored result; constants stay; no weight is negative."""
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1])
    np.testing.assert_allclose(matrix.sum(1), 1)
    assert (matrix >= 0).all()

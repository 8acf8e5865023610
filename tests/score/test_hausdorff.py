"""The Hausdorff distance against SciPy's: of all pairs of voxels, and by its distance transform."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff

from common.score.hausdorff import farthest, surface_points

VOXEL = (8.0, 8.0, 8.0)


def hausdorff(a, b, voxel_size) -> float:
    """Between the voxel centres of two objects, nm; voxels of both are at distance 0."""
    sizes = np.asarray(voxel_size, float)
    return max(
        farthest(a & ~b, surface_points(b, sizes), sizes),
        farthest(b & ~a, surface_points(a, sizes), sizes),
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_hausdorff_distance_is_scipys_for_any_two_objects(seed):
    rng = np.random.default_rng(seed)
    shape, voxel_size = rng.integers(1, 19, 3), rng.uniform(1, 30, 3)
    smooth = ndimage.gaussian_filter(rng.standard_normal((2, *shape)), (0, *rng.uniform(0, 3, 3)))
    a, b = (field >= np.quantile(field, rng.uniform(0.05, 0.999)) for field in smooth)
    points = [np.argwhere(mask) * voxel_size for mask in (a, b)]
    reference = max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])
    assert hausdorff(a, b, voxel_size) == pytest.approx(reference, abs=1e-9)


@pytest.mark.parametrize("voxel_size", [VOXEL, (3.0, 4.0, 7.0)])
def test_the_hausdorff_distance_of_scattered_voxels_is_scipys(voxel_size):
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (rng.random((2, 20, 18, 21)) < 10 ** rng.uniform(-3, -1.5, (2, 1, 1, 1))) | (
            np.indices((20, 18, 21)).sum(0) == 0
        )
        points = [np.argwhere(mask) * voxel_size for mask in (a, b)]
        reference = max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])
        assert hausdorff(a, b, voxel_size) == pytest.approx(reference, abs=1e-9)


@pytest.mark.parametrize("voxel_size", [VOXEL, (40.0, 4.0, 4.0)])
def test_the_farthest_point_of_a_ball_from_the_shell_around_it_is_inside(voxel_size):
    radius = np.linalg.norm(np.indices((43, 43, 43)).reshape(3, -1) - 21, axis=0).reshape(
        43, 43, 43
    )
    ball, shell = radius <= 20, (radius > 18) & (radius <= 20)
    found = hausdorff(ball, shell, voxel_size)
    assert found == pytest.approx(
        (ndimage.distance_transform_edt(~shell, sampling=voxel_size) * ball).max(), abs=1e-9
    )
    assert found > 17 * min(voxel_size)


@pytest.mark.parametrize("seed", range(3))
def test_the_hausdorff_distance_of_large_objects_is_that_of_scipys_distance_transform(seed):
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.standard_normal((2, 70, 51, 64)), (0, 6, 6, 6))
    a, b = (field > field.std() * level for field, level in zip(fields, (0, 1.8), strict=True))
    reference = max(
        (ndimage.distance_transform_edt(~y, sampling=(5, 4, 3)) * x).max()
        for x, y in ((a, b), (b, a))
    )
    assert hausdorff(a, b, (5, 4, 3)) == pytest.approx(reference, abs=1e-9)


def test_equal_objects_are_at_distance_zero():
    ball = np.pad(ndimage.generate_binary_structure(3, 1), 2)
    assert hausdorff(ball, ball, VOXEL) == 0

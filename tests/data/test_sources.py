"""Volumes of other programs: the same voxels, at the same place."""

from __future__ import annotations

import numpy as np
import pytest

from common.data.ngff import open_levels
from common.errors import UserError
from tests.data import foreign_writers as writers
from tests.data.foreign_writers import MEASURED, PLACE, PLACED, UNMEASURED, VOLUME, VOXEL

BOXES = [((0, 0, 0), writers.SHAPE), ((3, 5, 7), (9, 13, 23)), ((11, 19, 29), writers.SHAPE)]


@pytest.mark.parametrize("writer", MEASURED, ids=writers.by_name)
def test_a_volume_of_another_program_is_read(tmp_path, writer):
    levels = open_levels(tmp_path / writer(tmp_path, VOLUME))
    finest = levels[0]
    for start, stop in BOXES:
        expected = VOLUME[tuple(map(slice, start, stop))]
        np.testing.assert_array_equal(finest.read(start, stop), expected)
    np.testing.assert_allclose(finest.scale, VOXEL, rtol=1e-6)
    place = PLACE if writer in PLACED else (0, 0, 0)
    np.testing.assert_allclose(finest.translation, place, atol=1e-3)
    for coarse in levels[1:]:
        np.testing.assert_array_equal(coarse.read((0, 0, 0), coarse.shape), writers.half(VOLUME))
        np.testing.assert_allclose(coarse.scale, np.multiply(VOXEL, 2), rtol=1e-6)
        np.testing.assert_allclose(
            coarse.translation, np.add(place, np.divide(VOXEL, 2)), atol=1e-3
        )


@pytest.mark.parametrize("writer", UNMEASURED, ids=writers.by_name)
def test_a_voxel_size_that_nobody_says_is_asked_for(tmp_path, writer):
    path = tmp_path / writer(tmp_path, VOLUME)
    with pytest.raises(
        UserError, match=f"{path.name}: nothing in it says how large .*#voxel_size=8"
    ):
        open_levels(path)
    (level,) = open_levels(f"{path}#voxel_size=8,6,4&translation=1,2,3")
    np.testing.assert_array_equal(level.read((0, 0, 0), level.shape), VOLUME)
    np.testing.assert_allclose(level.scale, VOXEL)
    np.testing.assert_allclose(level.translation, (1, 2, 3))
    assert level.has_translation

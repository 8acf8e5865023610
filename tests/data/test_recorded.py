"""Volumes that programs wrote which need zarr 3: see record_foreign.py, which wrote them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from common.data.volumes import layout
from common.data.volumes.ngff import open_levels
from tests.data.foreign_writers import PLACE, VOLUME, VOXEL
from tests.data.own_import import import_data

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.zip"))

UNPLACED = ("ome_zarr_tczyx",)
"""Those whose program writes no place."""

CORNERED = ("zarr3_array", "zarr3_of_format_2")
"""Arrays with an offset, which is their corner."""


def test_all_are_recorded():
    assert len(RECORDED) == 7


@pytest.mark.parametrize("archive", RECORDED, ids=lambda path: path.stem)
def test_a_volume_is_read_where_it_is_and_imported(tmp_path, archive):
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    path = tmp_path / f"{archive.stem}.zarr"
    levels = open_levels(path)
    place = (0, 0, 0) if archive.stem in UNPLACED else PLACE
    if archive.stem in CORNERED:
        place = np.add(PLACE, np.divide(VOXEL, 2))
    finest = levels[0]
    np.testing.assert_array_equal(finest.read((0, 0, 0), finest.shape), VOLUME)
    np.testing.assert_array_equal(finest.read((3, 5, 7), (9, 13, 23)), VOLUME[3:9, 5:13, 7:23])
    np.testing.assert_allclose(finest.scale, VOXEL)
    np.testing.assert_allclose(finest.translation, place)
    for coarse in levels[1:]:
        # some programs reduce y and x only
        np.testing.assert_allclose(coarse.box(), finest.box())
        assert (coarse.shape < finest.shape).any()
    store = import_data(str(path), "cell", data=tmp_path / "data", say=lambda _: None)
    written = open_levels(store / layout.RAW)[0]
    np.testing.assert_array_equal(written.read((0, 0, 0), written.shape), VOLUME)
    np.testing.assert_allclose(written.translation, place)
    np.testing.assert_allclose(written.scale, VOXEL)

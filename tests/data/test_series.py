"""The lists that stores of crops have of their images."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import zarr

from common.data.volumes import ngff, series


def image(store: Path, name: str) -> Path:
    """A finished image of one voxel."""
    path = store / name
    zarr.open_group(str(store), mode="a").require_group(path.parent.name)
    ngff.write_multiscale(path, np.ones((1, 1, 1), np.uint8), (8, 8, 8))
    return path


def test_a_root_lists_the_images_of_its_crops(tmp_path):
    store = tmp_path / "jrc_cell.zarr"
    series.add([image(store, "crop2/mito"), image(store, "crop2/er")])
    series.add([image(store, "crop1/mito")])
    root = zarr.open_group(str(store), mode="r")
    assert root.attrs["bioformats2raw.layout"] == 3
    names = root["OME"].attrs["series"]
    assert names == ["crop1/mito", "crop2/er", "crop2/mito"]
    for name in names:
        assert "multiscales" in root[name].attrs


def test_a_crop_that_is_gone_is_taken_off(tmp_path):
    store = tmp_path / "jrc_cell.zarr"
    series.add([image(store, "crop1/mito"), image(store, "crop2/mito")])
    shutil.rmtree(store / "crop1")
    series.add([image(store, "crop3/mito")])
    assert series.listed(store) == ["crop2/mito", "crop3/mito"]


def test_a_half_written_image_is_not_listed(tmp_path):
    store = tmp_path / "jrc_cell.zarr"
    whole = image(store, "crop1/mito")
    grid = ngff.Grid(np.zeros(3), np.ones(3), (4, 4, 4))
    ngff.start_multiscale(store / "crop1/er", grid, np.uint8, (4, 4, 4))
    series.add([whole, store / "crop1/er"])
    assert series.listed(store) == ["crop1/mito"]


def test_attributes_of_the_root_stay_and_a_damaged_list_is_made_anew(tmp_path):
    store = tmp_path / "jrc_cell.zarr"
    whole = image(store, "crop1/mito")
    (store / ".zattrs").write_text(json.dumps({"own": [1]}))
    series.add([whole])
    assert json.loads((store / ".zattrs").read_text())["own"] == [1]
    for damage in ("{", "[]", json.dumps({"series": 3})):
        (store / "OME/.zattrs").write_text(damage)
        series.add([whole])
        assert series.listed(store) == ["crop1/mito"]


def test_several_processes_add_to_one_list(tmp_path):
    store = tmp_path / "jrc_cell.zarr"
    images = [image(store, f"crop{number}/mito") for number in range(12)]
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(series.add, [[one] for one in images]))
    assert len(series.listed(store)) == 12

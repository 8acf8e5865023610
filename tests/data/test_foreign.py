"""What a path is that is no image of ours: named, with what is needed."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from common.data.volumes.ngff import open_levels, write_multiscale
from common.errors import UserError


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("big.mha", "a MetaImage file"),
        ("big.zarr.zip", "a zip file"),
        ("big.zarr", "a file where a folder belongs"),
        ("big", "a file"),
    ],
)
def test_a_file_that_is_not_read_is_named_by_its_kind(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"II*\0")
    with pytest.raises(UserError, match=f"{name}: {words}; OME-NGFF .* are read: convert it first"):
        open_levels(tmp_path / name)


def test_a_folder_without_a_volume_says_what_would_be_one(tmp_path):
    folder = tmp_path / "volume"
    folder.mkdir()
    (folder / "notes.txt").write_text("{}")
    with pytest.raises(UserError, match=r"volume: no volume \(it has no .zgroup, .*are read$"):
        open_levels(folder)


def test_an_array_names_its_group(tmp_path):
    write_multiscale(tmp_path / "image", np.ones((4, 4, 4), np.uint8), (8, 8, 8))
    with pytest.raises(UserError, match=f"write the group that it is in, {tmp_path}/image$"):
        open_levels(tmp_path / "image/s0")


def test_an_array_of_an_image_is_said_to_lie_at_0(tmp_path, capsys):
    write_multiscale(tmp_path / "image", np.ones((4, 4, 4), np.uint8), (8, 8, 8), (80, 80, 80))
    array = f"{tmp_path}/image/s0#voxel_size=8"
    assert open_levels(f"{array}&translation=80,80,80")[0].translation.tolist() == [80, 80, 80]
    assert capsys.readouterr().err == ""
    assert open_levels(array)[0].translation.tolist() == [0, 0, 0]
    said = " ".join(capsys.readouterr().err.split())
    assert f"image/s0: an array of the image {tmp_path}/image, whose place is not read" in said


def test_an_array_of_zarr_3_in_a_group_of_zarr_2_is_named(tmp_path):
    write_multiscale(tmp_path / "image", np.ones((4, 4, 4), np.uint8), (8, 8, 8))
    (tmp_path / "image/s0/.zarray").rename(tmp_path / "image/s0/zarr.json")
    with pytest.raises(UserError, match="s0: zarr v3"):
        open_levels(tmp_path / "image")


@pytest.mark.parametrize("name", ["C:/data/a.zarr", "a:b/c.zarr"])
def test_a_colon_in_a_path_is_no_address(tmp_path, name):
    path = tmp_path / name
    write_multiscale(path, np.ones((4, 4, 4), np.uint8), (8, 8, 8))
    assert len(open_levels(path)) == 1


def test_a_folder_of_images_names_them(tmp_path):
    store = tmp_path / "cell.zarr"
    zarr.open_group(str(store), mode="w")
    write_multiscale(store / "em/raw", np.ones((4, 4, 4), np.uint8), (8, 8, 8))
    with pytest.raises(UserError, match=f"such as {store}/em/raw"):
        open_levels(store)

"""What a path is that is no image of ours: named, with what is needed."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from common.data.ngff import open_levels, write_multiscale
from common.errors import UserError


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("big.tif", "a TIFF file"),
        ("big.OME.TIFF", "a TIFF file"),
        ("big.h5", "an HDF5 file"),
        ("big.mrc", "an MRC file"),
        ("big.nii.gz", "a NIfTI file"),
        ("big.zarr.zip", "a zip file"),
        ("big", "a file"),
    ],
)
def test_a_file_is_named_by_its_kind(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"II*\0")
    with pytest.raises(UserError, match=f"{name}: {words}; an OME-NGFF 0.4 group of zarr v2"):
        open_levels(tmp_path / name)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("zarr.json", "zarr v3"),
        ("attributes.json", "N5"),
        ("info", "precomputed of neuroglancer"),
        ("slice_000.tif", "a folder of 1 picture,"),
        ("notes.txt", "not a zarr v2 group"),
    ],
)
def test_a_folder_is_named_by_what_is_in_it(tmp_path, file, words):
    folder = tmp_path / "volume"
    folder.mkdir()
    (folder / file).write_text("{}")
    with pytest.raises(UserError, match=f"volume: {words}"):
        open_levels(folder)


def test_an_array_names_its_group(tmp_path):
    write_multiscale(tmp_path / "image", np.ones((4, 4, 4), np.uint8), (8, 8, 8))
    with pytest.raises(UserError, match=f"write the group that it is in, {tmp_path}/image$"):
        open_levels(tmp_path / "image/s0")


def test_an_array_of_zarr_3_in_a_group_of_zarr_2_is_named(tmp_path):
    write_multiscale(tmp_path / "image", np.ones((4, 4, 4), np.uint8), (8, 8, 8))
    (tmp_path / "image/s0/.zarray").rename(tmp_path / "image/s0/zarr.json")
    with pytest.raises(UserError, match="s0: zarr v3"):
        open_levels(tmp_path / "image")


@pytest.mark.parametrize(
    "address", ["s3://bucket/a.zarr", "https://host/a.zarr", "gs://b/a.zarr", "s3:/bucket/a.zarr"]
)
def test_a_remote_store_is_not_taken_for_a_path(address):
    scheme, _, rest = address.replace(":/", "://", "//" not in address).partition("://")
    with pytest.raises(UserError, match=f"^{scheme}://{rest}: remote stores are not read; copy it"):
        open_levels(address)


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

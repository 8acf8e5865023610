"""Multiscale images: written and read back, placed in space, refused with a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs import LZMA, Blosc, GZip, Zlib, Zstd

from common.ngff import block_mean, open_levels, pick_level, write_multiscale

VOLUME = np.random.default_rng(0).integers(0, 256, (10, 12, 14), np.uint8)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A group with levels of 8 and 16 nm."""
    write_multiscale(tmp_path / "image", VOLUME, (8, 8, 8), (100, 200, 300), levels=2)
    return tmp_path / "image"


def change(image: Path, edit) -> None:
    """Rewrite the metadata: `edit` changes the first multiscale in place."""
    attributes = json.loads((image / ".zattrs").read_text())
    edit(attributes["multiscales"][0])
    (image / ".zattrs").write_text(json.dumps(attributes))


def transforms(*pairs: tuple[str, list[float]]) -> list[dict]:
    return [{"type": kind, kind: value} for kind, value in pairs]


def test_what_is_written_is_read(tmp_path):
    write_multiscale(tmp_path / "image", VOLUME, (50, 4.6, 4.6), (25, 2.3, -7), chunk=4)
    (level,) = open_levels(tmp_path / "image")
    np.testing.assert_array_equal(level.read((0, 0, 0), VOLUME.shape), VOLUME)
    np.testing.assert_allclose(level.scale, (50, 4.6, 4.6))
    np.testing.assert_allclose(level.translation, (25, 2.3, -7))


def test_a_part_of_an_image_is_read(image):
    np.testing.assert_array_equal(open_levels(image)[0].read((1, 2, 3), (4, 8, 9)), VOLUME[1:4, 2:8, 3:9])


def test_the_box_covers_the_extent_of_the_outermost_voxels(image):
    lower, upper = open_levels(image)[0].box()
    np.testing.assert_allclose(lower, (96, 196, 296))
    np.testing.assert_allclose(upper, (96 + 80, 196 + 96, 296 + 112))


def test_a_coarser_level_is_shifted_by_half_the_difference_of_the_voxels(image):
    """The first voxel of 16 nm lies over the voxels at 100 and 108 nm."""
    coarse = open_levels(image)[1]
    np.testing.assert_allclose(coarse.scale, (16, 16, 16))
    np.testing.assert_allclose(coarse.translation, (104, 204, 304))


def test_all_levels_begin_at_the_same_corner(image):
    fine, coarse = open_levels(image)
    np.testing.assert_allclose(fine.box()[0], coarse.box()[0])


def test_a_coarser_level_is_the_block_mean(image):
    coarse = open_levels(image)[1]
    blocks = VOLUME.reshape(5, 2, 6, 2, 7, 2).astype(float).mean((1, 3, 5))
    np.testing.assert_array_equal(coarse.read((0, 0, 0), (5, 6, 7)), np.rint(blocks))


def test_block_mean_of_a_drawn_case():
    volume = np.array([[[1, 3, 9], [5, 8, 9]]], np.uint8)
    np.testing.assert_array_equal(block_mean(volume, (1, 2, 2)), [[[4]]])  # 17 / 4 = 4.25
    np.testing.assert_array_equal(block_mean(volume.astype(np.float32), (1, 2, 2)), [[[4.25]]])


def test_block_mean_of_bright_voxels_does_not_overflow():
    assert block_mean(np.full((8, 8, 8), 65535, np.uint16), (8, 8, 8)) == 65535


def test_a_scale_listed_second_scales_the_translation_before_it(image):
    """NGFF applies the list in order: (x + 10) * 8."""
    change(image, lambda m: m["datasets"][0].update(
        coordinateTransformations=transforms(("translation", [10, 0, 1]), ("scale", [8, 8, 8]))))  # fmt: skip
    np.testing.assert_allclose(open_levels(image)[0].translation, (80, 0, 8))


def test_a_transformation_of_the_whole_image_comes_after_that_of_the_level(image):
    change(image, lambda m: m.update(
        coordinateTransformations=transforms(("scale", [2, 1, 0.5]), ("translation", [1, 2, 3]))))  # fmt: skip
    level = open_levels(image)[0]
    np.testing.assert_allclose(level.scale, (16, 8, 4))
    np.testing.assert_allclose(level.translation, (201, 202, 153))


def test_identity_changes_nothing(image):
    change(image, lambda m: m.update(coordinateTransformations=[{"type": "identity"}]))
    np.testing.assert_allclose(open_levels(image)[0].translation, (100, 200, 300))


@pytest.mark.parametrize(("unit", "nm"), {"micrometer": 1000, "angstrom": 0.1, "nanometer": 1}.items())
def test_other_units_are_taken_to_nm(image, unit, nm):
    change(image, lambda m: [axis.update(unit=unit) for axis in m["axes"]])
    level = open_levels(image)[0]
    np.testing.assert_allclose(level.scale, np.full(3, 8 * nm))
    np.testing.assert_allclose(level.translation, np.array([100, 200, 300]) * nm)


def test_axes_without_unit_are_nm(image):
    change(image, lambda m: [axis.pop("unit") for axis in m["axes"]])
    np.testing.assert_allclose(open_levels(image)[0].scale, (8, 8, 8))


def test_levels_come_finest_first_whatever_their_order(image):
    change(image, lambda m: m["datasets"].reverse())
    assert [level.path.name for level in open_levels(image)] == ["s0", "s1"]


def test_attributes_are_added_to_the_groups(tmp_path):
    write_multiscale(tmp_path / "image", VOLUME, (8, 8, 8), attributes={"cellmap": {"class_name": "mito"}})
    assert zarr.open_group(str(tmp_path / "image"), mode="r").attrs["cellmap"] == {"class_name": "mito"}


@pytest.mark.parametrize(
    ("scale", "name"),
    [
        ((4, 4, 4), "s0"),
        ((8, 8, 8), "s0"),
        ((10, 10, 10), "s0"),
        ((13, 13, 13), "s1"),
        ((16, 16, 16), "s1"),
        ((99, 99, 99), "s1"),
    ],
)
def test_the_picked_level_is_the_nearest_by_ratio(image, scale, name):
    assert pick_level(open_levels(image), scale).path.name == name


def test_of_two_levels_equally_near_the_finer_is_picked(image):
    between = (8 * 2**0.5,) * 3
    assert pick_level(open_levels(image), between).path.name == "s0"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: m["datasets"][0].update(coordinateTransformations=[]), "'s0' has no scale"),
        (
            lambda m: m["datasets"][0].update(coordinateTransformations=transforms(("scale", [1, 8, 8, 8]))),
            "three numbers",
        ),
        (lambda m: m["datasets"][0].update(coordinateTransformations=transforms(("scale", [0, 8, 8]))), "above zero"),
        (
            lambda m: m.update(coordinateTransformations=[{"type": "rotation"}]),
            "'rotation'; only scale and translation",
        ),
        (lambda m: m["axes"][0].update(unit="parsec"), "unit 'parsec'"),
        (lambda m: m["axes"].reverse(), "must be z, y, x"),
        (lambda m: m["axes"].insert(0, {"name": "c", "type": "channel"}), "must be z, y, x"),
    ],
)
def test_metadata_that_do_not_place_an_image_are_refused(image, edit, words):
    change(image, edit)
    with pytest.raises(ValueError, match=words) as error:
        open_levels(image)
    assert str(image) in str(error.value)


def test_a_group_without_multiscales_is_refused(image):
    (image / ".zattrs").write_text("{}")
    with pytest.raises(ValueError, match="no 'multiscales'"):
        open_levels(image)


@pytest.mark.parametrize("name", [".zattrs", "s0/.zarray"])
def test_metadata_that_are_cut_short_are_named(image, name):
    (image / name).write_text((image / name).read_text()[:20])
    with pytest.raises(ValueError, match=str(image)):
        open_levels(image)


def test_a_path_without_group_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such zarr group"):
        open_levels(tmp_path / "nowhere")


def test_a_folder_that_is_no_group_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder: not a zarr v2 group"):
        open_levels(tmp_path / "folder")


def test_a_missing_array_is_named(image):
    shutil.rmtree(image / "s1")
    with pytest.raises(FileNotFoundError, match="s1: array named in .zattrs is missing"):
        open_levels(image)


def test_an_array_with_a_channel_axis_is_refused(image):
    zarr.open_group(str(image), mode="a").create_dataset("s0", data=VOLUME[None], overwrite=True)
    with pytest.raises(ValueError, match="s0: 4 axes"):
        open_levels(image)


CODECS = {"blosc": Blosc(), "gzip": GZip(), "zlib": Zlib(), "zstd": Zstd(), "lzma": LZMA(), "none": None}


@pytest.mark.parametrize("codec", CODECS)
def test_a_chunk_cut_short_is_named_with_its_array(image, codec):
    zarr.open_group(str(image), mode="a").create_dataset(
        "s0", data=VOLUME, compressor=CODECS[codec], chunks=VOLUME.shape, overwrite=True
    )
    chunk = image / "s0" / "0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"s0: a chunk in voxels \[0, 0, 0\] to \[1, 1, 1\] cannot be decoded"):
        open_levels(image)[0].read((0, 0, 0), (1, 1, 1))

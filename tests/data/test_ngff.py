"""Multiscale images: written and read back, placed in space, refused with a sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs import LZMA, Blosc, GZip, Zlib, Zstd

from common.data.volumes import ngff
from common.data.volumes.ngff import (
    Grid,
    block_mean,
    chunked_array,
    open_levels,
    pick,
    pick_level,
    pyramid,
    write_multiscale,
)
from common.errors import UserError
from tests.volumes import changing

VOLUME = np.random.default_rng(0).integers(0, 256, (10, 12, 14), np.uint8)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A group with levels of 8 and 16 nm."""
    write_multiscale(tmp_path / "image", VOLUME, (8, 8, 8), (100, 200, 300), levels=2)
    return tmp_path / "image"


def change(image: Path, edit) -> None:
    """Rewrite the metadata: `edit` changes the first multiscale in place."""
    with changing(image) as attributes:
        edit(attributes["multiscales"][0])


def transforms(*pairs: tuple[str, list[float]]) -> list[dict]:
    return [{"type": kind, kind: value} for kind, value in pairs]


def test_a_level_that_is_finest_by_its_scale_alone_is_refused(image):
    """As where its scale was divided: labels are read from the finest level, half as large."""
    wrong = transforms(("scale", [4, 4, 4]), ("translation", [100, 200, 300]))
    change(image, lambda m: m["datasets"][1].update(coordinateTransformations=wrong))
    said = "s0: 10 x 12 x 14 voxels of 8 nm, and s1 has 5 x 6 x 7 of 4 nm; the finest level"
    with pytest.raises(UserError, match=said):
        open_levels(image)


def test_what_is_written_is_read(tmp_path):
    write_multiscale(tmp_path / "image", VOLUME, (50, 4.6, 4.6), (25, 2.3, -7), chunk=4)
    (level,) = open_levels(tmp_path / "image")
    np.testing.assert_array_equal(level.read((0, 0, 0), VOLUME.shape), VOLUME)
    np.testing.assert_allclose(level.scale, (50, 4.6, 4.6))
    np.testing.assert_allclose(level.translation, (25, 2.3, -7))


def test_a_part_of_an_image_is_read(image):
    np.testing.assert_array_equal(
        open_levels(image)[0].read((1, 2, 3), (4, 8, 9)), VOLUME[1:4, 2:8, 3:9]
    )


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


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float16, np.float32])
@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 3, 2), (5, 1, 1), (7, 7, 7)])
def test_block_mean_is_numpys_mean_over_each_block(dtype, factors):
    lowest = -120 if np.dtype(dtype).kind == "i" else 0
    volume = (lowest + 250 * np.random.default_rng(0).random((15, 16, 17))).astype(dtype)
    expected = np.empty(np.array(volume.shape) // factors)
    for index in np.ndindex(expected.shape):
        start = np.multiply(index, factors)
        expected[index] = volume[ngff.slices(start, start + factors)].astype(float).mean()
    found = block_mean(volume, factors)
    assert found.dtype == dtype
    if np.dtype(dtype).kind == "f":
        np.testing.assert_allclose(
            found, expected.astype(dtype), rtol=2e-3 if dtype == np.float16 else 1e-6
        )
    else:
        np.testing.assert_array_equal(found, np.rint(expected.astype(np.float32)))


def test_picked_voxels_are_ids_that_were_there():
    volume = np.arange(5 * 6 * 7).reshape(5, 6, 7)
    np.testing.assert_array_equal(pick(volume, (2, 3, 1)), volume[[0, 2]][:, [1, 4]])
    np.testing.assert_array_equal(pick(volume, (1, 1, 4)), volume[:, :, [1]])


# Written piece by piece


GRID = Grid(np.array([10.0, 20, 30]), np.array([40.0, 10, 10]), (9, 40, 42))


def written_in_pieces(
    path: Path, volume: np.ndarray, reduce=block_mean, written: int = 0
) -> list[ngff.Level]:
    array = ngff.start_multiscale(path, GRID, volume.dtype, (4, 8, 8), attributes={"class": "mito"})
    for z in range(0, 9, 4):
        array[z : z + 4] = volume[z : z + 4]
    ngff.finish_multiscale(path, GRID, pyramid(GRID, 10), reduce, written=written)
    return open_levels(path)


@pytest.mark.parametrize("reduce", [block_mean, pick])
def test_every_level_is_made_of_the_one_before(tmp_path, reduce):
    volume = np.random.default_rng(0).integers(0, 200, GRID.shape, np.uint8)
    levels = written_in_pieces(tmp_path / "image", volume, reduce)
    assert [level.array.shape for level in levels] == [(9, 40, 42), (9, 20, 21), (9, 10, 10)]
    expected = volume
    for level in levels:
        np.testing.assert_array_equal(level.read((0, 0, 0), level.shape), expected)
        expected = reduce(expected, (1, 2, 2))


def test_every_level_says_where_its_voxels_are(tmp_path):
    levels = written_in_pieces(tmp_path / "image", np.ones(GRID.shape, np.uint8))
    np.testing.assert_allclose(
        [level.scale for level in levels], [(40, 10, 10), (40, 20, 20), (40, 40, 40)]
    )
    np.testing.assert_allclose(
        [level.translation for level in levels], [(10, 20, 30), (10, 25, 35), (10, 35, 45)]
    )
    np.testing.assert_allclose([level.box()[0] for level in levels], [GRID.box()[0]] * 3)


def test_what_is_not_finished_is_no_image(tmp_path):
    ngff.start_multiscale(
        tmp_path / "image", GRID, np.uint8, (4, 8, 8), attributes={"class": "mito"}
    )
    with pytest.raises(
        UserError,
        match="image: half-written",
    ):
        open_levels(tmp_path / "image")


def test_finishing_keeps_the_attributes_and_takes_the_mark_away(tmp_path):
    written_in_pieces(tmp_path / "image", np.ones(GRID.shape, np.uint8))
    attributes = zarr.open_group(str(tmp_path / "image"), mode="r").attrs.asdict()
    assert set(attributes) == {"multiscales", "class", "stored_chunks"}
    assert attributes["class"] == "mito"
    assert attributes["multiscales"][0]["axes"][0] == {
        "name": "z",
        "type": "space",
        "unit": "nanometer",
    }


def test_finishing_can_be_interrupted_and_done_again(tmp_path):
    volume = np.random.default_rng(0).integers(0, 200, GRID.shape, np.uint8)
    calls = []

    def fails(block, factors):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return block_mean(block, factors)

    with pytest.raises(KeyboardInterrupt):
        written_in_pieces(tmp_path / "image", volume, fails)
    ngff.finish_multiscale(tmp_path / "image", GRID, pyramid(GRID, 10), block_mean)
    whole = written_in_pieces(tmp_path / "other", volume)
    for found, expected in zip(open_levels(tmp_path / "image"), whole, strict=True):
        np.testing.assert_array_equal(
            found.read((0, 0, 0), found.shape), expected.read((0, 0, 0), expected.shape)
        )


def test_a_level_that_was_written_along_is_kept(tmp_path):
    ngff.start_multiscale(tmp_path / "image", GRID, np.uint8, (4, 8, 8))[:] = 1
    ngff.add_level(tmp_path / "image", 1, (1, 2, 2), (4, 4, 4))
    level = chunked_array(tmp_path / "image/s1")
    level.put(np.zeros(3, int), np.full(level.shape, 7, np.uint8))
    assert (level.shape, level.chunks) == ((9, 20, 21), (4, 4, 4))
    ngff.finish_multiscale(tmp_path / "image", GRID, pyramid(GRID, 10), block_mean, written=1)
    _, found, coarsest = open_levels(tmp_path / "image")
    assert (found.read((0, 0, 0), (9, 20, 21)) == 7).all()
    assert (coarsest.read((0, 0, 0), (9, 10, 10)) == 7).all()


def test_starting_removes_what_was_there(tmp_path):
    written_in_pieces(tmp_path / "image", np.ones(GRID.shape, np.uint8))
    ngff.start_multiscale(tmp_path / "image", GRID, np.uint8, (4, 8, 8))
    assert {path.name for path in (tmp_path / "image").iterdir()} == {".zgroup", ".zattrs", "s0"}
    assert {path.name for path in (tmp_path / "image/s0").iterdir()} == {".zarray", ".zattrs"}


def test_chunks_of_zeros_take_no_space(tmp_path):
    volume = np.zeros(GRID.shape, np.uint8)
    volume[1, 2, 3] = 9
    written_in_pieces(tmp_path / "image", volume)
    for level in ("s0", "s1"):
        chunks = [
            path
            for path in (tmp_path / "image" / level).rglob("*")
            if path.is_file() and not path.name.startswith(".")
        ]
        assert [str(path.relative_to(tmp_path / "image" / level)) for path in chunks] == ["0/0/0"]


@pytest.mark.parametrize(
    ("scale", "shape", "factors"),
    [
        ((8, 8, 8), (64, 64, 64), []),
        ((8, 8, 8), (65, 64, 20), [(2, 2, 2)]),
        ((8, 8, 8), (400, 400, 400), [(2, 2, 2)] * 3),
        ((40, 4, 4), (50, 900, 900), [(1, 2, 2)] * 3 + [(2, 2, 2)]),
        ((8, 8, 8), (1, 300, 300), [(1, 2, 2)] * 3),
        ((4, 8, 8), (100, 100, 300), [(2, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)]),
        ((8, 8, 8), (2, 2, 1000), [(2, 2, 2), (1, 1, 2), (1, 1, 2), (1, 1, 2)]),
    ],
)
def test_a_pyramid_halves_the_finer_axes_until_it_is_small(scale, shape, factors):
    assert pyramid(Grid(np.zeros(3), np.array(scale, float), shape)) == factors


def test_a_scale_listed_second_scales_the_translation_before_it(image):
    """NGFF applies the list in order: (x + 10) * 8."""
    change(
        image,
        lambda m: m["datasets"][0].update(
            coordinateTransformations=transforms(("translation", [10, 0, 1]), ("scale", [8, 8, 8]))
        ),
    )
    np.testing.assert_allclose(open_levels(image)[0].translation, (80, 0, 8))


def test_a_transformation_of_the_whole_image_comes_after_that_of_the_level(image):
    change(
        image,
        lambda m: m.update(
            coordinateTransformations=transforms(("scale", [2, 1, 0.5]), ("translation", [1, 2, 3]))
        ),
    )
    level = open_levels(image)[0]
    np.testing.assert_allclose(level.scale, (16, 8, 4))
    np.testing.assert_allclose(level.translation, (201, 202, 153))


def test_identity_changes_nothing(image):
    change(image, lambda m: m.update(coordinateTransformations=[{"type": "identity"}]))
    np.testing.assert_allclose(open_levels(image)[0].translation, (100, 200, 300))


@pytest.mark.parametrize(
    ("unit", "nm"), {"micrometer": 1000, "angstrom": 0.1, "nanometer": 1}.items()
)
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
    write_multiscale(
        tmp_path / "image", VOLUME, (8, 8, 8), attributes={"cellmap": {"class_name": "mito"}}
    )
    assert zarr.open_group(str(tmp_path / "image"), mode="r").attrs["cellmap"] == {
        "class_name": "mito"
    }


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
            lambda m: m["datasets"][0].update(
                coordinateTransformations=transforms(("scale", [1, 8, 8, 8]))
            ),
            "three numbers",
        ),
        (
            lambda m: m["datasets"][0].update(
                coordinateTransformations=transforms(("scale", [0, 8, 8]))
            ),
            "above zero",
        ),
        (
            lambda m: m.update(coordinateTransformations=[{"type": "rotation"}]),
            "'rotation'; only scale and translation",
        ),
        (lambda m: m["axes"][0].update(unit="parsec"), "unit 'parsec'"),
        (lambda m: m["axes"].reverse(), "must be z, y, x"),
        (lambda m: m["axes"].insert(0, {"name": "c", "type": "channel"}), "4 numbers, one an axis"),
    ],
)
def test_metadata_that_do_not_place_an_image_are_refused(image, edit, words):
    change(image, edit)
    with pytest.raises(UserError, match=words) as error:
        open_levels(image)
    assert str(image) in str(error.value)


def test_a_group_without_multiscales_is_refused(image):
    (image / ".zattrs").write_text("{}")
    with pytest.raises(UserError, match="no 'multiscales'"):
        open_levels(image)


@pytest.mark.parametrize("name", [".zattrs", "s0/.zarray"])
def test_metadata_that_are_cut_short_are_named(image, name):
    (image / name).write_text((image / name).read_text()[:20])
    with pytest.raises(UserError, match=str(image)):
        open_levels(image)


def test_a_path_without_group_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: nothing is there"):
        open_levels(tmp_path / "nowhere")


def test_a_folder_that_is_no_group_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: no volume"):
        open_levels(tmp_path / "folder")


def test_a_missing_array_is_named(image):
    shutil.rmtree(image / "s1")
    with pytest.raises(FileNotFoundError, match="s1: array named"):
        open_levels(image)


def test_an_array_with_a_channel_axis_is_refused(image):
    zarr.open_group(str(image), mode="a").create_dataset("s0", data=VOLUME[None], overwrite=True)
    with pytest.raises(UserError, match="s0: 4 axes"):
        open_levels(image)


CODECS = {
    "blosc": Blosc(),
    "gzip": GZip(),
    "zlib": Zlib(),
    "zstd": Zstd(),
    "lzma": LZMA(),
    "none": None,
}


@pytest.mark.parametrize("codec", CODECS)
def test_a_chunk_cut_short_is_named_with_its_array(image, codec):
    zarr.open_group(str(image), mode="a").create_dataset(
        "s0", data=VOLUME, compressor=CODECS[codec], chunks=VOLUME.shape, overwrite=True
    )
    chunk = image / "s0" / "0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(UserError, match=r"s0: a chunk in voxels \[0, 0, 0\] to \[1, 1, 1\]"):
        open_levels(image)[0].read((0, 0, 0), (1, 1, 1))

"""Raw on a wanted grid: the right level, averaged, mirrored beyond the volume, scaled to [0, 1]."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from scipy import ndimage

from common.data.volumes import raw
from common.data.volumes.ngff import slices, write_multiscale
from common.data.volumes.raw import mirror, open_raw, reduction
from common.errors import UserError
from tests.volumes import changing

VOLUME = np.random.default_rng(0).integers(0, 256, (13, 18, 22), np.uint8)


@pytest.fixture
def image(tmp_path) -> Path:
    """Levels of 8 and 16 nm."""
    write_multiscale(tmp_path / "raw", VOLUME, (8, 8, 8), (100, 200, 300), levels=2, chunk=8)
    return tmp_path / "raw"


def means(volume: np.ndarray, factors: tuple[int, int, int]) -> np.ndarray:
    """Block means, one block after another."""
    result = np.empty(np.array(volume.shape) // factors)
    for index in np.ndindex(result.shape):
        start = np.multiply(index, factors)
        result[index] = volume[slices(start, start + factors)].astype(float).mean()
    return result


def test_raw_of_the_wanted_voxel_size_is_read_as_it_is(image):
    found = open_raw(image, (8, 8, 8))
    assert found.dtype == np.uint8 and found.grid.shape == VOLUME.shape
    np.testing.assert_allclose(found.grid.origin, (100, 200, 300))
    np.testing.assert_array_equal(found.read((1, 2, 3), (13, 9, 20)), VOLUME[1:13, 2:9, 3:20])


@pytest.mark.parametrize(
    ("wanted", "level", "factor"),
    [
        ((8, 8, 8), "s0", (1, 1, 1)),
        ((16, 16, 16), "s1", (1, 1, 1)),
        ((10, 10, 10), "s0", (1, 1, 1)),
        ((32, 32, 48), "s1", (2, 2, 3)),
        ((16, 8, 8), "s0", (2, 1, 1)),
        ((4, 4, 4), "s0", (1, 1, 1)),
        ((500, 16, 16), "s1", (6, 1, 1)),
    ],
)
def test_the_nearest_level_is_averaged_while_it_stays_finer(image, wanted, level, factor):
    """Never over more voxels than there are."""
    found = open_raw(image, wanted)
    assert (found.level.path.name, tuple(found.factor)) == (level, factor)


@pytest.mark.parametrize("at_once", [1, 120, 2**27])
def test_averaged_voxels_are_block_means_and_lie_in_their_middle(image, monkeypatch, at_once):
    """Also where the voxels to average do not fit into memory at once."""
    monkeypatch.setattr(raw, "AT_ONCE", at_once)
    found = open_raw(image, (16, 32, 24))
    assert found.level.path.name == "s1" and tuple(found.factor) == (1, 2, 1)
    np.testing.assert_allclose(found.grid.origin, (104, 204 + 8, 304))
    np.testing.assert_allclose(found.grid.scale, (16, 32, 16))
    fine = found.level.read((0, 0, 0), found.level.shape)
    expected = np.rint(means(fine, (1, 2, 1)))
    np.testing.assert_array_equal(found.read((1, 0, 2), (6, 4, 9)), expected[1:6, :4, 2:9])


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        ((-3, -2, -30), (16, 20, 25)),
        ((0, 0, 0), (13, 18, 22)),
        ((10, 15, 20), (40, 60, 70)),
        ((14, 0, -5), (16, 3, -1)),
    ],
)
def test_beyond_the_volume_raw_is_mirrored(image, start, stop):
    """As np.pad does, also where the mirror image is mirrored again and where nothing is inside."""
    padded = np.pad(VOLUME, 80, mode="reflect")
    expected = padded[slices(np.add(start, 80), np.add(stop, 80))]
    np.testing.assert_array_equal(open_raw(image, (8, 8, 8)).read_mirrored(start, stop), expected)


def test_mirrored_voxels_are_folded_at_the_first_and_the_last():
    np.testing.assert_array_equal(
        mirror(np.arange(-5, 9), 4), [1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2]
    )
    np.testing.assert_array_equal(mirror(np.arange(-2, 3), 1), [0] * 5)
    for n in (2, 3, 7):
        np.testing.assert_array_equal(
            mirror(np.arange(-50, 50), n), np.pad(np.arange(n), (50, 50 - n), mode="reflect")
        )


def test_a_volume_one_voxel_thick_is_the_same_at_every_depth(tmp_path):
    write_multiscale(tmp_path / "raw", VOLUME[:1], (8, 8, 8))
    found = open_raw(tmp_path / "raw", (8, 8, 8)).read_mirrored((-2, 0, 0), (3, 18, 22))
    np.testing.assert_array_equal(found, VOLUME[:1].repeat(5, 0))


def test_averaging_does_not_go_beyond_a_thin_volume():
    np.testing.assert_array_equal(
        reduction((16, 16, 16), np.array([4.0, 8, 16]), np.array([1, 100, 100])), [1, 2, 1]
    )


def test_voxel_sizes_that_are_nearly_multiples_are_multiples():
    np.testing.assert_array_equal(
        reduction((16, 16, 15.9), np.array([5.3335, 8.0, 4.0]), np.array([99, 99, 99])), [3, 2, 3]
    )


def test_a_wider_integer_becomes_0_to_1_by_its_range(tmp_path):
    volume = VOLUME.astype(np.uint16) * 257
    write_multiscale(tmp_path / "raw", volume, (8, 8, 8))
    found = open_raw(tmp_path / "raw", (8, 8, 8))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.read((0, 0, 0), (13, 18, 22)), VOLUME / 255, atol=1e-6)


@pytest.mark.parametrize("low", [50, -100])
def test_floats_become_0_to_1_by_raw_range_and_nan_is_black(tmp_path, low):
    volume = VOLUME.astype(np.float32)
    volume[0, 0, :3] = np.nan, -np.inf, np.inf
    write_multiscale(tmp_path / "raw", volume, (8, 8, 8))
    expected = np.clip((VOLUME - float(low)) / (200 - low), 0, 1)
    expected[0, 0, :3] = 0, 0, 1
    np.testing.assert_allclose(
        open_raw(tmp_path / "raw", (8, 8, 8), (low, 200)).read((0, 0, 0), (13, 18, 22)),
        expected,
        atol=1e-6,
    )


def test_floats_are_cut_off_before_they_are_averaged(tmp_path):
    """A bright speck does not brighten its neighbours."""
    volume = np.zeros((2, 2, 2), np.float32)
    volume[0, 0, 0] = 1e6
    write_multiscale(tmp_path / "raw", volume, (8, 8, 8))
    assert open_raw(tmp_path / "raw", (16, 16, 16), (0, 1)).read((0, 0, 0), (1, 1, 1)) == 1 / 8


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_a_type_without_a_natural_range_is_refused_before_it_is_read(tmp_path, dtype):
    write_multiscale(tmp_path / "raw", VOLUME.astype(dtype), (8, 8, 8))
    with pytest.raises(
        UserError, match=f"s0: raw of type {np.dtype(dtype)} has no natural range; set raw_range ="
    ):
        open_raw(tmp_path / "raw", (8, 8, 8))


def test_raw_in_micrometres_is_the_same_raw(image):
    with changing(image) as attributes:
        for axis in attributes["multiscales"][0]["axes"]:
            axis["unit"] = "micrometer"
        for level in attributes["multiscales"][0]["datasets"]:
            for transform in level["coordinateTransformations"]:
                kind = transform["type"]
                transform[kind] = [value / 1000 for value in transform[kind]]
    found = open_raw(image, (16, 16, 16))
    assert found.level.path.name == "s1"
    np.testing.assert_allclose(found.grid.box()[0], (96, 196, 296))


def test_a_missing_raw_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: nothing is there"):
        open_raw(tmp_path / "nowhere", (8, 8, 8))


# What a network sees of it


def stretched(tmp_path, bits: int, dtype=np.uint16) -> Path:
    """Raw that uses so many bits of its type."""
    volume = (VOLUME.astype(np.uint32) * (2**bits - 1) // 255).astype(dtype)
    write_multiscale(tmp_path / "raw", volume, (8, 8, 8))
    return tmp_path / "raw"


def look(path: Path, raw_range=()) -> None:
    found = open_raw(path, (8, 8, 8), raw_range)
    found.note_contrast(*found.level.box())


def test_raw_that_uses_ten_of_its_sixteen_bits_is_noted_with_the_range_to_write(tmp_path, capsys):
    look(stretched(tmp_path, 10))
    said = capsys.readouterr().err
    assert "raw/s0: uint16 from 0 to 1023 in the middle of the box" in said
    assert "as 0 to 0.016 of 0 to 1" in said and "set raw_range = (0, 1023)" in said


@pytest.mark.parametrize(
    ("bits", "dtype", "raw_range"), [(16, np.uint16, ()), (10, np.uint16, (0, 1023)), (5, "u1", ())]
)
def test_raw_with_contrast_or_a_range_is_nothing_to_say(tmp_path, bits, dtype, raw_range, capsys):
    look(stretched(tmp_path, bits, dtype), raw_range)
    assert capsys.readouterr().err == ""


def test_raw_that_is_one_value_is_noted(image, capsys):
    open_raw(image, (8, 8, 8)).check_values(200, 200, "around crop1")
    assert "s0: 200 everywhere around crop1, so that nothing can be" in capsys.readouterr().err


def test_black_raw_is_refused_with_the_reason(tmp_path, image):
    with pytest.raises(UserError, match="s0: 0 everywhere around crop1; fetch its EM chunks"):
        open_raw(image, (8, 8, 8)).check_values(0, 0, "around crop1")
    ranged = open_raw(stretched(tmp_path / "other", 10), (8, 8, 8), (2000, 3000))
    with pytest.raises(UserError, match=r"raw_range = \(2000, 3000\) makes black of what is 2000"):
        ranged.check_values(0, 0, "around crop1")


def test_raw_of_one_byte_that_raw_range_makes_black_is_refused(image):
    """One range for all volumes, and one of them is of 8 bits."""
    raw_range = (1000.0, 40000.0)
    with pytest.raises(UserError, match=r"0 everywhere .*\(1000, 40000\) makes black of what is"):
        open_raw(image, (8, 8, 8), raw_range).check_values(3, 255, "around crop1")


@pytest.mark.parametrize(
    ("dtype", "values", "raw_range", "said"),
    [
        # 0 to 255 taken for 0 to 1, and the other way round; a mask of bytes
        ("f4", (0, 250), (0, 1), r"raw_range = \(0, 1\) makes 100% of what is around crop1"),
        ("f4", (0.1, 0.9), (0, 255), r"from 0.1 to 0.9 around crop1, .* as 0.00039 to 0.0035"),
        ("u1", (0, 1), (), r"uint8 from 0 to 1 around crop1, .* as 0 to 0.0039 of 0 to 1"),
        ("u1", (90, 200), (150, 180), r"raw_range = \(150, 180\) makes 100% of what is"),
        ("u1", (90, 200), (0, 1), r"raw_range = \(0, 1\) makes 100% of what is"),
        ("f4", (90, 200), (0, 1), r"raw_range = \(0, 1\) makes 100% of what is"),
        ("f4", (0.1, np.nan), (0, 1), r"raw/s0: has NaN, which a network gets as black, as 0"),
    ],
)
def test_raw_whose_values_are_not_those_of_its_range_is_noted(
    tmp_path, capsys, dtype, values, raw_range, said
):
    volume = np.random.default_rng(0).choice(values, (4, 4, 4)).astype(dtype)
    write_multiscale(tmp_path / "raw", volume, (8, 8, 8))
    found = open_raw(tmp_path / "raw", (8, 8, 8), raw_range)
    block = found.read((0, 0, 0), (4, 4, 4))
    part = found.cut_off(block) / block.size
    found.check_values(float(block.min()), float(block.max()), "around crop1", cut_off=part)
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("raw_range", "part"), [((0.0, 51000.0), "0.005"), ((255.0, 300.0), "0"), ((0.0, 255.0), "")]
)
def test_a_raw_range_beyond_the_type_of_a_volume_is_noted(image, raw_range, part, capsys):
    open_raw(image, (8, 8, 8), raw_range)
    said = capsys.readouterr().err
    assert ("s0: uint8, which is 0 to 255" in said) == bool(part)
    assert f"its contrast is {part} of" in said or not part


def test_no_range_is_too_wide_for_raw_that_is_stretched(tmp_path, image, capsys):
    open_raw(image, (8, 8, 8), (0, 51000), is_stretched=True)
    found = open_raw(stretched(tmp_path / "other", 10), (8, 8, 8), is_stretched=True)
    found.check_values(0, 1023 / 65535, "around crop1")
    assert capsys.readouterr().err == ""


def moved(image: Path, number: int, **transforms: list[float]) -> None:
    """Write other transformations of a level, instead of both of it."""
    listed = [{"type": kind, kind: numbers} for kind, numbers in transforms.items()]
    with changing(image) as attributes:
        attributes["multiscales"][0]["datasets"][number]["coordinateTransformations"] = listed


@pytest.mark.parametrize(
    "transforms",
    [
        {"scale": [16, 16, 16]},
        {"scale": [16, 16, 16], "translation": [104, 204, 330]},
        {"scale": [32, 32, 32], "translation": [112, 212, 312]},
    ],
)
def test_a_level_that_is_not_where_the_finest_is_is_refused(image, transforms):
    """Raw is read from it, and labels were painted on the finest."""
    moved(image, 1, **transforms)
    with pytest.raises(UserError, match=r"raw/s1: at .* the finest level, s0, at z, y, x 96 to"):
        open_raw(image, transforms["scale"])
    open_raw(image, (8, 8, 8))


def test_levels_may_round_their_shape_and_their_place(image):
    """A level without an incomplete voxel, that begins where the finest voxel does."""
    moved(image, 1, scale=[16, 16, 16], translation=[100, 200, 300])
    assert open_raw(image, (16, 16, 16)).level.path.name == "s1"


# ---- means over sections


@pytest.mark.parametrize("factor", [1, 2])
def test_sections_are_averaged_with_their_neighbours_as_scipy_does(image, factor):
    """Whatever else is read with them; at the ends the volume is mirrored."""
    plain = open_raw(image, (8 * factor, 8, 8))
    found = open_raw(image, (8 * factor, 8, 8), sections=2)
    whole = plain.read((0, 0, 0), plain.grid.shape).astype(float)
    expected = np.rint(ndimage.uniform_filter1d(whole, 5, axis=0, mode="mirror"))
    for start, stop in (
        ((0, 0, 0), plain.grid.shape),
        ((1, 3, 2), (3, 9, 20)),
        ((5, 0, 0), (6, 1, 1)),
    ):
        block = found.read(start, stop)
        assert block.dtype == np.uint8
        np.testing.assert_array_equal(block, expected[slices(np.array(start), np.array(stop))])
    assert not found.reads_like(plain)


def test_means_of_floats_are_equal_to_the_bit_in_any_block(tmp_path):
    volume = np.random.default_rng(1).random((13, 6, 6), np.float32)
    write_multiscale(tmp_path / "raw", volume, (8, 8, 8))
    found = open_raw(tmp_path / "raw", (8, 8, 8), (0, 1), sections=1)
    whole = found.read((0, 0, 0), (13, 6, 6))
    np.testing.assert_allclose(whole[4], volume[3:6].mean(0), rtol=1e-6)
    for z in range(13):
        np.testing.assert_array_equal(found.read((z, 2, 0), (z + 1, 6, 6)), whole[z : z + 1, 2:])


def test_raw_that_was_replaced_is_known_by_a_few_voxels(tmp_path, image):
    raw_of = open_raw(image, (8, 8, 8))
    box = raw_of.grid.box()
    key = raw_of.sample_key(*box)
    shutil.copytree(image, tmp_path / "copy")
    assert open_raw(tmp_path / "copy", (8, 8, 8)).sample_key(*box) == key
    array = zarr.open_array(str(image / "s0"), mode="r+")
    array[...] = 255 - array[...]
    assert raw_of.sample_key(*box) != key
    # a box that reaches beyond the volume, or is less than a voxel
    raw_of.sample_key(box[0] - 500, box[1] + 500)
    raw_of.sample_key(box[0], box[0] + 1)

"""Whether raw, labels and network fit together in space: refused, noted, or nothing to say."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.data.volumes.ngff import Grid, Level, open_levels, write_multiscale
from common.data.volumes.placement import (
    are_same_voxels,
    check_crop,
    check_detail,
    group_by_voxels,
)
from common.data.volumes.raw import open_raw
from common.errors import UserError
from tests.volumes import changing

NOTHING: list[str] = []


def image(path: Path, shape, scale=(8, 8, 8), translation=(0, 0, 0)) -> Level:
    volume = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    write_multiscale(path, volume, scale, translation)
    return open_levels(path)[0]


def notes(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


# Detail


@pytest.mark.parametrize("wanted", [(8, 8, 8), (5.4, 5.4, 5.4), (128, 128, 128), (64, 4, 4)])
def test_voxels_that_are_fine_enough_are_nothing_to_say(tmp_path, wanted, capsys):
    scale = (8, 4, 4) if wanted == (64, 4, 4) else (8, 8, 8)
    check_detail(image(tmp_path / "raw", (4, 4, 4), scale), wanted, "the input")
    assert notes(capsys) == NOTHING


@pytest.mark.parametrize(("scale", "wanted"), [((16, 16, 16), (8, 8, 8)), ((40, 4, 4), (8, 8, 8))])
def test_voxels_that_are_enlarged_are_noted_once(tmp_path, scale, wanted, capsys):
    image(tmp_path / "raw", (4, 4, 4), scale)
    for _ in range(2):
        open_raw(tmp_path / "raw", wanted)
    (said,) = notes(capsys)
    assert f"{tmp_path}/raw/s0: voxels of {scale[0]}" in said
    assert "nm, and the network's input has 8 nm; it is enlarged, which adds no detail" in said


def test_voxels_ten_times_too_large_are_refused(tmp_path):
    image(tmp_path / "raw", (4, 4, 4), (80, 80, 80))
    with pytest.raises(UserError, match=r"raw/s0: voxels of 80 nm.* has 8 nm, 10 times finer"):
        open_raw(tmp_path / "raw", (8, 8, 8))


def test_voxels_a_thousand_times_too_small_are_refused(tmp_path):
    """Lengths in um with the unit nm: a whole volume was predicted as one voxel."""
    image(tmp_path / "raw", (4, 4, 4), (0.008, 0.008, 0.008))
    with pytest.raises(UserError, match=r"raw/s0: voxels of 0.008 nm.* has 8 nm, 1e\+03 times"):
        open_raw(tmp_path / "raw", (8, 8, 8))


# Crops


def crop_in(tmp_path, shape, translation=(0, 0, 0), scale=(8, 8, 8), raw_shape=(40, 40, 40)):
    """Look at a crop of a raw volume of 320 nm."""
    raw = image(tmp_path / "raw", raw_shape)
    label = image(tmp_path / "crop1/mito", shape, scale, translation)
    check_crop(tmp_path / "crop1", label, raw, raw.scale)


@pytest.mark.parametrize(
    ("shape", "translation", "scale"),
    [
        ((40, 40, 40), (0, 0, 0), (8, 8, 8)),
        ((10, 10, 10), (240, 0, 80), (8, 8, 8)),
        ((40, 10, 10), (-4, 0, 0), (8, 8, 8)),
        ((21, 20, 20), (-4, -4, -4), (16, 16, 16)),
        ((160, 160, 160), (-3, -3, -3), (2, 2, 2)),
    ],
)
def test_a_crop_in_its_raw_is_nothing_to_say(tmp_path, shape, translation, scale, capsys):
    crop_in(tmp_path, shape, translation, scale)
    assert notes(capsys) == NOTHING


def test_a_crop_that_shares_one_layer_with_the_raw_is_refused_with_both_boxes(tmp_path):
    with pytest.raises(UserError, match="less than half of the crop lies in the raw") as error:
        crop_in(tmp_path, (10, 10, 10), (312, 0, 0))
    assert "crop1: labels at z, y, x 308 to 388, -4 to 76, -4 to 76 nm" in str(error.value)
    assert f"raw {tmp_path}/raw at z, y, x -4 to 316, -4 to 316, -4 to 316 nm" in str(error.value)


def test_a_crop_beside_the_raw_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"crop1: labels at .* do not overlap; check translation"):
        crop_in(tmp_path, (10, 10, 10), (0, 320, 0))


def test_a_crop_that_reaches_beyond_the_raw_is_noted(tmp_path, capsys):
    crop_in(tmp_path, (10, 10, 10), (264, 0, 0))
    (said,) = notes(capsys)
    assert "labels at z, y, x 260 to 340, " in said and "-4 to 316" in said
    assert said.endswith("what is beyond the raw is left out")


def test_labels_much_finer_than_any_raw_are_noted(tmp_path, capsys):
    crop_in(tmp_path, (10, 10, 10), scale=(0.8, 0.8, 0.8))
    (said,) = notes(capsys)
    assert "voxels of 0.8 nm, 10 times finer than those of the raw" in said


def test_labels_a_thousand_times_finer_than_any_raw_are_refused(tmp_path):
    """Lengths in um with the unit nm: the whole crop would be a voxel."""
    with pytest.raises(UserError, match=r"crop1: voxels of 0.008 nm, 1e\+03 times finer .* unit;"):
        crop_in(tmp_path, (10, 10, 10), scale=(0.008, 0.008, 0.008))


def without_translation(path: Path) -> Level:
    with changing(path) as attributes:
        del attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"][1]
    return open_levels(path)[0]


def test_labels_without_a_place_are_noted_unless_they_cover_all_of_the_raw(tmp_path, capsys):
    raw = image(tmp_path / "raw", (40, 40, 40))
    image(tmp_path / "crop1/mito", (10, 10, 10))
    check_crop(tmp_path / "crop1", without_translation(tmp_path / "crop1/mito"), raw, raw.scale)
    (said,) = notes(capsys)
    assert "crop1: no translation in its .zattrs, so the centre of its first voxel is at 0" in said
    assert said.endswith("where it begins with the raw that is 0, 0, 0")
    image(tmp_path / "crop2/mito", (40, 40, 40))
    check_crop(tmp_path / "crop2", without_translation(tmp_path / "crop2/mito"), raw, raw.scale)
    assert notes(capsys) == NOTHING


@pytest.mark.parametrize("times", [2, 8])
def test_coarse_labels_without_a_place_that_would_cover_the_raw_are_noted(tmp_path, times, capsys):
    """Both begin at 0, so that the labels lie half a voxel of theirs beside what was painted."""
    raw = image(tmp_path / "raw", (40, 40, 40))
    image(tmp_path / "crop1/mito", (40 // times,) * 3, (8 * times,) * 3)
    check_crop(tmp_path / "crop1", without_translation(tmp_path / "crop1/mito"), raw, raw.scale)
    (said,) = notes(capsys)
    place = 4 * times - 4
    assert said.endswith(f"where it begins with the raw that is {place}, {place}, {place}")


# The same voxels


GRID = Grid(np.array([36000.0, 4000.0, 4000.0]), np.array([40.0, 4.0, 4.0]), (20, 30, 40))


@pytest.mark.parametrize(
    ("origin", "scale", "expected"),
    [
        ((0, 0, 0), (1, 1, 1), True),
        # metadata of few digits: 5.24 nm for 5.2399998
        ((3.9, 0.39, -0.39), (1.0009, 1, 0.9991), True),
        # along each axis a tenth of its own voxel, however far from 0 the volume lies
        ((0, 0.41, 0), (1, 1, 1), False),
        ((4.1, 0, 0), (1, 1, 1), False),
        ((0, 2, 0), (1, 1, 1), False),
        ((0, 0, 0), (1, 1.0011, 1), False),
    ],
)
def test_grids_have_the_same_voxels_up_to_rounding(origin, scale, expected):
    other = Grid(GRID.origin + origin, GRID.scale * scale, GRID.shape)
    assert are_same_voxels(other, GRID) is expected


def test_grids_of_other_shapes_have_other_voxels():
    assert not are_same_voxels(replace(GRID, shape=(20, 30, 41)), GRID)


def test_grids_on_both_sides_of_a_rounded_number_are_one_group():
    """Once places were rounded to be compared, so that 0.4999 and 0.5001 were two."""
    places = [0.0004999, 0.0005001, 2.0, 0.0]
    grids = [replace(GRID, origin=GRID.origin + place) for place in places]
    groups = group_by_voxels(range(4), lambda number: grids[number])
    assert groups == [[0, 1, 3], [2]]


@pytest.mark.parametrize(
    ("scale", "translation", "is_said"),
    [
        ((8, 8, 8), (12, 4, 20), True),
        ((8, 8, 8), (16, 8, 0), False),
        # of anisotropic volumes sections are the same, and of finer labels all is as it should be
        ((8, 8, 8), (16, 4, 4), False),
        ((4, 4, 4), (6, 6, 6), False),
    ],
)
def test_labels_half_a_voxel_beside_the_raw_are_noted(
    tmp_path, scale, translation, is_said, capsys
):
    raw = image(tmp_path / "raw", (8, 8, 8))
    label = image(tmp_path / "mito", (3, 3, 3), scale, translation)
    check_crop(tmp_path / "crop1", label, raw, raw.scale)
    said = notes(capsys)
    assert [line for line in said if "half a voxel of 8 nm beside" in line] == said[: int(is_said)]
    assert len(said) == int(is_said)


@pytest.mark.parametrize(
    ("size", "other", "is_said"),
    [
        ((50, 4, 4), (4, 4, 50), True),
        ((50, 4, 4), (8, 8, 50), True),
        ((50, 4, 4), (50, 8, 8), False),
        ((50, 4, 4), (8, 8, 8), False),
        ((5.24, 4, 4), (4, 4, 5.24), False),
    ],
)
def test_sizes_in_the_order_x_y_z_are_noted(tmp_path, size, other, is_said, capsys):
    raw = image(tmp_path / "raw", (8, 8, 8), size)
    check_detail(raw, other, "the input")
    said = " ".join(notes(capsys))
    assert ("as in the order x, y, z; sizes are written z, y, x" in said) == is_said
    label = image(tmp_path / "mito", (4, 4, 4), other)
    with suppress(UserError):  # of labels that lie beyond the raw, for that reason
        check_crop(tmp_path / "crop1", label, raw, raw.scale)
    assert ("as in the order x, y, z" in " ".join(notes(capsys))) == is_said

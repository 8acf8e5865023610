"""Pictures, by their pixels."""

from __future__ import annotations

import colorsys
import itertools

import numpy as np
import pytest
from PIL import Image

from common.classes import TESTED, atoms_of
from common.show import figures


def test_unknown_is_neither_negative_nor_positive():
    image = figures.colour_target(np.array([[1, 0, -1]]))
    assert image.tolist() == [[[255, 255, 255], [0, 0, 0], figures.UNKNOWN_RGB.tolist()]]


def test_a_panel_shows_raw_target_and_probability_side_by_side():
    raw = np.full((6, 8), 0.5)
    target = np.array([[1, 0], [0, -1]])
    probability = np.array([[1.0, 0.0], [0.5, 0.0]])
    image = figures.panel(raw, target, probability, scale=2)
    assert image.shape == (12, 2 * (8 + 2 + 2) + 12, 3)
    assert (image[0, :16] == 127).all()
    middle = image[4:8]
    shown_target = middle[::2, 22:26:2]
    shown_probability = middle[::2, 32:36:2, 0]
    assert shown_target.tolist() == figures.colour_target(target).tolist()
    assert shown_probability.tolist() == [[255, 0], [127, 0]]


def test_what_lies_between_pictures_is_no_probability_and_not_unknown():
    image = figures.panel(np.zeros((8, 8)), np.zeros((8, 8)), np.zeros((8, 8)))
    gap = image[:, 24:30].reshape(-1, 3)
    assert np.ptp(gap.astype(int), axis=1).min() > 30  # a grey has none
    assert not (gap == figures.UNKNOWN_RGB).all(1).any()


def test_the_frame_is_what_the_target_covers():
    def framed(ratio: float) -> np.ndarray:
        target = np.zeros((4, 4))
        image = figures.panel(np.zeros((12, 12)), target, target, (ratio, ratio), scale=1)
        return np.argwhere((image[:, :12] == (255, 200, 0)).all(-1))

    assert framed(1).min(0).tolist() == [4, 4]
    assert framed(1).max(0).tolist() == [7, 7]
    assert framed(2).min(0).tolist() == [2, 2]
    assert framed(2).max(0).tolist() == [9, 9]
    assert len(framed(3)) == 0  # covers all of it: nothing to tell apart


def test_later_classes_are_painted_over_earlier_ones():
    volume = np.array([[[True, True, False]], [[False, True, False]]])
    colours = np.array([[10, 0, 0], [0, 20, 0]], np.uint8)
    second_last = figures.classes_in_colour(volume, [0, 1], colours)
    assert second_last.tolist() == [[[10, 0, 0], [0, 20, 0], [0, 0, 0]]]
    first_last = figures.classes_in_colour(volume, [1, 0], colours)
    assert first_last.tolist() == [[[10, 0, 0], [10, 0, 0], [0, 0, 0]]]


def test_what_is_half_opaque_shows_half_of_what_lies_under_it():
    shares = np.array([[[1.0, 0.5]], [[0.5, 0.5]]])
    of_class = np.array([100, 0, 0])
    of_pixels = np.array([[[0, 200, 0], [0, 0, 80]]])
    image = figures.classes_in_colour(shares, [0, 1], [of_class, of_pixels])
    assert image.tolist() == [[[50, 100, 0], [25, 0, 40]]]


def test_the_largest_mask_is_painted_first():
    masks = np.zeros((4, 2, 5, 5), bool)
    masks[0, :, 2:3] = True
    masks[1] = True
    masks[3, 0, 0, 0] = True
    assert figures.largest_first(masks) == [1, 0, 3, 2]


def test_a_class_has_one_colour_in_all_pictures():
    three = figures.class_colours(["er", "mine", "mito"])
    two = figures.class_colours(["mine", "mito"])
    assert three[1:].tolist() == two.tolist()


def oklab(colours: np.ndarray) -> np.ndarray:
    """Colours in OKLab (B. Ottosson 2020), where equal distances look alike."""
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    axes = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ cones.T) @ axes.T


def test_the_tested_classes_have_48_colours_that_can_be_told_apart():
    colours = oklab(np.vstack([figures.class_colours(TESTED), figures.UNKNOWN_RGB]))
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    np.fill_diagonal(distance, 1)
    # 0.02 is what one just sees side by side (hchrom and mito_mem were 0.04 apart, nuc and
    # perox_mem 0.025): more than four times that is told apart across a picture
    near = np.array([*TESTED, "unknown"])[np.argwhere(distance < 0.09)]
    assert not len(near), near


def test_classes_that_share_voxels_are_told_apart_best():
    colours = oklab(figures.class_colours(TESTED))
    for (i, first), (j, second) in itertools.combinations(enumerate(TESTED), 2):
        if atoms_of(first) & atoms_of(second):
            assert np.linalg.norm(colours[i] - colours[j]) > 0.11, (first, second)


@pytest.mark.parametrize("whole", ["mito", "own"])
def test_parts_are_shades_of_their_whole(whole):
    """Of one hue; the membrane is the darkest."""
    colours = figures.class_colours([whole, f"{whole}_mem", f"{whole}_lum"])
    whole, membrane, lumen = (colorsys.rgb_to_hls(*colour / 255) for colour in colours)
    np.testing.assert_allclose([membrane[0], lumen[0]], whole[0], atol=0.02)
    assert membrane[1] < whole[1] < lumen[1]


def test_objects_have_a_colour_each_near_that_of_their_class():
    ids = np.arange(1, 31).reshape(5, 6)
    [mito] = figures.class_colours(["mito"])
    image = figures.object_colours(ids, mito)
    assert image.shape == (5, 6, 3)
    colours = image.reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) == 30
    hues = np.array([colorsys.rgb_to_hsv(*colour / 255)[0] for colour in colours])
    turn = hues - colorsys.rgb_to_hsv(*mito / 255)[0]
    assert np.abs((turn + 0.5) % 1 - 0.5).max() < 0.06


def test_objects_of_a_dim_class_are_of_all_hues():
    image = figures.object_colours(np.arange(1, 31)[None], figures.class_colours(["cell"])[0])
    hues = np.sort([colorsys.rgb_to_hsv(*colour / 255)[0] for colour in image[0]])
    assert np.diff(hues).max() < 0.1
    assert image.max(-1).min() > 100
    assert np.ptp(image.astype(int), axis=-1).max() < 70  # none as vivid as an organelle in it


def test_an_object_has_the_same_colour_in_every_slice():
    [mito] = figures.class_colours(["mito"])
    one_slice = figures.object_colours(np.array([[7, 9]]), mito)
    another = figures.object_colours(np.array([[1, 2, 9]]), mito)
    assert (one_slice[0, 1] == another[0, 2]).all()


def test_pictures_below_each_other_keep_their_pixels(tmp_path):
    upper = np.full((2, 3, 3), 10, np.uint8)
    lower = np.full((1, 3, 3), 20, np.uint8)
    path = tmp_path / "x" / "a.png"
    figures.write_png(path, figures.above([upper, lower], gap=1))
    with Image.open(path) as image:
        assert np.asarray(image)[..., 0].tolist() == [[10] * 3, [10] * 3, [210] * 3, [20] * 3]
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("nm_per_pixel", "length"), [(1, 50), (4, 200), (9, 200), (10, 500), (21, 1000), (1500, 50000)]
)
def test_a_scale_bar_is_as_long_as_its_text_says(nm_per_pixel, length):
    """The longest of 1, 2, 5, 10, ... within a quarter of 200 pixels."""
    plain = np.full((100, 200, 3), 90, np.uint8)
    image = figures.scale_bar(plain, nm_per_pixel)
    line = np.flatnonzero((image[90] != 90).any(-1))
    assert len(line) == round(length / nm_per_pixel) == line[-1] - line[0] + 1
    assert (plain == 90).all()
    assert (image[:70] == 90).all()


def test_a_legend_has_each_name_on_its_colour_within_the_width():
    colours = figures.class_colours(TESTED)
    image = figures.legend(TESTED, colours, 300)
    assert image.shape[1] == 300
    for colour in colours:
        lines = np.flatnonzero((image == colour).all(-1).sum(1) > 8)
        # a box of one line that its name does not hide
        assert len(lines) > 10
        assert np.ptp(lines) == 22


def test_a_legend_shows_the_colours_that_objects_have():
    [cell, er] = figures.class_colours(["cell", "er"])
    objects = figures.colours_of_objects([1, 2, 3], cell)
    image = figures.legend(["cell", "er"], [objects, er], 200)
    shown = {tuple(colour) for colour in image.reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in [*objects.tolist(), er.tolist()]} <= shown
    drawn = figures.object_colours(np.array([[1, 2, 3]]), cell)
    assert (drawn[0] == objects).all()


def test_a_text_too_long_for_its_column_is_cut():
    short = figures.text_line(["ab", "cd"], 200)
    long = figures.text_line(["ab " * 100, "cd"], 200)
    assert short.shape == long.shape
    np.testing.assert_array_equal(short[:, 100:], long[:, 100:])
    assert (long[:, 60:90] < 128).any()
    assert (long[:, 97:100] == 255).all()

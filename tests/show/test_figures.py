"""Pictures, by their pixels."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from PIL import Image

from common.classes import TESTED
from common.show import figures


def test_unknown_is_neither_negative_nor_positive():
    image = figures.colour_target(np.array([[1, 0, -1]]))
    assert image.tolist() == [[[255, 255, 255], [0, 0, 0], figures.UNKNOWN_RGB.tolist()]]


def test_a_panel_shows_raw_target_and_probability_side_by_side():
    raw, target, probability = (
        np.full((6, 8), 0.5),
        np.array([[1, 0], [0, -1]]),
        np.array([[1.0, 0.0], [0.5, 0.0]]),
    )
    image = figures.panel(raw, target, probability, scale=2)
    assert image.shape == (12, 2 * (8 + 2 + 2) + 12, 3)
    assert (image[0, :16] == 127).all()
    rows, columns = slice(4, 8), (slice(22, 26), slice(32, 36))
    assert image[rows, columns[0]][::2, ::2].tolist() == figures.colour_target(target).tolist()
    assert image[rows, columns[1]][::2, ::2, 0].tolist() == [[255, 0], [127, 0]]


def test_the_frame_is_what_the_target_covers():
    def framed(ratio: float) -> np.ndarray:
        target = np.zeros((4, 4))
        image = figures.panel(np.zeros((12, 12)), target, target, (ratio, ratio), scale=1)
        return np.argwhere((image[:, :12] == (255, 200, 0)).all(-1))

    assert framed(1).min(0).tolist() == [4, 4] and framed(1).max(0).tolist() == [7, 7]
    assert framed(2).min(0).tolist() == [2, 2] and framed(2).max(0).tolist() == [9, 9]
    assert len(framed(3)) == 0  # covers all of it: nothing to tell apart


def test_later_classes_are_painted_over_earlier_ones():
    volume = np.array([[[True, True, False]], [[False, True, False]]])
    colours = np.array([[10, 0, 0], [0, 20, 0]], np.uint8)
    assert figures.classes_in_colour(volume, [0, 1], colours).tolist() == [
        [[10, 0, 0], [0, 20, 0], [0, 0, 0]]
    ]
    assert figures.classes_in_colour(volume, [1, 0], colours).tolist() == [
        [[10, 0, 0], [10, 0, 0], [0, 0, 0]]
    ]


def test_what_is_half_opaque_shows_half_of_what_lies_under_it():
    shares = np.array([[[1.0, 0.5]], [[0.5, 0.5]]])
    colours = [
        np.array([100, 0, 0]),
        np.array([[[0, 200, 0], [0, 0, 80]]]),
    ]  # the second differs from pixel to pixel
    assert figures.classes_in_colour(shares, [0, 1], colours).tolist() == [
        [[50, 100, 0], [25, 0, 40]]
    ]


def test_the_largest_mask_is_painted_first():
    masks = np.zeros((4, 2, 5, 5), bool)
    masks[0, :, 2:3], masks[1], masks[3, 0, 0, 0] = True, True, True
    assert figures.largest_first(masks) == [1, 0, 3, 2]


def test_a_class_has_one_colour_in_all_pictures():
    assert (
        figures.class_colours(["er", "mine", "mito"])[1:].tolist()
        == figures.class_colours(["mine", "mito"]).tolist()
    )


def test_the_tested_classes_have_48_colours_that_can_be_told_apart():
    colours = figures.class_colours(TESTED).astype(int)
    difference = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(
        len(colours), dtype=int
    )
    assert difference.min() >= 15, np.array(TESTED)[np.argwhere(difference < 15)]


@pytest.mark.parametrize("whole", ["mito", "own"])
def test_parts_are_shades_of_their_whole(whole):
    """Of one hue; the membrane is the darkest."""
    whole, membrane, lumen = (
        colorsys.rgb_to_hls(*c / 255)
        for c in figures.class_colours([whole, f"{whole}_mem", f"{whole}_lum"])
    )
    np.testing.assert_allclose([membrane[0], lumen[0]], whole[0], atol=0.02)
    assert membrane[1] < whole[1] < lumen[1]


def test_objects_have_a_colour_each_near_that_of_their_class():
    ids = np.arange(1, 31).reshape(5, 6)
    [mito] = figures.class_colours(["mito"])
    image = figures.object_colours(ids, mito)
    assert image.shape == (5, 6, 3) and len(np.unique(image.reshape(-1, 3), axis=0)) == 30
    hues = np.array([colorsys.rgb_to_hsv(*c / 255)[0] for c in image.reshape(-1, 3)])
    turn = hues - colorsys.rgb_to_hsv(*mito / 255)[0]
    assert np.abs((turn + 0.5) % 1 - 0.5).max() < 0.11


def test_objects_of_a_dim_class_are_of_all_hues():
    image = figures.object_colours(np.arange(1, 31)[None], figures.class_colours(["cell"])[0])
    hues = np.sort([colorsys.rgb_to_hsv(*c / 255)[0] for c in image[0]])
    assert np.diff(hues).max() < 0.1 and image.max(-1).min() > 100


def test_an_object_has_the_same_colour_in_every_slice():
    [mito] = figures.class_colours(["mito"])
    assert (
        figures.object_colours(np.array([[7, 9]]), mito)[0, 1]
        == figures.object_colours(np.array([[1, 2, 9]]), mito)[0, 2]
    ).all()


def test_pictures_below_each_other_keep_their_pixels(tmp_path):
    a, b = np.full((2, 3, 3), 10, np.uint8), np.full((1, 3, 3), 20, np.uint8)
    figures.write_png(tmp_path / "x" / "a.png", figures.above([a, b], gap=1))
    with Image.open(tmp_path / "x" / "a.png") as image:
        assert np.asarray(image)[..., 0].tolist() == [[10] * 3, [10] * 3, [128] * 3, [20] * 3]


@pytest.mark.parametrize(
    ("nm_per_pixel", "length"), [(1, 50), (4, 200), (9, 200), (10, 500), (21, 1000), (1500, 50000)]
)
def test_a_scale_bar_is_as_long_as_its_text_says(nm_per_pixel, length):
    """The longest of 1, 2, 5, 10, ... within a quarter of 200 pixels; white, between a black outline."""
    plain = np.full((100, 200, 3), 90, np.uint8)
    image = figures.scale_bar(plain, nm_per_pixel)
    line = np.flatnonzero((image[90] != 90).any(-1))
    assert len(line) == round(length / nm_per_pixel) == line[-1] - line[0] + 1
    assert (plain == 90).all() and (image[:70] == 90).all()


def test_a_legend_has_each_name_on_its_colour_within_the_width():
    colours = figures.class_colours(TESTED)
    image = figures.legend(TESTED, colours, 300)
    assert image.shape[1] == 300
    for colour in colours:
        lines = np.flatnonzero((image == colour).all(-1).sum(1) > 8)
        assert (
            len(lines) > 10 and np.ptp(lines) == 22
        )  # a box of one line that its name does not hide


def test_a_text_too_long_for_its_column_is_cut():
    short, long = figures.text_line(["ab", "cd"], 200), figures.text_line(["ab " * 100, "cd"], 200)
    assert short.shape == long.shape
    np.testing.assert_array_equal(short[:, 100:], long[:, 100:])
    assert (long[:, 60:90] < 128).any() and (long[:, 97:100] == 255).all()

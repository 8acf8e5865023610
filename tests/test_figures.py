"""Pictures, by their pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from common import figures


def test_unknown_is_neither_negative_nor_positive():
    image = figures.colour_target(np.array([[1, 0, -1]]))
    assert image.tolist() == [[[255, 255, 255], [0, 0, 0], figures.UNKNOWN_RGB.tolist()]]


def test_a_panel_shows_raw_target_and_probability_side_by_side():
    raw, target, probability = np.full((6, 8), 0.5), np.array([[1, 0], [0, -1]]), np.array([[1.0, 0.0], [0.5, 0.0]])
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
    assert figures.classes_in_colour(volume, [0, 1], colours).tolist() == [[[10, 0, 0], [0, 20, 0], [0, 0, 0]]]


def test_pictures_below_each_other_keep_their_pixels(tmp_path):
    a, b = np.full((2, 3, 3), 10, np.uint8), np.full((1, 3, 3), 20, np.uint8)
    figures.write_png(tmp_path / "x" / "a.png", figures.above([a, b], gap=1))
    with Image.open(tmp_path / "x" / "a.png") as image:
        assert np.asarray(image)[..., 0].tolist() == [[10] * 3, [10] * 3, [128] * 3, [20] * 3]

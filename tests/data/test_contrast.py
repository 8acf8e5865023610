"""Volumes whose contrast is inverted beside others are told by the membranes in their labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.data.crops.opened import Crop
from common.data.samples.contrast import inverted, of_crop
from tests.data.test_crops import open_crop, write_crop

RANDOM = np.random.default_rng(1)


def crop_in(root: Path, membranes: float, around: float = 150, name: str = "pm") -> Crop:
    """A crop with a membrane across it, four voxels thick."""
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[6:10] = 1
    raw = np.where(labels, membranes, around) + RANDOM.normal(0, 20, labels.shape)
    raw = raw.clip(1, 255).astype(np.uint8)
    return open_crop(write_crop(root, raw, {name: labels}), (name,))


def test_membranes_are_as_much_darker_as_their_voxels_are(tmp_path):
    """100 less than what is around them, of which the deviation is 20."""
    assert of_crop(crop_in(tmp_path, membranes=50), ("pm",)) == pytest.approx(-5, abs=0.6)
    assert of_crop(crop_in(tmp_path, membranes=50), ("er",)) is None


@pytest.mark.parametrize(
    ("brightness", "name", "is_said"),
    [(200, "pm", True), (155, "pm", False), (100, "pm", False), (200, "lyso_mem", False)],
)
def test_a_volume_whose_membranes_are_bright_beside_dark_ones_is_said(
    tmp_path, brightness, name, is_said
):
    """Not where that is unclear, nor of membranes that may enclose what is darker."""
    dark = [crop_in(tmp_path / f"dark{number}", 100, name=name) for number in range(2)]
    other = crop_in(tmp_path / "other", brightness, name=name)
    said = inverted({"dark0": dark[:1], "dark1": dark[1:], "other": [other]}, (name,))
    assert len(said) == is_said
    if is_said:
        assert said[0].startswith("membranes are bright in other, and dark in dark0, dark1: the")


def test_volumes_that_are_all_bright_are_nothing_to_say(tmp_path):
    crops = {number: [crop_in(tmp_path / number, 200)] for number in "12"}
    assert inverted(crops, ("pm",)) == []

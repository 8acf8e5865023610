"""Seams that a function without a halo will leave are said before it is run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from common import talk
from common.infer.processing.seams import note_seams
from tests.infer.test_process import mean_of_27, opened, recipe


def above(logits):
    return logits > 0


def mean_of_sections(logits):
    """Over 5 x 5 voxels of each section."""
    return torch.nn.functional.avg_pool3d(logits, (1, 5, 5), 1, padding=(0, 2, 2)) > 0


def opening(logits):
    return ndimage.binary_opening(logits.numpy()[:, 0] > 0, np.ones((1, 1, 1, 3)))[:, None]


def of_whole_blocks(logits):
    assert logits.shape[2:] == (10, 10, 10)
    return mean_of_27(logits)


@pytest.mark.parametrize(
    ("function", "halo", "block", "is_said"),
    [
        (above, 0, (10, 10, 10), False),
        (mean_of_27, 0, (10, 10, 10), True),
        (mean_of_27, 1, (10, 10, 10), False),
        (mean_of_27, 0, (24, 24, 24), False),  # one block
        (mean_of_27, 0, (10, 24, 24), True),
        (mean_of_sections, 0, (10, 24, 24), False),
        (mean_of_sections, 0, (10, 10, 24), True),
        (opening, 0, (24, 24, 10), True),
        (of_whole_blocks, 0, (10, 10, 10), False),
    ],
)
def test_a_function_that_looks_beyond_its_block_without_a_halo_is_told(
    tmp_path, capfd, monkeypatch, function, halo, block, is_said
):
    monkeypatch.setattr(talk, "_noted", set())
    values = np.random.default_rng(1).normal(0.2, 1, (24, 24, 24)).astype(np.float32)
    note_seams(recipe(function, (halo,) * 3, block), "mito", opened(tmp_path, values))
    sentence = "note: process_config.py: process_func gives other masks at the edges of blocks"
    assert (sentence in capfd.readouterr().err) == is_said

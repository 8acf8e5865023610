"""One class in one crop: the dtype of ids does not count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from common.data import ngff
from common.score.judge import Truth, compare


def test_ids_in_wide_integers_score_as_in_narrow_ones():
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(20, 20, 20)), 1.5)
    objects, _ = ndimage.label(smooth > 0.1)
    wanted = objects.astype(np.uint8)
    found = np.roll(wanted, 1, 2)
    place = ngff.Level(Path("mito"), wanted, np.full(3, 8.0), np.zeros(3))
    truth_of_mito = Truth("crop", "mito", place, is_instance=True)
    narrow = compare(truth_of_mito, wanted, found)
    wide = compare(truth_of_mito, wanted.astype(np.uint64) << 40, found.astype(np.int64))
    assert narrow == wide and narrow.counts.tp > 0

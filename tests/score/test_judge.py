"""One class in one crop: the dtype of ids does not count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from common.data import ngff
from common.score.judge import Truth, compare, judge


def test_ids_in_wide_integers_score_as_in_narrow_ones():
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(20, 20, 20)), 1.5)
    objects, _ = ndimage.label(smooth > 0.1)
    wanted = objects.astype(np.uint8)
    found = np.roll(wanted, 1, 2)
    place = ngff.Level(Path("mito"), wanted, np.full(3, 8.0), np.zeros(3))
    truth_of_mito = Truth("crop", "mito", place, is_instance=True)
    narrow = compare(truth_of_mito, wanted, found)
    assert narrow.counts.tp > 0
    for kind in ("uint64", "int64", ">u2", ">i4"):
        assert compare(truth_of_mito, wanted.astype(kind), found.astype(kind)) == narrow


@pytest.mark.parametrize("kind", ["bool", ">u2", "<f4"])
@pytest.mark.parametrize("is_instance", [True, False])
def test_a_truth_of_any_kind_is_judged(tmp_path, kind, is_instance):
    """A mask of one object, as bool, in the other byte order and as floats."""
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[3:8, 3:8, 3:8] = 1
    for name, volume in (("wanted", mask.astype(kind)), ("found", mask)):
        ngff.write_multiscale(tmp_path / name, volume, (8, 8, 8))
    wanted, found = (ngff.open_levels(tmp_path / name)[0] for name in ("wanted", "found"))
    counts = judge(Truth("crop", "mito", wanted, is_instance), found).counts
    assert (counts.tp, counts.fp, counts.fn) == ((1 if is_instance else 125), 0, 0)

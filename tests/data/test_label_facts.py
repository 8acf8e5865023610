"""What labels are like, from one pass."""

from __future__ import annotations

import numpy as np
import pytest

from common.data.own import facts
from common.data.own.facts import look
from common.data.volumes.ngff import open_levels, write_multiscale
from common.errors import UserError

ANNOTATION = {
    "cellmap": {
        "annotation": {
            "annotation_type": {
                "type": "instance_segmentation",
                "encoding": {"absent": 0, "unknown": 255},
            }
        }
    }
}


def facts_of(tmp_path, volume, scale=(8, 8, 8), attributes=None):
    group = tmp_path / "labels"
    write_multiscale(group, volume, scale, chunk=16, attributes=attributes)
    return look(open_levels(group)[0], "mito")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(facts, "LEAST_BLOCK", 16)


def test_planes_are_counted_as_numpy_counts_them(tmp_path):
    volume = np.random.default_rng(0).integers(0, 2, (20, 33, 40), np.uint8)
    volume[:5, :7] = 255
    facts = facts_of(tmp_path, volume, attributes=ANNOTATION)
    for axis, others in enumerate([(1, 2), (0, 2), (0, 1)]):
        np.testing.assert_array_equal(facts.positive[axis], (volume == 1).sum(others))
        np.testing.assert_array_equal(facts.known[axis], (volume != 255).sum(others))


def test_labels_that_lost_a_chunk_are_refused_before_they_are_cut(tmp_path):
    volume = np.ones((32, 32, 32), np.uint8)
    about = {"cellmap": {"annotation": {"complement_counts": {"absent": 0}}}}
    write_multiscale(tmp_path / "labels", volume, (8, 8, 8), chunk=16, attributes=about)
    (tmp_path / "labels/s0/1/0/1").unlink()
    with pytest.raises(
        UserError, match="1 of 8 chunks are not there, and what they held is missed"
    ):
        look(open_levels(tmp_path / "labels")[0], "mito")


def test_a_wall_is_as_thick_as_it_was_drawn(tmp_path):
    volume = np.zeros((48, 48, 48), np.uint8)
    volume[:, 4:10] = 1  # of 6 voxels, far from the seams of blocks
    volume[:, 20:26] = 1
    volume[:, 36:42] = 1
    assert facts_of(tmp_path, volume, (50, 4, 4)).thickness_nm() == pytest.approx(6 * 4)


def test_the_ways_between_pieces_count_as_well(tmp_path):
    volume = np.ones((48, 48, 48), np.uint8)
    volume[:, :, 5:8] = 0
    volume[:, :, 21:24] = 0
    volume[:, :, 37:40] = 0
    assert facts_of(tmp_path, volume).thickness_nm() == pytest.approx(3 * 8)


def test_a_class_without_an_edge_has_no_thickness(tmp_path):
    assert facts_of(tmp_path, np.ones((16, 16, 16), np.uint8)).thickness_nm() == np.inf


@pytest.mark.parametrize(("apart", "crowded"), [(0, True), (2, True), (6, False)])
def test_objects_are_crowded_where_they_are_nearer_than_a_blurred_boundary(
    tmp_path, apart, crowded
):
    volume = np.zeros((16, 16, 16), np.uint16)
    volume[:, :, : 5 - apart // 2] = 7
    volume[:, :, 5 - apart // 2 + apart : 11] = 900
    facts = facts_of(tmp_path, volume, attributes=ANNOTATION)
    assert facts.is_crowded == crowded
    assert facts.objects == {7: np.sum(volume == 7), 900: np.sum(volume == 900)}


def test_the_box_is_that_of_what_is_positive(tmp_path):
    volume = np.zeros((30, 40, 20), np.uint8)
    volume[3, 10:20, 5] = 1
    volume[17, 10, 19] = 1
    low, high = facts_of(tmp_path, volume).box()
    assert (low.tolist(), high.tolist()) == ([3, 10, 5], [18, 20, 20])

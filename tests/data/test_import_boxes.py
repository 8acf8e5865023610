"""Blocks of imported labels: as many as asked for, apart from each other, nothing else left out."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from common.data.own.boxes import boxes
from common.errors import UserError


def labels(*shape, scale=(8, 8, 8)):
    """What is asked of a level."""
    size = np.array(scale, float)
    return SimpleNamespace(shape=np.array(shape), scale=size, grid=SimpleNamespace(shape=shape))


def bounds(cut) -> list[list[list[int]]]:
    return [np.transpose([box.start, box.stop]).tolist() for box in cut]


def test_blocks_lie_along_the_longest_axis_in_nm():
    cut = boxes(labels(50, 90, 100, scale=(40, 4, 4)), [], "2", 10)
    assert bounds(cut) == [[[0, 20], [0, 90], [0, 100]], [[30, 50], [0, 90], [0, 100]]]


def test_blocks_along_several_axes_have_gaps_between_all():
    cut = boxes(labels(103, 60, 47), [], "3,1,2", 4)
    assert len(cut) == 6
    for one, other in itertools.combinations(cut, 2):
        apart = np.maximum(one.start - other.stop, other.start - one.stop)
        assert apart.max() >= 4
    covered = sum(int(box.shape.prod()) for box in cut)
    assert covered == (103 - 8) * 60 * (47 - 4)
    lengths = {int(box.shape[0]) for box in cut}
    assert max(lengths) - min(lengths) <= 1


def test_the_gap_is_a_tenth_of_a_block_unless_given():
    first, second, *_ = boxes(labels(400, 50, 50), [], "4", None)
    assert second.start[0] - first.stop[0] == 10


def test_a_box_is_cut_into_blocks():
    cut = boxes(labels(100, 100, 100), ["10:70,:,20:"], "2", 2)
    # 60 x 100 x 80: along y
    assert bounds(cut) == [
        [[10, 70], [0, 49], [20, 100]],
        [[10, 70], [51, 100], [20, 100]],
    ]


@pytest.mark.parametrize(
    ("crops", "blocks", "gap", "words"),
    [
        ([], "1", None, "--blocks 1; write into how many blocks"),
        ([], "two", None, "--blocks two; write"),
        ([], "2,2", None, "--blocks 2,2; write"),
        ([], "100,100,2", 0, "--blocks 100,100,2; write .* from 2 to 10000"),
        ([], "4", 30, "no room for 4 blocks with gaps between in 50 x 60 x 70 voxels"),
        ([], "", 3, "--gap 3: between blocks; write --blocks 4, too"),
        (["0:10,0:10"], "", None, "--crop 0:10,0:10: no box within"),
        (["0:10,0:10,0:10,0:10"], "", None, "no box within"),
        (["0:10,a:10,0:10"], "", None, "no box within"),
    ],
)
def test_what_is_no_box_is_one_sentence(crops, blocks, gap, words):
    with pytest.raises(UserError, match=words):
        boxes(labels(50, 60, 70), crops, blocks, gap)

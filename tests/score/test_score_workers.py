"""Scores by several processes are of one version of the code."""

from __future__ import annotations

import pytest

from common.errors import FileError
from common.infer.made_by import scoring_hash
from common.score.workers import apply


def test_a_worker_of_another_version_scores_nothing():
    with pytest.raises(FileError, match=r"other code in .*numpy, scipy.* than its caller"):
        list(apply(abs, "another", [(4, -1)]))


def test_a_worker_of_the_callers_version_gives_numbers_and_results():
    assert list(apply(abs, scoring_hash(), [(4, -1), (5, -2)])) == [(4, 1), (5, 2)]

"""Scores by several processes are of one version of the code."""

from __future__ import annotations

import pytest

from common.errors import FileError
from common.infer.made_by import scoring_hash
from common.score import workers
from common.score.workers import apply, parallel


def test_a_worker_of_another_version_scores_nothing():
    with pytest.raises(FileError, match=r"other code in .*numpy, scipy.* than its caller"):
        list(apply(abs, "another", [(4, -1)]))


def test_a_worker_of_the_callers_version_gives_numbers_and_results():
    assert list(apply(abs, scoring_hash(), [(4, -1), (5, -2)])) == [(4, 1), (5, 2)]


class PoolOfThisProcess:
    """Takes the place of a pool of processes, which would import the engine for seconds."""

    def __init__(self, *_, **__):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def test_processes_of_this_machine_are_compared_too(monkeypatch):
    monkeypatch.setattr(workers, "ProcessPoolExecutor", PoolOfThisProcess)
    assert parallel(abs, [-1, -2], workers=2) == [1, 2]
    monkeypatch.setattr(workers, "scoring_hash", lambda: "another")
    with pytest.raises(FileError, match="this worker has other code"):
        parallel(abs, [-1, -2], workers=2)

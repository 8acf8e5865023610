"""Scoring takes what it needs and no more."""

from __future__ import annotations

from conftest import imported_with


def test_scoring_draws_no_pictures():
    packages = imported_with("common.score.challenge", "common.score.evaluate")
    assert not packages & {"PIL", "tensorboard", "matplotlib"}


def test_the_metric_and_submissions_need_no_torch():
    names = ("challenge", "quality", "interval", "result", "submission", "packing", "judge")
    packages = imported_with(*(f"common.score.{name}" for name in names))
    assert not packages & {"torch", "PIL", "tensorboard"}

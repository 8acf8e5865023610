"""Scoring takes what it needs and no more."""

from __future__ import annotations

import subprocess
import sys

from conftest import DEADLINE

from common.files import REPOSITORY


def imported_with(*modules: str) -> set[str]:
    """The packages that a fresh process holds after an import."""
    program = f"import sys, {', '.join(modules)}; print(*{{n.split('.')[0] for n in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    return set(done.stdout.split())


def test_scoring_draws_no_pictures():
    packages = imported_with("common.score.challenge", "common.score.evaluate")
    assert not packages & {"PIL", "tensorboard", "matplotlib"}


def test_the_metric_and_submissions_need_no_torch():
    names = ("challenge", "quality", "interval", "result", "submission", "packing", "judge")
    packages = imported_with(*(f"common.score.{name}" for name in names))
    assert not packages & {"torch", "PIL", "tensorboard"}

"""Blocks on worker processes: the same voxels, whoever dies, and whoever comes second."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES

from common.data.ngff import open_levels
from common.files import REPOSITORY
from common.train import checkpoint
from common.train.run import prepare

PROGRAM = [sys.executable, "-m", "cellmap_segmentation_challenge"]


@pytest.fixture
def tiny(experiment):
    """An experiment with a checkpoint of random weights."""
    made = experiment()
    config = made.config()
    setup, state = prepare(config)
    checkpoint.save_state(config, state, setup.crops.split_hash, "best")
    return made


def words(tiny, *more: object) -> list[str]:
    given = ["predict", tiny.folder, "--data", tiny.data, "--block", "8", *more]
    return [*PROGRAM, *map(str, given)]


def call(command: list[str], **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False, timeout=300
    )


def values(folder: Path) -> np.ndarray:
    levels = [open_levels(folder / name)[0] for name in CLASSES]
    return np.stack([level.read((0, 0, 0), level.shape) for level in levels])


def test_two_workers_give_what_one_process_gives(tiny):
    root = tiny.config().path("predictions_path")
    alone = call(words(tiny))
    assert alone.returncode == 0, alone.stderr
    (folder,) = map(Path, alone.stdout.split())
    expected = values(folder)
    shared = call(words(tiny, "--overwrite", "--workers", "2"))
    assert shared.returncode == 0, shared.stderr
    np.testing.assert_array_equal(values(folder), expected)
    assert expected.any()
    # nothing of the workers is left
    assert not [path for path in root.rglob(".*") if path.name[:3] not in (".za", ".zg")]

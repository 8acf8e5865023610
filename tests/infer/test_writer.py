"""Classes on disk while they are written: their levels, and damage to what describes them."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from common.data.volumes import ngff
from common.data.volumes.metadata import LEVELS_BY_BLOCK
from common.data.volumes.ngff import Grid, open_levels, slices
from common.data.volumes.records import PredictionRecord
from common.infer.predicting.writer import ClassVolume, open_class, reopen_class
from tests.infer.test_predict import Stop, files, predict_tiny, save_weights


@pytest.fixture
def tiny(experiment):
    made = experiment()
    save_weights(made)
    return made


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"shape": [1, 2, 3]}', None])
def test_a_class_whose_array_is_damaged_is_begun_anew_and_the_others_gone_on_with(
    tiny, damage, capfd
):
    place = predict_tiny(tiny, block=8)
    whole = files(place)
    shutil.rmtree(place)
    with pytest.raises(KeyboardInterrupt):
        predict_tiny(tiny, block=8, stopped=Stop(10))
    array = place / "mito" / "s0" / ".zarray"
    if damage is None:
        array.unlink()
    else:
        array.write_text(damage)
    capfd.readouterr()
    assert files(predict_tiny(tiny, block=8)) == whole
    said = capfd.readouterr().err
    assert said.count("begun anew") == 1
    assert "mito: cannot be gone on with" in said


def plan_of(shape: tuple[int, ...], block: tuple[int, ...], chunk: tuple[int, ...]):
    """What a class needs to know of its blocks."""
    grid = Grid(np.zeros(3), np.full(3, 8.0), shape)
    return SimpleNamespace(grid=grid, block_shape=block, chunk_shape=chunk)


SHAPE = (70, 150, 181)
PLANS = [
    # every level is made of whole blocks, or the first two or one only, or none
    (plan_of(SHAPE, (72, 152, 184), (36, 76, 92)), 2),
    (plan_of(SHAPE, (40, 80, 100), (20, 40, 50)), 2),
    (plan_of(SHAPE, (40, 40, 100), (20, 40, 50)), 1),
    (plan_of(SHAPE, (35, 75, 61), (35, 75, 61)), 0),
]


def volume() -> np.ndarray:
    """Noise, and nothing in a part of it."""
    values = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    values[:40, :80] = 0
    return values


def write_class(path: Path, plan, *, as_before: bool = False) -> ClassVolume:
    """All blocks, the last first; `as_before`: begun by an earlier version."""
    record = PredictionRecord(key="k", dtype="uint8")
    opened = open_class(path, plan, "mito", record)
    if as_before:
        attributes = zarr.open_group(str(path), mode="r+").attrs
        del attributes[LEVELS_BY_BLOCK]
        shutil.rmtree(path / "s2", ignore_errors=True)
        opened = reopen_class(path, plan)
    axes = zip(SHAPE, plan.block_shape, strict=True)
    corners = itertools.product(*[range(0, n, along) for n, along in axes])
    values = volume()
    for number, corner in reversed(list(enumerate(corners))):
        start = np.array(corner)
        stop = np.minimum(start + plan.block_shape, SHAPE)
        opened.write(number, start, values[slices(start, stop)])
    return opened


@pytest.mark.parametrize(("plan", "by_block"), PLANS)
def test_levels_are_the_means_whether_blocks_or_the_end_makes_them(tmp_path, plan, by_block):
    opened = write_class(tmp_path / "mito", plan)
    assert len(opened.levels) == 1 + by_block
    opened.finish()
    expected = volume()
    for level in open_levels(tmp_path / "mito"):
        np.testing.assert_array_equal(level.array[...], expected)
        expected = ngff.block_mean(expected, (2, 2, 2))
    assert len(open_levels(tmp_path / "mito")) == 3


@pytest.mark.parametrize(("plan", "by_block"), PLANS)
def test_a_class_that_an_earlier_version_began_becomes_the_same(tmp_path, plan, by_block):
    write_class(tmp_path / "new" / "mito", plan).finish()
    before = write_class(tmp_path / "old" / "mito", plan, as_before=True)
    assert len(before.levels) == 1 + min(by_block, 1)
    before.finish()
    assert files(tmp_path / "old") == files(tmp_path / "new")

"""The compiled interpolation against torch's grid_sample and SciPy."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

import numba
import numpy as np
import pytest
import torch
from conftest import imported_with
from scipy import ndimage

from common import compiled as compiled_by
from common.data.samples import augment, gather
from common.data.samples.sampling import rotation
from common.errors import UserError

TOLERANCE = 0 if platform.machine() == "x86_64" else 1e-6
"""Of 1: on other processors compilers contract products and sums, which rounds once less."""

SHAPES = [((14, 15, 16), (9, 11, 13)), ((1, 15, 16), (5, 4, 40)), ((3, 1, 1), (1, 8, 8))]
"""Of a block and of a patch, which reaches beyond the block's edge."""


def block_of(shape: tuple[int, ...], kind: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == torch.float32:
        return torch.rand(shape, generator=generator)
    return torch.randint(0, 200, shape, generator=generator, dtype=kind)


def turned(seed: int, block: tuple[int, ...], patch: tuple[int, ...]) -> np.ndarray:
    """An affine (3, 4) that rotates about all axes, its centre near that of the block."""
    random = np.random.default_rng(seed)
    linear = np.eye(3)
    for axis in "zyx":
        linear = rotation(axis, random.uniform(-np.pi, np.pi)) @ linear
    centre = (np.array(block) - 1) / 2 + random.uniform(-0.5, 0.5, 3)
    return np.concatenate([linear, (centre - linear @ (np.array(patch) - 1) / 2)[:, None]], axis=1)


def by_torch(
    block: torch.Tensor, affine: np.ndarray, shape: tuple[int, ...], **options: str
) -> torch.Tensor:
    """The same as another device computes it."""
    grid = augment._grid(augment._columns(block, affine), shape)
    return augment._grid_sample(block, grid, **options)


@pytest.mark.parametrize(("size", "shape"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_linear_equals_grid_sample(size, shape, seed):
    block = block_of(size)
    affine = turned(seed, size, shape)
    expected = by_torch(block, affine, shape, mode="bilinear", padding_mode="border")
    [found] = augment.resample_linear([block], [affine], shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_uint8_equals_the_same_values_in_float():
    block = block_of((14, 15, 16), torch.uint8)
    affine = turned(1, block.shape, (9, 9, 9))
    both = augment.resample_linear([block, block.float()], [affine, affine], (9, 9, 9))
    assert both[0].std() > 10
    assert both[0].equal(both[1])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
@pytest.mark.parametrize(("size", "shape"), SHAPES)
def test_nearest_equals_grid_sample(size, shape, kind):
    block = block_of(size, kind)
    affine = turned(2, size, shape)
    expected = by_torch(block, affine, shape, mode="nearest", padding_mode="zeros")
    [found] = augment.resample_nearest([block], [affine], shape)
    assert (found == 0).any() and (found > 0).any()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(14, 15, 16), (1, 15, 16)])
def test_any_places_equal_scipy_and_what_other_devices_compute(size):
    """Places are scattered over the block and beyond."""
    block = block_of(size)
    random = np.random.default_rng(0)
    extent = np.array(size)[:, None, None, None]
    places = random.uniform(-0.2, 1.2, (3, 6, 7, 8)) * extent
    expected = ndimage.map_coordinates(block.double(), places, order=1, mode="nearest")
    at = torch.from_numpy(places).float()
    np.testing.assert_allclose(augment.resample_linear_at(block, at), expected, atol=3e-6)
    grid = augment._grid_of_places(block, at)
    other = augment._grid_sample(block, grid, mode="bilinear", padding_mode="border")
    np.testing.assert_allclose(other, expected, atol=1e-5)


@pytest.fixture
def torch_threads():
    """Sets the number of torch's threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_any_number_of_threads_gives_the_same(monkeypatch, torch_threads):
    shape = (7, 9, 11)
    block = block_of((14, 15, 16), torch.uint8)
    affine = turned(0, block.shape, shape)
    places = 12 * torch.rand((3, *shape), generator=torch.Generator().manual_seed(0))

    def all_three() -> list[torch.Tensor]:
        return [
            augment.resample_linear([block], [affine], shape)[0],
            augment.resample_linear_at(block, places),
            augment.resample_nearest([block], [affine], shape)[0],
        ]

    torch_threads(1)
    expected = all_three()
    monkeypatch.setattr(gather, "VOXELS_PER_THREAD", 1)
    for number in (2, 3, 50):
        torch_threads(number)
        for found, alone in zip(all_three(), expected, strict=True):
            assert found.equal(alone)


def test_the_compiler_is_told_that_arrays_do_not_overlap():
    """numba's own documentation does not name the flag: a version without it would be slow."""

    def add(source, result):
        for i in range(result.size):
            result[i] += source[i]

    told = numba.njit(pipeline_class=compiled_by.ArraysDoNotOverlap)(add)
    untold = numba.njit(add)
    for compiled in (told, untold):
        compiled(np.ones(3), np.ones(3))
    # where arrays may overlap, the loop is made of vector instructions behind a check
    assert "vector.memcheck" in untold.inspect_llvm(untold.signatures[0])
    assert "vector.memcheck" not in told.inspect_llvm(told.signatures[0])


def loaded_anew() -> ModuleType:
    """The module once more, beside the one that is imported."""
    found = importlib.util.spec_from_file_location("gather_anew", gather.__file__)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_compiled_code_is_kept_beside_the_module_or_in_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    beside = Path(gather.__file__).parent
    assert Path(loaded_anew()._linear.stats.cache_path) == beside / "__pycache__"
    common = beside.parents[1]
    monkeypatch.setattr(
        os, "access", lambda path, mode: common not in (Path(path), *Path(path).parents)
    )
    importlib.reload(compiled_by)
    assert tmp_path / "cache" in Path(loaded_anew()._linear.stats.cache_path).parents


def test_without_numba_a_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "common.compiled")
    monkeypatch.delitem(sys.modules, "common.data.samples.gather")
    monkeypatch.delattr("common.data.samples.gather")
    block = block_of((5, 5, 5))
    with pytest.raises(UserError, match=r"numba.*pip install numba"):
        augment.resample_linear([block], [turned(0, block.shape, (3, 3, 3))], (3, 3, 3))


def test_numba_is_imported_where_a_patch_is_turned_on_a_cpu_and_not_before():
    assert "numba" not in imported_with("common.data.samples.loaders")

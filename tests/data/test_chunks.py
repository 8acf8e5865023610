"""Chunks written as files: the bytes that zarr would leave, and nothing half written."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from common.data.volumes import ngff
from common.data.volumes.ngff import PARTIAL, ChunkedArray, Grid, chunked_array, slices

SHAPE = (13, 8, 10)
CHUNKS = (4, 4, 5)


def array_at(path: Path, dtype: str) -> zarr.Array:
    """An empty array of which the last chunk along z sticks out."""
    grid = Grid(np.zeros(3), np.full(3, 8.0), SHAPE)
    return ngff.start_multiscale(path, grid, np.dtype(dtype), CHUNKS)


def stored(array: zarr.Array) -> ChunkedArray:
    return chunked_array(Path(array.store.path) / array.path)


def files(path: Path) -> dict[str, bytes]:
    found = [file for file in path.rglob("*[0-9]") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


def values_of(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Random numbers, in one corner only 0."""
    values = np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)
    values[:4, :4, :5] = 0
    return values


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint64", "float16", "float32"])
def test_the_files_are_those_that_zarr_writes(tmp_path, dtype):
    ours = array_at(tmp_path / "ours", dtype)
    zarrs = array_at(tmp_path / "zarrs", dtype)
    # the last time over what is there
    for first, stop, seed in ((0, 8, 1), (8, 13, 2), (4, 13, 3)):
        start = np.array([first, 0, 0])
        values = values_of((stop - first, 8, 10), dtype, seed)
        stored(ours).put(start, values)
        zarrs[slices(start, start + values.shape)] = values
        written = files(tmp_path / "ours" / "s0")
        assert written == files(tmp_path / "zarrs" / "s0")
        np.testing.assert_array_equal(ours[first:stop], values)
    assert len(written) == 14


def test_values_that_are_not_side_by_side_in_memory_are_written(tmp_path):
    array = array_at(tmp_path, "uint8")
    values = values_of((10, 8, 13), "uint8", 0).transpose(2, 1, 0)
    stored(array).put(np.zeros(3, int), values)
    np.testing.assert_array_equal(array[...], values)


def test_a_chunk_of_zeros_is_taken_away(tmp_path):
    array = array_at(tmp_path, "float32")
    chunk = np.ones(CHUNKS, np.float32)
    stored(array).put(np.array([4, 4, 5]), chunk)
    assert list(files(tmp_path / "s0")) == ["1/1/1"]
    stored(array).put(np.array([4, 4, 5]), 0 * chunk)
    assert not files(tmp_path / "s0")


def test_a_chunk_of_one_voxel_that_is_not_zero_is_kept(tmp_path):
    array = array_at(tmp_path, "uint8")
    chunk = np.zeros(CHUNKS, np.uint8)
    chunk[-1, -1, -1] = 1
    stored(array).put(np.zeros(3, int), chunk)
    assert array[3, 3, 4] == 1


def test_a_write_that_fails_leaves_the_chunk_as_it_was(tmp_path):
    chunks = (64, 64, 64)
    grid = Grid(np.zeros(3), np.full(3, 8.0), chunks)
    array = ngff.start_multiscale(tmp_path, grid, np.uint8, chunks)
    before = np.full(chunks, 7, np.uint8)
    stored(array).put(np.zeros(3, int), before)
    # random numbers do not compress: a file of 262 kB
    after = np.random.default_rng(0).integers(0, 256, chunks, np.uint8)
    with files_of_at_most(100_000), pytest.raises(OSError, match="File too large"):
        stored(array).put(np.zeros(3, int), after)
    np.testing.assert_array_equal(array[...], before)
    assert list(files(tmp_path / "s0")) == ["0/0/0"]
    assert not [file for file in tmp_path.rglob("*") if file.name.endswith(PARTIAL)]


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let this process write no more bytes than that into a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_box_is_read_over_chunks_that_are_stored_or_not(tmp_path):
    array = array_at(tmp_path, "uint8")
    values = values_of(SHAPE, "uint8", 0)
    stored(array).put(np.zeros(3, int), values)
    for start, stop in (((0, 0, 0), SHAPE), ((3, 1, 4), (13, 7, 6)), ((1, 1, 1), (3, 3, 3))):
        box = slices(start, stop)
        found = stored(array).get(box)
        np.testing.assert_array_equal(found, values[box])

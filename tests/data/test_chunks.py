"""Chunks written as files: the bytes that zarr would leave, and nothing half written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from common.data.volumes import ngff
from common.data.volumes.chunks import chunk_files
from common.data.volumes.ngff import Grid, slices

SHAPE = (13, 8, 10)
CHUNKS = (4, 4, 5)


def array_at(path: Path, dtype: str) -> zarr.Array:
    """An empty array of which the last chunk along z sticks out."""
    grid = Grid(np.zeros(3), np.full(3, 8.0), SHAPE)
    return ngff.start_multiscale(path, grid, np.dtype(dtype), CHUNKS)


def files(path: Path) -> dict[str, bytes]:
    found = [file for file in path.rglob("*[0-9]") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


def values_of(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Random numbers, in one corner only 0."""
    values = np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)
    values[:4, :4, :5] = 0
    return values


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_the_files_are_those_that_zarr_writes(tmp_path, dtype):
    ours = array_at(tmp_path / "ours", dtype)
    zarrs = array_at(tmp_path / "zarrs", dtype)
    # the last time over what is there
    for first, stop, seed in ((0, 8, 1), (8, 13, 2), (4, 13, 3)):
        start = np.array([first, 0, 0])
        values = values_of((stop - first, 8, 10), dtype, seed)
        chunk_files(ours).put(start, values)
        zarrs[slices(start, start + values.shape)] = values
        written = files(tmp_path / "ours" / "s0")
        assert written == files(tmp_path / "zarrs" / "s0")
        np.testing.assert_array_equal(ours[first:stop], values)
    assert len(written) == 14


def test_values_that_are_not_side_by_side_in_memory_are_written(tmp_path):
    array = array_at(tmp_path, "uint8")
    values = values_of((10, 8, 13), "uint8", 0).transpose(2, 1, 0)
    chunk_files(array).put(np.zeros(3, int), values)
    np.testing.assert_array_equal(array[...], values)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_chunk_of_zeros_is_taken_away(tmp_path, zero):
    array = array_at(tmp_path, "float32")
    chunk = np.ones(CHUNKS, np.float32)
    chunk_files(array).put(np.array([4, 4, 5]), chunk)
    assert list(files(tmp_path / "s0")) == ["1/1/1"]
    chunk_files(array).put(np.array([4, 4, 5]), zero * chunk)
    assert not files(tmp_path / "s0")


def test_a_chunk_of_one_voxel_that_is_not_zero_is_kept(tmp_path):
    array = array_at(tmp_path, "uint8")
    chunk = np.zeros(CHUNKS, np.uint8)
    chunk[-1, -1, -1] = 1
    chunk_files(array).put(np.zeros(3, int), chunk)
    assert array[3, 3, 4] == 1


def test_a_write_that_fails_leaves_the_chunk_as_it_was(tmp_path, monkeypatch):
    array = array_at(tmp_path, "uint8")
    before = np.full(CHUNKS, 7, np.uint8)
    chunk_files(array).put(np.zeros(3, int), before)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="No space"):
        chunk_files(array).put(np.zeros(3, int), before + 1)
    np.testing.assert_array_equal(array[:4, :4, :5], before)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_box_is_read_over_chunks_that_are_stored_or_not(tmp_path):
    array = array_at(tmp_path, "uint8")
    values = values_of(SHAPE, "uint8", 0)
    chunk_files(array).put(np.zeros(3, int), values)
    for start, stop in (((0, 0, 0), SHAPE), ((3, 1, 4), (13, 7, 6)), ((1, 1, 1), (3, 3, 3))):
        box = slices(start, stop)
        found = chunk_files(array).get(box)
        np.testing.assert_array_equal(found, values[box])

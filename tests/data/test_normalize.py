"""How raw volumes of different contrast are made alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from common.data.crops import normalize
from common.data.crops.normalize import Scaling, choose_tiles, measure
from common.data.volumes.ngff import (
    Grid,
    block_mean,
    finish_multiscale,
    open_levels,
    start_multiscale,
    write_multiscale,
)
from common.data.volumes.raw import open_raw
from common.errors import UserError

RANDOM = np.random.default_rng(3)


def grey(shape: tuple[int, ...], mean: float = 120, deviation: float = 20) -> np.ndarray:
    """Noise as of EM, uint8."""
    return RANDOM.normal(mean, deviation, shape).clip(1, 254).astype(np.uint8)


def measured(path: Path, scale=(8, 8, 8), raw_range=()) -> Scaling:
    raw = open_raw(path, scale, raw_range)
    return measure(raw, choose_tiles(raw))


def expected(values: np.ndarray) -> tuple[float, float, float, float]:
    """Percentiles, mean and deviation of values in [0, 1], by their definition."""
    low, high = np.percentile(values, (0.5, 99.5))
    between = ((values - low) / (high - low)).clip(0, 1)
    return low, high, between.mean(), between.std()


def numbers(scaling: Scaling) -> tuple[float, float, float, float]:
    return scaling.low, scaling.high, scaling.mean, scaling.deviation


# What is measured


def test_a_small_volume_is_measured_whole(tmp_path):
    volume = grey((40, 32, 70))
    write_multiscale(tmp_path / "raw", volume, (8, 8, 8), chunk=16)
    whole = volume[:, :, :68].astype(float) / 255  # whole cells of 4
    found = measured(tmp_path / "raw")
    np.testing.assert_allclose(numbers(found), expected(whole), rtol=1e-6)
    assert found.shape == (40, 32, 70)


def test_what_is_measured_are_the_averaged_voxels_that_the_network_reads(tmp_path):
    """The mean of eight voxels has less noise, and its percentiles lie closer."""
    volume = grey((64, 64, 64))
    write_multiscale(tmp_path / "raw", volume, (8, 8, 8))
    averaged = block_mean(volume, (2, 2, 2)) / 255
    found = measured(tmp_path / "raw", scale=(16, 16, 16))
    np.testing.assert_allclose(numbers(found), expected(averaged), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_raw_of_other_types_is_measured_in_parts_of_its_range(tmp_path, dtype):
    volume = RANDOM.normal(2000, 300, (32, 32, 32)).astype(dtype)
    write_multiscale(tmp_path / "raw", volume, (8, 8, 8))
    in_range = ((volume.astype(np.float32) - 1000) / 2000).clip(0, 1)
    found = measured(tmp_path / "raw", raw_range=(1000, 3000))
    np.testing.assert_allclose(numbers(found), expected(in_range), rtol=1e-5)


def test_the_range_of_8_bit_raw_counts(tmp_path):
    volume = grey((32, 32, 32))
    write_multiscale(tmp_path / "raw", volume, (8, 8, 8))
    in_range = ((volume.astype(float) - 50) / 150).clip(0, 1)
    found = measured(tmp_path / "raw", raw_range=(50, 200))
    np.testing.assert_allclose(numbers(found), expected(in_range), rtol=1e-6)


@pytest.mark.parametrize("padding", [0, 255])
def test_padding_is_left_out(tmp_path, padding):
    volume = np.full((64, 64, 64), padding, np.uint8)
    volume[:32] = grey((32, 64, 64))
    write_multiscale(tmp_path / "raw", volume, (8, 8, 8))
    whole = volume[:32].astype(float) / 255
    np.testing.assert_allclose(numbers(measured(tmp_path / "raw")), expected(whole), rtol=1e-6)


def test_a_few_chunks_of_a_large_volume_are_found(tmp_path):
    """As of a volume of which only the surroundings of a crop were downloaded."""
    grid = Grid(np.zeros(3), np.full(3, 8.0), (3000, 3000, 3000))
    array = start_multiscale(tmp_path / "raw", grid, np.uint8, (16, 16, 16))
    block = grey((16, 16, 32))
    array[1600:1616, 320:336, 1024:1056] = block
    finish_multiscale(tmp_path / "raw", grid, [], block_mean)
    whole = block.astype(float) / 255
    np.testing.assert_allclose(numbers(measured(tmp_path / "raw")), expected(whole), rtol=1e-6)


def test_of_a_huge_volume_no_more_is_read_than_of_a_large_one(tmp_path, monkeypatch):
    monkeypatch.setattr(normalize, "_is_on_disk", lambda *_: True)
    shape = (20_000, 30_000, 40_000)
    grid = Grid(np.zeros(3), np.full(3, 8.0), shape)
    start_multiscale(tmp_path / "raw", grid, np.uint8, (64, 64, 64))
    finish_multiscale(tmp_path / "raw", grid, [], block_mean)
    tiles = choose_tiles(open_raw(tmp_path / "raw", (8, 8, 8)))
    starts = np.array([tile.start for tile in tiles])
    stops = np.array([tile.stop for tile in tiles])
    assert len(tiles) == 8**3 and (stops - starts == 16).all()
    # from one end to the other
    np.testing.assert_array_equal(starts.min(0), 0)
    np.testing.assert_array_equal(stops.max(0), shape)


def test_a_volume_without_contrast_is_refused(tmp_path):
    write_multiscale(tmp_path / "raw", np.full((32, 32, 32), 7, np.uint8), (8, 8, 8))
    with pytest.raises(UserError, match=r"no contrast .*set raw_normalization = 'range'"):
        measured(tmp_path / "raw")


# What is on record


def scaling_of(tiny, known=None, **settings) -> Scaling:
    config = tiny.config(**{"raw_normalization": "zscore", **settings})
    (scaling,) = normalize.of_volumes(config, [tiny.raw, tiny.raw], known or {}).values()
    return scaling


def change_raw(tiny) -> None:
    level = open_levels(tiny.raw)[0]
    array = zarr.open_array(str(level.path), mode="r+")
    array[...] = 255 - array[...]


def test_a_volume_is_measured_once(experiment, monkeypatch):
    tiny = experiment()
    first = scaling_of(tiny)
    monkeypatch.setattr(normalize, "measure", None)
    assert scaling_of(tiny) == first


def test_percentile_is_zscore_without_mean_and_deviation(experiment):
    tiny = experiment()
    first = scaling_of(tiny)
    assert (first.mean, first.deviation) != (0, 1)
    percentile = scaling_of(tiny, raw_normalization="percentile")
    assert percentile == Scaling(first.low, first.high, 0, 1, first.shape)


@pytest.mark.parametrize(("raw_range", "stored"), [((), (0, 255)), ((60, 180), (60, 180))])
def test_values_are_given_as_they_are_stored(experiment, raw_range, stored):
    scaling = scaling_of(experiment(), raw_normalization="values", raw_range=raw_range)
    values = torch.linspace(*stored, 25)
    unit = (values - stored[0]) / (stored[1] - stored[0])
    raw = unit.clone().view(1, 1, 1, 5, 5)
    given = normalize.standardize(normalize.to_unit_range(raw, scaling), scaling)
    torch.testing.assert_close(given.flatten(), values, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(normalize.in_unit_range(given, [scaling]).flatten(), unit)


def test_a_volume_that_changed_is_measured_anew(experiment):
    tiny = experiment()
    first = scaling_of(tiny)
    change_raw(tiny)
    assert scaling_of(tiny).low == pytest.approx(1 - first.high, abs=1e-6)


def test_a_damaged_record_in_the_cache_is_made_again(experiment):
    tiny = experiment()
    first = scaling_of(tiny)
    (file,) = (tiny.config().path("cache_path") / "raw_scalings").iterdir()
    for damage in ("", "{}", '{"low": "0", "high": 1, "shape": [1]}', "[1]"):
        file.write_text(damage)
        assert scaling_of(tiny) == first


def test_what_is_on_record_stays_in_force(experiment):
    tiny = experiment()
    name = "tiny/tiny.zarr/recon-1/em/fibsem-uint8"
    known = Scaling(0.1, 0.9, 0.5, 0.2, (56, 56, 56))
    assert scaling_of(tiny, {name: known}) == known
    # of another volume that lies in its place
    other = Scaling(0.1, 0.9, 0.5, 0.2, (56, 56, 57))
    assert scaling_of(tiny, {name: other}) == scaling_of(tiny)


def test_a_record_is_read_as_it_was_written():
    scaling = Scaling(0.1, 0.7, 0.45, 0.21, (3, 4, 5))
    assert Scaling.of(scaling.record()) == scaling


# What becomes of raw


def test_patches_are_scaled_by_the_volumes_that_they_are_of():
    raw = torch.rand((3, 1, 4, 5, 6))
    dark = Scaling(0.1, 0.5, 0.4, 0.2)
    bright = Scaling(0.3, 0.9)
    given = [dark, None, bright]
    found = torch.stack(list(map(normalize.to_unit_range, raw.clone(), given)))
    first = ((raw[0] - 0.1) / 0.4).clamp(0, 1)
    torch.testing.assert_close(found[0], first)
    assert torch.equal(found[1], raw[1])
    torch.testing.assert_close(found[2], ((raw[2] - 0.3) / 0.6).clamp(0, 1))
    standard = torch.stack(list(map(normalize.standardize, found.clone(), given)))
    torch.testing.assert_close(standard[0], (first - 0.4) / 0.2)
    assert torch.equal(standard[1:], found[1:])
    torch.testing.assert_close(normalize.in_unit_range(standard, given), found)


def test_a_volume_becomes_mean_0_and_deviation_1(tmp_path):
    volume = grey((64, 64, 64), 90, 9)
    write_multiscale(tmp_path / "raw", volume, (8, 8, 8))
    scaling = measured(tmp_path / "raw")
    raw = torch.from_numpy(volume)[None, None].float() / 255
    found = normalize.standardize(normalize.to_unit_range(raw, scaling), scaling)
    assert float(found.mean()) == pytest.approx(0, abs=1e-3)
    assert float(found.std()) == pytest.approx(1, abs=1e-3)

"""Weights that were trained on raw of another range are told by their batch normalisation."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from common.model import seen_range


def trained_on(white: float, raw: torch.Tensor) -> nn.Module:
    """A network whose batch normalisation has seen raw in [0, 1] times `white`."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.BatchNorm3d(4), nn.Conv3d(4, 3, 3)
    )
    with torch.no_grad():
        for _ in range(150):
            model(white * raw)
    return model


@pytest.fixture
def raw() -> torch.Tensor:
    """Two patches with soft structure, of 20^3 voxels as the tiny experiment's."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(2, 1, 7, 7, 7, generator=generator)
    return nn.functional.interpolate(coarse, (20, 20, 20), mode="trilinear")


@pytest.fixture
def notice(experiment):
    """The sentence about a network, with settings over those of the tiny experiment."""
    config = experiment().config()

    def of(model: nn.Module, **settings) -> str:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        said = seen_range.notice(dataclasses.replace(config, **settings), model)
        assert model.training
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        return said

    return of


def test_raw_of_0_to_255_in_training_is_told_by_its_setting(notice, raw):
    said = notice(trained_on(255, raw))
    assert said.endswith(
        "times what raw of 0 to 1 makes: it was probably trained on raw of 0 to 255; set "
        "raw_normalization = 'values'"
    )
    assert not notice(trained_on(255, raw), raw_normalization="values")


def test_raw_of_0_to_1_in_training_is_told_by_its_setting(notice, raw):
    assert not notice(trained_on(1, raw))
    said = notice(trained_on(1, raw), raw_normalization="values")
    assert said.endswith("trained on raw of 0 to 1; set raw_normalization = 'range'")


def test_where_neither_range_fits_no_setting_is_named(notice, raw):
    said = notice(trained_on(1 / 255, raw))
    assert "times what raw of 0 to 1 makes" in said and "set" not in said


@pytest.mark.parametrize(
    "model",
    [
        nn.Conv3d(1, 3, 3),
        nn.Sequential(nn.Conv3d(1, 3, 3), nn.InstanceNorm3d(3)),
        nn.Sequential(nn.Conv3d(1, 3, 3), nn.BatchNorm3d(3, track_running_stats=False)),
    ],
)
def test_a_network_without_statistics_says_nothing(notice, model):
    assert not notice(model)
    assert not notice(model, raw_normalization="zscore")

"""What is said of a run before it begins."""

from __future__ import annotations

import pytest
from torch import nn

from common.errors import UserError
from common.model.unet3d import build_unet3d
from common.train import setup


def network(pools: int) -> nn.Module:
    return build_unet3d(("a", "b", "c"), widths=(4,) + (2**pools,) * (pools - 1))


def test_batch_norm_over_single_patches_is_told(experiment):
    config = experiment(batch_size=1).config()
    (sentence,) = setup.single_patches(config, nn.Sequential(nn.Conv3d(1, 3, 1), nn.BatchNorm3d(3)))
    assert "batch_size = 1 with batch normalisation" in sentence
    assert setup.single_patches(config, nn.Conv3d(1, 3, 1)) == []
    many = experiment("many", batch_size=2).config()
    assert setup.single_patches(many, nn.BatchNorm3d(3)) == []


def test_batch_norm_over_one_voxel_is_refused(experiment):
    patch = {"shape": (16, 16, 16), "scale": (8, 8, 8)}
    tiny = experiment(batch_size=1, input_array_info=patch, target_array_info=patch)
    model = network(4).eval()
    with pytest.raises(UserError, match=r"pooled to one voxel; write batch_size = 2"):
        setup.single_patches(tiny.config(), model)
    assert not model.training

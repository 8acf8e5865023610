"""A pass in training mode that leaves a network as it was."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from common.model.passing import in_training_mode


def test_a_network_that_cannot_be_copied_is_what_it_was_after_a_pass():
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Dropout()).eval()
    model.lock = threading.Lock()
    with pytest.warns(FutureWarning):
        model[0] = torch.nn.utils.weight_norm(model[0])
    model[1].train()
    gradient = torch.ones(2)
    model[1].weight.grad = gradient
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffer = model[1].running_mean
    with in_training_mode(model):
        assert model[2].training
        model(torch.randn(2, 1, 3, 3, 3)).sum().backward()
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert model[1].running_mean is buffer
    assert model[1].weight.grad is gradient and model[0].bias.grad is None
    assert [module.training for module in model] == [False, True, False]

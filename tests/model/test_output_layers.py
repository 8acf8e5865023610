"""The layers that a network's outputs come from."""

from __future__ import annotations

import torch
from torch import nn

from common.model.forward import ForwardPass
from common.model.output_layers import output_layers
from common.runtime import Precision

OUTPUTS = ForwardPass(Precision("fp32", "cpu"), channels_last=False).outputs
SHAPE = (6, 6, 6)


def test_the_last_convolution_is_found_whatever_its_kernel():
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU(), nn.Conv3d(2, 2, 3))
    assert output_layers(model, OUTPUTS, SHAPE) == [{"2.weight", "2.bias"}]


def test_what_is_added_up_cropped_and_enlarged_is_looked_through():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv3d(1, 2, 1)
            self.main = nn.Conv3d(2, 2, 3)
            self.side = nn.Conv3d(2, 2, 1, bias=False)

        def forward(self, raw):
            features = torch.relu(self.first(raw))
            cropped = self.side(features)[..., 1:-1, 1:-1, 1:-1]
            return nn.functional.interpolate(self.main(features) + cropped, scale_factor=2)

    found = output_layers(Network(), OUTPUTS, SHAPE)
    assert found == [{"main.weight", "main.bias", "side.weight"}]


def test_an_output_that_comes_from_something_else_has_none():
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    assert output_layers(model, OUTPUTS, SHAPE) == [set()]


def test_each_output_has_its_own():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine = nn.Conv3d(1, 2, 3)
            self.coarse = nn.Conv3d(1, 2, 3, stride=2)

        def forward(self, raw):
            return [self.fine(raw), self.coarse(raw)]

    names = [{f"{name}.weight", f"{name}.bias"} for name in ("fine", "coarse")]
    assert output_layers(Network(), OUTPUTS, SHAPE) == names


def test_a_network_that_needs_values_has_no_list():
    class Network(nn.Module):
        def forward(self, raw):
            return raw * float(raw.max())

    assert output_layers(Network(), OUTPUTS, SHAPE) == []

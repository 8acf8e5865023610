"""What a network takes and needs, against what a real pass gives and saves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.model.forward import ForwardPass
from common.model.shapes import Shapes
from common.model.unet import build_unet
from common.runtime import Precision

FORWARD = ForwardPass(Precision("fp32", "cpu"), channels_last=False)


def test_the_steps_of_a_network_are_found_by_trying():
    """The U-Net takes 44, 48, ... voxels and loses 40. A convolution alone takes any number."""
    unet = Shapes(build_unet(["mito"], 8), FORWARD)
    assert [unet.takes((n, n, n)) for n in (40, 44, 46, 48)] == [False, True, False, True]
    assert unet.step((68, 68, 68)) == 4
    assert unet.output((68, 72, 76)) == (28, 32, 36)
    assert Shapes(nn.Conv3d(1, 2, 3), FORWARD).step((9, 9, 9)) == 1


def test_a_network_without_a_step_has_step_0():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.Unflatten(1, (1, 2, 2, 2)))
    model(torch.rand(1, 1, 4, 4, 4))
    assert Shapes(model, FORWARD).step((4, 4, 4)) == 0


def test_a_2d_network_is_asked_for_patches_one_voxel_thick():
    model = nn.Sequential(nn.Conv2d(1, 2, 5), nn.MaxPool2d(2), nn.Upsample(scale_factor=2))
    flat = Shapes(model, FORWARD)
    assert flat.output((1, 20, 24)) == (1, 16, 20)
    assert flat.output((20, 1, 24)) == (16, 1, 20)
    assert not flat.takes((1, 4, 4))


def test_training_memory_is_what_autograd_saves_and_weights_and_the_largest_layer():
    """Conv 1 -> 4 on 10^3 saves its input (1000 voxels), ReLU, the largest layer, its output."""
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU())
    weights = (4 * 27 + 4) * 16
    layer = 4 * 8**3 * 4
    a_patch = 1000 * 4 + layer + 2 * (2 * layer) + 4 * layer
    shapes = Shapes(model, FORWARD)
    assert shapes.training_bytes((10, 10, 10), batch_size=3) == weights + 3 * a_patch


def test_frozen_layers_save_nothing_and_half_precision_halves_activations():
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU()).requires_grad_(False)
    weights = (4 * 27 + 4) * 4
    layer = 4 * 8**3 * 4
    shapes = Shapes(model, FORWARD, half=True)
    expected = weights + 0.5 * (2 * (2 * layer) + 4 * layer)
    assert shapes.training_bytes((10, 10, 10), batch_size=1) == expected


def test_the_estimate_counts_what_a_real_step_saves():
    shape = (48, 44, 52)
    model = build_unet(["mito", "er"], 8)
    saved = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(torch.zeros(1, 1, *shape))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    size = sum(storage.nbytes() for where, storage in saved.items() if where not in weights)
    shapes = Shapes(model, FORWARD)
    assert shapes.output(shape) == tuple(logits.shape[2:])
    patch = shapes.activations(shape)
    assert patch.logits == logits.numel() * 4
    assert patch.saved == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("several", [list, tuple, lambda two: dict(zip("ab", two, strict=True))])
def test_of_several_outputs_the_first_is_asked_for(several):
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine = nn.Conv3d(1, 2, 3)

        def forward(self, raw):
            fine = self.fine(raw)
            return several([fine, nn.functional.avg_pool3d(fine, 2)])

    assert Shapes(Deep(), FORWARD).output((10, 10, 10)) == (8, 8, 8)


def test_the_network_is_left_as_it_was():
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Shapes(model, FORWARD).training_bytes((6, 6, 6), batch_size=1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Shared(nn.Module):
    """A layer under two names, as nnU-Net's encoder is, and another layer with its weights."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv3d(1, 1, 3)
        self.same_layer = self.layer
        self.same_weights = nn.Conv3d(1, 1, 3)
        self.same_weights.weight = self.layer.weight

    def forward(self, raw):
        return self.same_weights(self.same_layer(self.layer(raw)))


def test_a_network_with_a_layer_under_two_names_is_left_as_it_was():
    model = Shared()
    before = dict(model.named_parameters())
    assert Shapes(model, FORWARD).output((10, 10, 10)) == (4, 4, 4)
    after = dict(model.named_parameters())
    assert [after[name] is tensor for name, tensor in before.items()] == [True] * 3
    assert model.same_weights.weight is model.layer.weight

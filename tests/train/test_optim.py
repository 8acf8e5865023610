"""Optimiser steps by hand, class weights and the prior of the output layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from common.model.output_layers import calibrate_output, start_output_at
from common.train.losses import weighted_bce
from common.train.losses.priors import positive_weights, prior_logits
from common.train.optimising.optim import build_optimizer, build_scheduler


def test_decay_is_decoupled_as_in_a_step_by_hand():
    """RAdam's first steps are unrectified.

    w <- w - lr * weight_decay * w, then w <- w - lr * bias-corrected mean gradient.
    """
    layer = nn.Linear(3, 2)
    optimizer = build_optimizer(layer, learning_rate=0.1, weight_decay=0.5)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    gradient = torch.arange(6.0).view(2, 3)
    layer.weight.grad, layer.bias.grad = gradient.clone(), torch.ones(2)
    optimizer.step()
    assert torch.allclose(layer.weight, weight * (1 - 0.1 * 0.5) - 0.1 * gradient, atol=1e-6)
    assert torch.allclose(layer.bias, bias - 0.1, atol=1e-6)  # not decayed


def test_decay_shrinks_weights_that_get_no_gradient():
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    optimizer = build_optimizer(layer, learning_rate=0.1, weight_decay=0.5)
    layer.weight.grad, layer.bias.grad = torch.zeros(2, 3), torch.zeros(2)
    optimizer.step()
    assert torch.allclose(layer.weight, before * 0.95)


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    held = [p for group in build_optimizer(model, 0.1, 0.0).param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model[1].parameters()}


def test_a_given_optimizer_is_used():
    optimizer = build_optimizer(nn.Linear(2, 2), 0.3, 0.1, torch.optim.AdamW)
    assert type(optimizer) is torch.optim.AdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {group["lr"] for group in optimizer.param_groups} == {0.3}


@pytest.mark.parametrize(("higher_is_better", "mode"), [(True, "max"), (False, "min")])
def test_plateau_knows_which_way_is_better_and_min_lr_holds(higher_is_better, mode):
    optimizer = build_optimizer(nn.Linear(2, 2), 0.1, 0.0)
    kwargs = {"patience": 0, "factor": 0.1, "min_lr": 0.05}
    scheduler = build_scheduler(
        optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau, kwargs, higher_is_better
    )
    assert scheduler.mode == mode
    for _ in range(3):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_positive_weights_are_background_over_foreground_with_a_cap():
    foreground, background = np.array([10.0, 1.0, 0.0, 5.0]), np.array([20.0, 1e8, 1e8, 0.0])
    assert positive_weights(foreground, background, 100.0).tolist() == [2.0, 100.0, 1.0, 1.0]


def test_prior_is_the_constant_with_the_least_loss():
    foreground, background = np.array([3.0]), np.array([7.0])
    weights = np.array([2.0], np.float32)
    target = torch.tensor([1] * 3 + [0] * 7, dtype=torch.int8).view(1, 1, 1, 1, 10)
    logit = torch.tensor(prior_logits(foreground, background, weights)).requires_grad_()
    weighted_bce(logit.expand(target.shape), target, torch.from_numpy(weights)).backward()
    assert logit.item() == pytest.approx(math.log(2 * 3 / 7))
    assert abs(logit.grad.item()) < 1e-6


def test_the_first_prediction_is_near_the_prior():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Conv3d(4, 2, 1))
    start_output_at(model, np.array([-3.0, 1.0], np.float32))
    logits = model(torch.rand(1, 1, 6, 6, 6))
    assert (logits[0, 0] + 3).abs().max() < 0.05 and (logits[0, 1] - 1).abs().max() < 0.05


def test_the_first_loss_of_the_unet_is_that_of_the_prior():
    from common.model.unet import build_unet

    torch.manual_seed(0)
    model, raw = build_unet(["mito", "er"], 8), torch.rand(1, 1, 44, 44, 44)
    prior = np.array([-2.0, 0.5], np.float32)
    far = (model(raw).detach() - torch.from_numpy(prior).view(1, 2, 1, 1, 1)).abs().max()
    start_output_at(model, prior)
    near = (model(raw).detach() - torch.from_numpy(prior).view(1, 2, 1, 1, 1)).abs().max()
    assert near < 0.2 < 1 < far


def test_each_output_starts_at_the_prior_and_a_shared_layer_serves_the_finest():
    """The coarse output is layer a, the fine one the sum of a and b: b carries the logits."""
    model = nn.ModuleDict({"a": nn.Conv3d(4, 2, 1), "b": nn.Conv3d(4, 2, 1)})
    prior = np.array([-3.0, 1.0], np.float32)
    start_output_at(model, prior, [{"a.bias", "b.bias"}, {"a.bias"}])
    assert model["a"].bias.tolist() == [0.0, 0.0]
    assert model["b"].bias.tolist() == prior.tolist()
    start_output_at(model, prior, [{"b.bias"}, {"a.bias"}])
    assert model["a"].bias.tolist() == model["b"].bias.tolist() == prior.tolist()


def test_a_model_without_an_output_layer_is_named():
    with pytest.raises(ValueError, match="init_output_to_prior = False"):
        start_output_at(nn.Sequential(nn.Conv3d(1, 3, 3)), np.zeros(3, np.float32))


def test_a_network_that_ends_in_a_wider_kernel_starts_at_the_prior_and_inner_layers_stay():
    """The inner layer has one channel per class, too, by chance."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU(), nn.Conv3d(2, 2, 3))
    inner = model[0].weight.clone()
    outputs = [set(dict(model.named_parameters()))]
    ends = [{"2.weight", "2.bias"}]
    start_output_at(model, np.array([-3.0, 1.0], np.float32), outputs, ends=ends)
    logits = model(torch.rand(1, 1, 6, 6, 6))
    assert (logits[0, 0] + 3).abs().max() < 0.05 and (logits[0, 1] - 1).abs().max() < 0.05
    assert torch.equal(model[0].weight, inner)


def test_a_calibrated_output_has_the_mean_of_the_prior_and_the_size_asked_for(experiment):
    from common.data.samples.batches import training_batches
    from common.train.setup import prepare

    tiny = experiment(init_logit_rms=0.5, num_workers=2)
    config = tiny.config()
    setup, state = prepare(config)
    weights = setup.method.pos_weight.numpy()
    prior = prior_logits(setup.data.foreground, setup.data.background, weights)
    first = next(training_batches(config, setup.data, setup.device).between(0, 2))
    with torch.no_grad():
        logits = setup.method.forward(state.model, first.raw)
        torch.testing.assert_close(logits.mean((0, 2, 3, 4)), torch.tensor(prior))
        output = state.model[-1]
        added = logits - output.bias.view(1, 3, 1, 1, 1)
    sizes = added.square().mean((0, 2, 3, 4)).sqrt()
    torch.testing.assert_close(sizes, torch.full((3,), 0.5))


def test_a_calibrated_output_without_a_prior_is_refused(experiment):
    with pytest.raises(ValueError, match=r"init_logit_rms = 0.5 with init_output_to_prior = False"):
        experiment(init_logit_rms=0.5, init_output_to_prior=False).config()


def test_each_output_is_calibrated_by_itself():
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Conv3d(4, 2, 1), "b": nn.Conv3d(4, 2, 1)})
    prior = np.array([-3.0, 1.0], np.float32)
    names = [{"b.weight", "b.bias"}, {"a.weight", "a.bias"}]
    raw = 1 + torch.rand(1, 4, 5, 5, 5)

    def measure():
        shift = 6 * model["a"].bias.view(1, 2, 1, 1, 1)
        coarse = 7 * model["a"](raw) - shift
        return [model["b"](raw).detach(), coarse.detach()]

    start_output_at(model, prior, names, factor=1.0)
    calibrate_output(model, prior, names, measure=measure, rms=0.7)
    for logits in measure():
        torch.testing.assert_close(logits.mean((0, 2, 3, 4)), torch.from_numpy(prior))
    for layer, factor in (("b", 1), ("a", 7)):
        added = factor * nn.functional.conv3d(raw, model[layer].weight)
        sizes = added.square().mean((0, 2, 3, 4)).sqrt()
        torch.testing.assert_close(sizes, torch.full((2,), 0.7))

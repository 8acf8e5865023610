"""Losses of a softmax, against torch, numbers by hand and one-hot labels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from common.data.samples.targets import PaletteTarget
from common.train.losses.categorical import (
    categorical_dice_loss,
    categorical_focal_loss,
    dice_focal,
    true_channel,
)

LOSSES = [categorical_focal_loss, categorical_dice_loss, dice_focal]


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that want a gradient, and the true channel of each voxel; -1 is unknown."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator, requires_grad=True)
    truth = torch.randint(-1, 3, (2, 4, 5, 6), generator=generator)
    return logits, truth


def labels_of(truth: torch.Tensor) -> torch.Tensor:
    """One-hot labels (B, 3, z, y, x) int8; -1 in all channels where nothing is known."""
    one_hot = F.one_hot(truth.clamp(min=0), 3).movedim(-1, 1).to(torch.int8)
    return one_hot.masked_fill((truth < 0).unsqueeze(1), -1)


def palette_of(truth: torch.Tensor) -> PaletteTarget:
    palette = torch.cat([torch.full((1, 3), -1), torch.eye(3)]).to(torch.int8)
    return PaletteTarget((truth + 1).int(), palette)


def test_half_a_probability_costs_a_quarter_of_a_quarter_of_log_2():
    logits = torch.zeros(1, 2, 1, 1, 1)
    target = torch.tensor([1, 0], dtype=torch.int8).view(1, 2, 1, 1, 1)
    loss = categorical_focal_loss(logits, target, alpha=0.25, gamma=2)
    assert loss.item() == pytest.approx(0.25 * 0.25 * math.log(2))
    assert loss.item() == pytest.approx(0.0433, abs=1e-4)


def test_without_gamma_it_is_torchs_cross_entropy_of_the_known_voxels(case):
    logits, truth = case
    expected = F.cross_entropy(logits, truth, ignore_index=-1)
    loss = categorical_focal_loss(logits, labels_of(truth), gamma=0)
    assert torch.allclose(loss, expected)
    weight = torch.tensor([1.0, 2.0, 5.0])
    known = (truth >= 0).sum()
    expected = F.cross_entropy(logits, truth, weight, ignore_index=-1, reduction="sum") / known
    loss = categorical_focal_loss(logits, labels_of(truth), weight, gamma=0)
    assert torch.allclose(loss, expected)


def test_dice_of_a_drawn_case():
    """Two voxels of probabilities 0.8 and 0.2, and 0.2 and 0.8, the first class true of both."""
    logits = torch.tensor([[0.8, 0.2], [0.2, 0.8]]).log().view(1, 2, 1, 1, 2)
    target = torch.tensor([[1, 1], [0, 0]], dtype=torch.int8).view(1, 2, 1, 1, 2)
    assert categorical_dice_loss(logits, target).item() == pytest.approx(1 - 2 * 1.0 / (1.0 + 2))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_palette_image_and_nan_give_the_loss_of_dense_labels(case, loss):
    logits, truth = case
    labels = labels_of(truth)
    expected = loss(logits, labels)
    assert torch.equal(loss(logits, palette_of(truth)), expected)
    assert torch.equal(loss(logits, labels.float().masked_fill(labels < 0, torch.nan)), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_unknown_voxels_get_no_gradient_and_the_others_do(case, loss):
    logits, truth = case
    loss(logits, labels_of(truth)).backward()
    gradient = logits.grad.movedim(1, -1)
    assert (gradient[truth < 0] == 0).all()
    assert (gradient[truth >= 0] != 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_known_is_zero_with_zero_gradient(loss):
    logits = torch.ones(1, 3, 2, 2, 2, requires_grad=True)
    value = loss(logits, torch.full(logits.shape, -1, dtype=torch.int8))
    value.backward()
    assert value == 0 and (logits.grad == 0).all()


def test_a_sure_and_right_voxel_has_a_gradient_of_zero_for_any_gamma():
    logits = torch.tensor([200.0, 0.0]).view(1, 2, 1, 1, 1).requires_grad_()
    target = torch.tensor([1, 0], dtype=torch.int8).view(1, 2, 1, 1, 1)
    categorical_focal_loss(logits, target, gamma=0.5).backward()
    assert (logits.grad == 0).all()


def test_one_positive_channel_is_enough_and_of_several_the_last_is_true():
    # the second voxel is not known to be negative of the others
    labels = torch.tensor([[1, -1, 1, 0], [0, 1, 1, 0]]).view(1, 2, 1, 1, 4)
    truth, known = true_channel(labels)
    assert truth.flatten().tolist() == [0, 1, 1, 0]
    assert known.flatten().tolist() == [True, True, True, False]

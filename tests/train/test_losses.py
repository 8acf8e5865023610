"""Losses against torch on the known voxels."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from common.config.as_text import as_text
from common.data.samples.targets import PaletteTarget, count_known
from common.errors import UserError
from common.train.losses import (
    WeightedSum,
    bce_dice,
    class_weighted_bce,
    dice_loss,
    focal_loss,
    tversky_loss,
    weighted_bce,
    weighted_sum,
)
from common.train.losses.frequency import FrequencyWeightedBCE

EVERY_LOSS = {
    "bce": weighted_bce,
    "dice": dice_loss,
    "dice of samples": partial(dice_loss, per_sample=True, smooth=1.0),
    "tversky": tversky_loss,
    "tversky of samples": partial(tversky_loss, alpha=0.9, beta=0.2, per_sample=True, smooth=1.0),
    "focal": focal_loss,
    "focal with alpha": partial(focal_loss, gamma=1.5, alpha=0.25),
    "bce and dice": bce_dice,
    "bce of classes": partial(class_weighted_bce, class_weight=torch.tensor([0.2, 0.3, 0.5])),
    "sum": partial(weighted_sum, losses=((0.3, focal_loss), (2.0, tversky_loss))),
}


@pytest.fixture(params=EVERY_LOSS.values(), ids=EVERY_LOSS.keys())
def criterion(request):
    return request.param


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator, requires_grad=True)
    target = torch.randint(-1, 2, logits.shape, generator=generator, dtype=torch.int8)
    return logits, target, torch.tensor([1.0, 3.0, 10.0])


def test_weighted_bce_is_torchs_on_the_known_voxels(case):
    logits, target, pos_weight = case
    known = target >= 0
    weights = pos_weight.view(1, 3, 1, 1, 1).expand_as(logits)[known]
    reference = F.binary_cross_entropy_with_logits(
        logits[known], target[known].float(), pos_weight=weights
    )
    assert torch.allclose(weighted_bce(logits, target, pos_weight), reference, rtol=1e-6)


def test_unknown_voxels_get_no_gradient_and_the_others_do(case, criterion):
    logits, target, pos_weight = case
    criterion(logits, target, pos_weight).backward()
    assert (logits.grad[target < 0] == 0).all()
    assert (logits.grad[target >= 0] != 0).all()


def test_half_unknown_does_not_halve_the_loss():
    target = torch.zeros(1, 1, 2, 2, 2, dtype=torch.int8)
    target[..., 0] = -1
    assert weighted_bce(torch.zeros(target.shape), target).item() == pytest.approx(0.6931472)


def test_nothing_known_is_zero_with_zero_gradient():
    logits = torch.ones(1, 1, 2, 2, 2, requires_grad=True)
    loss = weighted_bce(logits, torch.full(logits.shape, -1, dtype=torch.int8))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_nan_in_a_float_target_is_unknown_too(case, criterion):
    logits, target, pos_weight = case
    as_float = target.float().masked_fill(target < 0, torch.nan)
    assert criterion(logits, as_float, pos_weight) == criterion(logits, target, pos_weight)


def test_a_logit_that_is_nan_shows_in_the_loss(case, criterion):
    logits, target, _ = case
    broken = logits.detach().clone()
    broken[target >= 0] = torch.nan
    assert criterion(broken, target).isnan()


def test_loss_of_half_precision_logits_is_float32(case, criterion):
    logits, target, pos_weight = case
    assert criterion(logits.bfloat16(), target, pos_weight).dtype == torch.float32


# ---- against MONAI, where everything is known


def monai_focal(gamma: float, alpha: float | None):
    return pytest.importorskip("monai.losses").FocalLoss(gamma=gamma, alpha=alpha, reduction="mean")


def monai_dice(per_sample: bool, smooth: float):
    return pytest.importorskip("monai.losses").DiceLoss(
        sigmoid=True, batch=not per_sample, smooth_nr=smooth, smooth_dr=max(smooth, 1e-12)
    )


def monai_tversky(alpha: float, beta: float, per_sample: bool, smooth: float):
    return pytest.importorskip("monai.losses").TverskyLoss(
        sigmoid=True,
        alpha=alpha,
        beta=beta,
        batch=not per_sample,
        smooth_nr=smooth,
        smooth_dr=max(smooth, 1e-12),
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (focal_loss, monai_focal, {"gamma": 2.0, "alpha": None}),
        (focal_loss, monai_focal, {"gamma": 1.5, "alpha": 0.25}),
        (dice_loss, monai_dice, {"per_sample": False, "smooth": 0.0}),
        (dice_loss, monai_dice, {"per_sample": True, "smooth": 3.0}),
        (
            tversky_loss,
            monai_tversky,
            {"alpha": 0.3, "beta": 0.7, "per_sample": False, "smooth": 0.0},
        ),
        (
            tversky_loss,
            monai_tversky,
            {"alpha": 0.9, "beta": 0.2, "per_sample": True, "smooth": 2.0},
        ),
    ],
)
def test_a_loss_is_monais_where_everything_is_known(palette_case, ours, theirs, options):
    rows = palette_case[0].rows
    target = PaletteTarget(rows, palette_case[0].palette.clamp(min=0))
    logits = 3 * torch.randn(2, 3, 20, 21, 22, generator=torch.Generator().manual_seed(3))
    found = logits.clone().requires_grad_()
    reference = logits.clone().requires_grad_()
    loss = ours(found, target, **options)
    expected = theirs(**options)(reference, target.dense().float())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(found.grad, reference.grad, rtol=1e-3, atol=1e-9)


def test_focal_loss_without_gamma_is_cross_entropy(case):
    logits, target, pos_weight = case
    found = focal_loss(logits, target, pos_weight, gamma=0.0)
    torch.testing.assert_close(found, weighted_bce(logits, target, pos_weight))


def test_a_class_that_a_sample_lacks_is_left_out_of_it():
    target = torch.zeros(2, 1, 1, 1, 4, dtype=torch.int8)
    target[0, ..., :2] = 1
    logits = torch.full(target.shape, 50.0)
    assert dice_loss(logits, target, per_sample=True).item() == pytest.approx(1 - 4 / 6)
    assert dice_loss(logits, target).item() == pytest.approx(1 - 4 / 10)


def test_a_weighted_sum_is_that_of_its_parts(case):
    losses = ((0.5, weighted_bce), (2.0, dice_loss))
    expected = 0.5 * weighted_bce(*case) + 2 * dice_loss(*case)
    torch.testing.assert_close(weighted_sum(*case, losses=losses), expected)


def test_dice_loss_of_a_drawn_case():
    target = torch.tensor([1, 1, 0, 0, -1], dtype=torch.int8).view(1, 1, 1, 1, 5)
    logits = torch.tensor([100.0, -100.0, 100.0, -100.0, 100.0]).view(1, 1, 1, 1, 5)
    assert dice_loss(logits, target).item() == pytest.approx(1 - 2 * 1 / (2 + 2))


def test_dice_loss_leaves_out_classes_without_a_positive():
    target = torch.zeros(1, 2, 1, 1, 4, dtype=torch.int8)
    target[0, 0, ..., :2] = 1
    logits = torch.full(target.shape, 50.0)
    assert dice_loss(logits, target).item() == pytest.approx(1 - 2 * 2 / (2 + 4))


@pytest.fixture
def palette_case() -> tuple[PaletteTarget, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    palette = torch.randint(-1, 2, (7, 3), generator=generator, dtype=torch.int8)
    rows = torch.randint(0, 7, (2, 20, 21, 22), generator=generator, dtype=torch.int32)
    return PaletteTarget(rows, palette), torch.tensor([1.0, 3.0, 10.0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_the_loss_of_a_palette_image_is_that_of_its_dense_target(palette_case, layout, criterion):
    """The volume is larger than a chunk, and its last chunk is not full."""
    target, pos_weight = palette_case
    logits = 3 * torch.randn(2, 3, 20, 21, 22, generator=torch.Generator().manual_seed(2))
    by_palette, by_dense = (
        logits.contiguous(memory_format=layout).requires_grad_() for _ in range(2)
    )
    found, reference = (
        criterion(by_palette, target, pos_weight),
        criterion(by_dense, target.dense(), pos_weight),
    )
    found.backward(), reference.backward()
    assert found.item() == pytest.approx(reference.item(), rel=1e-6)
    assert torch.allclose(by_palette.grad, by_dense.grad, rtol=1e-4, atol=1e-10)


def test_unknown_voxels_of_a_palette_image_get_no_gradient_and_the_others_do(
    palette_case, criterion
):
    target, pos_weight = palette_case
    logits = torch.randn(2, 3, 20, 21, 22, requires_grad=True)
    criterion(logits, target, pos_weight).backward()
    assert (logits.grad[target.dense() < 0] == 0).all()
    assert (logits.grad[target.dense() >= 0] != 0).all()


def test_known_pairs_are_counted_alike(palette_case):
    target, _ = palette_case
    assert count_known(target) == count_known(target.dense()) == (target.dense() >= 0).sum()


def test_a_weighted_sum_of_modules_is_that_of_its_parts_and_keeps_their_state(case):
    logits, target, pos_weight = case
    counting = FrequencyWeightedBCE(3, samples=1)
    loss = WeightedSum([(2.0, counting), (0.5, dice_loss)])
    value = loss(logits, target, pos_weight)
    parts = 2 * counting.eval()(logits, target, pos_weight) + 0.5 * dice_loss(logits, target)
    assert torch.equal(value, parts)
    assert set(loss.state_dict()) == {
        "modules_among.0.class_weight",
        "modules_among.0.counts",
        "modules_among.0.seen",
    }
    assert "dice_loss" in as_text(loss)


def test_a_sum_that_would_lose_the_state_of_a_module_is_refused(case):
    logits, target, _ = case
    with pytest.raises(UserError, match="whose state would be lost; write WeightedSum"):
        weighted_sum(logits, target, losses=[(1.0, FrequencyWeightedBCE(3))])

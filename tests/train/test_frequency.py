"""Weights that follow the annotated frequency: two steps by hand, absent classes, continuation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from common.data.samples.targets import PaletteTarget
from common.errors import UserError
from common.train.losses import class_weighted_bce
from common.train.losses.frequency import FrequencyWeightedBCE, balanced
from common.train.processes import together


def labels_of(*positive: int, voxels: int = 64) -> torch.Tensor:
    """(1, classes, 1, 1, voxels) int8 labels with so many positive voxels of each class."""
    labels = torch.zeros(1, len(positive), 1, 1, voxels, dtype=torch.int8)
    for channel, count in enumerate(positive):
        labels[:, channel, ..., :count] = 1
    return labels


def weights_after(loss: FrequencyWeightedBCE, labels: torch.Tensor) -> list[float]:
    loss(torch.zeros(labels.shape), labels)
    return loss.class_weight.tolist()


def test_weights_of_the_published_counts():
    counts = torch.tensor([[4_000_000.0, 800_000, 150_000], [4_950_000.0] * 3])
    weights = balanced(counts, torch.full((3,), 1 / 3))
    assert weights.tolist() == pytest.approx([0.0306, 0.1531, 0.8163], abs=5e-5)


def test_two_steps_by_hand():
    loss = FrequencyWeightedBCE(classes=2, alpha=0.25, samples=1)
    # 1/32 and 1/8 of the first: 1 : 4
    assert weights_after(loss, labels_of(32, 8)) == pytest.approx([0.2, 0.8])
    # 16 and 16: each 0.5, a quarter of the way
    assert weights_after(loss, labels_of(16, 16)) == pytest.approx([0.275, 0.725])
    # a class that is absent holds its weight, and the others share what is left
    assert weights_after(loss, labels_of(0, 16)) == pytest.approx([0.275, 0.725])


def test_the_loss_is_that_of_the_weights_by_hand():
    loss = FrequencyWeightedBCE(classes=2, samples=1)
    labels = labels_of(32, 8)
    logits = torch.randn(labels.shape, generator=torch.Generator().manual_seed(0))
    means = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
    expected = 0.2 * means[:, 0].mean() + 0.8 * means[:, 1].mean()
    assert loss(logits, labels).item() == pytest.approx(expected.item())


def test_the_first_samples_are_pooled_and_then_the_average_moves():
    loss = FrequencyWeightedBCE(classes=2, alpha=0.5, samples=2)
    weights_after(loss, labels_of(32, 0))
    assert loss.class_weight.tolist() == pytest.approx([0.5, 0.5])
    assert weights_after(loss, labels_of(0, 8)) == pytest.approx([0.2, 0.8])
    assert weights_after(loss, labels_of(8, 8)) == pytest.approx([0.35, 0.65])


def test_three_classes_of_which_one_is_absent():
    before = torch.tensor([0.2, 0.3, 0.5])
    weights = balanced(torch.tensor([[0.0, 10, 40], [100.0, 100, 100]]), before)
    assert weights.tolist() == pytest.approx([0.2, 0.64, 0.16])


def test_frequency_is_that_of_the_annotated_voxels():
    labels = labels_of(16, 16)
    labels[:, 1, ..., 32:] = -1  # half of these are positive, a quarter of those
    loss = FrequencyWeightedBCE(classes=2, samples=1)
    assert weights_after(loss, labels) == pytest.approx([2 / 3, 1 / 3])


def test_a_palette_image_gives_the_loss_and_the_weights_of_its_dense_labels():
    palette = torch.tensor([[-1, 0, 1], [1, 1, -1], [0, 1, 0], [-1, -1, -1]], dtype=torch.int8)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 4, (2, 4, 5, 6), dtype=torch.int32, generator=generator)
    target = PaletteTarget(rows, palette)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator, requires_grad=True)
    pos_weight = torch.tensor([1.0, 3.0, 10.0])
    gradients, weights, values = [], [], []
    nan = target.dense().float().masked_fill(target.dense() < 0, torch.nan)
    for form in (target, target.dense(), nan):
        loss = FrequencyWeightedBCE(classes=3)
        value = loss(logits, form, pos_weight)
        gradients += torch.autograd.grad(value, logits)
        weights.append(loss.class_weight)
        values.append(value.item())
    assert values == pytest.approx([values[0]] * 3)
    for k in (1, 2):
        assert torch.allclose(gradients[k], gradients[0])
        assert torch.equal(weights[k], weights[0])
    assert (gradients[0][target.dense() < 0] == 0).all()


def test_equal_weights_give_plain_cross_entropy_over_known_pairs():
    labels = labels_of(5, 9)
    labels[..., 20:] = -1
    logits = torch.randn(labels.shape, generator=torch.Generator().manual_seed(0))
    known = labels >= 0
    expected = F.binary_cross_entropy_with_logits(logits[known], labels[known].float())
    loss = class_weighted_bce(logits, labels, class_weight=torch.full((2,), 0.3))
    assert torch.allclose(loss, expected)


def test_validation_moves_nothing():
    loss = FrequencyWeightedBCE(classes=2).eval()
    assert weights_after(loss, labels_of(32, 8)) == [0.5, 0.5]


def test_processes_pool_what_they_count(monkeypatch):
    """Two processes that count the same: what is summed over them is twice that of one."""
    monkeypatch.setattr(together, "summed", lambda part: 2 * part)
    loss = FrequencyWeightedBCE(classes=2, samples=4)
    weights_after(loss, labels_of(32, 8))
    assert loss.counts.tolist() == [[64, 16], [128, 128]]
    assert loss.seen == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"classes": 2, "alpha": 0.0}, r"alpha = 0.0; write a number in \(0, 1\]"),
        ({"classes": 2, "samples": 0}, "samples = 0; write 1 or more"),
        ({"classes": 3}, r"is given 2 channels; write criterion_kwargs = \{'classes': 2\}"),
    ],
)
def test_what_cannot_be_is_told(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        weights_after(FrequencyWeightedBCE(**arguments), labels_of(1, 1))


RUN = """
    from common.train.losses.frequency import FrequencyWeightedBCE
    from common.train.losses import WeightedSum, dice_loss

    criterion = WeightedSum
    _bce = FrequencyWeightedBCE(3, alpha=0.3, samples=4)
    criterion_kwargs = {"losses": [(1.0, _bce), (0.5, dice_loss)]}
    weight_loss = False
    """


def test_a_run_in_parts_has_the_weights_of_a_whole_one(experiment):
    tiny = experiment(text=RUN, epochs=4)
    saved = {}
    for run in ("whole", "parts"):
        if run == "parts":
            tiny.train(run_name=run, epochs=2)
        result = tiny.train(run_name=run)
        saved[run] = torch.load(result.checkpoint.with_name("latest.pt"), weights_only=True)
    for part in ("criterion", "model"):
        for name, tensor in saved["whole"][part].items():
            assert torch.equal(tensor, saved["parts"][part][name])
    weights = saved["whole"]["criterion"]["modules_among.0.class_weight"]
    assert weights.sum().item() == pytest.approx(1)
    assert len(set(weights.tolist())) == 3
    assert "alpha=0.3" in saved["whole"]["settings"]["criterion_kwargs"]

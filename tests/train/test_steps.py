"""One step and one validation, against steps and counts by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import nn

from common.data.batches import Batch
from common.data.sampling import Patch
from common.model.forward import ForwardPass
from common.runtime import Precision
from common.train import losses, metrics, steps

FP32 = Precision("fp32", "cpu")


def make_state(model: nn.Module, lr: float = 0.1) -> steps.State:
    optimizer = torch.optim.SGD(model.parameters(), lr)
    return steps.State(model, optimizer, None, FP32.scaler())


def make_method(**changes) -> steps.Method:
    given = {
        "criterion": losses.weighted_bce,
        "pos_weight": None,
        "forward": ForwardPass(FP32, channels_last=False),
        "max_grad_norm": 0.0,
    }
    return steps.Method(**{**given, **changes})


def make_batch(size: int, seed: int, unknown: float) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(size, 1, 5, 5, 5, generator=generator)
    target = torch.randint(0, 2, (size, 2, 3, 3, 3), generator=generator, dtype=torch.int8)
    target[torch.rand(target.shape, generator=generator) < unknown] = -1
    return Batch(raw, target, ["crop"] * size)


def seeded_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv3d(1, 2, 3)


def test_a_batch_of_four_equals_two_accumulated_batches_of_two_with_unequal_known_counts():
    first = make_batch(2, 1, unknown=0.1)
    second = make_batch(2, 2, unknown=0.9)
    whole = Batch(
        torch.cat([first.raw, second.raw]),
        torch.cat([first.target, second.target]),
        [*first.crops, *second.crops],
    )
    states = [make_state(seeded_model()) for _ in range(2)]
    one = steps.step(states[0], make_method(), [whole])
    two = steps.step(states[1], make_method(), [first, second])
    assert one.loss == pytest.approx(two.loss, rel=1e-6)
    assert one.grad_norm == pytest.approx(two.grad_norm, rel=1e-6)
    for a, b in zip(states[0].model.parameters(), states[1].model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_gradients_are_clipped_once_to_the_norm_of_the_whole_group():
    group = [make_batch(1, 1, 0.0), make_batch(1, 2, 0.0)]
    state = make_state(seeded_model(), lr=1.0)
    before = [p.detach().clone() for p in state.model.parameters()]
    norm = steps.step(state, make_method(max_grad_norm=0.01), group).grad_norm
    after = state.model.parameters()
    moves = [(a - b).flatten() for a, b in zip(before, after, strict=True)]
    assert norm > 0.01
    assert torch.cat(moves).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_2d_network_gets_patches_without_their_axis_of_size_one():
    model = nn.Conv2d(1, 3, 3)
    raw = torch.rand(2, 1, 1, 8, 9)
    logits = ForwardPass(FP32, channels_last=True)(model, raw)
    assert logits.shape == (2, 3, 1, 6, 7)
    assert torch.allclose(logits[:, :, 0], model(raw[:, :, 0]), atol=1e-6)


def test_bf16_logits_are_near_those_of_fp32():
    model = seeded_model()
    raw = torch.rand(1, 1, 6, 6, 6)
    half = ForwardPass(Precision("bf16", "cpu"), channels_last=False)(model, raw)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), model(raw), atol=0.02)


def test_counts_and_metrics_equal_scikit_learns_on_the_known_voxels():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 4, 4, 4, generator=generator)
    target = torch.randint(-1, 2, logits.shape, generator=generator, dtype=torch.int8)
    tp, fp, fn, tn = steps.count(logits, target).numpy()
    found = metrics.metrics(tp, fp, fn)
    for channel in range(3):
        known = target[:, channel] >= 0
        truth = target[:, channel][known].numpy()
        predicted = (logits[:, channel][known] > 0).numpy()
        assert found["dice"][channel] == pytest.approx(reference.f1_score(truth, predicted))
        assert found["iou"][channel] == pytest.approx(reference.jaccard_score(truth, predicted))
        assert found["precision"][channel] == pytest.approx(
            reference.precision_score(truth, predicted)
        )
        assert found["recall"][channel] == pytest.approx(reference.recall_score(truth, predicted))
        counts = [[tn[channel], fp[channel]], [fn[channel], tp[channel]]]
        assert reference.confusion_matrix(truth, predicted).tolist() == counts


def test_a_class_that_does_not_occur_is_left_out_of_the_mean():
    found = metrics.metrics(
        np.array([2.0, 0.0, 0.0]), np.array([0.0, 5.0, 0.0]), np.array([0.0, 0.0, 4.0])
    )
    assert found["dice"][0] == 1 and math.isnan(found["dice"][1]) and found["dice"][2] == 0
    assert found["precision"][2] == 0  # nothing predicted of a class that occurs
    assert steps.Scores(0.5, found, {}).mean("dice") == 0.5


class _Blocks(list):
    """As many blocks, as far as a validation asks for them."""

    input, target = Patch((5, 5, 5), (8, 8, 8)), Patch((3, 3, 3), (8, 8, 8))

    def __init__(self, n: int):
        super().__init__([None] * n)


class _Fixed:
    """Batches from a list, as common.data.batches.Batches gives them."""

    def __init__(self, batches: list[Batch]):
        self.batches = batches
        self.batch_size = len(batches[0].raw)
        self.device = torch.device("cpu")
        self.blocks = _Blocks(sum(len(batch.raw) for batch in batches))

    def every(self, step: int, first: int, stop: int):
        return iter(self.batches[first : -(-stop // self.batch_size) : step])


def validate(state: steps.State, batches: list[Batch], **changes) -> steps.Scores:
    given = {"classes": ("mito", "er"), "figure_samples": 1} | changes
    validation = steps.Validation(_Fixed(batches), **given)
    return steps.validate(state, make_method(), validation, lambda: False)


def test_validation_pools_over_batches_with_unequal_known_counts():
    batches = [make_batch(2, seed, unknown) for seed, unknown in ((1, 0.0), (2, 0.95), (3, 0.5))]
    whole = Batch(
        torch.cat([b.raw for b in batches]), torch.cat([b.target for b in batches]), [""] * 6
    )
    pooled = validate(make_state(seeded_model()), batches)
    at_once = validate(make_state(seeded_model()), [whole])
    assert pooled.loss == pytest.approx(at_once.loss, rel=1e-6)
    for name in at_once.per_class:
        assert np.array_equal(pooled.per_class[name], at_once.per_class[name])
    known = whole.target >= 0
    truth = nn.functional.binary_cross_entropy_with_logits(
        seeded_model()(whole.raw)[known], whole.target[known].float()
    )
    assert pooled.loss == pytest.approx(truth.item(), rel=1e-5)


def test_a_time_limit_fixes_the_number_of_batches_for_later_epochs(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(steps.time, "perf_counter", lambda: float(next(clock)))
    batches = [make_batch(1, seed, 0.0) for seed in range(6)]
    state = make_state(seeded_model())
    validate(state, batches, time_limit=2.5)
    assert state.validation_batches == 3
    monkeypatch.setattr(steps.time, "perf_counter", lambda: 0.0)
    first = validate(state, batches[:3])
    again = validate(state, batches, time_limit=2.5)
    assert state.validation_batches == 3 and first.loss == again.loss


def test_a_batch_limit_takes_the_first_batches():
    batches = [make_batch(1, seed, 0.0) for seed in range(4)]
    state = make_state(seeded_model())
    limited = validate(state, batches, batch_limit=2)
    assert limited.loss == validate(make_state(seeded_model()), batches[:2]).loss


def test_figures_show_the_same_blocks_in_every_epoch():
    batches = [make_batch(2, seed, 0.2) for seed in range(3)]
    state = make_state(seeded_model())
    validate(state, batches)
    shown = dict(state.shown)
    positives = torch.cat([(b.target == 1).sum((2, 3, 4)) for b in batches])
    assert shown == {"mito": [int(positives[:, 0].argmax())], "er": [int(positives[:, 1].argmax())]}
    with torch.no_grad():
        state.model.weight.neg_()
    images = validate(state, batches).images
    assert state.shown == shown and set(images) == {"mito", "er"}

"""One step, against steps by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.data.samples.batches import Batch
from common.model.forward import ForwardPass
from common.runtime import Precision
from common.train import losses, steps
from common.train.state import Method, State

FP32 = Precision("fp32", "cpu")


def make_state(model: nn.Module, lr: float = 0.1) -> State:
    optimizer = torch.optim.SGD(model.parameters(), lr)
    return State(model, optimizer, None, FP32.scaler())


def make_method(**changes) -> Method:
    given = {
        "criterion": losses.weighted_bce,
        "pos_weight": None,
        "forward": ForwardPass(FP32, channels_last=False),
        "max_grad_norm": 0.0,
    }
    return Method(**{**given, **changes})


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
    assert one.numbers.loss == pytest.approx(two.numbers.loss, rel=1e-6)
    assert one.numbers.grad_norm == pytest.approx(two.numbers.grad_norm, rel=1e-6)
    for a, b in zip(states[0].model.parameters(), states[1].model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_gradients_are_clipped_once_to_the_norm_of_the_whole_group():
    group = [make_batch(1, 1, 0.0), make_batch(1, 2, 0.0)]
    state = make_state(seeded_model(), lr=1.0)
    before = [p.detach().clone() for p in state.model.parameters()]
    norm = steps.step(state, make_method(max_grad_norm=0.01), group).numbers.grad_norm
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

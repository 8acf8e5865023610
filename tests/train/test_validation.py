"""One validation, against torch over all voxels at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from common.config.settings import TrainConfig
from common.data.samples.batches import Batch
from common.data.samples.sampling import Patch
from common.train import validation as module
from common.train.state import State
from common.train.validation import Validation, ValidationScores
from tests.train.test_steps import make_batch, make_method, make_state, seeded_model


class _Blocks(list):
    """As many blocks, as far as a validation asks for them."""

    input, target = Patch((5, 5, 5), (8, 8, 8)), Patch((3, 3, 3), (8, 8, 8))

    def __init__(self, n: int):
        super().__init__([None] * n)


class _Fixed:
    """Batches from a list, as common.data.samples.batches.Batches gives them."""

    def __init__(self, batches: list[Batch]):
        self.batches = batches
        self.batch_size = len(batches[0].raw)
        self.device = torch.device("cpu")
        self.blocks = _Blocks(sum(len(batch.raw) for batch in batches))

    def every(self, step: int, first: int, stop: int):
        return iter(self.batches[first : -(-stop // self.batch_size) : step])


def validate(state: State, batches: list[Batch], **changes) -> ValidationScores:
    given = {"classes": ("mito", "er"), "figure_samples": 1, "figure_crops": 0} | changes
    config = TrainConfig(print, input_array_info={}, target_array_info={}, **given)
    validation = Validation(config, _Fixed(batches))
    return module.validate(state, make_method(), validation, lambda: False)


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
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    batches = [make_batch(1, seed, 0.0) for seed in range(6)]
    state = make_state(seeded_model())
    validate(state, batches, validation_time_limit=2.5)
    assert state.validation_batches == 3
    monkeypatch.setattr(module.time, "perf_counter", lambda: 0.0)
    first = validate(state, batches[:3])
    again = validate(state, batches, validation_time_limit=2.5)
    assert state.validation_batches == 3 and first.loss == again.loss


def test_a_batch_limit_takes_the_first_batches():
    batches = [make_batch(1, seed, 0.0) for seed in range(4)]
    state = make_state(seeded_model())
    limited = validate(state, batches, validation_batch_limit=2)
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

"""255ths that are looked up, against those that torch computes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from common.data.volumes import ngff
from common.errors import UserError
from common.infer.predicting import encode, loops


def computed(logits: torch.Tensor) -> torch.Tensor:
    """255ths of logits, by torch, in float32."""
    return logits.float().sigmoid().mul(255).round().to(torch.uint8)


def neighbours(values: np.ndarray, number: int) -> np.ndarray:
    """Float32 values, with so many of the next smaller and larger ones each."""
    bits = values.view(np.int32)[:, None] + np.arange(-number, number + 1, dtype=np.int32)
    return bits.view(np.float32).ravel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_logit_of_16_bits_is_stored_as_torch_rounds_its_probability(dtype):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    logits = bits.view(dtype).reshape(1, 64, 32, 32)
    assert encode.encode(logits, "probability", torch.uint8).values.equal(computed(logits))


def test_float32_logits_are_stored_as_torch_rounds_their_probability():
    """Around each logit at which the next 255th begins, and at the ends of the floats."""
    steps = (np.arange(255) + 0.5) / 255
    begins = np.log(steps / (1 - steps)).astype(np.float32)
    near = neighbours(begins, 2000)
    wide = np.linspace(-100, 100, 100_000, dtype=np.float32)
    special = np.float32([0.0, -0.0, 1e-45, 3e38, -3e38, np.inf, -np.inf, np.nan])
    logits = torch.from_numpy(np.concatenate([near, wide, special]))
    # whole vectors: torch computes the rest of a tensor by another exponential
    logits = torch.cat([logits, torch.zeros(-len(logits) % 64)]).reshape(1, 1, 1, -1)
    assert encode.encode(logits, "probability", torch.uint8).values.equal(computed(logits))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_part_of_a_window_is_looked_up_in_its_place(dtype, layout):
    """Rows longer than a tile, with gaps between them in memory."""
    window = 5 * torch.randn(1, 5, 6, 7, 150, generator=torch.Generator().manual_seed(0))
    logits = window.to(dtype).contiguous(memory_format=layout)[0, :, 1:5, 2:, 3:147]
    stored = encode.encode(logits, "probability", torch.uint8).values
    assert stored.is_contiguous() and stored.equal(computed(logits))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("stored_as", ["uint8", "float32"])
def test_a_single_nan_is_found_and_infinity_is_none(dtype, layout, sign, stored_as):
    def has_nan(logits: torch.Tensor) -> bool:
        return encode.encode(logits, "probability", getattr(torch, stored_as)).has_nan

    logits = torch.randn(1, 3, 4, 5, 6).to(dtype).contiguous(memory_format=layout)[0]
    logits[0, 0, 0, 0] = sign * torch.inf
    assert not has_nan(logits)
    assert not has_nan(logits[:, 1:, 1:])
    logits[2, 3, 4, 5] = sign * torch.nan
    assert has_nan(logits)
    assert has_nan(logits[:, 1:, 1:])
    assert not has_nan(logits[:2])


def test_without_numba_a_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in ("common.compiled", "common.infer.predicting.loops"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("common.infer.predicting.loops", raising=False)
    with pytest.raises(UserError, match=r"numba.*pip install numba"):
        encode.encode(torch.zeros(1, 2, 3, 4), "probability", torch.uint8)


@pytest.mark.parametrize("shape", [(2, 2, 2), (16, 18, 20), (7, 9, 37)])
def test_halved_voxels_are_block_means(shape):
    fine = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    coarse = np.empty(np.array(shape) // 2, np.uint8)
    loops.halve(fine, coarse)
    np.testing.assert_array_equal(coarse, ngff.block_mean(fine, (2, 2, 2)))


def test_every_sum_of_eight_voxels_is_rounded_as_numpy_rounds_its_eighth():
    sums = np.arange(8 * 255 + 1)
    eighths = np.linspace(0, 7, 8).astype(int)[:, None]
    voxels = ((sums + eighths) // 8).astype(np.uint8)
    fine = np.ascontiguousarray(voxels.reshape(2, 2, 2, -1).transpose(3, 0, 1, 2)).reshape(-1, 2, 2)
    coarse = np.empty((len(sums), 1, 1), np.uint8)
    loops.halve(fine, coarse)
    np.testing.assert_array_equal(coarse.ravel(), np.rint(sums / 8))

"""Blocks on their way over a device: in order, few at a time; what is wrong with one is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.infer.predicting import blocks, conveyor, encode
from common.infer.predicting.blocks import Pass, Predictor, Verdict
from common.infer.predicting.raw_blocks import RawBlock

CPU = torch.device("cpu")


class Log(list):
    """What happened, in order."""

    def look(self, logits: torch.Tensor) -> Verdict:
        """Of a network: says when it is called, and when its verdict is asked for."""
        number = int(logits[0, 0, 0, 0])
        self.append(f"computed {number}")
        return partial(self.append, f"arrived {number}")


@pytest.fixture
def drawn(monkeypatch) -> None:
    """Blocks of 8 voxels whose raw is their number, and whose logits are their raw."""

    def read(plans: list, number: int, pinned: bool) -> list[RawBlock]:
        values = torch.full((2, 2, 2), number, dtype=torch.float32)
        raw = RawBlock(number, values.pin_memory() if pinned else values, np.zeros(3, int))
        return [raw] * len(plans)

    def compute(_: object, raw: RawBlock, forward: Callable, device: torch.device) -> torch.Tensor:
        return forward(raw.to(device).values[None])

    monkeypatch.setattr(conveyor, "read_for_passes", read)
    monkeypatch.setattr(blocks, "compute_block", compute)


def passed(
    numbers: Iterable[int],
    look: Callable = blocks.unseen,
    forward: Callable = lambda raw: raw,
    to_stored: Callable = lambda logits: (logits, blocks.fine),
    device: torch.device = CPU,
) -> Iterator[conveyor.BlockValues]:
    predictor = Predictor([Pass(None, forward)], look)
    return conveyor.compute_blocks([predictor], numbers, to_stored=to_stored, device=device)


def test_a_block_is_begun_before_the_one_behind_it_is_waited_for(drawn, monkeypatch):
    monkeypatch.setitem(conveyor.BEHIND, "cpu", 1)
    log = Log()
    found = list(passed([4, 2, 9], log.look))
    assert [block.number for block in found] == [4, 2, 9]
    assert [block.values.max() for block in found] == [4, 2, 9]
    assert log == [
        *("computed 4", "computed 2", "arrived 4"),
        *("computed 9", "arrived 2", "arrived 9"),
    ]


def test_on_a_cpu_a_block_is_there_before_the_next_one_is_begun(drawn):
    log = Log()
    list(passed([4, 2], log.look))
    assert log == ["computed 4", "arrived 4", "computed 2", "arrived 2"]


def test_no_more_is_read_than_the_next_blocks(drawn):
    asked = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            asked.append(number)
            yield number

    first = list(islice(passed(numbers()), 3))
    assert [block.number for block in first] == [0, 1, 2]
    assert asked == list(range(3 + conveyor.READ_AHEAD))


@pytest.mark.parametrize("stage", ["look", "to_stored"])
@pytest.mark.parametrize("behind", [0, 1])
def test_a_block_that_is_refused_is_not_given(drawn, monkeypatch, behind, stage):
    monkeypatch.setitem(conveyor.BEHIND, "cpu", behind)

    def refuse() -> None:
        raise UserError("block 2 is broken")

    def judge(logits: torch.Tensor) -> Any:
        verdict = refuse if logits.max() == 2 else blocks.fine
        return verdict if stage == "look" else (logits, verdict)

    given = []
    with pytest.raises(UserError, match="block 2 is broken"):
        given.extend(block.number for block in passed([0, 1, 2, 3], **{stage: judge}))
    assert given == [0, 1]


@pytest.mark.parametrize("stage", ["forward", "to_stored"])
def test_what_a_stage_raises_ends_the_run(drawn, stage):
    def fails(values: torch.Tensor) -> Any:
        if values.max() == 2:
            raise torch.OutOfMemoryError(f"in {stage}")
        return values if stage == "forward" else (values, blocks.fine)

    found = passed([0, 1, 2], **{stage: fails})
    assert [next(found).number, next(found).number] == [0, 1]
    with pytest.raises(torch.OutOfMemoryError, match=f"in {stage}"):
        next(found)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_a_cpu_does_and_finds_nan(drawn):
    gpu = torch.device("cuda")

    def to_stored(logits: torch.Tensor) -> tuple[torch.Tensor, Verdict]:
        encoded = encode.encode(logits, "probability", torch.uint8)

        def refuse() -> None:
            if encoded.has_nan:
                raise UserError("NaN")

        return encoded.values, refuse

    expected = [block.values for block in passed(range(6), to_stored=to_stored)]
    found = [block.values for block in passed(range(6), to_stored=to_stored, device=gpu)]
    # the last bit of a sigmoid is another on a GPU
    np.testing.assert_allclose(np.int16(found), np.int16(expected), atol=1)
    with pytest.raises(UserError, match="NaN"):
        nan = partial(passed, range(6), forward=lambda raw: raw.log() * 0, to_stored=to_stored)
        list(nan(device=gpu))

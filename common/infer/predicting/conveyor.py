"""How blocks pass a device: raw is read and goes up, what is stored comes down, as it computes.

A CUDA device does the three at once, each of another block: uploads and downloads have streams of
their own, and the stream that computes always has work waiting, since nothing on the way of a block
asks the device for a value before the next one is begun. On a CPU there is one block at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from common.infer.predicting.blocks import Predictor, Verdict, mean_logits
from common.infer.predicting.plan import BlockPlan
from common.infer.predicting.raw_blocks import RawBlock, read_for_passes

READ_AHEAD = 4
"""Blocks whose raw is read while one is computed."""

# what is stored of each is in the device's memory until it is on the host
BEHIND = {"cuda": 1}
"""Blocks on the device beside the newest one, by kind of device; 0 on others."""

ToStored = Callable[[torch.Tensor], tuple[torch.Tensor, Verdict]]
"""Logits (classes, z, y, x) to what is stored, on the device, and what raises if it may not be."""


@dataclass(frozen=True)
class BlockValues:
    """What is stored of a block."""

    number: int
    values: np.ndarray
    """(classes, z, y, x)."""
    blank: bool
    """Whether its raw is 0 throughout."""


def compute_blocks(
    predictors: Sequence[Predictor],
    numbers: Iterable[int],
    *,
    to_stored: ToStored,
    device: torch.device,
) -> Iterator[BlockValues]:
    """Yield blocks in the order of `numbers`; the raw of the next ones is read meanwhile.

    Raise what reading, computing or a verdict raises.

    Args:
        predictors: the network, or those whose mean is taken.
        numbers: of the blocks.
        to_stored: encodes logits.
        device: where the networks are.
    """
    plans = []
    for predictor in predictors:
        plans += [plan for plan, _ in predictor.passes]
    streams = _streams(device)
    behind = BEHIND.get(device.type, 0)
    coming: deque[_Coming] = deque()
    for raw in _read_ahead(plans, numbers, pinned=streams is not None):
        coming.append(_begin(predictors, raw, to_stored, device, streams=streams))
        if len(coming) > behind:
            yield _arrived(coming.popleft())
    while coming:
        yield _arrived(coming.popleft())


# Read


def _read_ahead(
    plans: Sequence[BlockPlan], numbers: Iterable[int], pinned: bool
) -> Iterator[list[RawBlock]]:
    """Yield the raw of blocks in their order, read in threads while the caller works.

    Each list has a RawBlock for each plan. pinned: whether it is to be in page-locked memory.
    """
    reading: deque[Future[list[RawBlock]]] = deque()
    with ThreadPoolExecutor(READ_AHEAD) as readers:
        for number in numbers:
            reading.append(readers.submit(read_for_passes, plans, number, pinned))
            if len(reading) > READ_AHEAD:
                yield _when_read(reading.popleft())
        # those that are being read when there is no more to submit
        while reading:
            yield _when_read(reading.popleft())


def _when_read(reading: Future[list[RawBlock]]) -> list[RawBlock]:
    """Wait for the raw of a block, and return it."""
    return reading.result()


# Compute


@dataclass(frozen=True)
class _Streams:
    """The streams of a CUDA device beside the one that computes."""

    up: torch.cuda.Stream
    down: torch.cuda.Stream


def _streams(device: torch.device) -> _Streams | None:
    """Return new streams of a CUDA device; None for other devices."""
    if device.type != "cuda":
        return None
    return _Streams(torch.cuda.Stream(device), torch.cuda.Stream(device))


@dataclass(frozen=True)
class _Coming:
    """A block that the device computes, or copies to the host."""

    number: int
    host: torch.Tensor
    """(classes, z, y, x) what is stored."""
    arrived: torch.cuda.Event | None
    """Happens when `host` is filled; None where it is filled already."""
    verdicts: list[Verdict]
    blank: bool
    """Whether the block's raw is 0 throughout."""


@torch.inference_mode()
def _begin(
    predictors: Sequence[Predictor],
    raw: Sequence[RawBlock],
    to_stored: ToStored,
    device: torch.device,
    *,
    streams: _Streams | None,
) -> _Coming:
    """Have a block computed and copied to the host; a CUDA device begins when it comes to it.

    Args:
        predictors: the networks.
        raw: for each pass of each network.
        to_stored: encodes logits.
        device: where the networks are.
        streams: of a CUDA device.
    """
    if streams is None:
        logits, verdicts = mean_logits(predictors, raw, device)
        values, verdict = to_stored(logits)
        return _Coming(raw[0].number, values.cpu(), None, [*verdicts, verdict], blank=raw[0].blank)
    computing = torch.cuda.current_stream(device)
    with torch.cuda.stream(streams.up):
        uploaded = _upload(raw, device)
    computing.wait_stream(streams.up)
    _keep_until(computing, uploaded)
    logits, verdicts = mean_logits(predictors, uploaded, device)
    values, verdict = to_stored(logits)
    streams.down.wait_stream(computing)
    with torch.cuda.stream(streams.down):
        host = _download(values)
        arrived = streams.down.record_event()
    values.record_stream(streams.down)
    return _Coming(raw[0].number, host, arrived, [*verdicts, verdict], blank=raw[0].blank)


def _upload(raw: Sequence[RawBlock], device: torch.device) -> list[RawBlock]:
    """Return the raw on the device; a block that several passes share goes there once."""
    distinct = {id(block): block for block in raw}
    uploaded = {key: block.to(device) for key, block in distinct.items()}
    return [uploaded[id(block)] for block in raw]


def _keep_until(stream: torch.cuda.Stream, raw: Sequence[RawBlock]) -> None:
    """Keep the memory of raw from other tensors until a stream has come to its last use."""
    for block in raw:
        for tensor in block.tensors:
            tensor.record_stream(stream)


def _download(values: torch.Tensor) -> torch.Tensor:
    """Return a tensor on the host that the current stream fills with the values."""
    host = _page_locked(values)
    host.copy_(values, non_blocking=True)
    return host


def _page_locked(like: torch.Tensor) -> torch.Tensor:
    """Return an empty tensor on the host, in page-locked memory."""
    # locking memory takes long, but torch keeps what is let go of and gives it out
    # again: only the first few blocks of a process wait for it
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def _arrived(block: _Coming) -> BlockValues:
    """Return a block when it is on the host. Raise what one of its verdicts raises."""
    if block.arrived is not None:
        block.arrived.synchronize()
    for verdict in block.verdicts:
        verdict()
    return BlockValues(block.number, block.host.numpy(), block.blank)

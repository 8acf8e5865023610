"""Measure where the time of a prediction goes, with clocks around functions of the engine.

What a CUDA device does is timed by events on its streams, so that nothing waits for it that would
not wait otherwise. Readers and writers are several threads: theirs is the sum of all, more than the
wall clock's where they keep more than a core busy.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from typing import Any
from unittest import mock

import torch

from common.data.volumes import ngff
from common.infer import journal, predict
from common.infer.predicting import conveyor, encode, raw_blocks, work, writer


@dataclass(frozen=True)
class Stage:
    """A function of the engine whose calls are timed."""

    name: str
    who: str
    """"caller", "device" (of a CPU: the caller), "readers" or "writers"."""
    owner: Any
    function: str
    within: str = ""
    """Stage that its calls are a part of, from which they are subtracted."""


STAGES = (
    Stage("begin classes", "caller", predict, "begin"),
    Stage("wait for raw", "caller", conveyor, "_when_read"),
    Stage("wait for the device", "caller", conveyor, "_arrived"),
    Stage("lock memory", "caller", conveyor, "_page_locked"),
    Stage("wait for writers", "caller", work, "_when_written"),
    Stage("end classes", "caller", predict, "finish"),
    Stage("upload", "device", conveyor, "_upload"),
    Stage("network", "device", conveyor, "mean_logits"),
    Stage("look for NaN", "device", encode, "has_nan", within="255ths"),
    Stage("255ths", "device", encode, "encode"),
    Stage("download", "device", conveyor, "_download"),
    Stage("read", "readers", raw_blocks, "_read"),
    Stage("halve", "writers", writer, "_reduced"),
    Stage("compress, files", "writers", ngff.ChunkedArray, "put"),
    Stage("ledger", "writers", journal.Journal, "add"),
)


@dataclass
class Spent:
    """Seconds of each stage so far."""

    on_cuda: bool
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    pending: list[tuple[Stage, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    """Stages of a CUDA device, between two events each."""
    guard: threading.Lock = field(default_factory=threading.Lock)

    def timed(self, stage: Stage) -> Callable:
        """Return the function of a stage with a clock around it."""
        function = getattr(stage.owner, stage.function)

        @wraps(function)
        def clocked(*arguments: Any, **options: Any) -> Any:
            with self._clock(stage):
                return function(*arguments, **options)

        return clocked

    @contextlib.contextmanager
    def _clock(self, stage: Stage) -> Iterator[None]:
        if self.on_cuda and stage.who == "device":
            begun = _event_now()
            yield
            self.pending.append((stage, begun, _event_now()))
            return
        start = time.perf_counter()
        yield
        self._add(stage, time.perf_counter() - start)

    def _add(self, stage: Stage, seconds: float) -> None:
        with self.guard:
            self.seconds[stage.name] += seconds
            if stage.within:
                self.seconds[stage.within] -= seconds

    def settle(self) -> None:
        """Wait for the device, and count the time between its events."""
        if self.pending:
            torch.cuda.synchronize()
        for stage, begun, ended in self.pending:
            self._add(stage, begun.elapsed_time(ended) / 1e3)
        self.pending.clear()


def _event_now() -> torch.cuda.Event:
    """Record an event on the current stream."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@contextlib.contextmanager
def clocks(device: str) -> Iterator[Spent]:
    """Time the stages of all predictions of one caller in the block. device: its kind."""
    spent = Spent(device == "cuda")
    with contextlib.ExitStack() as stack:
        for stage in STAGES:
            clocked = spent.timed(stage)
            stack.enter_context(mock.patch.object(stage.owner, stage.function, clocked))
        yield spent
    spent.settle()


def table(seconds: dict[str, float], wall: float) -> str:
    """Return a line for each stage. seconds: of `Spent`. wall: of the whole prediction."""
    lines = [f"{'':<10}{'stage':<22}{'seconds':>9}{'of the wall clock':>19}"]
    for stage in STAGES:
        took = seconds.get(stage.name, 0.0)
        if took:
            lines.append(f"{stage.who:<10}{stage.name:<22}{took:>9.3f}{took / wall:>19.1%}")
    lines.append(f"{'':<10}{'all of it':<22}{wall:>9.3f}")
    return "\n".join(lines)

"""Blocks shared out to workers: in batches, again where they fail, until all are done or given up.

A batch is one of Dask's tasks. Its size follows from how long blocks take, so that the cost of a
task is spread over many quick blocks, and a worker that dies takes few slow ones with it. No more
than a few batches a worker are handed out at a time: a plan of a million blocks is no graph of a
million tasks. Only the caller writes down what is done.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.errors import FileError, UserError
from common.infer.machines.batch_system import Jobs
from common.talk import note, say

if TYPE_CHECKING:
    from distributed import Client, Future

ATTEMPTS = 3
"""How often a block is tried."""

# at 1 ms a task costs, 2 s are far more than it; and what a worker that dies takes with it
BATCH_S = 2.0
"""Seconds that a batch is to take."""

LARGEST_BATCH = 500
"""Blocks of a batch at most."""

# one that is worked on and one that waits beside it, so that no worker waits for the caller
AHEAD = 2
"""Batches that each worker has at a time."""

# of a batch that is worked on when the call is told to stop
STOP_S = 10.0
"""Seconds in which batches that are worked on may come to their end."""

HOPELESS = 20
"""Blocks that fail before one succeeds, after which the call ends: it is not the blocks."""

Task = Callable[[Any], Iterator[tuple[int, Any]]]
"""Some blocks to the number of each with what came of it, as soon as it is on disk.

It runs in a worker, so it is a function of a module, or a partial of one with what can be pickled.
"""


@dataclass(frozen=True)
class Failure:
    """A block that was given up."""

    number: int
    error: str
    where: str
    """Host and process of the worker that tried it last."""


@dataclass(frozen=True)
class Outcome:
    """What came of a batch."""

    done: list[tuple[int, Any]]
    seconds: float
    where: str
    error: str = ""
    """Of the block after those that are done; "" where all are."""


@dataclass
class Tally:
    """How far a call is."""

    total: int
    done: int
    """Blocks on disk, those of earlier calls included."""
    failed: int = 0
    workers: int = 0
    rate: float = 0.0
    """Blocks per second of this call."""
    new: int = 0
    """Blocks of this call."""
    began: float = field(default_factory=time.monotonic)

    def add(self, blocks: int = 1) -> None:
        """Count blocks that are done now."""
        self.done += blocks
        self.new += blocks
        self.rate = self.new / (time.monotonic() - self.began)

    @property
    def seconds_left(self) -> float | None:
        """None before the first block."""
        left = self.total - self.done - self.failed
        return left / self.rate if self.rate else None


_one_at_a_time = threading.Lock()
"""A worker of several threads still has one network, and memory for one block."""


def never() -> bool:
    """Whether to stop, where nobody asks for it."""
    return False


def numbers_alone(numbers: list[int]) -> Any:
    """What a task is told of blocks that it knows by their numbers."""
    return numbers


def run_batch(task: Task, batch: Any) -> Outcome:
    """Do some blocks, in a worker. An error of a block is part of the outcome."""
    where = f"{socket.gethostname()}, process {os.getpid()}"
    done: list[tuple[int, Any]] = []
    with _one_at_a_time:
        start = time.monotonic()
        _use_cores()
        try:
            for number, result in task(batch):
                done.append((number, result))
        except Exception as error:
            return Outcome(done, time.monotonic() - start, where, error=_words(error))
    return Outcome(done, time.monotonic() - start, where)


def _use_cores() -> None:
    """Let torch have the worker's cores: Dask sets OMP_NUM_THREADS to 1 unless it is told."""
    import torch
    from distributed import get_worker

    threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    with contextlib.suppress(ValueError):  # not in a worker
        threads = max(threads, get_worker().state.nthreads)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


class Crew:
    """The workers of a call."""

    def __init__(self, client: Client, jobs: Jobs | None = None):
        self.client = client
        self.jobs = jobs
        """Where workers are jobs of a batch system; otherwise None."""

    def run(
        self,
        task: Task,
        numbers: Iterable[int],
        *,
        done: Callable[[int, Any], None],
        tell: Callable[[Tally], None],
        tally: Tally,
        stopped: Callable[[], bool],
        payload: Callable[[list[int]], Any] = numbers_alone,
    ) -> list[Failure]:
        """Have blocks done by the workers; gives those that failed ATTEMPTS times.

        Args:
            task: what is done with some of them.
            numbers: of the blocks.
            done: takes a number and what came of it, in this thread.
            tell: takes how far it is, several times a second.
            tally: where it begins.
            stopped: asked whether to end; what is worked on is waited for, for STOP_S.
            payload: what the task is given of blocks.
        """
        round_ = _Round(
            self.client,
            task,
            deque(numbers),
            done=done,
            tell=tell,
            tally=tally,
            payload=payload,
            jobs=self.jobs,
        )
        while round_.is_open and not stopped():
            round_.hand_out()
            round_.take_in()
        until = time.monotonic() + STOP_S
        while round_.running and time.monotonic() < until:
            round_.take_in()
        self.client.cancel(list(round_.running))
        return round_.failures


@dataclass
class _Round:
    """Blocks on their way."""

    client: Client
    task: Task
    waiting: deque[int]
    done: Callable[[int, Any], None]
    tell: Callable[[Tally], None]
    tally: Tally
    payload: Callable[[list[int]], Any]
    jobs: Jobs | None = None
    """As of `Crew`."""
    again: deque[int] = field(default_factory=deque)
    """Those of batches that failed, to be tried one by one."""
    running: dict[Future, list[int]] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    """How often each block failed that did."""
    failures: list[Failure] = field(default_factory=list)
    arrived: queue.SimpleQueue[Future] = field(default_factory=queue.SimpleQueue)
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    per_block: float = 0.0
    """Seconds that a block takes; 0 while unknown."""
    counted: float = -10.0
    """Value of time.monotonic() when workers were counted."""
    lonely: float = field(default_factory=time.monotonic)
    """Value of time.monotonic() when there was a worker last, or it was said that there is none."""

    @property
    def is_open(self) -> bool:
        return bool(self.waiting or self.again or self.running)

    def hand_out(self) -> None:
        """Give workers what they have room for."""
        self._count_workers()
        while len(self.running) < AHEAD * self.tally.workers:
            batch = self._next_batch()
            if not batch:
                return
            key = f"blocks-{self.name}-{batch[0]}-{len(batch)}-{uuid.uuid4().hex[:6]}"
            future = self.client.submit(
                run_batch, self.task, self.payload(batch), key=key, pure=False
            )
            self.running[future] = batch
            future.add_done_callback(self.arrived.put)

    def _next_batch(self) -> list[int]:
        if self.again:
            return [self.again.popleft()]
        size = 1
        if self.per_block:
            # towards the end smaller ones, so that no worker is left alone with a large one
            share = len(self.waiting) // (AHEAD * self.tally.workers)
            size = max(1, min(int(BATCH_S / self.per_block), share, LARGEST_BATCH))
        return [self.waiting.popleft() for _ in range(min(size, len(self.waiting)))]

    def take_in(self) -> None:
        """Take what has arrived, or wait a moment for it."""
        with contextlib.suppress(queue.Empty):
            future = self.arrived.get(timeout=0.2)
            self._take(future)
            while True:
                self._take(self.arrived.get_nowait())
        self.tell(self.tally)

    def _take(self, future: Future) -> None:
        batch = self.running.pop(future)
        outcome = future.result() if future.status == "finished" else _lost(future)
        self._settle(batch, outcome)
        future.release()

    def _settle(self, batch: list[int], outcome: Outcome) -> None:
        for number, result in outcome.done:
            self.done(number, result)
        n = len(outcome.done)
        self.tally.add(n)
        if n:
            self.per_block = outcome.seconds / n
            if self.jobs:
                self.jobs.has_finished_blocks = True
        if outcome.error:
            finished = {number for number, _ in outcome.done}
            left = [number for number in batch if number not in finished]
            self._try_again(left, outcome, was_alone=len(batch) == 1)

    def _try_again(self, left: list[int], outcome: Outcome, *, was_alone: bool) -> None:
        if not was_alone:
            # which of them it was shows when each is alone
            self.again.extend(left)
            return
        (number,) = left
        self.attempts[number] = self.attempts.get(number, 0) + 1
        if self.attempts[number] < ATTEMPTS:
            self.again.append(number)
            return
        self.failures.append(Failure(number, outcome.error, outcome.where))
        self.tally.failed = len(self.failures)
        note(f"block {number} failed {ATTEMPTS} times, last on {outcome.where}: {outcome.error}")
        if not self.tally.new and len(self.failures) >= HOPELESS:
            raise FileError(
                f"the first {HOPELESS} blocks failed, each {ATTEMPTS} times; the last one on "
                f"{outcome.where}: {outcome.error}"
            )

    def _count_workers(self) -> None:
        now = time.monotonic()
        if now - self.counted < 1:
            return
        self.counted = now
        if self.jobs:
            self.jobs.replace_ended()
        self.tally.workers = len(self.client.nthreads())
        if self.tally.workers:
            self.lonely = now
        elif now - self.lonely > 60:
            self.lonely = now
            say("no worker is there yet, or any more; waiting for one")


def _lost(future: Future) -> Outcome:
    """What is known of a batch that did not come back."""
    error = future.exception() if future.status == "error" else None
    worker = getattr(error, "last_worker", None)
    if worker is not None:
        return Outcome([], 0.0, str(worker.address), "its worker died (killed, or out of memory)")
    words = _words(error) if isinstance(error, Exception) else "the batch was lost"
    return Outcome([], 0.0, "a worker", words)

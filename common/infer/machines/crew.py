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
from common.stopping import ShouldStop
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
"""Seconds that batches which are worked on have to be done."""

HOPELESS = 20
"""Blocks that fail before one succeeds, after which the call ends: it is not the blocks."""

Task = Callable[[Any], Iterator[tuple[int, Any]]]
"""Does some blocks, and yields the number of each with its result, as soon as that is on disk.

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
    """Number and result of each block that was done."""
    seconds: float
    """That the batch took."""
    where: str
    """Host and process of the worker."""
    error: str = ""
    """Of the block after those that were done; "" where all were."""
    is_worker_lost: bool = False
    """Whether the worker died with the batch."""
    has_joined: bool = False
    """Whether a worker that died was of a command that joined this one."""


@dataclass
class Tally:
    """How far a call is."""

    total: int
    done: int
    """Blocks on disk, those of earlier calls included."""
    failed: int = 0
    workers: int = 0
    rate: float = 0.0
    """Blocks per second in this call."""
    new: int = 0
    """Blocks that were done in this call."""
    began: float = field(default_factory=time.monotonic)

    def add(self, blocks: int = 1) -> None:
        """Count blocks that are done now."""
        self.done += blocks
        self.new += blocks
        self.rate = self.new / (time.monotonic() - self.began)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all blocks are done; None before the first one is."""
        remaining = self.total - self.done - self.failed
        return remaining / self.rate if self.rate else None


_one_at_a_time = threading.Lock()
"""A worker of several threads still has one network, and memory for one block."""


def numbers_alone(numbers: list[int]) -> Any:
    """Return the payload of blocks that a task knows by their numbers."""
    return numbers


def run_batch(task: Task, batch: Any) -> Outcome:
    """Do some blocks, in a worker. An error of a block is in the outcome, and is not raised."""
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
    """Return an error as a line; of what is no UserError with its type."""
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
        stopped: ShouldStop,
        payload: Callable[[list[int]], Any] = numbers_alone,
    ) -> list[Failure]:
        """Have blocks done by the workers; return those that failed ATTEMPTS times.

        Raise FileError where the first HOPELESS blocks failed.

        Args:
            task: does some of them.
            numbers: of the blocks.
            done: takes the number of a block and its result, in this thread.
            tell: takes the tally, several times a second.
            tally: how far the call is; it is counted on.
            stopped: asked whether to end; batches that are worked on have STOP_S to be done.
            payload: what the task is given, of the numbers of some blocks.
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
    """The blocks of one `Crew.run`: those that wait, are handed out, or failed."""

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
    """Blocks of batches that failed, to be tried one by one."""
    running: dict[Future, list[int]] = field(default_factory=dict)
    """The blocks of each batch that is handed out."""
    attempts: dict[int, int] = field(default_factory=dict)
    """How often a block failed, of those that did."""
    failures: list[Failure] = field(default_factory=list)
    arrived: queue.SimpleQueue[Future] = field(default_factory=queue.SimpleQueue)
    """Batches that ended, and are not taken in yet."""
    lost_workers: set[str] = field(default_factory=set)
    """Addresses of workers that died, of which it was said."""
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    """Tells the tasks of this round from those of others."""
    per_block: float = 0.0
    """Seconds that a block takes; 0 while unknown."""
    counted: float = -10.0
    """Value of time.monotonic() when workers were counted."""
    lonely: float = field(default_factory=time.monotonic)
    """Value of time.monotonic() when a worker was seen last, or the lack of one was told."""

    @property
    def is_open(self) -> bool:
        return bool(self.waiting or self.again or self.running)

    def hand_out(self) -> None:
        """Hand out batches until each worker has AHEAD of them."""
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
        """Take the blocks of the next batch from those that wait; [] when there are none."""
        if self.again:
            return [self.again.popleft()]
        size = 1
        if self.per_block:
            # towards the end smaller ones, so that no worker is left alone with a large one
            share = len(self.waiting) // (AHEAD * self.tally.workers)
            size = max(1, min(int(BATCH_S / self.per_block), share, LARGEST_BATCH))
        return [self.waiting.popleft() for _ in range(min(size, len(self.waiting)))]

    def take_in(self) -> None:
        """Take in the batches that ended, or wait a moment for one, and tell the tally."""
        with contextlib.suppress(queue.Empty):
            future = self.arrived.get(timeout=0.2)
            self._take(future)
            while True:
                self._take(self.arrived.get_nowait())
        self.tell(self.tally)

    def _take(self, future: Future) -> None:
        """Take in a batch that ended."""
        batch = self.running.pop(future)
        outcome = future.result() if future.status == "finished" else _lost(future)
        if outcome.is_worker_lost:
            self._note_lost(outcome.where, outcome.has_joined)
        self._settle(batch, outcome)
        future.release()

    def _note_lost(self, worker: str, has_joined: bool) -> None:
        """Say once of a worker that it died, though a process that watches it starts another.

        That process may be gone, too, where the worker was of a command that joined this one; those
        of a scheduler that runs already are not ours to replace.
        """
        if worker in self.lost_workers:
            return
        self.lost_workers.add(worker)
        replaced = ""
        if self.client.cluster is not None:
            replaced = "another takes its place, and "
            if has_joined:
                replaced = "the command that it joined by starts another, unless it is gone, too; "
        note(
            f"the worker at {worker} died (killed, or out of memory); {replaced}its blocks are "
            "tried again"
        )

    def _settle(self, batch: list[int], outcome: Outcome) -> None:
        """Count the blocks of a batch that were done, and have the others tried again."""
        for number, result in outcome.done:
            self.done(number, result)
        n = len(outcome.done)
        self.tally.add(n)
        if n:
            self.per_block = outcome.seconds / n
            if self.jobs:
                self.jobs.has_finished_blocks = True
        if outcome.error:
            done = {number for number, _ in outcome.done}
            failed = [number for number in batch if number not in done]
            self._try_again(failed, outcome, was_alone=len(batch) == 1)

    def _try_again(self, failed: list[int], outcome: Outcome, *, was_alone: bool) -> None:
        """Have blocks of a batch tried again, or give up the one that failed ATTEMPTS times.

        was_alone: whether the batch had a single block.
        """
        if not was_alone:
            # which of them it was shows when each is alone
            self.again.extend(failed)
            return
        (number,) = failed
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
        """Count the workers, once a second at most, and say where there is none for a minute."""
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
    """Return the outcome of a batch that did not come back."""
    error = future.exception() if future.status == "error" else None
    worker = getattr(error, "last_worker", None)
    if worker is not None:
        words = "its worker died (killed, or out of memory)"
        # those that a cluster of this process starts have numbers, or the names of their jobs
        has_joined = worker.name == worker.address
        return Outcome(
            [], 0.0, str(worker.address), words, is_worker_lost=True, has_joined=has_joined
        )
    words = _words(error) if isinstance(error, Exception) else "the batch was lost"
    return Outcome([], 0.0, "a worker", words)

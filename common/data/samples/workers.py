"""Run the worker processes that read samples: as many as there is room for, begun anew when lost.

A worker that is killed, or that does not answer, is named with the sample that it was reading, and
all are begun anew from the first missing sample. A sample depends on its number alone, so that the
batches stay the same.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import multiprocessing.sharedctypes
import os
import shutil
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from common.errors import FileError
from common.stopping import SIGNALS
from common.talk import duration, note, note_once, size

SHARED_MEMORY = Path("/dev/shm")
"""Where workers hand their samples over, on Linux."""

READ_AHEAD = 2
"""Batches that torch lets each worker read ahead: prefetch_factor of its DataLoader."""

POLL_S = 5.0
"""Seconds after which is looked whether the workers live, where the next batch is not there."""

RESTARTS = 3
"""How often workers are begun anew within RECENT batches.

One that the system kills once a night for want of memory is replaced for as long as a run goes; one
that is killed by a sample, or wherever there are so many of them, ends it.
"""

RECENT = 1000
"""Batches, see RESTARTS."""

OPENED = Path("/proc/self/fd")
"""What this process has open, on Linux."""

OTHER_HANDLES = 96
"""File handles of a worker's pipes, of sockets that samples go through, of logs and crops."""

NO_SHARED_MEMORY = 3
"""Exit code of a worker that found no room for its samples."""

NOT_HANDED_OVER = 4
"""Exit code of a worker that could not hand its samples over for another reason."""

NO_HANDLES = 5
"""Exit code of a worker that could open no file more."""

NOTHING = -1
"""Stands for the number of a sample where none is being read."""

SHM_ADVICE = "give the container more (docker run --shm-size=8g)"


class WorkerLost(FileError):
    """Processes that read samples ended before their work was done, and beginning anew is vain."""


class _Lost(Exception):
    """A worker is gone, or does not answer; the text says which, and what may help."""

    def __init__(self, text: str, no_room: bool = False):
        super().__init__(text)
        self.no_room = no_room
        """Whether it is for want of shared memory or file handles."""


class Readable(Protocol):
    """What is read: item k is sample k, the same on every call."""

    def __getitem__(self, k: int) -> Any: ...


@dataclass(frozen=True)
class Reading:
    """What workers read, and how."""

    dataset: Readable
    batch_size: int
    num_workers: int
    pin_memory: bool
    where: Callable[[int], str]
    """`where(k)`: the place of sample k in words, such as 'jrc_hela-2/crop28'."""
    time_limit: float
    """Seconds to wait for a batch; 0 waits for ever."""

    def of(self, samples: Sequence[int]) -> Iterator[list[Any]]:
        """Iterate over the batches of samples with these numbers; the last may be smaller.

        Workers begin at once. Raises WorkerLost after RESTARTS, and what a sample raised itself.
        """
        return self._batches(_Team(self, samples, 0, self.num_workers), samples)

    def _batches(self, team: _Team, samples: Sequence[int]) -> Iterator[list[Any]]:
        position = 0
        losses: list[int] = []
        while position < len(samples):
            try:
                items = team.next_batch(samples[position])
            except _Lost as lost:
                losses = [loss for loss in losses if position - loss < RECENT * self.batch_size]
                losses.append(position)
                team.kill()
                team = self._anew(team, lost, samples, position, times=len(losses))
                continue
            position += len(items)
            yield items

    def _anew(
        self, team: _Team, lost: _Lost, samples: Sequence[int], position: int, *, times: int
    ) -> _Team:
        """Begin anew from a position on. Raises WorkerLost if that was done too often."""
        if times > RESTARTS:
            raise WorkerLost(f"{lost}. Begun anew {RESTARTS} times, in vain") from lost
        if lost.no_room:
            note(f"{lost}. Samples are read in the training process from here on, slower and equal")
            return _Team(self, samples, position, 0)
        note(
            f"{lost}. Workers begin anew from sample {samples[position]} ({times} of {RESTARTS} "
            "times)"
        )
        return _Team(self, samples, position, team.size)


class _Watched(Dataset):
    """A dataset whose workers tell what they are reading."""

    def __init__(self, dataset: Readable, current: Any):
        self.dataset = dataset
        self.current = current

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        """Read the samples of a batch. torch calls it."""
        worker = get_worker_info()
        items = []
        for k in numbers:
            if worker is not None:
                self.current[worker.id] = k
            items.append(self.dataset[k])
        if worker is not None:
            self.current[worker.id] = NOTHING
        return items

    def __getitem__(self, k: int) -> Any:
        return self.dataset[k]


class _Team:
    """The workers, maybe none, that read samples from a position on."""

    def __init__(self, reading: Reading, samples: Sequence[int], position: int, workers: int):
        self.reading = reading
        self.size = workers
        self.current = multiprocessing.sharedctypes.RawArray("q", [NOTHING] * max(workers, 1))
        loader = DataLoader(
            _Watched(reading.dataset, self.current),
            reading.batch_size,
            sampler=(samples[i] for i in range(position, len(samples))),
            num_workers=workers,
            collate_fn=list,  # samples differ in size: they become one tensor on the device
            pin_memory=reading.pin_memory,
            worker_init_fn=_prepare_worker,
            timeout=POLL_S if workers else 0,
            # it draws the seed of workers whenever it is begun; from torch's global generator, a
            # stop in an epoch would move every later number, such as those of dropout
            generator=torch.Generator(),
        )
        self.iterator: Iterator[list[Any]]
        with _keeping_its_handler_of_dead_children():
            self.iterator = iter(loader)
        self.processes: Sequence[Any] = getattr(self.iterator, "_workers", ())
        self.watch = _Watch(self.processes, reading.time_limit)
        # also when Python ends: it waits for its children, and one that is stopped hears nothing
        self.kill = weakref.finalize(self, self.watch.end)

    def __del__(self) -> None:
        # torch asks workers to end; who does not is killed. There is none where a stop came in
        # while they were started
        vars(self).pop("iterator", None)

    def next_batch(self, k: int) -> list[Any]:
        """Return the batch that begins with sample k. Raises _Lost, and what a sample raised."""
        while True:
            try:
                with self.watch.waiting():
                    return next(self.iterator)
            # torch's own, and those of a connection that breaks while a sample is handed over
            except (RuntimeError, OSError, EOFError) as error:
                if self.watch.has_ended_them:
                    raise _Lost(self._how_it_hung(k)) from error
                self._raise_if_dead(error)
                if not str(error).startswith("DataLoader timed out"):
                    raise

    def _raise_if_dead(self, error: Exception) -> None:
        """Raise _Lost if a worker ended badly, of which `error` came."""
        if "Too many open files" in str(error):
            raise _Lost(_no_handles(), no_room=True) from error
        dead = _dead(self.processes, error)
        if dead is not None:
            raise _Lost(
                self._how_it_ended(dead),
                no_room=self.processes[dead].exitcode in NO_ROOM,
            ) from error
        if isinstance(error, ConnectionError | EOFError):
            raise _Lost(f"a worker that reads samples was lost ({error!r})") from error

    def _how_it_ended(self, dead: int) -> str:
        code = self.processes[dead].exitcode
        how = f"exit code {code}"
        if code < 0:
            how = signal.Signals(-code).name
        sample = self.current[dead]
        doing = "between two batches"
        if sample != NOTHING:
            doing = f"at sample {sample}, in {self.reading.where(sample)}"
        advice = ADVICE.get(code, "see that memory and /dev/shm are not full")
        return f"worker {dead + 1} of {self.size} that read samples ended ({how}) {doing}: {advice}"

    def _how_it_hung(self, k: int) -> str:
        # the others have read ahead as far as they may, and wait
        sample = min((current for current in self.current if current != NOTHING), default=k)
        limit = duration(self.reading.time_limit)
        return (
            f"no worker gave sample {sample}, in {self.reading.where(sample)}, for {limit} "
            "(worker_time_limit): see that the disk of cache_path answers"
        )


class _Watch:
    """Ends workers that do not answer for too long.

    In a thread of its own: who waits for a file handle of a worker that is stopped waits in a
    system call, without a limit, until that worker is gone.
    """

    def __init__(self, processes: Sequence[Any], time_limit: float):
        self.processes = processes
        self.time_limit = time_limit
        self.since: float | None = None
        """Value of monotonic() since which a batch is waited for; None between batches."""
        self.has_ended_them = False
        self._over = threading.Event()
        if processes and time_limit:
            threading.Thread(target=self._look, daemon=True, name="watch of workers").start()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark the time of the block as waiting for a batch."""
        if self.since is None:
            self.since = monotonic()
        yield
        self.since = None  # not where it raises: the next call goes on waiting

    def _look(self) -> None:
        while not self._over.wait(POLL_S):
            since = self.since
            if since is not None and monotonic() - since >= self.time_limit:
                self.has_ended_them = True
                self._kill()
                return

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()

    def end(self) -> None:
        """End the watch, and the workers at once, those too that do not listen."""
        self._over.set()
        self._kill()


def that_fit(reading: Reading, item_bytes: int, item_tensors: int, batches: int) -> int:
    """Return the number of workers that there is room for, with a note if it is below num_workers.

    Args:
        reading: what is to be read.
        item_bytes: of a sample, in its tensors.
        item_tensors: number of tensors of a sample, each of which takes a file handle.
        batches: to be read.
    """
    wanted = reading.num_workers
    ahead = min(READ_AHEAD * wanted, batches)  # batches in shared memory
    needed = ahead * reading.batch_size * item_bytes
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    workers = wanted
    if needed > free:
        workers = min(wanted, free // (READ_AHEAD * reading.batch_size * max(item_bytes, 1)))
        note_once(
            f"{SHARED_MEMORY}: {size(free)} free, and num_workers = {wanted} needs {size(needed)} "
            f"for batches of {reading.batch_size}; {_fewer(workers)}. For more, {SHM_ADVICE}"
        )
    handles = READ_AHEAD * reading.batch_size * item_tensors
    limit = _handles_left(OTHER_HANDLES + handles * workers)
    if OTHER_HANDLES + handles * workers > limit:
        workers = max(0, (limit - OTHER_HANDLES) // handles)
        note_once(f"{_no_handles()}; {_fewer(workers)}")
    return workers


def _fewer(workers: int) -> str:
    if workers:
        return f"{workers} read, slower and the same samples"
    return "samples are read in the training process, slower and the same"


def _no_handles() -> str:
    return "too few file handles for the workers that read samples: raise them with ulimit -n"


def _handles_left(needed: int) -> int:
    """Raise the limit of this process for `needed` files; return how many may still be opened."""
    try:
        import resource
    except ImportError:  # Windows has none
        return needed
    if torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        return needed
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = _handles_opened()
    if opened is None and OPENED.is_dir():
        # as many as may be, so that not even their list can be read
        soft = hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        opened = _handles_opened()
    if opened is None or soft == resource.RLIM_INFINITY:
        return needed
    if opened + needed > soft:
        wanted = opened + needed
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft - opened


def _handles_opened() -> int | None:
    """Return how many files this process has open; None where it cannot be told."""
    try:
        return len(list(OPENED.iterdir()))
    except OSError:
        return None


# Windows has neither
_SIGBUS = getattr(signal, "SIGBUS", 7)
_SIGKILL = getattr(signal, "SIGKILL", 9)

NO_ROOM = frozenset([NO_SHARED_MEMORY, NO_HANDLES, -_SIGBUS])
"""Exit codes of workers for which there is no room."""

_IS_FULL = f"{SHARED_MEMORY} is full; {SHM_ADVICE}"

ADVICE = {
    NO_SHARED_MEMORY: _IS_FULL,
    -_SIGBUS: _IS_FULL,
    NO_HANDLES: _no_handles(),
    -_SIGKILL: "most likely for want of memory; lower num_workers or batch_size",
}
"""What may help, by exit code."""


@contextlib.contextmanager
def _keeping_its_handler_of_dead_children() -> Iterator[None]:
    """Undo that torch, in the block, lets a worker's death raise wherever it finds this process.

    That may be in the middle of a step. Without it the next batch tells of it, seconds later, where
    the state of a run is whole.
    """
    has_signals = hasattr(signal, "SIGCHLD")
    if not has_signals or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


def _dead(workers: Sequence[Any], error: Exception) -> int | None:
    """Return the index of a worker that ended badly, None if none did; `error` came of it."""
    text = str(error)
    is_told = "in DataLoader worker" in text
    breaks = isinstance(error, OSError | EOFError) or "ancdata" in text or "shared memory" in text
    if workers and breaks and not is_told:
        # a process closes its connections a moment before it is gone
        sentinels = {worker.sentinel: worker for worker in workers}
        for sentinel in multiprocessing.connection.wait(list(sentinels), timeout=POLL_S):
            # and is waited for a moment after its sentinel is closed
            sentinels[sentinel].join(POLL_S)
    return next((i for i, worker in enumerate(workers) if worker.exitcode), None)


def _prepare_worker(_: int) -> None:
    # workers inherit the trainer's handlers; what asks it to stop reaches them too, and they are to
    # give what it waits for. torch ends them by SIGTERM
    for number in SIGNALS:
        ends = number == signal.SIGTERM
        signal.signal(number, signal.SIG_DFL if ends else signal.SIG_IGN)
    # a thread of the queue hands samples over; its errors are printed, and the trainer would wait
    # for these samples for ever
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: Exception, _: object) -> None:
    """End this process where its samples cannot be handed over."""
    if "Too many open files" in str(error):
        os._exit(NO_HANDLES)
    if "shared memory" in str(error) or "No space left" in str(error):
        os._exit(NO_SHARED_MEMORY)
    traceback.print_exception(error)
    os._exit(NOT_HANDED_OVER)

"""The processes of one run: torchrun starts several, and they train one network together.

This module alone knows how many there are and how they talk. With one process every function here
gives back what it is given, so that a run reads the same for any number of processes. What waits
for others has to be called by all of them, in the same order. How they take a step together is in
`common.train.processes.together`.

Rank, size and store are words of torch.distributed: the number of a process, how many there are,
and the small memory that they share over the network.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from common import talk
from common.errors import FileError, UserError
from common.stopping import Stop, Stopped
from common.train.processes import alive, network

Value = TypeVar("Value")

ANSWER_WITHIN = timedelta(minutes=30)
"""How long a process waits for others that do give signs (see `alive`) in a collective call."""
# only what all do alike is waited for so; `main_first`, `first_on_this_machine` and `wait_for_all`,
# for what one process does alone (decoding, a checkpoint, figures, whole crops), have no limit

LOOK_EVERY_S = 0.1
"""Seconds between two looks at whether another process is done with its part of the start."""

STARTED_BY_US = "CELLMAP_PROCESSES"
"""Set in the environment where a command of ours called torchrun, see `common.shell.launch`."""

OF_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The environment that torchrun gives to each process."""


@dataclass
class _Group:
    """This process among those of its run."""

    store: dist.Store
    rank: int
    size: int
    local_rank: int
    """Number of this process among those of its machine."""
    machine: str
    """Tells the machines of a run apart."""
    waits: int = 0
    """How often one waited for another; all count alike."""


_group: _Group | None = None
"""None where this process is alone."""


def are_started() -> bool:
    """Return whether this process was started with others, as torchrun does it.

    Raises UserError if the environment says so and does not say where the others are.
    """
    missing = [name for name in OF_TORCHRUN if not os.environ.get(name)]
    if missing and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UserError(
            f"WORLD_SIZE = {os.environ['WORLD_SIZE']} processes, and {', '.join(missing)} not set; "
            "start them by torchrun, or one by unset WORLD_SIZE"
        )
    return not missing


def are_started_by_us() -> bool:
    """Return whether it was a command of ours that called torchrun."""
    return bool(os.environ.get(STARTED_BY_US))


def rank() -> int:
    """Return the number of this process, 0 to size() - 1."""
    return _group.rank if _group else 0


def size() -> int:
    """Return the number of processes."""
    return _group.size if _group else 1


def are_joined() -> bool:
    """Return whether this process is in a group, of one or more."""
    return _group is not None


def is_main() -> bool:
    """Return whether this is the process that writes and speaks."""
    return rank() == 0


def share_of(batch_size: int) -> int:
    """Return how many samples of a batch each process has.

    Raises UserError for a batch that cannot be divided equally.
    """
    if batch_size % size():
        below = batch_size // size() * size()
        possible = [n for n in (below, below + size()) if n]
        raise UserError(
            f"batch_size = {batch_size} is the batch of all processes together, and cannot be "
            f"divided among {size()}; write batch_size = {' or '.join(map(str, possible))}"
        )
    return batch_size // size()


# To begin and to end


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes of this run in a block; nothing happens where there are none.

    The first process that fails says why; the others end in silence, in the same way.
    """
    global _group  # noqa: PLW0603
    if _group is not None or not are_started():
        yield
        return
    _group = _found_by_environment()
    _be_told_of_the_end_of_torchrun()
    talk.be_silent(not is_main())
    try:
        with alive.watched(_group.store, _group.rank, _group.size, FAILED):
            yield
            _leave()
    except BaseException as error:
        raise _as_all_fail(_group, error) from error
    finally:
        _group = None
        talk.be_silent(False)


_joined = 0
"""How often this process has joined: several runs, one after the other, share a store."""


def _found_by_environment() -> _Group:
    global _joined  # noqa: PLW0603
    _joined += 1
    store, number, processes = next(iter(dist.rendezvous("env://", timeout=ANSWER_WITHIN)))
    return _Group(
        store=dist.PrefixStore(f"run {_joined}", store),
        rank=number,
        size=processes,
        local_rank=int(os.environ.get("LOCAL_RANK") or 0),
        # the number of the machine, by torchrun; two of it may be on one machine, each by itself
        machine=os.environ.get("GROUP_RANK") or platform.node(),
    )


def _be_told_of_the_end_of_torchrun() -> None:
    """Have the system send SIGTERM when torchrun is killed: its processes outlive it otherwise."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # of sys/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def own_device(name: str) -> str:
    """Return the device of this process, from that of the run: "cuda" becomes "cuda:<number>".

    Raises UserError where this machine has fewer GPUs than processes, and for a device that several
    processes cannot use.
    """
    if _group is None or name == "cpu":
        return name
    if name not in ("auto", "cuda"):
        raise UserError(
            f"device = '{name}' is one device, and torchrun started {size()} processes; write "
            "device = 'cuda' (each gets a GPU of its own), 'cpu' or 'auto'"
        )
    if not torch.cuda.is_available():
        return "cpu" if name == "auto" else name
    gpus = torch.cuda.device_count()
    if _group.local_rank >= gpus:
        raise UserError(
            f"{platform.node()}: process {_group.local_rank + 1} has no GPU, of which there are "
            f"{gpus}; start {gpus} processes (--gpus all, or torchrun --nproc-per-node {gpus}), or "
            "write device = 'cpu'"
        )
    return f"cuda:{_group.local_rank}"


def connect(device: torch.device) -> None:
    """Let the processes talk: by NCCL about what is on CUDA devices, by gloo about the rest."""
    if _group is None or dist.is_initialized():  # by the run before, of another seed
        return
    _choose_network(_group)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend,
        store=_group.store,
        rank=_group.rank,
        world_size=_group.size,
        timeout=ANSWER_WITHIN,
    )


def _choose_network(group: _Group) -> None:
    key = "machine of the store"

    def tell(address: str) -> None:
        group.store.set(key, address)

    def hear() -> str:
        _wait_for(group, key)
        return group.store.get(key).decode()

    network.choose(tell, hear)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _as_all_fail(group: _Group, error: BaseException) -> BaseException:
    """Return what this process raises; it writes nothing any more unless it is the first to fail.

    Where a process failed, the others fail since it does not answer: that is no news.
    """
    answer: BaseException = error
    if _is_about_others(error):
        answer = FileError(
            "another process of this run ended, or gave no answer for "
            f"{talk.duration(ANSWER_WITHIN.total_seconds())} ({_first_line(error)}); what it said, "
            "if anything, stands above. The same command goes on from the last checkpoint"
        )
    own = f"{group.rank} {_kind(answer)}"
    first = own
    with contextlib.suppress(RuntimeError):  # a torchrun that is gone took the store along
        first = group.store.compare_set(FAILED, "", own).decode()
    if first != own:
        _write_nothing()
        answer = _KINDS[first.split()[1]]("another process of this run failed")
    elif _kind(answer) == "bug" and group.size > 1:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"in process {group.rank} of {group.size}, on {platform.node()}:\n")
    if not torch.cuda.is_available():
        # with NCCL it may wait for those that are gone
        _leave()
    return answer


FAILED = "failed"
"""Key of the store: the first process that failed, and how."""

_KINDS: dict[str, type[BaseException]] = {
    "stopped": Stopped,
    "interrupted": KeyboardInterrupt,
    "mendable": UserError,
    "bug": RuntimeError,
}


def _kind(error: BaseException) -> str:
    return next((name for name, kind in _KINDS.items() if isinstance(error, kind)), "bug")


def _is_about_others(error: BaseException) -> bool:
    """Whether an error says that another process does not answer."""
    if isinstance(error, dist.DistError):
        return True
    # gloo's have no type of their own, and come out of a backward pass too
    return isinstance(error, RuntimeError) and "gloo/" in str(error)


def _first_line(error: BaseException) -> str:
    line = str(error).strip().partition("\n")[0]
    # gloo begins with the line of its source, in brackets, and ends with advice for its developers
    line = line.partition("] ")[2] or line
    return line.partition(". ")[0]


def _write_nothing() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


# To wait for each other


@contextmanager
def main_first() -> Iterator[None]:
    """Run a block in the main process, and after it in the others; however long it takes."""
    with _before_the_others(is_main(), "of all"):
        yield


@contextmanager
def first_on_this_machine() -> Iterator[None]:
    """Run a block in one process of each machine, and after it in the others."""
    is_first = _group is None or _group.local_rank == 0
    with _before_the_others(is_first, _group.machine if _group else ""):
        yield


@contextmanager
def _before_the_others(is_first: bool, among: str) -> Iterator[None]:
    if _group is None:
        yield
        return
    _group.waits += 1
    done = f"wait {_group.waits} {among}"
    if not is_first:
        _wait_for(_group, done)
    yield
    if is_first:
        _group.store.set(done, "")


def wait_for_all() -> None:
    """Wait until every process is here; however long it takes, unlike the calls below."""
    if _group is None:
        return
    _group.waits += 1
    key = f"all {_group.waits}"
    if _group.store.add(key, 1) == _group.size:
        _group.store.set(f"{key} here", "")
    _wait_for(_group, f"{key} here")


def _wait_for(group: _Group, key: str) -> None:
    # in Python: a wait inside of torch hears no signal
    while not group.store.check([key]):
        if group.store.check([FAILED]):
            raise FileError("another process of this run failed")
        time.sleep(LOOK_EVERY_S)


# To agree


def largest(number: int) -> int:
    """Return the largest of the numbers that the processes give."""
    if _group is None:
        return number
    on_cpu = torch.tensor(number)
    dist.all_reduce(on_cpu, dist.ReduceOp.MAX)
    return int(on_cpu)


def any_rank(answer: bool) -> bool:
    """Return whether any process says so."""
    return bool(largest(int(answer)))


def gathered(value: Value) -> list[Value]:
    """Return what the processes give, in their order."""
    if _group is None:
        return [value]
    values: list[Any] = [None] * _group.size
    dist.all_gather_object(values, value)
    return values


def gathered_by_main(value: Value) -> list[Value]:
    """Return what the processes give in the main one; in the others their own alone."""
    if _group is None:
        return [value]
    values: list[Any] | None = [None] * _group.size if is_main() else None
    dist.gather_object(value, values)
    return [value] if values is None else values


def of_main(value: Value) -> Value:
    """Return what the main process gives."""
    return gathered(value)[0]


@contextmanager
def raised_by_all(kind: type[UserError]) -> Iterator[None]:
    """Have an error that one process raises in a block raised by all of them, after the block.

    All are then at the same place, and can save what they have.
    """
    problem = ""
    try:
        yield
    except kind as error:
        if _group is None:
            raise
        problem = str(error)
    if any_rank(bool(problem)):
        problems = gathered(problem)
        raise kind(next(text for text in problems if text))


class AgreedStop:
    """A `Stop` that is true in all processes once it is in one."""

    def __init__(self, own: Stop) -> None:
        self.own = own

    def __call__(self) -> bool:
        """Whether to stop; to be called by all."""
        self.own()
        number = largest(self.own.number)
        if number and not self.own.number:
            self.own.receive(number)
        return bool(number)

    @property
    def by_user(self) -> bool:
        """Whether it was Ctrl-C."""
        return self.own.by_user


def agreed(stop: Stop) -> Stop | AgreedStop:
    """Return what says whether to stop, in all processes alike."""
    return stop if _group is None else AgreedStop(stop)


def here(stop: Any) -> Any:
    """Return what says whether this process is to stop, for work that it does by itself."""
    return stop.own if isinstance(stop, AgreedStop) else stop

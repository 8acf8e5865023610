"""Notice a process of a run that gives no sign: it is stopped, or its machine is off.

A machine that loses power or its network closes no connection, and whoever waits for it cannot
tell it from one that decodes crops or saves. So beside what it does each process counts up in the
store, in a thread of its own, and looks whether the first one does; the first looks at all.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

from common import talk

BEAT_EVERY_S = 5.0
"""Seconds between two signs of a process."""

# a disk that does not answer can hold all threads of a process: as long as worker_time_limit
SILENT_S = 300.0
"""Seconds without a sign after which a process counts as gone. They are counted in turns of the
thread that looks: while all processes are suspended, as some schedulers do it, none pass."""

ENDED = 10**12
"""Added to the signs of a process that is done: nobody waits for more."""

MENDABLE = 2
"""Exit code of what a user can mend, as of `common.shell.failure`."""


@contextmanager
def watched(store: dist.Store, rank: int, size: int, first_that_fails: str) -> Iterator[None]:
    """End this process, with a sentence, if one that it looks at gives no sign during a block.

    Args:
        store: of the run.
        rank: of this process.
        size: number of processes.
        first_that_fails: key of the store, set by the process that speaks for all.
    """
    if size == 1:
        yield
        return
    # a connection of its own: a thread that waits in the other one would keep signs back
    watch = _Watch(store.clone(), rank, size, first_that_fails)
    watch.begin()
    try:
        yield
    finally:
        watch.end()


class _Watch:
    """Gives signs of this process, and looks for those of others."""

    def __init__(self, store: dist.Store, rank: int, size: int, first_that_fails: str):
        self.store = store
        self.rank = rank
        self.others = range(1, size) if rank == 0 else range(1)
        self.first_that_fails = first_that_fails
        self.signs = dict.fromkeys(self.others, 0)
        self.silent_s = dict.fromkeys(self.others, 0.0)
        self.store_silent_s = 0.0
        self.is_over = threading.Event()
        self.threads = [
            threading.Thread(target=self._give_signs, daemon=True),
            threading.Thread(target=self._look_at_store, daemon=True),
        ]

    def begin(self) -> None:
        self.store.set(f"machine {self.rank}", platform.node())
        self.store.add(f"signs {self.rank}", 1)
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        self.is_over.set()
        for thread in self.threads:
            thread.join(BEAT_EVERY_S)  # a store that does not answer keeps nobody

    def _give_signs(self) -> None:
        # RuntimeError: torchrun is gone, and took the store along; that is noticed elsewhere
        with suppress(RuntimeError):
            while not self.is_over.wait(BEAT_EVERY_S):
                self.store.add(f"signs {self.rank}", 1)
                for other in self.others:
                    self._look_at(other)
                self.store_silent_s = 0.0
            self.store.add(f"signs {self.rank}", ENDED)
        self.is_over.set()

    def _look_at(self, other: int) -> None:
        signs = self.store.add(f"signs {other}", 0)
        # 0: it has not begun, and is waited for where processes meet
        is_waited_for = 0 < signs < ENDED
        if not is_waited_for or signs != self.signs[other]:
            self.silent_s[other] = 0.0
        else:
            self.silent_s[other] += BEAT_EVERY_S
        self.signs[other] = signs
        if self.silent_s[other] < SILENT_S:
            return
        own = f"{self.rank} mendable"
        if self.store.compare_set(self.first_that_fails, "", own).decode() == own:
            machine = self.store.get(f"machine {other}").decode()
            _say(f"process {other}, on {machine},")
        os._exit(MENDABLE)

    def _look_at_store(self) -> None:
        """The thread that gives signs waits as long as the store does not answer."""
        while not self.is_over.wait(BEAT_EVERY_S):
            self.store_silent_s += BEAT_EVERY_S
            if self.store_silent_s >= SILENT_S:
                _say(f"the machine that the processes met on, {os.environ['MASTER_ADDR']},")
                os._exit(MENDABLE)


def _say(who: str) -> None:
    with suppress(OSError):
        sys.stderr.write(
            f"error: {who} gave no sign for {talk.duration(SILENT_S)}: it is off, cut from the "
            "network or stopped. See to it, or leave it out; the same command goes on from the "
            "last checkpoint\n"
        )
        sys.stderr.flush()

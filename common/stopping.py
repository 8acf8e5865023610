"""Being told to stop: by Ctrl-C, by the signals of a scheduler, by the end of a time limit.

Nothing heavy is imported here: a command listens to signals before its libraries are loaded.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.errors import UserError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the number of SIGINT."""

NOT_FINISHED = 75
"""Exit code of a command that is to be started again: EX_TEMPFAIL of sysexits.h."""

# SIGUSR2 is what LSF sends at a job's run limit, SIGUSR1 what sbatch --signal is mostly given,
# SIGHUP what a closed terminal sends; SIGALRM is our own, of time_limit. SIGQUIT is left out: it
# ends a process at once, with a core
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM")

SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""The signals that ask to stop; Windows has two of them."""

# what goes to a job's processes often comes twice, to the group and to each of them
TWICE_S = 1.0
"""Seconds in which a second signal counts as the same."""

RESERVE_S = 60.0
"""Seconds of a time limit that are kept for saving; of limits under ten minutes a tenth."""

LONGEST_S = 10**9
"""Seconds of a time limit, 30 years: the clocks of the system do not take much more."""


ShouldStop = Callable[[], bool]
"""Asked between two pieces of work: whether to end there."""


def never() -> bool:
    """Return that nothing asks to stop."""
    return False


class Stopped(KeyboardInterrupt):
    """Something other than Ctrl-C asks this process to end; the same command is to go on later."""


def error_of(number: int) -> KeyboardInterrupt:
    """What a signal raises where there is nothing to save."""
    if number == signal.SIGINT:
        return KeyboardInterrupt()
    return Stopped(f"stopped by {_cause(number)}; the same command goes on")


def exit_code(error: KeyboardInterrupt) -> int:
    """With what a command ends that was stopped."""
    return NOT_FINISHED if isinstance(error, Stopped) else INTERRUPTED


class Stop:
    """Whether to stop: true once a signal came, or when time is too short for one more round.

    A round is what happens between two calls: a step, or the end of an epoch with its validation,
    figures and checkpoint.
    """

    def __init__(self, patience_s: float = 0.0) -> None:
        """Make one. patience_s: see `interruptible`."""
        self.patience_s = patience_s
        self.number = 0
        """The first signal; 0 before it."""
        self.received = 0.0
        """Value of time.monotonic() when it came."""
        self.asked = time.monotonic()
        """Value of time.monotonic() at the last call."""
        self.longest = 0.0
        """Seconds of the longest round."""
        self._timer: threading.Timer | None = None

    def __call__(self) -> bool:
        """Whether to stop."""
        now = time.monotonic()
        self.longest = max(self.longest, now - self.asked)
        self.asked = now
        if not self.number and 0 < seconds_left() < self.longest:
            self.receive(signal.SIGALRM)
        return bool(self.number)

    def receive(self, number: int, frame: object = None) -> None:
        """Take note of a signal. The same one again ends the process at once."""
        now = time.monotonic()
        if not self.number:
            self.number = number
            self.received = now
            _tell(number)
            self._send_again(number)
        # another one is the next step of a scheduler, which is not to cut the saving short: LSF
        # sends SIGINT, then SIGTERM, then SIGKILL
        elif number == self.number and now - self.received > TWICE_S:
            raise error_of(number)

    def _send_again(self, number: int) -> None:
        """Let the same signal come again when patience is over."""
        if self.patience_s:
            self._timer = threading.Timer(self.patience_s, os.kill, (os.getpid(), number))
            self._timer.daemon = True
            self._timer.start()

    def is_over(self) -> None:
        """Nothing is waited for any more."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def by_user(self) -> bool:
        """Whether it was Ctrl-C: nobody starts the command again."""
        return self.number == signal.SIGINT


@contextmanager
def interruptible(patience_s: float = 0.0) -> Iterator[Stop]:
    """A `Stop` for a block that asks it, and saves; false in another thread than the main one.

    A KeyboardInterrupt that the block raises becomes Stopped where it was no Ctrl-C. patience_s:
    seconds after a signal in which the block is to end, or it comes again, which ends it at once; 0
    waits for as long as it takes.
    """
    stop = Stop(patience_s)
    with _handled_by(stop.receive):
        try:
            yield stop
        except KeyboardInterrupt as error:
            if isinstance(error, Stopped) or not stop.number or stop.by_user:
                raise
            raise Stopped from error
        finally:
            stop.is_over()


@contextmanager
def at_once() -> Iterator[None]:
    """Let every signal end a block as Ctrl-C does, where there is nothing to save."""
    with _handled_by(_raise):
        yield


@contextmanager
def program() -> Iterator[None]:
    """The same for a whole program, whose exit code no signal changes any more after the block.

    What a process does after its last line, such as freeing libraries, may take a second.
    Schedulers send a signal to the group and to each process: the second one often comes in that
    time, and would turn exit code 75 into that of a process that was killed. Nothing is left to
    stop then.
    """
    # of several that torchrun started the libraries may wait, at the end, for those that are gone:
    # torchrun ends them by SIGTERM
    is_alone = "TORCHELASTIC_RUN_ID" not in os.environ
    with _handled_by(_raise, ignored_afterwards=is_alone):
        yield


def _raise(number: int, frame: object) -> None:
    if number != signal.SIGINT:
        _leave_a_closed_terminal(number)
    raise error_of(number)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Let a signal come in time before so many seconds are over; 0 is no limit."""
    if not seconds:
        yield
        return
    if not hasattr(signal, "setitimer"):
        raise UserError("--time-limit needs signals that Windows does not have; leave it out")
    with at_once():
        signal.setitimer(signal.ITIMER_REAL, seconds - min(RESERVE_S, seconds / 10))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def seconds_left() -> float:
    """Seconds until the signal of the time limit; 0 without one, or after it."""
    return signal.getitimer(signal.ITIMER_REAL)[0] if hasattr(signal, "getitimer") else 0.0


_PARTS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")

_CLOCK = re.compile(r"(\d+):([0-5]\d):([0-5]\d)")


def seconds_of(text: str) -> float:
    """Seconds of a duration: 90s, 30m, 11h, 1d2h or 11:30:00. Raises ValueError for others."""
    clock = _CLOCK.fullmatch(text)
    if clock:
        hours, minutes, seconds = map(int, clock.groups())
        total = hours * 3600 + minutes * 60 + seconds
    else:
        parts = _PARTS.fullmatch(text)
        numbers = [int(number or 0) for number in parts.groups()] if parts else [0] * 4
        total = sum(n * unit for n, unit in zip(numbers, (86400, 3600, 60, 1), strict=True))
    if not 0 < total <= LONGEST_S:
        raise ValueError(text)
    return float(total)


@contextmanager
def _handled_by(
    handler: Callable[[int, object], None], ignored_afterwards: bool = False
) -> Iterator[None]:
    """Have the signals that ask to stop handled in a block.

    ignored_afterwards: all but Ctrl-C are ignored after the block, not handled as before it.
    """
    before = {}
    try:
        for number in SIGNALS:
            if not _stays_ignored(number):
                before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread: Python delivers no signal to it
        before = {}
    try:
        yield
    finally:
        for number, previous in before.items():
            afterwards = signal.SIG_DFL if previous is None else previous
            if ignored_afterwards and number != signal.SIGINT:
                afterwards = signal.SIG_IGN
            signal.signal(number, afterwards)


def _stays_ignored(number: int) -> bool:
    """Whether who started this process wants it to live through a signal, as nohup does."""
    # shells have every background job ignore SIGINT, whatever its user wants
    return number != signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN


def _tell(number: int) -> None:
    """Say what happens; a message that cannot be written does not keep a run from saving."""
    # RuntimeError: a signal may come in the middle of writing to the same stream
    with contextlib.suppress(OSError, RuntimeError):
        from common.talk import say  # whoever can be told has imported it

        say(f"\n{_cause(number)}: stopping after this step; once more ends at once")
    _leave_a_closed_terminal(number)


def _leave_a_closed_terminal(number: int) -> None:
    """After SIGHUP, write nothing to terminals: one that is gone raises, and nothing is saved."""
    if signal.Signals(number).name != "SIGHUP":
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            descriptor = stream.fileno()
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _cause(number: int) -> str:
    name = signal.Signals(number).name
    return {"SIGALRM": "the time limit", "SIGINT": "Ctrl-C"}.get(name, name)

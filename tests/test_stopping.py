"""Being told to stop: which signals, what they raise, how long a time limit leaves."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from conftest import started

from common import stopping
from common.files import REPOSITORY
from common.stopping import Stopped

OTHERS = [number for number in stopping.SIGNALS if number != signal.SIGINT]


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """What `stopping` takes for the time, in seconds, and for what a time limit leaves."""
    now = SimpleNamespace(time=100.0, left=0.0)
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now.time)
    monkeypatch.setattr(stopping, "seconds_left", lambda: now.left)
    return now


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_is_remembered_in_a_block_that_saves(number):
    before = signal.getsignal(number)
    with stopping.interruptible() as stopped:
        assert not stopped()
        signal.raise_signal(number)
        assert stopped()
        assert stopped.by_user == (number == signal.SIGINT)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", OTHERS)
def test_what_is_no_ctrl_c_is_told_from_it(number):
    with pytest.raises(Stopped) as ended, stopping.interruptible():
        signal.raise_signal(number)
        raise KeyboardInterrupt
    assert stopping.exit_code(ended.value) == 75
    with pytest.raises(Stopped, match="the same command goes on"), stopping.at_once():
        signal.raise_signal(number)


def test_ctrl_c_is_what_it_is():
    for block in (stopping.interruptible, stopping.at_once):
        with pytest.raises(KeyboardInterrupt) as ended, block():
            signal.raise_signal(signal.SIGINT)
            raise KeyboardInterrupt
        assert stopping.exit_code(ended.value) == 130


def test_the_same_signal_again_ends_at_once_and_another_one_does_not(clock):
    with pytest.raises(Stopped), stopping.interruptible():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # to the group, and to the process
        clock.time += 2 * stopping.TWICE_S
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        raise Stopped


def test_what_is_ignored_stays_ignored_as_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.interruptible() as stopped:
            signal.raise_signal(signal.SIGHUP)
            assert not stopped()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_time_is_up_when_the_longest_round_would_not_fit(clock):
    clock.left = 100.0
    with stopping.interruptible() as stopped:
        for seconds in (1, 30, 1):
            clock.time += seconds
            clock.left -= seconds
            assert not stopped()
        clock.left = 31.0
        assert not stopped()
        clock.left = 29.0
        assert stopped() and not stopped.by_user


def test_a_time_limit_keeps_a_reserve():
    for limit, reserve in ((36000, 60), (100, 10)):
        with stopping.time_limit(limit):
            assert limit - reserve - 1 < stopping.seconds_left() <= limit - reserve
        assert stopping.seconds_left() == 0
    with stopping.time_limit(0):
        assert stopping.seconds_left() == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("11h", 39600),
        ("1d2h", 93600),
        ("1h30m5s", 5405),
        ("11:30:00", 41400),
        ("100:00:01", 360001),
    ],
)
def test_durations(text, seconds):
    assert stopping.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "11:30", "h", "1h2d", "1.5h", "-1h", "0s", "1:99:00"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError):
        stopping.seconds_of(text)


CLOSED = """
import sys
from common import stopping
from common.talk import say
with stopping.interruptible() as stopped:
    print("ready", flush=True)
    sys.stdin.readline()
    while not stopped():
        pass
    say("saving")
    open(sys.argv[1], "w").close()
"""


def test_a_run_whose_terminal_is_closed_can_still_write(tmp_path):
    """The terminal's other end is closed: it sends SIGHUP, and writing to it fails from then on."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-c", CLOSED, str(tmp_path / "saved")]
    pipes = {"stdin": subprocess.PIPE, "stdout": theirs, "stderr": theirs}
    with started(words, cwd=REPOSITORY, **pipes) as process:
        os.close(theirs)
        assert os.read(ours, 5) == b"ready"
        os.close(ours)
        process.stdin.close()
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0
    assert (tmp_path / "saved").exists()


def test_a_block_that_does_not_end_in_time_is_ended(monkeypatch):
    monkeypatch.setattr(stopping, "TWICE_S", 0.0)
    with pytest.raises(Stopped, match="SIGTERM"), stopping.interruptible(0.1) as stopped:
        signal.raise_signal(signal.SIGTERM)
        assert stopped()
        threading.Event().wait(60)


def test_a_block_that_ends_in_time_is_left_alone(monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda *words: sent.append(words))
    before = set(threading.enumerate())
    with stopping.interruptible(60) as stopped:
        signal.raise_signal(signal.SIGTERM)
        assert stopped()
        [timer] = set(threading.enumerate()) - before
        assert timer.is_alive()
    timer.join(60)
    assert not timer.is_alive()
    assert not sent


TOLD_EARLY_AND_LATE = """
import atexit, os, signal, sys

told = []

def tell():
    told.append(1)
    os.kill(os.getpid(), signal.SIGTERM)

class Imports:
    def find_spec(self, name, *_):
        package = name.partition(".")[0]
        ours = package in ("common", "cellmap_segmentation_challenge")
        if not ours and package not in sys.stdlib_module_names and not told:
            tell()

sys.meta_path.insert(0, Imports())
atexit.register(tell)
sys.argv = ["csc", "--version"]
from cellmap_segmentation_challenge.__main__ import main
main()
"""


def test_a_signal_before_the_first_library_and_one_at_the_end_give_one_exit_code():
    words = [sys.executable, "-c", TOLD_EARLY_AND_LATE]
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (75, "")


def test_a_program_of_torchruns_can_be_ended_at_its_end(monkeypatch):
    """Its libraries may wait there for processes that are gone."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with stopping.program():
        pass
    assert signal.getsignal(signal.SIGTERM) is before

"""Workers that die, hang or find no room: others take their place, what is read is the same."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import wait_until

from common import talk
from common.data.samples import workers
from common.data.samples.workers import Reading, WorkerLost

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than cores


class Numbers:
    """Sample k is a tensor of k; some samples end the worker that reads them."""

    def __init__(self, fatal: dict[int, int] | None = None, folder=None):
        self.fatal = fatal or {}
        self.folder = folder
        """Where is marked which were fatal; without one they are so each time."""

    def __getitem__(self, k: int) -> torch.Tensor:
        if k in self.fatal and multiprocessing.parent_process() is not None:
            mark = self.folder / str(k) if self.folder else None
            if mark is None or not mark.exists():
                if mark:
                    mark.touch()
                os.kill(os.getpid(), self.fatal[k])
        return torch.full((100,), k)


def reading(dataset: Numbers, num_workers: int = 2, time_limit: float = 0.0) -> Reading:
    return Reading(
        dataset=dataset,
        batch_size=4,
        num_workers=num_workers,
        pin_memory=False,
        where=lambda k: f"cell/crop{k % 3}",
        time_limit=time_limit,
    )


def read(dataset: Numbers, stop: int = 100, **given) -> list[list[int]]:
    batches = reading(dataset, **given).of(range(stop))
    return [[int(item[0]) for item in batch] for batch in batches]


EXPECTED = [[*range(k, min(k + 4, 42))] for k in range(0, 42, 4)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Whether workers live is looked after soon; nothing was said before."""
    monkeypatch.setattr(workers, "POLL_S", 0.1)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(talk, "_noted", set())


def test_samples_are_read_in_order_by_any_number_of_workers():
    for count in (0, 1, 3):
        assert read(Numbers(), 42, num_workers=count) == EXPECTED


@pytest.mark.parametrize(
    ("number", "name", "advice"),
    [(signal.SIGKILL, "SIGKILL", "want of memory"), (signal.SIGTERM, "SIGTERM", "see that memory")],
)
def test_a_worker_that_is_killed_is_named_with_its_crop_and_replaced(
    tmp_path, capsys, number, name, advice
):
    assert read(Numbers({10: number, 29: number}, tmp_path), 42) == EXPECTED
    said = capsys.readouterr().err
    for k in (10, 29):
        assert f"that read samples ended ({name}) at sample {k}, in cell/crop{k % 3}: " in said
    assert advice in said
    assert "(1 of 3 times)" in said and "(2 of 3 times)" in said


def stopped() -> list[int]:
    """The children of this process that were stopped by a signal: T in Linux' table."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:  # it is gone by now
            continue
        if state == "T" and int(parent) == os.getpid():
            found.append(int(path.parent.name))
    return found


@pytest.fixture
def clock(monkeypatch):
    """Hours pass, and no time else, while a worker is stopped."""
    now = [0.0]

    def monotonic() -> float:
        if stopped():
            now[0] += 3600
        return now[0]

    # the watch's own clock: torch and multiprocessing wait by that of the module time
    monkeypatch.setattr(workers, "monotonic", monotonic)


@pytest.mark.usefixtures("clock")
def test_a_worker_that_hangs_is_named_with_its_crop_and_replaced(tmp_path, capsys):
    """It is stopped, as by a disk that does not answer."""
    dataset = Numbers({10: signal.SIGSTOP, 33: signal.SIGSTOP}, tmp_path)
    assert read(dataset, 42, time_limit=7000) == EXPECTED
    said = capsys.readouterr().err
    for k in (10, 33):
        assert (
            f"no worker gave sample {k}, in cell/crop{k % 3}, for 1.9 h (worker_time_limit)" in said
        )


@pytest.mark.usefixtures("clock")
def test_one_that_hangs_each_time_ends_with_a_sentence():
    with pytest.raises(WorkerLost, match=r"no worker gave sample 10, .*3 times, in vain"):
        read(Numbers({10: signal.SIGSTOP}), time_limit=7000)


def begun_since(before: list) -> list:
    """Return this process's children but for those that were there: of a test before, perhaps."""
    return [child for child in multiprocessing.active_children() if child not in before]


def test_workers_that_hang_are_gone_when_nobody_reads_any_more():
    """Python waits at its end for all of its children."""
    before = multiprocessing.active_children()
    stream = reading(Numbers({2: signal.SIGSTOP, 6: signal.SIGSTOP})).of(range(42))
    children = begun_since(before)
    assert len(children) == 2
    wait_until(lambda: len(stopped()) == 2)
    del stream
    for child in children:
        child.join(20)
        assert child.exitcode == -signal.SIGKILL


def test_one_that_is_killed_each_time_ends_with_a_sentence():
    with pytest.raises(
        WorkerLost, match=r"SIGKILL\) at sample 10, in cell/crop1.*3 times, in vain"
    ):
        read(Numbers({10: signal.SIGKILL}))


def test_many_that_are_killed_now_and_then_end_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "RECENT", 3)
    fatal = dict.fromkeys(range(3, 42, 8), signal.SIGKILL)
    assert len(fatal) > workers.RESTARTS
    assert read(Numbers(fatal, tmp_path), 42) == EXPECTED


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("unable to allocate shared memory(shm): No space left on device (28)", "/dev/shm is full"),
        ("unable to open shared memory object: Too many open files (24)", "ulimit -n"),
    ],
)
def test_where_there_is_no_room_for_samples_they_are_read_in_the_training_process(
    monkeypatch, capsys, error, sentence
):
    """What torch raises in a thread of the worker, which printed it while the trainer waited."""

    def full(*_: object) -> None:
        raise RuntimeError(error)

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    assert read(Numbers(), 42) == EXPECTED
    said = capsys.readouterr().err
    assert sentence in said
    assert "read in the training process from here on" in said


def test_a_worker_that_the_system_ends_for_full_shared_memory_is_not_begun_again(tmp_path, capsys):
    assert read(Numbers({10: signal.SIGBUS}), 42) == EXPECTED
    assert "read in the training process from here on" in capsys.readouterr().err


def test_what_a_sample_raises_comes_through():
    class Broken(Numbers):
        def __getitem__(self, k: int) -> torch.Tensor:
            raise RuntimeError("a bug")

    for count in (0, 2):
        with pytest.raises(RuntimeError, match="a bug"):
            read(Broken(), num_workers=count)


# Room


def that_fit(num_workers: int, item_bytes: int = 1000, batches: int = 100) -> int:
    return workers.that_fit(
        reading(Numbers(), num_workers), item_bytes, item_tensors=2, batches=batches
    )


@pytest.mark.parametrize(
    ("free", "fits"), [(10**6, 8), (64_000, 8), (63_999, 7), (8_000, 1), (7_999, 0)]
)
def test_as_many_workers_begin_as_shared_memory_has_room_for(monkeypatch, capsys, free, fits):
    """Two batches of four samples of 1000 bytes for each."""
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert that_fit(8) == fits
    said = capsys.readouterr().err
    if fits < 8:
        assert "/dev/shm" in said and "--shm-size" in said
    else:
        assert not said


def test_few_batches_need_little_room(monkeypatch):
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: SimpleNamespace(free=8_000))
    assert that_fit(8, batches=2) == 8


@pytest.fixture
def handles():
    """Sets the limit of open files, and back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda soft, hard=before[1]: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_of_file_handles_is_raised_as_far_as_it_may_be(handles, capsys):
    handles(128)
    assert that_fit(8) == 8
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 128 < soft <= hard
    assert not capsys.readouterr().err


def test_the_limit_is_raised_where_more_files_are_open_than_it_allows(handles, tmp_path):
    with contextlib.ExitStack() as stack:
        for number in range(150):
            stack.enter_context((tmp_path / str(number)).open("w"))
        handles(128)
        assert that_fit(8) == 8
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft > 128 + 150


FEW_HANDLES = """
import resource
import sys

from cellmap_segmentation_challenge.__main__ import main

limit = int(sys.argv.pop())
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
main()
"""


@pytest.mark.slow
def test_a_run_with_few_file_handles_says_so_and_trains(experiment, forked):
    """A limit that it cannot raise: that of a process for itself alone."""
    tiny = experiment(num_workers=2, batch_size=4, epochs=1)
    expected = tiny.train(run_name="undisturbed")
    words = ["train", tiny.folder, "--data", tiny.data]
    code, _, said = forked(*words, "110", program=FEW_HANDLES).ended()
    assert code == 0, said
    assert "too few file handles" in said
    states = []
    for run in ("undisturbed", "seed42"):
        path = tiny.config(run_name=run).path("model_save_path") / "latest.pt"
        states.append(torch.load(path, weights_only=True)["model"])
    assert expected.finished
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# Memory


class Megabytes:
    """Sample k is 2 MB of k, out of NumPy as blocks of crops are."""

    def __getitem__(self, k: int) -> torch.Tensor:
        return torch.from_numpy(np.full(250_000, k))


def memory_of(processes: list, kind: str) -> int:
    """Bytes of a kind (RssAnon, RssShmem) that these processes have, the largest of them."""
    found = []
    for process in processes:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith(kind))
        found.append(1024 * int(line.split()[1]))
    return max(found)


def test_workers_take_no_more_memory_than_they_are_given_however_long_they_read():
    """In shared memory as much as `that_fit` counts, two batches each; beside it, one more."""
    batch_bytes = 4 * 2_000_000
    before = multiprocessing.active_children()
    stream = reading(Megabytes()).of(range(400))
    processes = begun_since(before)
    anonymous = []
    for number, _ in enumerate(stream):
        shared = memory_of(processes, "RssShmem")
        # and the batch that this process looks at
        assert shared <= (workers.READ_AHEAD + 1) * batch_bytes + 2**20
        if number in (10, 80):
            anonymous.append(memory_of(processes, "RssAnon"))
        if number == 80:
            break
    first, last = anonymous
    assert last - first <= 2 * batch_bytes


def test_a_team_that_a_stop_kept_from_starting_is_gone_without_a_word(monkeypatch):
    def stopped(loader):
        raise KeyboardInterrupt

    monkeypatch.setattr(workers.DataLoader, "__iter__", stopped)
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    reading = Reading(range(2), 1, num_workers=0, pin_memory=False, where=str, time_limit=0)
    with pytest.raises(KeyboardInterrupt):
        workers._Team(reading, [0, 1], 0, 0)
    gc.collect()
    assert not complaints

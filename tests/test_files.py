"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import DEADLINE, started

from common import files
from common.errors import Busy, FileError, UserError


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "new folder" / "a.txt"
    with files.replacing(path, durable=True) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_name_that_is_taken_gets_the_first_number_that_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.free_name("split.csv") == "split.csv"
    for name in ("split.csv", "split2.csv"):
        (tmp_path / name).touch()
    assert files.free_name("split.csv") == "split3.csv"


def test_what_fails_leaves_the_file_before_it_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError("a bug keeps its traceback")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_process_left_a_day_ago_is_removed_and_what_may_be_being_written_is_not(tmp_path):
    path = tmp_path / "submission.zip"
    old = time.time() - files.ABANDONED_S - 60
    kept = (".other.zip.0123456789ab", ".submission.zip.2x")
    for name in (".submission.zip.17", ".submission.zip.0123456789ab", *kept):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (old, old))
    young = tmp_path / ".submission.zip.ab0123456789"
    young.write_text("half")
    files.write_text(path, "whole")
    assert {file.name for file in tmp_path.iterdir()} == {path.name, young.name, *kept}


def test_a_sole_writer_writes_over_what_a_killed_process_left(tmp_path):
    path = tmp_path / "chunk"
    (tmp_path / ".chunk.part").write_text("half")
    with files.replacing(path, sole_writer=True) as temporary:
        temporary.write_text("whole")
    assert [file.name for file in tmp_path.iterdir()] == ["chunk"]


def test_processes_of_one_number_on_two_machines_write_files_of_their_own(tmp_path, monkeypatch):
    """As in two containers, in each of which the program is process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "a"
    with files.replacing(path) as here, files.replacing(path) as there:
        here.write_text("here")
        there.write_text("there")
        assert here.read_text() == "here"
    assert path.read_text() == "here" and list(tmp_path.iterdir()) == [path]


def test_what_is_swept_is_of_the_named_files_alone(tmp_path):
    for name in (".a.pt.17", ".a.pt.0123456789ab", ".b.pt.17", ".a.pt.part", ".a.pt.lock", "a.pt"):
        (tmp_path / name).touch()
    files.sweep(tmp_path, ["a.pt"])
    assert {path.name for path in tmp_path.iterdir()} == {
        ".b.pt.17",
        ".a.pt.part",
        ".a.pt.lock",
        "a.pt",
    }


def test_a_full_disk_is_a_sentence_with_the_file_and_what_stands(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with (
        pytest.raises(FileError, match="the one before it stands") as caught,
        files.replacing(path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(caught.value).startswith(f"{path}: could not be written (No space left")
    assert isinstance(caught.value, UserError)


def test_a_file_that_is_read_while_another_is_written_keeps_its_own_error(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"source\.txt"),
        files.replacing(tmp_path / "a.txt") as temporary,
    ):
        temporary.write_text((tmp_path / "source.txt").read_text())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="could not be written"):
        files.write_text(tmp_path / "file" / "a.txt", "text")


def test_what_stands_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "logs").touch()
    with pytest.raises(FileError, match=rf"a.txt: could not be written \({tmp_path}/logs is no fo"):
        files.write_text(tmp_path / "logs" / "deep" / "a.txt", "text")


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: a folder, where a file is meant; move it"):
        files.is_file(tmp_path)
    assert not files.is_file(tmp_path / "none")


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"a": float("nan")})
    files.write_json(tmp_path / "a.json", {"a": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


@contextlib.contextmanager
def holding(lock):
    """A process that holds a lock; it lets go when a line is written to it."""
    program = """
import sys
from common.files import alone
with alone(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""
    command = [sys.executable, "-c", program, str(lock)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with started(command, cwd=files.REPOSITORY, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        yield other


def test_a_lock_of_another_user_is_known_to_be_held_by_whoever_may_only_read_it(
    tmp_path, monkeypatch
):
    lock = tmp_path / ".lock"

    def denied(path, wait):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(files, "_lock", denied)
    with holding(lock) as other:
        assert files.is_held(lock)
        assert files.holder_of(lock).startswith(f"process {other.pid} on ")
        other.kill()
        other.wait(timeout=DEADLINE)
    assert lock.exists() and not files.is_held(lock)


def test_one_process_holds_a_lock_until_it_ends(tmp_path):
    lock = tmp_path / "folder" / ".lock"
    with holding(lock) as other:
        assert files.is_held(lock)
        holder = f"process {other.pid} on {socket.gethostname()} has it"
        with pytest.raises(Busy, match=holder), files.alone(lock, otherwise="{holder} has it"):
            pass
        other.kill()
    assert lock.exists()  # which blocks nobody
    with files.alone(lock, otherwise="busy"):
        assert lock.exists()
    assert not lock.exists() and not files.is_held(lock)


def test_a_lock_whose_file_is_removed_while_it_is_opened_is_taken_anew(tmp_path, monkeypatch):
    """Its holder removes it when it ends: a lock on a file that is gone would keep nobody away."""
    lock = tmp_path / ".lock"
    acquire = files.InterProcessLock.acquire
    calls = []

    def acquire_late(self, **options):
        held = acquire(self, **options)
        calls.append(1)
        if len(calls) == 1:
            lock.unlink()
        return held

    monkeypatch.setattr(files.InterProcessLock, "acquire", acquire_late)
    with files.alone(lock):
        assert lock.exists() and len(calls) == 2


@pytest.fixture
def locks_of_this_machine_alone(monkeypatch):
    """As on a network disk whose locks do not reach other machines: everybody gets the lock."""
    monkeypatch.setattr(files.InterProcessLock, "trylock", lambda lock: None)
    monkeypatch.setattr(files.InterProcessLock, "unlock", lambda lock: None)


def test_a_lock_that_another_machine_takes_too_is_noticed_by_who_had_it_first(
    tmp_path, locks_of_this_machine_alone
):
    lock = tmp_path / ".lock"
    with files.alone(lock):
        files.refuse_taken(lock)
        with holding(lock) as other:
            taken = f"{lock}: process {other.pid} on {socket.gethostname()} has it too"
            with pytest.raises(UserError, match=taken):
                files.refuse_taken(lock)
    assert files.mark() not in lock.read_text()  # that of the other one stands


def test_a_lock_whose_file_somebody_removes_is_still_held_until_another_takes_it(
    tmp_path, locks_of_this_machine_alone
):
    lock = tmp_path / ".lock"
    with files.alone(lock):
        lock.unlink()
        files.refuse_taken(lock)
        with holding(lock), pytest.raises(UserError, match="has it too"):
            files.refuse_taken(lock)


def test_threads_of_the_holder_may_ask_at_once_whether_it_was_taken(tmp_path):
    lock = tmp_path / ".lock"
    with files.alone(lock), ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(files.refuse_taken, lock) for _ in range(2000)]
        assert all(answer.result() is None for answer in asked)


def test_to_ask_whether_a_lock_is_held_takes_it_from_nobody(tmp_path, locks_of_this_machine_alone):
    lock = tmp_path / ".lock"
    with holding(lock):
        written = lock.read_text()
        assert not files.is_held(lock)  # which cannot be known here
        assert lock.read_text() == written


def test_a_process_of_the_same_number_and_host_is_another(tmp_path, monkeypatch):
    with files.alone(tmp_path / ".lock"):
        written = (tmp_path / ".lock").read_text()
    monkeypatch.setattr(files, "_SELF", "0123456789ab")
    assert files.mark().split()[:2] == written.split()[:2] and files.mark() != written


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def trylock(self):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.InterProcessLock, "trylock", trylock)
    with files.alone(tmp_path / ".lock"):
        assert "has no locks (No locks available)" in capsys.readouterr().err


def test_hashes_tell_content_apart_and_not_the_order_of_keys(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_of_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert files.key_of({"a": 1, "b": [2]}) == files.key_of({"b": [2], "a": 1})
    assert files.key_of({"a": 1}) != files.key_of({"a": 2})


def test_the_cache_is_the_set_one_else_that_of_the_environment_else_the_repositorys(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("CELLMAP_CACHE", str(tmp_path / "environment"))
    files.use_cache(tmp_path / "set")
    assert files.cache_folder() == tmp_path / "set"
    files.use_cache(None)
    assert files.cache_folder() == tmp_path / "environment"
    monkeypatch.delenv("CELLMAP_CACHE")
    assert files.cache_folder() == files.REPOSITORY / "cache"


def test_a_cache_under_the_home_folder_and_one_beside_the_working_folder_are_absolute(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    files.use_cache("~/weights")
    assert files.cache_folder() == tmp_path / "weights"
    monkeypatch.chdir(tmp_path)
    files.use_cache("weights")
    monkeypatch.chdir("/")
    assert files.cache_folder() == tmp_path / "weights"


def test_a_file_that_may_not_be_written_asks_for_another_folder_and_not_for_space():
    error = PermissionError(errno.EACCES, "Permission denied")
    said = str(files.not_written(files.REPOSITORY / "cache" / "a.json", error))
    assert said.endswith(
        "Mend that (name another folder: CELLMAP_CACHE=FOLDER) and run the same command again"
    )

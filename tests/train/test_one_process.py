"""A run is one process's."""

from __future__ import annotations

import signal
import socket

import pytest
from conftest import wait_until

from common import files
from common.errors import UserError

HELD = """
    def build_model(classes):
        import threading

        print("building", flush=True)
        threading.Event().wait(300)
    """
"""Stands still before anything of the run is written."""


def test_a_second_process_is_refused_and_a_killed_one_blocks_nobody(experiment, run, forked):
    tiny = experiment(text=HELD)
    words = ["train", str(tiny.folder), "--data", str(tiny.data), "--set", "epochs=1"]
    checkpoints = tiny.config().path("model_save_path")
    first = forked(*words)
    wait_until(lambda: first.out.read_text() == "building\n", first)
    code, _, said = run(*words)
    assert code == 2
    assert f"process {first.pid} on {socket.gethostname()} trains run 'seed42'" in said
    assert "--set run_name=NAME" in said
    assert [path.name for path in checkpoints.iterdir()] == [".lock"]
    assert not tiny.config().path("logs_save_path").exists()
    first.send_signal(signal.SIGKILL)
    first.ended()
    assert (checkpoints / ".lock").exists()
    tiny.write("train_config.py", (tiny.folder / "train_config.py").read_text().split("def ")[0])
    assert tiny.train(epochs=1).finished
    assert not (checkpoints / ".lock").exists()


def test_a_run_that_another_machine_takes_is_left_to_it(experiment, monkeypatch):
    """As on a disk whose locks do not reach from machine to machine: the second one gets it too."""
    monkeypatch.setattr(files.InterProcessLock, "trylock", lambda lock: None)
    monkeypatch.setattr(files.InterProcessLock, "unlock", lambda lock: None)
    tiny = experiment(epochs=4)
    checkpoints = tiny.config().path("model_save_path")
    kept = {}

    def report(epoch, value):
        if epoch == 2:
            (checkpoints / ".lock").write_text("17 other 0123456789ab\n")
            kept.update({path: path.read_bytes() for path in checkpoints.glob("*.pt")})
        return False

    with pytest.raises(UserError, match=r"\.lock: process 17 on other has it too"):
        tiny.train(report=report)
    assert kept
    assert {path: path.read_bytes() for path in checkpoints.glob("*.pt")} == kept
    assert (checkpoints / ".lock").read_text() == "17 other 0123456789ab\n"


def test_a_run_that_did_not_begin_leaves_no_folder(experiment):
    tiny = experiment(learning_rate=1e-3, text="def criterion(logits, target, w):\n    return 1")
    with pytest.raises(UserError):
        tiny.train()
    assert not (tiny.folder / "checkpoints").exists()


def test_processes_that_cannot_find_each_other_are_refused(experiment, monkeypatch):
    tiny = experiment(epochs=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="MASTER_ADDR, MASTER_PORT not set; start them by torchrun"):
        tiny.train()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert tiny.train().finished

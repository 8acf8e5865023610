"""What starts torchrun: GPUs by their numbers, processes, and where neither is right."""

from __future__ import annotations

import os

import pytest
import torch

from common.errors import UserError
from common.shell import launch
from common.train.processes import ranks


@pytest.fixture
def gpus(monkeypatch):
    """Makes torch find so many GPUs."""
    # set, so that it is put back
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def there(number: int, visible: str = "") -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return there


@pytest.mark.parametrize(
    ("chosen", "visible", "seen"),
    [("all", "", "0,1,2"), ("0,2", "", "0,2"), ("1,2", "5,6,7", "6,7")],
)
def test_the_processes_see_the_gpus_that_are_chosen(gpus, chosen, visible, seen):
    gpus(3, visible)
    assert launch.is_asked(chosen, None)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_one_gpu_or_one_process_needs_no_torchrun(gpus):
    gpus(2)
    assert not launch.is_asked("1", None)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert not launch.is_asked(None, 1)
    assert not launch.is_asked(None, None)
    assert launch.is_asked(None, 2)


@pytest.mark.parametrize(
    ("there", "chosen", "problem"),
    [
        (0, "all", "torch finds no CUDA device here; leave it out, or .* --processes N"),
        (2, "0,2", "this machine has 2 GPUs, numbered from 0"),
        (2, "1,1", ".*; write each at most once"),
        (2, "two", "write all, or numbers such as 0,1"),
    ],
)
def test_gpus_that_are_not_there_are_a_sentence(gpus, there, chosen, problem):
    gpus(there)
    with pytest.raises(UserError, match=f"--gpus {chosen}: {problem}"):
        launch.is_asked(chosen, None)


def test_a_process_of_torchrun_starts_no_others(monkeypatch):
    for name in ranks.OF_TORCHRUN:
        monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match="torchrun started this process already"):
        launch.is_asked(None, 2)
    monkeypatch.setenv(ranks.STARTED_BY_US, "2")
    assert not launch.is_asked(None, 2)


def test_what_is_one_process_s_is_refused_in_a_sentence(experiment, run, monkeypatch):
    folder = experiment().folder
    code, _, said = run("train", folder, "--check", "--processes", 2)
    assert code == 2 and "--check and --submit are one process's" in said
    code, _, said = run("train", folder, "--gpus", "0", "--processes", 2)
    assert code == 2 and "leave --processes out" in said
    for name in ranks.OF_TORCHRUN:
        monkeypatch.setenv(name, "1")
    code, _, said = run("search", folder)
    assert code == 2 and "search trains each trial by one process" in said


def test_a_gpu_for_each_process_or_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    group = ranks._Group(None, rank=3, size=4, local_rank=1, machine="1")
    monkeypatch.setattr(ranks, "_group", group)
    assert ranks.own_device("auto") == ranks.own_device("cuda") == "cuda:1"
    assert ranks.own_device("cpu") == "cpu"
    with pytest.raises(UserError, match=r"device = 'cuda:0' is one device, .* 4 processes;"):
        ranks.own_device("cuda:0")
    group.local_rank = 2
    with pytest.raises(UserError, match="process 3 has no GPU, of which there are 2; start 2"):
        ranks.own_device("auto")

"""A process of a run that gives no sign ends the others; one that is done, or begins, does not."""

from __future__ import annotations

import pytest
from torch.distributed import HashStore

from common.train.processes import alive

TURNS = int(alive.SILENT_S / alive.BEAT_EVERY_S)


class Ended(Exception):
    """Takes the place of the end of this process."""


@pytest.fixture
def watch(monkeypatch):
    """That of the first of two processes."""

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(alive.os, "_exit", end)
    monkeypatch.setenv("MASTER_ADDR", "first")
    store = HashStore()
    store.set("machine 1", "node7")
    return alive._Watch(store, 0, 2, "failed")


def test_a_process_that_is_silent_for_five_minutes_is_named_with_its_machine(watch, capfd):
    watch.store.add("signs 1", 5)
    for _ in range(TURNS):
        watch._look_at(1)
    with pytest.raises(Ended, match="2"):
        watch._look_at(1)
    assert capfd.readouterr().err.startswith(
        "error: process 1, on node7, gave no sign for 5 min: it is off, cut from the network or "
        "stopped."
    )


def test_one_process_speaks(watch, capfd):
    watch.store.set("failed", "3 bug")
    watch.store.add("signs 1", 5)
    with pytest.raises(Ended):
        for _ in range(TURNS + 1):
            watch._look_at(1)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("signs", [0, 7 + alive.ENDED])
def test_a_process_that_has_not_begun_or_is_done_may_be_silent(watch, signs):
    watch.store.add("signs 1", signs)
    for _ in range(2 * TURNS):
        watch._look_at(1)


def test_a_sign_begins_the_count_anew(watch):
    watch.store.add("signs 1", 5)
    for _ in range(3):
        for _ in range(TURNS):
            watch._look_at(1)
        watch.store.add("signs 1", 1)


def test_a_store_that_does_not_answer_ends_the_process(watch, monkeypatch, capfd):
    monkeypatch.setattr(watch.is_over, "wait", lambda _: False)
    with pytest.raises(Ended, match="2"):
        watch._look_at_store()
    assert "the machine that the processes met on, first, gave no sign" in capfd.readouterr().err

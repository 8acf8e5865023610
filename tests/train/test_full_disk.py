"""A disk that is full at any moment of a run: a sentence with a file name, later an equal end."""

from __future__ import annotations

import shutil

import pytest

from common.train import steps
from common.train.checkpointing import checkpoint
from tests.full_disk import small_disk
from tests.train.test_continuation import MODEL, SCHEDULE, assert_equal_ends


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "small") as disk:
        yield disk


@pytest.fixture
def short(experiment, monkeypatch):
    """Two epochs of two steps, each of which is saved and logged."""
    monkeypatch.setattr(steps, "LOG_EVERY", 1)
    return experiment(
        files={"model.py": MODEL},
        text=SCHEDULE,
        iterations_per_epoch=2,
        ema_decay=0.9,
        checkpoint_minutes=1e-9,
    )


ROOM = {
    "checkpoints": [0, 12, 40, 80],
    "logs": [0, 4, 8, 12, 20, 40],
    "cache": [0, 40, 200],
}
"""Folders that lie on a small disk, and kilobytes that are left on it."""


@pytest.mark.slow
@pytest.mark.parametrize("folder", ROOM)
def test_a_run_on_a_full_disk_says_so_and_ends_equal_when_there_is_room(
    short, disk, run, monkeypatch, folder
):
    short.train(run_name="undisturbed")
    if folder != "cache":  # where the cache is, the environment says
        place = short.folder / folder
        shutil.move(place, disk.folder / folder)
        place.symlink_to(disk.folder / folder)
    failed = 0
    for left in ROOM[folder]:
        words = ["train", short.folder, "--data", short.data, "--set", f"run_name=full{left}"]
        if folder == "cache":
            monkeypatch.setenv("CELLMAP_CACHE", str(disk.folder / f"full{left}"))
        disk.leave(left)
        code, _, said = run(*words)
        disk.free()
        assert code in (0, 2), said
        if code:
            failed += 1
            last = said.strip().splitlines()[-1]
            assert "No space left on device" in last, said
            assert str(disk.folder) in last or f"{folder}/" in last, said
            code, _, said = run(*words)
        assert code == 0, said
        assert_equal_ends(short, f"full{left}")
    assert failed > 1


def test_too_little_room_is_told_before_a_run_and_at_a_save(short, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "free_bytes", lambda _: 10_000)
    short.train(epochs=1)
    said = capsys.readouterr().err
    assert "10 kB free, and the checkpoints need" in said
    assert "10 kB free, and the next checkpoint needs" in said
    monkeypatch.setattr(checkpoint, "free_bytes", lambda _: 10**9)
    short.train(epochs=2)
    assert " free, and " not in capsys.readouterr().err

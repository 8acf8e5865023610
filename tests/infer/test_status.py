"""How far boxes are, as `status` says it."""

from __future__ import annotations

from pathlib import Path

from common.infer.machines import status


def test_a_folder_that_may_not_be_read_is_named_and_the_others_are_told(tmp_path, monkeypatch):
    for name in ("crop1", "crop2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / status.LOCK).touch()
    (tmp_path / "locked").mkdir()
    iterdir = Path.iterdir

    def guarded(folder):
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", guarded)
    assert status.status(tmp_path) == [
        f"{tmp_path}/crop1: 0 classes done",
        f"{tmp_path}/crop2: 0 classes done",
        f"{tmp_path}/locked: cannot be read (Permission denied); left out",
    ]

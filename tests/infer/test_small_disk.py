"""A disk that is full at any moment of predict and process: a sentence, later the same bytes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.full_disk import small_disk
from tests.infer.test_predict import save_weights


@pytest.fixture
def tiny(experiment):
    made = experiment()
    save_weights(made)
    return made


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "small") as disk:
        yield disk


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, without the time when a volume was made."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file():
            text = re.sub(rb'"made": "[^"]*"', b"", path.read_bytes())
            files[str(path.relative_to(folder))] = text
    return files


COMMANDS = {"predictions": ["predict", "--block", "8"], "processed": ["process"]}


@pytest.mark.slow
@pytest.mark.parametrize("folder", COMMANDS)
def test_a_command_on_a_full_disk_says_so_and_writes_the_same_bytes_when_there_is_room(
    tiny, disk, run, folder
):
    command, *words = COMMANDS[folder]
    words = [command, tiny.folder, "--data", tiny.data, *words]
    if folder == "processed":
        assert run("predict", tiny.folder, "--data", tiny.data)[0] == 0
    code, _, said = run(*words)
    assert code == 0, said
    place = tiny.folder / folder
    whole = contents(place)
    shutil.rmtree(place)
    place.symlink_to(disk.folder / folder)
    failed = 0
    for left in (0, 16, 40, 80, 160):
        (disk.folder / folder).mkdir()
        disk.leave(left)
        code, _, said = run(*words)
        disk.free()
        assert code in (0, 2), said
        if code:
            failed += 1
            last = said.strip().splitlines()[-1]
            assert "No space left" in last or "free" in last, said
            assert str(disk.folder) in last, said
            code, _, said = run(*words)
        assert code == 0, said
        assert contents(disk.folder / folder) == whole, left
        shutil.rmtree(disk.folder / folder)
    assert failed > 1

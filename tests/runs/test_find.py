"""Runs are found wherever they lie, each once, under a name that tells it apart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from event_files import value, write

from common.runs.events import events_by_folder
from common.runs.find import Run, distinct_names, find


def only(root: Path) -> Run:
    (run,) = find(root)
    return run


def test_a_run_knows_its_name_its_files_and_their_size(tmp_path):
    folder = tmp_path / "unet8_all/logs/unet8/seed42"
    first = write(folder, [value("a", 1, 1)])
    second = write(folder, [value("a", 2, 2)], 1)
    hparams = write(folder / "hparams", [])
    (folder / "history.csv").write_text("epoch\n1\n")
    os.utime(folder / "history.csv", (2e9, 2e9))
    run = only(tmp_path)
    assert (run.name, run.folder) == ("unet8_all/unet8/seed42", folder)
    assert set(run.events) == {first, second, hparams}
    assert run.size == sum(file.stat().st_size for file in (first, second, hparams))
    assert (run.written, run.encloses) == (2e9, False)
    assert events_by_folder(run) == {folder: [first, second], folder / "hparams": [hparams]}


def test_all_experiments_seeds_and_copies_are_found(tmp_path):
    for folder in ("unet8_all", "my_unet", "studies/lr/high"):
        for seed in (1, 2):
            write(tmp_path / folder / f"logs/unet8/seed{seed}", [])
    names = [
        f"{folder}/unet8/seed{seed}"
        for folder in ("high", "my_unet", "unet8_all")
        for seed in (1, 2)
    ]
    assert [run.name for run in find(tmp_path)] == names
    assert [run.name for run in find(str(tmp_path))] == names


def test_runs_of_the_public_toolbox_are_found(tmp_path):
    write(tmp_path / "wBCE/tensorboard/unet8", [])
    assert only(tmp_path).name == "wBCE/wBCE/unet8"


def test_a_root_may_be_a_folder_of_runs_of_any_name(tmp_path):
    write(tmp_path / "runs/a", [])
    write(tmp_path / "runs/b/c", [])
    write(tmp_path / "runs/data/not_searched", [])
    assert [run.name for run in find(tmp_path / "runs")] == ["runs/b/c", "runs/runs/a"]


def test_a_root_may_be_a_logs_folder(tmp_path):
    write(tmp_path / "exp/logs/m/s", [])
    assert only(tmp_path / "exp/logs").name == only(tmp_path / "exp").name == "exp/m/s"


def test_a_run_may_have_a_record_or_a_history_alone(tmp_path):
    for name in ("run.json", "history.csv"):
        (tmp_path / "exp/logs/m" / name).mkdir(parents=True)
        (tmp_path / "exp/logs/m" / name / name).write_text("{}")
    assert [(run.name, run.events, run.size) for run in find(tmp_path)] == [
        ("exp/m/history.csv", (), 0),
        ("exp/m/run.json", (), 0),
    ]


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing: no such folder"):
        find([tmp_path, tmp_path / "missing"])


def test_the_folder_of_united_runs_is_not_searched(tmp_path):
    write(tmp_path / "exp/logs/m/s", [])
    write(tmp_path / "all/logs/m/s", [])
    assert [run.name for run in find(tmp_path, tmp_path / "all")] == ["exp/m/s"]


def test_files_deleted_while_they_are_looked_for_are_left_out(tmp_path, monkeypatch):
    kept = write(tmp_path / "exp/logs/m/s", [value("a", 1, 1)])
    gone = write(tmp_path / "exp/logs/m/s", [], 1)
    whole = write(tmp_path / "exp/logs/m/gone", [])
    stat = Path.stat

    def vanish(path: Path, **options):
        if path in (gone, whole):
            raise FileNotFoundError
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", vanish)
    run = only(tmp_path)
    assert (run.events, run.size) == ((kept,), len(kept.read_bytes()))


def test_names_stay_distinct_where_parents_do_not_help():
    names = distinct_names([Path("/x/a-b/c"), Path("/x/a/b-c"), Path("/x/a/b/c"), Path("/")])
    assert len(set(names)) == 4
    assert not any("/" in name for name in names)

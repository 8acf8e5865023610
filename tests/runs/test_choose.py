"""Runs are chosen by their names, by globs and by folders."""

from __future__ import annotations

import pytest
from run_folders import make_run

from common.errors import UserError
from common.runs.choose import choose


def test_runs_are_named_as_in_tensorboard_by_globs_and_by_folders(tmp_path, monkeypatch):
    for name in ("a/m/seed1", "a/m/seed2", "a/n/seed1", "b/m/seed1"):
        make_run(tmp_path / "root", name, {"mito": 0.5})
    make_run(tmp_path / "elsewhere", "c/m/seed1", {"mito": 0.5})
    monkeypatch.chdir(tmp_path)

    def chosen(*names: str) -> list[str]:
        return [run.name for run in choose(names, tmp_path / "root")]

    assert chosen("b/m/seed1", "a/m/seed2") == ["b/m/seed1", "a/m/seed2"]
    assert chosen("*/seed1") == ["a/m/seed1", "a/n/seed1", "b/m/seed1"]
    assert chosen("a", "a/m/seed1") == ["a/m/seed1", "a/m/seed2", "a/n/seed1"]
    for name in ("a/m", "root/a/logs/m", str(tmp_path / "root/a/logs/m")):
        assert chosen(name) == ["a/m/seed1", "a/m/seed2"]
    assert chosen("elsewhere/c/logs/m/seed1", "elsewhere/c") == ["c/m/seed1"]


def test_runs_of_one_name_below_two_roots_are_told_apart(tmp_path):
    for root in ("one", "two"):
        make_run(tmp_path / root, "a/m/seed1", {"mito": 0.5})
    runs = choose(["a", str(tmp_path / "two/a")], tmp_path / "one")
    assert [run.name for run in runs] == ["one-a/m/seed1", "two-a/m/seed1"]


def test_an_experiment_of_the_working_folder_goes_before_one_of_the_root(tmp_path, monkeypatch):
    for name in ("a/m/seed1", "c/m/seed1"):
        make_run(tmp_path / "root", name, {"mito": 0.5})
    for name in ("c/m/seed1", "c/m/seed2"):
        make_run(tmp_path / "here", name, {"mito": 0.5})
    monkeypatch.chdir(tmp_path / "here")
    for names in (["c"], ["c/m/seed2", "c/*/seed1"], ["c/m"]):
        runs = choose([*names, "a"], tmp_path / "root")
        assert sorted(run.name for run in runs) == ["a/m/seed1", "c/m/seed1", "c/m/seed2"]
        assert {run.folder.relative_to(tmp_path).parts[0] for run in runs[:2]} == {"here"}


def test_an_unknown_run_is_refused_with_names_near_it(tmp_path):
    make_run(tmp_path, "unet/unet/seed42", {"mito": 0.5})
    with pytest.raises(UserError, match=r"'unet/unet/seed41' \(near it: unet/unet/seed42\)"):
        choose(["unet/unet/seed41"], tmp_path)

"""The command on a repository of experiments in a temporary folder: links, and what is said."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import DEADLINE, started
from event_files import append, start, value, version, write
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event

from common.files import REPOSITORY, alone
from common.runs import unite as unite_module
from common.shell.cli import cli
from common.stopping import Stopped


def add_run(folder: Path, number: int = 0, steps: Iterable[int] = (), restart: int = 0) -> Path:
    """Write an event file into `folder`, which supersedes others from the step `restart` on."""
    began = 1e5 * number
    events = [version(began), start(restart, began + 1), *losses(steps, number)]
    return write(folder, events, number)


def losses(steps: Iterable[int], number: int = 0) -> list[Event]:
    """Events of number + step / 1000 at each step."""
    return [value("loss", number + step / 1000, step, 1e5 * number + step + 2) for step in steps]


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's reader in Python makes of a run."""
    log = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    curves = {}
    for tag in log.Tags()["scalars"]:
        curves[tag] = [(event.step, round(event.value, 3)) for event in log.Scalars(tag)]
    return curves


def way(link: Path) -> str:
    """What a link says, to the letter."""
    return os.readlink(link)  # noqa: PTH115  Path.readlink drops the dot that marks ours


def unite(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["unite", str(root), "--no-serve", *arguments])


def links(root: Path) -> dict[str, str]:
    """Name and (resolved) target, relative to `root`, of each link in root/tensorboards."""
    output = root / "tensorboards"
    found = {}
    for folder, folders, files in os.walk(output):
        for name in folders + files:
            path = Path(folder, name)
            if path.is_symlink():
                target = path.resolve().relative_to(root)
                found[path.relative_to(output).as_posix()] = target.as_posix()
    return found


def test_no_run_is_an_answer(tmp_path):
    (tmp_path / "unet8_all" / "logs").mkdir(parents=True)
    result = CliRunner().invoke(cli, ["unite", str(tmp_path)])
    assert result.exit_code == 0
    assert f"no runs found under {tmp_path};" in result.output
    assert not (tmp_path / "tensorboards").exists()


def test_one_run_becomes_one_relative_link(tmp_path):
    add_run(tmp_path / "unet8_all/logs/unet8/seed42")
    result = unite(tmp_path)
    assert result.exit_code == 0
    assert (
        way(tmp_path / "tensorboards/unet8_all/unet8/seed42")
        == "../../../unet8_all/logs/./unet8/seed42"
    )
    assert links(tmp_path) == {"unet8_all/unet8/seed42": "unet8_all/logs/unet8/seed42"}


def test_the_table_tells_name_files_size_and_age(tmp_path):
    folder = tmp_path / "unet8_all/logs/unet8/seed42"
    history = folder / "history.csv"
    files = [add_run(folder), add_run(folder, 1), add_run(folder / "hparams"), history]
    for file, size in zip(files, (1000, 500, 700, 90), strict=True):
        file.write_bytes(bytes(size))
    for file, age in zip(files, (500, 200, 400, 700), strict=True):
        os.utime(file, (time.time() - age, time.time() - age))
    lines = unite(tmp_path).output.splitlines()
    assert lines[0].split() == ["experiment/model/run", "files", "size", "written"]
    assert lines[1].split() == ["unet8_all/unet8/seed42", "3", "2", "kB", "3", "min", "ago"]
    assert lines[2] == f"runs in {tmp_path / 'tensorboards'}: 1"


def test_seeds_copied_and_nested_folders_all_appear(tmp_path):
    for folder in ("unet8_all", "my_unet", "studies/lr/high"):
        for seed in (1, 2):
            add_run(tmp_path / folder / f"logs/unet8/seed{seed}")
    unite(tmp_path)
    assert links(tmp_path) == {
        f"{Path(folder).name}/unet8/seed{seed}": f"{folder}/logs/unet8/seed{seed}"
        for folder in ("unet8_all", "my_unet", "studies/lr/high")
        for seed in (1, 2)
    }


def test_folders_that_hold_no_experiments_are_not_searched(tmp_path):
    for folder in (
        ".venv",
        "venv",
        "data",
        "cache",
        ".hidden",
        "crops.zarr",
        "tensorboards",
        "a/b/c/d/too_deep",
    ):
        add_run(tmp_path / folder / "logs/model/run")
    assert "no runs found" in unite(tmp_path).output


def test_other_depths_below_logs_get_three_part_names(tmp_path):
    add_run(tmp_path / "exp/logs/run1")
    add_run(tmp_path / "exp/logs/run1/hparams")
    add_run(tmp_path / "exp/logs/a/b/c")
    unite(tmp_path)
    assert links(tmp_path) == {"exp/exp/run1": "exp/logs/run1", "exp/a-b/c": "exp/logs/a/b/c"}


def test_whatever_lies_below_a_run_belongs_to_it(tmp_path):
    run = tmp_path / "exp/logs/model/seed1"
    for folder in (run, run / "hparams", run / "1700000000.5", run / "loss_train"):
        add_run(folder)
    assert " 4 " in unite(tmp_path).output
    assert links(tmp_path) == {"exp/model/seed1": "exp/logs/model/seed1"}


def test_a_run_around_other_runs_is_linked_file_by_file(tmp_path):
    outer = [add_run(tmp_path / "exp/logs"), add_run(tmp_path / "exp/logs/model")]
    hparams = add_run(tmp_path / "exp/logs/model/hparams")
    add_run(tmp_path / "exp/logs/model/seed1")
    unite(tmp_path)
    assert links(tmp_path) == {
        f"exp/exp/logs/{outer[0].name}": str(outer[0].relative_to(tmp_path)),
        f"exp/exp/model/{outer[1].name}": str(outer[1].relative_to(tmp_path)),
        f"exp/exp/model/hparams/{hparams.name}": str(hparams.relative_to(tmp_path)),
        "exp/model/seed1": "exp/logs/model/seed1",
    }


def test_a_run_in_the_logs_folder_itself_is_found(tmp_path):
    add_run(tmp_path / "exp/logs")
    unite(tmp_path)
    assert links(tmp_path) == {"exp/exp/logs": "exp/logs"}


def test_a_run_may_turn_into_one_around_others_and_back(tmp_path):
    outer = add_run(tmp_path / "exp/logs/model")
    unite(tmp_path)
    assert links(tmp_path) == {"exp/exp/model": "exp/logs/model"}
    inner = add_run(tmp_path / "exp/logs/model/seed1")
    unite(tmp_path)
    assert set(links(tmp_path)) == {f"exp/exp/model/{outer.name}", "exp/model/seed1"}
    inner.unlink()
    unite(tmp_path)
    assert links(tmp_path) == {"exp/exp/model": "exp/logs/model"}


def test_runs_of_one_name_are_told_apart_by_parents(tmp_path):
    add_run(tmp_path / "exp/logs/seed1")
    add_run(tmp_path / "exp/logs/exp/seed1")
    add_run(tmp_path / "twin/logs/m/s")
    add_run(tmp_path / "studies/twin/logs/m/s")
    unite(tmp_path)
    assert links(tmp_path) == {
        "exp/exp/logs-seed1": "exp/logs/seed1",
        "exp/exp/exp-seed1": "exp/logs/exp/seed1",
        f"{tmp_path.name}-twin/m/s": "twin/logs/m/s",
        "studies-twin/m/s": "studies/twin/logs/m/s",
    }


def test_links_and_loops_show_each_run_once_by_its_own_name(tmp_path):
    add_run(tmp_path / "exp/logs/model/seed1")
    (tmp_path / "exp/logs/model/latest").symlink_to("seed1")
    (tmp_path / "exp/logs/model/loop").symlink_to("../..")
    (tmp_path / "exp/self").symlink_to("self")
    (tmp_path / "a_link").symlink_to("exp")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/logs").symlink_to("../exp/logs")
    result = unite(tmp_path, str(tmp_path / "exp"))
    assert result.exit_code == 0, result.output
    assert links(tmp_path) == {"exp/model/seed1": "exp/logs/model/seed1"}


def test_logs_on_another_disk_are_found_through_their_link(tmp_path):
    root, scratch = tmp_path / "repo", tmp_path / "scratch"
    add_run(scratch / "model/seed1")
    (root / "exp").mkdir(parents=True)
    (root / "exp/logs").symlink_to(scratch)
    unite(root)
    assert (root / "tensorboards/exp/model/seed1").resolve() == scratch / "model/seed1"
    assert way(root / "tensorboards/exp/model/seed1") == "../../../exp/logs/./model/seed1"


def test_roots_may_be_several_one_experiment_or_its_logs(tmp_path):
    for root in ("one/a", "two/b", "two/c"):
        add_run(tmp_path / root / "logs/m/s")
    result = unite(tmp_path / "one", str(tmp_path / "two/b"), str(tmp_path / "two/c/logs"))
    assert [line.split()[0] for line in result.output.splitlines()[1:-1]] == [
        "a/m/s",
        "b/m/s",
        "c/m/s",
    ]


def test_rebuilding_removes_stale_links_and_keeps_the_rest(tmp_path):
    gone = add_run(tmp_path / "old/logs/m/s")
    add_run(tmp_path / "exp/logs/m/s")
    unite(tmp_path)
    kept = tmp_path / "tensorboards/exp/m/s"
    inode = kept.lstat().st_ino
    notes = tmp_path / "tensorboards/exp/m/notes.txt"
    foreign = tmp_path / "tensorboards/exp/m/elsewhere"
    notes.write_text("mine")
    foreign.symlink_to("../../../exp/logs/m/s")
    real = add_run(tmp_path / "tensorboards/downloaded/model/run")
    gone.unlink()
    assert unite(tmp_path).exit_code == 0
    assert not (tmp_path / "tensorboards/old").exists()
    assert kept.lstat().st_ino == inode
    assert notes.read_text() == "mine"
    assert way(foreign) == "../../../exp/logs/m/s"
    assert real.is_file()


def test_links_go_when_the_last_run_is_gone(tmp_path):
    event_file = add_run(tmp_path / "exp/logs/m/s")
    unite(tmp_path)
    event_file.unlink()
    assert "no runs found" in unite(tmp_path).output
    assert not list((tmp_path / "tensorboards").iterdir())


@pytest.mark.parametrize(
    ("obstacle", "kind"),
    [
        ("tensorboards", "file"),
        ("tensorboards/exp", "file"),
        ("tensorboards/exp", "link"),
        ("tensorboards/exp/m", "file"),
        ("tensorboards/exp/m", "link"),
        ("tensorboards/exp/m/s", "file"),
        ("tensorboards/exp/m/s", "folder"),
        ("tensorboards/exp/m/s", "link"),
    ],
)
def test_foreign_content_in_the_way_is_refused_and_kept(tmp_path: Path, obstacle: str, kind: str):
    add_run(tmp_path / "exp/logs/m/s")
    path = tmp_path / obstacle
    other = tmp_path / "other"
    other.mkdir()
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(other)
    before = path.lstat()
    result = unite(tmp_path)
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {path}: in the way")
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert list(other.iterdir()) == []


def test_an_output_folder_that_cannot_be_meant_is_refused(tmp_path):
    add_run(tmp_path / "studies/exp/logs/m/s")
    (tmp_path / "studies/exp/train_config.py").touch()
    for output in (".", "..", "studies", "studies/exp", "studies/exp/logs/m"):
        result = unite(tmp_path, "--output", str(tmp_path / output))
        assert result.exit_code == 2
        assert "choose another folder for the links by --output" in result.output
    assert list((tmp_path / "studies").iterdir()) == [tmp_path / "studies/exp"]


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied")

    add_run(tmp_path / "exp/logs/m/s")
    monkeypatch.setattr(Path, "symlink_to", fail)
    result = unite(tmp_path)
    assert result.exit_code == 2
    assert "tensorboards: Permission denied; choose another folder" in result.output


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    result = unite(tmp_path / "missing")
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {tmp_path / 'missing'}: no such folder")


def test_the_traceback_of_a_refusal_is_shown_where_it_is_asked_for(tmp_path):
    result = unite(tmp_path / "missing", "--traceback")
    traceback, _, sentence = result.output.partition("\nerror: ")
    assert result.exit_code == 2
    assert traceback.startswith("Traceback (most recent call last):")
    assert sentence.startswith(f"{tmp_path / 'missing'}: no such folder")


@pytest.mark.parametrize(("words", "name"), [([""], "ROOT"), (["--output", ""], "--output")])
def test_a_word_with_nothing_in_it_is_refused(words, name):
    result = CliRunner().invoke(cli, ["unite", *words, "--no-serve"])
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {name} '': nothing is in it; write a value")


@pytest.mark.parametrize(("stopped", "code"), [(KeyboardInterrupt, 130), (Stopped, 75)])
def test_being_stopped_ends_as_the_other_commands_do(tmp_path, monkeypatch, stopped, code):
    def find(*_):
        raise stopped

    monkeypatch.setattr(unite_module, "find", find)
    result = CliRunner().invoke(cli, ["unite", str(tmp_path), "--no-serve"])
    assert (result.exit_code, result.output) == (code, "")


def test_help_is_asked_for_in_short_too():
    assert CliRunner().invoke(cli, ["unite", "-h"]).output.startswith("Usage: ")


def test_output_may_be_elsewhere(tmp_path):
    add_run(tmp_path / "root/exp/logs/m/s")
    unite(tmp_path / "root", "--output", str(tmp_path / "elsewhere/links"))
    assert (tmp_path / "elsewhere/links/exp/m/s").resolve() == tmp_path / "root/exp/logs/m/s"
    assert not (tmp_path / "root/tensorboards").exists()


def test_filter_keeps_what_its_pattern_matches(tmp_path):
    for run in (
        "unet8_all/logs/unet8/seed1",
        "unet8_all/logs/unet8/seed2",
        "unet32_all/logs/unet32/seed1",
    ):
        add_run(tmp_path / run)
    unite(tmp_path)
    unite(tmp_path, "--filter", "unet8*seed1")
    assert set(links(tmp_path)) == {"unet8_all/unet8/seed1"}
    unite(tmp_path, "--filter", "*/seed1")
    assert set(links(tmp_path)) == {"unet8_all/unet8/seed1", "unet32_all/unet32/seed1"}


def test_a_filter_without_a_match_is_refused_and_links_stay(tmp_path):
    add_run(tmp_path / "exp/logs/m/s")
    unite(tmp_path)
    result = unite(tmp_path, "--filter", "nothing*")
    assert result.exit_code == 2
    assert f"no run under {tmp_path} matches 'nothing*'" in result.output
    assert set(links(tmp_path)) == {"exp/m/s"}


def test_options_may_be_spelled_with_underscores(tmp_path):
    add_run(tmp_path / "exp/logs/m/s")
    result = CliRunner().invoke(cli, ["unite", str(tmp_path), "--no_serve"])
    assert result.exit_code == 0, result.output


def test_a_run_being_written_is_followed_through_its_link(tmp_path):
    folder = tmp_path / "exp/logs/m/s"
    file = add_run(folder, steps=[1])
    unite(tmp_path)
    append(file, losses([2]))
    add_run(folder, 1, [2, 3], restart=2)
    curve = [(1, 0.001), (2, 1.002), (3, 1.003)]
    assert shown(tmp_path / "tensorboards/exp/m/s") == {"loss": curve}


def test_names_without_an_encoding_are_printed_all_the_same(tmp_path):
    add_run(tmp_path / "exp/logs/m" / os.fsdecode(b"\xff\n"))
    assert "exp/m/?? " in unite(tmp_path).output


SAYS_WHEN_IT_LOCKS = """
import sys
from common.runs import unite
from common.shell.cli import cli

lock = unite.alone

def alone(*arguments, **options):
    print("before the lock", flush=True)
    return lock(*arguments, **options)

unite.alone = alone
cli(["unite", sys.argv[1], "--no-serve"])
"""


def test_two_commands_do_not_change_the_links_at_once(tmp_path):
    add_run(tmp_path / "exp/logs/m/s")
    command = [sys.executable, "-W", "error", "-c", SAYS_WHEN_IT_LOCKS, str(tmp_path)]
    pipes = {"cwd": REPOSITORY, "stdout": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(contextlib.ExitStack())
        lock.enter_context(alone(tmp_path / "tensorboards/.lock"))
        other = stack.enter_context(started(command, **pipes))
        assert other.stdout.readline() == "before the lock\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=0.5)
        assert links(tmp_path) == {}
        lock.close()
        other.communicate(timeout=DEADLINE)
    assert other.returncode == 0
    assert links(tmp_path) == {"exp/m/s": "exp/logs/m/s"}


def test_watching_goes_on_after_trouble(tmp_path, monkeypatch):
    add_run(tmp_path / "exp/logs/m/s")
    obstacle = tmp_path / "tensorboards/exp/m/t"
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 1:
            add_run(tmp_path / "exp/logs/m/t")
            obstacle.write_text("mine")
        elif len(looks) == 2:
            obstacle.unlink()
        elif len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(unite_module.time, "sleep", sleep)
    monkeypatch.setattr(unite_module.signal, "signal", lambda *_: None)
    result = unite(tmp_path, "--watch")
    assert result.exit_code == 0
    assert f"{obstacle}: in the way" in result.output
    assert "trying again\n" in result.output
    assert result.stdout.endswith("new run: exp/m/t\n\n")
    assert set(links(tmp_path)) == {"exp/m/s", "exp/m/t"}

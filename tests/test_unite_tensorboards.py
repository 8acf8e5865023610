"""Every test builds a repository of experiments in a temporary folder and runs the command on it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import unite_tensorboards
from unite_tensorboards import (
    describe_run,
    distinct_names,
    find_runs,
    format_age,
    format_size,
    link_runs,
    main,
    name_runs,
)

SCRIPT = Path(unite_tensorboards.__file__)
DEADLINE = 60.0
"""A command that did not end after this many seconds is killed, and its test fails."""


def add_run(folder: Path, content: bytes = b"event", number: int = 0) -> Path:
    """Write an event file (not a readable one) into `folder`, and give its path."""
    folder.mkdir(parents=True, exist_ok=True)
    event_file = folder / f"events.out.tfevents.17000000{number:02}.host.1.0"
    event_file.write_bytes(content)
    return event_file


def unite(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [str(root), "--no-serve", *arguments])


def links(root: Path) -> dict[str, str]:
    """Name and (resolved) target, relative to `root`, of each link in root/tensorboards."""
    output = root / "tensorboards"
    paths = [Path(folder, name) for folder, folders, files in os.walk(output) for name in folders + files]
    return {str(p.relative_to(output)): str(p.resolve().relative_to(root)) for p in sorted(paths) if p.is_symlink()}


def test_no_run_is_an_answer(tmp_path: Path) -> None:
    (tmp_path / "unet8_all" / "logs").mkdir(parents=True)
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert (result.exit_code, result.output) == (0, f"no runs found under {tmp_path}; train an experiment first\n")
    assert not (tmp_path / "tensorboards").exists()


def test_one_run_becomes_one_relative_link(tmp_path: Path) -> None:
    add_run(tmp_path / "unet8_all/logs/unet8/seed42")
    result = unite(tmp_path)
    assert result.exit_code == 0
    assert os.readlink(tmp_path / "tensorboards/unet8_all/unet8/seed42") == "../../../unet8_all/logs/./unet8/seed42"
    assert links(tmp_path) == {"unet8_all/unet8/seed42": "unet8_all/logs/unet8/seed42"}


def test_the_table_tells_name_files_size_and_age(tmp_path: Path) -> None:
    run = tmp_path / "unet8_all/logs/unet8/seed42"
    event_files = [add_run(run, b"x" * 1000), add_run(run, b"x" * 500, 1), add_run(run / "hparams", b"x" * 700)]
    (run / "history.csv").write_text("epoch\n1\n")
    for age, event_file in zip((500, 200, 400), event_files, strict=True):
        os.utime(event_file, (time.time() - age, time.time() - age))
    lines = unite(tmp_path).output.splitlines()
    assert lines[0].split() == ["experiment/model/run", "files", "size", "written"]
    assert lines[1].split() == ["unet8_all/unet8/seed42", "3", "2.2", "kB", "3", "min", "ago"]
    assert lines[2] == f"runs linked in {tmp_path / 'tensorboards'}: 1"


def test_sizes_and_ages_read_well() -> None:
    assert [format_size(size) for size in (999, 1000, 1.5e6, 2.34e9)] == ["999 B", "1.0 kB", "1.5 MB", "2.3 GB"]
    assert [format_age(age) for age in (-5, 59, 60, 7300, 200_000)] == ["0 s", "59 s", "1 min", "2 h", "2 d"]


def test_seeds_copied_and_nested_folders_all_appear(tmp_path: Path) -> None:
    for folder in ("unet8_all", "my_unet", "studies/lr/high"):
        for seed in (1, 2):
            add_run(tmp_path / folder / f"logs/unet8/seed{seed}")
    unite(tmp_path)
    assert links(tmp_path) == {
        f"{Path(folder).name}/unet8/seed{seed}": f"{folder}/logs/unet8/seed{seed}"
        for folder in ("unet8_all", "my_unet", "studies/lr/high")
        for seed in (1, 2)
    }


def test_folders_that_hold_no_experiments_are_not_searched(tmp_path: Path) -> None:
    for folder in (".venv", "venv", "data", "cache", ".hidden", "crops.zarr", "tensorboards", "a/b/c/d/too_deep"):
        add_run(tmp_path / folder / "logs/model/run")
    assert "no runs found" in unite(tmp_path).output


def test_other_depths_below_logs_get_three_part_names(tmp_path: Path) -> None:
    add_run(tmp_path / "exp/logs/run1")
    add_run(tmp_path / "exp/logs/run1/hparams")
    add_run(tmp_path / "exp/logs/a/b/c")
    unite(tmp_path)
    assert links(tmp_path) == {"exp/exp/run1": "exp/logs/run1", "exp/a-b/c": "exp/logs/a/b/c"}


def test_whatever_lies_below_a_run_belongs_to_it(tmp_path: Path) -> None:
    run = tmp_path / "exp/logs/model/seed1"
    for folder in (run, run / "hparams", run / "1700000000.5", run / "loss_train"):
        add_run(folder)
    assert " 4 " in unite(tmp_path).output
    assert links(tmp_path) == {"exp/model/seed1": "exp/logs/model/seed1"}


def test_a_run_around_other_runs_is_linked_file_by_file(tmp_path: Path) -> None:
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


def test_a_run_in_the_logs_folder_itself_is_found(tmp_path: Path) -> None:
    add_run(tmp_path / "exp/logs")
    unite(tmp_path)
    assert links(tmp_path) == {"exp/exp/logs": "exp/logs"}


def test_a_run_may_turn_into_one_around_others_and_back(tmp_path: Path) -> None:
    outer = add_run(tmp_path / "exp/logs/model")
    unite(tmp_path)
    assert links(tmp_path) == {"exp/exp/model": "exp/logs/model"}
    inner = add_run(tmp_path / "exp/logs/model/seed1")
    unite(tmp_path)
    assert set(links(tmp_path)) == {f"exp/exp/model/{outer.name}", "exp/model/seed1"}
    inner.unlink()
    unite(tmp_path)
    assert links(tmp_path) == {"exp/exp/model": "exp/logs/model"}


def test_runs_of_one_name_are_told_apart_by_parents(tmp_path: Path) -> None:
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


def test_names_stay_distinct_where_parents_do_not_help() -> None:
    names = distinct_names([Path("/x/a-b/c"), Path("/x/a/b-c"), Path("/x/a/b/c"), Path("/")])
    assert len(set(names)) == 4
    assert not any("/" in name for name in names)


def test_links_and_loops_show_each_run_once_by_its_own_name(tmp_path: Path) -> None:
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


def test_logs_on_another_disk_are_found_through_their_link(tmp_path: Path) -> None:
    root, scratch = tmp_path / "repo", tmp_path / "scratch"
    add_run(scratch / "model/seed1")
    (root / "exp").mkdir(parents=True)
    (root / "exp/logs").symlink_to(scratch)
    unite(root)
    assert (root / "tensorboards/exp/model/seed1").resolve() == scratch / "model/seed1"
    assert os.readlink(root / "tensorboards/exp/model/seed1") == "../../../exp/logs/./model/seed1"


def test_roots_may_be_several_one_experiment_or_its_logs(tmp_path: Path) -> None:
    for root in ("one/a", "two/b", "two/c"):
        add_run(tmp_path / root / "logs/m/s")
    result = unite(tmp_path / "one", str(tmp_path / "two/b"), str(tmp_path / "two/c/logs"))
    assert [line.split()[0] for line in result.output.splitlines()[1:-1]] == ["a/m/s", "b/m/s", "c/m/s"]


def test_rebuilding_removes_stale_links_and_keeps_the_rest(tmp_path: Path) -> None:
    gone = add_run(tmp_path / "old/logs/m/s")
    add_run(tmp_path / "exp/logs/m/s")
    unite(tmp_path)
    kept = tmp_path / "tensorboards/exp/m/s"
    inode = kept.lstat().st_ino
    notes, foreign = tmp_path / "tensorboards/exp/m/notes.txt", tmp_path / "tensorboards/exp/m/elsewhere"
    notes.write_text("mine")
    foreign.symlink_to("../../../exp/logs/m/s")
    real = add_run(tmp_path / "tensorboards/downloaded/model/run")
    gone.unlink()
    assert unite(tmp_path).exit_code == 0
    assert not (tmp_path / "tensorboards/old").exists()
    assert kept.lstat().st_ino == inode
    assert (notes.read_text(), os.readlink(foreign), real.read_bytes()) == ("mine", "../../../exp/logs/m/s", b"event")


def test_links_go_when_the_last_run_is_gone(tmp_path: Path) -> None:
    event_file = add_run(tmp_path / "exp/logs/m/s")
    unite(tmp_path)
    event_file.unlink()
    assert "no runs found" in unite(tmp_path).output
    assert list((tmp_path / "tensorboards").iterdir()) == []


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
def test_foreign_content_in_the_way_is_refused_and_kept(tmp_path: Path, obstacle: str, kind: str) -> None:
    add_run(tmp_path / "exp/logs/m/s")
    path, other = tmp_path / obstacle, tmp_path / "other"
    other.mkdir()
    path.parent.mkdir(parents=True, exist_ok=True)
    {"file": path.touch, "folder": path.mkdir, "link": lambda: path.symlink_to(other)}[kind]()
    before = path.lstat()
    result = unite(tmp_path)
    assert result.exit_code == 2
    assert result.output == (
        f"Error: {path}: in the way and not of our making; move it, or choose another folder by --output\n"
    )
    assert path.lstat() == before
    assert list(other.iterdir()) == []


def test_an_output_folder_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    add_run(tmp_path / "studies/exp/logs/m/s")
    (tmp_path / "studies/exp/train_config.py").touch()
    for output in (".", "..", "studies", "studies/exp", "studies/exp/logs/m"):
        result = unite(tmp_path, "--output", str(tmp_path / output))
        assert result.exit_code == 2
        assert "choose another folder for the links by --output" in result.output
    assert list((tmp_path / "studies").iterdir()) == [tmp_path / "studies/exp"]


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    add_run(tmp_path / "exp/logs/m/s")
    monkeypatch.setattr(Path, "symlink_to", fail)
    result = unite(tmp_path)
    assert result.exit_code == 2
    assert "cannot make links (Permission denied); choose another folder by --output" in result.output


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    result = unite(tmp_path / "missing")
    assert result.exit_code == 2
    assert result.output == f"Error: {tmp_path / 'missing'}: no such folder; give folders that hold experiments\n"


def test_output_may_be_elsewhere(tmp_path: Path) -> None:
    add_run(tmp_path / "root/exp/logs/m/s")
    unite(tmp_path / "root", "--output", str(tmp_path / "elsewhere/links"))
    assert (tmp_path / "elsewhere/links/exp/m/s").resolve() == tmp_path / "root/exp/logs/m/s"
    assert not (tmp_path / "root/tensorboards").exists()


def test_filter_keeps_what_its_pattern_matches(tmp_path: Path) -> None:
    for run in ("unet8_all/logs/unet8/seed1", "unet8_all/logs/unet8/seed2", "unet32_all/logs/unet32/seed1"):
        add_run(tmp_path / run)
    unite(tmp_path)
    unite(tmp_path, "--filter", "unet8*seed1")
    assert set(links(tmp_path)) == {"unet8_all/unet8/seed1"}
    unite(tmp_path, "--filter", "*/seed1")
    assert set(links(tmp_path)) == {"unet8_all/unet8/seed1", "unet32_all/unet32/seed1"}


def test_a_filter_without_a_match_says_so(tmp_path: Path) -> None:
    add_run(tmp_path / "exp/logs/m/s")
    result = unite(tmp_path, "--filter", "nothing*")
    assert result.exit_code == 0
    assert result.output == f"none of the 1 runs under {tmp_path} matches 'nothing*'; try --filter '*'\n"


def test_options_may_be_spelled_with_underscores(tmp_path: Path) -> None:
    add_run(tmp_path / "exp/logs/m/s")
    result = CliRunner().invoke(main, [str(tmp_path), "--no_serve"])
    assert result.exit_code == 0, result.output


def test_a_run_being_written_is_followed_through_its_link(tmp_path: Path) -> None:
    run = tmp_path / "exp/logs/m/s"
    with add_run(run).open("ab") as stream:
        unite(tmp_path)
        stream.write(b"more")
    resumed = add_run(run, number=1)
    seen = sorted((tmp_path / "tensorboards/exp/m/s").iterdir())
    assert [path.read_bytes() for path in seen] == [b"eventmore", b"event"]
    assert seen[1].name == resumed.name


def test_an_event_file_deleted_meanwhile_is_left_out(tmp_path: Path) -> None:
    kept = add_run(tmp_path / "exp/logs/m/s")
    run = describe_run(tmp_path / "exp", kept.parent, [kept, kept.parent / "events.out.tfevents.gone"], False)
    assert (run.events, run.size) == ((kept,), 5)


def test_names_without_an_encoding_are_printed_all_the_same(tmp_path: Path) -> None:
    add_run(tmp_path / "exp/logs/m" / os.fsdecode(b"\xff\n"))
    assert "exp/m/?? " in unite(tmp_path).output


def test_rebuilding_at_once_with_different_filters_does_not_fail(tmp_path: Path) -> None:
    for number in range(12):
        add_run(tmp_path / f"exp{number % 3}/logs/m{number % 2}/seed{number}")
    output = tmp_path / "tensorboards"
    named = name_runs(find_runs([tmp_path], output))

    def rebuild(worker: int) -> None:
        for turn in range(20):
            names = list(named)[turn % 3 :: worker + 2]
            link_runs({name: named[name] for name in names}, output)

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(rebuild, range(4)))
    link_runs(named, output)
    assert set(links(tmp_path)) == set(named)


def test_a_busy_port_is_refused_in_one_sentence(tmp_path: Path) -> None:
    add_run(tmp_path / "exp/logs/m/s")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = subprocess.run(
            [sys.executable, SCRIPT, tmp_path, "--port", str(port)], capture_output=True, text=True, timeout=DEADLINE
        )
    sentence = f"port {port}: address already in use; choose another by --port, or --port 0 for any free one"
    assert (result.returncode, result.stderr) == (2, f"Error: {sentence}\n")


@contextmanager
def serving(root: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, serving on a free port; its stdout can be read."""
    command = [sys.executable, "-u", str(SCRIPT), str(root), "--port", "0"]
    environment = os.environ | {"no_proxy": "127.0.0.1,localhost"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        alarm = threading.Timer(DEADLINE, process.kill)
        alarm.start()
        try:
            yield process
        finally:
            alarm.cancel()
            process.kill()


def ask(url: str) -> object:
    """The JSON at `url`, or None if the server is not up yet."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return json.load(answer)
    except (urllib.error.URLError, TimeoutError):
        return None


@pytest.mark.slow
def test_tensorboard_shows_the_runs_through_the_links_and_stops_quietly(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    for seed in (1, 2):
        with tensorboard.SummaryWriter(tmp_path / f"unet8_all/logs/unet8/seed{seed}") as writer:
            writer.add_scalar("loss/train", 0.5, 0)
    names = {"unet8_all/unet8/seed1", "unet8_all/unet8/seed2"}
    with serving(tmp_path) as process:
        url = next(match[0] for line in process.stdout if (match := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        tags = {}
        while process.poll() is None and set(tags) != names:
            time.sleep(0.1)
            tags = ask(f"{url}data/plugin/scalars/tags") or {}
        assert {name: list(tags[name]) for name in tags} == {name: ["loss/train"] for name in names}
        assert set(ask(f"{url}data/runs")) == names
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in output + errors

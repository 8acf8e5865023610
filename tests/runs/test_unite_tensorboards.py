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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

import unite_tensorboards
from common.classes import TESTED
from common.runs import events as events_module
from unite_tensorboards import format_age, format_size, main, must_rewrite

SCRIPT = Path(unite_tensorboards.__file__)
DEADLINE = 60.0
"""A command that did not end after this many seconds is killed, and its test fails."""


def add_run(
    folder: Path,
    number: int = 0,
    steps: Iterable[int] = (),
    tag: str = "loss",
    start: int | None = 0,
) -> Path:
    """Write an event file into `folder`. start: the step from which it supersedes others, None if it does not say."""
    folder.mkdir(parents=True, exist_ok=True)
    event_file = folder / f"events.out.tfevents.17000000{number:02}.host.1.0"
    first = [Event(wall_time=1e5 * number, file_version="brain.Event:2")]
    if start is not None:
        first.append(
            Event(
                wall_time=1e5 * number + 1,
                step=start,
                session_log=SessionLog(status=SessionLog.START),
            )
        )
    event_file.write_bytes(
        b"".join(map(events_module.frame, [*first, *values(steps, number, tag)]))
    )
    return event_file


def values(steps: Iterable[int], number: int = 0, tag: str = "loss") -> list[Event]:
    """Events of number + step / 1000 at each step."""
    summaries = [
        (step, Summary.Value(tag=tag, simple_value=number + step / 1000)) for step in steps
    ]
    return [
        Event(wall_time=1e5 * number + step + 2, step=step, summary=Summary(value=[value]))
        for step, value in summaries
    ]


def append(event_file: Path, *events: Event) -> None:
    with open(event_file, "ab") as file:
        file.write(b"".join(map(events_module.frame, events)))


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's reader in Python makes of a run."""
    log = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    return {
        tag: [(event.step, round(event.value, 3)) for event in log.Scalars(tag)]
        for tag in log.Tags()["scalars"]
    }


def curve(*parts: tuple[int, Iterable[int]]) -> list[tuple[int, float]]:
    """Steps and values of (number of the file, steps)."""
    return [(step, round(number + step / 1000, 3)) for number, steps in parts for step in steps]


def unite(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [str(root), "--no-serve", *arguments])


def links(root: Path) -> dict[str, str]:
    """Name and (resolved) target, relative to `root`, of each link in root/tensorboards."""
    output = root / "tensorboards"
    paths = [
        Path(folder, name) for folder, folders, files in os.walk(output) for name in folders + files
    ]
    return {
        str(p.relative_to(output)): str(p.resolve().relative_to(root))
        for p in sorted(paths)
        if p.is_symlink()
    }


def test_no_run_is_an_answer(tmp_path: Path) -> None:
    (tmp_path / "unet8_all" / "logs").mkdir(parents=True)
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert (result.exit_code, result.output) == (
        0,
        f"no runs found under {tmp_path}; train an experiment first\n",
    )
    assert not (tmp_path / "tensorboards").exists()


def test_one_run_becomes_one_relative_link(tmp_path: Path) -> None:
    add_run(tmp_path / "unet8_all/logs/unet8/seed42")
    result = unite(tmp_path)
    assert result.exit_code == 0
    assert (
        os.readlink(tmp_path / "tensorboards/unet8_all/unet8/seed42")
        == "../../../unet8_all/logs/./unet8/seed42"
    )
    assert links(tmp_path) == {"unet8_all/unet8/seed42": "unet8_all/logs/unet8/seed42"}


def test_the_table_tells_name_files_size_and_age(tmp_path: Path) -> None:
    run = tmp_path / "unet8_all/logs/unet8/seed42"
    event_files = [add_run(run), add_run(run, 1), add_run(run / "hparams")]
    for size, event_file in zip((1000, 500, 700), event_files, strict=True):
        event_file.write_bytes(event_file.read_bytes().ljust(size, b"x"))
    history = run / "history.csv"
    history.write_text("epoch\n1\n")
    for age, event_file in zip((500, 200, 400, 700), [*event_files, history], strict=True):
        os.utime(event_file, (time.time() - age, time.time() - age))
    lines = unite(tmp_path).output.splitlines()
    assert lines[0].split() == ["experiment/model/run", "files", "size", "written"]
    assert lines[1].split() == ["unet8_all/unet8/seed42", "3", "2.2", "kB", "3", "min", "ago"]
    assert lines[2] == f"runs in {tmp_path / 'tensorboards'}: 1"


def test_sizes_and_ages_read_well() -> None:
    assert [format_size(size) for size in (999, 1000, 1.5e6, 2.34e9)] == [
        "999 B",
        "1.0 kB",
        "1.5 MB",
        "2.3 GB",
    ]
    assert [format_age(age) for age in (-5, 59, 60, 7300, 200_000)] == [
        "0 s",
        "59 s",
        "1 min",
        "2 h",
        "2 d",
    ]


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
    assert [line.split()[0] for line in result.output.splitlines()[1:-1]] == [
        "a/m/s",
        "b/m/s",
        "c/m/s",
    ]


def test_rebuilding_removes_stale_links_and_keeps_the_rest(tmp_path: Path) -> None:
    gone = add_run(tmp_path / "old/logs/m/s")
    add_run(tmp_path / "exp/logs/m/s")
    unite(tmp_path)
    kept = tmp_path / "tensorboards/exp/m/s"
    inode = kept.lstat().st_ino
    notes, foreign = (
        tmp_path / "tensorboards/exp/m/notes.txt",
        tmp_path / "tensorboards/exp/m/elsewhere",
    )
    notes.write_text("mine")
    foreign.symlink_to("../../../exp/logs/m/s")
    real = add_run(tmp_path / "tensorboards/downloaded/model/run")
    gone.unlink()
    assert unite(tmp_path).exit_code == 0
    assert not (tmp_path / "tensorboards/old").exists()
    assert kept.lstat().st_ino == inode
    assert (notes.read_text(), os.readlink(foreign), real.is_file()) == (
        "mine",
        "../../../exp/logs/m/s",
        True,
    )


def test_links_go_when_the_last_run_is_gone(tmp_path: Path) -> None:
    event_file = add_run(tmp_path / "exp/logs/m/s")
    unite(tmp_path)
    event_file.unlink()
    assert "no runs found" in unite(tmp_path).output
    assert [path.name for path in (tmp_path / "tensorboards").iterdir()] == [".lock"]


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
def test_foreign_content_in_the_way_is_refused_and_kept(
    tmp_path: Path, obstacle: str, kind: str
) -> None:
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
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert list(other.iterdir()) == []


def test_an_output_folder_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    add_run(tmp_path / "studies/exp/logs/m/s")
    (tmp_path / "studies/exp/train_config.py").touch()
    for output in (".", "..", "studies", "studies/exp", "studies/exp/logs/m"):
        result = unite(tmp_path, "--output", str(tmp_path / output))
        assert result.exit_code == 2
        assert "choose another folder for the links by --output" in result.output
    assert list((tmp_path / "studies").iterdir()) == [tmp_path / "studies/exp"]


def test_an_output_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    add_run(tmp_path / "exp/logs/m/s")
    monkeypatch.setattr(Path, "symlink_to", fail)
    result = unite(tmp_path)
    assert result.exit_code == 2
    assert (
        "tensorboards: Permission denied; choose another folder by --output, or try again"
        in result.output
    )


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    result = unite(tmp_path / "missing")
    assert result.exit_code == 2
    assert (
        result.output
        == f"Error: {tmp_path / 'missing'}: no such folder; give folders that hold experiments\n"
    )


def test_output_may_be_elsewhere(tmp_path: Path) -> None:
    add_run(tmp_path / "root/exp/logs/m/s")
    unite(tmp_path / "root", "--output", str(tmp_path / "elsewhere/links"))
    assert (tmp_path / "elsewhere/links/exp/m/s").resolve() == tmp_path / "root/exp/logs/m/s"
    assert not (tmp_path / "root/tensorboards").exists()


def test_filter_keeps_what_its_pattern_matches(tmp_path: Path) -> None:
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


def test_a_filter_without_a_match_says_so(tmp_path: Path) -> None:
    add_run(tmp_path / "exp/logs/m/s")
    result = unite(tmp_path, "--filter", "nothing*")
    assert result.exit_code == 0
    assert result.output == f"no run under {tmp_path} matches 'nothing*'; try --filter '*'\n"


def test_options_may_be_spelled_with_underscores(tmp_path: Path) -> None:
    add_run(tmp_path / "exp/logs/m/s")
    result = CliRunner().invoke(main, [str(tmp_path), "--no_serve"])
    assert result.exit_code == 0, result.output


def test_a_run_being_written_is_followed_through_its_link(tmp_path: Path) -> None:
    run = tmp_path / "exp/logs/m/s"
    event_file = add_run(run, steps=[1])
    unite(tmp_path)
    append(event_file, *values([2]))
    add_run(run, 1, [2, 3], start=2)
    assert shown(tmp_path / "tensorboards/exp/m/s") == {"loss": curve((0, [1]), (1, [2, 3]))}


def event_files(folder: Path) -> list[str]:
    """Names of those that hold anything."""
    return sorted(
        path.name for path in folder.iterdir() if "tfevents" in path.name and path.stat().st_size
    )


@pytest.fixture
def resumed(tmp_path: Path) -> Path:
    """The folder of a run that was resumed by others, who wrote two event files that overlap."""
    folder = tmp_path / "exp/logs/m/s"
    add_run(folder, 0, range(10), start=None)
    add_run(folder, 1, range(6, 14), start=None)
    return folder


def test_a_run_resumed_by_others_is_rewritten_as_one_curve(tmp_path: Path, resumed: Path) -> None:
    add_run(resumed / "hparams", 2)
    add_run(resumed / "hparams", 3, [1], start=None)
    result = unite(tmp_path)
    assert result.output.endswith(": 1, 1 of them rewritten\n")
    folder = tmp_path / "tensorboards/exp/m/s"
    assert not folder.is_symlink()
    assert event_files(folder) == ["events.out.tfevents.united.000000"]
    assert shown(folder) == {"loss": curve((0, range(6)), (1, range(6, 14)))}
    assert {Path(link).parent.name for link in links(tmp_path)} == {"hparams"}


def test_a_run_that_says_where_it_resumed_stays_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "exp/logs/m/s"
    add_run(folder, 0, range(10), start=None)
    add_run(folder, 1, range(6, 14), start=6)
    assert "rewritten" not in unite(tmp_path).output
    assert links(tmp_path) == {"exp/m/s": "exp/logs/m/s"}


def test_whatever_else_was_logged_is_kept_but_for_superseded_steps(tmp_path: Path) -> None:
    folder = tmp_path / "exp/logs/m/s"
    for session, steps in enumerate([(1, 2, 3), (2, 4)]):
        with SummaryWriter(str(folder), filename_suffix=str(session)) as writer:
            for step in steps:
                writer.add_image("picture", np.full((3, 2, 2), 90 * session, np.uint8), step)
                writer.add_histogram("weights", np.arange(9.0) + session, step)
            writer.add_text("note", f"session {session}", 5 - session)
            writer.add_custom_scalars({"a": {"b": ["Multiline", ["c"]]}})
    unite(tmp_path)
    log = EventAccumulator(str(tmp_path / "tensorboards/exp/m/s"), {"histograms": 0}).Reload()
    assert [event.step for event in log.Images("picture")] == [1, 2, 4]
    assert [event.histogram_value.min for event in log.Histograms("weights")] == [0, 1, 1]
    assert [
        (event.step, event.tensor_proto.string_val[0]) for event in log.Tensors("note/text_summary")
    ] == [(4, b"session 1")]
    assert log.SummaryMetadata("note/text_summary").plugin_data.plugin_name == "text"


def test_tags_are_renamed_and_only_runs_that_have_them_are_rewritten(tmp_path: Path) -> None:
    add_run(tmp_path / "old/logs/m/s", 0, range(3), "loss")
    append(
        add_run(tmp_path / "old/logs/m/t", 0, range(3), "loss"), *values(range(3), 0, "validation")
    )
    add_run(tmp_path / "new/logs/m/s", 0, range(3), "loss/train")
    unite(tmp_path, "--map", "loss=loss/train", "--map", "validation=loss/validation")
    assert links(tmp_path) == {"new/m/s": "new/logs/m/s"}
    tags = {name: set(shown(tmp_path / "tensorboards/old/m" / name)) for name in "st"}
    assert tags == {"s": {"loss/train"}, "t": {"loss/train", "loss/validation"}}
    assert shown(tmp_path / "tensorboards/old/m/s")["loss/train"] == curve((0, range(3)))
    unite(tmp_path)
    assert links(tmp_path) == {
        f"{name}": name.replace("/", "/logs/", 1) for name in ("new/m/s", "old/m/s", "old/m/t")
    }


@pytest.mark.parametrize("word", ["loss", "=loss", "loss="])
def test_a_map_that_is_none_is_refused(tmp_path: Path, word: str) -> None:
    result = unite(tmp_path, "--map", word)
    assert result.exit_code == 2
    assert f"--map {word}: not of the form OLD=NEW; write the tag that was logged" in result.output


def test_a_map_that_changes_nothing_is_named(tmp_path: Path) -> None:
    add_run(tmp_path / "exp/logs/m/s", 0, [1], "loss")
    output = unite(tmp_path, "--map", "los=loss/train", "--map", "loss=x").output
    assert (
        "--map los=loss/train: none of these runs logs 'los'; write a tag that TensorBoard shows without --map\n"
        in output
    )
    assert "none of these runs logs 'loss'" not in output


def test_what_was_rewritten_follows_its_sources_and_is_not_written_again(
    tmp_path: Path, resumed: Path
) -> None:
    unite(tmp_path)
    folder = tmp_path / "tensorboards/exp/m/s"
    path = folder / "events.out.tfevents.united.000000"
    before, inode = path.read_bytes(), path.stat().st_ino
    last = sorted(resumed.iterdir())[-1]
    half = events_module.frame(*values([15], 1))
    append(last, *values([14], 1))
    with open(last, "ab") as file:
        file.write(half[:20])
    unite(tmp_path)
    assert path.read_bytes() == before + events_module.frame(*values([14], 1))
    with open(last, "ab") as file:
        file.write(half[20:])
    unite(tmp_path)
    assert shown(folder) == {"loss": curve((0, range(6)), (1, range(6, 16)))}
    written = path.stat().st_mtime_ns
    unite(tmp_path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns, event_files(folder)) == (
        inode,
        written,
        [path.name],
    )


def test_a_further_session_is_rewritten_under_a_new_name(tmp_path: Path, resumed: Path) -> None:
    unite(tmp_path)
    folder = tmp_path / "tensorboards/exp/m/s"
    third = add_run(resumed, 2, start=None)  # nothing logged as yet
    unite(tmp_path)
    assert shown(folder) == {"loss": curve((0, range(6)), (1, range(6, 14)))}
    append(third, *values([3, 4], 2))
    unite(tmp_path)
    assert shown(folder) == {"loss": curve((0, range(3)), (2, [3, 4]))}
    assert len(event_files(folder)) == 1
    assert event_files(folder) > ["events.out.tfevents.united.000000"]


def test_a_tensorboard_that_has_read_what_is_rewritten_forgets_it(
    tmp_path: Path, resumed: Path
) -> None:
    unite(tmp_path)
    log = EventAccumulator(str(tmp_path / "tensorboards/exp/m/s"), {"scalars": 0}).Reload()
    add_run(resumed, 2, [3, 4], start=None)
    unite(tmp_path)
    assert [(event.step, round(event.value, 3)) for event in log.Reload().Scalars("loss")] == curve(
        (0, range(3)), (2, [3, 4])
    )
    for number in (3, 4):
        add_run(resumed, number, [5], start=None)
        unite(tmp_path)
    assert len(list((tmp_path / "tensorboards/exp/m/s").glob("*tfevents*"))) == 2


def test_a_tag_to_be_renamed_may_come_late(tmp_path: Path) -> None:
    event_file = add_run(tmp_path / "exp/logs/m/s", 0, range(3), "loss")
    searched: dict[Path, int] = {}
    assert not must_rewrite([event_file], {"validation": "loss/validation"}, searched)
    assert not must_rewrite([event_file], {"validation": "loss/validation"}, searched)
    append(event_file, *values([3], 0, "validation"))
    assert must_rewrite([event_file], {"validation": "loss/validation"}, searched)


def test_sources_that_shrank_or_tags_renamed_otherwise_are_rewritten(
    tmp_path: Path, resumed: Path
) -> None:
    folder = tmp_path / "tensorboards/exp/m/s"
    unite(tmp_path, "--map", "loss=a")
    assert set(shown(folder)) == {"a"}
    unite(tmp_path, "--map", "loss=b")
    assert set(shown(folder)) == {"b"}
    add_run(resumed, 1, [2], start=None)
    unite(tmp_path, "--map", "loss=b")
    assert shown(folder) == {"b": curve((0, range(2)), (1, [2]))}


def test_a_write_that_was_broken_off_is_mended(tmp_path: Path, resumed: Path) -> None:
    unite(tmp_path)
    folder = tmp_path / "tensorboards/exp/m/s"
    (path,) = (folder / name for name in event_files(folder))
    path.write_bytes(path.read_bytes()[:-9])
    unite(tmp_path)
    assert shown(folder) == {"loss": curve((0, range(6)), (1, range(6, 14)))}
    assert len(event_files(folder)) == 1


def test_a_link_turns_into_a_rewritten_run_and_back_and_goes(tmp_path: Path) -> None:
    folder = tmp_path / "exp/logs/m/s"
    add_run(folder, 0, range(3))
    unite(tmp_path)
    second = add_run(folder, 1, [2], start=None)
    unite(tmp_path)
    assert links(tmp_path) == {}
    assert shown(tmp_path / "tensorboards/exp/m/s") == {"loss": curve((0, range(2)), (1, [2]))}
    second.unlink()
    unite(tmp_path)
    assert links(tmp_path) == {"exp/m/s": "exp/logs/m/s"}
    add_run(folder, 1, [2], start=None)
    unite(tmp_path)
    unite(tmp_path, "--filter", "nothing")
    assert [path.name for path in (tmp_path / "tensorboards").iterdir()] == [".lock"]


def test_a_damaged_event_file_is_read_up_to_the_damage_and_named(
    tmp_path: Path, resumed: Path
) -> None:
    first = sorted(resumed.iterdir())[0]
    content = first.read_bytes()
    at = (
        len(content)
        - 4 * len(events_module.frame(*values([9])))
        - len(events_module.frame(*values([5])))
    )
    first.write_bytes(content[: at + 20] + b"?" + content[at + 21 :])
    assert f"{first}: damaged at byte {at}; read up to there\n" in unite(tmp_path).output
    assert shown(tmp_path / "tensorboards/exp/m/s") == {
        "loss": curve((0, range(5)), (1, range(6, 14)))
    }


def test_names_without_an_encoding_are_printed_all_the_same(tmp_path: Path) -> None:
    add_run(tmp_path / "exp/logs/m" / os.fsdecode(b"\xff\n"))
    assert "exp/m/?? " in unite(tmp_path).output


def test_uniting_at_once_with_different_filters_does_not_fail(tmp_path: Path) -> None:
    for number in range(12):
        add_run(tmp_path / f"exp{number % 3}/logs/m{number % 2}/seed{number}", 0, [1])
        add_run(
            tmp_path / f"exp{number % 3}/logs/m{number % 2}/seed{number}",
            1,
            [1],
            start=None if number % 2 else 5,
        )
    call = "unite_tensorboards.main([sys.argv[1], '--no-serve', '--filter', pattern], standalone_mode=False)"
    code = f"import sys, unite_tensorboards\nfor pattern in sys.argv[2:]: {call}"
    patterns = [["*/seed1*", "*", "exp1*"], ["*m0*", "*", "exp2*"]]
    commands = [
        [sys.executable, "-W", "error", "-c", code, str(tmp_path), *chosen * 5]
        for chosen in patterns
    ]
    pipes = {
        "cwd": SCRIPT.parent,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    processes = [subprocess.Popen(command, **pipes) for command in commands]
    assert [
        (process.communicate(timeout=DEADLINE)[0][-300:], process.returncode)[1]
        for process in processes
    ] == [0, 0]
    assert unite(tmp_path).exit_code == 0
    assert len(links(tmp_path)) == 6
    assert len(list((tmp_path / "tensorboards").rglob("events*.united.*"))) == 6


# tables


def test_runs_are_exported_one_a_row(tmp_path: Path) -> None:
    for seed, best in ((1, 0.5), (2, 0.625)):
        folder = tmp_path / f"exp/logs/m/seed{seed}"
        add_run(folder, 0, [1], "mean/dice")
        record = {
            "settings": {"random_seed": str(seed), "epochs": "9"},
            "provenance": {"commit": "abc", "split_hash": "f00"},
        }
        record["result"] = {
            "epoch": 9,
            "best_metric": "dice",
            "best": best,
            "best_epoch": 8,
            "hours": 1.5,
            "samples_per_s": 7.0,
        }
        (folder / "run.json").write_text(json.dumps(record))
    add_run(tmp_path / "old/logs/m/s", 0, [4, 8], "mean/dice")
    assert unite(tmp_path, "--export", str(tmp_path / "runs.csv")).exit_code == 0
    table = pd.read_csv(tmp_path / "runs.csv", keep_default_na=False, dtype=str).set_index("run")
    chosen = [
        "best_metric",
        "best",
        "best_epoch",
        "epoch",
        "hours",
        "samples_per_s",
        "commit",
        "split_hash",
        "settings/random_seed",
    ]
    assert table.loc["exp/m/seed2", chosen].tolist() == [
        "dice",
        "0.625",
        "8",
        "9",
        "1.5",
        "7.0",
        "abc",
        "f00",
        "2",
    ]
    assert table.loc["old/m/s", ["best", "best_epoch", "commit"]].tolist() == [
        "0.00800000037997961",
        "2",
        "",
    ]
    assert "settings/epochs" not in table


def test_scalars_are_exported_in_long_form(tmp_path: Path, resumed: Path) -> None:
    add_run(tmp_path / "exp/logs/m/t", 3, [1], "dice/mito")
    unite(tmp_path, "--export-scalars", str(tmp_path / "scalars.csv"), "--map", "loss=loss/train")
    table = pd.read_csv(tmp_path / "scalars.csv")
    assert list(table.columns) == ["run", "tag", "step", "wall_time", "value"]
    wanted = [
        ("exp/m/s", "loss/train", *point) for point in curve((0, range(6)), (1, range(6, 14)))
    ] + [("exp/m/t", "dice/mito", 1, 3.001)]
    assert list(zip(table.run, table.tag, table.step, table.value.round(3), strict=True)) == wanted
    assert table.wall_time.iloc[[0, -1]].tolist() == [2.0, 300003.0]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_both_tables_can_be_parquet(tmp_path: Path, resumed: Path) -> None:
    pytest.importorskip("pyarrow")
    (resumed / "run.json").write_text(
        json.dumps({"result": {"epoch": 9, "finished": True}, "settings": {"a": "1"}})
    )
    add_run(tmp_path / "exp/logs/m/t", 3, [1], "dice/mito")
    add_run(tmp_path / "exp/logs/m/u", 3)
    for kind in ("csv", "parquet"):
        result = unite(
            tmp_path,
            "--export",
            str(tmp_path / f"runs.{kind}"),
            "--export-scalars",
            str(tmp_path / f"scalars.{kind}"),
        )
        assert result.exit_code == 0, result.output
    for name in ("runs", "scalars"):
        wanted, table = (
            pd.read_csv(tmp_path / f"{name}.csv"),
            pd.read_parquet(tmp_path / f"{name}.parquet"),
        )
        pd.testing.assert_frame_equal(
            table.astype(object).fillna(""), wanted.astype(object).fillna(""), check_dtype=False
        )


def test_no_runs_are_an_empty_table(tmp_path: Path) -> None:
    unite(
        tmp_path,
        "--export",
        str(tmp_path / "runs.csv"),
        "--export-scalars",
        str(tmp_path / "scalars.csv"),
    )
    assert (tmp_path / "scalars.csv").read_text() == "run,tag,step,wall_time,value\n"
    assert (tmp_path / "runs.csv").read_text().startswith("run,best_metric,best,")


@pytest.mark.parametrize("option", ["--export", "--export-scalars"])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("runs.xlsx", "ends in '.xlsx'; write a name that ends in .csv or .parquet"),
        ("missing/runs.csv", "does not exist; make it, or write another name"),
        (
            "runs.parquet",
            "parquet needs pyarrow, which is not installed; pip install pyarrow, or write a name in .csv",
        ),
    ],
)
def test_a_table_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch, option: str, name: str, sentence: str
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    add_run(tmp_path / "exp/logs/m/s")
    result = unite(tmp_path, option, str(tmp_path / name))
    assert (result.exit_code, result.output.startswith(f"Error: {tmp_path / name}: ")) == (2, True)
    assert sentence in result.output
    assert not (tmp_path / "tensorboards").exists()


def test_a_broken_record_is_refused_in_one_sentence(tmp_path: Path) -> None:
    add_run(tmp_path / "exp/logs/m/s")
    (tmp_path / "exp/logs/m/s/run.json").write_text("{")
    result = unite(tmp_path, "--export", str(tmp_path / "runs.csv"))
    assert (result.exit_code, result.output.splitlines()[-1][:7]) == (2, "Error: ")
    assert not (tmp_path / "runs.csv").exists()


# the Custom Scalars page


def charts(layout: layout_pb2.Layout) -> list[tuple[str, str, str]]:
    """Category, title and regular expression."""
    return [
        (category.title, chart.title, chart.multiline.tag[0])
        for category in layout.category
        for chart in category.chart
    ]


def test_the_layout_shows_each_class_and_mean_once_beside_its_relatives(tmp_path: Path) -> None:
    add_run(tmp_path / "exp/logs/m/s")
    unite(tmp_path)
    path = tmp_path / "tensorboards/layout"
    log = EventAccumulator(str(path)).Reload()
    layout = layout_pb2.Layout.FromString(
        log.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    )

    def places(tag: str) -> list[tuple[str, str]]:
        return [
            (category, title)
            for category, title, expression in charts(layout)
            if re.match(expression, tag)
        ]

    for metric in ("dice", "iou", "precision", "recall"):
        assert all(len(places(f"{metric}/{name}")) == 1 for name in TESTED)
        assert places(f"mean/{metric}") == [("losses and means", f"mean {metric}")]
    assert {places(f"dice/{name}")[0] for name in ("mito", "mito_mem", "mito_ribo")} == {
        ("dice", "mito")
    }
    assert places("iou/nucpl") == places("iou/nuc") == [("iou", "nucleus")]
    assert places("dice/ecs") == places("dice/pm") == [("dice", "cell")]
    assert places("dice/mine") == places("dice/mito_new") == [("dice", "other classes")]
    assert places("loss/train") == places("loss/validation") == [("losses and means", "loss")]
    written = [file.stat().st_mtime_ns for file in path.iterdir()]
    unite(tmp_path)
    assert [file.stat().st_mtime_ns for file in path.iterdir()] == written


# serving


def test_a_busy_port_is_refused_in_one_sentence(tmp_path: Path) -> None:
    add_run(tmp_path / "exp/logs/m/s")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = subprocess.run(
            [sys.executable, SCRIPT, tmp_path, "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
    sentence = f"port {port}: address already in use; choose another by --port, or --port 0 for any free one"
    assert (result.returncode, result.stderr) == (2, f"Error: {sentence}\n")


@contextmanager
def serving(root: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command, serving on a free port and looking at the runs each second; its stdout can be read."""
    code = "import sys, unite_tensorboards as u; u.INTERVAL = 1; u.main(sys.argv[1:])"
    command = [sys.executable, "-u", "-c", code, str(root), "--port", "0", *arguments]
    environment = os.environ | {"no_proxy": "127.0.0.1,localhost"}
    pipes = {
        "cwd": SCRIPT.parent,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    with subprocess.Popen(command, env=environment, **pipes) as process:
        alarm = threading.Timer(DEADLINE, process.kill)
        alarm.start()
        try:
            yield process
        finally:
            alarm.cancel()
            process.kill()


def address(process: subprocess.Popen[str]) -> str:
    """Where it serves, once it says so."""
    return next(
        match[0]
        for line in process.stdout
        if (match := re.search(r"http://127\.0\.0\.1:\d+/", line))
    )


def wait_for(
    process: subprocess.Popen[str],
    url: str,
    wanted: object,
    change: Callable[[object], object] = lambda answer: answer,
) -> None:
    """Ask until the answer is what is wanted; fail with the last answer if the process ends before."""
    answer = None
    while process.poll() is None and answer != wanted:
        time.sleep(0.1)
        answer = change(ask(url))
    assert answer == wanted


def ask(url: str) -> object:
    """The JSON at `url`, or None if the server is not up yet."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return json.load(answer)
    except (urllib.error.URLError, TimeoutError):
        return None


def points(answer: list[tuple[float, int, float]] | None) -> list[tuple[int, float]]:
    return [(step, round(value, 3)) for _, step, value in answer or ()]


@pytest.mark.slow
def test_tensorboard_shows_the_runs_keeps_up_with_them_and_stops_quietly(
    tmp_path: Path, resumed: Path
) -> None:
    ours = add_run(tmp_path / "unet8_all/logs/unet8/seed1", 0, [1, 2], "loss/train")
    names = {"layout", "exp/m/s", "unet8_all/unet8/seed1"}
    with serving(tmp_path, "--watch", "--map", "loss=loss/train") as process:
        url = address(process)
        of_ours, of_others = (
            f"{url}data/plugin/scalars/scalars?run={run}&tag=loss/train"
            for run in sorted(names - {"layout"})[::-1]
        )
        wait_for(process, f"{url}data/runs", names, lambda answer: set(answer or ()))
        wait_for(process, of_ours, curve((0, [1, 2])), points)
        wait_for(process, of_others, curve((0, range(6)), (1, range(6, 14))), points)
        layout = ask(f"{url}data/plugin/custom_scalars/layout")
        (dice,) = (part for part in layout["category"] if part["title"] == "dice")
        assert {"mito", "nucleus", "cell"} <= {chart["title"] for chart in dice["chart"]}

        append(ours, *values([3], 0, "loss/train"))
        append(sorted(resumed.iterdir())[-1], *values([14], 1))
        add_run(tmp_path / "unet8_all/logs/unet8/seed2", 0, [1], "loss/train")
        wait_for(
            process,
            f"{url}data/runs",
            names | {"unet8_all/unet8/seed2"},
            lambda answer: set(answer or ()),
        )
        wait_for(process, of_ours, curve((0, [1, 2, 3])), points)
        wait_for(process, of_others, curve((0, range(6)), (1, range(6, 15))), points)

        add_run(resumed, 2, [3, 4], start=None)
        wait_for(process, of_others, curve((0, range(3)), (2, [3, 4])), points)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    assert process.returncode == 0
    assert "new run: unet8_all/unet8/seed2\n" in output
    assert "Traceback" not in output + errors


def test_watching_goes_on_after_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_run(tmp_path / "exp/logs/m/s")
    obstacle = tmp_path / "tensorboards/exp/m/t"
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:
            add_run(tmp_path / "exp/logs/m/t")
            obstacle.write_text("mine")
        elif len(looks) == 2:
            obstacle.unlink()
        elif len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(unite_tensorboards.time, "sleep", sleep)
    monkeypatch.setattr(unite_tensorboards.signal, "signal", lambda *_: None)
    result = unite(tmp_path, "--watch")
    assert result.exit_code == 0
    assert (
        f"{obstacle}: in the way and not of our making; move it, or choose another folder by --output; trying again\n"
        in result.output
    )
    assert result.stdout.endswith("new run: exp/m/t\n\n")
    assert set(links(tmp_path)) == {"exp/m/s", "exp/m/t"}

"""Runs are found wherever they lie, and what they logged is read as one curve, up to any damage."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from common.runs import events as events_module
from common.runs import find, history
from common.train.tracking import Tracker


def value(tag: str, number: float, step: int, wall_time: float = 0.0) -> Event:
    return Event(
        wall_time=wall_time or float(step),
        step=step,
        summary=Summary(value=[Summary.Value(tag=tag, simple_value=number)]),
    )


def start(step: int, wall_time: float = 0.0) -> Event:
    return Event(wall_time=wall_time, step=step, session_log=SessionLog(status=SessionLog.START))


def write(folder: Path, events: Sequence[Event], number: int = 0) -> Path:
    """An event file by TensorBoard's own writer."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.17000000{number:02}.host.1.0"
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
    return path


def only(root: Path, **options) -> find.Run:
    (run,) = find.find(root, **options)
    return run


def curves(run: find.Run, tags: Sequence[str] = ("*",)) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each tag."""
    frames = list(events_module.scalars(run, tags))
    log = pd.concat(frames) if frames else pd.DataFrame({"tag": []})
    return {
        str(tag): list(zip(part.step, part.value.round(4), strict=True))
        for tag, part in log.groupby("tag", observed=True)
    }


def accumulated(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's reader in Python makes of a folder."""
    log = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0}).Reload()
    tensors = [
        tag
        for tag in log.Tags()["tensors"]
        if log.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
    ]
    read = {
        tag: [(event.step, round(event.value, 4)) for event in log.Scalars(tag)]
        for tag in log.Tags()["scalars"]
    }
    return read | {
        tag: [
            (event.step, round(float(make_ndarray(event.tensor_proto)), 4))
            for event in log.Tensors(tag)
        ]
        for tag in tensors
    }


# finding


def test_a_run_knows_its_name_its_files_and_their_size(tmp_path):
    folder = tmp_path / "unet8_all/logs/unet8/seed42"
    files = [
        write(folder, [value("a", 1, 1)]),
        write(folder, [value("a", 2, 2)], 1),
        write(folder / "hparams", []),
    ]
    (folder / "history.csv").write_text("epoch\n1\n")
    os.utime(folder / "history.csv", (2e9, 2e9))
    run = only(tmp_path)
    assert (run.name, run.folder, set(run.events)) == ("unet8_all/unet8/seed42", folder, set(files))
    assert (run.size, run.written, run.encloses) == (
        sum(file.stat().st_size for file in files),
        2e9,
        False,
    )
    assert events_module.events_by_folder(run) == {folder: files[:2], folder / "hparams": files[2:]}


def test_all_experiments_seeds_and_copies_are_found(tmp_path):
    for folder in ("unet8_all", "my_unet", "studies/lr/high"):
        for seed in (1, 2):
            write(tmp_path / folder / f"logs/unet8/seed{seed}", [])
    names = [
        f"{folder}/unet8/seed{seed}"
        for folder in ("high", "my_unet", "unet8_all")
        for seed in (1, 2)
    ]
    assert [run.name for run in find.find(tmp_path)] == names
    assert [run.name for run in find.find(str(tmp_path))] == names


def test_runs_of_the_public_toolbox_are_found(tmp_path):
    write(tmp_path / "wBCE/tensorboard/unet8", [])
    assert only(tmp_path).name == "wBCE/wBCE/unet8"


def test_a_root_may_be_a_folder_of_runs_of_any_name(tmp_path):
    write(tmp_path / "runs/a", [])
    write(tmp_path / "runs/b/c", [])
    write(tmp_path / "runs/data/not_searched", [])
    assert [run.name for run in find.find(tmp_path / "runs")] == ["runs/b/c", "runs/runs/a"]


def test_a_root_may_be_a_logs_folder(tmp_path):
    write(tmp_path / "exp/logs/m/s", [])
    assert only(tmp_path / "exp/logs").name == only(tmp_path / "exp").name == "exp/m/s"


def test_a_run_may_have_a_record_or_a_history_alone(tmp_path):
    for name in ("run.json", "history.csv"):
        (tmp_path / "exp/logs/m" / name).mkdir(parents=True)
        (tmp_path / "exp/logs/m" / name / name).write_text("{}")
    assert [(run.name, run.events, run.size) for run in find.find(tmp_path)] == [
        ("exp/m/history.csv", (), 0),
        ("exp/m/run.json", (), 0),
    ]


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="missing: no such folder; give folders that hold experiments"
    ):
        find.find([tmp_path, tmp_path / "missing"])


def test_the_folder_of_united_runs_is_not_searched(tmp_path):
    write(tmp_path / "exp/logs/m/s", [])
    write(tmp_path / "all/logs/m/s", [])
    assert [run.name for run in find.find(tmp_path, tmp_path / "all")] == ["exp/m/s"]


def test_files_deleted_while_they_are_looked_for_are_left_out(tmp_path, monkeypatch):
    kept, gone = (
        write(tmp_path / "exp/logs/m/s", [value("a", 1, 1)]),
        write(tmp_path / "exp/logs/m/s", [], 1),
    )
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
    names = find.distinct_names([Path("/x/a-b/c"), Path("/x/a/b-c"), Path("/x/a/b/c"), Path("/")])
    assert len(set(names)) == 4
    assert not any("/" in name for name in names)


# scalars


def test_scalars_are_those_that_tensorboard_reads(tmp_path):
    folder = tmp_path / "exp/logs/m/s"
    with SummaryWriter(str(folder)) as writer:
        for step in range(50):
            writer.add_scalar("loss/train", np.sin(step), step)
            writer.add_scalar("dice/mito", step / 50, step, new_style=True)
        writer.add_text("note", "hello")
        writer.add_image("picture", np.zeros((3, 4, 4), np.uint8))
        writer.add_histogram("weights", np.arange(9.0))
    assert curves(only(tmp_path)) == accumulated(folder)
    log = pd.concat(events_module.scalars(only(tmp_path)))
    assert list(log.columns) == ["tag", "step", "wall_time", "value"]
    assert log.wall_time.between(time.time() - 60, time.time()).all()


def test_scalars_of_tensorflow_are_read(tmp_path):
    """Its writer gives tensors, and says with the first of a tag alone that they are scalars."""
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    events = [
        Event(
            step=step,
            summary=Summary(
                value=[
                    Summary.Value(
                        tag="a", tensor=TensorProto(dtype="DT_FLOAT", float_val=[step / 2])
                    )
                ]
            ),
        )
        for step in (5, 6, 7)
    ]
    events[0].summary.value[0].metadata.CopyFrom(metadata)
    write(tmp_path / "exp/logs/m/s", events)
    assert curves(only(tmp_path)) == {"a": [(5, 2.5), (6, 3.0), (7, 3.5)]}
    write(tmp_path / "exp/logs/m/s", [Event(wall_time=9, step=5, summary=events[1].summary)], 1)
    assert curves(only(tmp_path)) == {"a": [(5, 3.0)]}  # what described the tag was superseded
    (event,) = events_module.surviving(events_module.survey(only(tmp_path).events, {}), {})
    assert event.summary.value[0].metadata == metadata


def test_a_run_resumed_without_a_word_becomes_one_curve(tmp_path):
    folder = tmp_path / "exp/logs/m/s"
    write(
        folder,
        [value("a", 0.1, step, 10 + step) for step in range(0, 100, 10)] + [value("b", 1, 50, 90)],
    )
    write(folder, [value("a", 0.2, step, 200 + step) for step in range(60, 120, 10)], 1)
    wanted = [(step, 0.1) for step in range(0, 60, 10)] + [
        (step, 0.2) for step in range(60, 120, 10)
    ]
    assert curves(only(tmp_path)) == {"a": wanted, "b": [(50, 1.0)]}


def test_a_run_resumed_with_purge_step_reads_as_in_tensorboard(tmp_path):
    folder = tmp_path / "exp/logs/m/s"
    for number, (first, purge) in enumerate([(0, 0), (51, 51), (30, 26)]):
        events = [start(purge, number * 1e4 + 1)]
        for step in range(first, 100, 7):
            events += [
                value(tag, number, step, number * 1e4 + step + 2)
                for tag in ("ab" if number == 0 else "a")
            ]
        write(
            folder,
            [Event(wall_time=number * 1e4 + 1, file_version="brain.Event:2"), *events],
            number,
        )
    assert curves(only(tmp_path)) == accumulated(folder)
    assert [step for step, _ in curves(only(tmp_path))["b"]] == [0, 7, 14, 21]


def test_superseding_agrees_with_its_definition(tmp_path):
    """By brute force: a value goes if a later one of its tag, or a later START, is at its step or before."""
    rng = random.Random(0)
    for trial in range(30):
        folder = tmp_path / str(trial) / "exp/logs/m/s"
        events = []
        for number in range(rng.randrange(1, 60)):
            at = 1.0 + number
            events.append(
                start(rng.randrange(20), at)
                if rng.random() < 0.05
                else value(rng.choice("ab"), number, rng.randrange(20), at)
            )
        middle = rng.randrange(len(events) + 1)
        write(folder, events[:middle])
        write(folder, events[middle:], 1)
        wanted = {}
        for number, event in enumerate(events):
            tag = event.summary.value[0].tag if event.HasField("summary") else None
            later = [
                other
                for other in events[number + 1 :]
                if not other.HasField("summary") or other.summary.value[0].tag == tag
            ]
            if tag and not any(other.step <= event.step for other in later):
                wanted.setdefault(tag, []).append((event.step, float(number)))
        assert curves(only(tmp_path / str(trial))) == wanted


def test_files_are_read_in_the_order_of_their_events_not_of_their_names(tmp_path):
    late = write(tmp_path / "exp/logs/m/s", [value("a", 2, 1, 200)], 0)
    early = write(tmp_path / "exp/logs/m/s", [value("a", 1, 1, 100)], 1)
    assert events_module.in_order([late, early]) == [early, late]
    assert curves(only(tmp_path)) == {"a": [(1, 2.0)]}


def test_a_writer_says_at_the_beginning_of_a_file_that_it_restarts(tmp_path):
    version = Event(wall_time=1, file_version="brain.Event:2")
    assert events_module.restarts(write(tmp_path, [version, start(7)], 0))
    assert not events_module.restarts(write(tmp_path, [version, value("a", 1, 1), start(7)], 1))
    with SummaryWriter(str(tmp_path / "x"), purge_step=3):
        pass
    assert events_module.restarts(next((tmp_path / "x").iterdir()))


def test_tags_are_chosen_by_globs_and_renamed(tmp_path):
    write(
        tmp_path / "exp/logs/m/s",
        [value(tag, 1, 1) for tag in ("loss", "dice/mito", "dice/er", "lr")],
    )
    assert set(curves(only(tmp_path), ["dice/*", "lr"])) == {"dice/mito", "dice/er", "lr"}
    renamed = only(tmp_path, renames={"loss": "loss/train"})
    assert set(curves(renamed, ["loss*"])) == {"loss/train"}


def test_a_renamed_tag_continues_that_of_its_new_name(tmp_path):
    write(
        tmp_path / "exp/logs/m/s",
        [
            value("loss", 1, 1),
            value("loss", 1, 5),
            value("loss/train", 2, 3),
            value("loss/train", 2, 6),
        ],
    )
    assert curves(only(tmp_path, renames={"loss": "loss/train"})) == {
        "loss/train": [(1, 1.0), (3, 2.0), (6, 2.0)]
    }


def test_tags_of_subfolders_begin_with_their_names(tmp_path):
    for name, number in (("", 1), ("loss_train", 2), ("hparams", 3)):
        write(tmp_path / "exp/logs/m/s" / name, [value("loss", number, 1)])
    assert curves(only(tmp_path)) == {
        "loss": [(1, 1.0)],
        "loss_train/loss": [(1, 2.0)],
        "hparams/loss": [(1, 3.0)],
    }
    assert curves(only(tmp_path), ["loss_train/*"]) == {"loss_train/loss": [(1, 2.0)]}


def test_few_scalars_are_in_memory_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(events_module, "CHUNK", 10)
    write(tmp_path / "exp/logs/m/s", [value("ab"[step % 2], step, step) for step in range(35)])
    frames = list(events_module.scalars(only(tmp_path)))
    assert [len(frame) for frame in frames] == [10, 10, 10, 5]
    assert list(pd.concat(frames).step) == list(range(35))


def test_what_is_no_number_stays(tmp_path):
    write(
        tmp_path / "exp/logs/m/s",
        [value("a", number, step) for step, number in enumerate((1.0, np.nan, np.inf))],
    )
    np.testing.assert_equal(
        pd.concat(events_module.scalars(only(tmp_path))).value.to_numpy(), [1, np.nan, np.inf]
    )


# event files


def test_a_frame_is_what_tensorboard_writes(tmp_path):
    events = [value("a", 1.5, 3, 2.0), Event(wall_time=1.0, file_version="brain.Event:2"), Event()]
    assert b"".join(map(events_module.frame, events)) == write(tmp_path, events).read_bytes()


@pytest.mark.parametrize("data", [b"", b"123456789", bytes(range(256)), b"\xff" * 100])
def test_the_checksum_is_that_of_tensorboard(data):
    assert events_module.checksum(data) == masked_crc32c(data)


def ends_of(content: Sequence[Event]) -> list[int]:
    return list(np.cumsum([0, *(len(events_module.frame(event)) for event in content)]))


def test_a_file_cut_anywhere_is_read_up_to_the_cut_and_named(tmp_path, capsys):
    events = [value("a", step, step) for step in range(3)]
    content, ends = write(tmp_path, events).read_bytes(), ends_of(events)
    for length in range(len(content) + 1):
        path = tmp_path / f"exp{length}/logs/m/s/events.out.tfevents.1"
        path.parent.mkdir(parents=True)
        path.write_bytes(content[:length])
        read = sum(end <= length for end in ends) - 1
        assert curves(only(tmp_path / f"exp{length}")) == (
            {"a": [(step, step) for step in range(read)]} if read else {}
        )
        said = capsys.readouterr().err
        wanted = f"{path}: ends within an event, which begins at byte {ends[read]} (cut off, or being written); read up to there\n"
        assert said == ("" if length in ends else wanted)


def test_a_byte_changed_anywhere_is_found(tmp_path, capsys):
    events = [value("a", step, step) for step in range(3)]
    content, ends = write(tmp_path, events).read_bytes(), ends_of(events)
    for place in range(len(content)):
        path = tmp_path / f"exp{place}/logs/m/s/events.out.tfevents.1"
        path.parent.mkdir(parents=True)
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        read = sum(end <= place for end in ends) - 1
        assert curves(only(tmp_path / f"exp{place}")) == (
            {"a": [(step, step) for step in range(read)]} if read else {}
        )
        assert (
            capsys.readouterr().err == f"{path}: damaged at byte {ends[read]}; read up to there\n"
        )


def test_what_is_no_event_is_damage(tmp_path, capsys):
    path = write(tmp_path / "exp/logs/m/s", [value("a", 1, 1)])
    end = path.stat().st_size
    with open(path, "ab") as file:
        RecordWriter(file).write(b"\xff\xff no event")
    assert curves(only(tmp_path)) == {"a": [(1, 1.0)]}
    assert f"{path}: holds no event at byte {end}" in capsys.readouterr().err


def test_damage_in_one_file_does_not_hide_the_next(tmp_path):
    folder = tmp_path / "exp/logs/m/s"
    first = write(folder, [value("a", 1, step, 1 + step) for step in range(10)])
    first.write_bytes(first.read_bytes()[:-5])
    write(folder, [value("a", 2, step, 100 + step) for step in (12, 13)], 1)
    write(folder, [], 2)
    assert [step for step, _ in curves(only(tmp_path))["a"]] == [*range(9), 12, 13]


def test_a_run_is_read_beside_one_who_writes_it(tmp_path):
    """What is added between the two times that a file is read is left for the next time."""
    path = write(tmp_path / "exp/logs/m/s", [value("a", 1, step) for step in range(4)])
    found = events_module.survey([path], {})
    with open(path, "ab") as file:
        file.write(events_module.frame(value("a", 2, 2)) + b"half an event")
    assert [event.step for event in events_module.surviving(found, {})] == [0, 1, 2, 3]
    assert [step for step, _ in curves(only(tmp_path))["a"]] == [0, 1, 2]


def test_reading_goes_on_where_it_stopped(tmp_path):
    path = write(tmp_path, [value("a", 1, step) for step in range(4)])
    ends = [end for end, _ in events_module.read_events(path)]
    assert [event.step for _, event in events_module.read_events(path, ends[1])] == [2, 3]
    assert [event.step for _, event in events_module.read_events(path, ends[0], ends[2])] == [1, 2]
    assert list(events_module.read_events(path, ends[-1])) == []


def test_a_tag_is_looked_for_without_decoding(tmp_path):
    path = write(tmp_path, [value("loss", 1, 1), value("dice/mito", 1, 1)])
    middle = ends_of([value("loss", 1, 1)])[1]
    assert events_module.mentions(path, ["loss"])
    assert events_module.mentions(path, ["x", "dice/mito"])
    assert not events_module.mentions(path, ["los", "loss/", "mito", "dice"])
    assert not events_module.mentions(path, ["loss"], middle)
    assert events_module.mentions(
        path, ["dice/mito"], middle + 32
    )  # searched up to the middle of the tag
    assert not events_module.mentions(path, ["loss"], path.stat().st_size)
    assert not events_module.mentions(write(tmp_path, [], 1), ["loss"])
    long = "x" * 300
    assert events_module.mentions(write(tmp_path, [value(long, 1, 1)], 2), [long])


# what a run says of itself


def log_epochs(folder: Path, epochs: int, best_metric: str = "dice") -> None:
    """What common.train.run logs in two sessions of `epochs` epochs in all, of 40 iterations each."""
    for begin in (0, epochs // 2):
        tracker = Tracker(folder, begin * 40)
        tracker.text(
            "settings",
            {
                "learning_rate": "0.1",
                "best_metric": best_metric,
                "note": "x|y",
                "extra_classes": "",
            },
            begin * 40,
        )
        tracker.text("provenance", {"commit": "abc", "split_hash": "f00"}, begin * 40)
        for epoch in range(begin + 1, epochs + 1):
            losses = [epoch + 0.1, epoch + 0.3]
            for half, loss in enumerate(losses):
                trained = {
                    "loss/train": loss,
                    "grad_norm": loss / 2,
                    "throughput/samples_per_s": 8.0 + half,
                    "throughput/data_wait": 0.1,
                }
                tracker.scalars(trained, epoch * 40 - 20 + 20 * half)
            dice = -((epoch - 3) ** 2) / 100 + 0.9
            rest = {
                "validation/loss": 1 / epoch,
                "validation/dice": dice,
                "dice/mito": dice,
                "dice/er": dice if epoch > 1 else np.nan,
            }
            named = {"loss/validation": 1 / epoch, "mean/dice": dice} | {
                tag: rest[tag] for tag in ("dice/mito", "dice/er")
            }
            tracker.scalars(named, epoch * 40)
            tracker.scalars({"lr": 0.1 / epoch}, epoch * 40)
            means = {
                "train/loss": np.mean(losses),
                "train/grad_norm": losses[1] / 2,
                "train/samples_per_s": 9.0,
                "train/data_wait": 0.1,
            }
            tracker.history(
                {"epoch": epoch, "iteration": epoch * 40, "lr": 0.1 / epoch, **means, **rest}
            )
        tracker.finish({}, {})
        time.sleep(0.01)


def test_a_history_made_of_events_is_that_of_the_file(tmp_path):
    log_epochs(tmp_path / "exp/logs/m/s", 6)
    run = only(tmp_path)
    told = history.history(run)
    assert list(told.columns) == list(pd.read_csv(run.folder / "history.csv").columns)
    (run.folder / "history.csv").unlink()
    pd.testing.assert_frame_equal(history.history(run)[told.columns], told, rtol=1e-6)


def test_a_history_of_others_has_a_row_for_each_step_of_their_epochs(tmp_path):
    events = [value("loss", step, step) for step in range(1, 41)] + [
        value("validation", 0.5, 20),
        value("validation", 0.4, 40),
    ]
    write(tmp_path / "exp/tensorboard/m", events)
    log = history.history(
        only(tmp_path, renames={"loss": "loss/train", "validation": "loss/validation"})
    )
    assert log.to_dict("list") == {
        "epoch": [1, 2],
        "iteration": [20, 40],
        "train/loss": [10.5, 30.5],
        "validation/loss": pytest.approx([0.5, 0.4]),
    }
    assert len(history.history(only(tmp_path))) == 40


def test_a_history_of_nothing_is_empty(tmp_path):
    write(tmp_path / "exp/logs/m/s", [])
    assert len(history.history(only(tmp_path))) == 0
    result = history.record(only(tmp_path))["result"]
    assert set(result) == set(history.RESULT)
    assert set(result.values()) == {None}


def test_a_broken_history_is_named(tmp_path):
    folder = tmp_path / "exp/logs/m/s"
    write(folder, [])
    for content in ("", 'a,b\n1,2,3\n4,5,6,"7'):
        (folder / "history.csv").write_text(content)
        with pytest.raises(
            ValueError,
            match="history.csv: cannot be read .*; remove it, and the run is read from its events",
        ):
            history.history(only(tmp_path))


def test_a_record_is_what_the_file_says(tmp_path):
    folder = tmp_path / "exp/logs/m/s"
    folder.mkdir(parents=True)
    content = {"experiment": "unet8_all", "result": {"epoch": 3, "best": None}}
    (folder / "run.json").write_text(json.dumps(content))
    assert history.record(only(tmp_path)) == content


@pytest.mark.parametrize(
    ("text", "problem"), [('{"a": ', "cannot be read"), ("[1]", "holds a list and no object")]
)
def test_a_broken_record_is_named(tmp_path, text, problem):
    folder = tmp_path / "exp/logs/m/s"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(text)
    with pytest.raises(
        ValueError, match=f"run.json: {problem}.*; remove it, and the run is read from its events"
    ):
        history.record(only(tmp_path))


@pytest.mark.parametrize(("metric", "best", "epoch"), [("dice", 0.9, 3), ("loss", 1 / 6, 6)])
def test_a_record_made_of_the_log_has_settings_and_result(tmp_path, metric, best, epoch):
    log_epochs(tmp_path / "exp/logs/m/s", 6, metric)
    record = history.record(only(tmp_path))
    assert (record["experiment"], record["model_name"], record["run_name"]) == ("exp", "m", "s")
    assert record["settings"] == {
        "learning_rate": "0.1",
        "best_metric": metric,
        "note": "x/y",
        "extra_classes": "",
    }
    assert record["provenance"] == {"commit": "abc", "split_hash": "f00"}
    assert [
        (session["first_iteration"], session["last_iteration"]) for session in record["sessions"]
    ] == [(0, 240), (120, 240)]
    result = record["result"]
    assert (result["epoch"], result["iteration"], result["best_metric"], result["best_epoch"]) == (
        6,
        240,
        metric,
        epoch,
    )
    assert result["best"] == pytest.approx(best)
    assert (result["samples_per_s"], result["finished"]) == (9.0, None)


def test_hours_count_sessions_and_not_the_pauses_between_nor_two_writers_twice(tmp_path):
    folder = tmp_path / "exp/logs/m/s"
    for number, (began, ended) in enumerate([(3600, 7200), (5400, 9000), (36000, 43200)]):
        write(folder, [value("a", 1, 1, began), value("a", 1, 2, ended)], number)
    assert history.record(only(tmp_path))["result"]["hours"] == pytest.approx(1.5 + 2)


def write_record(folder: Path, settings: Mapping[str, str], **result) -> None:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps({"settings": settings, "provenance": {"commit": "abc"}, "result": result})
    )


def test_the_table_has_results_origins_and_the_settings_that_differ(tmp_path):
    write_record(
        tmp_path / "a/logs/m/s",
        {"learning_rate": "0.1", "epochs": "9", "old": "1"},
        epoch=9,
        best=0.5,
    )
    write_record(tmp_path / "b/logs/m/s", {"learning_rate": "0.2", "epochs": "9"}, epoch=8)
    write(tmp_path / "c/logs/m/s", [value("mean/dice", 0.25, 10)])
    table = history.table(find.find(tmp_path))
    assert list(table.columns) == [
        "run",
        *history.RESULT,
        *history.PROVENANCE,
        "settings/learning_rate",
    ]
    assert list(table.run) == ["a/m/s", "b/m/s", "c/m/s"]
    assert table["settings/learning_rate"].fillna("").tolist() == ["0.1", "0.2", ""]
    assert table.best.fillna(-1).tolist() == [0.5, -1, 0.25]
    assert table.epoch.tolist() == [9, 8, 1]
    assert table.commit.fillna("").tolist() == ["abc", "abc", ""]


def test_the_table_of_no_runs_has_its_columns():
    assert list(history.table([]).columns) == ["run", *history.RESULT, *history.PROVENANCE]


def test_a_copied_run_keeps_its_record_but_is_named_by_its_folder(tmp_path):
    write_record(tmp_path / "a/logs/m/s", {"learning_rate": "0.1"}, epoch=9)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert history.table(find.find(tmp_path)).run.tolist() == ["a/m/s", "b/m/s"]

"""What a run logged is read as one curve, as TensorBoard reads it, up to any damage."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from event_files import append, records, start, value, version, write
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from common.runs import events as events_module
from common.runs.find import find

Curves = dict[str, list[tuple[int, float]]]
"""Steps and values of each tag."""


def scalars(root: Path) -> pd.DataFrame:
    """Those of the only run below a folder."""
    (run,) = find(root)
    return events_module.scalars(run)


def curves(root: Path) -> Curves:
    found = {}
    for tag, part in scalars(root).groupby("tag"):
        found[str(tag)] = list(zip(part["step"], part["value"].round(4), strict=True))
    return found


def accumulated(folder: Path) -> Curves:
    """What TensorBoard's reader in Python makes of a folder."""
    log = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0}).Reload()
    found = {}
    for tag in log.Tags()["scalars"]:
        found[tag] = [(event.step, round(event.value, 4)) for event in log.Scalars(tag)]
    for tag in log.Tags()["tensors"]:
        if log.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            numbers = [(e.step, float(make_ndarray(e.tensor_proto))) for e in log.Tensors(tag)]
            found[tag] = [(step, round(number, 4)) for step, number in numbers]
    return found


def ends_of(events: Sequence[Event]) -> list[int]:
    """The bytes at which a file may end without ending within an event."""
    return [len(records(events[:count])) for count in range(len(events) + 1)]


# scalars


def test_scalars_are_those_that_tensorboard_reads(tmp_path):
    folder = tmp_path / "exp/logs/m/s"
    begun = time.time()
    with SummaryWriter(str(folder)) as writer:
        for step in range(50):
            writer.add_scalar("loss/train", np.sin(step), step)
            writer.add_scalar("dice/mito", step / 50, step, new_style=True)
        writer.add_text("note", "hello")
        writer.add_image("picture", np.zeros((3, 4, 4), np.uint8))
        writer.add_histogram("weights", np.arange(9.0))
    assert curves(tmp_path) == accumulated(folder)
    log = scalars(tmp_path)
    assert list(log.columns) == ["tag", "step", "wall_time", "value"]
    assert log["wall_time"].between(begun, time.time()).all()


def test_scalars_of_tensorflow_are_read(tmp_path):
    """Its writer gives tensors, and says with the first of a tag alone that they are scalars."""
    events = []
    for step in (5, 6, 7):
        tensor = TensorProto(dtype="DT_FLOAT", float_val=[step / 2])
        logged = Summary.Value(tag="a", tensor=tensor)
        events.append(Event(step=step, summary=Summary(value=[logged])))
    plugin = SummaryMetadata.PluginData(plugin_name="scalars")
    events[0].summary.value[0].metadata.CopyFrom(SummaryMetadata(plugin_data=plugin))
    write(tmp_path / "exp/logs/m/s", events)
    assert curves(tmp_path) == {"a": [(5, 2.5), (6, 3.0), (7, 3.5)]}
    again = Event(wall_time=9, step=5, summary=events[1].summary)
    write(tmp_path / "exp/logs/m/s", [again], 1)
    assert curves(tmp_path) == {"a": [(5, 3.0)]}  # what described the tag was superseded


def test_a_run_resumed_without_a_word_becomes_one_curve(tmp_path):
    folder = tmp_path / "exp/logs/m/s"
    first = [value("a", 0.1, step, 10 + step) for step in range(0, 100, 10)]
    write(folder, [*first, value("b", 1, 50, 90)])
    write(folder, [value("a", 0.2, step, 200 + step) for step in range(60, 120, 10)], 1)
    wanted = [(step, 0.1) for step in range(0, 60, 10)]
    wanted += [(step, 0.2) for step in range(60, 120, 10)]
    assert curves(tmp_path) == {"a": wanted, "b": [(50, 1.0)]}


def test_a_run_resumed_with_purge_step_reads_as_in_tensorboard(tmp_path):
    folder = tmp_path / "exp/logs/m/s"
    for number, (first, purge) in enumerate([(0, 0), (51, 51), (30, 26)]):
        began = number * 1e4
        events = [version(began + 1), start(purge, began + 1)]
        for step in range(first, 100, 7):
            events.append(value("a", number, step, began + step + 2))
            if number == 0:
                events.append(value("b", number, step, began + step + 2))
        write(folder, events, number)
    assert curves(tmp_path) == accumulated(folder)
    assert [step for step, _ in curves(tmp_path)["b"]] == [0, 7, 14, 21]


def random_events(rng: random.Random) -> list[Event]:
    events = []
    for number in range(rng.randrange(1, 60)):
        wall_time = 1.0 + number
        if rng.random() < 0.05:
            events.append(start(rng.randrange(20), wall_time))
        else:
            events.append(value(rng.choice("ab"), number, rng.randrange(20), wall_time))
    return events


def tag_of(event: Event) -> str:
    return event.summary.value[0].tag if event.HasField("summary") else ""


def surviving(events: Sequence[Event]) -> Curves:
    """By the definition: a value goes if a later one of its tag, or a later START, is at its step
    or before.
    """
    curves: Curves = {}
    for number, event in enumerate(events):
        tag = tag_of(event)
        later = [other for other in events[number + 1 :] if tag_of(other) in ("", tag)]
        if tag and not any(other.step <= event.step for other in later):
            curves.setdefault(tag, []).append((event.step, float(number)))
    return curves


@pytest.mark.parametrize("seed", range(30))
def test_superseding_agrees_with_its_definition(tmp_path, seed):
    rng = random.Random(seed)
    events = random_events(rng)
    middle = rng.randrange(len(events) + 1)
    write(tmp_path / "exp/logs/m/s", events[:middle])
    write(tmp_path / "exp/logs/m/s", events[middle:], 1)
    assert curves(tmp_path) == surviving(events)


def test_files_are_read_in_the_order_of_their_events_not_of_their_names(tmp_path):
    late = write(tmp_path / "exp/logs/m/s", [value("a", 2, 1, 200)], 0)
    early = write(tmp_path / "exp/logs/m/s", [value("a", 1, 1, 100)], 1)
    assert events_module.in_order([late, early]) == [early, late]
    assert curves(tmp_path) == {"a": [(1, 2.0)]}


def test_tags_of_subfolders_begin_with_their_names(tmp_path):
    for name, number in (("", 1), ("loss_train", 2), ("hparams", 3)):
        write(tmp_path / "exp/logs/m/s" / name, [value("loss", number, 1)])
    assert curves(tmp_path) == {
        "loss": [(1, 1.0)],
        "loss_train/loss": [(1, 2.0)],
        "hparams/loss": [(1, 3.0)],
    }


def test_what_is_no_number_stays(tmp_path):
    numbers = [1.0, np.nan, np.inf]
    write(tmp_path / "exp/logs/m/s", [value("a", x, step) for step, x in enumerate(numbers)])
    np.testing.assert_equal(scalars(tmp_path)["value"].to_numpy(), numbers)


def test_a_run_without_scalars_has_an_empty_table(tmp_path):
    (tmp_path / "exp/logs/m/s").mkdir(parents=True)
    (tmp_path / "exp/logs/m/s/history.csv").write_text("epoch\n")
    assert list(scalars(tmp_path).columns) == ["tag", "step", "wall_time", "value"]
    assert len(scalars(tmp_path)) == 0


# damage


def test_a_file_cut_anywhere_is_read_up_to_the_cut_and_named(tmp_path, capsys):
    events = [value("a", step, step) for step in range(3)]
    content = records(events)
    ends = ends_of(events)
    for length in range(len(content) + 1):
        root = tmp_path / f"exp{length}"
        path = write(root / "logs/m/s", [])
        path.write_bytes(content[:length])
        whole = sum(end <= length for end in ends) - 1
        wanted = {"a": [(step, step) for step in range(whole)]} if whole else {}
        assert curves(root) == wanted
        said = capsys.readouterr().err
        if length in ends:
            assert said == ""
        else:
            assert f"{path}: ends within an event" in said
            assert f"begins at byte {ends[whole]} " in said


def test_a_byte_changed_anywhere_is_found(tmp_path, capsys):
    events = [value("a", step, step) for step in range(3)]
    content = records(events)
    ends = ends_of(events)
    for place in range(len(content)):
        root = tmp_path / f"exp{place}"
        path = write(root / "logs/m/s", [])
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        whole = sum(end <= place for end in ends) - 1
        wanted = {"a": [(step, step) for step in range(whole)]} if whole else {}
        assert curves(root) == wanted
        assert f"{path}: damaged at byte {ends[whole]};" in capsys.readouterr().err


def test_what_is_no_event_is_damage(tmp_path, capsys):
    path = write(tmp_path / "exp/logs/m/s", [value("a", 1, 1)])
    end = path.stat().st_size
    with path.open("ab") as file:
        RecordWriter(file).write(b"\xff\xff no event")
    assert curves(tmp_path) == {"a": [(1, 1.0)]}
    assert f"{path}: holds no event at byte {end}" in capsys.readouterr().err


def test_damage_in_one_file_does_not_hide_the_next(tmp_path):
    folder = tmp_path / "exp/logs/m/s"
    first = write(folder, [value("a", 1, step, 1 + step) for step in range(10)])
    first.write_bytes(first.read_bytes()[:-5])
    write(folder, [value("a", 2, step, 100 + step) for step in (12, 13)], 1)
    write(folder, [], 2)
    assert [step for step, _ in curves(tmp_path)["a"]] == [*range(9), 12, 13]


def test_a_run_is_read_beside_one_who_writes_it(tmp_path, capsys):
    path = write(tmp_path / "exp/logs/m/s", [value("a", 1, step) for step in range(4)])
    reader = events_module.read_events(path)
    steps = [next(reader).step]
    append(path, [value("a", 2, 2)])
    with path.open("ab") as file:
        file.write(records([value("a", 2, 3)])[:20])
    assert curves(tmp_path)["a"] == [(0, 1.0), (1, 1.0), (2, 2.0)]
    assert "being written" in capsys.readouterr().err
    steps += [next(reader).step for _ in range(4)]
    assert steps == [0, 1, 2, 3, 2]


def test_a_large_event_is_read_with_those_behind_it(tmp_path):
    picture = Summary.Image(encoded_image_string=bytes(2 * events_module.CHECKED))
    large = Event(step=1, summary=Summary(value=[Summary.Value(tag="picture", image=picture)]))
    path = write(tmp_path / "exp/logs/m/s", [large, value("a", 1, 2)])
    assert [event.step for event in events_module.read_events(path)] == [1, 2]
    assert curves(tmp_path) == {"a": [(2, 1.0)]}

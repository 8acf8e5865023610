"""Broken input of every kind: the right result, or a sentence that names the path.

Each case breaks one file of a small whole and reads it. Never another exception, never another
value. A seed and a number tell a case again: pytest -k "case and 17". Not among the cases is what
nothing in the files can tell: bits that flip inside of a compressed chunk, which has no checksum,
and a chunk that was deleted, which reads as the chunk of zeros that many programs do not write.
"""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config.load import load_config
from common.data.splits import split
from common.data.splits.manifest import Entry
from common.data.volumes.ngff import open_levels, write_multiscale
from common.errors import UserError
from common.infer.processing.recipe import read_thresholds
from common.runs.events import scalars
from common.runs.find import find
from common.score import result, submission
from common.score.packing import pack
from common.train.recording.record import RunRecord, read_history, read_record, write_record

SEED = 20_261
NO_NUMBERS = (None, True, "8", "", "\0", [], [[]], {}, {"type": "scale"}, math.nan, math.inf)
"""What stands in no place of a number."""

NO_TEXTS = (None, False, 3, -1.5, [], ["s0"], {}, "nowhere", "\ud800", "x" * 5000, "../..")
"""What stands in no place of a text."""


# A small grammar of what goes wrong with JSON


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values in a content of JSON."""
    found = [path]
    items: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        items = list(content.items())
    elif isinstance(content, list):
        items = list(enumerate(content))
    for key, value in items:
        found += places(value, (*path, key))
    return found


def broken(content: Any, chance: random.Random) -> Any:
    """A copy with one value replaced, wrapped, unwrapped, renamed or removed."""
    content = copy.deepcopy(content)
    *above, last = chance.choice(places(content)[1:])
    holder = content
    for key in above:
        holder = holder[key]
    value = holder[last]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    kind = chance.choice(("junk", "junk", "wrap", "remove", "rename"))
    if kind == "remove" or (kind == "rename" and not isinstance(last, str)):
        del holder[last]
    elif kind == "rename":
        holder[f"{last}_"] = holder.pop(last)
    elif kind == "wrap":
        holder[last] = chance.choice(([value], {"0": value}))
    else:
        holder[last] = chance.choice(NO_NUMBERS if number else NO_TEXTS)
    return content


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A file cut short, emptied, or of something else."""
    kind = chance.choice(("cut", "cut", "empty", "text", "zeros"))
    if kind == "cut":
        return data[: chance.randrange(len(data))]
    return {"empty": b"", "text": b"<html>404</html>" * 9, "zeros": bytes(len(data))}[kind]


def break_json(file: Path, chance: random.Random) -> None:
    if chance.random() < 0.2:
        file.write_bytes(damaged(file.read_bytes(), chance))
        return
    content = broken(json.loads(file.read_text()), chance)
    file.write_text(json.dumps(content))


def outcome(read: Callable[[], Any], path: Path) -> Any:
    """What was read, or None after a sentence that names the path."""
    try:
        return read()
    except (UserError, FileNotFoundError) as error:
        assert str(path) in str(error), error
        assert len(str(error)) < 3000
        return None


def cases(kind: str, number: int):
    """Parametrizes a test by a source of chance for each case."""
    sources = [random.Random(f"{SEED} {kind} {case}") for case in range(number)]
    return pytest.mark.parametrize("chance", sources, ids=[f"case{n}" for n in range(number)])


# Images


VOLUME = np.random.default_rng(0).integers(1, 256, (6, 7, 8), np.uint8)


@pytest.fixture(scope="module")
def whole_image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "image"
    write_multiscale(path, VOLUME, (8, 8, 8), (100, 200, 300), levels=2, chunk=4)
    return path


@pytest.fixture
def image(tmp_path, whole_image) -> Path:
    shutil.copytree(whole_image, tmp_path / "image")
    return tmp_path / "image"


def read_image(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    level = open_levels(path)[0]
    place = level.translation if level.has_translation else np.array([100.0, 200, 300])
    return level.read((0, 0, 0), level.shape), level.scale, place


def is_the_image(found: Any) -> bool:
    volume, scale, place = found
    same_place = (scale == 8).all() and (place == (100, 200, 300)).all()
    return same_place and np.array_equal(volume, VOLUME)


@cases("image", 110)
def test_metadata_of_an_image(image, chance):
    file = image / chance.choice((".zattrs", ".zattrs", ".zgroup", "s0/.zarray", "s0/.zarray"))
    before = json.loads(file.read_text())
    break_json(file, chance)
    if only_other_levels_changed(before, file):
        return
    found = outcome(lambda: read_image(image), image)
    assert found is None or is_the_image(found), file.read_text()[:2000]


def only_other_levels_changed(before: dict, file: Path) -> bool:
    """Whether the metadata lack the finest level, so that another one is rightly the finest."""
    try:
        datasets = json.loads(file.read_bytes())["multiscales"][0]["datasets"]
        return datasets == before["multiscales"][0]["datasets"][1:]
    except (ValueError, LookupError, TypeError):
        return False


@cases("chunk", 40)
def test_chunks_of_an_image(image, chance):
    chunk = chance.choice(sorted(path for path in (image / "s0").glob("*/*/*") if path.is_file()))
    if chance.random() < 0.15:
        chunk.unlink()
        chunk.mkdir()
    else:
        chunk.write_bytes(damaged(chunk.read_bytes(), chance))
    found = outcome(lambda: read_image(image), image)
    assert found is None or is_the_image(found)


# The split


@cases("split", 40)
def test_rows_of_a_split(tmp_path, tiny_store, chance):
    path = tmp_path / "datasplit.csv"
    rows = []
    for usage, name in (("train", "crop1"), ("validate", "crop3")):
        rows.append(split.row_text(usage, "tiny", name, ("mito", "er")))
    path.write_text("\n".join(rows))
    before = split.read_datasplit(path, tiny_store)
    text = path.read_text()
    place = chance.randrange(len(text))
    junk = chance.choice(("", '"', ",", "\\", "\0", "[", "]", " ", "é", "\n", "../", "s3://"))
    stop = place + chance.choice((0, 1, 1, 9))
    path.write_text(text[:place] + junk + text[stop:])

    def read() -> list:
        found = split.read_datasplit(path, tiny_store)
        split.check_files(found)
        return found

    found = outcome(read, path)
    if found is not None:
        assert {row.crop for row in found} <= {row.crop for row in before}
        # what is shorter by a class is another split, which nothing tells from this one
        assert all(set(row.annotated) <= {"mito", "er"} for row in found)
        assert all(row.raw == before[0].raw for row in found)


# Configurations


@cases("config", 40)
def test_configurations(experiment, chance):
    tiny = experiment()
    file = tiny.folder / "train_config.py"
    lines = file.read_text().splitlines()
    numbers = [n for n, line in enumerate(lines) if " = " in line]
    number = chance.choice(numbers)
    name = lines[number].split(" = ")[0]
    junk = ("object()", "(", "1 / 0", "nowhere", "[[]]", "float('nan')", "{1: 2}", "lambda: 0")
    more = ("__import__('sys').exit(3)", "__import__('nowhere')", "'\\0'", "10**400", "1e999")
    lines[number] = f"{name} = {chance.choice(junk + more)}"
    file.write_text("\n".join(lines) + "\n")
    assert outcome(lambda: load_config(tiny.folder, (), tiny.data), tiny.folder) is None


# What a run and an evaluation leave


SETTINGS = {"best_metric": "'dice'", "epochs": "2"}


@cases("run", 40)
def test_records_of_a_run(tmp_path, chance):
    record = RunRecord("tiny", "tiny", "seed42", SETTINGS, {"commit": "abc"})
    write_record(tmp_path, record)
    file = tmp_path / "run.json"
    content = json.loads(file.read_text())
    content["sessions"] = [{"began": "2026-11-20T10:00:00+00:00", "first_iteration": 0}]
    content["result"] = {"epoch": 2, "best": 0.5, "finished": True}
    file.write_text(json.dumps(content))
    before = read_record(tmp_path)
    break_json(file, chance)
    found = outcome(lambda: read_record(tmp_path), file)
    if found is not None:
        assert_nothing_else(vars(found), vars(before))


def assert_nothing_else(found: Any, before: Any) -> None:
    """Each value is the one of before, or that of what the file does not say."""
    if isinstance(before, dict) and isinstance(found, dict):
        for key in set(found) & set(before):
            assert_nothing_else(found[key], before[key])
    elif hasattr(before, "__dataclass_fields__"):
        assert_nothing_else(vars(found), vars(before))
    elif isinstance(before, list) and isinstance(found, list):
        for one, other in zip(found, before, strict=False):
            assert_nothing_else(one, other)
    else:
        assert found == before or found in (None, "", 0, ()) or found in NO_TEXTS, (found, before)


HISTORY = "epoch,iteration,lr,validation/dice\n1,3,0.01,0.25\n2,6,0.01,\n"


@cases("history", 30)
def test_histories(tmp_path, chance):
    file = tmp_path / "history.csv"
    file.write_text(HISTORY)
    before = read_history(tmp_path)
    if chance.random() < 0.5:
        file.write_bytes(damaged(HISTORY.encode(), chance))
    else:
        lines = [line.split(",") for line in HISTORY.splitlines()]
        line = chance.choice(lines[1:])
        place = chance.randrange(len(line))
        line[place : place + 1] = chance.choice(([], ["x"], ["1", "2"], ['"'], ["{}"], ["\0"]))
        file.write_text("\n".join(map(",".join, lines)) + "\n")
    found = outcome(lambda: read_history(tmp_path), file)
    assert found is None or found.equals(before.head(len(found))), file.read_text()


THRESHOLD = {"threshold": 0.35, "checkpoint": "ab" * 32}


@cases("thresholds", 20)
def test_thresholds(tmp_path, chance):
    file = tmp_path / "thresholds.json"
    content = {"tiny/seed42": {"mito": THRESHOLD, "er": THRESHOLD}}
    file.write_text(json.dumps(content))
    break_json(file, chance)
    found = outcome(lambda: read_thresholds(file), file)
    for tuned in (found or {}).values():
        for entry in tuned.values():
            assert entry["threshold"] == 0.35 and isinstance(entry["checkpoint"], str)


@cases("scores", 40)
def test_scores(tmp_path, chance):
    from score.test_result import scores_of_two_crops

    file = tmp_path / "scores.json"
    before = scores_of_two_crops()
    result.write(before, file)
    break_json(file, chance)
    found = outcome(lambda: result.read(file), file)
    if found is not None:
        assert_nothing_else(found.as_json(), before.as_json())


# Event files and submissions


@cases("events", 30)
def test_event_files(tmp_path, chance, capsys):
    """A file is read up to its damage, which is named; one may end after any event."""
    from runs.event_files import records, value

    events = [value("loss", 1 / step, step) for step in range(1, 9)]
    ends = [len(records(events[:count])) for count in range(9)]
    folder = tmp_path / "tiny/logs/tiny/seed42"
    folder.mkdir(parents=True)
    file = folder / "events.out.tfevents.1700000000.host.1.0"
    data = bytearray(records(events))
    file.write_bytes(data)
    (run,) = find([tmp_path])
    before = scalars(run)["value"].tolist()
    if chance.random() < 0.5:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    else:
        data = bytearray(damaged(bytes(data), chance))
    file.write_bytes(data)
    found = scalars(run)["value"].tolist()
    assert found == before[: len(found)]
    ended_well = len(data) == ends[len(found)]
    assert ended_well or str(file) in capsys.readouterr().err


ENTRY = Entry("crop1", "tiny", "mito", (8.0, 8.0, 8.0), (100.0, 200.0, 300.0), VOLUME.shape)


@cases("zip", 40)
def test_submissions(tmp_path, whole_image, chance):
    path = pack([ENTRY], lambda _: whole_image, tmp_path / "submission.zip", lambda _: None)
    data = bytearray(path.read_bytes())
    if chance.random() < 0.7:
        for _ in range(chance.choice((1, 3))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    else:
        data = bytearray(damaged(bytes(data), chance))
    path.write_bytes(data)
    problems = submission.check(path, [ENTRY])
    assert all(str(tmp_path) in problem for problem in problems)
    if not problems:
        with submission.opened(path) as group:
            assert np.array_equal(group["crop1/mito"][...], VOLUME)


def test_the_grammar_breaks_what_it_is_given():
    chance = random.Random(0)
    content = {"a": [1, 2], "b": {"c": "text"}}
    assert sum(broken(content, chance) != content for _ in range(50)) > 45

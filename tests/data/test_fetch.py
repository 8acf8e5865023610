"""Fetching: only what is needed, whole, verified, gone on with after any interruption.

The bucket is a local server.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from conftest import (
    CLASSES,
    CROP_SHAPE,
    CROPS,
    DEADLINE,
    VOXEL_SIZE,
    Experiment,
    datasplit_text,
    started,
    wait_until,
    world,
    write_data,
)
from numcodecs import Blosc, GZip, Zstd
from s3_server import Server, serving

from common.data.crops import plan as crops_module
from common.data.download import bucket as bucket_module
from common.data.download import fetch as fetch_module
from common.data.download.bucket import RemoteFile, flaw
from common.data.download.fetch import fetch
from common.data.download.wanted import Choice, choose
from common.data.samples import sampling
from common.data.samples.loaders import open_data
from common.data.volumes import layout
from common.data.volumes.ngff import open_levels, slices, write_multiscale
from common.errors import FileError, UserError

RAW = "tiny/tiny.zarr/recon-1/em/fibsem-uint8"
LABELS = "tiny/tiny.zarr/recon-1/labels/groundtruth"
GROUPS = (
    "tiny",
    "tiny/tiny.zarr",
    "tiny/tiny.zarr/recon-1",
    "tiny/tiny.zarr/recon-1/em",
    "tiny/tiny.zarr/recon-1/labels",
    LABELS,
)
CHUNK = 16
SIDE = 56
"""Voxels of the raw along each axis."""


def write_raw(store: Path, name: str = "fibsem-uint8") -> None:
    """The raw of `write_data` in chunks of 16^3 and two levels; one chunk is 0 throughout."""
    (level,) = open_levels(store / layout.RAW)
    volume = level.read((0, 0, 0), level.shape)
    volume[:CHUNK, :CHUNK, :CHUNK] = 0
    shutil.rmtree(store / layout.RAW)
    write_multiscale(store / "recon-1/em" / name, volume, VOXEL_SIZE, levels=2, chunk=CHUNK)


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Path:
    """What the bucket holds: the tiny cell; labels in chunks of 12^3, in two levels."""
    root = tmp_path_factory.mktemp("bucket")
    store = write_data(root)
    write_raw(store)
    for crop, (_, start, annotated) in CROPS.items():
        inside = slices(start, np.add(start, CROP_SHAPE))
        for name in annotated:
            volume = 255 * world()[name][inside].astype(np.uint8)
            write_multiscale(
                root / LABELS / crop / name,
                volume,
                VOXEL_SIZE,
                np.multiply(start, VOXEL_SIZE),
                levels=2,
                chunk=12,
            )
    for group in GROUPS[1:]:
        (root / group / ".zgroup").write_text('{"zarr_format": 2}')
    (root / LABELS / "crop1/.zattrs").write_text('{"cellmap": 1}')
    return root


@pytest.fixture
def server(tree, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(bucket_module, "BACKOFF_S", 0.001)
    with serving(tree) as running:
        yield running


@pytest.fixture
def table(tmp_path) -> Path:
    rows = []
    for name, (_, start, annotated) in CROPS.items():
        translation = ";".join(str(8 * voxel) for voxel in start)
        rows.append(f"{name},tiny,8;8;8,{translation},24;24;24,{' '.join(annotated)}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["crop,dataset,voxel_size,translation,shape,classes", *rows]))
    return path


@pytest.fixture
def tests_table(tmp_path) -> Path:
    path = tmp_path / "tests.csv"
    path.write_text(
        "crop_name,dataset,class_label,voxel_size,translation,shape\n"
        "7,tiny,mito,[8.0;8.0;8.0],[256.0;256.0;256.0],[8;8;8]\n"
        "7,tiny,er,[16.0;16.0;16.0],[260.0;260.0;260.0],[8;8;8]\n"
    )
    return path


@pytest.fixture
def run(server, table, tests_table, tmp_path):
    """`fetch` from the server to tmp_path / "data"; what it says is in run.said."""
    said: list[str] = []

    def call(crops: str = "*", **settings):
        settings = {
            "scale": (8,),
            "data": tmp_path / "data",
            "url": server.url,
            "workers": 4,
            "table": table,
            **settings,
        }
        return fetch(crops, manifest_path=tests_table, say=said.append, **settings)

    call.said = said
    call.data = tmp_path / "data"
    return call


def files(root: Path) -> dict[str, bytes]:
    """Every file under a data root but what fetch remembers."""
    contents = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_file() and not name.startswith(".fetch"):
            contents[name] = path.read_bytes()
    return contents


def brute_force(
    tree: Path,
    lower_nm: np.ndarray,
    upper_nm: np.ndarray,
    level: str = "s0",
    voxel: float = 8,
    offset: float = 0,
) -> set[str]:
    """The chunks that exist and that training needs for a box, by looking at every voxel.

    Training keeps the voxels whose centres are less than two voxels outside of the box.
    """
    centres = offset + voxel * np.arange(SIDE * 8 // int(voxel))
    axes = []
    for low, high in zip(lower_nm - 2 * voxel, upper_nm + 2 * voxel, strict=True):
        kept = np.flatnonzero((centres > low + 1e-6) & (centres < high - 1e-6))
        axes.append(np.unique(kept // CHUNK))
    names = {f"{RAW}/{level}/{z}/{y}/{x}" for z, y, x in itertools.product(*axes)}
    return {name for name in names if (tree / name).is_file()}


def crop_box(name: str, margin: float) -> tuple[np.ndarray, np.ndarray]:
    start = 8 * np.array(CROPS[name][1]) - 4
    return start - margin, start + 8 * np.array(CROP_SHAPE) + margin


def raw_chunks(root: Path, level: str = "s0") -> set[str]:
    return {
        name for name in files(root) if name.startswith(f"{RAW}/{level}/") and "/.z" not in name
    }


# what is needed


@pytest.mark.parametrize("padding", [0, 40, 88, (0, 300, 10)])
def test_the_raw_chunks_are_those_that_touch_the_padded_crop(run, tree, padding):
    """With 88 nm the box begins where a chunk does."""
    run("crop2", padding_nm=padding)
    assert raw_chunks(run.data) == brute_force(tree, *crop_box("crop2", np.array(padding)))
    assert len(raw_chunks(run.data)) < len(raw_chunks(tree))


def test_padding_in_voxels_is_of_the_scale_that_is_fetched(run, tree):
    run("crop2", padding_voxels=5, scale=(8,))
    assert raw_chunks(run.data) == brute_force(tree, *crop_box("crop2", np.array(40)))


def test_what_is_fetched_is_what_the_bucket_holds_byte_for_byte(run, tree):
    run()
    assert files(run.data).items() <= files(tree).items()


def test_raw_and_labels_open_and_read_as_in_the_bucket(run, tree):
    run("crop2", padding_nm=0)
    for path in (RAW, f"{LABELS}/crop2/mito"):
        here, there = (open_levels(root / path) for root in (run.data, tree))
        assert [
            (level.path.name, level.grid.shape, *level.scale, *level.translation) for level in here
        ] == [
            (level.path.name, level.grid.shape, *level.scale, *level.translation) for level in there
        ]
    inside = (30, 30, 2), (54, 54, 26)
    np.testing.assert_array_equal(
        open_levels(run.data / RAW)[0].read(*inside), open_levels(tree / RAW)[0].read(*inside)
    )


def test_metadata_of_every_group_come_along(run, tree):
    run("crop1")
    for name in (
        *(f"{group}/.zgroup" for group in GROUPS[1:]),
        f"{LABELS}/crop1/.zattrs",
        f"{RAW}/s1/.zarray",
    ):
        assert (run.data / name).read_bytes() == (tree / name).read_bytes()


def test_only_the_classes_and_crops_asked_for_come(run):
    run("crop1,2", classes=("mito", "er"))
    assert {
        path.parent.name + "/" + path.name
        for path in (run.data / LABELS).glob("*/*")
        if path.is_dir()
    } == {"crop1/mito", "crop1/er", "crop2/mito"}


@pytest.mark.parametrize(("scale", "level"), [(8, "s0"), (10, "s0"), (13, "s1"), (128, "s1")])
def test_the_level_is_the_one_that_training_picks(run, scale, level):
    run("crop3", scale=(scale,))
    assert raw_chunks(run.data, level)
    assert not raw_chunks(run.data, {"s0": "s1", "s1": "s0"}[level])


def test_labels_come_at_their_finest_level(run):
    run("crop1", scale=(16,))
    assert (run.data / LABELS / "crop1/mito/s0/0/0/0").is_file()
    assert [
        path.name
        for path in (run.data / LABELS / "crop1/mito/s1").iterdir()
        if not path.name.startswith(".z")
    ] == []


def test_all_resolutions_are_all_levels_of_raw_and_labels(run):
    run("crop1", scale=(), all_resolutions=True)
    assert raw_chunks(run.data, "s0") and raw_chunks(run.data, "s1")
    assert (run.data / LABELS / "crop1/mito/s1/0/0/0").is_file()


def test_a_coarser_level_is_cut_on_its_own_voxels(run, tree):
    run("crop3", scale=(16,), padding_nm=0)
    assert raw_chunks(run.data, "s1") == brute_force(tree, *crop_box("crop3", 0), "s1", 16, 4)


def test_crops_with_coarser_labels_than_the_scale_are_left_out(run, table):
    table.write_text(table.read_text().replace("crop1,tiny,8;8;8", "crop1,tiny,16;16;16"))
    run("*", scale=(8,))
    assert not (run.data / LABELS / "crop1").exists()
    assert "1 of 3 crops left out" in run.said[0]


def test_a_test_crop_is_its_raw_alone(run, tree):
    """Its labels together cover 252 to 380 nm."""
    run("test", padding_nm=0)
    assert run.said[-1].startswith("with an EXPERIMENT that is trained: ")
    assert raw_chunks(run.data) == brute_force(tree, np.full(3, 252), np.full(3, 380))
    assert not (run.data / LABELS).exists()


def test_a_test_crop_is_found_by_its_number(run, tmp_path):
    run("7", padding_nm=0)
    run("test", padding_nm=0, data=tmp_path / "other")
    assert files(run.data) == files(tmp_path / "other")


def test_raw_with_another_name_in_the_bucket_comes_to_the_usual_place(run, server, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "renamed")
    (tmp_path / "renamed" / RAW).rename(tmp_path / "renamed" / RAW.replace("uint8", "uint16"))
    run("crop3")
    server.root = tmp_path / "renamed"
    run("crop3", data=tmp_path / "other")
    assert files(tmp_path / "other") == files(run.data)
    server.asked.clear()
    run("crop3", data=tmp_path / "other")
    assert not server.objects()


def test_an_array_with_dots_between_its_chunk_numbers_is_understood(run, server, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "dots")
    level = tmp_path / "dots" / RAW / "s0"
    for path in [
        path for path in level.rglob("*") if path.is_file() and not path.name.startswith(".z")
    ]:
        path.rename(level / ".".join(path.relative_to(level).parts))
    metadata = json.loads((level / ".zarray").read_text())
    (level / ".zarray").write_text(json.dumps({**metadata, "dimension_separator": "."}))
    server.root = tmp_path / "dots"
    run("crop2", padding_nm=0)
    names = {
        name.replace(".", "/")
        for name in (path.name for path in (run.data / RAW / "s0").iterdir())
        if name[0].isdigit()
    }
    assert {f"{RAW}/s0/{name}" for name in names} == brute_force(tree, *crop_box("crop2", 0))


# an experiment


@pytest.fixture
def empty(experiment, tmp_path) -> Experiment:
    """A tiny experiment with rotations and nothing in its data root."""
    turn = {"rotate": {"axes": {"z": [-180, 180]}}, "mirror": {"axes": {"x": 0.5}}}
    return Experiment(experiment(spatial_transforms=turn).folder, tmp_path / "fetched")


def test_an_experiment_trains_on_what_was_fetched_for_it_as_on_the_whole_data(run, empty, tree):
    run(for_experiment=empty.folder, scale=(), data=empty.data)
    assert raw_chunks(empty.data) < raw_chunks(tree)
    here = empty.train(run_name="here")
    there = Experiment(empty.folder, tree).train(run_name="there")
    assert here.best_metric == there.best_metric and here.epochs == 2
    assert here.scores.loss == there.scores.loss


def test_the_raw_that_training_and_validation_keep_is_all_there(run, empty, tree):
    run(for_experiment=empty.folder, scale=(), data=empty.data)
    fetched = open_data(empty.config())
    whole = open_data(Experiment(empty.folder, tree).config())
    for usage in ("train", "validation"):
        for crop, expected in zip(getattr(fetched, usage), getattr(whole, usage), strict=True):
            np.testing.assert_array_equal(crop.raw(), expected.raw())


def test_what_is_fetched_follows_the_margins_that_training_keeps(run, empty, monkeypatch, tmp_path):
    """No second copy of that rule: changing it in one place changes what is fetched."""
    run("crop2", for_experiment=empty.folder, scale=(), data=empty.data)
    margins = sampling.margins_nm

    def none(*patches):
        return {usage: np.zeros(3) for usage in margins(*patches)}

    monkeypatch.setattr(sampling, "margins_nm", none)
    run("crop2", for_experiment=empty.folder, scale=(), data=tmp_path / "nearer")
    assert raw_chunks(tmp_path / "nearer") < raw_chunks(empty.data)
    monkeypatch.setattr(crops_module, "EXTRA_VOXELS", (SIDE, SIDE))
    run("crop2", for_experiment=empty.folder, scale=(), data=tmp_path / "all")
    assert raw_chunks(tmp_path / "all") > raw_chunks(empty.data)


def test_sections_that_are_averaged_over_are_all_there(run, experiment, tree, tmp_path):
    tiny = experiment(raw_sections=8)
    fetched = Experiment(tiny.folder, tmp_path / "fetched")
    run("crop2", for_experiment=tiny.folder, scale=(), data=fetched.data)
    tiny.write("datasplit.csv", datasplit_text({"crop2": CROPS["crop2"]}))
    (crop,) = open_data(fetched.config()).train
    (expected,) = open_data(Experiment(tiny.folder, tree).config()).train
    np.testing.assert_array_equal(crop.raw(), expected.raw())


def test_crops_of_parts_and_of_counter_examples_are_fetched_as_training_reads_them(
    run, experiment, tmp_path
):
    """crop1 annotates mito_mem alone, a part of mito; crop2 er, a counter-example of it."""
    tiny = experiment(classes=("mito",), counter_classes=("er",))
    rows = {"crop1": ("train", "mito_mem"), "crop2": ("train", "er"), "crop3": ("validate", "mito")}
    text = datasplit_text({name: (use, (), (of,)) for name, (use, of) in rows.items()})
    tiny.write("datasplit.csv", text)
    _, wanted = choose(Choice(for_experiment=tiny.folder, data=tmp_path / "fetched"), print)
    assert {crop.name: crop.classes for crop in wanted} == {
        "crop1": ("mito_mem",),
        "crop2": ("er",),
        "crop3": ("mito",),
    }


def test_an_experiment_names_its_own_crops_and_classes(run, empty):
    run("validate", for_experiment=empty.folder, scale=(), data=empty.data)
    assert [path.name for path in (empty.data / LABELS).glob("crop*")] == ["crop3"]
    assert {
        path.name for path in (empty.data / LABELS / "crop3").iterdir() if path.is_dir()
    } == set(CLASSES)


def test_the_last_line_says_what_to_run_next(run, empty):
    run(for_experiment=empty.folder, scale=(), data=empty.data)
    assert run.said[-1].startswith("next: python -m cellmap_segmentation_challenge train ")
    assert run.said[-1].endswith(f"train {empty.folder} --data {empty.data}")
    run("validate", for_experiment=empty.folder, scale=(), data=empty.data)
    assert run.said[-1].endswith(f"doctor {empty.folder} --data {empty.data}")
    run("crop1")
    assert run.said[-1].endswith(f"make-datasplit datasplit.csv --data {run.data} --scale 8")


# sizes


def test_a_dry_run_counts_what_a_run_then_writes_and_writes_nothing(run):
    dry = run("crop1,crop3", dry_run=True)
    assert not run.data.exists()
    wet = run("crop1,crop3")
    sizes = [len(content) for content in files(run.data).values()]
    assert (dry.files, dry.bytes, dry.skipped, dry.fetched) == (len(sizes), sum(sizes), 0, 0)
    assert (wet.fetched, wet.fetched_bytes) == (len(sizes), sum(sizes))


def test_a_dry_run_counts_what_is_there_already(run):
    run("crop2", padding_nm=0)
    there = files(run.data)
    report = run("*", padding_nm=0, dry_run=True)
    assert (report.skipped, report.skipped_bytes) == (len(there), sum(map(len, there.values())))
    assert files(run.data) == there


def test_sizes_are_said_before_anything_comes(run, server):
    run("crop3")
    size = next(line for line in run.said if "labels" in line).split()
    expected = {
        name: content for name, content in files(run.data).items() if not name.startswith(f"{RAW}/")
    }
    assert int(size[1]) == len(expected)
    assert any("free in" in line for line in run.said)


def test_a_disk_that_is_too_small_stops_before_the_first_chunk(run, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    with pytest.raises(FileError, match="kB to write and 5 kB free"):
        run("crop3")
    assert not raw_chunks(run.data)


def test_metadata_of_the_same_size_with_another_content_are_replaced(run, tree):
    """Chunks of 61^3 take as many letters in .zarray as chunks of 16^3."""
    run("crop2")
    path = run.data / RAW / "s0/.zarray"
    path.write_text(path.read_text().replace("16", "61"))
    assert run("crop2").fetched_bytes <= len(path.read_bytes())
    assert path.read_bytes() == (tree / RAW / "s0/.zarray").read_bytes()


# going on


def test_a_second_run_asks_the_server_for_nothing(run, server):
    first = run()
    server.asked.clear()
    second = run()
    assert server.asked == []
    assert (second.files, second.fetched, second.skipped) == (first.files, 0, first.files)


def test_chunks_that_the_bucket_does_not_hold_are_never_asked_for(run, server, tree):
    run("crop1")
    assert not (tree / RAW / "s0/0/0/0").exists()
    assert all((tree / key).is_file() for key in server.objects())


def test_each_file_and_each_listing_is_asked_for_once(run, server):
    server.page = 1000
    run()
    assert max(Counter(server.asked).values()) == 1


def test_a_file_of_the_wrong_size_is_fetched_again(run):
    run("crop2")
    before = files(run.data)
    for name in sorted(raw_chunks(run.data))[:2]:
        (run.data / name).write_bytes(before[name][:-1])
    assert run("crop2").fetched == 2
    assert files(run.data) == before


def test_verify_finds_a_changed_file_of_the_right_size(run):
    run("crop2")
    before, name = files(run.data), sorted(raw_chunks(run.data))[0]
    (run.data / name).write_bytes(bytes(len(before[name])))
    assert run("crop2").fetched == 0
    assert run("crop2", verify=True).fetched == 1
    assert files(run.data) == before


def test_a_journal_that_was_cut_short_loses_its_last_record_only(run, server):
    run("crop2")
    journal = run.data / ".fetch/listings.jsonl"
    whole = journal.read_bytes().rstrip()
    journal.write_bytes(whole[:-9])
    server.asked.clear()
    run("crop2")
    assert len(server.asked) == 1 and server.asked[0].startswith("?")
    server.asked.clear()
    run("crop2")
    assert server.asked == []


PROGRAM = """
import signal
import sys
from common.data.download.fetch import fetch

def interrupt(*received):
    print("interrupted", flush=True)
    signal.default_int_handler(*received)

signal.signal(signal.SIGINT, interrupt)
fetch(table=sys.argv[1], data=sys.argv[2], url=sys.argv[3], scale=(8,), workers=4)
"""


def test_killed_at_random_moments_and_started_again_the_files_are_whole(
    run, server, table, forked, tmp_path
):
    whole = run(data=tmp_path / "whole")
    requests = len(server.asked)
    random_numbers = random.Random(0)
    for sent in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        server.asked.clear()
        answered = random_numbers.randrange(requests // 10, requests // 4)
        server.gate.let(answered)
        fetching = forked(table, run.data, server.url, program=PROGRAM)
        # the next one is held at the gate
        wait_until(lambda answered=answered: len(server.asked) > answered, fetching)
        fetching.send_signal(sent)
        if sent == signal.SIGINT:
            # let on before it has the signal, it could fetch all the rest
            wait_until(lambda fetching=fetching: "interrupted" in fetching.out.read_text())

        def ends(fetching=fetching) -> bool:
            server.gate.let(1)  # Ctrl-C waits for what is under way
            return not fetching.is_running

        wait_until(ends)
        assert fetching.ended()[0] != 0
        server.gate.let(None)
        server.wait_until_idle()
        fetched = {
            name: content for name, content in files(run.data).items() if not name.endswith(".part")
        }
        assert fetched.items() <= files(tmp_path / "whole").items()
        assert len(fetched) < whole.files
    server.asked.clear()
    last = run()
    assert last.skipped == len(fetched)
    assert len(server.objects()) == last.fetched == whole.files - len(fetched)
    assert files(run.data) == files(tmp_path / "whole")


LOCK = """
import sys
from fasteners import InterProcessLock
lock = InterProcessLock(sys.argv[1])
lock.acquire()
print("locked", flush=True)
sys.stdin.read()
"""


def test_two_runs_into_one_folder_are_refused(run):
    (run.data / ".fetch").mkdir(parents=True)
    command = [sys.executable, "-c", LOCK, str(run.data / ".fetch/lock")]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        with pytest.raises(UserError, match="another fetch-data"):
            run("crop1")
        other.communicate(timeout=DEADLINE)
    run("crop1")


# faults


@pytest.mark.parametrize("fault", ["drop", "short", "corrupt", 500, 503, 429])
def test_a_fault_that_passes_is_overcome(run, server, tree, fault):
    run("crop3", dry_run=True)
    names = [name for name in files(tree) if name.startswith(f"{LABELS}/crop3/mito/s0/")]
    names += [f"{RAW}/s0/.zarray", f"{RAW}/s0/0/1/2"]
    server.faults = {name: [fault, fault] for name in names}
    run("crop3")
    assert not any(server.faults.values())
    assert files(run.data).items() <= files(tree).items()


def test_a_slow_answer_is_asked_for_again(run, server, monkeypatch):
    monkeypatch.setattr(bucket_module, "TIMEOUT_S", 1)
    server.faults = {f"{RAW}/s0/0/1/2": ["hang"]}
    run("crop3")
    assert server.asked.count(f"{RAW}/s0/0/1/2") == 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("drop", "breaks off"),
        ("short", "sends .* bytes of"),
        ("corrupt", "another MD5"),
        (500, "answer 500"),
        (403, "refused .answer 403.: it is not public"),
        (404, "no such thing"),
    ],
)
def test_a_fault_that_stays_is_named_and_the_other_files_come(run, server, tree, fault, words):
    run("crop3", data=run.data.parent / "whole")
    name = f"{RAW}/s0/0/1/2"
    server.faults = {name: [fault] * 10}
    with pytest.raises(FileError, match=words) as error:
        run("crop3")
    assert name in str(error.value) and "1 of " in str(error.value)
    assert files(run.data).keys() == files(run.data.parent / "whole").keys() - {name}


@pytest.mark.parametrize("array", [RAW, f"{LABELS}/crop3/mito"])
def test_without_an_md5_a_chunk_that_cannot_be_decoded_is_found(run, server, tree, tmp_path, array):
    shutil.copytree(tree, tmp_path / "bad")
    run("crop3", data=tmp_path / "whole")
    name = next(
        name
        for name in sorted(files(tmp_path / "whole"))
        if name.startswith(f"{array}/s0/") and "/.z" not in name
    )
    content = bytearray((tree / name).read_bytes())
    content[12] ^= 1  # the length in its Blosc header
    (tmp_path / "bad" / name).write_bytes(content)
    server.root, server.pieces = tmp_path / "bad", True
    with pytest.raises(FileError, match="cannot be decoded") as error:
        run("crop3")
    assert name in str(error.value) and "1 of " in str(error.value)


@pytest.mark.parametrize("codec", [Blosc(), Zstd(), GZip(), None])
def test_half_a_chunk_does_not_decode(tmp_path, codec):
    """No codec: there is nothing to see, and its size is all that is checked."""
    zarr.save_array(str(tmp_path / "s0"), np.arange(999) ** 2, compressor=codec, chunks=999)
    content = (tmp_path / "s0/0").read_bytes()
    for part, whole in ((content, True), (content[: len(content) // 2], codec is None)):
        assert (flaw(part, RemoteFile("s0/0", len(part), "x-2"), tmp_path) == "") == whole


def test_many_failures_end_the_run(run, server, tree):
    server.faults = {name: [403] for name in raw_chunks(tree)}
    with pytest.raises(FileError, match=r"10 of .* files could not be fetched"):
        run()


def test_a_run_that_ends_does_not_wait_for_further_tries(run, server, tree, monkeypatch):
    monkeypatch.setattr(bucket_module, "BACKOFF_S", 7200)
    first, *others = sorted(raw_chunks(tree))
    server.faults = {first: [500], **{name: [403] for name in others}}
    start = time.monotonic()
    with pytest.raises(FileError, match="could not be fetched"):
        run()
    # far from both the second that it takes and the hour at least that a try would wait
    assert time.monotonic() - start < 1800


def test_a_server_that_is_not_there_is_said(run, server, table):
    with pytest.raises(FileError, match=r"127\.0\.0\.1:1/.*cannot be reached"):
        run(url="http://127.0.0.1:1")


def test_an_answer_that_is_no_listing_is_said(run, server, monkeypatch):
    monkeypatch.setattr(
        Server, "listing", lambda self, query: b"<html>Log in to the network</html>"
    )
    with pytest.raises(FileError, match="sends no listing of a bucket"):
        run()


def test_markers_of_folders_and_keys_that_climb_out_are_passed_over(run, tree, monkeypatch):
    listing = Server.listing

    def odd(self, query):
        keys = [f"{query['prefix']}{name}" for name in ("", "s0/", "../../../../../../../../out")]
        items = "".join(
            f"<Contents><Key>{key}</Key><ETag>x</ETag><Size>0</Size></Contents>"
            for key in keys
            if "/.z" not in key
        )
        return listing(self, query).replace(
            b"</ListBucketResult>", items.encode() + b"</ListBucketResult>"
        )

    monkeypatch.setattr(Server, "listing", odd)
    run("crop2", all_resolutions=True, scale=())
    assert files(run.data).items() <= files(tree).items()


def test_a_crop_that_the_bucket_does_not_hold_is_named(run, table):
    table.write_text(table.read_text().replace("crop3,", "crop33,"))
    with pytest.raises(FileNotFoundError, match=f"no {LABELS}/crop33/er, .*name other crops"):
        run("33")


def test_a_file_that_cannot_be_written_is_named(run):
    (run.data / RAW / "s0").mkdir(parents=True)
    (run.data / RAW / "s0/0").write_text("in the way")
    with pytest.raises(FileError, match=r"s0/0/.*could not be written"):
        run("crop3")


def test_a_full_disk_leaves_no_part_of_a_file(run, tree, monkeypatch):
    write = Path.write_bytes

    def half(path: Path, content: bytes) -> None:
        if "s0" not in path.parts or path.name.startswith((".z", "..z")):
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(FileError, match="No space left"):
        run("crop3")
    assert files(run.data) and files(run.data).items() <= files(tree).items()


def test_ctrl_c_leaves_whole_files_and_says_how_to_go_on(run, server, tree, monkeypatch):
    write = bucket_module.write
    written = itertools.count()

    def interrupted(path, content):
        if next(written) == 30:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(bucket_module, "write", interrupted)  # while planning
    monkeypatch.setattr(fetch_module, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert "it goes on from there" in run.said[-1]
    assert 30 <= len(files(run.data)) < 40 and files(run.data).items() <= files(tree).items()


# asked wrongly


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"crops": "crop9"},
            "table.csv and test crops: no crop 'crop9'; there are 4: crop1, crop2, crop3, crop7",
        ),
        ({"crops": ""}, "crops ''; write"),
        ({"classes": ("mitto",)}, "unknown class 'mitto'; did you mean 'mito'"),
        ({"classes": ("pm",)}, "table.csv: none of the 3 crops annotates pm"),
        ({"scale": (0,)}, "scale 0; write nm"),
        ({"scale": ((8, 8),)}, r"scale \(8, 8\); write nm"),
        ({"scale": (2,)}, "table.csv: none of the 3 crops has labels as fine"),
        ({"padding_nm": -1}, "padding -1; write nm"),
        ({"all_resolutions": True}, "both scale and all_resolutions"),
        ({"url": "s3://bucket"}, "s3://bucket: not the address of a bucket"),
        ({"workers": 0}, "workers = 0"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_a_sentence(run, settings, words):
    with pytest.raises(UserError, match=words):
        run(**settings)


def test_a_row_that_is_not_in_the_layout_of_the_bucket_is_refused(run, empty):
    path = empty.folder / "datasplit.csv"
    path.write_text(path.read_text().replace("em/fibsem-uint8", "em/other", 1))
    with pytest.raises(UserError, match="line 1: tiny/crop1 is not where the bucket has it"):
        run(for_experiment=empty.folder, scale=(), data=empty.data)


def test_a_crop_outside_of_its_raw_is_refused(run, tests_table):
    tests_table.write_text(
        tests_table.read_text()
        .replace("256.0;256.0", "9000;256.0")
        .replace("260.0;260.0", "9000;260.0")
    )
    with pytest.raises(UserError, match="crop7 lies outside of its raw"):
        run("test")


def test_what_is_remembered_is_json_with_names_sizes_and_checksums(run, tree):
    run("crop2")
    lines = [
        json.loads(line)
        for line in (run.data / ".fetch/listings.jsonl").read_text().split("\n")
        if line
    ]
    found = {
        prefix + name: (size, etag) for _, prefix, listed in lines for name, size, etag in listed
    }
    for name, content in files(run.data).items():
        assert found[name] == (len(content), hashlib.md5(content).hexdigest())

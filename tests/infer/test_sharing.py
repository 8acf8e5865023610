"""Several processes on one list of boxes: each box is one process's, and none is left out."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import DEADLINE, started, wait_until

from common import files
from common.errors import FileError, NotYet, UserError
from common.files import REPOSITORY
from common.infer import predict, process
from common.infer.machines import sharing
from common.infer.objects.volume import Item
from common.infer.processing import stages
from common.train.checkpointing import checkpoint
from common.train.setup import prepare
from tests.volumes import voxels_of

HOLD = """
import sys
from common.files import alone
with alone(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def tiny(experiment):
    """An experiment with a checkpoint of random weights."""
    made = experiment()
    config = made.config()
    setup, state = prepare(config)
    checkpoint.save_state(config, state, setup.data.split_hash, "best")
    return made


@contextlib.contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen]:
    """A process that holds the folder of a box."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    words = [sys.executable, "-c", HOLD, folder / sharing.LOCK]
    with started(words, cwd=REPOSITORY, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process


def test_predict_leaves_a_box_of_another_process_and_goes_on_with_the_others(tiny, run):
    root = tiny.config().path("predictions_path") / "tiny.zarr"
    words = ["predict", tiny.folder, "--data", tiny.data, "--crops", "crop1,crop2,crop3"]
    with held(root / "crop1") as other:
        code, _, said = run(*words)
        assert code == 75
        assert f"{root / 'crop1'}: process {other.pid} on " in said
        assert "is predicting it" in said and "2 other boxes are done" in said
        assert [path.name for path in (root / "crop1").iterdir()] == [sharing.LOCK]
        for crop in ("crop2", "crop3"):
            assert voxels_of(root / crop / "mito").shape == (24, 24, 24)
    code, out, _ = run(*words)
    assert code == 0 and out.split() == [str(root / f"crop{n}") for n in (1, 2, 3)]


def test_what_another_process_left_meanwhile_is_done_at_the_end(tmp_path):
    boxes = ["a", "b"]
    with held(tmp_path / "a") as other:

        def work(box):
            with sharing.sole_worker(tmp_path / box, "predicting"):
                if box == "b":
                    other.kill()
                    other.wait(DEADLINE)
                return box

        assert sharing.for_each_box(work, boxes) == boxes


def test_two_processes_do_not_process_one_box(tiny, forked, tmp_path):
    """The first stands still in its second block, when some voxels are written."""
    tiny.write(
        "process_config.py",
        """
        import os
        import time
        from pathlib import Path

        classes = ("mito", "er")
        batch_size = 1
        input_array_info = {"shape": (8, 24, 24), "scale": (8, 8, 8)}
        _calls = []


        def process_func(logits):
            _calls.append(1)
            if len(_calls) == 2 and "HOLD" in os.environ:
                print("held", flush=True)
                while not Path(os.environ["HOLD"]).exists():
                    time.sleep(0.01)
            return logits > -100
        """,
    )
    predict.predict(tiny.folder, data=tiny.data)
    go = tmp_path / "go"
    folder = tiny.config().path("processed_path") / "tiny.zarr/crop3"
    words = ["process", tiny.folder, "--data", tiny.data]
    first = forked(*words, environment={"HOLD": str(go)})
    wait_until(lambda: first.out.read_text() == "held\n", first)
    with pytest.raises(NotYet, match=f"process {first.pid} on .* is processing it"):
        process.process(tiny.folder, data=tiny.data)
    go.touch()
    code, _, said = first.ended()
    assert code == 0, said
    shared = {name: voxels_of(folder / name) for name in ("mito", "er")}
    process.process(tiny.folder, data=tiny.data, overwrite=True)
    for name, values in shared.items():
        np.testing.assert_array_equal(values, voxels_of(folder / name))
        assert values.any()


def test_a_worker_writes_nothing_for_a_caller_whose_box_another_has(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "SHOWN_WITHIN_S", 0)
    monkeypatch.setattr(sharing, "_left", set())
    mine = files.mark()
    (tmp_path / sharing.LOCK).write_text(mine)
    sharing.refuse_left(tmp_path, mine)
    # one of the same number and host, on another machine
    others = " ".join([*mine.split()[:2], "0123456789ab"])
    (tmp_path / sharing.LOCK).write_text(others)
    with pytest.raises(FileError, match="nothing was written"):
        sharing.refuse_left(tmp_path, mine)
    run = stages.run_items(dict, pickled_work(), tmp_path, mine, [Item(0, (None,))])
    with pytest.raises(FileError, match="nothing was written"):
        list(run)


def pickled_work() -> bytes:
    return pickle.dumps((GivesOne(), pytest.fail))


class GivesOne:
    def results(self, items):
        return ((item, 1) for item in items)


def test_a_lock_that_a_network_disk_shows_late_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda s: (tmp_path / sharing.LOCK).write_text(files.mark()))
    sharing.refuse_left(tmp_path, files.mark())


def test_predict_writes_no_voxel_into_a_box_that_another_machine_has_taken(tiny, monkeypatch):
    def taken(lock_file):
        raise UserError("taken")

    monkeypatch.setattr(files, "refuse_taken", taken)
    with pytest.raises(UserError, match="taken"):
        predict.predict(tiny.folder, data=tiny.data)
    folder = tiny.config().path("predictions_path") / "tiny.zarr/crop3"
    assert (folder / "mito/s0/.zarray").exists()
    assert not [path for path in folder.rglob("*") if path.is_file() and path.name.isdecimal()]

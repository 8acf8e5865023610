"""Blocks on worker processes: the same voxels, whoever dies, and whoever comes second.

A voxel of raw is brighter than all others. The network does there what a file in the experiment's
folder asks for, so that faults come at one block, and not by the clock.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from conftest import CLASSES, Forked, wait_until

from common.data.volumes import layout
from common.data.volumes.metadata import UNFINISHED
from common.errors import FileError, UserError
from common.infer import predict as in_this_process
from common.infer.machines import cluster, crew, local_workers, meeting
from common.infer.machines.engine import Engine
from common.score.tune import tune
from common.shell.cli import cli
from common.train.checkpointing import checkpoint
from common.train.run import prepare
from tests.volumes import values

pytestmark = pytest.mark.slow

BRIGHT = (22, 50, 50)
"""Voxel of raw, in the middle of the last of the eight blocks of crop3."""

MODEL = """
    import os
    import signal
    import time
    from pathlib import Path

    from torch import nn

    FOLDER = Path(__file__).parent


    class Faulty(nn.Module):
        def forward(self, raw):
            if raw.max() != 1:  # what is tried while a network is loaded is below
                return raw
            if (FOLDER / "fail").exists():
                raise RuntimeError("this block is too bright")
            if (FOLDER / "kill").exists():
                (FOLDER / "kill").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if (FOLDER / "hold").exists():
                (FOLDER / "held").touch()
                while (FOLDER / "hold").exists():
                    time.sleep(0.02)
            return raw


    def build_model(classes):
        return nn.Sequential(
            Faulty(),
            nn.Conv3d(1, 8, 3),
            nn.ReLU(),
            nn.Conv3d(8, 8, 3),
            nn.ReLU(),
            nn.Conv3d(8, len(classes), 1),
        )
    """


@pytest.fixture(autouse=True)
def forked_workers(processes):
    """Workers of this process are forked with torch imported; those of others import it."""
    pytest.importorskip("distributed")  # has defaults, which are to stand when this is undone
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        yield


@pytest.fixture
def tiny(experiment):
    """An experiment with a checkpoint of random weights."""
    made = experiment()
    made.write("model.py", MODEL)
    raw = zarr.open(str(made.data / layout.store("tiny") / layout.RAW / "s0"), mode="r+")
    raw[...] = np.minimum(raw[...], 250)
    raw[BRIGHT] = 255
    config = made.config()
    setup, state = prepare(config)
    checkpoint.save_state(config, state, setup.data.split_hash, "best")
    return made


def command(name: str, tiny, *more: object) -> list[str]:
    return [str(word) for word in (name, tiny.folder, "--data", tiny.data, *more)]


def predict(tiny, *more: object) -> list[str]:
    return command("predict", tiny, "--block", "8", *more)


def call(words: list[str]) -> tuple[int, str, str]:
    """Exit code, standard output and error, in this process."""
    done = CliRunner().invoke(cli, words)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def works(words: list[str]) -> Path:
    """The folder of the one box that a command gives."""
    code, out, err = call(words)
    assert code == 0, err
    return Path(out.strip())


@contextlib.contextmanager
def held(tiny, forked, words: list[str]) -> Iterator[Forked]:
    """A command in another process that stands still at the bright block."""
    (tiny.folder / "hold").touch()
    process = forked(*words)
    try:
        wait_until((tiny.folder / "held").exists, process)
        yield process
    finally:
        (tiny.folder / "hold").unlink(missing_ok=True)


def expected(tiny) -> np.ndarray:
    """What this process gives, out of the way."""
    (folder,) = in_this_process.predict(tiny.folder, data=tiny.data, block=8)
    result = values(folder)
    assert result.any()
    shutil.rmtree(folder)
    return result


def test_a_worker_that_is_killed_is_replaced_and_the_rest_is_what_one_process_gives(tiny):
    wanted = expected(tiny)
    (tiny.folder / "kill").touch()
    code, out, said = call(predict(tiny, "--workers", "2"))
    assert code == 0, said
    assert said.count(" died (killed, or out of memory); another takes its place") == 1
    folder = Path(out.strip())
    assert not (tiny.folder / "kill").exists()
    np.testing.assert_array_equal(values(folder), wanted)
    root = tiny.config().path("predictions_path")
    hidden = [path.name for path in root.rglob(".*") if path.name[:3] not in (".za", ".zg")]
    assert not hidden


@pytest.mark.parametrize(
    ("started", "has_joined", "replaced"),
    [
        (None, False, ""),
        (None, True, ""),
        ("ours", False, "another takes its place, and "),
        ("ours", True, "the command that it joined by starts another, unless it is gone, too; "),
    ],
)
def test_only_workers_that_this_call_started_are_said_to_be_replaced(
    capsys, started, has_joined, replaced
):
    blocks = crew._Round(
        SimpleNamespace(cluster=started),
        crew.run_batch,
        deque(),
        done=print,
        tell=print,
        tally=crew.Tally(1, 0),
        payload=crew.numbers_alone,
    )
    blocks._note_lost("tcp://host:1", has_joined)
    assert capsys.readouterr().err == (
        "note: the worker at tcp://host:1 died (killed, or out of memory); "
        f"{replaced}its blocks are tried again\n"
    )


def test_a_block_that_fails_is_told_with_its_box_and_the_others_are_done(tiny):
    wanted = expected(tiny)
    (tiny.folder / "fail").touch()
    code, _, said = call(predict(tiny, "--workers", "1"))
    assert code == 2
    assert "1 block of 8 failed, each 3 times" in said
    box = "block 7, voxels 16:24,16:24,16:24, 140:204,364:428,364:428 nm: RuntimeError: this block"
    assert box in said
    folder = tiny.config().path("predictions_path") / "tiny.zarr/crop3"
    _, out, _ = call(["status", str(folder.parent)])
    assert "0 classes done; 3 classes begun" in out and "7 of 8 blocks, 1 failed" in out
    assert box in out
    (tiny.folder / "fail").unlink()
    assert works(predict(tiny, "--workers", "1")) == folder
    np.testing.assert_array_equal(values(folder), wanted)
    for place in (folder / "mito", folder, tiny.folder / "predictions", tiny.folder):
        assert f"{folder}: 3 classes done" in call(["status", str(place)])[1]


def when_it_joins(monkeypatch, act: Callable[[str], None]) -> None:
    """Call act(what it says) when a command of this process is about to join another one."""
    say = meeting.say

    def said(text: str) -> None:
        say(text)
        if "join it" in text:
            act(text)

    monkeypatch.setattr(meeting, "say", said)


def test_the_same_command_joins_and_another_is_refused(tiny, forked, monkeypatch):
    wanted = expected(tiny)
    with held(tiny, forked, predict(tiny, "--workers", "1")) as first:
        code, _, said = call(predict(tiny))
        assert code == 75 and f"process {first.pid} on " in said
        joined = []

        def let_go(text: str) -> None:
            joined.append(text)
            (tiny.folder / "hold").unlink()

        when_it_joins(monkeypatch, let_go)
        folder = works(predict(tiny, "--workers", "1"))
        code, out, err = first.ended()
    assert f"process {first.pid} on " in joined[0]
    assert code == 0, err
    assert Path(out.strip()) == folder
    np.testing.assert_array_equal(values(folder), wanted)


def test_a_caller_that_is_killed_is_gone_on_with_by_the_one_that_joined(tiny, forked, monkeypatch):
    wanted = expected(tiny)
    with held(tiny, forked, predict(tiny, "--workers", "1")) as first:

        def kill(_: str) -> None:
            first.send_signal(signal.SIGKILL)
            first.ended()
            (tiny.folder / "hold").unlink()

        when_it_joins(monkeypatch, kill)
        folder = works(predict(tiny, "--workers", "1"))
    np.testing.assert_array_equal(values(folder), wanted)


SCHEDULER = """
import asyncio, sys

from distributed import Scheduler, Worker

async def serve(file, folder):
    here = {"host": "127.0.0.1", "port": 0, "dashboard": False}
    async with Scheduler(scheduler_file=file, **here) as scheduler:
        async with Worker(scheduler.address, nthreads=2, local_directory=folder, dashboard=False):
            await scheduler.finished()

asyncio.run(serve(*sys.argv[1:]))
"""
"""What `dask scheduler` and `dask worker` start, in one process."""


def test_the_workers_of_a_scheduler_that_runs_do_all_block_work(tiny, tmp_path, forked):
    wanted = expected(tiny)
    file = tmp_path / "scheduler.json"
    process = forked(file, tmp_path, program=SCHEDULER)
    wait_until(file.exists, process)
    folder = works(predict(tiny, "--scheduler", file))
    np.testing.assert_array_equal(values(folder), wanted)
    works(command("process", tiny, "--scheduler", file))
    thresholds = tuned(tiny, "--scheduler", file)
    code, table, said = call(command("evaluate", tiny, "--scheduler", file))
    assert code == 0, said
    assert table == call(command("evaluate", tiny))[1]
    tune(tiny.folder, data=tiny.data, say=lambda _: None)
    assert thresholds == chosen(tiny)


def tuned(tiny, *more: object) -> str:
    """What tune chooses on workers."""
    code, _, said = call(command("tune", tiny, *more))
    assert code == 0, said
    content = chosen(tiny)
    (tiny.folder / "thresholds.json").unlink()
    return content


def chosen(tiny) -> str:
    """The thresholds of an experiment, without the time when they were chosen."""
    text = (tiny.folder / "thresholds.json").read_text()
    return re.sub(r"\d{4}-\d{2}-\d{2}T[0-9:+]+", "", text)


def test_another_plan_than_a_prediction_was_begun_with_is_refused_or_begun_anew(tiny):
    (folder,) = in_this_process.predict(tiny.folder, data=tiny.data, block=8)
    wanted = values(folder)
    with pytest.raises(UserError, match="dtype was uint8 and is float16"):
        in_this_process.predict(
            tiny.folder, data=tiny.data, dtype="float16", engine=Engine(workers=1)
        )
    for name in CLASSES:
        group = zarr.open_group(str(folder / name), mode="r+")
        group["s0"][...] = 7
        attributes = group.attrs.asdict()
        del attributes["multiscales"]
        group.attrs.put(attributes | {UNFINISHED: True})
        # all blocks of 8 voxels; of 12 there are fewer
        (folder / name / ".blocks").write_text("".join(f"{number}\n" for number in range(27)))
    assert works(command("predict", tiny, "--block", "12", "--workers", "1")) == folder
    np.testing.assert_array_equal(values(folder), wanted)


@pytest.mark.parametrize("content", ["", "{}", "[1]", "tcp://host:8786"])
def test_a_file_of_no_scheduler_is_one_sentence(tmp_path, content):
    (tmp_path / "scheduler.json").write_text(content)
    engine = Engine(scheduler=str(tmp_path / "scheduler.json"))
    with (
        pytest.raises(UserError, match=r"scheduler.json: no file of a Dask scheduler; write"),
        cluster.opened(engine, tmp_path, "call"),
    ):
        pass


def test_a_scheduler_that_is_dead_is_told_by_its_file_and_its_address(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE_S", 0.2)
    file = tmp_path / "scheduler.json"
    file.write_text('{"address": "tcp://127.0.0.1:9"}')
    with (
        pytest.raises(UserError, match=rf"--scheduler {file} \(tcp://127.0.0.1:9\): no Dask"),
        cluster.opened(Engine(scheduler=str(file)), tmp_path, "call"),
    ):
        pass


def test_workers_that_do_not_start_are_a_sentence(monkeypatch):
    monkeypatch.setattr(local_workers, "PATIENCE_S", 1e-9)
    with (
        warnings.catch_warnings(action="ignore"),
        dask.config.set(cluster.DASK),
        pytest.raises(FileError, match="the 1 worker did not start"),
        local_workers.local_cluster(1),
    ):
        pass

"""A tiny data root and experiments on it, so that a whole training run takes a second."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common import provenance, stopping
from common.data.splits import split
from common.data.volumes import layout
from common.data.volumes.ngff import write_multiscale
from common.files import REPOSITORY, use_cache

CLASSES = ("mito", "er", "nuc")
CROPS = {
    "crop1": ("train", (2, 2, 2), CLASSES),
    "crop2": ("train", (30, 30, 2), ("mito",)),
    "crop3": ("validate", (2, 30, 30), CLASSES),
}
"""For each crop: usage, first voxel in the raw, annotated classes."""

RAW_SHAPE, CROP_SHAPE, VOXEL_SIZE = (56, 56, 56), (24, 24, 24), (8.0, 8.0, 8.0)

FILES = {
    "__init__.py": "",
    "data.py": f"""
        classes = {CLASSES!r}
        input_array_info = {{"shape": (20, 20, 20), "scale": (8, 8, 8)}}
        target_array_info = {{"shape": (16, 16, 16), "scale": (8, 8, 8)}}
        """,
    "model.py": """
        from torch import nn


        def build_model(classes):
            return nn.Sequential(
                nn.Conv3d(1, 8, 3),
                nn.ReLU(),
                nn.Conv3d(8, 8, 3),
                nn.ReLU(),
                nn.Conv3d(8, len(classes), 1),
            )
        """,
    "train_config.py": """
        from .data import classes, input_array_info, target_array_info
        from .model import build_model

        """,
    "process_config.py": """
        from .data import classes, input_array_info


        def process_func(logits):
            return (logits > 0) * 1
        """,
}
SETTINGS = {
    "epochs": 2,
    "iterations_per_epoch": 3,
    "batch_size": 2,
    "learning_rate": 0.01,
    "device": "cpu",
    "precision": "fp32",
    "num_workers": 0,
    "figure_samples": 1,
}


class Folders:
    """Lets pytest take every folder for a plain one.

    The repository has an __init__.py. As a package it would be imported from the folder above, and
    what lies beside the checkout could be taken for a module of ours.
    """

    @staticmethod
    def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector:
        return pytest.Dir.from_parent(parent, path=path)


MEMORY = Path("/dev/shm")
"""A disk in memory, where Linux has one."""

# the tests write some 250,000 small files in 200,000 folders: making and removing 8,000 of these
# takes 0.74 s of processor time on ext4, 0.17 s in memory, and waits for no disk
MEMORY_BYTES = 4e9
"""What must be free there for tests to write there: a container may have 64 MB."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Folders())
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES:
        # of pytest: where the folders of tmp_path are, unless --basetemp says it
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests share their machine, and sums in one thread are the same on every run."""
    torch.set_num_threads(1)
    # of the processes that tests start, too: more threads than cores wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def signals_of_a_terminal() -> None:
    """A shell that starts the tests by nohup or in the background has signals ignored."""
    for number in stopping.SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)


@pytest.fixture(autouse=True)
def clean_environment(tmp_path, monkeypatch) -> None:
    """Nothing that the caller's shell sets reaches a test; no test writes into the real cache."""
    for name in ("CELLMAP_DATA", "SEED"):
        monkeypatch.delenv(name, raising=False)
    # runs keep what the checkout has uncommitted: what they write would depend on who tests
    monkeypatch.setattr(provenance, "uncommitted", lambda repository: b"")
    monkeypatch.setenv("CELLMAP_CACHE", str(tmp_path / "cache"))
    use_cache(None)


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process; gives (exit code, standard output, standard error)."""
    from common.shell import cli

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["csc", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


def world(shape: Sequence[int] = RAW_SHAPE) -> dict[str, np.ndarray]:
    """What is where in the tiny cell, bool (z, y, x) for each class.

    Round mitochondria, sheets of er, layers of nucleus across them; mito overlaps neither er nor
    nuc. Periodic with 24 voxels, so that every crop of 24^3 holds some of each.
    """
    z, y, x = (grid % 24 for grid in np.indices(shape))
    mito = (z - 12) ** 2 + (y - 10) ** 2 + (x - 12) ** 2 < 36
    return {"mito": mito, "er": (x < 4) & ~mito, "nuc": (y >= 18) & ~mito}


def write_data(root: Path, crops: dict = CROPS, dataset: str = "tiny") -> Path:
    """Write the tiny cell in the challenge's layout under a data root; returns the store.

    Raw is 56^3 uint8 at 8 nm, brighter for each class; a crop is 24^3 on the raw's voxels.
    """
    store = root / layout.store(dataset)
    labels = world()
    noise = np.random.default_rng(0).normal(0, 8, RAW_SHAPE)
    raw = 60 + 120 * labels["mito"] + 40 * labels["er"] + 70 * labels["nuc"] + noise
    write_multiscale(store / layout.RAW, raw.clip(1, 255).astype(np.uint8), VOXEL_SIZE)
    for name, (_, start, annotated) in crops.items():
        inside = tuple(slice(a, a + n) for a, n in zip(start, CROP_SHAPE, strict=True))
        for label in annotated:
            path = store / layout.LABELS / name / label
            write_multiscale(
                path,
                labels[label][inside].astype(np.uint8),
                VOXEL_SIZE,
                np.multiply(start, VOXEL_SIZE),
            )
    return store


def datasplit_text(crops: dict = CROPS, dataset: str = "tiny") -> str:
    """The datasplit.csv of these crops, paths relative to the data root."""
    rows = [
        split.row_text(usage, dataset, name, annotated)
        for name, (usage, _, annotated) in crops.items()
    ]
    return "".join(f"{row}\n" for row in rows)


@dataclass(frozen=True)
class Experiment:
    """A tiny experiment on disk and its data root."""

    folder: Path
    data: Path

    @property
    def store(self) -> Path:
        return self.data / layout.store("tiny")

    @property
    def raw(self) -> Path:
        """Multiscale group of the raw; its one array is raw / "s0"."""
        return self.store / layout.RAW

    def crop(self, name: str = "crop1") -> Path:
        """Folder of the class groups of a crop."""
        return self.store / layout.LABELS / name

    def write(self, name: str, text: str) -> None:
        """Replace a file of the folder; the indentation of `text` is taken off."""
        (self.folder / name).write_text(textwrap.dedent(text))

    def add(self, text: str) -> None:
        """Add lines to train_config.py."""
        with (self.folder / "train_config.py").open("a") as file:
            file.write("\n" + textwrap.dedent(text))

    def config(self, *overrides: str, **settings: Any):
        """Its checked settings, as `common.config.load.load_config` gives them."""
        from common.config.load import load_config

        return load_config(self.folder, overrides, self.data, **settings)

    def train(self, *overrides: str, **settings: Any):
        """Train it, with settings over those of its file; the Result of the trainer."""
        from common.train.run import train

        return train(self.folder, overrides, self.data, **settings)


DEADLINE = 300
"""Seconds in which what a test waits for comes on the busiest machine, or never."""


def imported_with(*modules: str) -> set[str]:
    """The packages that a fresh process holds after an import."""
    program = f"import sys, {', '.join(modules)}; print(*{{n.split('.')[0] for n in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    return set(done.stdout.split())


def wait_until(is_there: Callable[[], bool], process: Any = None) -> None:
    """Wait for what another process is about to do, which is `process` and has not ended before."""
    end = time.monotonic() + DEADLINE
    while not is_there():
        assert time.monotonic() < end, "it never came"
        ended = process is not None and not process.is_running
        assert not ended or is_there(), process.said()
        time.sleep(0.02)


@contextlib.contextmanager
def started(words: Sequence[Any], **how: Any) -> Iterator[subprocess.Popen]:
    """A process that ends with the block. A pipe of one that ends is at its end, and read no more.

    how: as for subprocess.Popen.
    """
    with subprocess.Popen([str(word) for word in words], **how) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="session")
def processes():
    """Forks processes that have imported what takes long, and have no threads that a fork loses."""
    context = multiprocessing.get_context("forkserver")
    # torch loads torch._dynamo by itself, when a network is first asked for its shapes
    entry = ["common.train.run", "common.shell.cli", "torch._dynamo"]
    context.set_forkserver_preload([*entry, "common.infer.predict", "distributed", "pytest"])
    # before anyone sets another list: Dask does
    multiprocessing.forkserver.ensure_running()
    return context


COMMAND_LINE = "from cellmap_segmentation_challenge.__main__ import main\nmain()\n"


def _run_program(
    text: str, words: list[str], out: Path, err: Path, environment: dict[str, str]
) -> None:
    """Run a program as a process that is started in this environment does."""
    for descriptor, path in ((1, out), (2, err)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = ["csc", *words]
    exec(compile(text, "program", "exec"), {"__name__": "__main__"})


@dataclass(frozen=True)
class Forked:
    """A program in a process of its own."""

    process: Any
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.is_alive()

    def said(self) -> str:
        """Standard error so far."""
        return self.err.read_text()

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def ended(self) -> tuple[int, str, str]:
        """Exit code (negative: of a signal), standard output, standard error."""
        self.process.join(DEADLINE)
        assert not self.is_running, self.said()
        return self.process.exitcode, self.out.read_text(), self.said()


@pytest.fixture
def forked(processes, tmp_path) -> Iterator[Callable[..., Forked]]:
    """Starts a command line in a process forked from one that has imported what takes seconds.

    code, out, err = forked("train", tiny.folder).ended()
    forked("train", tiny.folder, environment={"KILL": "1"})    # over that of this process
    forked("a", "b", program="...")                             # another program, with sys.argv
    """
    started_here: list[Forked] = []

    def start(
        *words: object, program: str = COMMAND_LINE, environment: dict[str, str] | None = None
    ) -> Forked:
        folder = tmp_path / f"forked{len(started_here)}"
        folder.mkdir()
        out, err = folder / "out", folder / "err"
        out.touch()
        err.touch()
        texts = [str(word) for word in words]
        called = (program, texts, out, err, {**os.environ, **(environment or {})})
        # no daemon: it may start processes itself
        process = processes.Process(target=_run_program, args=called)
        process.start()
        started_here.append(Forked(process, out, err))
        return started_here[-1]

    yield start
    for one in started_here:
        one.process.kill()
        one.process.join(DEADLINE)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory) -> Path:
    """A data root written once; tests get copies."""
    root = tmp_path_factory.mktemp("data")
    write_data(root)
    return root


@pytest.fixture
def data_root(tmp_path, tiny_store) -> Path:
    """A data root for each test, which may damage it: dataset 'tiny', crops as in CROPS."""
    shutil.copytree(tiny_store, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def experiment(tmp_path, data_root) -> Callable[..., Experiment]:
    """Makes tiny experiments: `experiment()`, or with anything of it changed.

        tiny = experiment(epochs=4, batch_size=1)              # settings, over those in SETTINGS
        tiny = experiment(text='scheduler = torch.optim...')   # lines at the end of train_config.py
        tiny = experiment("other", files={"model.py": "..."})  # another folder; files over FILES
        tiny = experiment(classes=("mito", "er"))              # in data.py
        tiny.train(); tiny.train("epochs=6", random_seed=7); tiny.config().batch_size
        tiny.folder; tiny.data; tiny.raw / "s0"; tiny.crop("crop2") / "mito"
        tiny.write("model.py", "..."); tiny.add("epochs = 9")

    The network takes 20^3 voxels to 16^3, 8 nm, classes mito, er and nuc; two crops train (one of
    them annotates only mito), one validates; two epochs of three iterations on the CPU in fp32
    without workers, in about a second. What the classes are: `conftest.world()`. All experiments
    of a test share `data_root` and the cache in tmp_path. A setting whose value is not written as
    its repr (a class, a function) goes into `text`.
    """

    def make(
        name: str = "tiny_experiment",
        *,
        text: str = "",
        files: dict[str, str] | None = None,
        classes: Sequence[str] = CLASSES,
        **settings: Any,
    ) -> Experiment:
        made = Experiment(tmp_path / name, data_root)
        made.folder.mkdir()
        for file, content in {**FILES, **(files or {})}.items():
            made.write(file, content.replace(repr(CLASSES), repr(tuple(classes))))
        made.write("datasplit.csv", datasplit_text())
        made.add("\n".join(f"{key} = {value!r}" for key, value in {**SETTINGS, **settings}.items()))
        made.add(text)
        return made

    return make

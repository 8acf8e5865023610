"""A run that is stopped or killed anywhere, and goes on, ends as one that was not disturbed."""

from __future__ import annotations

import errno
import math
import os
import random
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from common import runtime
from common.errors import UserError
from common.runs.find import Run
from common.score.whole_crops import of_run
from common.train import metrics, steps
from common.train import run as run_module
from common.train.checkpointing import checkpoint
from common.train.recording.record import read_history, read_record
from tests.data.every_kind import EVERY_KIND

MODEL = """
    from torch import nn


    def build_model(classes):
        return nn.Sequential(
            nn.Conv3d(1, 4, 3),
            nn.BatchNorm3d(4),
            nn.Dropout(0.3),
            nn.Conv3d(4, 4, 3),
            nn.ReLU(),
            nn.Conv3d(4, len(classes), 1),
        )
    """
"""Draws random numbers in every step, and counts in buffers."""

SCHEDULE = """
    import torch

    scheduler = torch.optim.lr_scheduler.StepLR
    scheduler_kwargs = {"step_size": 1}
    """

TIMES = ("samples_per_s", "data_wait")
"""Ends of names of what is measured by a clock."""


@pytest.fixture
def tiny(experiment, monkeypatch):
    """Two epochs of five steps; a training loss is logged at every second."""
    monkeypatch.setattr(steps, "LOG_EVERY", 2)
    return experiment(
        files={"model.py": MODEL},
        text=SCHEDULE,
        iterations_per_epoch=5,
        ema_decay=0.9,
        noise_std=0.05,
    )


def is_equal(one, other) -> bool:
    """Whether two contents of checkpoints are the same, to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=True)
        return len(one) == len(other) and all(is_equal(*pair) for pair in pairs)
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return one == other


def state_of(tiny, run: str, which: str = "latest") -> dict:
    """A checkpoint, without what names the run, its code and its versions."""
    path = tiny.config(run_name=run).path("model_save_path") / f"{which}.pt"
    saved = torch.load(path, weights_only=True)
    for name in ("settings", "provenance"):
        del saved[name]
    return saved


def without_times(table: pd.DataFrame) -> pd.DataFrame:
    return table[[name for name in table if not name.endswith(TIMES)]]


def events_of(tiny, run: str) -> pd.DataFrame:
    """Scalars as a reader sees them: what was logged again is there once."""
    from common.runs import events

    folder = tiny.config(run_name=run).path("logs_save_path")
    found = Run(tiny.folder, folder, folder, tuple(sorted(folder.glob("events*"))))
    log = events.scalars(found)[["tag", "step", "value"]]
    log = log[~log["tag"].str.endswith(TIMES)]
    return log.sort_values(["tag", "step"], ignore_index=True)


def assert_equal_ends(tiny, run: str, undisturbed: str = "undisturbed") -> None:
    for which in ("latest", "best"):
        one = state_of(tiny, run, which)
        other = state_of(tiny, undisturbed, which)
        differing = [name for name in other if not is_equal(one[name], other[name])]
        assert not differing, which
    folders = [tiny.config(run_name=name).path("logs_save_path") for name in (run, undisturbed)]
    one, other = (without_times(read_history(folder)) for folder in folders)
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    pd.testing.assert_frame_equal(
        events_of(tiny, run), events_of(tiny, undisturbed), check_exact=True
    )
    one, other = (read_record(folder).result for folder in folders)
    for name in ("epoch", "iteration", "best", "best_epoch", "finished", "validation_blocks"):
        assert getattr(one, name) == getattr(other, name), name


def stop_when(patch, is_time) -> None:
    """Let runs be told to stop once is_time() is true."""
    run_epochs = run_module.run_epochs

    def stopped_in_time(*arguments, stopped, **options):
        return run_epochs(*arguments, stopped=is_time, **options)

    patch.setattr(run_module, "run_epochs", stopped_in_time)


def counted_steps(monkeypatch) -> list[int]:
    """A list that gets an entry for each step from now on."""
    taken = []
    take_step = steps.step

    def step(*arguments, **options):
        taken.append(1)
        return take_step(*arguments, **options)

    monkeypatch.setattr(steps, "step", step)
    return taken


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_with_dropout_that_is_stopped_in_an_epoch_goes_on_as_if_it_was_not(
    tiny, monkeypatch, num_workers
):
    """After steps 3, 4 and 8, of which the first two lie between two logged losses."""
    tiny.train(run_name="undisturbed")
    taken = counted_steps(monkeypatch)
    for last in (3, 4, 8):
        with monkeypatch.context() as patch:
            stop_when(patch, lambda last=last: len(taken) >= last)
            assert not tiny.train(run_name="stopped", num_workers=num_workers).finished
        assert state_of(tiny, "stopped")["iteration"] == last
    assert tiny.train(run_name="stopped", num_workers=num_workers).finished
    assert len(taken) == 10
    assert_equal_ends(tiny, "stopped")


EVERYTHING = """
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.optim import AdamW as optimizer
    from torch.optim.lr_scheduler import CosineAnnealingLR as scheduler


    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, logits, target):
            self.calls += self.training
            loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            return loss / self.calls.clamp(min=1).sqrt()


    criterion = Counting


    def augment(raw, generator):
        return raw * torch.rand((), generator=generator)
    """
"""A loss with a buffer, a schedule, and an augmentation of one's own."""

COARSER_TOO = """
    from torch import nn


    class Coarser(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.first = nn.Sequential(
                nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Dropout(0.3), nn.Conv3d(4, 4, 3)
            )
            self.fine = nn.Conv3d(4, classes, 1)
            self.coarse = nn.Conv3d(4, classes, 2, 2)

        def forward(self, raw):
            features = self.first(raw).relu()
            return [self.fine(features), self.coarse(features)]


    def build_model(classes):
        return Coarser(len(classes))
    """
"""Gives a second output on half as many voxels along an axis."""


LOW_THRESHOLDS = """
    from .data import classes

    thresholds = dict.fromkeys(classes, 0.15)


    def process_func(logits):
        return (logits > 0) * 1
    """
"""So that there is something to score after few steps."""


def test_a_run_with_all_of_the_recipe_at_once_that_is_stopped_goes_on_as_if_it_was_not(
    experiment, monkeypatch
):
    """In the second epoch, within the warm-up, with another number of workers."""
    monkeypatch.setattr(steps, "LOG_EVERY", 2)
    tiny = experiment(
        files={"model.py": COARSER_TOO, "process_config.py": LOW_THRESHOLDS},
        text=EVERYTHING,
        spatial_transforms={"rotate": {"axes": {"z": [-180, 180]}}},
        gamma_range=(0.8, 1.2),
        contrast_range=(0.8, 1.2),
        noise_std=0.05,
        augmentations=EVERY_KIND,
        raw_normalization="zscore",
        raw_sections=1,
        init_logit_rms=1.0,
        scheduler_step="iteration",
        warmup_iterations=5,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        ema_decay=0.9,
        validation_score_every=1,
        best_metric="challenge",
        metric_smoothing=0.5,
    )
    tiny.train(run_name="undisturbed", score=of_run)
    taken = counted_steps(monkeypatch)
    with monkeypatch.context() as patch:
        stop_when(patch, lambda: len(taken) == 4)
        assert not tiny.train(run_name="stopped", score=of_run).finished
    assert tiny.train(run_name="stopped", num_workers=1, score=of_run).finished
    assert len(taken) == 6
    assert_equal_ends(tiny, "stopped")
    saved = state_of(tiny, "stopped")
    # of both outputs of two batches a step; trials and validations do not count
    assert saved["criterion"]["calls"] == 6 * 2 * 2
    assert saved["ema"]["n_averaged"] == saved["scheduler"]["last_epoch"] == 6


def test_a_run_that_is_stopped_in_its_validation_goes_on_as_if_it_was_not(tiny, monkeypatch):
    """Its loss draws random numbers, also of what was validated before the stop."""
    tiny.add(
        """
        from common.train.losses import weighted_bce


        def criterion(logits, target, pos_weight):
            torch.rand(3)
            return weighted_bce(logits, target, pos_weight)
        """
    )
    tiny.train(run_name="undisturbed", batch_size=1)
    validated = []
    count = metrics.count

    def counting(*arguments):
        validated.append(1)
        return count(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "count", counting)
        # three of training, the fourth is the first block of the validation
        stop_when(patch, lambda: len(validated) == 4)
        assert not tiny.train(run_name="stopped", batch_size=1).finished
    saved = state_of(tiny, "stopped")
    assert (saved["epoch"], saved["iteration"]) == (0, 5)
    assert tiny.train(run_name="stopped", batch_size=1).finished
    assert_equal_ends(tiny, "stopped")


def test_all_global_generators_are_restored():
    def draw():
        return [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.gauss(0, 1)]  # noqa: NPY002

    random.gauss(0, 1)  # every second number is kept back
    before = runtime.random_state()
    first = draw()
    assert draw() != first
    runtime.restore_random_state(before)
    assert draw() == first


def test_a_random_state_of_torch_alone_is_restored():
    """As earlier versions saved it."""
    before = {"rng": torch.get_rng_state(), "cuda_rng": None}
    first = torch.rand(3)
    runtime.restore_random_state(before)
    assert torch.equal(torch.rand(3), first)


# Killed, and disks that are full: each write in turn


@pytest.fixture
def short(tiny):
    """Two epochs of two steps, each of which is saved."""
    tiny.add("iterations_per_epoch = 2\nfigure_samples = 0\ncheckpoint_minutes = 1e-9\n")
    return tiny


def in_nth_write(number: int, act) -> list[Path]:
    """Call `act(path)` before the nth time that a file is put into its place.

    Returns the files; to be undone by whoever replaced Path.replace.
    """
    replace = Path.replace
    written: list[Path] = []

    def counted(self, target):
        written.append(target)
        if len(written) == number:
            act(target)
        return replace(self, target)

    Path.replace = counted
    return written


def dies(_) -> None:
    """As kill -9 does it: nothing is tidied."""
    os._exit(9)


def train_until_killed(words: dict, number: int) -> None:
    """Train in a process that dies before its nth write."""
    torch.set_num_threads(1)
    steps.LOG_EVERY = 2
    in_nth_write(number, dies)
    run_module.train(**words)


def test_what_killed_processes_left_of_a_file_of_a_run_is_swept(short):
    """A process of this number is none but this one, which writes none of them when it begins."""
    folders = {
        "logs_save_path": ("run.json", "history.csv", "skipped.json", "uncommitted.patch"),
        "model_save_path": ("latest.pt", "best.pt"),
    }
    for setting, names in folders.items():
        folder = short.config().path(setting)
        folder.mkdir(parents=True)
        for name in names:
            (folder / f".{name}.{os.getpid()}").write_text("half of it")
    short.train()
    for setting in folders:
        assert not [*short.config().path(setting).glob(".*")]


@pytest.mark.slow
def test_a_run_that_is_killed_before_a_write_goes_on_as_if_it_was_not(
    short, monkeypatch, processes
):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", Path.replace)
        written = in_nth_write(0, dies)
        short.train(run_name="undisturbed")
    names = [path.name for path in written]
    assert {"latest.1.pt", "latest.pt", "best.pt", "history.csv", "run.json"} <= {*names}
    # of each file the first and the last: between them the same writes come again
    firsts = {names.index(name) + 1 for name in names}
    lasts = {len(names) - names[::-1].index(name) for name in names}
    for number in sorted(firsts | lasts):
        run = f"killed{number}"
        words = {"config_path": short.folder, "data": short.data, "run_name": run}
        words["cache_path"] = str(short.config().path("cache_path"))
        child = processes.Process(target=train_until_killed, args=(words, number), daemon=True)
        child.start()
        child.join(60)
        assert child.exitcode == 9, names[number - 1]
        assert short.train(run_name=run).finished
        assert_equal_ends(short, run)
        for kind in ("model", "logs"):
            assert not [*short.config(run_name=run).path(f"{kind}_save_path").glob(".*")]


WRITES = {"latest.1.pt": 1, "latest.pt": 3, "best.pt": 1, "history.csv": 2, "run.json": 2}


@pytest.mark.parametrize("name", WRITES)
def test_a_run_whose_disk_is_full_goes_on_as_if_it_was_not(short, monkeypatch, name):
    """Its nth write of that name finds no room."""
    short.train(run_name="undisturbed")
    written: list[str] = []
    replace = Path.replace

    def finds_no_room(self, target):
        written.append(target.name)
        if target.name == name and written.count(name) == WRITES[name]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", finds_no_room)
        with pytest.raises(UserError, match="No space left on device") as raised:
            short.train(run_name="full")
    assert name.replace(".1.pt", ".pt") in str(raised.value)
    assert short.train(run_name="full").finished
    assert_equal_ends(short, "full")


def test_events_that_find_no_room_are_told_and_the_run_goes_on_as_if_they_had(short, monkeypatch):
    short.train(run_name="undisturbed")
    flush = SummaryWriter.flush
    flushed = []

    def finds_no_room(self):
        flushed.append(1)
        if len(flushed) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(self)

    with monkeypatch.context() as patch:
        patch.setattr(SummaryWriter, "flush", finds_no_room)
        with pytest.raises(UserError, match=r"full: TensorBoard's events .*No space left"):
            short.train(run_name="full")
    assert short.train(run_name="full").finished
    assert_equal_ends(short, "full")


def test_kill_9_in_an_epoch_loses_no_more_than_since_the_last_checkpoint(tiny, forked):
    """A step kills its own process, as the system would."""
    tiny.add(
        """
        import os

        from common.train.losses import weighted_bce

        checkpoint_minutes = 1e-9


        def criterion(logits, target, pos_weight):
            if "KILL" in os.environ and os.path.exists(os.environ["KILL"]):
                os.kill(os.getpid(), 9)
            return weighted_bce(logits, target, pos_weight)
        """
    )
    tiny.train(run_name="undisturbed")
    latest = tiny.config(run_name="killed").path("model_save_path") / "latest.pt"
    words = ["train", tiny.folder, "--data", tiny.data, "--set", "run_name=killed"]
    code, _, said = forked(*words, environment={"KILL": str(latest)}).ended()
    assert code == -signal.SIGKILL, said
    assert state_of(tiny, "killed")["iteration"] == 1
    assert tiny.train(run_name="killed").finished
    # the steps of that process logged each second loss, as here they do not
    for which in ("latest", "best"):
        assert is_equal(
            state_of(tiny, "killed", which)["model"], state_of(tiny, "undisturbed", which)["model"]
        )


def test_latest_is_written_every_so_many_minutes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    saved: list[float] = []
    often = checkpoint.regularly(2, lambda: saved.append(now[0]))
    never = checkpoint.regularly(0, lambda: saved.append(math.nan))
    for seconds in (60, 119, 121, 200, 240, 242, 500):
        now[0] = float(seconds)
        often()
        never()
    assert saved == [121.0, 242.0, 500.0]

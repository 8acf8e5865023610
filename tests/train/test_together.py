"""Several processes train one run: what they come to is what one comes to."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEADLINE
from torch.distributed import TCPStore

from common.data.samples import loaders
from common.score.whole_crops import of_run
from common.shell import cli
from common.train import progress, skipped, steps
from common.train import run as run_module
from common.train.checkpointing import checkpoint
from common.train.processes import alive
from common.train.recording.record import read_history, read_record

NORMED = """
    from torch import nn


    def build_model(classes):
        return nn.Sequential(
            nn.Conv3d(1, 6, 3, bias=False),
            nn.BatchNorm3d(6),
            nn.LeakyReLU(),
            nn.Conv3d(6, 6, 3),
            nn.LeakyReLU(),
            nn.Conv3d(6, len(classes), 1),
        )
    """

DEEP = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.body = nn.Sequential(nn.Conv3d(1, 4, 5), nn.ReLU())
            self.fine = nn.Conv3d(4, classes, 1)
            self.coarse = nn.Conv3d(4, classes, 1)
            self.unused = nn.Conv3d(4, 1, 1)

        def forward(self, raw):
            features = self.body(raw)
            return [self.fine(features), self.coarse(nn.functional.avg_pool3d(features, 2))]


    def build_model(classes):
        return Net(len(classes))
    """

HEADS = """
    from common.config.derived import affinities, background, boundary, distance

    derived = {
        "near": boundary("mito", inside=8, outside=8),
        "pairs": affinities("mito", offsets=[(8, 0, 0), (0, 8, 0)]),
        "far": distance("mito", clip=24),
        "rest": background("nuc"),
    }
    softmax = ["nuc", "rest"]
    loss_weights = {"pairs": 0.5}
    """

# in one of the crops one class alone is known: pairs are not in proportion to voxels
DECIDED = """
    from functools import partial

    from common.train.losses import bce_dice, categorical_cross_entropy, weighted_sum

    criterion = partial(weighted_sum, losses=[(1.0, bce_dice), (0.5, categorical_cross_entropy)])
    """

# how a run can be: what it adds to the settings, its text, its network
KINDS: dict[str, dict[str, Any]] = {
    "normed": {
        "files": {"model.py": NORMED},
        "learning_rate": 0.01,  # its gradients are large, and so is what they are rounded by
        "gradient_accumulation_steps": 2,
        "ema_decay": 0.9,
        "figure_samples": 2,
        "figure_crops": 1,
        # one that shares the loss of the classes, three with losses of their own
        "text": HEADS,
    },
    "deep": {
        "files": {"model.py": DEEP},
        "text": DECIDED,
    },
    "each_sample": {
        "text": "from functools import partial\nfrom common.train.losses import dice_loss\n"
        "criterion = partial(dice_loss, per_sample=True)",
        "validation_batch_limit": 1,
    },
    # one value for all channels of a voxel: a mean over the voxels in which all are known
    "of_torch": {"text": "criterion = torch.nn.CrossEntropyLoss", "num_workers": 1},
}
SGD = """
    import torch


    def optimizer(groups, lr, weight_decay):
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)
    """


def as_one_of(number: int, size: int, port: int, log: Path, act: Callable, *words: Any) -> None:
    """Call act(*words) as torchrun would, in process `number` of `size`; log: what it writes."""
    with log.open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    torch.set_num_threads(1)
    steps.LOG_EVERY = 2
    torchrun = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": size}
    torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torchrun |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
    os.environ.update({name: str(value) for name, value in torchrun.items()})
    act(*words)


@dataclass(frozen=True)
class Ended:
    """How processes ended, and what they wrote."""

    exit_codes: list[int]
    said: str


def in_processes(context: Any, tiny: Any, size: int, act: Callable, *words: Any) -> Ended:
    """Call a function in so many processes at once."""
    # as torchrun does, which lives longer than its processes
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    log = tiny.folder / "said.txt"
    log.write_text("")
    children = []
    for number in range(size):
        call = (number, size, store.port, log, act, *words)
        children.append(context.Process(target=as_one_of, args=call))
    for child in children:
        child.start()
    children[0].join(300)
    for child in children:
        # one that is stopped by a signal does not end by itself
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGCONT)
        child.join(300)
    return Ended([child.exitcode for child in children], log.read_text())


def train_all(calls: list[dict[str, Any]]) -> None:
    for words in calls:
        run_module.train(**words)


def type_command(words: list[str]) -> None:
    sys.argv = ["csc", *words]
    cli.main()


def words_of(tiny: Any, **settings: Any) -> dict[str, Any]:
    """What `train` is called with in another process."""
    cache = str(tiny.config().path("cache_path"))
    return {"config_path": tiny.folder, "data": tiny.data, "cache_path": cache, **settings}


def typed(tiny: Any, *words: str, **settings: Any) -> list[str]:
    """The same as it is typed."""
    line = ["train", str(tiny.folder), "--data", str(tiny.data), *words]
    settings["cache_path"] = tiny.config().path("cache_path")
    for name, value in settings.items():
        line += ["--set", f"{name}={value}"]
    return line


def state_of(tiny: Any, run: str) -> dict[str, Any]:
    path = tiny.config(run_name=run).path("model_save_path") / "latest.pt"
    return torch.load(path, weights_only=True)


def assert_equal_ends(tiny: Any, run: str, other: str) -> None:
    """Weights and numbers within 1e-6, and of the same names."""
    one, two = state_of(tiny, run), state_of(tiny, other)
    for part in ("model", "ema"):
        if one[part] is not None:
            torch.testing.assert_close(one[part], two[part], atol=1e-6, rtol=0)
    exact = ("epoch", "iteration", "best_epoch", "judged", "shown", "validation_batches")
    for name in exact:
        assert one[name] == two[name], name
    for name in ("best", "best_loss", "epoch_counts", "validation_loss", "grad_norm"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5, err_msg=name)
    history, others = (
        read_history(tiny.config(run_name=name).path("logs_save_path")) for name in (run, other)
    )
    assert list(history) == list(others)
    for column in history:
        if column not in ("train/samples_per_s", "train/data_wait"):
            np.testing.assert_allclose(history[column], others[column], rtol=1e-4, atol=1e-6)


def experiments(experiment: Any, *kinds: str) -> list[Any]:
    tinies = []
    for kind in kinds:
        changes = {"learning_rate": 0.2, **KINDS[kind]}
        criterion = changes.pop("text", "")
        tiny = experiment(kind, batch_size=6, iterations_per_epoch=2, text=SGD, **changes)
        tiny.add(criterion)
        tinies.append(tiny)
    return tinies


def test_two_and_then_three_processes_come_to_what_one_comes_to(experiment, processes, monkeypatch):
    monkeypatch.setattr(steps, "LOG_EVERY", 2)
    tinies = experiments(experiment, *KINDS)
    for tiny in tinies:
        tiny.train(run_name="one")
    for size, epochs in ((2, 1), (3, 2)):
        calls = [words_of(tiny, run_name="several", epochs=epochs) for tiny in tinies]
        ended = in_processes(processes, tinies[0], size, train_all, calls)
        assert ended.exit_codes == [0] * size, ended.said
        how = "starting with new weights" if epochs == 1 else "continuing"
        assert ended.said.count(f"on cpu in fp32, {size} processes; {how}") == len(KINDS)
    for tiny in tinies:
        assert_equal_ends(tiny, "one", "several")
        logs = tiny.config(run_name="several").path("logs_save_path")
        assert read_record(logs).result.finished


BAD = """
    import torch

    from common.data.samples.targets import dense
    from common.train.losses import weighted_bce


    def criterion(logits, target, pos_weight):
        loss = weighted_bce(logits, target, pos_weight)
        positive = (dense(target) > 0).flatten(1).sum(1)
        is_bad = torch.is_grad_enabled() and bool((positive % 11 == 0).any())
        return loss * float("nan") if is_bad else loss
    """
"""Not finite for some samples, in whichever process they are."""


def test_bad_steps_are_skipped_by_all_and_whole_crops_scored(experiment, processes, monkeypatch):
    monkeypatch.setattr(steps, "LOG_EVERY", 2)
    tiny = experiment(
        text=BAD,
        batch_size=4,
        iterations_per_epoch=6,
        validation_score_every=1,
        best_metric="challenge",
        init_output_to_prior=False,
    )
    tiny.train(run_name="one", score=of_run)
    calls = [words_of(tiny, run_name="several", score=of_run)]
    ended = in_processes(processes, tiny, 2, train_all, calls)
    assert ended.exit_codes == [0, 0], ended.said
    assert_equal_ends(tiny, "one", "several")
    logs = {run: tiny.config(run_name=run).path("logs_save_path") for run in ("one", "several")}
    written = {run: skipped.read(folder / skipped.SKIPPED) for run, folder in logs.items()}
    assert 0 < len(written["one"].steps) < 12
    for one, several in zip(written["one"].steps, written["several"].steps, strict=True):
        assert (one.iteration, one.samples) == (several.iteration, several.samples)
    assert not [*logs["several"].glob("validation_score*")]


DROPS = """
    import os
    import signal
    import time
    from pathlib import Path

    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self, classes):
            super().__init__()
            layers = [nn.Conv3d(1, 4, 5), nn.ReLU(), nn.Dropout(0.5), nn.Conv3d(4, classes, 1)]
            self.body = nn.Sequential(*layers)
            self.calls = 0

        def forward(self, raw):
            if raw.device.type == "cpu" and self.training and torch.is_grad_enabled():
                self.calls += 1
                act(self.calls)
            return self.body(raw)


    def act(call):
        # once, in one of the processes, in its third step
        asked = Path(__file__).with_name("act.txt")
        is_here = call == 3 and asked.exists() and os.environ.get("RANK") == "1"
        if is_here:
            what = asked.read_text()
            asked.unlink()
            {"die": die, "stop": stop, "fail": fail, "freeze": freeze}[what]()


    def die():
        os.kill(os.getpid(), signal.SIGKILL)


    def freeze():
        os.kill(os.getpid(), signal.SIGSTOP)


    def fail():
        raise ZeroDivisionError("of the network")


    def stop():
        # torchrun is told, and tells; the step ends when that has come here. Not by sigwait: any
        # thread of this process may get the signal, and then it waits for ever
        handler = signal.getsignal(signal.SIGTERM)
        came = []
        signal.signal(signal.SIGTERM, lambda *about: came.append(about))
        os.kill(os.getppid(), signal.SIGTERM)
        while not came:
            time.sleep(0.01)
        signal.signal(signal.SIGTERM, handler)
        handler(*came[0])


    def build_model(classes):
        return Net(len(classes))
    """
"""Draws random numbers, and does what act.txt says."""


@pytest.fixture
def drops(experiment):
    return experiment(files={"model.py": DROPS}, epochs=2, iterations_per_epoch=4)


def assert_the_same_to_the_bit(tiny: Any, run: str, other: str) -> None:
    one, two = state_of(tiny, run), state_of(tiny, other)
    for part in ("model", "optimizer", "rng"):
        torch.testing.assert_close(one[part], two[part], atol=0, rtol=0)
    for name in ("iteration", "best", "epoch_counts"):
        assert one[name] == two[name], name
    for one_state, other_state in zip(
        one["random_states_of_others"], two["random_states_of_others"], strict=True
    ):
        assert torch.equal(one_state["rng"], other_state["rng"])


def test_a_process_that_is_killed_ends_all_and_the_run_goes_on_exactly(drops, processes):
    ended = in_processes(processes, drops, 2, train_all, [words_of(drops, run_name="undisturbed")])
    assert ended.exit_codes == [0, 0], ended.said
    drops.write("act.txt", "die")
    line = typed(drops, run_name="killed", checkpoint_minutes=1e-9)
    ended = in_processes(processes, drops, 2, type_command, line)
    assert ended.exit_codes == [2, -9], ended.said
    assert ended.said.count("error: another process of this run ended") == 1
    assert "Traceback" not in ended.said
    assert state_of(drops, "killed")["iteration"] == 2
    ended = in_processes(processes, drops, 2, type_command, line)
    assert ended.exit_codes == [0, 0], ended.said
    assert_the_same_to_the_bit(drops, "undisturbed", "killed")


def train_watched(words: dict[str, Any]) -> None:
    alive.BEAT_EVERY_S, alive.SILENT_S = 0.05, 2.0
    run_module.train(**words)


def test_a_process_that_gives_no_sign_ends_the_others_with_its_name(drops, processes):
    drops.write("act.txt", "freeze")
    ended = in_processes(processes, drops, 2, train_watched, words_of(drops))
    assert ended.exit_codes[0] == 2, ended.said
    sentence = f"error: process 1, on {platform.node()}, gave no sign for 2 s: it is off, cut from"
    assert ended.said.count(sentence) == 1


def alone(function: Callable, folder: Path) -> Callable:
    """The function, held until the other process waits for this one."""

    def held(*arguments: Any, **named: Any) -> Any:
        mark = folder / f"{function.__name__}.alone"
        mark.touch()
        until = time.monotonic() + DEADLINE
        while mark.exists() and time.monotonic() < until:
            time.sleep(0.01)
        return function(*arguments, **named)

    return held


def say_where_it_waits(folder: Path, main_thread: int) -> None:
    """In the other process: whether it waits without a limit, or in a collective call."""
    while True:
        time.sleep(0.01)
        for mark in folder.glob("*.alone"):
            frames = traceback.extract_stack(sys._current_frames()[main_thread])
            waits = any(frame.name == "_wait_for" for frame in frames)
            is_in_call = any("distributed" in frame.filename for frame in frames)
            if waits or is_in_call:
                print(mark.stem, "without a limit" if waits else "in a collective call", flush=True)
                mark.unlink()


def train_held(words: dict[str, Any]) -> None:
    folder = words["config_path"]
    if os.environ["RANK"] == "0":
        loaders.open_data = alone(loaders.open_data, folder)
        checkpoint.save = alone(checkpoint.save, folder)
        progress.log_epoch = alone(progress.log_epoch, folder)
    else:
        about = (folder, threading.get_ident())
        threading.Thread(target=say_where_it_waits, args=about, daemon=True).start()
    # each decodes as if it were on a machine of its own
    os.environ |= {"GROUP_RANK": os.environ["RANK"], "LOCAL_RANK": "0"}
    run_module.train(**words)


def test_what_one_process_does_alone_may_take_as_long_as_it_takes(drops, processes):
    words = words_of(drops, epochs=1, iterations_per_epoch=1)
    ended = in_processes(processes, drops, 2, train_held, words)
    assert ended.exit_codes == [0, 0], ended.said
    for what in ("open_data", "save", "log_epoch"):
        assert f"{what} without a limit" in ended.said
    assert "in a collective call" not in ended.said


def test_the_first_that_fails_says_why_and_the_others_end_alike(drops, processes):
    line = typed(drops, batch_size=3)
    ended = in_processes(processes, drops, 2, type_command, line)
    assert ended.exit_codes == [2, 2]
    assert ended.said == (
        "error: batch_size = 3 is the batch of all processes together, and cannot be divided among "
        "2; write batch_size = 2 or 4\n"
    )
    drops.write("act.txt", "fail")
    ended = in_processes(processes, drops, 2, type_command, typed(drops))
    assert ended.exit_codes == [1, 1]
    assert "in process 1 of 2, on " in ended.said
    assert ended.said.count("ZeroDivisionError: of the network") == 1
    assert ended.said.count("Traceback") == 1


def test_torchrun_that_is_told_to_stop_has_all_save_and_its_exit_code_says_so(
    drops, processes, forked
):
    """By the command line, torchrun and signals themselves."""
    drops.write("act.txt", "stop")
    code, _, said = forked(*typed(drops, "--processes", "2", run_name="stopped")).ended()
    assert code == 75, said
    assert "SIGTERM: stopping after this step" in said
    assert said.count("interrupted; saved after iteration 3") == 1
    assert "--processes 2" in said
    assert "Traceback" not in said
    assert "Warning" not in said
    line = typed(drops, run_name="stopped")
    second = in_processes(processes, drops, 2, type_command, line)
    assert second.exit_codes == [0, 0], second.said
    assert second.said.count("continuing") == 1
    assert second.said.count("done after epoch 2") == 1


def join_alone(monkeypatch) -> TCPStore:
    """Have this process start as the only one that torchrun started."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torchrun = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
    torchrun |= {"MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    torchrun |= {"TORCHELASTIC_RESTART_COUNT": 0}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, str(value))
    return store


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_one_process_of_torchrun_trains_on_a_gpu_what_one_alone_does(experiment, monkeypatch):
    (tiny,) = experiments(experiment, "normed")
    tiny.train(run_name="one", device="cuda", precision="fp32")
    store = join_alone(monkeypatch)
    tiny.train(run_name="several", device="cuda", precision="fp32")
    del store
    one, several = state_of(tiny, "one"), state_of(tiny, "several")
    torch.testing.assert_close(one["model"], several["model"], atol=1e-3, rtol=1e-2)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_random_numbers_of_a_gpu_go_on_where_they_stopped(drops):
    drops.train(run_name="undisturbed", device="cuda")
    drops.train(run_name="stopped", device="cuda", epochs=1)
    drops.train(run_name="stopped", device="cuda")
    undisturbed, stopped = state_of(drops, "undisturbed"), state_of(drops, "stopped")
    assert torch.equal(undisturbed["cuda_rng"][0], stopped["cuda_rng"][0])

"""evaluate and tune that are stopped go on with what they have, and with nothing that changed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from conftest import DEADLINE

from common import stopping
from common.score import judge, kept, trials, workers
from common.score.versions import DEFINITION
from common.score.workers import parallel
from common.stopping import Stopped
from tests.infer.test_process import ABOVE, configured
from tests.score.test_evaluate import scored, truth, write_processed, write_truth
from tests.score.test_tune import choose, predict_all

CLASSES = ("mito", "er", "nuc")


@pytest.fixture
def tiny(experiment):
    made = experiment()
    configured(made, ABOVE)
    for name in CLASSES:
        write_processed(made, name, np.roll(truth(made, name), 1, 0))
    return made


class Counted:
    """Takes the place of a function: counts its calls, and is stopped in one of them."""

    def __init__(self, function: Callable, stop_in: int = 0):
        self.function = function
        self.stop_in = stop_in
        self.calls = 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls == self.stop_in:
            raise stopping.error_of(signal.SIGTERM)
        return self.function(*arguments)


def counted(monkeypatch, module, name: str, stop_in: int = 0) -> Counted:
    # the function itself, also where it is counted already
    function = getattr(module, name)
    count = Counted(getattr(function, "function", function), stop_in)
    monkeypatch.setattr(module, name, count)
    return count


def results(tiny) -> dict:
    scores = scored(tiny, classes=CLASSES)
    del scores["provenance"]["date"]
    return scores


def left(tiny) -> list[Path]:
    return sorted(tiny.config().path("results_path").glob(".*.kept/*"))


def stopped(tiny, monkeypatch) -> None:
    """evaluate, told to stop in its third class."""
    counted(monkeypatch, judge, "judge", stop_in=3)
    with pytest.raises(Stopped):
        scored(tiny, classes=CLASSES)


def test_evaluate_goes_on_with_the_classes_that_are_left(tiny, monkeypatch):
    wanted = results(tiny)
    assert not left(tiny)
    stopped(tiny, monkeypatch)
    assert len(left(tiny)) == 2
    again = counted(monkeypatch, judge, "judge")
    assert results(tiny) == wanted
    assert again.calls == 1
    assert not list(tiny.config().path("results_path").glob(".*"))


def another_truth(tiny) -> None:
    write_truth(tiny, "er", 1 - truth(tiny, "er"))


def one_voxel_of_the_truth(tiny) -> None:
    values = truth(tiny, "er")
    write_truth(tiny, "er", np.where(np.indices(values.shape).sum(0) == 0, 1 - values, values))


def another_volume(tiny) -> None:
    write_processed(tiny, "er", truth(tiny, "er"))


def damaged(tiny) -> None:
    for path in left(tiny):
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "scored_again"),
    [(another_truth, 1), (one_voxel_of_the_truth, 1), (another_volume, 1), (damaged, 2)],
)
def test_what_changed_since_is_scored_again(tiny, monkeypatch, change, scored_again):
    stopped(tiny, monkeypatch)
    change(tiny)
    again = counted(monkeypatch, judge, "judge")
    scores = results(tiny)
    assert again.calls == 1 + scored_again
    assert scores == results(tiny)


def test_another_version_of_the_metric_is_scored_anew(tiny, monkeypatch):
    stopped(tiny, monkeypatch)
    again = counted(monkeypatch, judge, "judge")
    scored(tiny, classes=CLASSES, metric_version=DEFINITION.name)
    assert again.calls == 3


def test_other_code_scores_anew(tiny, monkeypatch):
    stopped(tiny, monkeypatch)
    monkeypatch.setattr(kept, "scoring_hash", lambda: "another")
    again = counted(monkeypatch, judge, "judge")
    scored(tiny, classes=CLASSES)
    assert again.calls == 3


def test_evaluate_ends_in_its_time_limit(tiny, monkeypatch, run):
    def judged(*_):
        time.sleep(DEADLINE)

    monkeypatch.setattr(judge, "judge", judged)
    code, _, err = run("evaluate", tiny.folder, "--data", tiny.data, "--time-limit", "1s")
    assert (code, "stopped by the time limit; the same command goes on" in err) == (75, True)


def test_tune_goes_on_with_the_trials_that_are_left(tiny, monkeypatch):
    predict_all(tiny)
    settings = {"crops": "crop1,crop3", "classes": ("mito", "er"), "folds": 2}
    whole = counted(monkeypatch, trials, "_run_trial")
    wanted = choose(tiny, **settings)
    counted(monkeypatch, trials, "_run_trial", stop_in=6)
    with pytest.raises(Stopped):
        choose(tiny, **settings)
    again = counted(monkeypatch, trials, "_run_trial")
    assert choose(tiny, **settings) == wanted
    assert again.calls == whole.calls - 5
    assert not list(tiny.folder.glob(".*.kept"))


def test_tune_tries_anew_where_a_prediction_or_the_code_changed(tiny, monkeypatch):
    predict_all(tiny)
    settings = {"crops": "crop1,crop3", "classes": ("er",)}
    for change in (
        lambda: predict_all(tiny, names=("er",), crops=("crop1",), seed=1),
        lambda: configured(tiny, ABOVE + "# edited"),
    ):
        counted(monkeypatch, trials, "_run_trial", stop_in=3)
        with pytest.raises(Stopped):
            choose(tiny, **settings)
        change()
        again = counted(monkeypatch, trials, "_run_trial")
        found = choose(tiny, **settings)
        first = again.calls
        assert choose(tiny, **settings) == found
        whole = again.calls - first
        assert first == (whole - 1 if "edited" not in _text(tiny) else whole)


def _text(tiny) -> str:
    return (tiny.folder / "process_config.py").read_text()


def test_tune_ends_in_its_time_limit(tiny, monkeypatch, run):
    predict_all(tiny)
    monkeypatch.setattr(trials, "_run_trial", lambda _: time.sleep(DEADLINE))
    words = ("--crops", "crop1,crop3", "--classes", "mito,er", "--time-limit", "1s")
    code, _, err = run("tune", tiny.folder, "--data", tiny.data, *words)
    assert (code, "stopped by the time limit; the same command goes on" in err) == (75, True)


# Several processes


def tells_to_stop(item: tuple[int, Path]) -> None:
    caller, folder = item
    os.kill(caller, signal.SIGTERM)
    time.sleep(DEADLINE / 2)
    (folder / "waited for").touch()


@pytest.mark.slow
def test_processes_are_not_waited_for_when_told_to_stop(tmp_path, processes, monkeypatch):
    monkeypatch.setattr(workers, "get_context", lambda _: processes)
    with stopping.at_once(), pytest.raises(Stopped):
        parallel(tells_to_stop, [(os.getpid(), tmp_path)] * 2, workers=2)
    assert not (tmp_path / "waited for").exists()


def begins_a_worker(folder: Path) -> None:
    worker = get_context("fork").Process(target=works, args=(folder,))
    worker.start()
    worker.join(2 * DEADLINE)


def works(folder: Path) -> None:
    workers._follow()
    (folder / "part").write_text(str(os.getpid()))
    (folder / "part").rename(folder / "number")
    time.sleep(2 * DEADLINE)


@pytest.mark.slow
def test_processes_end_when_their_caller_is_killed(tmp_path, processes):
    caller = processes.Process(target=begins_a_worker, args=(tmp_path,))
    caller.start()
    assert within_deadline((tmp_path / "number").exists)
    worker = int((tmp_path / "number").read_text())
    caller.kill()
    caller.join(DEADLINE)
    assert within_deadline(lambda: not _runs(worker))


def within_deadline(happens: Callable[[], bool]) -> bool:
    until = time.monotonic() + DEADLINE
    while not happens():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def _runs(process: int) -> bool:
    """Whether a process is there, and no zombie that nobody has waited for."""
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"

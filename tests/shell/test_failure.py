"""How a command ends that fails: a sentence, the user's own lines, or the whole traceback."""

from __future__ import annotations

import errno
import os
import re
import signal

import pytest
import torch
from conftest import wait_until

from common.errors import FileError, NotFinite, NotYet, UserError
from common.files import REPOSITORY
from common.shell import failure
from common.stopping import Stopped

BROKEN_LOSS = """
    def criterion(logits, target, pos_weight):
        wide = logits.repeat(1, 2, 1, 1, 1)
        return (wide - target.dense()).mean()  # of other shapes
    """
"""A bug in a user's loss, for the end of train_config.py."""

BROKEN_MODEL = {
    "model.py": """
        from torch import nn


        class Net(nn.Module):
            def __init__(self, classes):
                super().__init__()
                self.layer = nn.Conv3d(1, len(classes), 3, paddng=1)


        def build_model(classes):
            return Net(classes)
        """
}
"""A TypeError inside of the user's own __init__."""


@pytest.fixture
def ended(run, monkeypatch):
    """Runs `train` in whose place an error is raised; gives (exit code, standard error)."""

    def raise_(error: Exception, *words: str):
        import common.train.run

        def train(*_, **__):
            raise error

        monkeypatch.setattr(common.train.run, "train", train)
        code, _, said = run(*(words or ("train", "unet8_all")))
        return code, said

    return raise_


# What a user can mend


@pytest.mark.parametrize("kind", [UserError, FileError, NotFinite, *failure.MISSING])
def test_what_a_user_can_mend_is_our_sentence_and_exit_code_2(ended, kind):
    error = kind("a.csv: no such file; write it")
    assert ended(error) == (2, "error: a.csv: no such file; write it\n")


def test_a_path_that_the_system_does_not_find_is_named(ended, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "a").read_text()
    assert ended(caught.value) == (2, f"error: {tmp_path}/a: No such file or directory\n")


@pytest.mark.parametrize(
    ("folder", "another"), [("data", "--data FOLDER or CELLMAP_DATA"), ("cache", "CELLMAP_CACHE")]
)
def test_a_shared_clone_that_may_not_be_written_to_says_how_another_folder_is_named(
    folder, another
):
    place = REPOSITORY / folder / "cell"
    said = failure.sentence(PermissionError(errno.EACCES, "Permission denied", str(place)))
    assert said == f"{place}: Permission denied; name another folder: {another}=FOLDER"


def test_a_path_that_can_be_that_of_nothing_is_one_sentence(run, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (loop, tmp_path / ("x" * 300)):
        code, _, said = run("demo", path)
        assert code == 2 and said.startswith("error: ") and said.count("\n") == 1
        # Python 3.13 takes a link to itself for a file that is not there
        assert str(path) in said and "; write " in said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_nothing_says_what_to_do(ended, number):
    code, said = ended(OSError(number, os.strerror(number)))
    assert code == 2
    assert said.startswith(f"error: {os.strerror(number)}; ") and "run the same command" in said


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7 EiB for an array"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 4 bytes"),
    ],
)
def test_want_of_memory_is_a_sentence(ended, error):
    code, said = ended(error)
    assert code == 2
    assert re.fullmatch(r"error: out of memory \(.*\); train with a smaller batch_size .*\n", said)


def test_a_path_that_is_missing_in_a_users_file_is_told_with_its_line(experiment, run):
    tiny = experiment(text="def build_model(classes): open('/weights.pt')")
    code, _, said = run("train", tiny.folder, "--data", tiny.data)
    line = len((tiny.folder / "train_config.py").read_text().splitlines())
    assert code == 2
    assert said.endswith(f"/weights.pt: No such file or directory (train_config.py, line {line})\n")


def test_with_traceback_the_cause_is_shown_too(experiment, run):
    tiny = experiment(files={"model.py": "import math\nmath.sqrt(-1)\n"})
    code, _, said = run("train", tiny.folder, "--traceback")
    assert code == 2
    assert "math.sqrt(-1)" in said and "common/config/module.py" in said
    assert said.splitlines()[-1].startswith("error: ")
    code, _, said = run("train", tiny.folder)
    assert (code, said.count("\n")) == (2, 1)
    assert "line 2 of model.py: ValueError: math domain error" in said


# Bugs


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes (3,) and (4,) not aligned"),
        FloatingPointError("underflow"),
        OSError("a broken pipe of somebody else"),
        AssertionError("believed"),
        KeyError("a"),
    ],
)
def test_a_bug_of_the_program_keeps_its_traceback(ended, error):
    with pytest.raises(type(error)) as caught:
        ended(error)
    assert caught.value is error


def lines_of(said: str) -> list[str]:
    """The traceback of an experiment's own files at the end of standard error."""
    _, found, text = said.partition("Traceback in the experiment's own files")
    assert found, said
    return text.splitlines()[1:]


def test_a_bug_in_a_users_loss_is_shown_by_the_users_own_lines(experiment, run):
    tiny = experiment(text=BROKEN_LOSS)
    code, _, said = run("train", tiny.folder, "--data", tiny.data)
    assert code == 1
    place, line, *rest, hint = lines_of(said)
    assert place.startswith(f'  File "{tiny.folder}/train_config.py", line ')
    assert place.endswith(", in criterion")
    assert line.strip() == "return (wide - target.dense()).mean()  # of other shapes"
    assert any(text.startswith("RuntimeError: ") for text in rest)
    assert "--traceback" in hint and "common/" not in said


@pytest.mark.parametrize("before", [True, False])
def test_with_traceback_before_or_after_the_command_all_is_shown(experiment, run, before):
    tiny = experiment(text=BROKEN_LOSS)
    words = ["train", tiny.folder, "--data", tiny.data]
    words.insert(0 if before else len(words), "--traceback")
    with pytest.raises(RuntimeError, match="tensor"):
        run(*words)


def test_a_bug_in_a_users_model_is_no_matter_of_model_kwargs(experiment, run):
    tiny = experiment(files=BROKEN_MODEL)
    code, _, said = run("train", tiny.folder, "--data", tiny.data)
    assert code == 1 and "model_kwargs" not in said
    text = "\n".join(lines_of(said))
    assert "nn.Conv3d(1, len(classes), 3, paddng=1)" in text
    assert "TypeError: " in text and "paddng" in text


def test_a_users_process_func_is_shown_by_its_lines(experiment, run):
    tiny = experiment(epochs=1)
    tiny.train()
    assert run("predict", tiny.folder, "--data", tiny.data)[0] == 0
    tiny.write(
        "process_config.py",
        """
        from .data import classes


        def process_func(logits):
            return logits.undo()
        """,
    )
    code, _, said = run("process", tiny.folder, "--data", tiny.data)
    assert code == 1 and "return logits.undo()" in "\n".join(lines_of(said))


# Ctrl-C


def test_an_interrupt_ends_without_a_traceback(ended):
    assert ended(KeyboardInterrupt()) == (130, "")
    assert ended(Stopped("stopped by SIGTERM")) == (75, "stopped by SIGTERM\n")


def test_what_other_processes_work_on_is_no_fault(ended):
    assert ended(NotYet("a: process 7 on b")) == (75, "error: a: process 7 on b\n")


# As users see it


def test_a_bug_in_a_users_loss_as_users_see_it(experiment, forked):
    tiny = experiment(text=BROKEN_LOSS)
    code, _, short = forked("train", tiny.folder, "--data", tiny.data).ended()
    assert code == 1
    assert "in criterion" in short and "common/" not in short
    code, _, whole = forked("--traceback", "train", tiny.folder, "--data", tiny.data).ended()
    assert code == 1
    assert "in criterion" in whole and "common/train/run.py" in whole


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR2, 75)]
)
def test_an_interrupt_as_users_see_it(experiment, forked, number, code):
    text = """
        def build_model(classes):
            import threading

            print("building", flush=True)
            threading.Event().wait()
        """
    tiny = experiment(text=text)
    process = forked("train", tiny.folder, "--data", tiny.data)
    wait_until(lambda: process.out.read_text() == "building\n", process)
    process.send_signal(number)
    ended, _, said = process.ended()
    assert ended == code
    assert "Traceback" not in said
    assert ("the same command goes on" in said) == (code == 75)

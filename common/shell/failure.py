"""Texts for an error that ends a command: a sentence, the user's own lines, or a traceback."""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass
from pathlib import Path

from common.config.module import own_frames
from common.errors import NotYet, UserError, in_a_line
from common.files import how_another_is_named, in_the_way
from common.stopping import NOT_FINISHED

MISSING = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
"""Errors about a path that the user can mend, whichever code raises them."""

FULL_DISK = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EROFS])
"""Error numbers of a disk that cannot be written to."""

NO_PATH = frozenset([errno.ENAMETOOLONG, errno.ELOOP])
"""Error numbers of a path that cannot exist."""


@dataclass(frozen=True)
class Answer:
    """Text and exit code of a command that fails."""

    text: str
    exit_code: int


def answer(error: Exception, whole: bool) -> Answer | None:
    """Return what to show for an error; None if it is Python's own traceback.

    The exit code is 2 for what a user can mend, arrays that are too large included; 75 for what
    other processes are about to do; 1 for a bug. Of an error that passed through an experiment's
    own files only the lines in these files are shown.

    whole: show the whole traceback in any case.
    """
    if is_mendable(error):
        text = f"error: {sentence(error)}"
        if whole:
            text = "".join(traceback.format_exception(error)) + text
        return Answer(text, exit_code=NOT_FINISHED if isinstance(error, NotYet) else 2)
    if is_out_of_memory(error) and not whole:
        return Answer(f"error: {_of_memory(error)}", exit_code=2)
    if own_frames(error) and not whole:
        return Answer(own_lines(error), exit_code=1)
    return None


def is_mendable(error: Exception) -> bool:
    """Whether a user can mend an error: input, a disk, or a path."""
    if isinstance(error, (UserError, *MISSING)):
        return True
    if _is_loop(error):
        return True
    return isinstance(error, OSError) and error.errno in FULL_DISK | NO_PATH


def _is_loop(error: Exception) -> bool:
    """Whether a link leads to itself, which pathlib calls a RuntimeError before Python 3.13."""
    return isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from ")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is no memory for an array, on any device."""
    # by its name: torch is not imported for a sentence
    is_of_torch = type(error).__name__ == "OutOfMemoryError" or isinstance(error, RuntimeError)
    said = "out of memory" in str(error) or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or (is_of_torch and said)


def _of_memory(error: Exception) -> str:
    reason = in_a_line(error) or "no array of that size"
    return (
        f"out of memory ({reason}); train with a smaller batch_size (with as many more "
        "gradient_accumulation_steps) or input_array_info, predict with a smaller --block; "
        "--traceback shows where it was asked for"
    )


def sentence(error: Exception) -> str:
    """Return the sentence for a mendable error: our own text; of the system's, path and line."""
    if _is_loop(error):
        return f"{error}; write another path"
    if isinstance(error, UserError) or not isinstance(error, OSError):
        return str(error)
    if error.strerror is None:  # raised by us, with a sentence
        text = str(error) or type(error).__name__
    elif error.filename is None:
        text = error.strerror
    else:
        text = f"{error.filename}: {error.strerror}"
    if isinstance(error, NotADirectoryError) and error.filename is not None:
        text += f"; {in_the_way(Path(error.filename))}: move it, or write another path"
    if isinstance(error, PermissionError) and error.filename is not None:
        another = how_another_is_named(Path(error.filename))
        text += f"; {another}" if another else ""
    if error.errno in FULL_DISK:
        text += "; free space or choose another folder, and run the same command again"
    if error.errno in NO_PATH:
        text += "; write another path"
    frames = own_frames(error)
    if frames:
        text += f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return text


def own_lines(error: BaseException) -> str:
    """Return a traceback of only the lines in experiments' own files."""
    lines = ["Traceback in the experiment's own files (most recent call last):\n"]
    lines += traceback.format_list(own_frames(error))
    lines += traceback.format_exception_only(error)
    lines += ["The same command with --traceback shows the calls in between, too."]
    return "".join(lines)

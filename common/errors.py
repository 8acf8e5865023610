"""How we fail: what a user can mend is one kind of error; a bug keeps its traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

LISTED = 10
"""Problems of one call that are told."""


class UserError(ValueError):
    """Something that the user can mend; the text says what is wrong, and what to write instead.

    The command line shows the text and ends with exit code 2.
    """


class FileError(UserError, OSError):
    """A file, disk, server or process that does not do its part; what to mend, and what is kept."""


class Busy(UserError):
    """Another process works on it."""


class NotYet(UserError):
    """What other processes work on is not done yet; the same command goes on when it is.

    The command line ends with exit code 75, see `common.stopping.NOT_FINISHED`.
    """


class Incomplete(UserError):
    """Parts failed and were given up, all others are done; the same command tries them again."""


class NotFinite(UserError, FloatingPointError):
    """A loss or gradient that is NaN or infinite: settings or data that training cannot take."""


def type_and_reason(error: Exception) -> str:
    """Return an error of others' code in a line: its type, and the first line of its text."""
    reason = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {reason}"


def in_a_line(error: Exception, most: int = 200) -> str:
    """Return the text of an error in one line of at most so many characters."""
    return " ".join(str(error).split())[:most]


def left_out(path: str | Path, error: OSError) -> str:
    """Return the line on a file or folder that may not be read, and without which it goes on."""
    return f"{path}: cannot be read ({error.strerror}); left out"


def refuse(problems: Sequence[str], where: str | Path = "") -> None:
    """Raise UserError with all problems, a line each and `where` before it, if there are any."""
    before = f"{where}: " if where else ""
    if problems:
        raise UserError("\n".join(f"{before}{problem}" for problem in problems))


def collect(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Function of each item; what users can mend is collected from all of them, as one error.

    Which is a FileNotFoundError where all of them are.
    """
    results = []
    problems: list[Exception] = []
    for item in items:
        try:
            results.append(function(item))
        except (FileNotFoundError, UserError) as error:
            problems.append(error)
    if not problems:
        return results
    lines = [str(error) for error in problems[:LISTED]]
    if len(problems) > LISTED:
        lines.append(f"... and {len(problems) - LISTED} more")
    all_absent = all(isinstance(error, FileNotFoundError) for error in problems)
    kind = FileNotFoundError if all_absent else UserError
    raise kind("\n".join(lines))

"""Score the packed submissions that a table lists, one after the other."""

from __future__ import annotations

import csv
import re
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, refuse
from common.score.evaluate import evaluate_submission
from common.talk import Say, command_line

COLUMNS = ("data_path", "evaluation_id")
"""Columns of the table, as in the public toolbox: path of a submission, and its id."""


@dataclass(frozen=True)
class Submission:
    """One row of the table."""

    path: Path
    number: str
    """The evaluation_id."""

    @property
    def result(self) -> str:
        """Name of the file that gets the scores."""
        return f"eval_{self.number}.results"


def evaluate_all(
    table: str | Path,
    truth: str | Path,
    *,
    workers: int = 1,
    say: Say = print,
) -> None:
    """Score every submission of a table; writes eval_{evaluation_id}.results into this folder.

    Those that fail do not stop the others.

    Args:
        table: a CSV file with the columns of COLUMNS; paths are relative to this folder.
        truth: store of truths, see `evaluate_submission`.
        workers: processes that score.
        say: takes what is told.

    Raises:
        FileNotFoundError: without a table.
        UserError: for a table of another form; and, when all are done, for submissions that failed.
    """
    problems = []
    for submission in read(table):
        say(f"\n{submission.path}:")
        try:
            evaluate_submission(
                submission.path, truth, result_path=submission.result, workers=workers, say=say
            )
        except (UserError, OSError) as error:
            problems.append(f"{submission.number}: {error}")
    refuse(problems)


def commands(table: str | Path, truth: str | Path, workers: int) -> list[str]:
    """Return a command line of LSF for each row of a table. Raises as `read` does."""
    lines = []
    for submission in read(table):
        command = command_line(
            "evaluate",
            submission=submission.path,
            truth=truth,
            result=submission.result,
            workers=workers,
        )
        lines.append(f"bsub -n {workers} {shlex.quote(command)}")
    return lines


def read(table: str | Path) -> list[Submission]:
    """Return the rows of a table. Raises FileNotFoundError, or UserError with all that is wrong."""
    table = Path(table)
    if not table.is_file():
        raise FileNotFoundError(f"{table}: no such table of submissions; write its path")
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = set(COLUMNS) - set(reader.fieldnames or ())
        if missing:
            raise UserError(
                f"{table}: no column {', '.join(sorted(missing))}; begin with {','.join(COLUMNS)}"
            )
        rows = [Submission(Path(row["data_path"]), row["evaluation_id"]) for row in reader]
    problems = [
        f"{table}: evaluation_id '{row.number}'; write letters and numbers, it becomes a file name"
        for row in rows
        if not re.fullmatch(r"[\w.-]+", row.number or "")
    ]
    number_of = Counter(row.number for row in rows)
    problems += [
        f"{table}: evaluation_id '{number}' stands {times} times, and one result would replace "
        "another; write each once"
        for number, times in number_of.items()
        if times > 1
    ]
    if problems or not rows:
        raise UserError("\n".join(problems or [f"{table}: no rows; write one a submission"]))
    return rows

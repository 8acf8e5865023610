"""Read and write the records of a run, run.json and history.csv, and find its best epoch.

run.json has the settings, provenance, sessions and result of the run; history.csv has one row per
epoch. No other module reads or writes these files.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import typed
from common.errors import FileError, UserError
from common.files import replacing
from common.provenance import now
from common.talk import note
from common.train.recording import checksums

if TYPE_CHECKING:
    import pandas as pd

RECORD = "run.json"
HISTORY = "history.csv"


@dataclass
class Session:
    """One call of `train` on a run."""

    began: str = ""
    """Time in UTC, such as 2026-11-20T10:00:00+00:00."""
    ended: str | None = None
    """Time in UTC; None while it runs, and also later if its process was killed."""
    first_iteration: int = 0
    last_iteration: int | None = None


@dataclass(frozen=True)
class RunResult:
    """What a run has reached so far; fields that are not known are None."""

    epoch: int | None = None
    """The last finished epoch, counted from 1."""
    iteration: int | None = None
    best_metric: str | None = None
    """The metric that chooses the best checkpoint: "dice", "loss", ..."""
    best: float | None = None
    """Value of best_metric at the best epoch; None without validation."""
    best_epoch: int | None = None
    finished: bool | None = None
    """Whether all epochs are done, or early stopping ended the run."""
    samples_per_s: float | None = None
    """Training samples per second in the last epoch."""
    hours: float | None = None
    """Hours of all sessions together."""
    validation_blocks: str | None = None
    """Tells the blocks that the validation looks at from those of another run; None as `best`."""


@dataclass
class RunRecord:
    """The content of run.json."""

    experiment: str = ""
    """Name of the experiment's folder."""
    model_name: str = ""
    run_name: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    """Every setting as text, see TrainConfig.record."""
    provenance: dict[str, str] = field(default_factory=dict)
    """Commit, versions, device, precision and the hash of the split."""
    sessions: list[Session] = field(default_factory=list)
    result: RunResult = field(default_factory=RunResult)
    mlflow_run: str = ""
    """Id of the run in MLflow's store; empty without one."""

    @property
    def best_metric(self) -> str:
        """The metric that chooses the best epoch; "" if the record does not have it."""
        setting = self.settings.get("best_metric") or ""
        # settings are recorded as Python writes them, texts with their quotes
        return self.result.best_metric or setting.strip("'\"")


class Recorder:
    """Keeps run.json up to date while a run trains."""

    def __init__(self, folder: Path, iteration: int, record: RunRecord):
        """Add a session that begins now, and write run.json.

        `record` describes the run. For a continued run (`iteration` above 0) its sessions, result
        and MLflow id are taken from the existing run.json; at iteration 0 they begin anew.
        """
        self.folder = folder
        self.record = record
        before = self._before() if iteration else None
        if before:
            record.sessions = before.sessions
            record.result = before.result
            record.mlflow_run = before.mlflow_run
        record.sessions.append(Session(began=now(), first_iteration=iteration))
        self._hours_before = record.result.hours or 0.0
        self._begun = time.perf_counter()
        self.write()

    def _before(self) -> RunRecord | None:
        """Return run.json as earlier calls left it; one that is damaged is set aside."""
        try:
            return read_record(self.folder)
        except Damaged as error:
            _set_aside(error)
            return None

    def result(self, **values: Any) -> None:
        """Replace fields of the result, update its hours, and write run.json; NaN becomes null."""
        hours = self._hours_before + (time.perf_counter() - self._begun) / 3600
        for name, value in values.items():
            if isinstance(value, float) and math.isnan(value):
                values[name] = None
        self.record.result = dataclasses.replace(self.record.result, **values, hours=hours)
        self.write()

    def end(self, iteration: int) -> None:
        """Note that the session ends now, after `iteration`, and write run.json."""
        session = self.record.sessions[-1]
        session.ended = now()
        session.last_iteration = iteration
        self.write()

    def write(self) -> None:
        """Write run.json atomically. Raises FileError if it cannot be written."""
        write_record(self.folder, self.record)


def write_record(folder: Path, record: RunRecord) -> None:
    """Write run.json into the log folder of a run. Raises FileError if it cannot be written."""
    content = asdict(record)
    # the form that readers of older runs know: what there is not yet is left out
    if record.result == RunResult():
        content["result"] = {}
    for name in ("samples_per_s", "validation_blocks"):
        if content["result"].get(name, ...) is None:
            del content["result"][name]
    if not record.mlflow_run:
        del content["mlflow_run"]
    path = folder / RECORD
    with replacing(path) as temporary:
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
        checksums.expect(path, temporary)


def read_record(folder: Path) -> RunRecord | None:
    """Read run.json from the log folder of a run.

    None if there is no such file, as for a run of another trainer. Fields that the file lacks are
    empty or None, and fields that this version does not know are ignored. Raises UserError if the
    file is damaged, FileError where the disk or its permissions do not let it be read.
    """
    path = folder / RECORD
    try:
        content = json.loads(path.read_text(), parse_constant=typed.no_constant)
    except FileNotFoundError:
        return None
    except (ValueError, IsADirectoryError, RecursionError) as error:
        raise Damaged(path, f"cannot be read ({error})") from error
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); mend that") from error
    checksums.check(path)
    if not isinstance(content, dict):
        raise Damaged(path, f"holds a {type(content).__name__} and no object")
    known = {name: part for name, part in content.items() if part is not None}
    record = typed.build(RunRecord, known)
    try:
        typed.check(record)
    except TypeError as error:
        raise Damaged(path, str(error)) from error
    return record


def add_epoch(folder: Path, row: Mapping[str, float]) -> None:
    """Add a row to history.csv. Its first column must be "epoch".

    Rows of this epoch and of later ones are removed, since a run that continues from an older
    checkpoint trains these epochs again. Earlier rows stay as they were written, to the last digit.
    Of a damaged file the rows that can be read are kept; it is set aside under another name. Raises
    FileError if the file cannot be written.
    """
    path = folder / HISTORY
    rows: list[Mapping[str, Any]] = []
    if path.is_file():
        checksums.check(path)
        rows = [old for old in _rows_or_rest(path) if float(old["epoch"]) < row["epoch"]]
    rows.append(row)
    columns = dict.fromkeys(row)
    for old in rows:
        columns |= dict.fromkeys(old)
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        checksums.expect(path, temporary)


def read_history(folder: Path) -> pd.DataFrame:
    """Read history.csv from the log folder of a run: one row per epoch.

    The columns are epoch, iteration, lr, train/..., validation/... and {metric}/{class}, with NaN
    for what was not measured. Raises FileNotFoundError if there is no such file, UserError if it is
    damaged.
    """
    import pandas as pd

    path = folder / HISTORY
    checksums.check(path)
    _rows(path)  # pandas would take cells for others where a row has more of them
    return pd.read_csv(path)


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a history.csv as they are written. Raises UserError if it is damaged."""
    try:
        text = path.read_bytes().decode()
        lines = list(csv.reader(text.splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Damaged(path, f"cannot be read ({error})") from error
    if not lines or lines[0][:1] != ["epoch"] or len(set(lines[0])) < len(lines[0]):
        raise Damaged(path, "cannot be read (no header that begins with epoch)")
    if not text.endswith("\n"):
        raise Damaged(path, f"cannot be read (ends within line {len(lines)})")
    for number, line in enumerate(lines, 1):
        if len(line) != len(lines[0]):
            raise Damaged(path, f"line {number}: {len(line)} of {len(lines[0])} columns")
        for cell in line if number > 1 else ():
            if not _is_number(cell):
                raise Damaged(path, f"line {number}: {cell[:40]!r} is no number")
        if number > 1 and not line[0]:
            raise Damaged(path, f"line {number}: no epoch")
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def _rows_or_rest(path: Path) -> list[dict[str, str]]:
    """The rows of a history.csv, or those that can be read of a damaged one, which is set aside."""
    try:
        return _rows(path)
    except Damaged as error:
        text = path.read_bytes().decode(errors="replace")
        lines = text[: text.rfind("\n") + 1].splitlines()  # a number that is cut off is another
        _set_aside(error)
    header = lines[0].split(",") if lines else []
    if header[:1] != ["epoch"]:
        return []
    cells = [line.split(",") for line in lines[1:]]
    whole = [line for line in cells if len(line) == len(header) and all(map(_is_number, line))]
    return [dict(zip(header, line, strict=True)) for line in whole if line[0]]


def _set_aside(error: Damaged) -> None:
    """Give a damaged file another name, so that nothing of it is lost, and say so."""
    aside = error.path.with_name(f"{error.path.name}.unreadable")
    error.path.replace(aside)
    note(f"{error.path}: {error.problem}; it is {aside} now, and another is written")


def _is_number(cell: str) -> bool:
    """Whether a cell holds a number, or is empty for what was not measured."""
    return not cell or typed.is_number(cell)


def is_better(value: float, best: float, metric: str) -> bool:
    """Return whether a value of best_metric is better than `best`, the best value so far.

    `best` is NaN before the first value. Lower is better for "loss", higher for every other metric.
    Equal values, NaN and infinity are not better.
    """
    if not math.isfinite(value):
        return False
    if math.isnan(best):
        return True
    return value < best if metric == "loss" else value > best


@dataclass
class BestSoFar:
    """The best epoch that was measured so far, and on which classes epochs are compared.

    A mean that leaves out a class which it had before is over other, perhaps easier classes: such
    an epoch is not compared. One with a class more than before is the best of those with it.
    """

    value: float = math.nan
    """Of best_metric; NaN before the first."""
    classes: frozenset[Any] = frozenset()
    """All that had a value in some epoch."""

    def compares(self, classes: Collection[Any]) -> bool:
        """Whether a mean over these classes can be compared with the best."""
        return self.classes <= frozenset(classes)

    def take(self, value: float, classes: Collection[Any], metric: str) -> bool:
        """Keep an epoch if it is the best so far; returns whether it is."""
        if not self.compares(classes):
            return False
        if frozenset(classes) != self.classes:
            self.classes = frozenset(classes)
            self.value = math.nan
        if not is_better(value, self.value, metric):
            return False
        self.value = value
        return True


def best_row(history: pd.DataFrame, metric: str) -> int | None:
    """Return the index of the row with the best validation/{metric}, the epoch of best.pt.

    Of a run with metric_smoothing it is the best of the smoothed values. None without a validation.
    `history` is the result of `read_history`.
    """
    smoothed = f"validation/{metric}_smoothed"
    column = smoothed if smoothed in history else f"validation/{metric}"
    if column not in history:
        return None
    by_class = [name for name in history if name.startswith(f"{metric}/")]
    best_index = None
    best = BestSoFar()
    for index, value in history[column].items():
        classes = [name for name in by_class if math.isfinite(history.loc[index, name])]
        if best.take(value, classes, metric):
            best_index = index
    return best_index


def best_epoch(history: pd.DataFrame, metric: str) -> int | None:
    """Return the first epoch with the best validation/{metric}; None without a validation."""
    index = best_row(history, metric)
    if index is None or "epoch" not in history:
        return None
    return int(history.loc[index, "epoch"])


class Damaged(UserError):
    """A file of a run that cannot be read."""

    def __init__(self, path: Path, problem: str):
        super().__init__(
            f"{path}: {problem}; give it another name, and the run is read from its events, or go "
            "on with training, which does so and keeps what can be read of it"
        )
        self.path = path
        self.problem = problem

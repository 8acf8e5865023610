"""Read what a run has on record: run.json and history.csv, or the same from its events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd
from tensorboard.compat.proto.event_pb2 import Event

from common.runs.events import events_by_folder, in_order, read_files, scalars
from common.runs.find import Run
from common.train.recording.record import (
    RunRecord,
    RunResult,
    Session,
    best_row,
    read_history,
    read_record,
)

METRICS = ("dice", "iou", "precision", "recall")
"""Metrics of the validation, of which history.csv has a column a class."""

RESULT = {
    "best_metric": "str",
    "best": "float64",
    "best_epoch": "Int64",
    "epoch": "Int64",
    "iteration": "Int64",
    "finished": "boolean",
    "hours": "float64",
    "samples_per_s": "float64",
}
"""Columns of `table` with the result of a run."""

PROVENANCE = ("commit", "uncommitted_changes", "split_hash", "device", "precision")
"""Columns of `table` with the provenance of a run."""

EPOCH_TAGS = ("loss/validation", "mean/*", "lr", "skipped")
"""Tags that are logged once an epoch."""

COLUMNS = {
    "loss/train": "train/loss",
    "loss/validation": "validation/loss",
    "grad_norm": "train/grad_norm",
    "mean/dice/train": "train/dice",
    "mean/iou/train": "train/iou",
    "skipped": "train/skipped",
}
"""Columns of history.csv for tags that are called otherwise."""

COLUMN_GROUPS = {"mean": "validation", "throughput": "train"}
"""First parts of columns of history.csv for first parts of tags."""


def record(run: Run) -> RunRecord:
    """Return run.json; for a run without one, as much of it as events and history tell.

    Raises UserError if run.json cannot be read.
    """
    return read_record(run.folder) or _record_of_log(run)


def history(run: Run) -> pd.DataFrame:
    """Return history.csv, a row an epoch; for a run without one it is made of the events.

    Empty if nothing was logged. Raises UserError if the file is broken.
    """
    try:
        return read_history(run.folder)
    except FileNotFoundError:
        return _history_of_events(run)


def table(runs: Iterable[Run]) -> pd.DataFrame:
    """Return a row a run: name, result, provenance, and settings.

    Settings that differ between the runs have columns settings/{name}; others are left out.
    """
    rows = []
    settings = []
    for run in runs:
        known = record(run)
        row: dict[str, Any] = {"run": run.name}
        for name in RESULT:
            row[name] = getattr(known.result, name)
        for name in PROVENANCE:
            row[name] = known.provenance.get(name)
        rows.append(row)
        settings.append({f"settings/{name}": value for name, value in known.settings.items()})
    kinds = {"run": "str", **RESULT, **dict.fromkeys(PROVENANCE, "str")}
    about = pd.DataFrame(rows, columns=list(kinds)).astype(kinds)
    chosen = pd.DataFrame(settings, index=range(len(rows)))
    differing = [name for name in chosen if chosen[name].dropna().astype("str").nunique() > 1]
    return pd.concat([about, chosen[differing].astype("str")], axis=1)


# From the events


def _record_of_log(run: Run) -> RunRecord:
    """Make a record of the texts and times in the events, and of the history."""
    experiment, model, name = run.name.split("/")
    known = RunRecord(experiment, model, name)
    for file in in_order(events_by_folder(run).get(run.folder, ())):
        session = None
        for event in read_files([file]):
            if not event.HasField("summary"):
                continue
            session = session or Session(_time(event), first_iteration=event.step)
            session.ended = _time(event)
            session.last_iteration = event.step
            _take_tables(event, known)
        if session:
            known.sessions.append(session)
    log = history(run)
    metric = known.best_metric or _usual_metric(log)
    known.result = replace(_result_of(log, metric), hours=_hours(known.sessions))
    return known


def _time(event: Event) -> str:
    return datetime.fromtimestamp(event.wall_time, UTC).isoformat()


def _take_tables(event: Event, known: RunRecord) -> None:
    """Put the settings and the provenance that an event logs as texts into a record."""
    for value in event.summary.value:
        if not value.tensor.string_val:
            continue
        text = value.tensor.string_val[0].decode(errors="replace")
        if value.tag == "settings/text_summary":
            known.settings = _parse_table(text)
        elif value.tag == "provenance/text_summary":
            known.provenance = _parse_table(text)


def _parse_table(text: str) -> dict[str, str]:
    """Parse names and values of a table that common.train.recording.tracking logged as text."""
    values = {}
    for line in text.splitlines()[2:]:
        name, _, value = line.strip("| ").partition(" | ")
        values[name] = value
    return values


def _hours(sessions: Sequence[Session]) -> float | None:
    """Return the hours that the sessions cover together: two may overlap; None without any."""
    spans = []
    for session in sessions:
        began = datetime.fromisoformat(session.began).timestamp()
        ended = datetime.fromisoformat(session.ended or session.began).timestamp()
        spans.append((began, ended))
    total = 0.0
    until = 0.0
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total / 3600 if spans else None


def _usual_metric(log: pd.DataFrame) -> str | None:
    """Return the metric of the best epoch for a run whose settings do not name it."""
    for name in ("dice", "loss"):
        if f"validation/{name}" in log:
            return name
    return None


def _result_of(log: pd.DataFrame, metric: str | None) -> RunResult:
    """Return the result of a run from its history: all but `finished` and `hours`."""
    last = log.index[-1] if len(log) else None
    best = best_row(log, metric) if metric else None
    return RunResult(
        epoch=_cell(log, last, "epoch"),
        iteration=_cell(log, last, "iteration"),
        best_metric=metric,
        best=_cell(log, best, f"validation/{metric}"),
        best_epoch=_cell(log, best, "epoch"),
        samples_per_s=_cell(log, last, "train/samples_per_s"),
    )


def _cell(log: pd.DataFrame, row: int | None, column: str) -> Any:
    """Return a number of a history; None if it is not known."""
    if row is None or column not in log:
        return None
    value = log.loc[row, column]
    return value.item() if pd.notna(value) else None


def _history_of_events(run: Run) -> pd.DataFrame:
    """Make a history of the events: the last value of each tag in an epoch."""
    log = scalars(run)
    ends = _epoch_ends(log)
    rows = range(len(ends))
    # what is logged after the last end belongs to an epoch that is not over
    log = log.assign(row=np.searchsorted(ends, log["step"]))
    log = log[log["row"] < len(ends)]
    columns: dict[str, Any] = {"epoch": np.arange(1, len(ends) + 1), "iteration": ends}
    for tag, part in log.groupby("tag", sort=False):
        values = part.groupby("row")["value"]
        # the training loss is logged within an epoch as well; history.csv has the mean
        chosen = values.mean() if tag == "loss/train" else values.last()
        columns[_column(tag)] = chosen.reindex(rows).to_numpy()
    return pd.DataFrame(columns)


def _epoch_ends(log: pd.DataFrame) -> np.ndarray:
    """Return the sorted steps at which epochs end.

    They are those of the first of EPOCH_TAGS that was logged; without any of them all steps.
    """
    tags = log["tag"].unique()
    for pattern in EPOCH_TAGS:
        matching = [tag for tag in tags if fnmatchcase(tag, pattern)]
        if matching:
            return np.unique(log.loc[log["tag"].isin(matching), "step"])
    return np.unique(log["step"])


def _column(tag: str) -> str:
    """Return the column of history.csv for a tag."""
    if tag in COLUMNS:
        return COLUMNS[tag]
    group, _, name = tag.partition("/")
    if group in COLUMN_GROUPS:
        return f"{COLUMN_GROUPS[group]}/{name}"
    return tag

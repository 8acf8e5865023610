"""What a run says of itself: run.json, history.csv, or what its events tell."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd

from common.errors import UserError
from common.runs.events import _readable, events_by_folder, in_order, scalars
from common.runs.find import HISTORY, RECORD, Run


def record(run: Run) -> dict[str, Any]:
    """The content of run.json; of a run without one, as much of it as its events and history.csv tell, None for what they do not.

    Keys: experiment, model_name, run_name, settings (name to text), provenance, sessions, result. Raises ValueError if run.json
    cannot be read.
    """
    path = run.folder / RECORD
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return _record_of_log(run)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); remove it, and the run is read from its events"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds a {type(content).__name__} and no object; remove it, and the run is read from its events"
        )
    return content


def history(run: Run) -> pd.DataFrame:
    """A row an epoch, with the columns of history.csv: epoch, iteration, lr, train/..., validation/..., {metric}/{class}.

    Of a run without that file it is made of the events. Empty if nothing was logged. Raises ValueError if the file is broken.
    """
    path = run.folder / HISTORY
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        return _history_of_events(run)
    except ValueError as error:  # pandas' own errors are ValueErrors
        raise UserError(
            f"{path}: cannot be read ({error}); remove it, and the run is read from its events"
        ) from error


def table(runs: Iterable[Run]) -> pd.DataFrame:
    """A row a run: what it came to, where it is from, and as settings/{name} those settings in which the runs differ."""
    rows, settings = [], []
    for run in runs:
        known = record(run)
        result, provenance = known.get("result") or {}, known.get("provenance") or {}
        row = (
            {"run": run.name}
            | {name: result.get(name) for name in RESULT}
            | {name: provenance.get(name) for name in PROVENANCE}
        )
        rows.append(row)
        settings.append(
            {f"settings/{name}": value for name, value in (known.get("settings") or {}).items()}
        )
    chosen = pd.DataFrame(settings, index=range(len(rows)))
    differ = [
        name
        for name in chosen
        if chosen[name].astype(str).where(chosen[name].notna()).nunique() > 1
    ]
    about = pd.DataFrame(rows, columns=["run", *RESULT, *PROVENANCE]).astype(
        {"run": "str", **RESULT, **dict.fromkeys(PROVENANCE, "str")}
    )
    return pd.concat([about, chosen[differ].astype("str")], axis=1)


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


PROVENANCE = ("commit", "uncommitted_changes", "split_hash", "device", "precision")


def _record_of_log(run: Run) -> dict[str, Any]:
    """A record of the form of run.json from the texts and times in the events, and from the history."""
    tables: dict[str, dict[str, str]] = {"settings": {}, "provenance": {}}
    sessions = []
    for file in in_order(events_by_folder(run).get(run.folder, ())):
        first = last = None
        for event in filter(lambda event: event.HasField("summary"), _readable(file)):
            first, last = first or event, event
            for value in event.summary.value:
                name = value.tag.removesuffix("/text_summary")
                if name in tables and value.tensor.string_val:
                    tables[name] = _parse_table(value.tensor.string_val[0].decode(errors="replace"))
        if first and last:
            began, ended = (
                datetime.fromtimestamp(event.wall_time, UTC).isoformat() for event in (first, last)
            )
            sessions.append(
                {
                    "began": began,
                    "ended": ended,
                    "first_iteration": first.step,
                    "last_iteration": last.step,
                }
            )
    experiment, model, name = run.name.split("/")
    result = _result_of(history(run), tables["settings"].get("best_metric"), _hours(sessions))
    return {
        "experiment": experiment,
        "model_name": model,
        "run_name": name,
        **tables,
        "sessions": sessions,
        "result": result,
    }


def _parse_table(text: str) -> dict[str, str]:
    """Names and values of a table that common.train.tracking logged as text."""
    rows = (line.strip("| ").split(" | ", 1) for line in text.splitlines()[2:])
    return {row[0]: row[1] if len(row) > 1 else "" for row in rows}


def _hours(sessions: Sequence[Mapping[str, str]]) -> float | None:
    """Length of the union of the sessions: a run may have two writers at a time."""
    total, until = 0.0, 0.0
    for began, ended in sorted(
        [datetime.fromisoformat(s[key]).timestamp() for key in ("began", "ended")] for s in sessions
    ):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total / 3600 if sessions else None


def _result_of(log: pd.DataFrame, metric: str | None, hours: float | None) -> dict[str, Any]:
    """`result` of a run.json from a history."""
    metric = metric or next(
        (name for name in ("dice", "loss") if f"validation/{name}" in log), None
    )
    values = (
        log[f"validation/{metric}"].dropna()
        if f"validation/{metric}" in log
        else pd.Series(dtype=float)
    )
    at = (values.idxmin() if metric == "loss" else values.idxmax()) if len(values) else None

    def cell(row: Any, column: str) -> Any:
        return (
            log.at[row, column].item()
            if row is not None and column in log and pd.notna(log.at[row, column])
            else None
        )

    last = log.index[-1] if len(log) else None
    return {
        "epoch": cell(last, "epoch"),
        "iteration": cell(last, "iteration"),
        "best_metric": metric,
        "best": cell(at, f"validation/{metric}"),
        "best_epoch": cell(at, "epoch"),
        "finished": None,
        "hours": hours,
        "samples_per_s": cell(last, "train/samples_per_s"),
    }


EPOCH_TAGS = ("loss/validation", "mean/*", "lr")
"""Tags that are logged once an epoch."""


COLUMNS = {
    "loss/train": "train/loss",
    "loss/validation": "validation/loss",
    "grad_norm": "train/grad_norm",
}


COLUMN_GROUPS = {"mean": "validation", "throughput": "train"}
"""Tags, and beginnings of tags, that have another name in history.csv."""


def _history_of_events(run: Run) -> pd.DataFrame:
    """The history from the events: the last value of each tag in an epoch; for the training loss the mean."""
    ends = _epoch_ends(run)
    parts = []
    for chunk in scalars(run):
        chunk = chunk.assign(row=np.searchsorted(ends, chunk.step))
        values = chunk[chunk.row < len(ends)].groupby(["tag", "row"], observed=True).value
        parts.append(values.agg(["sum", "count", "last"]).reset_index().astype({"tag": str}))
    columns = {"epoch": np.arange(1, len(ends) + 1), "iteration": ends}
    if parts:
        merged = (
            pd.concat(parts)
            .groupby(["tag", "row"], sort=False)
            .agg({"sum": "sum", "count": "sum", "last": "last"})
            .reset_index()
        )
        for tag, values in merged.groupby("tag", sort=False):
            numbers = values["sum"] / values["count"] if tag == "loss/train" else values["last"]
            columns[_column(tag)] = (
                numbers.set_axis(values["row"]).reindex(range(len(ends))).to_numpy()
            )
    return pd.DataFrame(columns)


def _epoch_ends(run: Run) -> np.ndarray:
    """The steps, sorted, at which the first of EPOCH_TAGS that the run has was logged; without any, all steps are epochs."""
    steps = defaultdict(set)
    for chunk in scalars(run):
        for tag, values in chunk.groupby("tag", observed=True).step:
            pattern = next((pattern for pattern in EPOCH_TAGS if fnmatchcase(tag, pattern)), "*")
            steps[pattern].update(values)
    found = next((steps[pattern] for pattern in (*EPOCH_TAGS, "*") if pattern in steps), ())
    return np.array(sorted(found), np.int64)


def _column(tag: str) -> str:
    """The column of history.csv that holds what is logged under `tag`."""
    group, _, name = tag.partition("/")
    return COLUMNS.get(tag) or (f"{COLUMN_GROUPS[group]}/{name}" if group in COLUMN_GROUPS else tag)

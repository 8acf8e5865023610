"""Find the runs of all experiments and read what they logged: it alone knows where a run's files are and how event files are read.

An experiment is a folder with a `logs` folder (`tensorboard` where the public toolbox trained); its runs are the folders in there
that hold event files, usually `logs/<model>/<run>`. Beside its events a run may hold history.csv and run.json, both written by
common.train; runs of others and older ones have neither and are read from their events alone.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pandas as pd
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.util.tensor_util import make_ndarray

LOGS = ("logs", "tensorboard")
"""Names of the folder of an experiment that its runs are in."""
UNITED = "tensorboards"
"""Name of the folder that unite_tensorboards.py makes; it holds no runs of its own."""
RECORD, HISTORY = "run.json", "history.csv"
HPARAMS = "hparams"
"""TensorBoard wants hyper-parameters in an event file of their own; ours stands in this subfolder of the run."""
STANDARD_DEPTH = 2
"""A run stands at model/run in the logs folder."""
EXPERIMENT_DEPTH = 4
"""Experiments are looked for this many levels below a root."""
LOGS_DEPTH = 8
"""Event files are looked for this many levels below a logs folder."""
NOT_SEARCHED = {*LOGS, UNITED, "data", "cache", "checkpoints", "venv", "__pycache__"}
"""Folders, beside hidden ones and zarr containers, that hold no experiments but may hold very many files."""
CHUNK = 100_000
"""Scalars in memory at a time."""


@dataclass(frozen=True)
class Run:
    """The files that belong together."""

    experiment: Path
    logs: Path
    """The folder that the run was found in."""
    folder: Path
    """Absolute, but as found: a logs folder that is a link is not resolved."""
    events: tuple[Path, ...]
    """Event files in `folder` and below; may be none if there is a run.json or a history.csv."""
    size: int
    """Bytes in the event files."""
    written: float
    """When one of its files was last written, in seconds since the epoch."""
    encloses: bool
    """True if another run lies below its folder."""
    name: str = ""
    """experiment/model/run, always three parts; no two runs that were found together share it."""
    renames: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Tags that are read under another name."""


# Finding


def find(roots: Path | Sequence[Path], output: Path | None = None, renames: Mapping[str, str] | None = None) -> list[Run]:
    """The runs of all experiments below `roots`, sorted by name; each once, by its own name rather than that of a link.

    A root may also be one experiment, its logs folder, or a folder of runs of any name. `output`, where runs are united, is not
    searched. Raises FileNotFoundError for a root that is no folder."""
    roots = [Path(root).resolve() for root in ([roots] if isinstance(roots, str | Path) else roots)]
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; give folders that hold experiments")

    def skip(folder: Path) -> bool:
        return folder == output or folder.name in NOT_SEARCHED or _is_hidden(folder) or folder.suffix == ".zarr"

    experiment_of = {logs: experiment for root in roots for logs, experiment in _find_logs(root, skip).items()}
    runs: dict[str, Run] = {}
    for logs in sorted(experiment_of, key=lambda logs: (_is_linked(logs), logs)):
        for run in _runs_in(logs, experiment_of[logs], skip):
            runs.setdefault(os.path.realpath(run.folder), run)
    named = name_runs(list(runs.values()))
    return [replace(run, name=name, renames=dict(renames or {})) for name, run in named.items()]


def _find_logs(root: Path, skip: Callable[[Path], bool]) -> dict[Path, Path]:
    """The experiment of each logs folder at or below `root`; if there is none, but event files are, `root` for itself."""
    walked = list(_walk_folders(experiment_folder(root), EXPERIMENT_DEPTH, skip))
    found = {entry: folder for folder, entries in walked for entry in entries if entry.name in LOGS and os.path.isdir(entry)}
    holds_events = any(_is_event_file(entry) for _, entries in walked for entry in entries)
    return found or ({root: root} if holds_events else {})


def experiment_folder(root: Path) -> Path:
    """`root`, or the experiment of which `root` is the logs folder."""
    return root.parent if root.name in LOGS else root


def _walk_folders(top: Path, depth: int, skip: Callable[[Path], bool]) -> Iterator[tuple[Path, list[Path]]]:
    """`top` and the folders down to `depth` levels below it, each with what it holds.

    Each is met once, by its own name if it has one here: links are followed after all real folders, and loops end."""
    seen = set()
    folders, links = deque([(top, 0)]), deque()
    while folders or links:
        folder, level = (folders or links).popleft()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        entries = _list_folder(folder)
        yield folder, entries
        if level < depth:
            for entry in entries:
                if os.path.isdir(entry) and not skip(entry):
                    (links if entry.is_symlink() else folders).append((entry, level + 1))


def _list_folder(folder: Path) -> list[Path]:
    """What `folder` holds, sorted; a folder that cannot be read is named and counts as empty."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        say(f"{folder}: cannot be read ({error.strerror}); left out")
        return []


@cache
def say(text: str) -> None:
    """A line on standard error, once in a process: a run is read again and again while it is watched."""
    print(text, file=sys.stderr)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _is_linked(path: Path) -> bool:
    """True if a part of the absolute `path` is a symbolic link."""
    return os.path.realpath(path) != str(path)


def _is_event_file(path: Path) -> bool:
    """What TensorBoard itself takes for an event file."""
    return "tfevents" in path.name and not path.name.endswith(".profile-empty") and os.path.isfile(path)


def _runs_in(logs: Path, experiment: Path, skip: Callable[[Path], bool]) -> list[Run]:
    """The runs in one logs folder; what to skip applies to one that is an experiment's folder too."""
    held = {}
    for folder, entries in _walk_folders(logs, LOGS_DEPTH, skip if logs == experiment else _is_hidden):
        if files := [entry for entry in entries if _is_event_file(entry) or entry.name in (RECORD, HISTORY) and entry.is_file()]:
            held[folder] = files
    files_of = defaultdict(list)
    for folder, files in held.items():
        files_of[_run_folder(folder, logs, held)] += files
    above = {parent for folder in files_of for parent in folder.parents}
    runs = (_describe(experiment, logs, folder, files, folder in above) for folder, files in files_of.items())
    return [run for run in runs if run]


def _run_folder(folder: Path, logs: Path, held: Mapping[Path, list[Path]]) -> Path:
    """The folder of the run that files in `folder` belong to.

    A run at model/run owns everything below it (`add_hparams` and `add_scalars` of torch write into subfolders)."""
    parts = folder.relative_to(logs).parts
    prefixes = (logs.joinpath(*parts[:depth]) for depth in range(STANDARD_DEPTH, len(parts)))
    folder = next((prefix for prefix in prefixes if prefix in held), folder)
    return folder.parent if folder.name == HPARAMS else folder


def _describe(experiment: Path, logs: Path, folder: Path, files: Sequence[Path], encloses: bool) -> Run | None:
    """The run in `folder`, without those of its files that were deleted since they were listed; None if none is left."""
    states = {}
    for file in files:
        try:
            states[file] = file.stat()
        except FileNotFoundError:
            continue
    if not states:
        return None
    events = tuple(file for file in states if _is_event_file(file))
    size, written = sum(states[file].st_size for file in events), max(state.st_mtime for state in states.values())
    return Run(experiment, logs, folder, events, size, written, encloses)


def name_runs(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by their name experiment/model/run, sorted by it; no two share a name."""
    experiments = sorted({run.experiment for run in runs})
    labels = dict(zip(experiments, distinct_names(experiments), strict=True))
    siblings = defaultdict(list)
    for run in runs:
        siblings[f"{labels[run.experiment]}/{_model_name(run)}"].append(run)
    named = {}
    for prefix, members in siblings.items():
        names = distinct_names([run.folder for run in members])
        named |= {f"{prefix}/{name}": run for name, run in zip(names, members, strict=True)}
    return dict(sorted(named.items()))


def _model_name(run: Run) -> str:
    """The folders between logs and the run, which is the model's name; without any, the experiment's name."""
    parts = run.folder.relative_to(run.logs).parts
    return "-".join(parts[:-1]) or run.experiment.name or "root"


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """A name for each of these different, absolute `folders`: its own, after as many parents as tell it apart."""
    parts = [folder.parts[1:] or ("root",) for folder in folders]
    counts = [1] * len(folders)
    for _ in range(max(map(len, parts), default=0)):
        names = ["-".join(part[-count:]) for part, count in zip(parts, counts, strict=True)]
        uses = Counter(names)
        if len(uses) == len(names):
            return names
        counts = [count + (uses[name] > 1) for count, name in zip(counts, names, strict=True)]
    return [f"{number}-{'-'.join(part)}" for number, part in enumerate(parts)]


# What a run says of itself


def record(run: Run) -> dict[str, Any]:
    """The content of run.json; of a run without one, as much of it as its events and history.csv tell, None for what they do not.

    Keys: experiment, model_name, run_name, settings (name to text), provenance, sessions, result. Raises ValueError if run.json
    cannot be read."""
    path = run.folder / RECORD
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return _record_of_log(run)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); remove it, and the run is read from its events") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__} and no object; remove it, and the run is read from its events")
    return content


def history(run: Run) -> pd.DataFrame:
    """A row an epoch, with the columns of history.csv: epoch, iteration, lr, train/..., validation/..., {metric}/{class}.

    Of a run without that file it is made of the events. Empty if nothing was logged. Raises ValueError if the file is broken."""
    path = run.folder / HISTORY
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        return _history_of_events(run)
    except ValueError as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{path}: cannot be read ({error}); remove it, and the run is read from its events") from error


def table(runs: Iterable[Run]) -> pd.DataFrame:
    """A row a run: what it came to, where it is from, and as settings/{name} those settings in which the runs differ."""
    rows, settings = [], []
    for run in runs:
        known = record(run)
        result, provenance = known.get("result") or {}, known.get("provenance") or {}
        row = {"run": run.name} | {name: result.get(name) for name in RESULT} | {name: provenance.get(name) for name in PROVENANCE}
        rows.append(row)
        settings.append({f"settings/{name}": value for name, value in (known.get("settings") or {}).items()})
    chosen = pd.DataFrame(settings, index=range(len(rows)))
    differ = [name for name in chosen if chosen[name].astype(str).where(chosen[name].notna()).nunique() > 1]
    about = pd.DataFrame(rows, columns=["run", *RESULT, *PROVENANCE]).astype({"run": "str", **RESULT, **dict.fromkeys(PROVENANCE, "str")})
    return pd.concat([about, chosen[differ].astype("str")], axis=1)


RESULT = {
    "best_metric": "str", "best": "float64", "best_epoch": "Int64", "epoch": "Int64", "iteration": "Int64", "finished": "boolean",
    "hours": "float64", "samples_per_s": "float64",
}  # fmt: skip
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
            began, ended = (datetime.fromtimestamp(event.wall_time, UTC).isoformat() for event in (first, last))
            sessions.append({"began": began, "ended": ended, "first_iteration": first.step, "last_iteration": last.step})
    experiment, model, name = run.name.split("/")
    result = _result_of(history(run), tables["settings"].get("best_metric"), _hours(sessions))
    return {"experiment": experiment, "model_name": model, "run_name": name, **tables, "sessions": sessions, "result": result}


def _parse_table(text: str) -> dict[str, str]:
    """Names and values of a table that common.tracking logged as text."""
    rows = (line.strip("| ").split(" | ", 1) for line in text.splitlines()[2:])
    return {row[0]: row[1] if len(row) > 1 else "" for row in rows}


def _hours(sessions: Sequence[Mapping[str, str]]) -> float | None:
    """Length of the union of the sessions: a run may have two writers at a time."""
    total, until = 0.0, 0.0
    for began, ended in sorted([datetime.fromisoformat(s[key]).timestamp() for key in ("began", "ended")] for s in sessions):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total / 3600 if sessions else None


def _result_of(log: pd.DataFrame, metric: str | None, hours: float | None) -> dict[str, Any]:
    """`result` of a run.json from a history."""
    metric = metric or next((name for name in ("dice", "loss") if f"validation/{name}" in log), None)
    values = log[f"validation/{metric}"].dropna() if f"validation/{metric}" in log else pd.Series(dtype=float)
    at = (values.idxmin() if metric == "loss" else values.idxmax()) if len(values) else None

    def cell(row: Any, column: str) -> Any:
        return log.at[row, column].item() if row is not None and column in log and pd.notna(log.at[row, column]) else None

    last = log.index[-1] if len(log) else None
    return {
        "epoch": cell(last, "epoch"), "iteration": cell(last, "iteration"), "best_metric": metric, "best": cell(at, f"validation/{metric}"),
        "best_epoch": cell(at, "epoch"), "finished": None, "hours": hours, "samples_per_s": cell(last, "train/samples_per_s"),
    }  # fmt: skip


EPOCH_TAGS = ("loss/validation", "mean/*", "lr")
"""Tags that are logged once an epoch."""
COLUMNS = {"loss/train": "train/loss", "loss/validation": "validation/loss", "grad_norm": "train/grad_norm"}
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
        merged = pd.concat(parts).groupby(["tag", "row"], sort=False).agg({"sum": "sum", "count": "sum", "last": "last"}).reset_index()
        for tag, values in merged.groupby("tag", sort=False):
            numbers = values["sum"] / values["count"] if tag == "loss/train" else values["last"]
            columns[_column(tag)] = numbers.set_axis(values["row"]).reindex(range(len(ends))).to_numpy()
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


# What a run logged


def scalars(run: Run, tags: Sequence[str] = ("*",)) -> Iterator[pd.DataFrame]:
    """The scalars of a run whose tag matches one of the globs, at most CHUNK in a frame: tag, step, wall_time (s), value.

    Superseded steps are left out (see Cuts), so that steps of a tag increase; a tag of a subfolder, which TensorBoard shows as a run
    of its own, begins with its name. Damage is named on standard error, and read up to. Reads every file twice, so that memory is
    bounded; what is written meanwhile is not read. `pd.concat(scalars(run))` has all."""
    for folder, files in events_by_folder(run).items():
        prefix = "".join(f"{part}/" for part in folder.relative_to(run.folder).parts)
        wanted = cache(lambda tag, prefix=prefix: any(fnmatchcase(prefix + tag, pattern) for pattern in tags))
        found, rows = survey(files, run.renames), []
        for event in surviving(found, run.renames):
            for value in event.summary.value:
                tag = value.tag
                if wanted(tag) and (number := scalar(value, found.metadata.get(tag))) is not None:
                    rows.append((tag, event.step, event.wall_time, number))
            if len(rows) >= CHUNK:
                yield _frame(rows, prefix)
                rows = []
        if rows:
            yield _frame(rows, prefix)


def _frame(rows: list[tuple[str, int, float, float]], prefix: str) -> pd.DataFrame:
    tag, step, wall_time, value = zip(*rows, strict=True)
    names = {name: code for code, name in enumerate(dict.fromkeys(tag))}
    codes = np.fromiter((names[name] for name in tag), np.int32, len(tag))
    tags = pd.Categorical.from_codes(codes, categories=[prefix + name for name in names])
    return pd.DataFrame({"tag": tags, "step": np.array(step, np.int64), "wall_time": np.array(wall_time), "value": np.array(value)})


def events_by_folder(run: Run) -> dict[Path, list[Path]]:
    """The event files of a run in its own folder, and in each below it: TensorBoard shows the folders as runs."""
    folders = defaultdict(list)
    for file in run.events:
        folders[file.parent].append(file)
    return folders


class Cuts:
    """Which logged values a later one supersedes.

    A value supersedes those of its tag that stand before it at its step or beyond, as in TensorBoard's data server: so a run that
    was resumed, in whatever file, is one curve. A START event (purge_step of a SummaryWriter) supersedes values of all tags.
    Memory is bounded by the number of tags and of restarts."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.cuts: dict[str | None, deque[tuple[int, int]]] = {}

    def note(self, number: int, tag: str, step: int) -> None:
        """Take a value of event `number` into account; events are numbered as they are read."""
        if step <= self.last.get(tag, step - 1):
            self.cut(number, tag, step)
        self.last[tag] = step

    def cut(self, number: int, tag: str | None, step: int) -> None:
        """Supersede the values of a tag, or of all, before event `number` at `step` or beyond."""
        cuts = self.cuts.setdefault(tag, deque())
        while cuts and cuts[-1][1] >= step:  # it removes nothing that the new cut does not remove
            cuts.pop()
        cuts.append((number, step))

    def survives(self, number: int, tag: str, step: int) -> bool:
        """Whether nothing supersedes this value. To be asked in the order of events, when all have been noted."""
        for key in (tag, None):
            if cuts := self.cuts.get(key):
                while cuts and cuts[0][0] <= number:
                    cuts.popleft()
                if not cuts:
                    del self.cuts[key]
                elif step >= cuts[0][1]:
                    return False
        return True


@dataclass(frozen=True)
class Survey:
    """What has to be known of event files before they can be read as one."""

    ends: dict[Path, int]
    """How many bytes of each file can be read; the files in their order in time."""
    cuts: Cuts
    metadata: dict[str, SummaryMetadata]
    """Of each tag; writers give it with the first value alone, which may be superseded."""


def survey(files: Iterable[Path], renames: Mapping[str, str]) -> Survey:
    """Read the event files of one folder to their end, or up to damage, which is named on standard error."""
    found = Survey({}, Cuts(), {})
    number = 0
    for file in in_order(files):
        found.ends[file] = 0
        try:
            for end, event in read_events(file):
                number += 1
                found.ends[file] = end
                if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                    found.cuts.cut(number, None, event.step)
                for value in event.summary.value:
                    tag = renames.get(value.tag, value.tag)
                    found.cuts.note(number, tag, event.step)
                    if tag not in found.metadata and value.HasField("metadata"):
                        found.metadata[tag] = SummaryMetadata.FromString(value.metadata.SerializeToString())  # holds no event in memory
        except Damaged as damage:
            say(str(damage))
    return found


def surviving(found: Survey, renames: Mapping[str, str]) -> Iterator[Event]:
    """The events of surveyed files as those of one, without superseded values; tags renamed. Can be had once of a survey."""
    undescribed = dict(found.metadata)
    number = 0
    for file, end in found.ends.items():
        for _, event in read_events(file, 0, end):
            number += 1
            if not event.HasField("summary"):
                yield event
                continue
            rename(event, renames)
            values = event.summary.value
            if found.cuts.cuts:
                superseded = [at for at, value in enumerate(values) if not found.cuts.survives(number, value.tag, event.step)]
                for at in reversed(superseded):
                    del values[at]
            if undescribed:
                for value in values:
                    if value.tag in undescribed:
                        value.metadata.CopyFrom(undescribed.pop(value.tag))
            if values:
                yield event


def rename(event: Event, renames: Mapping[str, str]) -> None:
    """Change the tags of an event in place."""
    if renames:
        for value in event.summary.value:
            value.tag = renames.get(value.tag, value.tag)


def scalar(value: Summary.Value, metadata: SummaryMetadata | None) -> float | None:
    """The number that a value logs, None if it is none: torch's `simple_value`, or a tensor of TensorFlow's scalar plugin."""
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return value.simple_value
    if kind == "tensor" and metadata and metadata.plugin_data.plugin_name == "scalars":
        return float(make_ndarray(value.tensor).item())
    return None


class Damaged(ValueError):
    """Why an event file cannot be read on."""


class CutOff(Damaged):
    """It ends within an event, as it also may while it is being written."""


def in_order(files: Iterable[Path]) -> list[Path]:
    """Event files by the time of their first event: their names tell it in whole seconds."""
    return sorted(files, key=lambda file: (next(_readable(file), Event(wall_time=math.inf)).wall_time, file))


def restarts(file: Path) -> bool:
    """Whether an event file says, before it logs any value, which steps of earlier ones it supersedes."""
    for event in _readable(file):
        if event.HasField("summary"):
            return False
        if event.session_log.status == SessionLog.START:
            return True
    return True


def _readable(file: Path) -> Iterator[Event]:
    """The events up to any damage, which is not named."""
    try:
        for _, event in read_events(file):
            yield event
    except Damaged:
        return


def read_events(file: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Event]]:
    """The events between two bytes of an event file, each with the byte after it; without `stop` all that are there.

    Raises CutOff where the file ends within an event, Damaged where a checksum is wrong. What `stop` limits has been read before,
    and its data are not checked again. TensorBoard's own EventFileLoader takes twenty times as long, for its checksums and
    conversions are in Python. Format: TensorFlow's TFRecord, which is the length, its checksum, the data, their checksum."""
    end = start
    with open(file, "rb") as opened:
        opened.seek(start)
        while end != stop and (head := opened.read(12)):
            length = _length(head)
            data = opened.read(max(length, 0) + 4)
            if len(head) < 12 or len(data) < length + 4:
                raise CutOff(f"{file}: ends within an event, which begins at byte {end} (cut off, or being written); read up to there")
            if length < 0 or stop is None and CHECKSUM.unpack_from(data, length)[0] != checksum(data[:length]):
                raise Damaged(f"{file}: damaged at byte {end}; read up to there")
            try:
                event = Event.FromString(data[:length])
            except DecodeError as error:
                raise Damaged(f"{file}: holds no event at byte {end} ({error}); read up to there") from error
            end += length + 16
            yield end, event


def mentions(file: Path, tags: Iterable[str], searched: int = 0) -> bool:
    """Whether one of `tags` may be logged beyond the first `searched` bytes: looks for its bytes and decodes nothing."""
    if file.stat().st_size <= searched:
        return False
    patterns = [Summary.Value(tag=tag).SerializeToString() for tag in tags]
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(pattern, max(0, searched - len(pattern))) >= 0 for pattern in patterns)


@lru_cache(10_000)
def _length(head: bytes) -> int:
    """Bytes of data that the head of an event announces; -1 if it is damaged, 0 if it is cut off. Few lengths occur: cached."""
    if len(head) < 12:
        return 0
    length, check = struct.unpack("<QI", head)
    return length if check == checksum(head[:8]) else -1


CHECKSUM = struct.Struct("<I")


def frame(event: Event) -> bytes:
    """An event as it stands in an event file."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join([length, struct.pack("<I", checksum(length)), data, struct.pack("<I", checksum(data))])


def checksum(data: bytes) -> int:
    """Masked CRC-32C. Source: TensorFlow's TFRecord."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

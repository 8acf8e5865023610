"""Finds the runs of all experiments."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

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


def find(
    roots: Path | Sequence[Path],
    output: Path | None = None,
    renames: Mapping[str, str] | None = None,
) -> list[Run]:
    """The runs of all experiments below `roots`, sorted by name; each once, by its own name rather than that of a link.

    A root may also be one experiment, its logs folder, or a folder of runs of any name. `output`, where runs are united, is not
    searched. Raises FileNotFoundError for a root that is no folder.
    """
    roots = [Path(root).resolve() for root in ([roots] if isinstance(roots, str | Path) else roots)]
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; give folders that hold experiments")

    def skip(folder: Path) -> bool:
        return (
            folder == output
            or folder.name in NOT_SEARCHED
            or _is_hidden(folder)
            or folder.suffix == ".zarr"
        )

    experiment_of = {
        logs: experiment for root in roots for logs, experiment in _find_logs(root, skip).items()
    }
    runs: dict[str, Run] = {}
    for logs in sorted(experiment_of, key=lambda logs: (_is_linked(logs), logs)):
        for run in _runs_in(logs, experiment_of[logs], skip):
            runs.setdefault(os.path.realpath(run.folder), run)
    named = name_runs(list(runs.values()))
    return [replace(run, name=name, renames=dict(renames or {})) for name, run in named.items()]


def _find_logs(root: Path, skip: Callable[[Path], bool]) -> dict[Path, Path]:
    """The experiment of each logs folder at or below `root`; if there is none, but event files are, `root` for itself."""
    walked = list(_walk_folders(experiment_folder(root), EXPERIMENT_DEPTH, skip))
    found = {
        entry: folder
        for folder, entries in walked
        for entry in entries
        if entry.name in LOGS and os.path.isdir(entry)
    }
    holds_events = any(_is_event_file(entry) for _, entries in walked for entry in entries)
    return found or ({root: root} if holds_events else {})


def experiment_folder(root: Path) -> Path:
    """`root`, or the experiment of which `root` is the logs folder."""
    return root.parent if root.name in LOGS else root


def _walk_folders(
    top: Path, depth: int, skip: Callable[[Path], bool]
) -> Iterator[tuple[Path, list[Path]]]:
    """`top` and the folders down to `depth` levels below it, each with what it holds.

    Each is met once, by its own name if it has one here: links are followed after all real folders, and loops end.
    """
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
    return (
        "tfevents" in path.name
        and not path.name.endswith(".profile-empty")
        and os.path.isfile(path)
    )


def _runs_in(logs: Path, experiment: Path, skip: Callable[[Path], bool]) -> list[Run]:
    """The runs in one logs folder; what to skip applies to one that is an experiment's folder too."""
    held = {}
    for folder, entries in _walk_folders(
        logs, LOGS_DEPTH, skip if logs == experiment else _is_hidden
    ):
        if files := [
            entry
            for entry in entries
            if _is_event_file(entry) or (entry.name in (RECORD, HISTORY) and entry.is_file())
        ]:
            held[folder] = files
    files_of = defaultdict(list)
    for folder, files in held.items():
        files_of[_run_folder(folder, logs, held)] += files
    above = {parent for folder in files_of for parent in folder.parents}
    runs = (
        _describe(experiment, logs, folder, files, folder in above)
        for folder, files in files_of.items()
    )
    return [run for run in runs if run]


def _run_folder(folder: Path, logs: Path, held: Mapping[Path, list[Path]]) -> Path:
    """The folder of the run that files in `folder` belong to.

    A run at model/run owns everything below it (`add_hparams` and `add_scalars` of torch write into subfolders).
    """
    parts = folder.relative_to(logs).parts
    prefixes = (logs.joinpath(*parts[:depth]) for depth in range(STANDARD_DEPTH, len(parts)))
    folder = next((prefix for prefix in prefixes if prefix in held), folder)
    return folder.parent if folder.name == HPARAMS else folder


def _describe(
    experiment: Path, logs: Path, folder: Path, files: Sequence[Path], encloses: bool
) -> Run | None:
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
    size, written = (
        sum(states[file].st_size for file in events),
        max(state.st_mtime for state in states.values()),
    )
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

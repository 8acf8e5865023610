"""Find the runs of all experiments, and name them experiment/model/run."""

from __future__ import annotations

import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from common import talk
from common.config.settings import LOGS
from common.errors import left_out
from common.train.recording.record import HISTORY, RECORD

UNITED = "tensorboards"
"""Name of the folder that `common.runs.unite` makes; it holds no runs of its own."""

HPARAMS = "hparams"
"""Subfolder of a run: TensorBoard wants hyper-parameters in an event file of their own."""

STANDARD_DEPTH = 2
"""A run stands at model/run in the logs folder."""

EXPERIMENT_DEPTH = 4
"""Experiments are looked for this many levels below a root."""

LOGS_DEPTH = 8
"""Event files are looked for this many levels below a logs folder."""

NOT_SEARCHED = {*LOGS, UNITED, "data", "cache", "checkpoints", "venv", "__pycache__"}
"""Folders that hold no experiments but may hold very many files, as hidden ones and zarr do."""

Skip = Callable[[Path], bool]
"""Whether a walk leaves a folder out."""


@dataclass(frozen=True)
class Run:
    """The files of one training run."""

    experiment: Path
    logs: Path
    """The folder that the run was found in."""
    folder: Path
    """Absolute, but as found: a logs folder that is a link is not resolved."""
    events: tuple[Path, ...] = ()
    """Event files in `folder` and below; none where there is only a run.json or a history.csv."""
    size: int = 0
    """Bytes in the event files."""
    written: float = 0.0
    """Time when one of its files was last written, in seconds since 1970."""
    encloses: bool = False
    """Whether another run lies below its folder."""
    name: str = ""
    """experiment/model/run: three parts, unique among the runs found together."""


def find(roots: str | Path | Sequence[str | Path], output: Path | None = None) -> list[Run]:
    """Return the runs of all experiments below some folders, sorted by name.

    A run that links lead to as well is returned once, under its own name.

    Args:
        roots: folders that hold experiments; each may also be one experiment, its logs folder, or a
            folder of runs of any name.
        output: a folder that is not searched: where runs are united.

    Raises:
        FileNotFoundError: for a root that is no folder.
    """
    given = [roots] if isinstance(roots, str | Path) else roots
    folders = [Path(root).resolve() for root in given]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; give folders that hold experiments")

    def skip(folder: Path) -> bool:
        return folder == output or _holds_no_experiment(folder)

    experiment_of: dict[Path, Path] = {}
    for folder in folders:
        experiment_of |= _find_logs(folder, skip)
    runs: dict[str, Run] = {}
    # links last: a run is known by the first path that leads to it
    for logs in sorted(experiment_of, key=lambda logs: (_is_linked(logs), logs)):
        for run in _runs_in(logs, experiment_of[logs], skip):
            runs.setdefault(os.path.realpath(run.folder), run)
    named = name_runs(list(runs.values()))
    return [replace(run, name=name) for name, run in named.items()]


def experiment_folder(root: Path) -> Path:
    """Return `root`, or the experiment if `root` is its logs folder."""
    return root.parent if root.name in LOGS else root


@cache
def say_once(text: str) -> None:
    """Say a line once in a process: runs are read over and over while they are watched."""
    talk.say(text)


# Folders


def _find_logs(root: Path, skip: Skip) -> dict[Path, Path]:
    """Return the experiment of each logs folder at or below `root`.

    If there are no logs folders but event files, `root` is its own logs folder.
    """
    experiment_of = {}
    holds_events = False
    for folder, entries in _walk_folders(experiment_folder(root), EXPERIMENT_DEPTH, skip):
        for entry in entries:
            if entry.name in LOGS and _is_folder(entry):
                experiment_of[entry] = folder
            elif _is_event_file(entry):
                holds_events = True
    if not experiment_of and holds_events:
        return {root: root}
    return experiment_of


def _walk_folders(top: Path, depth: int, skip: Skip) -> Iterator[tuple[Path, list[Path]]]:
    """Yield `top` and the folders down to `depth` levels below it, each once, with its entries."""
    seen = set()
    folders = deque([(top, 0)])
    links: deque[tuple[Path, int]] = deque()
    while folders or links:
        # links last: a folder that a link leads to as well is met by its own name, and loops end
        waiting = folders or links
        folder, level = waiting.popleft()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        entries = _list_folder(folder)
        yield folder, entries
        if level == depth:
            continue
        for entry in entries:
            if not _is_folder(entry) or skip(entry):
                continue
            queue = links if entry.is_symlink() else folders
            queue.append((entry, level + 1))


def _list_folder(folder: Path) -> list[Path]:
    """Return the sorted entries of a folder; one that cannot be read is named and has none."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        say_once(left_out(folder, error))
        return []


def _holds_no_experiment(folder: Path) -> bool:
    return folder.name in NOT_SEARCHED or _is_hidden(folder) or folder.suffix == ".zarr"


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _is_linked(path: Path) -> bool:
    """Whether a part of the absolute `path` is a symbolic link."""
    return os.path.realpath(path) != str(path)


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  Path.is_dir raises where it may not look


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  Path.is_file raises where it may not look


def _is_event_file(path: Path) -> bool:
    """Whether TensorBoard takes a path for an event file."""
    if "tfevents" not in path.name or path.name.endswith(".profile-empty"):
        return False
    return _is_file(path)


# Runs


def _runs_in(logs: Path, experiment: Path, skip: Skip) -> list[Run]:
    """Return the runs in one logs folder."""
    # a logs folder may hold a run called data or cache; an experiment's folder holds those folders
    skip = skip if logs == experiment else _is_hidden
    files_in = {}
    for folder, entries in _walk_folders(logs, LOGS_DEPTH, skip):
        files = [entry for entry in entries if _is_file_of_a_run(entry)]
        if files:
            files_in[folder] = files
    files_of: dict[Path, list[Path]] = defaultdict(list)
    for folder, files in files_in.items():
        files_of[_run_folder(folder, logs, files_in)] += files
    enclosing: set[Path] = set()
    for folder in files_of:
        enclosing.update(folder.parents)
    runs = []
    for folder, files in files_of.items():
        run = _with_files(Run(experiment, logs, folder, encloses=folder in enclosing), files)
        if run:
            runs.append(run)
    return runs


def _is_file_of_a_run(path: Path) -> bool:
    return _is_event_file(path) or (path.name in (RECORD, HISTORY) and _is_file(path))


def _run_folder(folder: Path, logs: Path, files_in: Mapping[Path, list[Path]]) -> Path:
    """Return the folder of the run that files in `folder` belong to.

    A run at model/run owns everything below it: add_hparams and add_scalars of torch write into
    subfolders.
    """
    parts = folder.relative_to(logs).parts
    for depth in range(STANDARD_DEPTH, len(parts)):
        above = logs.joinpath(*parts[:depth])
        if above in files_in:
            folder = above
            break
    return folder.parent if folder.name == HPARAMS else folder


def _with_files(run: Run, files: Sequence[Path]) -> Run | None:
    """Return the run with its files; None if all of them were deleted since they were listed."""
    states = {}
    for file in files:
        try:
            states[file] = file.stat()
        except FileNotFoundError:
            continue
    if not states:
        return None
    events = tuple(file for file in states if _is_event_file(file))
    size = sum(states[file].st_size for file in events)
    written = max(state.st_mtime for state in states.values())
    return replace(run, events=events, size=size, written=written)


# Names


def name_runs(runs: Sequence[Run]) -> dict[str, Run]:
    """Return the runs by unique names experiment/model/run, sorted by name."""
    experiments = sorted({run.experiment for run in runs})
    labels = dict(zip(experiments, distinct_names(experiments), strict=True))
    runs_of = defaultdict(list)
    for run in runs:
        runs_of[f"{labels[run.experiment]}/{_model_name(run)}"].append(run)
    named = {}
    for prefix, members in runs_of.items():
        names = distinct_names([run.folder for run in members])
        for name, run in zip(names, members, strict=True):
            named[f"{prefix}/{name}"] = run
    return dict(sorted(named.items()))


def _model_name(run: Run) -> str:
    """Return the model's name, the folders between logs and run; without one the experiment's."""
    parts = run.folder.relative_to(run.logs).parts
    return "-".join(parts[:-1]) or run.experiment.name or "root"


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return a unique name for each absolute folder: its own, after as many parents as needed."""
    parts = [folder.parts[1:] or ("root",) for folder in folders]
    depths = [1] * len(parts)
    longest = max(map(len, parts), default=0)
    for _ in range(longest):
        names = ["-".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        uses = Counter(names)
        if len(uses) == len(names):
            return names
        for number, name in enumerate(names):
            if uses[name] > 1:
                depths[number] += 1
    # parents do not tell a-b/c from a/b-c
    return [f"{number}-{'-'.join(part)}" for number, part in enumerate(parts)]

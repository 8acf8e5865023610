"""Choose runs by names, globs and folders."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from common.errors import UserError
from common.files import REPOSITORY
from common.runs.find import LOGS, Run, find, name_runs
from common.talk import count


def choose(names: Sequence[str | Path], root: str | Path = REPOSITORY) -> list[Run]:
    """Return the runs that names, globs and folders mean, in their order.

    Raises UserError for one that means none.

    Args:
        names: experiment/model/run as in TensorBoard, globs of it, an experiment or
            experiment/model for all runs in it, or folders, of another root as well.
        root: where the experiments are; one in the working folder goes before it, as when training.
    """
    known = find(root)
    chosen: dict[str, Run] = {}
    for name in map(str, names):
        matching = _here(name, root) or _named(name, known) or _in_folders(name, Path(root), known)
        if not matching:
            raise _unknown(name, root, known)
        for run in matching:
            chosen[os.path.realpath(run.folder)] = run
    runs = list(chosen.values())
    if len({run.name for run in runs}) < len(runs):  # found below different roots
        runs = [replace(run, name=name) for name, run in name_runs(runs).items()]
    return runs


def _named(name: str, known: Sequence[Run]) -> list[Run]:
    """Return the runs that a name, a glob of it, or its beginning, means."""
    below = f"{name.rstrip('/')}/*"
    return [run for run in known if fnmatchcase(run.name, name) or fnmatchcase(run.name, below)]


def _in_folders(name: str, root: Path, known: Sequence[Run]) -> list[Run]:
    """Return the runs in a folder, which is relative to the working folder or to `root`."""
    for path in (Path(name), root / name):
        if not path.is_dir():
            continue
        folder = path.resolve()
        runs = _below(folder, known) or _below(folder, find(_logs_of(folder)))
        if runs:
            return runs
    return []


def _here(name: str, root: str | Path) -> list[Run]:
    """Return the runs that a name means of an experiment in a working folder outside of `root`."""
    experiment = Path(name.split("/", maxsplit=1)[0])
    inside = experiment.resolve().is_relative_to(Path(root).resolve())
    if inside or name.startswith(("/", ".")) or not experiment.is_dir():
        return []
    return _named(name, find(experiment))


def _below(folder: Path, runs: Sequence[Run]) -> list[Run]:
    """Return those of the runs that lie in a folder, or are it."""
    return [run for run in runs if run.folder.resolve().is_relative_to(folder)]


def _logs_of(folder: Path) -> Path:
    """Return the logs folder that a folder lies in, else the folder itself."""
    for parent in (folder, *folder.parents):
        if parent.name in LOGS:
            return parent
    return folder


def _unknown(name: str, root: str | Path, known: Sequence[Run]) -> UserError:
    near = difflib.get_close_matches(name, [run.name for run in known], n=3, cutoff=0.3)
    hint = count(len(known), "run is there", "runs are there")
    if near:
        hint = f"near it: {', '.join(near)}"
    return UserError(
        f"{root}: no run '{name}' ({hint}); "
        "write experiment/model/run, a glob of it, or its folder in logs, and --root where the "
        "experiments are elsewhere"
    )

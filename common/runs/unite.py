"""Gather the runs of all experiments in one TensorBoard.

    python unite_tensorboards.py                         all experiments of this repository
    python unite_tensorboards.py --watch                 the same, and whatever appears meanwhile
    python unite_tensorboards.py --filter "unet8*" --port 0
    python unite_tensorboards.py /scratch/me/repo . --no-serve --export runs.csv

Each run becomes a link `tensorboards/<experiment>/<model>/<run>`. Nothing is copied, so that
TensorBoard follows a run that is being written, or resumed in a further event file: its data server
drops the steps that a later session has again, also where the session does not say so.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import click

from common import talk
from common.config.groups import PLACES
from common.errors import FileError, UserError
from common.files import REPOSITORY, alone
from common.runs import export, history, layout, serve
from common.runs.find import LOGS as LOGS_FOLDERS
from common.runs.find import UNITED, Run, experiment_folder, find, say_once
from common.train.recording.record import read_record

NAME_DEPTH = 3
"""A link stands at experiment/model/run in the output folder."""

MARK = f"{os.sep}.{os.sep}"
"""Stands after the logs folder in what each link of ours says, and in no link made by hand.

So we know our links again, and never remove another.
"""


# Links


def unite(runs: Sequence[Run], output: Path) -> None:
    """Make the folder `output` hold a link for each run, beside what others put there.

    Raises UserError if something is in the way, FileError if the folder cannot be written.
    """
    if not runs and not output.exists():
        return
    _refuse_foreign_folders(output, output)
    try:
        with alone(output / ".lock", wait=True):
            _rebuild(wanted_links(runs, output), output, _differing(runs))
    except FileError:
        raise
    except OSError as error:
        place = error.filename or output
        raise FileError(
            f"{place}: {error.strerror}; choose another folder by --output, or try again"
        ) from error


def wanted_links(runs: Iterable[Run], output: Path) -> dict[Path, str]:
    """Return the target of each link in the output folder: a run's folder, or its event files."""
    links = {}
    for run in runs:
        # TensorBoard would show a run that lies in another one's folder twice
        targets = run.events if run.encloses else (run.folder,)
        for target in targets if run.events else ():
            link = output / run.name / target.relative_to(run.folder)
            way = os.path.relpath(run.logs, link.parent)
            links[link] = f"{way}{MARK}{target.relative_to(run.logs)}"
    return links


def _differing(runs: Iterable[Run]) -> dict[str, list[str]]:
    """Return the settings in which runs differ, with their values."""
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        try:
            known = read_record(run.folder)
        except UserError as error:  # one damaged file keeps nobody from the curves
            say_once(str(error))
            continue
        for name, value in (known.settings if known else {}).items():
            values.setdefault(name, {})[value] = None
    differing = {}
    for name, of_name in values.items():
        if len(of_name) > 1 and name not in PLACES:
            differing[name] = [value.strip("'") for value in of_name]
    return differing


def _rebuild(wanted: dict[Path, str], output: Path, differing: dict[str, list[str]]) -> None:
    """Make `output` hold these links; those that are right already stay untouched.

    differing: settings, see `layout.hparams_event`.
    """
    for link, way in _links_of_ours(output).items():
        if wanted.get(link) != way:
            link.unlink()
            _remove_empty(link.parent, output)
    for link in wanted:
        _refuse_foreign_folders(link.parent, output)
        if not _may_be_link(link):
            raise _in_the_way(link)
    for link, way in wanted.items():
        if _our_link(link) is None:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(way)
    page = output / layout.FILE
    if wanted:
        layout.write(page, differing)
    elif page.is_file():
        page.unlink()
        _remove_empty(page.parent, output)


def _links_of_ours(output: Path) -> dict[Path, str]:
    """Return the links that earlier calls made in `output`, with their targets."""
    links = {}
    for folder, folders, files in os.walk(output):
        for name in folders + files:
            path = Path(folder, name)
            way = _our_link(path)
            if way is not None and len(path.relative_to(output).parts) >= NAME_DEPTH:
                links[path] = way
    return links


def _our_link(path: Path) -> str | None:
    """Return the target of a link of our making; None for anything else."""
    try:
        way = os.readlink(path)  # noqa: PTH115  Path.readlink drops the mark
    except OSError:
        return None
    return way if MARK in way else None


def _remove_empty(folder: Path, output: Path) -> None:
    """Remove `folder`, and those around it, if nothing is left in them."""
    while folder != output and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _refuse_foreign_folders(folder: Path, output: Path) -> None:
    """Raise UserError if a folder from `output` to `folder` is something else, or a link."""
    parts = [part for part in (folder, *folder.parents) if part.is_relative_to(output)]
    for part in reversed(parts):
        if not _may_be_folder(part):
            raise _in_the_way(part)


def _in_the_way(path: Path) -> UserError:
    return UserError(
        f"{path}: in the way and not of our making; move it, or choose another folder by --output"
    )


def _may_be_folder(path: Path) -> bool:
    """Whether a real folder is at `path` or can be made there."""
    mode = _mode(path)
    return mode is None or stat.S_ISDIR(mode)


def _may_be_link(path: Path) -> bool:
    """Whether a link of ours is at `path` or can be made there."""
    return _mode(path) is None or _our_link(path) is not None


def _mode(path: Path) -> int | None:
    """Return the mode of what is at `path`, without following links; None for nothing."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


# The command


def gather(
    roots: Sequence[str] = (),
    *,
    output: str = "",
    pattern: str = "*",
    runs_file: str = "",
    scalars_file: str = "",
    watch: bool = False,
    port: int = 6006,
    no_serve: bool = False,
) -> None:
    """Gather the runs of all experiments below folders in one TensorBoard, on loopback only.

    The arguments are those of the command `unite`. Raises UserError and FileError for folders and
    files that cannot be meant, read or written.
    """
    folders = [Path(root).resolve() for root in roots or (REPOSITORY,)]
    links = Path(output or experiment_folder(folders[0]) / UNITED).resolve()
    _check_folders(folders, links)
    for file in (runs_file, scalars_file):
        if file:
            export.check(Path(file))

    def chosen() -> list[Run]:
        return [run for run in find(folders, links) if fnmatchcase(run.name, pattern)]

    def refresh() -> list[Run]:
        runs = chosen()
        unite(runs, links)
        return runs

    runs = chosen()
    if not runs and pattern != "*" and not watch:
        raise UserError(_nothing_found(folders, pattern))
    unite(runs, links)
    if runs:
        click.echo(f"{format_table(runs, time.time())}\nruns in {links}: {len(runs)}")
    else:
        click.echo(_nothing_found(folders, pattern))
    if runs_file:
        export.write([history.table(runs)], Path(runs_file))
    if scalars_file:
        export.write(export.long_form(runs), Path(scalars_file))
    if watch or (runs and not no_serve):
        served_port = None if no_serve else port
        _stay(links, served_port, refresh if watch else None, {run.name for run in runs})


def _check_folders(roots: Sequence[Path], output: Path) -> None:
    """Raise UserError for an output folder that cannot be meant. All paths are resolved."""
    experiments = [*output.glob("train_config.py"), *output.glob("*/train_config.py")]
    for root in roots:
        if experiments or root.is_relative_to(output):
            raise UserError(
                f"{output}: holds experiments; choose another folder for the links by --output"
            )
        between = output.relative_to(root).parts if output.is_relative_to(root) else ()
        if set(LOGS_FOLDERS) & set(between):
            raise UserError(
                f"{output}: is in a logs folder; choose another folder for the links by --output"
            )


def format_table(runs: Iterable[Run], now: float) -> str:
    """Return a table of runs: name, number and size of event files, time since the last write."""
    rows = [("experiment/model/run", "files", "size", "written")]
    for run in runs:
        # the clock of a file server may be ahead of ours
        age = talk.duration(max(0.0, now - run.written))
        files = str(len(run.events))
        rows.append((printable(run.name), files, talk.size(run.size), f"{age} ago"))
    return "\n".join(talk.aligned(rows, left=1))


def printable(name: str) -> str:
    """Return a name with a question mark for each character that cannot be printed."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _nothing_found(roots: Sequence[Path], pattern: str) -> str:
    where = ", ".join(map(str, roots))
    if pattern == "*":
        return f"no runs found under {where}; train an experiment first"
    return f"no run under {where} matches '{pattern}'; try --filter '*'"


def _stay(
    output: Path,
    port: int | None,
    refresh: Callable[[], list[Run]] | None,
    known: set[str],
) -> None:
    """Serve at `port`, and keep up with the runs by `refresh`, as far as given, until Ctrl-C."""
    # SIGINT is ignored in a background job of a shell unless we ask for it
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        if port is not None:
            address = serve.start(output, port)
            click.echo(f"TensorBoard at {serve.first_page(address)} (Ctrl-C ends it)")
        while True:
            time.sleep(serve.INTERVAL)
            if refresh:
                known = known | _greet(refresh, known)
    except KeyboardInterrupt:
        click.echo()


def _greet(refresh: Callable[[], list[Run]], known: set[str]) -> set[str]:
    """Look again at the runs; say and return the names of new ones.

    An error is only said: it may be gone the next time.
    """
    try:
        new = {run.name for run in refresh()} - known
    except (UserError, OSError) as error:
        say_once(f"{error}; trying again")
        return set()
    for name in sorted(new):
        click.echo(f"new run: {printable(name)}")
    return new

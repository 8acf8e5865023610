"""Copy an experiment under a new name, without what its runs left."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from common.config.load import load_config
from common.config.settings import RUN_FOLDERS
from common.errors import FileError, UserError
from common.files import REPOSITORY, alone, from_repository, not_written, refuse_unwritable
from common.shell.rename import OF_RUNS, RENAMED, Renaming
from common.talk import command_line, note, short_path, some

NO_RESULTS = "None yet.\n"

OURS = frozenset(["common", "cellmap_segmentation_challenge"])
"""Packages that every command imports, also from a checkout that is not on the path."""


def new(name: str | Path, source: str | Path) -> Path:
    """Copy an experiment to the folder `name`; return the folder, absolute.

    Texts and commands get the new name, see common.shell.rename, and results are taken out.

    source: an experiment's folder, looked for here and in the repository.

    Raises FileExistsError, FileNotFoundError, and UserError if the configuration of the copy cannot
    be read; nothing is left of the copy then.
    """
    target = Path(name).expanduser().resolve()
    source = _find(source)
    refuse_target(target)
    if target.is_relative_to(source):
        raise UserError(f"{target}: lies in {source}, which is copied; write another name")
    with whole(target) as partial:
        _copy(source, partial)
        _drop_emptied(partial, source)
        _rename(partial, source, target)
        split = load_config(partial).datasplit_path
        is_left_out = (source / split).is_file() and not (partial / split).is_file()
    if is_left_out:
        note(
            f"{split} was made by runs of {source.name} and is not in the copy; make one for it, "
            f"or write another datasplit_path into {short_path(target)}/train_config.py"
        )
    return target


def _copy(source: Path, partial: Path) -> None:
    """Copy the files of an experiment. Raises FileError if some cannot be read."""
    try:
        shutil.copytree(source, partial, ignore=_left_behind(source), dirs_exist_ok=True)
    except shutil.Error as error:  # of all of them, each with a reason that names its file
        reasons = [reason for _file, _copied, reason in error.args[0]]
        raise FileError(
            f"{source}: not all of it can be copied ({some(reasons)}); mend or remove that"
        ) from error
    # of a checkout that only others may write to, all is read-only, and so would the copy be
    for path in (partial, *partial.rglob("*")):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Yield an empty folder, which is renamed to `target` at the end.

    A half copy under the final name would pass for an experiment. Raises FileError, and Busy where
    another process makes it.
    """
    refuse_unwritable(target)
    lock = target.with_name(f".{target.name}.lock")
    otherwise = f"{target}: {{holder}} makes it; write another name"
    with alone(lock, otherwise=otherwise), _renamed_to(target) as partial:
        yield partial


@contextlib.contextmanager
def _renamed_to(target: Path) -> Iterator[Path]:
    """Yield an empty folder, which is renamed to `target` at the end. Raises FileError."""
    partial = target.with_name(f".{target.name}.partial")
    _remove(partial)
    if os.path.lexists(partial):
        raise FileError(
            f"{partial}: left by a `new` that was killed, and cannot be removed; remove it"
        )
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(target)
    except OSError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(partial):
            raise
        raise not_written(target, error) from error
    finally:
        _remove(partial)


def _remove(folder: Path) -> None:
    """Remove an unfinished folder, if there is one and it can be."""
    # a copy of what only others may write to is as read-only, until it is whole
    for path, _, _ in os.walk(folder) if not folder.is_symlink() else ():
        with contextlib.suppress(OSError):
            os.chmod(path, stat.S_IRWXU)  # noqa: PTH101
    shutil.rmtree(folder, ignore_errors=True)


def next_command(target: Path) -> str:
    """Return the command to type after `new`."""
    return command_line("train", short_path(target), check=True)


def without_results(text: str) -> str:
    """Return a README whose sections Results, Scores and People are emptied to "None yet.".

    Scores are a part of Results: of both, the first one stays.
    """
    kept = []
    emptied = set()
    for section in re.split(r"(?m)^(?=##? )", text):
        title = section.partition("\n")[0]
        heading = re.match(r"##? (Results|Scores|People)\b", title)
        if not heading:
            kept.append(section)
            continue
        kind = "Results" if heading[1] == "Scores" else heading[1]
        if kind not in emptied:
            kept.append(f"{title}\n\n{NO_RESULTS}\n")
        emptied.add(kind)
    return "".join(kept).rstrip() + "\n"


def refuse_target(target: Path) -> None:
    """Raise FileExistsError or UserError if no experiment of that name can be made."""
    if target.exists():
        raise FileExistsError(f"{target}: is there already; write another name")
    above = next(folder for folder in target.parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{target}: {above} is a file, in which no folder lies; write another name")
    if not re.fullmatch(r"\w[\w.-]*", target.name):
        raise UserError(
            f"'{target.name}' is no name for an experiment; write letters, digits, _, - and ."
        )
    if _hides_a_package(target):
        raise UserError(
            f"{target}: a folder of this name would hide the Python package '{target.name}' from "
            f"all commands that are typed beside it; write another name, such as my_{target.name}"
        )


def _hides_a_package(folder: Path) -> bool:
    """Whether `python -m`, typed beside a folder, would import it in place of a package."""
    name = folder.name
    if name in sys.stdlib_module_names or name in OURS:
        return True
    # experiments of the repository are no packages that anything needs
    beside = (folder.parent, REPOSITORY)
    elsewhere = [place for place in sys.path if Path(place).resolve() not in beside]
    return name.isidentifier() and PathFinder.find_spec(name, elsewhere) is not None


def _left_behind(source: Path) -> Callable[[str, list[str]], set[str]]:
    """Return a function for `copytree` that returns the names in a folder not to copy."""
    # only here: a folder of that name further down is no run's
    of_runs = {source / name for name in OF_RUNS} | _own_run_folders(source)

    def ignored(folder: str, names: list[str]) -> set[str]:
        hidden = {name for name in names if name.startswith(".") or name == "__pycache__"}
        return hidden | {name for name in names if Path(folder, name) in of_runs}

    return ignored


def _rename(folder: Path, source: Path, target: Path) -> None:
    """Write the new name into the texts of a copy, and empty the results of its README."""
    renaming = Renaming(source, target)
    for path in folder.rglob("*"):
        if path.suffix in RENAMED and path.is_file():
            _rewrite(path, renaming)
    readme = folder / "README.md"
    text = readme.read_text("utf-8") if readme.is_file() else f"# {target.name}\n"
    origin = f"\n\nA copy of {source.name}.\n"
    readme.write_text(without_results(text).replace("\n", origin, 1), "utf-8")


def _rewrite(path: Path, renaming: Renaming) -> None:
    """Write the new name into a file; all other bytes stay as they are."""
    try:
        # not read_text, which would turn the line ends of another system into ours
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return
    new_text = renaming.of_file(path.suffix, text)
    if new_text != text:
        path.write_bytes(new_text.encode())


def _find(source: str | Path) -> Path:
    """Return the absolute folder of an experiment. Raises FileNotFoundError, naming others."""
    for path in (Path(source).expanduser().absolute(), REPOSITORY / source):
        folder = path.parent if path.name == "train_config.py" else path
        if (folder / "train_config.py").is_file():
            return folder.resolve()
    experiments = []
    for pattern in ("*/train_config.py", "examples/*/train_config.py"):
        experiments += [from_repository(path.parent) for path in REPOSITORY.glob(pattern)]
    # the baselines first
    experiments.sort(key=lambda name: ("/" in name, name))
    hint = f"copy one of {some(experiments)}" if experiments else "name the folder of one"
    raise FileNotFoundError(f"{source}: no experiment, as it holds no train_config.py; {hint}")


def _own_run_folders(source: Path) -> set[Path]:
    """Return the folders inside an experiment's folder that its settings give to any run.

    Folders around them are not among them: `data/predictions` does not make `data` one.
    """
    config = load_config(source)
    folders: set[Path] = set()
    for name in RUN_FOLDERS:
        around_fields = re.split(r"\{.*?\}", getattr(config, name))
        pattern = "*".join(glob.escape(text) for text in around_fields)
        absolute = Path(os.path.normpath(source / Path(pattern).expanduser()))
        if absolute.is_relative_to(source) and absolute != source:
            folders.update(source.glob(str(absolute.relative_to(source))))
    return folders


def _drop_emptied(partial: Path, source: Path) -> None:
    """Remove the folders of a copy that only held folders of runs."""
    for folder in _own_run_folders(source):
        for parent in folder.relative_to(source).parents[:-1]:
            copied = partial / parent
            if copied.is_dir() and not any(copied.iterdir()):
                copied.rmdir()

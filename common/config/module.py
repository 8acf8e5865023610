"""Runs a Python file of an experiment afresh, and finds its lines again in a traceback."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import re
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.talk import short_path

OF_THE_TOOLBOX = ("upath", "torchvision", "cellmap_data")
"""What configurations of the public toolbox import and nothing here needs, see pyproject.toml."""

_LOADED = itertools.count()
_RUNNING: list[Path] = []
"""Files that are being run now, the innermost last."""

_OF_EXPERIMENTS = re.compile(r"experiment\d+_")
"""Begins the name of a module that `load_module` runs, or that such a one imports beside it."""


def load_module(path: str | Path) -> types.ModuleType:
    """Run a Python file of an experiment, in a package in which `from .model import ...` works.

    `from model import ...` works, too, as beside a script that Python runs. Each call makes a new
    package: two copies of an experiment, or an edited one, never see each other's modules. Raises
    FileNotFoundError, or UserError with file, line and reason if the file does not run; its cause
    is the error that the file ended with.
    """
    path = Path(path).resolve()
    if not path.is_file() or path.suffix != ".py":
        raise FileNotFoundError(f"{path}: no such Python file")
    if path in _RUNNING:
        raise UserError(
            f"{path.name} reads itself: what trains or predicts with it belongs under "
            "if __name__ == '__main__':"
        )
    package = types.ModuleType(f"experiment{next(_LOADED)}_{_identifier(path.parent.name)}")
    package.__path__ = [str(path.parent)]
    spec = importlib.util.spec_from_file_location(
        f"{package.__name__}.{_identifier(path.stem)}", path
    )
    assert spec is not None and spec.loader is not None  # its name ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[package.__name__] = package
    sys.modules[module.__name__] = module
    with _without_bytecode(), _neighbours(package.__name__, path.parent):
        _RUNNING.append(path)
        try:
            spec.loader.exec_module(module)
        except BaseException as error:  # a configuration is a program, and can end in every way
            if isinstance(error, KeyboardInterrupt) and not _is_raised_there(error):
                raise
            raise UserError(f"{short_path(path)}: {_failure(error)}") from error
        finally:
            _RUNNING.pop()
    return module


def is_tool(name: str, value: Any) -> bool:
    """Whether a name of a configuration cannot be meant as a setting.

    True for modules, functions and classes under their own names, for what begins with _, and for
    configurations that the file reads its settings from.
    """
    if name.startswith("_") or name in ("annotations", "config_path"):
        return True
    if isinstance(value, types.ModuleType | types.SimpleNamespace):
        return True
    return getattr(value, "__name__", None) == name


def own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The lines of experiments' files that an error came through, the outermost first.

    Told by the module's name, not by the folder: an experiment may be a folder above this package.
    """
    frames = []
    summaries = traceback.extract_tb(error.__traceback__)
    for (frame, _), summary in zip(traceback.walk_tb(error.__traceback__), summaries, strict=True):
        if _OF_EXPERIMENTS.match(frame.f_globals.get("__name__", "")):
            frames.append(summary)
    return frames


def _identifier(text: str) -> str:
    return re.sub(r"\W", "_", text)


@contextmanager
def _neighbours(package: str, folder: Path) -> Iterator[None]:
    """Context manager: `import shared` finds shared.py of the folder, as a module of `package`.

    Folders of modules are found, too: `from networks.unet import UNet`; those without an
    __init__.py last, as Python does it, so that a folder `data` hides no package of that name.
    Afterwards no other experiment finds any of them under that name.
    """
    neighbours = _Neighbours(package, folder)
    folders = _FoldersOf(neighbours)
    sys.meta_path.insert(0, neighbours)
    sys.meta_path.append(folders)
    try:
        yield
    finally:
        sys.meta_path.remove(neighbours)
        sys.meta_path.remove(folders)
        for name in neighbours.found:
            sys.modules.pop(name, None)


class _Neighbours(MetaPathFinder):
    """Finds modules and packages of one folder by their bare names, and all that is in them."""

    def __init__(self, package: str, folder: Path):
        self.package = package
        self.folder = folder
        self.found: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where a module is; None for what is no neighbour, and for the standard library."""
        place = self.folder.joinpath(*fullname.split("."))
        is_file = place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
        if path is None:
            is_ours = is_file and fullname not in sys.stdlib_module_names
        else:
            is_ours = fullname.partition(".")[0] in self.found and (is_file or place.is_dir())
        return self.spec(fullname) if is_ours else None

    def spec(self, fullname: str) -> ModuleSpec:
        """A neighbour, which is that module of the experiment's package."""
        self.found.append(fullname)
        return ModuleSpec(fullname, _SecondName(f"{self.package}.{fullname}"))


class _FoldersOf(MetaPathFinder):
    """Finds folders without an __init__.py among neighbours."""

    def __init__(self, neighbours: _Neighbours):
        self.neighbours = neighbours

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where a folder is; None for what is none."""
        is_ours = path is None and (self.neighbours.folder / fullname).is_dir()
        return self.neighbours.spec(fullname) if is_ours else None


class _SecondName(Loader):
    """Gives a module out under another name than its own."""

    def __init__(self, name: str):
        self.name = name

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """The module itself."""
        module = importlib.import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Put back what the import system wrote over: relative imports go by it."""
        module.__spec__ = self.spec


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Compiled code counts as new if size and second of the source fit: a quick edit is missed."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _is_raised_there(error: KeyboardInterrupt) -> bool:
    """Whether an experiment's file says `raise KeyboardInterrupt`: otherwise it is a Ctrl-C."""
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    line = innermost.line or ""
    return innermost in own_frames(error) and line.startswith("raise")


def _failure(error: BaseException) -> str:
    """What went wrong in an experiment's file, and in which line of which of its files."""
    frames = own_frames(error)
    file = frames[-1].filename if frames else None
    line = frames[-1].lineno if frames else None
    reason = str(error)
    hint = ""
    if isinstance(error, SystemExit):
        hint = "; a configuration gives settings, take out what ends the program"
    if isinstance(error, SyntaxError) and error.filename:  # it did not get as far as a frame
        file = error.filename
        line = error.lineno
        reason = error.msg
    if isinstance(error, ModuleNotFoundError) and error.name in OF_THE_TOOLBOX:
        hint = "; pip install 'csc-baselines[toolbox]'"
    where = f"line {line} of {Path(file).name}: " if file else ""
    return f"{where}{type(error).__name__}: {reason}{hint}"

"""Runs a Python file of an experiment afresh, and says where it failed."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError

_LOADED = itertools.count()


def load_module(path: str | Path) -> types.ModuleType:
    """Run a Python file of an experiment afresh, in a package of its own, so that `from .model import ...` works.

    Each call makes a new package: two copies of an experiment, or an edited one, never see each other's modules.
    Raises FileNotFoundError, or ValueError with file, line and reason if the file does not run.
    """
    path = Path(path).resolve()
    if not path.is_file() or path.suffix != ".py":
        raise FileNotFoundError(f"{path}: no such Python file")
    folder, name = (re.sub(r"\W", "_", text) for text in (path.parent.name, path.stem))
    package = types.ModuleType(f"experiment{next(_LOADED)}_{folder}")
    package.__path__ = [str(path.parent)]
    spec = importlib.util.spec_from_file_location(f"{package.__name__}.{name}", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules |= {package.__name__: package, module.__name__: module}
    with _without_bytecode():
        try:
            spec.loader.exec_module(module)  # type: ignore[union-attr]
        except Exception as error:  # a configuration is a program, and can fail in every way
            raise UserError(f"{_short(path)}: {_failure(error, path.parent)}") from error
    return module


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Compiled code counts as up to date if the source has its size and its second: a quick edit would not be seen."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _failure(error: Exception, folder: Path) -> str:
    """What went wrong in an experiment's file, and in which line of which of its files."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [
        (frame.filename, frame.lineno)
        for frame in frames
        if Path(frame.filename).is_relative_to(folder)
    ]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    where = f"line {places[-1][1]} of {Path(places[-1][0]).name}: " if places else ""
    reason = error.msg if isinstance(error, SyntaxError) else error
    beside = (
        isinstance(error, ModuleNotFoundError)
        and error.name
        and (folder / f"{error.name}.py").is_file()
    )
    hint = f"; write 'from .{error.name} import'" if beside else ""  # type: ignore[attr-defined]
    return f"{where}{type(error).__name__}: {reason}{hint}"


def _short(path: Path) -> str:
    """A path as short as it can be said: relative to the working folder if it is inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

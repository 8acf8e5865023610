"""Configurations that read others."""

from __future__ import annotations

import ast
import os
import types
from pathlib import Path
from typing import Any

from cellmap_segmentation_challenge._public import names_of
from common.config.module import load_module
from common.errors import UserError

__getattr__ = names_of(__name__, {})


IMPORTS = frozenset(["os", "subprocess", "sys"])
CALLS = frozenset(["eval", "exec", "compile", "__import__"])
"""Imports and calls that `analyze_script` looks for."""


def analyze_script(filepath: str | os.PathLike[str]) -> tuple[bool, list[str]]:
    """Return whether a file uses none of IMPORTS and CALLS, and a line for each one it uses.

    This makes nothing safe: there are other ways to do anything, and `model.eval()` is listed too.
    Raises FileNotFoundError, SyntaxError.
    """
    issues = []
    for node in ast.walk(ast.parse(Path(filepath).read_text())):
        imported: list[str] = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module or ""]
        issues += [f"Disallowed import detected: {name}" for name in imported if name in IMPORTS]
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if called in CALLS:
                issues.append(f"Disallowed function call detected: {called}")
    return not issues, issues


class Config(types.SimpleNamespace):
    """The names of a configuration file: `config.classes`, `config.get("epochs", 10)`."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a name, or `default`."""
        return vars(self).get(name, default)

    def to_dict(self) -> dict[str, Any]:
        """Return all values by name."""
        return dict(vars(self))

    def serialize(self) -> dict[str, Any]:
        """Return all but functions, classes and modules: numbers and texts, all else as text."""
        values = {}
        for name, value in vars(self).items():
            if isinstance(value, bool | int | float | str):
                values[name] = value
            elif not callable(value) and not isinstance(value, types.ModuleType):
                values[name] = str(value)
        return values


def load_safe_config(config_path: str | os.PathLike[str], force_safe: bool = False) -> Config:
    """Run a configuration file and return its names, without those that begin with _.

    A configuration is a Python program and runs with the rights of its reader. Nothing makes it
    safe, so force_safe=True raises UserError. Raises FileNotFoundError, or UserError with file,
    line and reason if the file fails.
    """
    if force_safe:
        raise UserError(
            f"{config_path}: force_safe=True; a configuration is a program, read it and leave "
            "this out"
        )
    names = vars(load_module(os.fspath(config_path)))
    return Config(**{name: value for name, value in names.items() if not name.startswith("_")})

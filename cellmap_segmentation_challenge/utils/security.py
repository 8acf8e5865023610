"""Configurations that read others."""

from __future__ import annotations

import os
import types
from typing import Any

from cellmap_segmentation_challenge._public import names_of
from common.config.module import load_module
from common.errors import UserError

__getattr__ = names_of(__name__, {})


class Config(types.SimpleNamespace):
    """What a configuration file gives, by name: `config.classes`, `config.get("epochs", 10)`."""

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a name, or `default`."""
        return vars(self).get(name, default)

    def to_dict(self) -> dict[str, Any]:
        """All of it, by name."""
        return dict(vars(self))


def load_safe_config(config_path: str | os.PathLike[str], force_safe: bool = False) -> Config:
    """Run a configuration file and give its names, those left out that begin with _.

    A configuration is a Python program and runs with the rights of its reader. Nothing can make it
    safe, so that force_safe=True raises UserError. Raises FileNotFoundError, or UserError with
    file, line and reason if it fails.
    """
    if force_safe:
        raise UserError(
            f"{config_path}: force_safe=True; a configuration is a program, read it and leave "
            "this out"
        )
    names = vars(load_module(os.fspath(config_path)))
    return Config(**{name: value for name, value in names.items() if not name.startswith("_")})

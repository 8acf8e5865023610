"""Libraries that read single kinds of volumes, imported where one is read."""

from __future__ import annotations

import importlib
from typing import Any

from common.errors import UserError


def module(name: str, what: str) -> Any:
    """Import a library. what: "TIFF files", for the sentence where it is not there."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise UserError(
            f"{what} are read with {error.name}, which is not installed; write pip install "
            f"{error.name}, or "
            "pip install 'csc-baselines[formats]' for all kinds of volumes"
        ) from error

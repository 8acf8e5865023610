"""Import the library of a kind of volume where one is read or written, or say how to install it."""

from __future__ import annotations

import importlib
from typing import Any

from common.errors import UserError


def module(name: str, what: str, extra: str = "formats", package: str = "") -> Any:
    """Import a library.

    Args:
        name: as it is imported.
        what: "TIFF files", for the sentence where it is not there.
        extra: of pyproject.toml, which has it.
        package: as pip knows it, where that is another name.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        installed = package or error.name
        raise UserError(
            f"{what} need {installed}, which is not installed; write pip install {installed}, or "
            f"pip install 'csc-baselines[{extra}]' for all that is like it"
        ) from error

"""Libraries of single kinds of volumes, imported where one is read or written."""

from __future__ import annotations

import importlib
from typing import Any

from common.errors import UserError


def module(name: str, what: str, extra: str = "formats") -> Any:
    """Import a library.

    what: "TIFF files", for the sentence where it is not there. extra: of pyproject.toml, which has
    it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise UserError(
            f"{what} need {error.name}, which is not installed; write pip install {error.name}, or "
            f"pip install 'csc-baselines[{extra}]' for all that is like it"
        ) from error

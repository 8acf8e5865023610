"""Import volumes with all options by their names, as the command has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from common.data.own import importing
from common.data.own.importing import Labelling, Manner


def import_data(raw: str, dataset: str, *, labels: Mapping | None = None, **given: Any) -> Path:
    """As `common.data.own.importing.import_data`."""
    labelling = _taken(Labelling, given)
    manner = _taken(Manner, given)
    return importing.import_data(
        raw, dataset, Labelling(labels or {}, **labelling), Manner(**manner), **given
    )


def _taken(kind: type, given: dict) -> dict:
    return {field.name: given.pop(field.name) for field in fields(kind) if field.name in given}

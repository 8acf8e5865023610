r"""Parse the columns of a line of a datasplit, in all ways in which the toolbox and hands write it.

    "train","/d/d.zarr","em/fibsem-uint8","/d/d.zarr","labels/groundtruth/crop1/[a,b]"
    train, d\d.zarr\em\fibsem-uint8, d\d.zarr\labels\groundtruth\crop1\[a, b]

Quotes may be missing, also around brackets with commas; a path may have the separators of Windows.
"""

from __future__ import annotations

import csv
import re

from common.errors import UserError

BEGINNINGS = {"train": "train", "val": "validate", "test": "test"}
"""The usages, by what a text begins with: "val", "Validation" and so on."""

_BEHIND_QUOTES = re.compile(r'"\s+(?=,|$)')
"""Spaces that csv takes for a fault."""


def columns(line: str) -> list[str]:
    """Return the columns of a line, stripped, with brackets in one piece and / in paths.

    Raises UserError for a line that is no CSV.
    """
    lines = [_BEHIND_QUOTES.sub('"', line)]
    try:
        fields = next(csv.reader(lines, strict=True, skipinitialspace=True))
    except csv.Error as error:
        raise UserError(f"not a row of CSV ({error}); write each field in double quotes") from error
    return [text.strip().replace("\\", "/") for text in _brackets_in_one(fields)]


def _brackets_in_one(fields: list[str]) -> list[str]:
    """Return the fields, those put together again that the commas within brackets took apart."""
    whole: list[str] = []
    for text in fields:
        is_open = whole and "[" in whole[-1] and "]" not in whole[-1]
        if is_open:
            whole[-1] += f",{text}"
        else:
            whole.append(text)
    return whole


def usage_of(text: str) -> str:
    """Return 'train', 'validate' or 'test' for a text that begins like it; otherwise ''."""
    for beginning, name in BEGINNINGS.items():
        if text.lower().startswith(beginning):
            return name
    return ""


def is_header(fields: list[str]) -> bool:
    """Return whether the first line of a file names its columns: it has no usage and no path."""
    return not usage_of(fields[0]) and not any("/" in text for text in fields)


def class_names(text: str) -> tuple[str, ...]:
    """Return the classes of a text such as '[mito, er]', without spaces around them."""
    return tuple(name.strip() for name in text.strip("[]").split(","))

"""Read how a user names imported labels: the volume of a class, and what its values mean.

mito.tif                            all but 0 is mito
all.tif#value=1,5&unknown=255       1 and 5 are the class, of 255 nobody knows what it is
1=mito,2=er,0=background            a table of one volume of several classes, see `by_table`
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.data.volumes.sources.place import split
from common.errors import UserError
from common.talk import nearest

BACKGROUND = "background"
UNKNOWN = "unknown"
"""Words of a table that are no classes."""


@dataclass(frozen=True)
class Named:
    """The labels of one class, as a user names them."""

    text: str
    """The name of the volume, without what is said of its values."""
    values: tuple[int, ...] = ()
    """The values of the class; none where all but 0 and unknown is it."""
    unknown: tuple[int, ...] = ()
    """The values of voxels of which nobody knows what they are."""
    others: tuple[int, ...] = ()
    """Further values of the volume that a table names: of other classes, and of the background."""


def named(text: str) -> Named:
    """Parse the name of a class's labels: 'all.tif#value=2&unknown=0,9&translation=0,0,80'.

    Raises UserError for values that are no whole numbers.
    """
    location, options = split(text)
    values: dict[str, tuple[int, ...]] = {}
    of_place = []
    for option in options.removeprefix("#").split("&"):
        name, _, written = option.partition("=")
        if name in ("value", "unknown") and name not in values:
            values[name] = _numbers(text, name, written)
        elif option:
            of_place.append(option)
    if of_place:
        location += f"#{'&'.join(of_place)}"
    return Named(location, values.get("value", ()), values.get("unknown", ()))


def _numbers(text: str, option: str, written: str) -> tuple[int, ...]:
    parts = written.split(",")
    if not all(re.fullmatch(r"-?\d+", part) for part in parts):
        raise UserError(
            f"{text}: {option} '{written}'; write the number of the class, such as 2, or several: "
            "2,3"
        )
    return tuple(map(int, parts))


def by_table(volume: str, text: str) -> dict[str, Named]:
    """Return the classes of one volume by a table of its values.

    Values that the table does not name belong to the background.

    Args:
        volume: its name.
        text: value=class,... or a file of two columns, value and class, with commas. A class may
            have several values; "background" and "unknown" are none.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: for a table that is wrong, or has no class.
    """
    table = _table(text)
    classes: dict[str, list[int]] = {}
    for value, name in table.items():
        classes.setdefault(name, []).append(value)
    unknown = tuple(classes.pop(UNKNOWN, ()))
    classes.pop(BACKGROUND, None)
    for name in classes:
        word = nearest(name.lower(), (BACKGROUND, UNKNOWN), 0.8)
        if word:
            raise UserError(f"--values {text}: '{name}'; write {word}, or a class of another name")
    if not classes:
        raise UserError(f"--values {text}: no class; write 1=mito,2=er or the path of a table")
    labels = {}
    for name, values in classes.items():
        others = tuple(value for value in table if value not in (*values, *unknown))
        labels[name] = Named(volume, tuple(values), unknown, others)
    return labels


def _table(text: str) -> Mapping[int, str]:
    """Return the class of each value."""
    if "=" in text:
        pairs = [part.partition("=")[::2] for part in text.split(",")]
    else:
        pairs = _pairs_in(Path(text))
    table: dict[int, str] = {}
    for written, name in pairs:
        value = written.strip()
        if not re.fullmatch(r"-?\d+", value) or not name.strip() or int(value) in table:
            raise UserError(
                f"--values {text}: '{written},{name}'; write each value once, with its class: "
                "1=mito,2=er,0=background, or lines of a file such as 1,mito"
            )
        table[int(value)] = name.strip()
    return table


def _pairs_in(path: Path) -> list[tuple[str, str]]:
    """Return the lines of a table but for its heading."""
    if not path.is_file():
        raise FileNotFoundError(
            f"--values {path}: no such file; write the path of a table of values and classes, or "
            "1=mito,2=er"
        )
    rows = list(csv.reader(path.read_text("utf-8-sig", errors="replace").splitlines()))
    rows = [row for row in rows if row]
    if rows and not re.fullmatch(r"-?\d+", rows[0][0].strip()):
        rows = rows[1:]
    for row in rows:
        if len(row) < 2:
            raise UserError(
                f"--values {path}: '{','.join(row)}'; write two columns, value and class, such as "
                "1,mito"
            )
    return [(row[0], row[1]) for row in rows]

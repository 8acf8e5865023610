"""Reads and checks `datasplit.csv`: which crops train and which validate, and what each annotates."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.errors import UserError

USAGES = ("train", "validate")


@dataclass(frozen=True)
class Row:
    """One crop of a data split."""

    usage: str
    """'train' or 'validate'."""
    raw: Path
    """Multiscale group of the raw."""
    crop: Path
    """Folder that holds one multiscale group for each annotated class."""
    annotated: tuple[str, ...]
    file: Path = field(default=Path("datasplit.csv"), compare=False)
    line: int = field(default=0, compare=False)
    """Line of the file, from 1."""
    data_root: Path = field(default=Path(), compare=False)

    @property
    def name(self) -> str:
        """Dataset and crop, such as 'jrc_hela-2/crop28'."""
        store = next(
            (part for part in self.crop.parents if part.suffix == ".zarr"), self.crop.parent
        )
        return f"{store.stem}/{self.crop.name}"


def read_datasplit(path: str | Path, data_root: str | Path) -> list[Row]:
    """The rows of a data split, in the order of the file, stores joined to `data_root` unless they are absolute.

    Reads the five columns above, and three or four (usage, raw, labels). A label path without brackets is one class.
    Empty lines and those beginning with '#' are skipped. Unlike in the public toolbox, where every usage that does not
    begin with 'train' validates, one that begins with neither 'train' nor 'valid' is an error.
    Raises FileNotFoundError, or ValueError with everything that is wrong, one line each.
    """
    path, data_root = Path(path), Path(data_root)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such data split; write it with make-datasplit")
    rows, problems = [], []
    for number, line in enumerate(path.read_text("utf-8-sig", errors="replace").split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            rows.append(
                replace(_parse(line, data_root), file=path, line=number, data_root=data_root)
            )
        except ValueError as error:
            problems += [f"line {number}: {problem}" for problem in error.args]
    problems += _repeated(rows)
    if not problems and not any(row.usage == "train" for row in rows):
        problems.append(f'{len(rows)} rows, none to train on; write rows that begin with "train"')
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return rows


def _parse(line: str, data_root: Path) -> Row:
    """Raises ValueError with one argument for each problem."""
    try:
        fields = next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise UserError(f"not a row of CSV ({error}); write each field in double quotes") from error
    if not 3 <= len(fields) <= 5:
        raise UserError(
            f"{len(fields)} columns; write five, each in double quotes (the brackets contain commas)"
        )
    usage = next((usage for usage in USAGES if fields[0].startswith(usage[:5])), "")
    fields = fields if len(fields) == 5 else fields[:3]
    spaced = [text for text in fields if text != text.strip() or not text]
    problems = [
        f"column '{text}' is empty or has a space at an end; write it without" for text in spaced
    ]
    problems += [] if usage else [f"usage '{fields[0]}'; write 'train' or 'validate'"]
    problems += _label_problems(fields[-1])
    if problems:
        raise UserError(*problems)
    crop, annotated = _split_classes(fields[-1])
    if len(fields) == 5:
        return Row(
            usage, data_root / fields[1] / fields[2], data_root / fields[3] / crop, annotated
        )
    return Row(usage, data_root / fields[1], data_root / crop, annotated)


def _label_problems(path: str) -> list[str]:
    if not re.fullmatch(r"[^\[\]]+/(\[[^\[\]]*\]|[^\[\]]+)", path):
        return [f"label path '{path}'; write it as crop1/[mito,er], in double quotes"]
    _, names = _split_classes(path)
    if any(name != name.strip() or not name for name in names):
        return [f"classes '{','.join(names)}'; write names separated by commas, without spaces"]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    return [
        f"class '{name}' stands {names.count(name)} times in one row; write it once"
        for name in repeated
    ]


def _split_classes(path: str) -> tuple[str, tuple[str, ...]]:
    """'crop1/[mito,er]' as 'crop1' and its classes; without brackets the last part of the path is the one class."""
    crop, _, names = path.rstrip("/").rpartition("/")
    return crop, tuple(names.strip("[]").split(","))


def _repeated(rows: Sequence[Row]) -> list[str]:
    first: dict[str, Row] = {}
    problems = []
    for row in rows:
        before = first.setdefault(os.path.normpath(row.crop), row)
        if before is not row:
            problems.append(
                f"line {row.line}: {row.name} ({row.usage}) already stands in line {before.line} ({before.usage}); "
                "write one row a crop, with all its classes"
            )
    return problems


def check_files(rows: Sequence[Row]) -> None:
    """See that every raw group and every class folder exists; reads names only, no metadata.

    Raises FileNotFoundError with the first ten that are missing and a count.
    """
    missing = [
        f"{row.file}: line {row.line}: {problem}" for row in rows for problem in _missing(row)
    ]
    if missing:
        advice = f"{len(missing)} missing in all; fetch them, or point --data at the folder that holds the datasets"
        raise FileNotFoundError("\n".join([*missing[:10], f"{rows[0].file}: {advice}"]))


def _missing(row: Row) -> list[str]:
    problems = []
    for what, path in (("raw group", row.raw), ("crop folder", row.crop)):
        stores = [
            part for part in (path, *path.parents) if part.suffix == ".zarr" and not part.is_dir()
        ]
        if stores:
            problems.append(f"no zarr store {stores[-1]}")
        elif not path.is_dir():
            problems.append(f"no {what} {path}")
    if not row.crop.is_dir():
        return list(dict.fromkeys(problems))
    present = set(os.listdir(row.crop))
    return problems + [
        f"no class folder {row.crop / name}" for name in row.annotated if name not in present
    ]


def split_hash(rows: Sequence[Row]) -> str:
    """SHA-256 of the rows in their order, paths relative to the data root: the same wherever the data lie.

    A store outside of the data root enters with its whole path.
    """

    def place(path: Path, root: Path) -> str:
        return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()

    content = [
        [row.usage, place(row.raw, row.data_root), place(row.crop, row.data_root), *row.annotated]
        for row in rows
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

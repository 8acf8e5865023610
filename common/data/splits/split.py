"""Read `datasplit.csv`, the file that lists training, validation and test crops and their classes.

It has one row per crop and no header: usage ("train", "validate" or "test"), raw store, path of the
raw in it, label store, path of the crop in it with the annotated classes in brackets. Stores are
relative to the data root. A class that is not in the brackets is unknown in that crop, even if its
folder exists. An example, one row:

    "train","d/d.zarr","recon-1/em/fibsem-uint8","d/d.zarr","recon-1/labels/groundtruth/crop1/[ecs,pm]"
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.classes import unknown_names
from common.data.splits.columns import class_names, columns, is_header, usage_of
from common.data.volumes import layout
from common.data.volumes.sources import place
from common.errors import UserError, refuse
from common.files import is_file, is_remote
from common.talk import command_line, count, nearest, note_once, some

USAGES = ("train", "validate")
"""What the crops of a run are for; those for TEST are no part of it."""

TEST = "test"
"""Usage of crops that are held out of training, validation, thresholds and search alike."""

HELD_OUT = "held-out"
"""The word of --crops for the crops of TEST; there `test` are those of the challenge."""

OTHER_NAME = "write one of them by a link to its store that has another name"
"""What to do about crops of one name."""

PROBLEMS_SHOWN = 10
"""Of a file in which everything is wrong; the others are counted."""

ASKING = 16
"""Threads that look for files."""


@dataclass(frozen=True)
class Row:
    """One row of a datasplit: a crop, and what it is used for."""

    usage: str
    """'train', 'validate' or 'test'."""
    raw: Path
    """Multiscale group of the raw."""
    crop: Path
    """Folder that holds one multiscale group for each annotated class."""
    annotated: tuple[str, ...]
    """The annotated classes; every other class is unknown in this crop."""
    file: Path = field(default=Path("datasplit.csv"), compare=False)
    """The datasplit that the row was read from."""
    line: int = field(default=0, compare=False)
    """Line number in `file`, counted from 1."""
    data_root: Path = field(default=Path(), compare=False)
    """The data root that relative stores were joined to."""
    label_options: str = ""
    """What is said of all class volumes of the crop, such as '#voxel_size=8'."""

    def class_volume(self, name: str) -> Path:
        """Return the volume of a class, a folder or file in that of the crop, with its options."""
        return place.class_volume(self.crop, name, self.label_options)

    @property
    def key(self) -> tuple[str, str]:
        """Dataset and crop, such as ('jrc_hela-2', 'crop28')."""
        return place.store_name(self.crop.parent), self.crop.name

    @property
    def name(self) -> str:
        """Dataset and crop, such as 'jrc_hela-2/crop28'."""
        return "/".join(self.key)


def row_text(usage: str, dataset: str, crop: str, classes: Sequence[str], *, root: str = "") -> str:
    """Return the line of datasplit.csv for a crop in the challenge's layout.

    root: before the path of the store, which is relative to the data root without it.
    """
    store = (Path(root) / layout.store(dataset)).as_posix()
    labels = f"{layout.LABELS}/{crop}/[{','.join(classes)}]"
    return ",".join(f'"{text}"' for text in (usage, store, layout.RAW, store, labels))


def text_of(row: Row) -> str:
    """Return the line of a row, with whole paths, so that it may stand in a file anywhere."""
    labels = f"{row.crop}/[{','.join(row.annotated)}]{row.label_options}"
    return ",".join(f'"{text}"' for text in (row.usage, row.raw, labels))


def read_datasplit(
    path: str | Path, data_root: str | Path, *, with_test: bool = False
) -> list[Row]:
    """Return the rows of a datasplit, in the order of the file.

    Rows of test crops are left out unless they are asked for, `with_test`: what does not ask cannot
    train on them, choose by them, or hash them into what a run is made of.

    Stores are joined to `data_root` unless they are absolute; where they are not there, but beside
    the file or in the working folder, as in the public toolbox, to that. Instead of the five
    columns above, a row may have three or four, of which the first three count: usage, raw, labels.
    A label path without brackets names a single class. Rows of one crop, such as one for each
    class, are put together. Empty lines, lines that begin with '#' and a line of column names are
    skipped. A usage that begins with neither 'train', 'val' nor 'test' is an error; in the public
    toolbox every usage that does not begin with 'train' is validation.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: with all problems of the file, one per line; also if no row trains.
    """
    path = Path(path)
    if not is_file(path):
        raise FileNotFoundError(
            f"{path}: no such data split; write it with make-datasplit (doctor says how)"
        )
    lines = _lines(path)
    root = _root_of(path, list(lines.values()), Path(data_root))
    parsed, problems = _parsed(path, lines, root)
    rows, repeated = _one_for_each_crop(parsed)
    problems += repeated
    if len(problems) > PROBLEMS_SHOWN:
        more = len(problems) - PROBLEMS_SHOWN
        problems = [*problems[:PROBLEMS_SHOWN], f"{count(more, 'problem')} more of this kind"]
    if not problems and not any(row.usage == "train" for row in rows):
        problems.append(f'{len(rows)} rows, none to train on; write rows that begin with "train"')
    refuse(problems, path)
    _note_what_looks_wrong(path, rows)
    if with_test:
        return rows
    return [row for row in rows if row.usage != TEST]


def _note_what_looks_wrong(path: Path, rows: Sequence[Row]) -> None:
    for name, alike in of_one_name(rows).items():
        lines_of = some([str(row.line) for row in alike], most=5)
        note_once(
            f"{path}: lines {lines_of} are different crops of one name, {name}, by which results "
            f"are stored and --crops chosen; {OTHER_NAME}"
        )
    for row in _with_raw_of_others(rows):
        raw = place.store_name(row.raw)
        note_once(
            f"{path}: line {row.line}: labels of {row.name} with the raw of {raw}, which has crops "
            "of its own; see that it is the raw that they were painted on"
        )


def _lines(path: Path) -> dict[int, str]:
    """Return the lines of a datasplit that name a crop, by their number in the file."""
    lines = {}
    # utf-8-sig: spreadsheets put a byte order mark first
    for number, line in enumerate(path.read_text("utf-8-sig", errors="replace").split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            lines[number] = line.rstrip("\r")
    if lines:
        first = next(iter(lines))
        try:
            names_columns = is_header(columns(lines[first]))
        except UserError:  # told with its line
            names_columns = False
        if names_columns:
            del lines[first]
    return lines


def _parsed(path: Path, lines: Mapping[int, str], data_root: Path) -> tuple[list[Row], list[str]]:
    """Return the rows that the lines of a datasplit say, and what is wrong with the other lines."""
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in lines.items():
        try:
            row = _parse(line, data_root)
        except UserError as error:
            problems += [f"line {number}: {problem}" for problem in error.args]
        else:
            rows.append(replace(row, file=path, line=number, data_root=data_root))
    return rows, problems


def _root_of(path: Path, lines: Sequence[str], data_root: Path) -> Path:
    """Return the folder that relative stores start from: the first one that has such a store."""
    stores = [store for store in map(_relative_store, lines) if store]
    for root in (data_root, path.absolute().parent, Path.cwd()):
        if stores and (root / stores[0]).exists():
            if root != data_root:
                note_once(
                    f"{path}: its paths start from {root}, where they are, not from {data_root}"
                )
            return root
    return data_root


def _relative_store(line: str) -> str:
    """Return the relative store of the labels (of three columns: the raw) in a line; '' else."""
    try:
        fields = columns(line)
    except UserError:  # told with its line
        return ""
    if not 3 <= len(fields) <= 5:
        return ""
    store = fields[3 if len(fields) == 5 else 1]
    if is_remote(store) or place.path_of(store).is_absolute():
        return ""
    return str(place.on_disk(Path(store)))


def _parse(line: str, data_root: Path) -> Row:
    """Parse one line. Raises UserError with one argument per problem."""
    fields = columns(line)
    if not 3 <= len(fields) <= 5:
        raise UserError(
            f"{len(fields)} columns; "
            "write five, each in double quotes (the brackets contain commas)"
        )
    if len(fields) == 4:
        fields = fields[:3]
    usage = usage_of(fields[0])
    problems = ["a column is empty; write all of them" for text in fields if not text][:1]
    problems += [
        f"column '{text}' is an address of a kind that is not read; write one of "
        f"s3://, gs://, http:// or https://, or the path of a copy"
        for text in fields[1:]
        if is_remote(text) and not place.is_address(text)
    ]
    if not usage:
        problems.append(f"usage '{fields[0]}'; write 'train', 'validate' or 'test'")
    labels, options = place.split(fields[-1])
    problems += _label_problems(labels)
    problems += _option_problems(fields)
    if problems:
        raise UserError(*problems)
    crop, annotated = _split_classes(labels)
    if len(fields) == 5:
        _, raw_store, raw, label_store, _ = fields
    else:
        raw_store = label_store = ""
        raw = fields[1]
    return Row(
        usage,
        raw=_joined(data_root, raw_store, raw),
        crop=_joined(data_root, label_store, crop),
        annotated=annotated,
        label_options=options,
    )


def _joined(data_root: Path, store: str, path: str) -> Path:
    """Return the path of a volume: its store, joined to the data root, and its path in it."""
    if not store:
        return place.path_of(path, data_root)
    return place.path_of(store, data_root) / path


def _option_problems(fields: Sequence[str]) -> list[str]:
    """Return what is wrong with the options behind #, in the columns that may have them."""
    problems = []
    raw = fields[2] if len(fields) == 5 else fields[1]
    for text in (fields[-1], raw):
        try:
            place.place_of(text)
        except UserError as error:
            problems.append(str(error))
    return problems


def _label_problems(path: str) -> list[str]:
    if not re.fullmatch(r"[^\[\]]+/(\[[^\[\]]*\]|[^\[\]]+)", path):
        return [f"label path '{path}'; write it as crop1/[mito,er], in double quotes"]
    crop, names = _split_classes(path)
    if Path(crop).name in ("", ".."):
        return [f"label path '{path}' ends in no folder of a crop; write crop1/[mito,er]"]
    if any(name in (".", "..") or "/" in name for name in names):
        return [f"classes '{','.join(names)}'; write names of folders"]
    if not all(names):
        return [f"classes '{','.join(names)}'; write names separated by commas"]
    return [
        f"class '{name}' stands {count} times in one row; write it once"
        for name, count in Counter(names).items()
        if count > 1
    ]


def _split_classes(path: str) -> tuple[str, tuple[str, ...]]:
    """Split 'crop1/[mito,er]' into 'crop1' and ('mito', 'er').

    Without brackets, the last part of the path is the only class.
    """
    crop, _, names = path.rstrip("/").rpartition("/")
    return crop, class_names(names)


def _one_for_each_crop(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Join the rows of each crop; return these rows, and what is wrong with rows at odds."""
    first: dict[str, Row] = {}
    problems = []
    for row in rows:
        place = os.path.normpath(row.crop)
        before = first.setdefault(place, row)
        if before is row:
            continue
        has_one_raw = os.path.normpath(before.raw) == os.path.normpath(row.raw)
        if before.label_options != row.label_options:
            problems.append(
                f"line {row.line}: {row.name} has '{row.label_options}' behind its classes, and "
                f"'{before.label_options}' in line {before.line}; the classes of a crop share one "
                "grid: write the same behind #, or another crop"
            )
        elif has_one_raw and before.usage == row.usage:
            annotated = tuple(dict.fromkeys([*before.annotated, *row.annotated]))
            first[place] = replace(before, annotated=annotated)
        else:
            problems.append(
                f"line {row.line}: {row.name} ({row.usage}) already stands in line {before.line} "
                f"({before.usage}); write it on one side, with one raw"
            )
    return list(first.values()), problems


def of_one_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the crops whose store and folder are called as those of others, by that name.

    Such as `fly1/data.zarr` and `fly2/data.zarr`, each with a crop1.
    """
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    return {name: alike for name, alike in by_name.items() if len(alike) > 1}


def refuse_of_one_name(rows: Sequence[Row], what: str) -> None:
    """Raise UserError for different crops of one name. what: is told from others by the name."""
    alike = list(of_one_name(rows))
    if alike:
        raise UserError(
            f"{rows[0].file}: different crops of one name, {some(alike)}, by which {what}; "
            f"{OTHER_NAME}"
        )


def _with_raw_of_others(rows: Sequence[Row]) -> list[Row]:
    """Return crops whose raw is of another store, in which other crops have both raw and labels."""
    raw_of = {row: place.store_name(row.raw) for row in rows}
    with_both = {name for row, name in raw_of.items() if name == row.key[0]}
    return [row for row, name in raw_of.items() if name in with_both and name != row.key[0]]


def annotating(rows: Sequence[Row], usage: str) -> Counter[str]:
    """Return the number of crops of this usage that annotate each class."""
    names: Counter[str] = Counter()
    for row in rows:
        if row.usage == usage:
            names.update(row.annotated)
    return names


def not_listed(rows: Sequence[Row], classes: Sequence[str]) -> list[str]:
    """Return a sentence about annotated classes that the run does not learn; [] without any."""
    others = annotating(rows, "train")
    for name in classes:
        others.pop(name, None)
    if not others:
        return []
    names = [f"{name} ({count})" for name, count in others.most_common()]
    return [
        f"annotated in training crops (so many of them) and not in classes, so not learnt: "
        f"{some(names)}"
    ]


def check_files(rows: Sequence[Row]) -> None:
    """Check that every raw group and every class folder exists; metadata are not read.

    Raises:
        FileNotFoundError: with the first missing folders, the lines that name them, how many are
            missing, and the command to fetch them.
    """
    lines_of = missing_files(rows)
    if not lines_of:
        return
    file = rows[0].file
    shown = []
    for problem, numbers in list(lines_of.items())[:PROBLEMS_SHOWN]:
        where = f"line{'s' if len(numbers) > 1 else ''} {some(numbers, most=5)}"
        shown.append(f"{file}: {where}: {problem}")
    advice = f"{len(lines_of)} missing in all; {_how_to_mend(rows)}"
    raise FileNotFoundError("\n".join([*shown, f"{file}: {advice}"]))


def missing_files(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return a sentence for each group and crop that is not there, with the lines that name it."""
    lines_of: dict[str, list[str]] = {}
    # a crop of 48 classes is fifty questions to the disk, which a network disk answers one by one
    with ThreadPoolExecutor(ASKING) as threads:
        missing = list(threads.map(_missing, rows))
    for row, problems in zip(rows, missing, strict=True):
        for problem in problems:
            lines_of.setdefault(problem, []).append(str(row.line))
    return lines_of


def _how_to_mend(rows: Sequence[Row]) -> str:
    """Return the advice about missing files of these rows."""
    root = rows[0].data_root
    if not any(path.is_relative_to(root) for row in rows for path in (row.raw, row.crop)):
        return (
            "they are absolute, so that --data does not move them; correct these lines, or write "
            "the file anew by make-datasplit, or joint init where its first line says so"
        )
    near = layout.data_root_near(root)
    if near and any(row.crop.is_relative_to(root) for row in rows):
        relative = [row.crop.relative_to(root) for row in rows if row.crop.is_relative_to(root)]
        if any((near / path).is_dir() for path in relative):
            return f"the datasets are in {near}: write {shlex.join(['--data', str(near)])}"
    name_it = "name the folder that holds the datasets: --data FOLDER or CELLMAP_DATA=FOLDER"
    if any(not _missing_group("raw group", place.on_disk(row.raw)) for row in rows):
        name_it = f"correct these lines, or take them out, or {name_it}"
    # zarr, which takes its time, is only needed where something is missing
    from common.data.splits import catalogue

    public = {f"{crop.dataset}/{crop.name}" for crop in catalogue.read_crop_table()}
    experiment = rows[0].file.parent
    if public.isdisjoint(row.name for row in rows):
        return name_it
    if not (experiment / "train_config.py").is_file():
        return f"fetch them with fetch-data, or {name_it}"
    command = command_line("fetch-data", data=root, **{"for": experiment})
    return f"fetch them:\n  {command}\nor {name_it}"


def _missing(row: Row) -> list[str]:
    raw = place.on_disk(row.raw)
    problems = [_missing_group("raw group", raw), _missing_group("crop folder", row.crop)]
    problems = [problem for problem in dict.fromkeys(problems) if problem]
    if row.crop.is_dir():
        absent = [name for name in row.annotated if place.is_missing(row.class_volume(name))]
        misspelt = [name for name in absent if _class_meant(row, name)]
        for name in misspelt:
            problems.append(f"no class folder {row.crop / name}{_class_meant(row, name)}")
        absent = [name for name in absent if name not in misspelt]
        if absent:
            problems.append(f"no {some(absent, most=5)} in {row.crop}")
    return problems


def _class_meant(row: Row, name: str) -> str:
    """Return what is said of a class without a folder where another may be meant; else ''."""
    if not unknown_names([name]):  # it is one of the table's, and not fetched perhaps
        return ""
    near = nearest(name, _names_in(row.crop))
    return f"; did you mean {near}, which is there?" if near else ""


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:  # which is no folder, or may not be read
        return []


def _missing_group(what: str, path: Path) -> str:
    """Return a sentence about a missing folder, or about its store if that is missing; else ''."""
    if not place.is_missing(path):
        return ""
    for folder in (*reversed(path.parents), path):
        if folder.suffix == ".zarr" and not folder.is_dir():
            return f"no zarr store {folder}{_in_other_case(folder)}"
    return f"no {what} {path}{_in_other_case(path)}"


def _in_other_case(path: Path) -> str:
    """Return what is said of a missing path that is there in other letters, A for a; else ''."""
    for folder in (*reversed(path.parents), path):
        if folder.exists():
            continue
        for name in _names_in(folder.parent):
            if name.lower() == folder.name.lower():
                return f"; did you mean {folder.parent / name}, in these letters?"
        break
    return ""


def split_hash(rows: Sequence[Row]) -> str:
    """Return the SHA-256 of the rows in their order.

    It is the same wherever the data root is, since paths are taken relative to it; a store outside
    of the data root counts with its whole path.
    """
    content = []
    for row in rows:
        raw = _relative_to(row.data_root, row.raw)
        crop = _relative_to(row.data_root, row.crop)
        content.append([row.usage, raw, crop, *row.annotated])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _relative_to(root: Path, path: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()

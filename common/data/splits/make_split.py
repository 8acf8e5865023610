"""The command make-datasplit: write a `datasplit.csv` and report what is in it.

`common.data.splits.choose_sides` chooses the side (training or validation) of each crop, and
`common.data.splits.split` describes the file. The file begins with two comments: the command that
makes it again, and a summary of its content.
"""

from __future__ import annotations

import glob
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import files, talk
from common.classes import IN_NO_CROP, TESTED, unknown_names
from common.data.splits import split
from common.data.splits.balanced import Sides
from common.data.splits.catalogue import (
    CHALLENGE,
    CropInfo,
    natural_key,
    read_crop_table,
    scan,
    select,
)
from common.data.splits.choose_sides import (
    SplitRules,
    by_specimen_if_several,
    choose_folds,
    choose_sides,
)
from common.data.splits.split import TEST, USAGES
from common.data.volumes import layout
from common.errors import UserError, refuse

Scale = float | Sequence[float] | None
"""Voxel size in nm: one number, or z, y, x; None takes crops of every resolution."""


AUTO = "auto"
"""What stays together: specimens, or crops where all are of one specimen."""


def make(
    csv_path: str | Path,
    *,
    data_root: str | Path | None = None,
    manifest: str | Path | None = None,
    scale: Scale = None,
    datasets: Sequence[str] = ("*",),
    crops: Sequence[str] = ("*",),
    absolute: bool = False,
    overwrite: bool = False,
    **choice: Any,
) -> str:
    """Write a datasplit; return a report: what it contains, and what is shared by its sides.

    Args:
        csv_path: the file; with folds they are {stem}_fold0.csv and on.
        data_root: where the crops are looked for, or
        manifest: a table of crops, by default 'challenge', the public ones.
        scale: nm.
        datasets: names or patterns.
        crops: names or patterns.
        absolute: write stores with the data root before them, for programs that have none.
        overwrite: replace existing files.
        choice: further fields of `SplitRules`; `by` may be AUTO.
    """
    path = Path(csv_path)
    rules = _rules(path, scale, choice)
    paths = _paths(path, rules.folds, overwrite)
    root = _root_of_stores(path, data_root) if absolute else ""
    known, broken = _crops(path, data_root, manifest, datasets=datasets, names=crops)
    _check_classes(path, rules.classes, known)
    if choice.get("by") == AUTO:
        rules = by_specimen_if_several(known, rules)
    splits = choose_folds(known, rules) if rules.folds else [choose_sides(known, rules)]
    source = None if data_root is not None else _short(manifest or "challenge")
    command = _command(path, source, rules, datasets=datasets, crops=crops, absolute=absolute)
    for file, sides in zip(paths, splits, strict=True):
        lines = [f"# {command}", f"# {_summary(sides)}", *rows(sides, rules.classes, root)]
        write_datasplit(file, lines, overwrite)
    return "\n".join(_report(paths, splits, rules, known=known, broken=broken))


def _rules(path: Path, scale: Scale, choice: dict[str, Any]) -> SplitRules:
    """Return the rules of a split, checked. AUTO groups by specimen until the crops are known."""
    by = {"by": "specimen"} if choice.get("by") == AUTO else {}
    rules = SplitRules(scale=three(scale), **choice | by)
    refuse(rules.problems(), path)
    return rules


def rows(sides: Sides, classes: Sequence[str], root: str = "") -> list[str]:
    """Return the lines of a data split; in brackets those of `classes` that a crop annotates.

    root: before the path of each store.
    """
    return [
        split.row_text(usage, crop.dataset, crop.name, _annotated(crop, classes), root=root)
        for usage, crop in sides
    ]


def write_datasplit(path: str | Path, lines: Sequence[str], overwrite: bool = False) -> None:
    """Write the lines to `path`, whole or not at all.

    Raises:
        UserError: if the file exists and is not to be overwritten, or cannot be written.
        FileNotFoundError: if its folder does not exist.
    """
    path = Path(path)
    _refuse_existing(path, overwrite)
    files.refuse_no_folder(path)
    files.write_text(path, "".join(f"{line}\n" for line in lines))


def _annotated(crop: CropInfo, classes: Sequence[str]) -> list[str]:
    return [name for name in classes if name in crop.classes]


def _paths(path: Path, folds: int, overwrite: bool) -> list[Path]:
    """Return the files to write. Raises UserError for one that may not be overwritten."""
    paths = [path]
    if folds > 0:
        paths = [path.with_stem(f"{path.stem}_fold{fold}") for fold in range(folds)]
    for file in paths:
        _refuse_existing(file, overwrite)
    return paths


def _root_of_stores(path: Path, data_root: str | Path | None) -> str:
    """Return what stands before absolute stores. Raises UserError for crops in no folder."""
    if data_root is None:
        raise UserError(f"{path}: absolute paths of a table of crops; give the data root instead")
    return str(Path(data_root).absolute())


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if files.is_file(path) and not overwrite:
        raise UserError(f"{path}: exists already; write --overwrite (overwrite=True) to replace it")


# which crops


def _crops(
    path: Path,
    data_root: str | Path | None,
    manifest: str | Path | None,
    *,
    datasets: Sequence[str],
    names: Sequence[str],
) -> tuple[list[CropInfo], list[str]]:
    """Return the crops that were asked for, and what is broken among them, one sentence each."""
    if data_root is not None and manifest is not None:
        raise UserError(
            f"{path}: both a data root ({data_root}) and a manifest ({manifest}); write one of them"
        )
    if data_root is not None:
        return scan(data_root, datasets, names)
    table = CHALLENGE if manifest in (None, "challenge") else Path(str(manifest))
    known = {crop.key: crop for crop in read_crop_table(table)}
    return list(select(known, datasets, names, table).values()), []


def _check_classes(path: Path, classes: Sequence[str], crops: Sequence[CropInfo]) -> None:
    """Raise UserError for unknown and repeated classes; one that a crop annotates is known."""
    annotated = set().union(*(crop.classes for crop in crops))
    problems = unknown_names(classes, annotated, IN_NO_CROP)
    problems += [
        f"class '{name}' is named {count} times; once"
        for name, count in Counter(classes).items()
        if count > 1
    ]
    refuse(problems, path)


def three(scale: Scale) -> tuple[float, ...] | None:
    """Return a voxel size as z, y, x; None stays."""
    if scale is None:
        return None
    sizes = np.ravel(scale).astype(float).tolist()
    return tuple(sizes * 3 if np.ndim(scale) == 0 else sizes)


# the command that makes the file again


def _command(
    path: Path,
    source: str | None,
    rules: SplitRules,
    *,
    datasets: Sequence[str],
    crops: Sequence[str],
    absolute: bool,
) -> str:
    """Return the command that makes the file again, without paths of this machine.

    Of a path only the last folder and the name are written. source: the table of crops; None is a
    data root.
    """
    fraction = None if rules.folds else f"{rules.validation_fraction:.12g}"
    return talk.command_line(
        "make-datasplit",
        _short(path),
        data="DATA" if source is None else None,
        manifest=source,
        classes="tested" if tuple(rules.classes) == TESTED else ",".join(rules.classes),
        scale=rules.scale_text or "any",
        validation_fraction=fraction,
        seed=rules.seed,
        by=rules.by,
        min_extent=f"{rules.min_extent:.12g}",
        # what is as it is by default is not said from here on
        datasets=_unless(",".join(datasets), "*"),
        crops=_unless(",".join(crops), "*"),
        method=_unless(rules.method, "balanced"),
        hold_out=_unless(",".join(rules.hold_out), ""),
        test=_unless(",".join(rules.test), ""),
        folds=rules.folds or None,
        force_classes=_unless(rules.force_classes, ""),
        absolute=absolute,
    )


def _unless(text: str, default: str) -> str | None:
    return None if text == default else text


def _short(path: str | Path) -> str:
    """Return the last folder and the name."""
    path = Path(path)
    return (Path(path.parent.name) / path.name).as_posix()


# what is said about it


def leaks(sides: Sides) -> list[str]:
    """Return sentences about what the sides share: specimens, and overlapping volumes."""
    train = _of(sides, "train")
    validate = _of(sides, "validate")
    problems = shared_specimens(sides)
    pairs = []
    for crop in validate:
        overlapped = [other for other in train if crop.overlaps(other)]
        pairs += [f"{crop.path} and {other.name}" for other in overlapped]
    if pairs:
        overlap = talk.count(len(pairs), "validation crop overlaps", "validation crops overlap")
        problems.append(
            f"{overlap} a training crop: {talk.some(pairs, most=5)}; put both on one side"
        )
    return problems + _leaks_into_test(_of(sides, TEST), [*train, *validate])


def shared_specimens(sides: Sides) -> list[str]:
    """Return a sentence about the specimens that train and validate, if there are any."""
    train = {crop.specimen for crop in _of(sides, "train")}
    validate = {crop.specimen for crop in _of(sides, "validate")}
    shared = train & validate
    if not shared:
        return []
    names = talk.some(sorted(shared, key=natural_key), most=5)
    both = talk.count(len(shared), "specimen trains and validates", "specimens train and validate")
    sentence = f"{both}, which makes the validation look better than new specimens will: {names}"
    if len(train | validate) > 1:
        sentence += "; make-datasplit --group-by specimen keeps them apart"
    return [sentence]


def _leaks_into_test(test: Sequence[CropInfo], others: Sequence[CropInfo]) -> list[str]:
    """Return sentences about specimens and volumes that test crops share with the others."""
    problems = []
    shared = {crop.specimen for crop in test} & {crop.specimen for crop in others}
    if shared:
        problems.append(
            f"test crops are of specimens that train or validate too: "
            f"{talk.some(sorted(shared, key=natural_key), most=5)}; name whole specimens, or say "
            "with the result that it is not of new ones"
        )
    pairs = []
    for crop in test:
        pairs += [f"{crop.path} and {other.name}" for other in others if crop.overlaps(other)]
    if pairs:
        problems.append(f"test crops overlap others: {talk.some(pairs, most=5)}; name both")
    return problems


def _of(sides: Sides, usage: str) -> list[CropInfo]:
    return [crop for side, crop in sides if side == usage]


def _report(
    paths: Sequence[Path],
    splits: Sequence[Sides],
    rules: SplitRules,
    *,
    known: Sequence[CropInfo],
    broken: Sequence[str],
) -> list[str]:
    """Return the lines that `make` returns; known: all crops that were at hand."""
    lines = []
    warned = []
    for path, sides in zip(paths, splits, strict=True):
        lines.append(f"{path}: {_summary(sides)}")
        warned += [f"WARNING: {path}: {leak}" for leak in leaks(sides)]
    taken = {crop.path for _, crop in splits[0]}
    left_out = [crop.path for crop in known if crop.path not in taken]
    if left_out:
        lines.append(
            f"{len(left_out)} of {len(known)} crops left out, too coarse, too small or without "
            f"these classes: {talk.some(sorted(left_out, key=natural_key))}"
        )
    lines += broken
    lines += _table(splits, rules.classes)
    lines += _uncovered(splits, rules.classes)
    if rules.folds:
        warned += _folds_of_before(paths)
    return lines + warned


def _folds_of_before(paths: Sequence[Path]) -> list[str]:
    """Warnings of folds beyond those that were written, as of a call with more of them.

    A loop over all files would train them, too.
    """
    name = paths[0].name.removesuffix(f"0{paths[0].suffix}")
    pattern = f"{glob.escape(name)}*{glob.escape(paths[0].suffix)}"
    others = sorted(set(paths[0].parent.glob(pattern)) - set(paths))
    return [f"WARNING: {other}: is of another split, and none of these folds" for other in others]


def _summary(sides: Sides) -> str:
    validate = _of(sides, "validate")
    test = _of(sides, TEST)
    of_run = len(sides) - len(test)
    text = (
        f"{talk.count(of_run - len(validate), 'training crop')}, "
        f"{talk.count(len(validate), 'validation crop')} "
        f"({len(validate) / of_run:.1%}) of {_specimens(validate)}"
    )
    if test:
        text += f", {talk.count(len(test), 'test crop')} of {_specimens(test)}"
    return text


def _specimens(crops: Sequence[CropInfo]) -> str:
    specimens = sorted({crop.specimen for crop in crops}, key=natural_key)
    return ", ".join(specimens) or "no specimen"


def _table(splits: Sequence[Sides], classes: Sequence[str]) -> list[str]:
    """Return how many crops of each side annotate each class.

    Of several splits each has one column, training crops / validation crops.
    """
    if len(splits) == 1:
        return _table_of_sides(splits[0], classes)
    folds = [f"fold {fold}" for fold in range(len(splits))]
    lines = [_line("class", folds)]
    for name in classes:
        cells = []
        for sides in splits:
            train = _count(sides, name, "train")
            validate = _count(sides, name, "validate")
            cells.append(f"{train}/{validate}")
        lines.append(_line(name, cells))
    return lines


def _table_of_sides(sides: Sides, classes: Sequence[str]) -> list[str]:
    """Return a column for each side."""
    usages = (*USAGES, TEST) if _of(sides, TEST) else USAGES
    lines = [_line("class", usages, first_width=8)]
    for name in classes:
        counts = [str(_count(sides, name, usage)) for usage in usages]
        lines.append(_line(name, counts, first_width=8))
    return lines


def _line(name: str, cells: Sequence[str], first_width: int = 10) -> str:
    """Return a line of a table: a class, and the cells of its columns."""
    first, *others = cells
    columns = [f"{cell:>10}" for cell in others]
    return "".join([f"{name:16}", first.rjust(first_width), *columns])


def _uncovered(splits: Sequence[Sides], classes: Sequence[str]) -> list[str]:
    """Return a sentence for the classes that miss a side."""
    lines = []
    for fold, sides in enumerate(splits):
        where = f"fold {fold}: " if len(splits) > 1 else ""
        for usage in USAGES:
            missing = [name for name in classes if not _count(sides, name, usage)]
            if missing:
                lines.append(f"{where}annotated in no {usage} crop: {', '.join(missing)}")
        lines += [f"{where}{sentence}" for sentence in never_learnt(sides, classes)]
    return lines


def never_learnt(sides: Sides, classes: Sequence[str]) -> list[str]:
    """Return a sentence about classes that only validation crops annotate; [] without any."""
    lost = []
    for name in classes:
        validating = [crop.path for crop in _of(sides, "validate") if name in crop.classes]
        if validating and not _count(sides, name, "train"):
            lost.append(f"{name} ({talk.some(validating, most=2)})")
    if not lost:
        return []
    return [
        f"never learnt, since only validation crops annotate it: {talk.some(lost, most=5)}; take "
        "another --seed, --group-by crop or a smaller --validation-fraction, or annotate more"
    ]


def _count(sides: Sides, name: str, usage: str) -> int:
    """Return how many crops of a side annotate a class."""
    return sum(side == usage and name in crop.classes for side, crop in sides)


# without a report


def split_data_root(
    data_root: str | Path,
    rules: SplitRules,
    csv_path: str | Path | None,
    *,
    datasets: Sequence[str] = ("*",),
    crops: Sequence[str] = ("*",),
    overwrite: bool = False,
    specimens_if_several: bool = False,
) -> dict[str, list[str]]:
    """Split the crops under a data root; gives {crop folder: its classes} of those used.

    Warns of what is broken there. Raises as `make`.

    Args:
        data_root: where the crops are looked for.
        rules: how sides are chosen, without folds.
        csv_path: the file; None writes none.
        datasets: names or patterns.
        crops: names or patterns.
        overwrite: replace an existing file.
        specimens_if_several: whatever the rules say, by specimen, or by crop where there is one.
    """
    source = Path(csv_path or data_root)
    if csv_path is not None:
        _refuse_existing(source, overwrite)
    refuse(rules.problems(), source)
    known, broken = scan(data_root, datasets, crops)
    if broken:
        warnings.warn("\n".join(broken), stacklevel=3)
    _check_classes(source, rules.classes, known)
    if specimens_if_several:
        rules = by_specimen_if_several(known, rules)
    sides = choose_sides(known, rules)
    for sentence in never_learnt(sides, rules.classes):
        talk.note(sentence)
    if csv_path is not None:
        write_datasplit(source, rows(sides, rules.classes), overwrite)
    return {_folder(data_root, crop): _annotated(crop, rules.classes) for _, crop in sides}


def _folder(data_root: str | Path, crop: CropInfo) -> str:
    return f"{data_root}/{layout.labels(crop.dataset, crop.name)}"

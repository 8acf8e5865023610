"""Read, check and make `datasplit.csv`: which crops train and which validate, and which classes each one annotates.

One row a crop, without a header: usage ("train" or "validate"), raw store, raw path in it, label store, label path in
it with the annotated classes in brackets. Stores are relative to the data root. A class that is not in the brackets is
unknown in that crop, even if its folder exists.

    "train","d/d.zarr","recon-1/em/fibsem-uint8","d/d.zarr","recon-1/labels/groundtruth/crop28/[ecs,pm]"

How a split is made: every crop of a group goes to one side. A group is a specimen, or a dataset (by="dataset"), or the
crops that are linked by overlaps (by="crop").

method="hash": a group validates if SHA-256 of "seed/name of the group", as a number in [0, 1), is below the wanted
fraction. It looks at nothing else, so a new crop moves no old one, and a larger fraction only adds groups; but few
groups come out unevenly. Linked crops have the name of the first of them: a new crop moves old ones only if it links
some that stood on different sides or comes before those that it overlaps.

method="balanced", the default: 100000 sets of groups are drawn from the seed and ranked over *all* crops at hand, whatever the resolution
asked for, so that experiments at different resolutions share one assignment. The rank is the sum of
  - how far the validation fraction is from the wanted one, taken over all crops, over crops of like voxel size, over
    crops of like extent and over the crops of each class (each of the four is sum |validation - wanted| / sum crops);
  - how alike the validation crops are: the chance that two of them are of one kind of sample.
The first set in this rank with the fewest coverage gaps *at the resolution asked for* is taken. A gap is a class
without a training crop, or one without a validation crop though two groups annotate it. Annotated is not the same as
present: whether a class occurs in a crop is known from its voxels only (`fingerprint` counts them).

With folds=K every group validates in exactly one of K splits: by its hash (the K-th part of [0, 1) that it falls into),
or balanced, where each fold is searched as above among the groups that have not validated yet.

How small a crop may be (min_extent) depends on the smallest target patch, 28 voxels here. The baselines ask for 28
voxels at 8 nm (a patch can be known everywhere; no fine crop is smaller), for 20 at 32 nm (the usual crops of 400
voxels, 0.65 to 0.8 um, still fill a third of a patch) and for 9 at 128 nm (1.2 um; a smaller crop fills under 4 %).
"""

from __future__ import annotations

import hashlib
import math
import os
import shlex
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.classes import TESTED, unknown_names
from common.data.catalogue import (
    CHALLENGE,
    CropInfo,
    fits,
    natural_key,
    read_crop_table,
    scan,
    select,
)
from common.data.layout import LABELS, RAW
from common.data.split import USAGES
from common.errors import UserError

GROUPS = ("specimen", "dataset", "crop")


METHODS = ("balanced", "hash")


FORCED = {"": (), "all": USAGES, "train": ("train",), "validate": ("validate",)}
"""The sides that take only crops annotating every class, by the value of force_classes."""


VALIDATION_FRACTION = 0.17


DRAWS = 100_000


def unit_of(crops: Sequence[CropInfo], by: str) -> np.ndarray:
    """(crops,) int: what moves together. by: 'specimen', 'dataset', or 'crop', which links the crops that overlap."""
    if by != "crop":
        return np.unique([getattr(crop, by) for crop in crops], return_inverse=True)[1]
    units = np.arange(len(crops))
    for i, one in enumerate(crops):
        for j in range(i):
            if units[i] != units[j] and one.overlaps(crops[j]):
                units[units == units[i]] = units[j]
    return np.unique(units, return_inverse=True)[1]


@dataclass(frozen=True)
class _Pool:
    """The crops at hand and what may be done with them; all but `usable` holds for every resolution."""

    crops: list[CropInfo]
    """In natural order."""
    classes: Sequence[str]
    annotated: np.ndarray
    """(crops, classes) bool."""
    usable: np.ndarray
    """(crops,) bool: those that fit."""
    on_side: Mapping[str, np.ndarray]
    """For each side (crops,) bool: those that it would take."""
    units: np.ndarray
    """(crops,) int: group of each crop."""
    names: list[str]
    """Of the groups."""

    @property
    def member(self) -> np.ndarray:
        """(groups, crops) 0 / 1."""
        return np.eye(len(self.names))[self.units].T

    def sides(self, validates: np.ndarray) -> list[tuple[str, CropInfo]]:
        """(usage, crop) for (groups,) bool, training ones first, each side in natural order."""
        of_side = {"train": ~validates[self.units], "validate": validates[self.units]}
        return [
            (usage, crop)
            for usage in USAGES
            for crop, here, there in zip(
                self.crops, self.on_side[usage], of_side[usage], strict=True
            )
            if here and there
        ]


def _pool(
    crops: Sequence[CropInfo],
    classes: Sequence[str],
    scale: Sequence[float] | None,
    min_extent: float,
    by: str,
    complete: Sequence[str],
) -> _Pool:
    """Raises ValueError if nothing fits."""
    crops = sorted(crops, key=lambda crop: natural_key(crop.dataset, crop.name))
    annotated = np.array([name in crop.classes for crop in crops for name in classes], bool)
    annotated = annotated.reshape(len(crops), len(classes))
    usable = np.array([fits(crop, scale, min_extent) for crop in crops], bool) & annotated.any(1)
    if not usable.any():
        wanted = (
            ""
            if scale is None
            else f", as fine as {_joined(scale)} nm, {min_extent:g} such voxels on every axis"
        )
        raise UserError(
            f"no crop of {len(crops)} fits (a class asked for{wanted}); ask for coarser or smaller ones"
        )
    on_side = {side: usable & annotated.all(1) if side in complete else usable for side in USAGES}
    units = unit_of(crops, by)
    first = [crops[i] for i in np.unique(units, return_index=True)[1]]
    names = [f"{crop.dataset}/{crop.name}" if by == "crop" else getattr(crop, by) for crop in first]
    return _Pool(crops, classes, annotated, usable, on_side, units, names)


def choose_sides(
    crops: Sequence[CropInfo],
    *,
    classes: Sequence[str] = TESTED,
    scale: Sequence[float] | None,
    validation_fraction: float = VALIDATION_FRACTION,
    seed: int = 0,
    min_extent: float = 1,
    by: str = "specimen",
    method: str = "balanced",
    hold_out: Sequence[str] = (),
    complete: Sequence[str] = (),
) -> list[tuple[str, CropInfo]]:
    """(usage, crop) of the crops that fit, training ones first, each side in natural order; see the module's text.

    scale: nm, None takes every resolution. min_extent: voxels of that scale. hold_out: exact names of datasets or crops
    ('jrc_x', 'crop28', '28', 'jrc_x/crop28') that validate, whole groups. complete: the sides ('train', 'validate')
    that take only crops annotating every one of `classes`; the others are left out there, not moved to the other side.
    Raises ValueError if nothing fits, nothing trains, all that fits would have to move together, or a group is held
    out in part.
    """
    pool = _pool(crops, classes, scale, min_extent, by, complete)
    held = _held(pool, hold_out, by)
    if validation_fraction > 0 and method == "hash":
        validates = _position(pool.names, seed) < validation_fraction
    elif validation_fraction > 0:
        if not held.any():
            _check_several(pool, by)
        validates = _search(pool, validation_fraction, seed, held)
    else:
        validates = np.zeros(len(pool.names), bool)
    sides = pool.sides(validates | held)
    if not any(usage == "train" for usage, _ in sides):
        if not pool.on_side["train"].any():
            raise UserError(
                f"no crop of {len(crops)} annotates all of {', '.join(classes)}; do not ask for all"
            )
        raise UserError(
            "no crop is left to train on; take another seed, validate a smaller fraction or hold out less"
        )
    return sides


def choose_folds(
    crops: Sequence[CropInfo],
    folds: int,
    *,
    classes: Sequence[str] = TESTED,
    scale: Sequence[float] | None,
    seed: int = 0,
    min_extent: float = 1,
    by: str = "specimen",
    method: str = "balanced",
    complete: Sequence[str] = (),
) -> list[list[tuple[str, CropInfo]]]:
    """The sides of each of `folds` splits, as `choose_sides` gives them; every group validates in exactly one.

    Raises ValueError where `choose_sides` does, and if a fold has no crop that validates.
    """
    pool = _pool(crops, classes, scale, min_extent, by, complete)
    _check_several(pool, by)
    if method == "hash":
        fold_of = (_position(pool.names, seed) * folds).astype(int)
    else:
        fold_of = np.full(len(pool.names), folds - 1)
        for fold in range(folds - 1):
            left = fold_of == folds - 1
            fold_of[_search(pool, 1 / folds, seed, free=left, chance=1 / (folds - fold))] = fold
    splits = [pool.sides(fold_of == fold) for fold in range(folds)]
    for fold, sides in enumerate(splits):
        if missing := [usage for usage in USAGES if not any(usage == side for side, _ in sides)]:
            raise UserError(
                f"fold {fold} of {folds} has no {missing[0]} crop ({len(set(pool.units[pool.usable]))} groups fit); "
                f"write fewer folds{', or method balanced' if method == 'hash' else ''}"
            )
    return splits


def _check_several(pool: _Pool, by: str) -> None:
    if len(set(pool.units[pool.usable])) > 1:
        return
    what = {
        "specimen": "specimen; split it by crop",
        "dataset": "dataset; split it by crop",
        "crop": "overlapping region; add crops",
    }[by]
    raise UserError(
        f"all {pool.usable.sum()} crops that fit are of one {what}, or train on all with a validation fraction of 0"
    )


def _held(pool: _Pool, names: Sequence[str], by: str) -> np.ndarray:
    """(groups,) bool: those whose crops are all named. ValueError for a name that nothing has and a group named in part."""
    wanted = {f"crop{name}" if name.isdecimal() else name for name in names}
    known = [{crop.dataset, crop.name, f"{crop.dataset}/{crop.name}"} for crop in pool.crops]
    problems = [
        f"hold-out '{name}': no dataset or crop at hand has exactly this name; write names such as "
        f"{pool.crops[0].dataset} or {pool.crops[0].dataset}/{pool.crops[0].name}"
        for name in sorted(wanted - set().union(*known))
    ]
    named = np.array([bool(wanted & names) for names in known])
    held = np.array([named[pool.units == unit].any() for unit in range(len(pool.names))], bool)
    for unit in np.flatnonzero(held):
        left = [
            f"{crop.dataset}/{crop.name}"
            for crop, u, n in zip(pool.crops, pool.units, named, strict=True)
            if u == unit and not n
        ]
        if left:
            group = "the crops that overlap" if by == "crop" else f"{by} {pool.names[unit]}"
            advice = "" if by == "crop" else ", or group by crop"
            problems.append(
                f"hold-out: a part of {group} only; name the other {len(left)} too ({', '.join(left[:5])}"
                f"{', ...' if len(left) > 5 else ''}){advice}"
            )
    if problems:
        raise UserError("\n".join(problems))
    return held


def _position(names: Sequence[str], seed: int) -> np.ndarray:
    """(names,) float64 in [0, 1): where each falls, by SHA-256 of seed and name."""
    digests = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in names]
    return np.array(
        [int.from_bytes(digest[:6]) / 2**48 for digest in digests]
    )  # 48 bits: exact, and never rounded to 1


def _search(
    pool: _Pool,
    fraction: float,
    seed: int,
    held: np.ndarray | bool = False,
    free: np.ndarray | bool = True,
    chance: float | None = None,
) -> np.ndarray:
    """(groups,) bool, those that validate: the best of the drawn sets, mended while moving one group closes a gap.

    held: those that validate in any case; free: those that may; chance: of a group to be drawn, `fraction` unless given.
    """
    member = pool.member
    groups = [member @ group for group in _groups(pool.crops)]
    kinds = member @ _one_hot([crop.kind for crop in pool.crops])
    counts = {side: member @ (pool.annotated & pool.on_side[side][:, None]) for side in USAGES}

    def best_of(sets: np.ndarray) -> tuple[int, float, np.ndarray]:
        sets = sets & free | held
        gaps, rank = _gaps(sets, counts), _rank(sets, groups, kinds, fraction)
        first = np.lexsort((rank, gaps))[0]
        return gaps[first], rank[first], sets[first]

    rng = np.random.default_rng(seed)
    blocks = (
        best_of(rng.random((DRAWS // 10, len(member))) < (chance or fraction)) for _ in range(10)
    )
    gaps, _, best = min(blocks, key=lambda block: block[:2])
    while gaps:
        fewer, _, moved = best_of(best ^ np.eye(len(best), dtype=bool))
        if fewer >= gaps:
            break
        gaps, best = fewer, moved
    return best


def _gaps(sets: np.ndarray, counts: Mapping[str, np.ndarray]) -> np.ndarray:
    """(sets,) number of classes that could train and do not, plus those that could also validate and do not."""
    train, validate = counts["train"], counts["validate"]
    splits = (
        (validate > 0).any(0) & (train > 0).any(0) & (((validate > 0) | (train > 0)).sum(0) > 1)
    )
    untrained = (~sets @ train == 0) & (train > 0).any(0)
    return (untrained.astype(int) + ((sets @ validate == 0) & splits)).sum(1)


def _rank(
    sets: np.ndarray, groups: Sequence[np.ndarray], kinds: np.ndarray, fraction: float
) -> np.ndarray:
    """(sets,) the sum in the module's text, less is better; rounded, so that it orders alike on every machine.

    groups: (units, n) crops of each unit in each of n groups. kinds: the same for the kinds of sample.
    """
    uneven = sum(
        np.abs(sets @ each - fraction * each.sum(0)).sum(1) / each.sum() for each in groups
    )
    chosen = sets @ kinds
    return np.round(uneven + (chosen**2).sum(1) / np.maximum(chosen.sum(1), 1) ** 2, 9)


def _groups(crops: Sequence[CropInfo]) -> list[np.ndarray]:
    """Four (crops, n) 0 / 1: all crops, those of like voxel size and of like extent (octaves), those of each class."""
    names = sorted(set().union(*(crop.classes for crop in crops)))
    return [
        np.ones((len(crops), 1)),
        _one_hot([round(math.log2(max(crop.voxel_size))) for crop in crops]),
        _one_hot([math.floor(math.log2(crop.extent.min())) for crop in crops]),
        np.array([[name in crop.classes for name in names] for crop in crops], float),
    ]


def _one_hot(values: Sequence[Any]) -> np.ndarray:
    index = np.unique(values, return_inverse=True)[1]
    return np.eye(index.max() + 1)[index]


def make_datasplit(
    crops: Sequence[CropInfo], *, classes: Sequence[str] = TESTED, **choice: Any
) -> list[str]:
    """The lines of a data split; the arguments are those of `choose_sides`."""
    return [
        _line(usage, crop, classes)
        for usage, crop in choose_sides(crops, classes=classes, **choice)
    ]


def _line(usage: str, crop: CropInfo, classes: Sequence[str]) -> str:
    store = f"{crop.dataset}/{crop.dataset}.zarr"
    labels = f"{LABELS}/{crop.name}/[{','.join(_bracket(crop, classes))}]"
    return ",".join(f'"{text}"' for text in (usage, store, RAW, store, labels))


def _bracket(crop: CropInfo, classes: Sequence[str]) -> list[str]:
    return [name for name in classes if name in crop.classes]


def write_datasplit(path: str | Path, lines: Sequence[str], overwrite: bool = False) -> None:
    """Write the lines to `path`, by a temporary file and a rename: there is the old file or the whole new one.

    Raises ValueError if the file exists and is not to be overwritten, FileNotFoundError if its folder does not.
    """
    path = Path(path)
    _refuse_existing(path, overwrite)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist; create it first")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text("".join(f"{line}\n" for line in lines), newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists already; write --overwrite (overwrite=True) to replace it")


def make(
    csv_path: str | Path,
    *,
    data_root: str | Path | None = None,
    manifest: str | Path | None = None,
    classes: Sequence[str] = TESTED,
    scale: float | Sequence[float] | None = None,
    validation_fraction: float = VALIDATION_FRACTION,
    seed: int = 0,
    by: str = "specimen",
    min_extent: float = 1,
    method: str = "balanced",
    hold_out: Sequence[str] = (),
    folds: int = 0,
    force_classes: str = "",
    datasets: Sequence[str] = ("*",),
    crops: Sequence[str] = ("*",),
    overwrite: bool = False,
) -> str:
    """Make a data split and write it; the report of what it contains and of what leaks from one side to the other.

    The crops are those of `manifest` (a table, or 'challenge', the default) or those found under `data_root`.
    scale: nm, one number or z, y, x, or None for crops of every resolution. folds: how many splits to write, as
    {stem}_fold0.csv and on; 0 is the one split `csv_path`. force_classes: 'all', 'train' or 'validate', the sides that
    take only crops annotating every class; the rest as in `choose_sides`, `select` and `write_datasplit`.
    """
    path = Path(csv_path)
    paths = [path.with_stem(f"{path.stem}_fold{fold}") for fold in range(folds)] or [path]
    for each in paths:
        _refuse_existing(each, overwrite)
    scale = _three(scale)
    choice = {
        "validation_fraction": validation_fraction,
        "seed": seed,
        "by": by,
        "min_extent": min_extent,
    }
    added = {
        "method": method,
        "hold_out": ",".join(hold_out),
        "folds": folds,
        "force_classes": force_classes,
    }
    _check_choice(path, scale, **choice, **added)
    found, skipped = _find(path, data_root, manifest, datasets, crops)
    _check_classes(path, classes, found)
    options = {"scale": scale, "seed": seed, "by": by, "min_extent": min_extent, "method": method}
    options |= {"classes": classes, "complete": FORCED[force_classes]}
    if folds:
        splits = choose_folds(found, folds, **options)
        del choice["validation_fraction"]
    else:
        splits = [
            choose_sides(
                found, validation_fraction=validation_fraction, hold_out=hold_out, **options
            )
        ]
    source = (
        ["--data", "DATA"]
        if data_root is not None
        else ["--manifest", _short(manifest or "challenge")]
    )
    sizes = {} if scale is None else {"scale": _joined(scale)}
    patterns = {"datasets": ",".join(datasets), "crops": ",".join(crops)}
    chosen = {name: pattern for name, pattern in patterns.items() if pattern != "*"}
    chosen |= {name: value for name, value in added.items() if value and value != METHODS[0]}
    command = _command(path, source, classes, {**sizes, **choice, **chosen})
    for each, sides in zip(paths, splits, strict=True):
        lines = [
            f"# {command}",
            f"# {_summary(sides)}",
            *(_line(usage, crop, classes) for usage, crop in sides),
        ]
        write_datasplit(each, lines, overwrite)
    summaries = [f"{each}: {_summary(sides)}" for each, sides in zip(paths, splits, strict=True)]
    warned = [
        f"WARNING: {each}: {leak}"
        for each, sides in zip(paths, splits, strict=True)
        for leak in leaks(sides)
    ]
    return "\n".join(
        [*summaries, *_left_out(found, splits[0]), *skipped, *_coverage(splits, classes), *warned]
    )


def leaks(sides: Sequence[tuple[str, CropInfo]]) -> list[str]:
    """What the validation crops share with the training crops, a sentence each: specimens, and overlapping volumes."""
    train, validate = ([crop for usage, crop in sides if usage == side] for side in USAGES)
    found = []
    if shared := sorted(
        {crop.specimen for crop in train} & {crop.specimen for crop in validate}, key=natural_key
    ):
        found.append(
            f"{len(shared)} specimens train and validate, which makes the validation look better than new specimens will: "
            f"{_some(shared)}; group by specimen to keep them apart"
        )
    pairs = [
        f"{a.dataset}/{a.name} and {b.name}"
        for a in validate
        for b in train
        if a.dataset == b.dataset and a.overlaps(b)
    ]
    if pairs:
        found.append(
            f"{len(pairs)} validation crops overlap a training crop: {_some(pairs)}; put both on one side"
        )
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])


def _check_choice(
    path: Path,
    scale: Sequence[float] | None,
    validation_fraction: float,
    seed: int,
    by: str,
    min_extent: float = 1,
    method: str = "balanced",
    hold_out: str = "",
    folds: int = 0,
    force_classes: str = "",
) -> None:
    problems = []
    if scale is not None and (len(scale) != 3 or not all(0 < size < math.inf for size in scale)):
        problems.append(f"scale {_joined(scale)}; write the voxel size in nm, as 8 or 8,8,8")
    if not 0 <= validation_fraction < 1:
        problems.append(
            f"validation fraction {validation_fraction:g}; write a number from 0 to below 1, such as 0.17"
        )
    if seed < 0:
        problems.append(f"seed {seed}; write a whole number, 0 or more")
    for name, value, known in (
        ("by", by, GROUPS),
        ("method", method, METHODS),
        ("force-classes", force_classes, tuple(FORCED)),
    ):
        if value not in known:
            problems.append(
                f"{name} '{value}'; write {' or '.join(repr(each) for each in known if each)}"
            )
    if not 0 <= min_extent < math.inf:
        problems.append(f"min-extent {min_extent:g}; write a number of voxels, 0 or more")
    if folds < 0 or folds == 1:
        problems.append(f"folds {folds}; write 2 or more, or 0 for one split")
    if folds and hold_out:
        problems.append(
            f"hold-out {hold_out} with {folds} folds, where every group validates once; write one of them"
        )
    if folds and validation_fraction != VALIDATION_FRACTION:
        problems.append(
            f"validation fraction {validation_fraction:g} with {folds} folds; write one of them"
        )
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))


def _find(
    path: Path, data_root: Any, manifest: Any, datasets: Sequence[str], crops: Sequence[str]
) -> tuple[list[CropInfo], list[str]]:
    if data_root is not None and manifest is not None:
        raise UserError(
            f"{path}: both a data root ({data_root}) and a manifest ({manifest}); write one of them"
        )
    if data_root is not None:
        return scan(data_root, datasets, crops)
    source = CHALLENGE if manifest in (None, "challenge") else Path(manifest)
    table = {(crop.dataset, crop.name): crop for crop in read_crop_table(source)}
    return list(select(table, datasets, crops, source).values()), []


def _check_classes(path: Path, classes: Sequence[str], crops: Sequence[CropInfo]) -> None:
    """A class of one's own is known by a crop that annotates it."""
    problems = unknown_names(classes, set().union(*(crop.classes for crop in crops)))
    problems += [
        f"class '{name}' is named {n} times; once" for name, n in Counter(classes).items() if n > 1
    ]
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))


def _command(
    path: Path, source: Sequence[str], classes: Sequence[str], choice: Mapping[str, Any]
) -> str:
    """The command line that makes this split; of paths only the last folder and the name, for any machine."""
    words = ["make-datasplit", _short(path), *source, "--classes"]
    words += ["tested" if tuple(classes) == TESTED else ",".join(classes)]
    for name, value in choice.items():
        words += [
            f"--{name.replace('_', '-')}",
            f"{value:.12g}" if isinstance(value, float) else str(value),
        ]
    return "python -m cellmap_segmentation_challenge " + shlex.join(words)


def _three(scale: float | Sequence[float] | None) -> tuple[float, ...] | None:
    if scale is None:
        return None
    return tuple(map(float, scale)) if np.ndim(scale) else (float(scale),) * 3


def _joined(scale: Sequence[float]) -> str:
    """'8' for equal numbers, otherwise '50,4.6,4.6'."""
    sizes = [f"{size:.12g}" for size in scale]
    return sizes[0] if len(set(sizes)) == 1 else ",".join(sizes)


def _short(path: str | Path) -> str:
    return (Path(Path(path).parent.name) / Path(path).name).as_posix()


def _summary(sides: Sequence[tuple[str, CropInfo]]) -> str:
    usages = Counter(usage for usage, _ in sides)
    specimens = sorted(
        {crop.specimen for usage, crop in sides if usage == "validate"}, key=natural_key
    )
    return (
        f"{usages['train']} training crops, {usages['validate']} validation crops "
        f"({usages['validate'] / len(sides):.1%}) of {', '.join(specimens) or 'no specimen'}"
    )


def _left_out(crops: Sequence[CropInfo], sides: Sequence[tuple[str, CropInfo]]) -> list[str]:
    if len(crops) == len(sides):
        return []
    return [
        f"{len(crops) - len(sides)} of {len(crops)} crops left out: too coarse, too small or without these classes"
    ]


def _coverage(
    splits: Sequence[Sequence[tuple[str, CropInfo]]], classes: Sequence[str]
) -> list[str]:
    """A table of how many crops of each side annotate each class, and a sentence for classes that miss a side.

    Of several splits each has one column, training crops / validation crops.
    """
    counts = [
        {name: Counter(usage for usage, crop in sides if name in crop.classes) for name in classes}
        for sides in splits
    ]
    if len(splits) == 1:
        lines = [f"{'class':16}{'train':>8}{'validate':>10}"]
        lines += [
            f"{name:16}{count['train']:8}{count['validate']:10}"
            for name, count in counts[0].items()
        ]
    else:
        lines = [f"{'class':16}" + "".join(f"{f'fold {fold}':>10}" for fold in range(len(splits)))]
        for name in classes:
            cells = [f"{count[name]['train']}/{count[name]['validate']}" for count in counts]
            lines.append(f"{name:16}" + "".join(f"{cell:>10}" for cell in cells))
    for fold, count in enumerate(counts):
        where = f"fold {fold}: " if len(splits) > 1 else ""
        for usage in USAGES:
            if gaps := [name for name in classes if not count[name][usage]]:
                lines.append(f"{where}annotated in no {usage} crop: {', '.join(gaps)}")
    return lines


def make_datasplit_csv(
    classes: Sequence[str] = TESTED,
    scale: float | Sequence[float] | None = None,
    force_all_classes: bool | str = False,
    validation_prob: float = 0.1,
    datasets: Sequence[str] = ("*",),
    crops: Sequence[str] = ("*",),
    csv_path: str | Path = "datasplit.csv",
    dry_run: bool = False,
    *,
    data_root: str | Path = "data",
    seed: int = 0,
    by: str = "specimen",
    overwrite: bool = False,
) -> dict[str, list[str]]:
    """The function of the public toolbox: split the crops under `data_root`; {crop folder: its classes} of those used.

    force_all_classes: True takes only crops that annotate all of `classes`, 'train' or 'validate' only on that side.
    Others are left out there; the toolbox moves them to the other side. dry_run writes nothing. The layout is the
    challenge's, so there is no search_path, raw_name or crop_name; paths are written relative to `data_root`.
    """
    path, forced = (
        Path(csv_path),
        {False: "", True: "all"}.get(force_all_classes, force_all_classes),
    )
    if forced not in FORCED:
        raise UserError(
            f"{path}: force_all_classes '{force_all_classes}'; write True, False, 'train' or 'validate'"
        )
    _refuse_existing(path, overwrite or dry_run)
    scale = _three(scale)
    choice = {"validation_fraction": validation_prob, "seed": seed, "by": by}
    _check_choice(path, scale, **choice)
    found, skipped = scan(data_root, datasets, crops)
    if skipped:
        warnings.warn("\n".join(skipped), stacklevel=2)
    _check_classes(path, classes, found)
    sides = choose_sides(found, classes=classes, scale=scale, complete=FORCED[forced], **choice)
    if not dry_run:
        write_datasplit(path, [_line(usage, crop, classes) for usage, crop in sides], overwrite)
    return {
        f"{data_root}/{crop.dataset}/{crop.dataset}.zarr/{LABELS}/{crop.name}": _bracket(
            crop, classes
        )
        for _, crop in sides
    }
